//! The reason for everything in `append`: nobody who follows a stream ever misses a message.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use persistence::{Range, Store};
use tokio::task::JoinSet;

use crate::common::*;

on_all_databases!(a_tight_reader_misses_nothing, members_and_messages_at_once);

const WRITERS: u64 = 6;
const EACH: u64 = 100;
const STREAMS: [&str; 3] = ["a", "b", "c"];

/// Follows a stream to its end, as a node does: what is after the last seen.
async fn follow(store: Store, room: bool, name: &'static str, done: Arc<AtomicBool>) -> u64 {
    let mut position = 0;
    loop {
        // Read before the query: what was committed until then must be in its answer.
        let last_look = done.load(Ordering::Acquire);
        let seqs: Vec<u64> = if room {
            store.messages(name, Range::After(position), 50).await.unwrap().iter().map(|read| read.seq).collect()
        } else {
            let read = store.notifications(name, Range::After(position), false, 50).await.unwrap();
            read.iter().map(|read| read.seq).collect()
        };
        for seq in &seqs {
            assert_eq!(*seq, position + 1, "a hole in {name}");
            position = *seq;
        }
        if seqs.is_empty() && last_look {
            return position;
        }
        tokio::task::yield_now().await;
    }
}

async fn a_tight_reader_misses_nothing(database: Database) {
    let store = database.store().await;
    for name in STREAMS {
        store.create_room(name, None).await.unwrap();
    }
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for name in STREAMS {
        readers.spawn(follow(database.connect().await, true, name, Arc::clone(&done)));
        readers.spawn(follow(database.connect().await, false, name, Arc::clone(&done)));
    }
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = database.connect().await;
        writers.spawn(async move {
            let mut count = 0;
            while count < EACH {
                // Batches of one to four, over streams in every order.
                let size = (1 + (writer + count) % 4).min(EACH - count);
                let batch: Vec<_> = (0..size)
                    .map(|n| {
                        let at = (writer + count) * (n + 1) % 6;
                        let name = STREAMS[at as usize % 3];
                        if at < 3 { chat(name, "writer", "text") } else { notify(name, "text") }
                    })
                    .collect();
                for result in store.append(&batch).await.unwrap() {
                    result.unwrap();
                }
                count += size;
            }
        });
    }
    writers.join_all().await;
    done.store(true, Ordering::Release);
    let seen: u64 = readers.join_all().await.iter().sum();
    assert_eq!(seen, WRITERS * EACH);
}

async fn members_and_messages_at_once(database: Database) {
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..4_u32 {
        let store = database.connect().await;
        tasks.spawn(async move {
            for n in 0..15 {
                let joined = store
                    .add_members(&[
                        member("lobby", &format!("user{n}"), true),
                        member(&format!("room{n}"), &format!("user{task}"), true),
                    ])
                    .await
                    .unwrap();
                assert_eq!(joined, [true, true]);
                stored(&store, chat("lobby", "alice", "hello")).await;
                stored(&store, notify(&format!("user{n}"), "hello")).await;
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, 60);
    assert_eq!(store.members("lobby").await.unwrap().len(), 15);
}
