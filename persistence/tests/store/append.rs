//! Positions, batches and what they cost.

use persistence::{Append, AppendError, Backend, Page, Range, Seen, Stream};
use uuid::Uuid;

use crate::common::*;

on_all_databases!(
    positions_are_contiguous,
    a_refused_item_takes_no_position,
    what_is_read_is_what_was_stored,
    ranges_ascend,
    what_comes_after_a_place_is_read_with_its_head_in_one_statement,
    long_texts_are_read_few_at_a_time,
    data_is_stored_as_it_came_and_is_a_part_of_what_a_repeat_must_repeat,
    a_node_that_does_not_know_data_goes_on_beside_one_that_does,
    a_thousand_rows_cost_few_statements,
    batches_of_any_size_are_stored_alike,
    large_messages_fit,
);

async fn positions_are_contiguous(database: Database) {
    let store = database.store().await;
    let room = store.create_room("lobby", Some("The Lobby")).await.unwrap();
    assert_eq!((room.last_seq, room.last_id), (0, None));
    let first = stored(&store, chat("lobby", "alice", "1")).await;
    assert_eq!((first.seq, first.epoch), (1, room.epoch));
    assert_eq!(first.display_name.as_deref(), Some("The Lobby"));
    assert_eq!(first.id.get_version_num(), 7);
    let batch = [
        chat("lobby", "bob", "2"),
        notify("carol", "1"),
        chat("lobby", "alice", "3"),
        notify("dave", "1"),
        notify("carol", "2"),
        chat("lobby", "bob", "4"),
    ];
    let results: Vec<_> = store.append(&batch).await.unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(results.iter().map(|stored| stored.seq).collect::<Vec<_>>(), [2, 1, 3, 1, 2, 4]);
    assert_eq!(results[1].display_name, None);
    assert!(room.epoch > 0);
    let room = store.room("lobby").await.unwrap().unwrap();
    assert_eq!((room.last_seq, room.last_id), (4, Some(results[5].id)));
    let heads = store.inbox_heads(&names(&["carol", "dave", "nobody"])).await.unwrap();
    assert_eq!(heads.len(), 2);
    assert_eq!((heads["carol"].last_seq, heads["carol"].last_id), (2, Some(results[4].id)));
    assert_eq!(heads["carol"].epoch, results[1].epoch);
    assert!(store.append(&[]).await.unwrap().is_empty());
}

async fn a_refused_item_takes_no_position(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut to_stranger = notify("stranger", "hello");
    to_stranger.create_inbox = false;
    let batch = [
        chat("lobby", "alice", "1"),
        chat("no-such-room", "alice", "x"),
        to_stranger,
        chat("lobby", "alice", "nul \0"),
        chat("lobby", &"x".repeat(151), "x"),
        chat("lobby", "alice", "2"),
    ];
    let results = store.append(&batch).await.unwrap();
    assert_eq!(results[0].as_ref().unwrap().seq, 1);
    assert_eq!(results[1], Err(AppendError::RoomNotFound));
    assert_eq!(results[2], Err(AppendError::UserNotFound));
    assert_eq!(results[3], Err(AppendError::Invalid("message")));
    assert_eq!(results[4], Err(AppendError::Invalid("from_user")));
    assert_eq!(results[5].as_ref().unwrap().seq, 2);
    assert!(store.known_users(&names(&["stranger"])).await.unwrap().is_empty());
}

async fn what_is_read_is_what_was_stored(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let text = "ünï 🦀 'quoted'; DROP TABLE gateway_rooms; -- \\ %s $1 ? \n\t\u{1b}[31m";
    let mut append = chat("lobby", "élise", text);
    append.origin = Some(("shop".into(), "order-42".into()));
    let sent = stored(&store, append).await;
    let read = store.messages("lobby", Range::Latest, 10).await.unwrap().pop().unwrap();
    assert_eq!(
        (read.id, read.seq, read.epoch, read.date),
        (sent.id, sent.seq, sent.epoch, sent.date),
        "the date keeps its microseconds"
    );
    assert_eq!((&*read.from_user, &*read.message, read.data, read.seen), ("élise", text, None, false));
    assert_eq!(read.date.offset(), time::UtcOffset::UTC);

    let mut append = notify("alice", "");
    append.origin = Some(("shop".into(), "order-42".into()));
    let sent = stored(&store, append).await;
    let read = store.notifications("alice", Range::After(0), false, 10).await.unwrap().pop().unwrap();
    assert_eq!((read.id, read.seq, read.epoch, read.date), (sent.id, sent.seq, sent.epoch, sent.date));
    assert_eq!((read.source.as_deref(), read.event_id.as_deref()), (Some("shop"), Some("order-42")));
    assert_eq!((&*read.from_user, &*read.message, read.seen), ("shop", "", false));
}

