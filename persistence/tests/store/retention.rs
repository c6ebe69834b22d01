//! What is deleted with age.

use persistence::{Deleted, Range, Retention, Seen, Store};
use time::{Duration, OffsetDateTime};

use crate::common::*;

on_all_databases!(
    retention_deletes_from_the_old_end,
    only_what_is_old_enough_goes,
    unseen_counts_what_is_left,
    writers_and_readers_go_on_while_old_messages_go,
    receipts_outlive_messages,
    rows_of_a_clock_that_was_ahead_go_with_what_follows_them,
);

async fn apply(store: &Store, retention: Retention) -> Deleted {
    let mut parts = Deleted::default();
    let deleted = store.apply_retention(&retention, |part| parts += part).await.unwrap();
    assert_eq!(parts, deleted, "progress tells of every part");
    deleted
}

async fn seqs(store: &Store, room: &str) -> Vec<u64> {
    store.messages(room, Range::After(0), 2000).await.unwrap().iter().map(|message| message.seq).collect()
}

fn newest(keep: u64) -> Retention {
    Retention { messages_per_room: Some(keep), ..Retention::default() }
}

fn older_than(date: OffsetDateTime) -> Retention {
    Retention { messages_before: Some(date), notifications_before: Some(date), ..Retention::default() }
}

async fn retention_deletes_from_the_old_end(database: Database) {
    let store = database.store().await;
    for room in ["one", "two", "empty"] {
        store.create_room(room, None).await.unwrap();
    }
    let batch: Vec<_> = (0..1100).map(|_| chat("one", "alice", "x")).chain([chat("two", "alice", "x")]).collect();
    store.append(&batch).await.unwrap();
    stored(&store, notify("alice", "x")).await;
    let before = store.statements();
    assert_eq!(apply(&store, Retention::default()).await.total(), 0);
    assert_eq!(store.statements() - before, 0, "nothing to keep to is nothing to do");
    assert_eq!(apply(&store, newest(10)).await, Deleted { messages: 1090, ..Deleted::default() });
    let before = store.statements();
    assert_eq!(apply(&store, newest(10)).await.total(), 0);
    assert_eq!(store.statements() - before, 1, "rooms with nothing old are one read together");
    assert_eq!(seqs(&store, "one").await, (1091..=1100).collect::<Vec<_>>());
    assert_eq!(apply(&store, older_than(OffsetDateTime::now_utc() - Duration::HOUR)).await.total(), 0);
    // The newest of each stream stays, however old.
    let all = apply(&store, older_than(OffsetDateTime::now_utc() + Duration::HOUR)).await;
    assert_eq!(all, Deleted { messages: 9, ..Deleted::default() });
    assert_eq!((seqs(&store, "one").await, seqs(&store, "two").await), (vec![1100], vec![1]));
    let head = store.room("one").await.unwrap().unwrap();
    assert_eq!(head.last_id, Some(store.messages("one", Range::Latest, 1).await.unwrap()[0].id));
    // The stream goes on where it was.
    assert_eq!(stored(&store, chat("one", "alice", "x")).await.seq, 1101);
    assert_eq!(stored(&store, notify("alice", "x")).await.seq, 2);
}

async fn only_what_is_old_enough_goes(database: Database) {
    let store = database.store().await;
    for room in ["one", "two"] {
        store.create_room(room, None).await.unwrap();
    }
    let several = |texts: std::ops::Range<u32>| -> Vec<_> {
        texts.flat_map(|n| ["one", "two"].map(|room| chat(room, "alice", &n.to_string()))).collect()
    };
    store.append(&several(0..5)).await.unwrap();
    let (between, first) = (OffsetDateTime::now_utc(), stored(&store, notify("alice", "x")).await);
    store.append(&several(5..8)).await.unwrap();
    stored(&store, notify("alice", "y")).await;
    assert_eq!(apply(&store, older_than(between)).await, Deleted { messages: 10, ..Deleted::default() });
    assert_eq!((seqs(&store, "one").await, seqs(&store, "two").await), (vec![6, 7, 8], vec![6, 7, 8]));
    // Both rules at once: what one of them names goes.
    let both = Retention { messages_per_room: Some(2), ..older_than(between) };
    assert_eq!(apply(&store, both).await, Deleted { messages: 2, ..Deleted::default() });
    let inboxes = Retention { notifications_before: Some(first.date + Duration::MICROSECOND), ..Retention::default() };
    assert_eq!(apply(&store, inboxes).await, Deleted { notifications: 1, ..Deleted::default() });
    let left = store.notifications("alice", Range::After(0), false, 10).await.unwrap();
    assert_eq!(left.iter().map(|one| one.seq).collect::<Vec<_>>(), [2]);
}

