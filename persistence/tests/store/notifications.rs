//! Seen and unseen.

use persistence::{Range, Seen};
use uuid::Uuid;

use crate::common::*;

on_all_databases!(marking_seen, s7_what_is_seen_only_grows_and_never_into_the_future);

async fn marking_seen(database: Database) {
    let store = database.store().await;
    let mut ids = Vec::new();
    for n in 1..=6 {
        ids.push(stored(&store, notify("alice", &n.to_string())).await.id);
    }
    let bobs = stored(&store, notify("bob", "1")).await.id;
    assert_eq!(store.unseen("alice").await.unwrap(), 6);
    assert_eq!(store.unseen("nobody").await.unwrap(), 0);
    // Unknown ids, and another user's, change nothing.
    let which = Seen::Ids(vec![ids[4], Uuid::now_v7(), bobs]);
    assert_eq!(store.mark_seen("alice", which.clone()).await.unwrap(), 5);
    assert_eq!(store.mark_seen("alice", which).await.unwrap(), 5);
    assert_eq!(store.unseen("bob").await.unwrap(), 1);
    assert_eq!(store.mark_seen("alice", Seen::UpTo(3)).await.unwrap(), 2);
    let unseen = store.notifications("alice", Range::Latest, true, 10).await.unwrap();
    assert_eq!(unseen.iter().map(|one| one.seq).collect::<Vec<_>>(), [4, 6]);
    let all = store.notifications("alice", Range::Before(6), false, 2).await.unwrap();
    assert_eq!(all.iter().map(|one| (one.seq, one.seen)).collect::<Vec<_>>(), [(4, false), (5, true)]);
    assert_eq!(store.mark_seen("alice", Seen::Ids(Vec::new())).await.unwrap(), 2);
    assert_eq!(store.mark_seen("alice", Seen::UpTo(u64::MAX)).await.unwrap(), 0);
    assert_eq!(store.mark_seen("nobody", Seen::UpTo(1)).await.unwrap(), 0);
}

async fn s7_what_is_seen_only_grows_and_never_into_the_future(database: Database) {
    let store = database.store().await;
    for n in 1..=6 {
        stored(&store, notify("alice", &n.to_string())).await;
    }
    // An answer that got lost is asked for again, and one that came late is older.
    for (up_to, unseen) in [(4, 2), (4, 2), (2, 2), (0, 2), (5, 1), (3, 1)] {
        assert_eq!(store.mark_seen("alice", Seen::UpTo(up_to)).await.unwrap(), unseen, "{up_to}");
    }
    for future in [7, 1_000_000, i64::MAX as u64, u64::MAX] {
        assert_eq!(store.mark_seen("alice", Seen::UpTo(future)).await.unwrap(), 0, "{future}");
        assert!(!stored(&store, notify("alice", "later")).await.repeated);
        assert_eq!(store.unseen("alice").await.unwrap(), 1, "{future}");
    }
}
