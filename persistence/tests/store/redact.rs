//! Messages lose their texts and keep their places.

use persistence::{Range, Stream};

use crate::common::*;

on_all_databases!(a_message_keeps_its_place_and_loses_its_text, all_that_a_user_wrote_and_the_inbox);

async fn a_message_keeps_its_place_and_loses_its_text(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let with_data = persistence::Append { data: Some(r#"{"a":1}"#.into()), ..chat("lobby", "alice", "secret") };
    let first = stored(&store, with_data).await;
    stored(&store, chat("lobby", "bob", "stays")).await;
    assert_eq!(store.redact("lobby", first.id).await.unwrap(), Some(1));
    assert_eq!(store.redact("lobby", first.id).await.unwrap(), Some(1), "again is fine");
    assert_eq!(store.redact("attic", first.id).await.unwrap(), None);
    assert_eq!(store.redact("lobby", uuid::Uuid::nil()).await.unwrap(), None);
    let messages = store.messages("lobby", Range::After(0), 10).await.unwrap();
    let shown: Vec<_> = messages.iter().map(|one| (one.seq, &*one.message, one.data.is_some(), one.redacted)).collect();
    assert_eq!(shown, [(1, "", false, true), (2, "stays", false, false)]);
    assert_eq!((&*messages[0].from_user, messages[0].id, messages[0].date), ("alice", first.id, first.date));
    let after = store.after(&Stream::Room("lobby".into()), 0, 10, usize::MAX).await.unwrap().unwrap();
    assert!(after.messages[0].redacted && !after.messages[1].redacted);
}

async fn all_that_a_user_wrote_and_the_inbox(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    for n in 0..5 {
        stored(&store, chat("lobby", if n % 2 == 0 { "alice" } else { "bob" }, "text")).await;
    }
    let (newest, count) = store.redact_user("lobby", "alice", 2).await.unwrap();
    assert_eq!((newest.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), count), (vec![5, 3], 3));
    assert_eq!(store.redact_user("lobby", "alice", 2).await.unwrap(), (Vec::new(), 0));
    let texts = store.messages("lobby", Range::After(0), 10).await.unwrap();
    assert_eq!(texts.iter().map(|one| one.message.is_empty()).collect::<Vec<_>>(), [true, false, true, false, true]);
    stored(&store, notify("alice", "x")).await;
    assert!(store.delete_inbox("alice").await.unwrap() && !store.delete_inbox("alice").await.unwrap());
    assert!(store.known_users(&names(&["alice"])).await.unwrap().is_empty());
    assert!(store.notifications("alice", Range::After(0), false, 10).await.unwrap().is_empty());
    assert_eq!(stored(&store, notify("alice", "afresh")).await.seq, 1);
}
