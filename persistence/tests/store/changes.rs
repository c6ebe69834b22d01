//! Changes of rooms and members are made once, and the later one counts.

use persistence::{AppendError, Change, ChangeKind, ChangeTime, Changed, Store};

use crate::common::*;

on_all_databases!(
    the_later_word_counts_whichever_is_stored_first,
    an_identity_is_done_once_and_per_room,
    a_room_is_made_and_named_by_the_later_word,
    nodes_that_say_things_at_the_same_time_agree,
    many_members_are_a_few_statements,
    words_end_with_receipts_and_rooms,
);

fn change(room: &str, kind: ChangeKind, time: ChangeTime, id: &str) -> Change {
    let key = (!id.is_empty()).then(|| event_key("shop", id)).flatten();
    Change { room: room.into(), kind, time, key }
}

fn joins(users: &[&str]) -> ChangeKind {
    ChangeKind::Joins(names(users))
}

fn leaves(users: &[&str]) -> ChangeKind {
    ChangeKind::Leaves(names(users))
}

async fn apply(store: &Store, kind: ChangeKind, time: ChangeTime, id: &str) -> Changed {
    store.change(&change("lobby", kind, time, id)).await.unwrap().unwrap()
}

async fn members(store: &Store) -> Vec<String> {
    store.members("lobby").await.unwrap()
}

async fn the_later_word_counts_whichever_is_stored_first(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    // An entry that a dead node had taken comes last, and was written first.
    let late = apply(&store, leaves(&["alice"]), ChangeTime::At(1_000, 5), "b").await;
    assert_eq!((late.repeated, late.moved, late.counts), (false, 0, names(&["alice"])));
    let early = apply(&store, joins(&["alice", "bob", "alice"]), ChangeTime::At(1_000, 4), "a").await;
    assert_eq!((early.moved, early.counts), (1, names(&["bob"])));
    assert_eq!(members(&store).await, ["bob"]);
    // The numbers of an id are numbers.
    assert_eq!(apply(&store, joins(&["alice"]), ChangeTime::At(1_000, 10), "c").await.moved, 1);
    assert_eq!(apply(&store, leaves(&["alice"]), ChangeTime::At(999, 20), "d").await.moved, 0);
    assert_eq!(members(&store).await, ["alice", "bob"]);
    // A direct change is later than all that is known, whatever its clock says, and earlier than what follows.
    assert_eq!(apply(&store, leaves(&["bob"]), ChangeTime::Now(500), "").await.moved, 1);
    assert_eq!(apply(&store, joins(&["bob"]), ChangeTime::At(1_000, 4), "e").await.moved, 0);
    assert_eq!(apply(&store, joins(&["bob"]), ChangeTime::At(1_001, 0), "f").await.moved, 1);
    assert_eq!(apply(&store, leaves(&["alice"]), ChangeTime::Now(2_000), "").await.moved, 1);
    assert_eq!(apply(&store, joins(&["alice"]), ChangeTime::At(2_000, 0), "g").await.moved, 0);
    assert_eq!(members(&store).await, ["bob"]);
    assert!(store.known_users(&names(&["alice", "bob"])).await.unwrap().len() == 2);
}

async fn an_identity_is_done_once_and_per_room(database: Database) {
    let store = database.store().await;
    for room in ["lobby", "attic"] {
        store.create_room(room, None).await.unwrap();
    }
    assert!(!apply(&store, joins(&["alice"]), ChangeTime::At(10, 0), "a").await.repeated);
    apply(&store, leaves(&["alice"]), ChangeTime::At(11, 0), "b").await;
    let again = apply(&store, joins(&["alice"]), ChangeTime::At(12, 0), "a").await;
    assert_eq!((again.repeated, again.moved, again.counts.len()), (true, 0, 0));
    assert!(members(&store).await.is_empty());
    // Taken up again, for who could not tell the sockets.
    assert_eq!(apply(&store, leaves(&["alice"]), ChangeTime::At(11, 0), "b").await.counts, ["alice"]);
    // In another room it is another one; with other content it is none.
    let other = store.change(&change("attic", joins(&["alice"]), ChangeTime::At(10, 0), "a")).await.unwrap().unwrap();
    assert_eq!((other.repeated, other.moved), (false, 1));
    for kind in [joins(&["bob"]), leaves(&["alice"]), ChangeKind::Is(None)] {
        let reused = store.change(&change("lobby", kind, ChangeTime::At(20, 0), "a")).await.unwrap();
        assert_eq!(reused.unwrap_err(), AppendError::KeyReused);
    }
    assert!(members(&store).await.is_empty());
    // The repeat is met first: what was said between the two counts after all.
    apply(&store, joins(&["carol"]), ChangeTime::At(32, 0), "c").await;
    apply(&store, leaves(&["carol"]), ChangeTime::At(31, 0), "d").await;
    assert_eq!(members(&store).await, ["carol"]);
    assert_eq!(apply(&store, joins(&["carol"]), ChangeTime::At(30, 0), "c").await.moved, 1);
    assert!(members(&store).await.is_empty());
    let missing = store.change(&change("nowhere", joins(&["alice"]), ChangeTime::At(1, 0), "x")).await.unwrap();
    assert_eq!(missing.unwrap_err(), AppendError::RoomNotFound);
    assert!(store.change(&change("lobby", joins(&["a/b"]), ChangeTime::At(1, 0), "y")).await.is_err());
}

