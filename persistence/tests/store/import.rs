//! Messages of another system: stored once for ever, with their dates, in the order asked.

use std::sync::Arc;

use persistence::{AppendError, Held, Import, Imported, Range, Retention, Store, Stream};
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;

use crate::common::*;

on_all_databases!(
    imported_messages_keep_what_they_are,
    a_second_import_brings_what_is_new_however_late,
    a_room_made_again_is_another_one,
    who_follows_a_stream_passes_over_what_was_imported,
    what_cannot_be_imported_costs_its_neighbours_nothing,
    imports_and_messages_at_once,
    rooms_are_made_and_named_together,
);

const LONG_AGO: i64 = 1_000_000_000;

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap() + Duration::microseconds(7)
}

fn old(stream: Stream, id: u32, text: &str) -> Import {
    let mut append = chat("", "ann", text);
    append.stream = stream;
    append.key = event_key("club.post", &id.to_string());
    append.origin = Some(("club.post".into(), id.to_string().into()));
    append.create_inbox = true;
    Import { append, date: at(LONG_AGO + i64::from(id)), seen: false, redacted: false }
}

fn said(room: &str, id: u32) -> Import {
    old(Stream::Room(room.into()), id, &format!("old {id}"))
}

fn rung(user: &str, id: u32) -> Import {
    old(Stream::Inbox(user.into()), id, &format!("old {id}"))
}

async fn import(store: &Store, batch: &[Import]) -> Vec<Imported> {
    store.import(batch).await.unwrap().into_iter().map(Result::unwrap).collect()
}

