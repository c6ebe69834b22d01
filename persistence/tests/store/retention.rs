//! What is deleted with age.

use persistence::{Range, Retention};
use time::{Duration, OffsetDateTime};

use crate::common::*;

on_all_databases!(retention_deletes_from_the_old_end, receipts_outlive_messages);

async fn retention_deletes_from_the_old_end(database: Database) {
    let store = database.store().await;
    for room in ["one", "two"] {
        store.create_room(room, None).await.unwrap();
    }
    let batch: Vec<_> = (0..600).map(|_| chat("one", "alice", "x")).chain([chat("two", "alice", "x")]).collect();
    store.append(&batch).await.unwrap();
    stored(&store, notify("alice", "x")).await;
    assert_eq!(store.apply_retention(&Retention::default()).await.unwrap(), 0);
    let newest = Retention { messages_per_room: Some(10), ..Retention::default() };
    assert_eq!(store.apply_retention(&newest).await.unwrap(), 590);
    assert_eq!(store.apply_retention(&newest).await.unwrap(), 0);
    assert_eq!(store.messages("one", Range::After(0), 1).await.unwrap()[0].seq, 591);
    let ago = OffsetDateTime::now_utc() - Duration::HOUR;
    let old = Retention { messages_before: Some(ago), notifications_before: Some(ago), ..Retention::default() };
    assert_eq!(store.apply_retention(&old).await.unwrap(), 0);
    let ahead = OffsetDateTime::now_utc() + Duration::HOUR;
    let all = Retention { messages_before: Some(ahead), notifications_before: Some(ahead), ..Retention::default() };
    assert_eq!(store.apply_retention(&all).await.unwrap(), 12);
    // The stream goes on where it was.
    assert_eq!(stored(&store, chat("one", "alice", "x")).await.seq, 601);
    assert_eq!(stored(&store, notify("alice", "x")).await.seq, 2);
}

async fn receipts_outlive_messages(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut hello = chat("lobby", "alice", "hello");
    hello.key = client_key("alice", "c1");
    let first = stored(&store, hello.clone()).await;
    let ahead = OffsetDateTime::now_utc() + Duration::HOUR;
    let retention = Retention { messages_before: Some(ahead), ..Retention::default() };
    assert_eq!(store.apply_retention(&retention).await.unwrap(), 1);
    assert_eq!(stored(&store, hello.clone()).await.id, first.id);
    assert_eq!(store.purge_receipts(OffsetDateTime::now_utc() - Duration::HOUR).await.unwrap(), 0);
    assert_eq!(store.purge_receipts(ahead).await.unwrap(), 1);
    assert_eq!(stored(&store, hello).await.seq, 2);
}