async fn ranges_ascend(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let batch: Vec<_> = (1..=9).map(|n| chat("lobby", "alice", &n.to_string())).collect();
    store.append(&batch).await.unwrap();
    let seqs = async |range, limit| -> Vec<u64> {
        store.messages("lobby", range, limit).await.unwrap().iter().map(|message| message.seq).collect()
    };
    assert_eq!(seqs(Range::Latest, 3).await, [7, 8, 9]);
    assert_eq!(seqs(Range::Before(5), 3).await, [2, 3, 4]);
    assert_eq!(seqs(Range::After(5), 3).await, [6, 7, 8]);
    assert_eq!(seqs(Range::Between(2, 7), 3).await, [3, 4, 5]);
    assert_eq!(seqs(Range::Between(2, 5), 3).await, [3, 4]);
    assert!(seqs(Range::Between(5, 5), 3).await.is_empty());
    assert!(seqs(Range::After(9), 3).await.is_empty());
    assert!(seqs(Range::After(u64::MAX), 3).await.is_empty());
    assert_eq!(seqs(Range::Before(u64::MAX), u64::MAX).await.len(), 9);
    assert!(store.messages("elsewhere", Range::Latest, 3).await.unwrap().is_empty());
}

async fn what_comes_after_a_place_is_read_with_its_head_in_one_statement(database: Database) {
    let store = database.store().await;
    let room = store.create_room("lobby", Some("The Lobby")).await.unwrap();
    let (lobby, carol) = (Stream::Room("lobby".into()), Stream::Inbox("carol".into()));
    let after = async |stream, seq, limit| store.after(stream, seq, limit, usize::MAX).await.unwrap();
    let nothing = after(&lobby, 0, 10).await.unwrap();
    assert_eq!((nothing.head.epoch, nothing.messages.len()), (room.epoch, 0), "nothing but the head");
    let (mut chats, mut rings) = (Vec::new(), Vec::new());
    for n in 1..=4 {
        chats.push(stored(&store, chat("lobby", "alice", &n.to_string())).await);
        rings.push(stored(&store, notify("carol", &n.to_string())).await);
    }
    store.mark_seen("carol", Seen::UpTo(2)).await.unwrap();
    let before = store.statements();
    let (chat, rung) = (after(&lobby, 1, 2).await.unwrap(), after(&carol, 1, 2).await.unwrap());
    assert_eq!(store.statements() - before, 2);
    assert_eq!((chat.display_name.as_deref(), rung.display_name), (Some("The Lobby"), None));
    assert_eq!((chat.head.epoch, chat.head.last_seq, chat.head.last_id), (room.epoch, 4, Some(chats[3].id)));
    assert_eq!((rung.head.epoch, rung.head.last_seq, rung.head.last_id), (rings[3].epoch, 4, Some(rings[3].id)));
    assert_eq!(chat.messages, store.messages("lobby", Range::After(1), 2).await.unwrap());
    assert_eq!(rung.messages, store.notifications("carol", Range::After(1), false, 2).await.unwrap());
    assert_eq!((chat.messages.len(), rung.messages[0].seen, rung.messages[1].seen), (2, true, false));
    assert_eq!(after(&carol, 4, 10).await.unwrap().messages, []);
    assert_eq!(after(&lobby, u64::MAX, 10).await.unwrap().messages, []);
    for nowhere in [Stream::Room("nowhere".into()), Stream::Inbox("nobody".into())] {
        assert_eq!(store.after(&nowhere, 0, 10, usize::MAX).await.unwrap(), None);
    }
}

async fn long_texts_are_read_few_at_a_time(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let text = "x".repeat(10_000);
    let chats: Vec<_> = (0..9).map(|_| chat("lobby", "alice", &text)).collect();
    let rings: Vec<_> = (0..9).map(|_| notify("carol", &text)).collect();
    store.append(&chats).await.unwrap();
    store.append(&rings).await.unwrap();
    let (lobby, carol) = (Stream::Room("lobby".into()), Stream::Inbox("carol".into()));
    let page = async |stream, range, bytes| store.page(stream, Page::new(range, 9).within(bytes)).await.unwrap();
    for (bytes, few) in [(35_000, 3), (1, 2)] {
        let few = few as usize;
        let seqs = |rows: &[persistence::Message]| rows.iter().map(|row| row.seq).collect::<Vec<_>>();
        let (rows, cut) = page(&lobby, Range::Latest, bytes).await;
        assert_eq!((seqs(&rows), cut), ((10 - few as u64..=9).collect(), true));
        let (rows, cut) = page(&lobby, Range::After(2), bytes).await;
        assert_eq!((seqs(&rows), cut), ((3..3 + few as u64).collect(), true));
        assert!(!page(&lobby, Range::After(7), bytes).await.1);
        let (rows, cut) = page(&carol, Range::Before(9), bytes).await;
        assert_eq!((rows.last().unwrap().seq, rows.len(), cut), (8, few, true));
        for stream in [&lobby, &carol] {
            let read = store.after(stream, 0, 9, bytes).await.unwrap().unwrap();
            assert_eq!((read.head.last_seq, read.messages.len(), read.cut), (9, few, true));
        }
    }
    // A read that was broken off leaves its connection as it should be.
    for _ in 0..30 {
        assert_eq!(page(&lobby, Range::After(0), 15_000).await.0.len(), 2);
    }
    assert_eq!(page(&lobby, Range::After(0), 1_000_000).await.0.len(), 9);
}

