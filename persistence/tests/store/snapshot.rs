//! A view of one moment, while others write.

use persistence::{Message, Range, Snapshot, Store, Stream};

use crate::common::*;

on_databases! { sqlite: everything_stays_as_it_was_at_one_moment }
on_databases! { postgres: everything_stays_as_it_was_at_one_moment }
on_databases! { mariadb: everything_stays_as_it_was_at_one_moment }

/// Everything there is to see, in small pieces.
async fn all(snapshot: &Snapshot<'_>) -> Vec<String> {
    let mut seen = Vec::new();
    let mut streams = Vec::new();
    let mut after = None;
    while let Some(room) = snapshot.rooms(after.as_deref(), 1).await.unwrap().pop() {
        let mut member = None;
        seen.push(format!("{} {}", room.name, room.display_name));
        while let Some(user) = snapshot.members(&room.name, member.as_deref(), 1).await.unwrap().pop() {
            seen.push(format!("{} {user}", room.name));
            member = Some(user);
        }
        streams.push(Stream::Room(room.name.clone()));
        after = Some(room.name);
    }
    let mut after = None;
    while let Some(user) = snapshot.inboxes(after.as_deref(), 1).await.unwrap().pop() {
        streams.push(Stream::Inbox(user.clone()));
        after = Some(user);
    }
    for stream in streams {
        let mut seq = 0;
        loop {
            let page = snapshot.messages(&stream, seq, 3, 10).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 3 && page.iter().map(|row| row.seq).eq(seq + 1..=last.seq));
            seq = last.seq;
            let show = |row: &Message| format!("{} {} {}", stream.name(), row.seq, row.message);
            seen.extend(page.iter().map(show));
        }
    }
    seen
}

async fn write(store: &Store, round: u32) {
    for room in ["a", "b"] {
        store.create_room(room, None).await.unwrap();
        store.add_members(&[member(room, &format!("user-{round}"), false)]).await.unwrap();
        for n in 0..5 {
            stored(store, chat(room, "alice", &format!("{round} {n}"))).await;
        }
    }
    stored(store, notify("alice", &format!("{round}"))).await;
    store.put_rooms(&[("a".to_owned(), Some(format!("The {round}")))]).await.unwrap();
}

async fn everything_stays_as_it_was_at_one_moment(database: Database) {
    let (store, other) = (database.store().await, database.connect().await);
    write(&store, 1).await;
    let snapshot = other.snapshot().await.unwrap();
    let before = all(&snapshot).await;
    assert_eq!(before.len(), 2 + 2 + 10 + 1, "{before:?}");
    write(&store, 2).await;
    store.delete_room("b").await.unwrap();
    store.redact("a", store.messages("a", Range::After(0), 1).await.unwrap()[0].id).await.unwrap();
    assert_eq!(all(&snapshot).await, before);
    drop(snapshot);
    let now = all(&other.snapshot().await.unwrap()).await;
    assert_eq!(now.len(), 1 + 2 + 10 + 2, "{now:?}");
    assert!(now.contains(&"a The 2".to_owned()) && now.contains(&"a 1 ".to_owned()), "{now:?}");
}
