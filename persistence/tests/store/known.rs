//! What a store knows of a stream that it wrote to last.

use persistence::{Append, AppendError, Range, Store};

use crate::common::*;

on_databases! { sqlite: who_wrote_last_asks_once_and_others_find_out }

/// What a store knows of a stream is what it left there itself, and others write to it too.
async fn who_wrote_last_asks_once_and_others_find_out(database: Database) {
    let (here, there) = (database.store().await, database.connect().await);
    here.create_room("lobby", Some("The Lobby")).await.unwrap();
    let asked = async |store: &Store, append: Append| {
        let before = store.statements();
        let stored = stored(store, append).await;
        (stored.seq, stored.display_name, store.statements() - before)
    };
    let name = |name: &str| Some(name.to_owned());
    for seq in 1..=3 {
        assert_eq!(asked(&here, chat("lobby", "alice", "x")).await, (seq, name("The Lobby"), 1));
    }
    assert_eq!(asked(&there, chat("lobby", "bob", "x")).await, (4, name("The Lobby"), 1));
    assert_eq!(asked(&here, chat("lobby", "alice", "x")).await, (5, name("The Lobby"), 2));
    assert_eq!(asked(&here, chat("lobby", "alice", "x")).await, (6, name("The Lobby"), 1));
    there.create_room("lobby", Some("Foyer")).await.unwrap();
    assert_eq!(asked(&here, chat("lobby", "alice", "x")).await, (7, name("Foyer"), 2));

    // Several of a stream in one statement, beside others, and after what took more than one.
    let batch: Vec<_> = (0..5).map(|n| chat("lobby", "alice", &n.to_string())).chain([notify("carol", "1")]).collect();
    for first in [8, 13, 18] {
        let seqs: Vec<_> = here.append(&batch).await.unwrap().into_iter().map(|stored| stored.unwrap().seq).collect();
        assert_eq!(seqs[..5], [first, first + 1, first + 2, first + 3, first + 4]);
    }
    let many: Vec<_> = (0..40).map(|_| chat("lobby", "alice", "x")).collect();
    here.append(&many).await.unwrap();
    assert_eq!(asked(&here, chat("lobby", "alice", "x")).await, (63, name("Foyer"), 1));

    // A repeat is found out by the key, not by the place.
    let mut keyed = chat("lobby", "alice", "once");
    keyed.key = client_key("alice", "1");
    let (first, again) = (stored(&here, keyed.clone()).await, stored(&here, keyed).await);
    assert_eq!((first.seq, first.repeated, again.seq, again.repeated, again.id), (64, false, 64, true, first.id));
    assert_eq!(asked(&here, chat("lobby", "alice", "x")).await.0, 65);

    // Another room of the same name.
    let before = stored(&here, chat("lobby", "alice", "x")).await;
    there.delete_room("lobby").await.unwrap();
    assert_eq!(here.append(&[chat("lobby", "alice", "x")]).await.unwrap(), [Err(AppendError::RoomNotFound)]);
    let room = there.create_room("lobby", None).await.unwrap();
    for seq in 1..=66 {
        let stored = stored(&here, chat("lobby", "alice", "x")).await;
        assert_eq!((stored.seq, stored.epoch, stored.display_name.as_deref()), (seq, room.epoch, Some("lobby")));
        assert_ne!(stored.epoch, before.epoch);
    }
    let read = here.messages("lobby", Range::Latest, 100).await.unwrap();
    assert_eq!(read.iter().map(|message| message.seq).collect::<Vec<_>>(), (1..=66).collect::<Vec<_>>());
}