async fn a_room_is_made_and_named_by_the_later_word(database: Database) {
    let store = database.store().await;
    let is = |name: Option<&str>| ChangeKind::Is(name.map(str::to_owned));
    assert_eq!(apply(&store, is(None), ChangeTime::At(1, 0), "a").await.room.display_name, "lobby");
    assert_eq!(apply(&store, is(Some("New")), ChangeTime::At(3, 0), "c").await.room.display_name, "New");
    assert_eq!(apply(&store, is(Some("Old")), ChangeTime::At(2, 0), "b").await.room.display_name, "New");
    assert_eq!(apply(&store, is(None), ChangeTime::At(4, 0), "d").await.room.display_name, "New");
    assert_eq!(store.room("lobby").await.unwrap().unwrap().display_name, "New");
    assert_eq!(apply(&store, is(Some("Newest")), ChangeTime::Now(1), "").await.room.display_name, "Newest");
    // A repeat does not bring back a room.
    assert!(store.delete_room("lobby").await.unwrap());
    assert!(apply(&store, is(Some("New")), ChangeTime::At(3, 0), "c").await.repeated);
    assert_eq!(store.room("lobby").await.unwrap(), None);
    for wrong in ["", "a\0b", &"x".repeat(256)] {
        let refused = store.change(&change("lobby", is(Some(wrong)), ChangeTime::At(9, 0), "e")).await.unwrap();
        assert!(matches!(refused.unwrap_err(), AppendError::Invalid(_)));
    }
}

async fn nodes_that_say_things_at_the_same_time_agree(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut nodes = tokio::task::JoinSet::new();
    for node in 0..4_u64 {
        let store = database.connect().await;
        nodes.spawn(async move {
            for n in 0..12_u64 {
                // Each has a part of the entries, and some that others have too.
                let at = (n * 5 + node * 7) % 40;
                let kind = if at % 3 == 0 { leaves(&["alice", "bob"]) } else { joins(&["bob", "alice"]) };
                apply(&store, kind, ChangeTime::At(1, at), &at.to_string()).await;
                stored(&store, chat("lobby", "alice", "hello")).await;
            }
        });
    }
    nodes.join_all().await;
    for at in 0..40 {
        let kind = if at % 3 == 0 { leaves(&["alice", "bob"]) } else { joins(&["bob", "alice"]) };
        apply(&store, kind, ChangeTime::At(1, at), &at.to_string()).await;
    }
    // The last is 39, by which they leave.
    assert!(members(&store).await.is_empty());
    assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, 48);
}

async fn many_members_are_a_few_statements(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let users: Vec<String> = (0..1_000).map(|user| format!("user{user}")).collect();
    store.see_users(&users).await.unwrap();
    let before = store.statements();
    let all = apply(&store, ChangeKind::Joins(users.clone()), ChangeTime::At(1, 0), "a").await;
    assert_eq!((all.moved, all.counts.len(), members(&store).await.len()), (1_000, 1_000, 1_000));
    let statements = store.statements() - before;
    assert!(statements <= 12, "{statements}");
    assert_eq!(apply(&store, ChangeKind::Leaves(users), ChangeTime::Now(2), "").await.moved, 1_000);
    assert!(members(&store).await.is_empty());
}

async fn words_end_with_receipts_and_rooms(database: Database) {
    use persistence::Retention;
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    for n in 0..3 {
        apply(&store, joins(&["alice"]), ChangeTime::At(10 + n, 0), &n.to_string()).await;
    }
    let all =
        Retention { receipts_before: Some(store.clock().await.unwrap() + time::Duration::DAY), ..Retention::default() };
    assert_eq!(store.apply_retention(&all, |_| {}).await.unwrap().receipts, 6);
    assert_eq!(members(&store).await, ["alice"]);
    // Nobody remembers what was said so long ago.
    apply(&store, leaves(&["alice"]), ChangeTime::At(1, 0), "old").await;
    assert!(members(&store).await.is_empty());
    assert!(store.delete_room("lobby").await.unwrap());
    store.create_room("lobby", None).await.unwrap();
    apply(&store, joins(&["alice"]), ChangeTime::At(1, 0), "new").await;
    assert_eq!(members(&store).await, ["alice"]);
}