/// Whichever way it is stored: alone, with others, with so many that they are not one statement.
async fn data_is_stored_as_it_came_and_is_a_part_of_what_a_repeat_must_repeat(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let data = |n: usize| Some(format!("{{ \"n\": {n}.0, \"big\":1e400, \"\\u0000\":[\"🦀\"] }}").into());
    let mut ids = 0;
    for size in [1, 3, 40] {
        for append in [chat("lobby", "alice", "with"), notify("alice", "with")] {
            let mut batch: Vec<_> = (0..size).map(|n| Append { data: data(n), ..append.clone() }).collect();
            batch.push(Append { message: "without".into(), ..append });
            batch.iter_mut().for_each(|append| {
                ids += 1;
                append.key = client_key("alice", &ids.to_string());
            });
            let stored = store.append(&batch).await.unwrap();
            let after = stored[0].as_ref().unwrap().seq - 1;
            let page = Page::new(Range::After(after), 100);
            let (read, _) = store.page(&batch[0].stream, page).await.unwrap();
            assert_eq!(read.len(), size + 1);
            for (append, read) in batch.iter().zip(&read) {
                assert_eq!(append.data.as_deref(), read.data.as_deref());
            }
            assert_eq!(read, store.after(&batch[0].stream, after, 100, usize::MAX).await.unwrap().unwrap().messages);
            let first = stored[0].as_ref().unwrap();
            let again = store.append(&batch[..1]).await.unwrap().pop().unwrap().unwrap();
            assert_eq!((again.id, again.repeated), (first.id, true));
            for other in [None, data(7)] {
                let other = Append { data: other, ..batch[0].clone() };
                assert_eq!(store.append(&[other]).await.unwrap(), [Err(AppendError::KeyReused)]);
            }
        }
    }
    let large = Append { data: Some("x".repeat(persistence::MAX_DATA_BYTES + 1).into()), ..chat("lobby", "alice", "") };
    assert_eq!(store.append(&[large]).await.unwrap(), [Err(AppendError::Invalid("data"))]);
}

/// Nodes of the version before, which know no `data`, on the same database.
async fn a_node_that_does_not_know_data_goes_on_beside_one_that_does(database: Database) {
    if database.is_in_memory() {
        return;
    }
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let with = Append { data: Some("{}".into()), ..chat("lobby", "alice", "with") };
    stored(&store, with.clone()).await;
    // As it stores.
    database.sql(
        "INSERT INTO gateway_messages (room_id, seq, id, from_user, message, date, source, event_id) \
         SELECT id, last_seq + 1, id, 'bob', 'of old', 0, NULL, NULL FROM gateway_rooms WHERE name = 'lobby'; \
         UPDATE gateway_rooms SET last_seq = last_seq + 1 WHERE name = 'lobby'",
    );
    assert_eq!(stored(&store, with).await.seq, 3);
    let read = store.messages("lobby", Range::After(0), 10).await.unwrap();
    let read: Vec<_> = read.iter().map(|row| (row.seq, &*row.message, row.data.as_deref())).collect();
    assert_eq!(read, [(1, "with", Some("{}")), (2, "of old", None), (3, "with", Some("{}"))]);
}

