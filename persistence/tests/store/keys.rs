//! Repeats of a message with a key.

use persistence::{AppendError, Range, Refused};

use crate::common::*;

on_all_databases!(
    a_repeat_gets_the_first_answer,
    other_content_is_refused,
    keys_of_events_are_per_recipient,
    repeats_inside_a_batch,
    a_conflict_leaves_no_hole,
    fifty_at_once_store_one,
    one_client_id_for_two_rooms_at_once,
    a_whole_batch_is_stored_or_nothing_of_it,
);

async fn a_repeat_gets_the_first_answer(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut hello = chat("lobby", "alice", "hello");
    hello.key = client_key("alice", "c1");
    let first = stored(&store, hello.clone()).await;
    stored(&store, chat("lobby", "bob", "between")).await;
    let again = stored(&store, hello.clone()).await;
    assert!(!first.repeated && again.repeated);
    assert_eq!((again.id, again.seq, again.epoch, again.date), (first.id, first.seq, first.epoch, first.date));
    assert_eq!(again.display_name.as_deref(), Some("lobby"));
    assert_eq!(store.messages("lobby", Range::Latest, 10).await.unwrap().len(), 2);
    // Another user's and another kind's id is another id.
    hello.key = client_key("bob", "c1");
    assert!(!stored(&store, hello).await.repeated);
    let mut to_carol = notify("carol", "hello");
    to_carol.key = client_key("alice", "c1");
    assert!(!stored(&store, to_carol).await.repeated);
}

async fn other_content_is_refused(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    store.create_room("other", None).await.unwrap();
    let mut hello = chat("lobby", "alice", "hello");
    hello.key = client_key("alice", "c1");
    stored(&store, hello.clone()).await;
    let mut elsewhere = chat("other", "alice", "hello");
    elsewhere.key = hello.key.clone();
    hello.message = "bye".into();
    let results = store.append(&[hello, elsewhere]).await.unwrap();
    assert_eq!(results, [Err(AppendError::KeyReused), Err(AppendError::KeyReused)]);
    assert_eq!(store.room("other").await.unwrap().unwrap().last_seq, 0);
}

async fn keys_of_events_are_per_recipient(database: Database) {
    let store = database.store().await;
    let to = |user: &str, text: &str| {
        let mut append = notify(user, text);
        append.key = event_key("shop", "order-42");
        append
    };
    let batch = [to("alice", "paid"), to("bob", "paid"), to("alice", "paid"), to("bob", "not paid")];
    let results = store.append(&batch).await.unwrap();
    assert!(!results[0].as_ref().unwrap().repeated && !results[1].as_ref().unwrap().repeated);
    assert!(results[2].as_ref().unwrap().repeated);
    assert_eq!(results[3], Err(AppendError::KeyReused));
    assert!(stored(&store, to("alice", "paid")).await.repeated);
    // Identities are compared by bytes here too.
    let mut other = to("alice", "paid");
    other.key = event_key("Shop", "order-42");
    assert!(!stored(&store, other).await.repeated);
}

async fn repeats_inside_a_batch(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let keyed = |text: &str, id: &str| {
        let mut append = chat("lobby", "alice", text);
        append.key = client_key("alice", id);
        append
    };
    let batch = [keyed("1", "a"), keyed("1", "a"), keyed("2", "b"), keyed("other", "a"), keyed("1", "a")];
    let results = store.append(&batch).await.unwrap();
    let first = results[0].as_ref().unwrap();
    for repeat in [1, 4] {
        let repeat = results[repeat].as_ref().unwrap();
        assert!(repeat.repeated);
        assert_eq!((repeat.id, repeat.seq), (first.id, 1));
    }
    assert_eq!(results[2].as_ref().unwrap().seq, 2);
    assert_eq!(results[3], Err(AppendError::KeyReused));
    assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, 2);
}

