//! The ledger's own client, where a stream cannot be resumed: it reads it again, and shows no hole.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::book::{Address, Book, Diary, Member, Verdict};
use crate::client::{Client, Cut, Stack};
use crate::common::TestNode;
use crate::random::Random;
use crate::run::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_missed_too_much_to_resume_reads_it_again_without_a_hole() {
    let node = TestNode::start(&[]).await;
    let (door, book) = (node.at(), Arc::new(Book::default()));
    for path in ["/api/rooms/lobby", "/api/rooms/lobby/members/alice"] {
        assert_eq!(door.api("PUT", path, None).await.0, 200);
    }
    let (network, stop) = (watch::Sender::new(Cut::default()), CancellationToken::new());
    let (_say, says) = mpsc::channel(1);
    let streams: Vec<Address> = vec!["room:lobby".into(), "user:alice".into()];
    let member =
        Member { name: "alice".into(), streams: streams.clone(), diary: Arc::new(Mutex::new(Diary::default())) };
    let client = Client {
        stack: Stack::Gateway,
        user: "alice".into(),
        rooms: vec!["lobby".into()],
        doors: vec![door.public],
        part: 0,
        network: network.subscribe(),
        says,
        book: Arc::clone(&book),
        diary: Arc::clone(&member.diary),
        random: Random::new(1),
        stop: stop.clone(),
    };
    let mut living = JoinSet::new();
    living.spawn(client.live());
    let publish = async |from: usize, count: usize| {
        for to in &streams {
            let kind = if to.starts_with("room:") { "chat" } else { "notification" };
            let text = |number: usize| format!("{to}/{number}");
            (from..from + count).for_each(|number| book.given(to, &text(number)));
            let event =
                |number| json!({"type": kind, "to": &**to, "data": {"message": text(number), "from_user": "shop"}});
            let events: Vec<_> = (from..from + count).map(event).collect();
            let (status, answer) = door.api("POST", "/api/events", Some(events.into())).await;
            assert_eq!(status, 200, "{answer}");
            for (number, result) in (from..).zip(answer["results"].as_array().unwrap()) {
                let place = (result["id"].as_str().unwrap().to_owned(), result["seq"].as_u64().unwrap());
                book.acked(&text(number), Some(place));
            }
        }
    };
    let shown = || until("everything is shown", Duration::from_secs(30), || member.is_complete(&book.lengths()));
    publish(0, 5).await;
    shown().await.unwrap();
    network.send_replace(Cut { part: Some(0), silently: false });
    until("it is gone", Duration::from_secs(10), || node.running.node().registry.is_empty()).await.unwrap();
    publish(5, 1000).await;
    publish(1005, 50).await;
    network.send_replace(Cut::default());
    shown().await.unwrap();
    publish(1055, 5).await;
    shown().await.unwrap();
    stop.cancel();
    living.join_all().await;
    let verdict = Verdict::of(&book, &[member]);
    assert!(verdict.is_clean() && verdict.reloads == 2, "{verdict}");
}
