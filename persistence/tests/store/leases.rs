//! Work that one node does for all.

use std::time::Duration;

use uuid::Uuid;

use crate::common::*;

on_all_databases!(
    one_of_many_takes_a_lease,
    a_lease_that_ran_out_is_anybodys,
    finished_work_is_not_done_again_too_soon,
    the_databases_clock_is_a_clock,
    a_lease_of_a_clock_that_was_ahead_holds_nobody_up,
);

const MINUTE: Duration = Duration::from_secs(60);

async fn one_of_many_takes_a_lease(database: Database) {
    let store = database.store().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let store = store.clone();
        tasks.spawn(async move { store.take_lease("work", Uuid::new_v4(), MINUTE, Duration::ZERO).await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|taken| *taken).count(), 1);
    // Another kind of work is another lease.
    assert!(store.take_lease("other work", Uuid::new_v4(), MINUTE, Duration::ZERO).await.unwrap());
}

async fn a_lease_that_ran_out_is_anybodys(database: Database) {
    let store = database.store().await;
    let (dead, heir) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(store.take_lease("work", dead, MINUTE, Duration::ZERO).await.unwrap());
    assert!(!store.take_lease("work", heir, MINUTE, Duration::ZERO).await.unwrap());
    assert!(store.renew_lease("work", dead, MINUTE).await.unwrap());
    assert!(!store.renew_lease("work", heir, MINUTE).await.unwrap());
    // Its time is over at once.
    assert!(store.renew_lease("work", dead, Duration::ZERO).await.unwrap());
    assert!(store.take_lease("work", heir, MINUTE, Duration::ZERO).await.unwrap());
    assert!(!store.renew_lease("work", dead, MINUTE).await.unwrap());
    // Who has lost it cannot end it either.
    store.end_lease("work", dead, true).await.unwrap();
    assert!(store.renew_lease("work", heir, MINUTE).await.unwrap());
}

async fn finished_work_is_not_done_again_too_soon(database: Database) {
    let store = database.store().await;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(store.take_lease("work", one, MINUTE, MINUTE).await.unwrap());
    store.end_lease("work", one, false).await.unwrap();
    assert!(store.take_lease("work", two, MINUTE, MINUTE).await.unwrap(), "broken off work goes on elsewhere");
    store.end_lease("work", two, true).await.unwrap();
    assert!(!store.take_lease("work", one, MINUTE, MINUTE).await.unwrap());
    let before = store.statements();
    assert!(!store.take_lease("work", two, MINUTE, MINUTE).await.unwrap());
    assert!(store.statements() - before <= 2, "looking costs next to nothing");
    assert!(store.take_lease("work", one, MINUTE, Duration::ZERO).await.unwrap());
}

async fn a_lease_of_a_clock_that_was_ahead_holds_nobody_up(database: Database) {
    if database.is_in_memory() {
        return;
    }
    let store = database.store().await;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let later = store.clock().await.unwrap().unix_timestamp() + 3600;
    assert!(store.take_lease("work", one, MINUTE, MINUTE).await.unwrap());
    database.sql(&format!("UPDATE gateway_leases SET expires_at = {later}"));
    assert!(store.take_lease("work", two, MINUTE, MINUTE).await.unwrap(), "nobody took it for an hour");
    assert!(!store.take_lease("work", one, MINUTE, MINUTE).await.unwrap());
    store.end_lease("work", two, true).await.unwrap();
    assert!(!store.take_lease("work", one, MINUTE, MINUTE).await.unwrap());
    database.sql(&format!("UPDATE gateway_leases SET finished_at = {later}"));
    assert!(store.take_lease("work", one, MINUTE, MINUTE).await.unwrap(), "it was not done in an hour");
}

async fn the_databases_clock_is_a_clock(database: Database) {
    let store = database.store().await;
    let mut reads = Vec::new();
    for _ in 0..10 {
        reads.push(store.clock().await.unwrap());
    }
    let apart = reads[0] - time::OffsetDateTime::now_utc();
    assert!(apart.abs() < time::Duration::MINUTE, "{apart}");
    assert!(reads.is_sorted());
    assert!(reads.iter().any(|read| read.microsecond() % 1000 != 0), "it tells microseconds");
}