/// Few, many, and what lies between the ways of storing them.
async fn batches_of_any_size_are_stored_alike(database: Database) {
    let store = database.store().await;
    let room = store.create_room("lobby", Some("The Lobby")).await.unwrap();
    store.see_users(&names(&["carol"])).await.unwrap();
    let (mut seq, mut last) = (0, None);
    for size in (1..=40).step_by(3).chain([32, 33]) {
        let mut batch: Vec<_> = (0..size).map(|n| chat("lobby", "alice", &format!("{n} of {size}"))).collect();
        batch[size / 2].key = client_key("alice", &size.to_string());
        batch.push(notify("carol", &size.to_string()));
        batch.push(chat("lobby", "alice", "refused \0"));
        let before = store.statements();
        let results = store.append(&batch).await.unwrap();
        if store.backend() == Backend::Sqlite {
            assert_eq!((store.statements() - before == 1, size), (size < 32, size));
        }
        assert!(results[size + 1].is_err());
        for (n, stored) in results[..size].iter().map(|result| result.as_ref().unwrap()).enumerate() {
            seq += 1;
            assert_eq!((stored.seq, stored.epoch, stored.repeated), (seq, room.epoch, false), "{n} of {size}");
            assert_eq!(stored.display_name.as_deref(), Some("The Lobby"));
            last = Some(stored.id);
        }
        let again = stored(&store, batch[size / 2].clone()).await;
        let first = results[size / 2].as_ref().unwrap();
        assert_eq!((again.id, again.seq, again.date, again.repeated), (first.id, first.seq, first.date, true));
        // A repeat among new ones takes no position either.
        let mixed = store.append(&[chat("lobby", "bob", "new"), batch[size / 2].clone()]).await.unwrap();
        seq += 1;
        let mixed: Vec<_> = mixed.into_iter().map(Result::unwrap).collect();
        assert_eq!((mixed[0].seq, mixed[1].seq, mixed[1].repeated), (seq, first.seq, true));
        last = last.and(Some(mixed[0].id));
    }
    if store.backend() != Backend::MySql {
        let batch: Vec<_> = (0..32).map(|n| chat("lobby", "alice", &n.to_string())).collect();
        let before = store.statements();
        last = store.append(&batch).await.unwrap().into_iter().map(|result| result.unwrap().id).next_back();
        assert_eq!(store.statements() - before, 1);
        seq += 32;
    }
    let room = store.room("lobby").await.unwrap().unwrap();
    assert_eq!((room.last_seq, room.last_id), (seq, last));
    let rows = store.messages("lobby", Range::After(0), 10_000).await.unwrap();
    assert!(rows.iter().map(|row| row.seq).eq(1..=seq));
    assert_eq!(rows[0].message, "0 of 1");
}

async fn a_thousand_rows_cost_few_statements(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let before = store.statements();
    stored(&store, chat("lobby", "alice", "hello")).await;
    let expected = match store.backend() {
        Backend::Postgres | Backend::Sqlite => 1,
        Backend::MySql => 5,
    };
    assert_eq!(store.statements() - before, expected, "BEGIN, lock, insert, head, COMMIT where they are apart");

    let users: Vec<_> = (0..500).map(|n| format!("user{n}")).collect();
    store.see_users(&users).await.unwrap();
    let mut batch = Vec::new();
    for (n, user) in users.iter().enumerate() {
        let mut chat = chat("lobby", "alice", "hello");
        chat.key = client_key("alice", &n.to_string());
        batch.extend([chat, notify(user, "hello")]);
    }
    let before = store.statements();
    let results = store.append(&batch).await.unwrap();
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(store.statements() - before, 9, "two of each and the keys, BEGIN, COMMIT");
    let heads = store.inbox_heads(&users).await.unwrap();
    assert_eq!(heads.len(), 500);
    for (item, result) in batch.iter().zip(&results) {
        if let Stream::Inbox(user) = &item.stream {
            let head = &heads[user];
            assert_eq!((head.last_seq, head.last_id), (1, result.as_ref().ok().map(|stored| stored.id)));
        }
    }
    // All again: repeats, and the heads stay where they are.
    let again = store.append(&batch).await.unwrap();
    for (first, again) in results.iter().zip(&again).step_by(2) {
        let (first, again) = (first.as_ref().unwrap(), again.as_ref().unwrap());
        assert_eq!((first.id, first.seq, first.date), (again.id, again.seq, again.date));
        assert!(again.repeated);
    }
    assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, 501);
}

async fn large_messages_fit(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let text = "ä".repeat(100_000);
    // 20 MB together, more than MariaDB takes in one packet.
    let batch: Vec<_> = (0..100).map(|_| chat("lobby", "alice", &text)).collect();
    let results = store.append(&batch).await.unwrap();
    assert_eq!(results.last().unwrap().as_ref().unwrap().seq, 100);
    let read = store.messages("lobby", Range::Latest, 1).await.unwrap().pop().unwrap();
    assert!(read.message == text && read.id != Uuid::nil());
}

#[tokio::test]
async fn an_append_is_little_to_move() {
    let store = Database::memory().connect().await;
    // Whoever waits for it has it moved into its own future, for every message. It was 5.5 KB.
    let bytes = std::mem::size_of_val(&store.append(&[]));
    assert!(bytes <= 2048, "{bytes}");
}