async fn a_conflict_leaves_no_hole(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let keyed = |text: &str, id: &str| {
        let mut append = chat("lobby", "alice", text);
        append.key = client_key("alice", id);
        append
    };
    stored(&store, keyed("first", "a")).await;
    let batch = [
        chat("lobby", "bob", "2"),
        keyed("first", "a"),
        keyed("3", "b"),
        keyed("changed", "a"),
        keyed("4", "c"),
        chat("lobby", "bob", "5"),
        keyed("4", "c"),
    ];
    let results = store.append(&batch).await.unwrap();
    let seqs: Vec<_> = results.iter().map(|result| result.as_ref().map(|stored| stored.seq).ok()).collect();
    assert_eq!(seqs, [Some(2), Some(1), Some(3), None, Some(4), Some(5), Some(4)]);
    let read = store.messages("lobby", Range::After(0), 100).await.unwrap();
    assert_eq!(read.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    // The receipts know the positions that were given in the end.
    assert_eq!(stored(&store, keyed("3", "b")).await.seq, 3);
    assert_eq!(stored(&store, keyed("4", "c")).await.seq, 4);
}

async fn fifty_at_once_store_one(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut hello = chat("lobby", "alice", "hello");
    hello.key = client_key("alice", "c1");
    let stores = [store.clone(), database.connect().await];
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (store, hello) = (stores[n % 2].clone(), hello.clone());
        tasks.spawn(async move { stored(&store, hello).await });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|answer| !answer.repeated).count(), 1);
    assert!(answers.iter().all(|answer| answer.id == answers[0].id && answer.seq == 1));
    assert_eq!(store.messages("lobby", Range::Latest, 10).await.unwrap().len(), 1);
}

async fn one_client_id_for_two_rooms_at_once(database: Database) {
    let store = database.store().await;
    for room in ["one", "two"] {
        store.create_room(room, None).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let store = store.clone();
        for room in ["one", "two"] {
            let store = store.clone();
            let mut append = chat(room, "alice", "hello");
            append.key = client_key("alice", &n.to_string());
            tasks.spawn(async move { store.append(&[append]).await.unwrap().pop().unwrap() });
        }
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 20);
    let mut total = 0;
    for room in ["one", "two"] {
        let read = store.messages(room, Range::After(0), 100).await.unwrap();
        assert!(read.iter().enumerate().all(|(at, message)| message.seq == at as u64 + 1));
        total += read.len();
    }
    assert_eq!(total, 20);
}

async fn a_whole_batch_is_stored_or_nothing_of_it(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let to = |user: &str, id: &str, text: &str| {
        let mut append = notify(user, text);
        append.key = event_key("shop", id);
        append
    };
    let first = stored(&store, to("alice", "1", "paid")).await;
    let fresh = || to("bob", "2", "paid");
    // Refused by a key of an earlier batch, by one of this batch, and by a room that is not there.
    for (bad, error) in [
        (vec![to("alice", "1", "not paid")], AppendError::KeyReused),
        (vec![to("carol", "3", "a"), to("carol", "3", "b")], AppendError::KeyReused),
        (vec![chat("nowhere", "shop", "hi")], AppendError::RoomNotFound),
    ] {
        let batch = [vec![chat("lobby", "shop", "hi"), fresh()], bad].concat();
        let index = batch.len() - 1;
        assert_eq!(store.append_all(&batch).await.unwrap(), Err(Refused { index, error }));
    }
    assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, 0);
    for user in ["bob", "carol"] {
        assert!(store.notifications(user, Range::Latest, false, 10).await.unwrap().is_empty());
    }
    // Nothing was claimed either, and a repeat is no refusal.
    let batch = [fresh(), to("alice", "1", "paid"), fresh(), chat("lobby", "shop", "hi")];
    let results = store.append_all(&batch).await.unwrap().unwrap();
    let repeated: Vec<_> = results.iter().map(|result| result.repeated).collect();
    assert_eq!(repeated, [false, true, true, false]);
    assert_eq!((results[0].seq, results[1].id, results[2].id, results[3].seq), (1, first.id, results[0].id, 1));
}
