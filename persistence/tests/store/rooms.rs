//! Rooms and members.

use persistence::Range;

use crate::common::*;

on_all_databases!(
    a_room_is_made_once,
    a_room_made_again_starts_afresh,
    members_come_and_go,
    rooms_of_many_users_are_one_statement,
    rooms_of_a_user_are_in_the_order_in_which_they_became_theirs,
    users_become_known,
);

async fn a_room_is_made_once(database: Database) {
    let store = database.store().await;
    let made = store.create_room("lobby", None).await.unwrap();
    assert_eq!((&*made.name, &*made.display_name), ("lobby", "lobby"));
    assert_eq!(store.create_room("lobby", None).await.unwrap(), made);
    let named = store.create_room("lobby", Some("The Lobby")).await.unwrap();
    assert_eq!((&*named.display_name, named.epoch), ("The Lobby", made.epoch));
    assert_eq!(store.create_room("lobby", None).await.unwrap(), named);
    assert_eq!(store.room("lobby").await.unwrap(), Some(named));
    assert_eq!(store.room("attic").await.unwrap(), None);
}

async fn a_room_made_again_starts_afresh(database: Database) {
    let store = database.store().await;
    store.add_members(&[member("lobby", "alice", true)]).await.unwrap();
    let first = stored(&store, chat("lobby", "alice", "hello")).await;
    assert!(store.delete_room("lobby").await.unwrap());
    assert!(!store.delete_room("lobby").await.unwrap());
    assert_eq!(store.room("lobby").await.unwrap(), None);
    assert!(store.append(&[chat("lobby", "alice", "hello")]).await.unwrap()[0].is_err());
    let again = store.create_room("lobby", None).await.unwrap();
    assert_ne!(again.epoch, first.epoch);
    assert_eq!((again.last_seq, again.last_id), (0, None));
    assert!(store.members("lobby").await.unwrap().is_empty());
    assert!(store.messages("lobby", Range::Latest, 10).await.unwrap().is_empty());
    assert_eq!(stored(&store, chat("lobby", "alice", "hello")).await.seq, 1);
}

async fn members_come_and_go(database: Database) {
    let store = database.store().await;
    store.create_room("old", None).await.unwrap();
    let pairs = [
        member("old", "alice", false),
        member("new", "alice", true),
        member("missing", "alice", false),
        member("new", "bob", false),
        member("new", "bob", false),
    ];
    assert_eq!(store.add_members(&pairs).await.unwrap(), [true, true, false, true, true]);
    assert_eq!(store.members("new").await.unwrap(), ["alice", "bob"]);
    assert!(store.members("missing").await.unwrap().is_empty());
    let before = store.statements();
    assert_eq!(store.add_members(&pairs[..2]).await.unwrap(), [true, true]);
    assert_eq!(store.statements() - before, 1, "nothing to do is one read");
    assert!(store.share_room("alice", "bob").await.unwrap());
    assert!(store.remove_member("new", "bob").await.unwrap());
    assert!(!store.remove_member("new", "bob").await.unwrap());
    assert!(!store.share_room("alice", "bob").await.unwrap());
    assert!(store.add_members(&[]).await.unwrap().is_empty());
}

async fn rooms_of_many_users_are_one_statement(database: Database) {
    let store = database.store().await;
    let mut pairs = Vec::new();
    for user in 0..40 {
        for room in 0..5 {
            pairs.push(member(&format!("room{}", (user + room) % 7), &format!("user{user}"), true));
        }
    }
    assert!(store.add_members(&pairs).await.unwrap().into_iter().all(|joined| joined));
    stored(&store, chat("room3", "user1", "hello")).await;
    let users: Vec<_> = (0..41).map(|user| format!("user{user}")).collect();
    let before = store.statements();
    let rooms_of = store.rooms_of(&users).await.unwrap();
    assert_eq!(store.statements() - before, 1);
    assert_eq!(rooms_of.len(), 40);
    assert!(rooms_of.values().all(|rooms| rooms.len() == 5));
    let heads = store.room_heads(&names(&["room3"])).await.unwrap();
    assert!(rooms_of["user1"].contains(&heads["room3"]));
    assert_eq!(heads["room3"].last_seq, 1);
}

async fn rooms_of_a_user_are_in_the_order_in_which_they_became_theirs(database: Database) {
    let store = database.store().await;
    for room in ["c", "a", "b"] {
        store.add_members(&[member(room, "alice", true)]).await.unwrap();
    }
    let of_alice = async || {
        let rooms_of = store.rooms_of(&names(&["alice"])).await.unwrap();
        rooms_of["alice"].iter().map(|room| room.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(of_alice().await, ["c", "a", "b"]);
    store.remove_member("c", "alice").await.unwrap();
    store.add_members(&[member("c", "alice", true)]).await.unwrap();
    assert_eq!(of_alice().await, ["a", "b", "c"]);
}

async fn users_become_known(database: Database) {
    let store = database.store().await;
    store.see_users(&names(&["alice", "bob", "alice"])).await.unwrap();
    let heads = store.inbox_heads(&names(&["alice"])).await.unwrap();
    store.see_users(&names(&["alice", "carol"])).await.unwrap();
    assert_eq!(store.inbox_heads(&names(&["alice"])).await.unwrap(), heads, "seeing again changes nothing");
    store.add_members(&[member("lobby", "dave", true)]).await.unwrap();
    stored(&store, notify("erin", "hello")).await;
    let asked = names(&["alice", "bob", "carol", "dave", "erin", "frank"]);
    let known = store.known_users(&asked).await.unwrap();
    assert_eq!(known.len(), 5);
    assert!(!known.contains("frank"));
    let before = store.statements();
    store.see_users(&asked[..5]).await.unwrap();
    assert_eq!(store.statements() - before, 1);
}
