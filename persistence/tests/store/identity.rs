//! Names are compared by bytes, and no text does harm.

use persistence::{Range, StoreError};

use crate::common::*;

on_all_databases!(names_are_compared_by_bytes, hostile_names, names_that_cannot_be_are_refused);

const ALIKE: [&str; 7] = ["a", "A", "a ", " a", "\u{e1}", "a\u{301}", "ａ"];

async fn names_are_compared_by_bytes(database: Database) {
    let store = database.store().await;
    for name in ALIKE {
        store.create_room(name, None).await.unwrap();
        stored(&store, chat(name, name, name)).await;
        stored(&store, notify(name, name)).await;
        store.add_members(&[member(name, name, false)]).await.unwrap();
    }
    let heads = store.room_heads(&names(&ALIKE)).await.unwrap();
    let known = store.known_users(&names(&ALIKE)).await.unwrap();
    let rooms_of = store.rooms_of(&names(&ALIKE)).await.unwrap();
    assert_eq!((heads.len(), known.len(), rooms_of.len()), (7, 7, 7));
    for name in ALIKE {
        assert_eq!(heads[name].last_seq, 1, "{name:?}");
        assert_eq!(store.members(name).await.unwrap(), [name]);
        assert_eq!(rooms_of[name].iter().map(|room| &*room.name).collect::<Vec<_>>(), [name]);
        let read = store.messages(name, Range::Latest, 10).await.unwrap();
        assert_eq!(read.iter().map(|message| &*message.message).collect::<Vec<_>>(), [name]);
        assert_eq!(store.notifications(name, Range::Latest, true, 10).await.unwrap().len(), 1);
    }
    // Byte order is the same order everywhere.
    let mut sorted = names(&ALIKE);
    sorted.sort();
    let listed = store.rooms(None, 100).await.unwrap();
    assert_eq!(listed.iter().map(|room| room.name.clone()).collect::<Vec<_>>(), sorted);
    let rest = store.rooms(Some(&sorted[2]), 2).await.unwrap();
    assert_eq!(rest.iter().map(|room| room.name.clone()).collect::<Vec<_>>(), sorted[3..5]);
    assert!(store.remove_member("a", "a").await.unwrap());
    assert!(!store.remove_member("a", "a").await.unwrap());
    assert_eq!(store.members("A").await.unwrap(), ["A"]);
}

async fn hostile_names(database: Database) {
    let store = database.store().await;
    let long = "🦀".repeat(150);
    for name in
        ["'; DROP TABLE gateway_messages; --", "\" OR 1=1 --", "`x`\\", "%_", "$1?:name", "\u{202e}\u{feff}", &long]
    {
        store.create_room(name, Some(name)).await.unwrap();
        stored(&store, chat(name, name, name)).await;
        stored(&store, notify(name, name)).await;
        assert_eq!(store.messages(name, Range::Latest, 10).await.unwrap().len(), 1, "{name:?}");
        assert_eq!(store.rooms(Some(name), 100).await.unwrap().iter().filter(|room| room.name == name).count(), 0);
    }
    assert_eq!(store.rooms(None, 100).await.unwrap().len(), 7);
}

async fn names_that_cannot_be_are_refused(database: Database) {
    let store = database.store().await;
    for name in ["x\0y", "", ".", "..", "a/b", "a\nb", "\u{85}", &"x".repeat(151)] {
        assert!(matches!(store.create_room(name, None).await, Err(StoreError::Invalid(_))));
        assert!(matches!(store.see_users(&names(&[name])).await, Err(StoreError::Invalid(_))));
        assert!(matches!(store.add_members(&[member("room", name, true)]).await, Err(StoreError::Invalid(_))));
        assert_eq!(store.add_members(&[member(name, "alice", false)]).await.unwrap(), [false]);
        assert_eq!(store.room(name).await.unwrap(), None);
        assert!(store.known_users(&names(&[name, "y"])).await.unwrap().is_empty());
        assert!(store.rooms_of(&names(&[name])).await.unwrap().is_empty());
        assert!(store.messages(name, Range::Latest, 1).await.unwrap().is_empty());
        assert!(store.append(&[notify(name, "x")]).await.unwrap()[0].is_err());
        assert!(!store.delete_room(name).await.unwrap());
    }
    assert!(matches!(store.create_room("room", Some("\0")).await, Err(StoreError::Invalid(_))));
    store.rooms(Some("a\0b"), 10).await.unwrap();
}