async fn unseen_counts_what_is_left(database: Database) {
    let store = database.store().await;
    for n in 0..6 {
        stored(&store, notify("alice", &n.to_string())).await;
    }
    assert_eq!(store.mark_seen("alice", Seen::UpTo(2)).await.unwrap(), 4);
    let fifth = store.notifications("alice", Range::After(4), false, 1).await.unwrap()[0].date;
    let old = Retention { notifications_before: Some(fifth), ..Retention::default() };
    assert_eq!(apply(&store, old).await.notifications, 4);
    assert_eq!(store.unseen("alice").await.unwrap(), 2);
    assert_eq!(store.mark_seen("alice", Seen::UpTo(5)).await.unwrap(), 1);
}

async fn writers_and_readers_go_on_while_old_messages_go(database: Database) {
    let store = database.store().await;
    store.create_room("busy", None).await.unwrap();
    store.append(&(0..1000).map(|_| chat("busy", "alice", "old")).collect::<Vec<_>>()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let store = store.clone();
        tasks.spawn(async move {
            for n in 0..20 {
                let mut append = chat("busy", "bob", "new");
                append.key = client_key("bob", &format!("{writer}/{n}"));
                stored(&store, append).await;
            }
        });
    }
    for _ in 0..4 {
        apply(&store, newest(50)).await;
        let read = seqs(&store, "busy").await;
        assert!(read.windows(2).all(|pair| pair[1] == pair[0] + 1), "no hole in what is left");
    }
    tasks.join_all().await;
    apply(&store, newest(50)).await;
    assert_eq!(seqs(&store, "busy").await, (1011..=1060).collect::<Vec<_>>());
}

/// The database's clock was years ahead for a while, and was set right: nobody waits years for those rows, and
/// nothing young goes with them.
async fn rows_of_a_clock_that_was_ahead_go_with_what_follows_them(database: Database) {
    if database.is_in_memory() {
        return;
    }
    let store = database.store().await;
    for room in ["old", "young"] {
        store.create_room(room, None).await.unwrap();
        store.append(&(0..10).map(|_| chat(room, "alice", "x")).collect::<Vec<_>>()).await.unwrap();
    }
    let room = |name: &str| format!("room_id = (SELECT id FROM gateway_rooms WHERE name = '{name}')");
    let ahead = (OffsetDateTime::now_utc() + Duration::days(3650)).unix_timestamp() * 1_000_000;
    database.sql(&format!("UPDATE gateway_messages SET date = {ahead} WHERE seq IN (1, 2, 3, 5)"));
    database.sql(&format!("UPDATE gateway_messages SET date = 0 WHERE seq IN (4, 6) AND {}", room("old")));
    let yesterday = store.clock().await.unwrap() - Duration::DAY;
    apply(&store, older_than(yesterday)).await;
    assert_eq!(seqs(&store, "old").await, [7, 8, 9, 10]);
    assert_eq!(seqs(&store, "young").await, (1..=10).collect::<Vec<_>>());
    apply(&store, Retention { messages_per_room: Some(8), ..older_than(yesterday) }).await;
    assert_eq!(seqs(&store, "young").await, (3..=10).collect::<Vec<_>>(), "as many as may stay");
}

async fn receipts_outlive_messages(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut hello = chat("lobby", "alice", "hello");
    hello.key = client_key("alice", "c1");
    let mut paid = notify("alice", "paid");
    paid.key = event_key("shop", "order-1");
    let (first, first_paid) = (stored(&store, hello.clone()).await, stored(&store, paid.clone()).await);
    stored(&store, chat("lobby", "alice", "newer")).await;
    stored(&store, notify("alice", "newer")).await;
    let ahead = OffsetDateTime::now_utc() + Duration::HOUR;
    let deleted = apply(&store, older_than(ahead)).await;
    assert_eq!(deleted, Deleted { messages: 1, notifications: 1, receipts: 0 });
    // The messages are gone, their identities are not.
    for (append, first) in [(&hello, &first), (&paid, &first_paid)] {
        let again = stored(&store, append.clone()).await;
        assert_eq!((again.id, again.seq, again.repeated), (first.id, first.seq, true));
    }
    let week = Retention { receipts_before: Some(ahead - Duration::days(7)), ..Retention::default() };
    assert_eq!(apply(&store, week).await.total(), 0);
    let all = Retention { receipts_before: Some(ahead), ..Retention::default() };
    assert_eq!(apply(&store, all).await, Deleted { receipts: 2, ..Deleted::default() });
    assert_eq!(stored(&store, hello).await.seq, 3);
}