async fn imported_messages_keep_what_they_are(database: Database) {
    let store = database.store().await;
    let mut batch = vec![said("lobby", 3), rung("carol", 1), said("lobby", 1), rung("carol", 2)];
    batch[0].append.data = Some(r#"{"a":1}"#.into());
    batch[2].date = at(-LONG_AGO);
    batch[3].seen = true;
    let stored = import(&store, &batch).await;
    assert_eq!(stored, [1, 1, 2, 2].map(Imported::Stored), "by the order of the lines, not of the dates");
    let room = store.room("lobby").await.unwrap().unwrap();
    let read = store.messages("lobby", Range::Latest, 9).await.unwrap();
    assert_eq!((room.last_seq, room.last_id, &*room.display_name), (2, Some(read[1].id), "lobby"));
    assert_eq!((read[0].date, read[1].date), (batch[0].date, batch[2].date));
    assert_eq!((read[0].data.as_deref(), read[0].source.as_deref()), (Some(r#"{"a":1}"#), Some("club.post")));
    assert_eq!((&*read[1].from_user, &*read[1].message, read[1].event_id.as_deref()), ("ann", "old 1", Some("1")));
    let inbox = store.notifications("carol", Range::Latest, false, 9).await.unwrap();
    assert_eq!(inbox.iter().map(|read| (read.seq, read.seen)).collect::<Vec<_>>(), [(1, false), (2, true)]);
    assert_eq!(store.unseen("carol").await.unwrap(), 1);
    // What comes next goes on from there, and is of today.
    let next = stored_next(&store).await;
    assert_eq!((next.seq, next.epoch), (3, room.epoch));
    assert!(next.date > at(LONG_AGO * 3 / 2));
    let held = store.held(&[Stream::Room("lobby".into()), Stream::Inbox("nobody".into())]).await.unwrap();
    let lobby = Held { of: [("club.post".to_owned(), 2)].into(), without: 1 };
    assert_eq!(held, [(Stream::Room("lobby".into()), lobby)].into());
}

async fn stored_next(store: &Store) -> persistence::Appended {
    stored(store, chat("lobby", "bob", "live")).await
}

async fn a_second_import_brings_what_is_new_however_late(database: Database) {
    let store = database.store().await;
    let all: Vec<_> = (1..=50).flat_map(|id| [said("lobby", id), rung("carol", id)]).collect();
    let first = import(&store, &all[..60]).await;
    assert!(first.iter().all(|one| matches!(one, Imported::Stored(_))));
    stored_next(&store).await;
    // Every receipt that has a time is too old.
    let tomorrow = OffsetDateTime::now_utc() + Duration::days(400);
    let retention = Retention { receipts_before: Some(tomorrow), ..Retention::default() };
    store.apply_retention(&retention, |_| ()).await.unwrap();
    let again = import(&store, &all).await;
    assert!(again[..60].iter().all(|one| *one == Imported::Known));
    assert_eq!(again[60..62], [Imported::Stored(32), Imported::Stored(31)]);
    let changed = old(Stream::Room("lobby".into()), 7, "edited");
    assert_eq!(import(&store, &[changed, said("lobby", 7)]).await, [Imported::Changed, Imported::Known]);
    assert_eq!(import(&store, &[said("go", 1), said("go", 1)]).await, [Imported::Stored(1), Imported::Known]);
    // The same identity, from the stream of events.
    let mut live = said("lobby", 8).append;
    live.key = event_key("club.post", "8");
    let repeat = stored(&store, live).await;
    assert_eq!((repeat.repeated, repeat.seq), (true, 8));
    let seqs: Vec<_> =
        store.messages("lobby", Range::After(0), 99).await.unwrap().iter().map(|read| read.seq).collect();
    assert_eq!(seqs, (1..=51).collect::<Vec<_>>());
}

async fn a_room_made_again_is_another_one(database: Database) {
    let store = database.store().await;
    import(&store, &[said("lobby", 1), said("lobby", 2)]).await;
    assert!(store.delete_room("lobby").await.unwrap());
    assert_eq!(import(&store, &[said("lobby", 1)]).await, [Imported::Stored(1)]);
    assert_eq!(import(&store, &[said("lobby", 1), said("lobby", 2)]).await, [Imported::Known, Imported::Stored(2)]);
}

async fn who_follows_a_stream_passes_over_what_was_imported(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let lobby = Stream::Room("lobby".into());
    let after = async |seq, limit| {
        let after = store.after(&lobby, seq, limit, usize::MAX).await.unwrap().unwrap();
        let seqs: Vec<_> = after.messages.iter().map(|read| read.seq).collect();
        (after.head.last_seq, seqs, after.imported)
    };
    for _ in 0..2 {
        stored_next(&store).await;
    }
    let before = store.statements();
    assert_eq!(after(0, 10).await, (2, vec![1, 2], false));
    assert_eq!(after(2, 10).await, (2, vec![], false));
    assert_eq!(store.statements() - before, 2, "nothing was left out: nothing more is asked");
    import(&store, &[said("lobby", 1), said("lobby", 2)]).await;
    assert_eq!(after(0, 10).await, (4, vec![1, 2], true));
    assert_eq!(after(2, 10).await, (4, vec![], true));
    stored_next(&store).await;
    assert_eq!(after(2, 10).await, (5, vec![5], true));
    assert_eq!((after(0, 2).await, after(1, 2).await), ((5, vec![1, 2], false), (5, vec![2, 5], true)));
    assert_eq!((after(4, 10).await, after(5, 10).await), ((5, vec![5], false), (5, vec![], false)));
    // Deleted is not imported.
    if !database.is_in_memory() {
        database.sql("DELETE FROM gateway_messages WHERE seq < 5");
        assert_eq!(after(0, 10).await, (5, vec![5], false));
    }
}

async fn what_cannot_be_imported_costs_its_neighbours_nothing(database: Database) {
    let store = database.store().await;
    let mut keyless = said("lobby", 9);
    keyless.append.key = None;
    let batch = [said("a/b", 1), said("lobby", 1), rung("..", 1), old(Stream::Room("lobby".into()), 2, "\0"), keyless];
    let answers = store.import(&batch).await.unwrap();
    assert_eq!(answers[0], Err(AppendError::RoomNotFound));
    assert_eq!(answers[1], Ok(Imported::Stored(1)));
    assert_eq!(answers[2], Err(AppendError::Invalid("user name")));
    assert_eq!(answers[3..], [Err(AppendError::Invalid("message")), Err(AppendError::Invalid("key"))]);
    assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, 1);
    assert!(store.import(&[]).await.unwrap().is_empty());
}

/// Two imports of the same, and nodes that store into the same streams: each message once, no place twice or missing.
async fn imports_and_messages_at_once(database: Database) {
    const EACH: u32 = 120;
    let store = database.store().await;
    for room in ["a", "b"] {
        store.create_room(room, None).await.unwrap();
    }
    let all: Arc<Vec<_>> =
        Arc::new((1..=EACH).flat_map(|id| [said("a", id), rung("carol", id), said("b", id), said("c", id)]).collect());
    let mut tasks = JoinSet::new();
    for _ in 0..2 {
        let (store, all) = (database.connect().await, Arc::clone(&all));
        tasks.spawn(async move {
            for batch in all.chunks(40) {
                for one in store.import(batch).await.unwrap() {
                    one.unwrap();
                }
            }
        });
    }
    for writer in 0..2 {
        let store = database.connect().await;
        tasks.spawn(async move {
            for n in 0..EACH {
                let text = format!("{writer} {n}");
                let batch = [chat("b", "bob", &text), notify("carol", &text), chat("a", "bob", &text)];
                for one in store.append(&batch).await.unwrap() {
                    one.unwrap();
                }
            }
        });
    }
    tasks.join_all().await;
    for (room, count) in [("a", 3), ("b", 3), ("c", 1)] {
        let read = store.messages(room, Range::After(0), 9999).await.unwrap();
        assert!(read.iter().map(|read| read.seq).eq(1..=u64::from(EACH * count)), "{room}");
        let imported: Vec<u32> =
            read.iter().filter_map(|read| read.event_id.as_deref()).map(|id| id.parse().unwrap()).collect();
        assert_eq!(imported, (1..=EACH).collect::<Vec<_>>(), "{room}: each once, in order");
        assert_eq!(store.room(room).await.unwrap().unwrap().last_id, Some(read.last().unwrap().id));
    }
    let inbox = store.notifications("carol", Range::After(0), false, 9999).await.unwrap();
    assert!(inbox.iter().map(|read| read.seq).eq(1..=u64::from(EACH * 3)));
}

async fn rooms_are_made_and_named_together(database: Database) {
    let store = database.store().await;
    store.create_room("old", Some("Old")).await.unwrap();
    store.create_room("kept", Some("Kept")).await.unwrap();
    let wanted = [("old", Some("New")), ("kept", None), ("b", Some("1")), ("a", None), ("b", Some("2"))];
    let wanted = wanted.map(|(name, display): (&str, Option<&str>)| (name.to_owned(), display.map(str::to_owned)));
    assert_eq!(store.put_rooms(&wanted).await.unwrap(), 2);
    let before = store.statements();
    assert_eq!(store.put_rooms(&wanted[..2]).await.unwrap(), 0);
    assert_eq!(store.statements() - before, 1, "all is so already");
    let rooms = store.rooms(None, 9).await.unwrap();
    let rooms: Vec<_> = rooms.iter().map(|room| (&*room.name, &*room.display_name)).collect();
    assert_eq!(rooms, [("a", "a"), ("b", "2"), ("kept", "Kept"), ("old", "New")]);
    for wrong in [("a/b".to_owned(), None), ("a".to_owned(), Some(String::new()))] {
        assert!(store.put_rooms(&[wrong]).await.is_err());
    }
}
