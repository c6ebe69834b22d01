//! Many clients that come back at once: what one of them costs, times a thousand, must not fall on the database.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and one that tells figures")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, Door, NodeProcess, TestNode, eventually, token};
use persistence::Membership;
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::task::JoinSet;

const ROOMS: usize = 10;
const MISSED: u64 = 20;

/// Figures of one storm.
struct Storm {
    seconds: f64,
    statements: u64,
}

async fn v1(door: Door, user: &str) -> Client {
    let bearer = format!("Bearer {}", token(user));
    let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
    for _ in 0..20 {
        // As long as the node may take.
        if let Some(client) = door.knock_patiently("/ws/chat/", &headers, Duration::from_secs(60)).await {
            return client;
        }
    }
    panic!("{user} is not let in");
}

fn user(number: usize) -> String {
    format!("user-{number}")
}

fn room(number: usize) -> String {
    format!("room-{number}")
}

/// Stores one message in every room and returns their positions.
async fn say_everywhere(door: Door, text: &str) -> Value {
    let events: Vec<Value> = (0..ROOMS)
        .map(|number| {
            json!({"type": "chat", "to": format!("room:{}", room(number)),
                   "data": {"message": text, "from_user": "ops"}})
        })
        .collect();
    let (status, answer) = door.api("POST", "/api/events", Some(events.into())).await;
    assert_eq!(status, 200, "{answer}");
    let places = answer["results"].as_array().unwrap().iter().enumerate();
    places.map(|(number, result)| (room(number), json!({"seq": result["seq"], "id": result["id"]}))).collect()
}

/// Asks for what was missed since the first message; all of it must come, in order.
async fn catch_up(client: &mut Client, places: &Value) {
    client.send(json!({"cate": "resume", "rooms": places})).await;
    let mut next = vec![2; ROOMS];
    loop {
        let frame = match client.hear_within(Duration::from_secs(120)).await {
            Some(common::Heard::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        };
        match frame["type"].as_str() {
            Some("chat") => {
                let number: usize =
                    frame["group_name"].as_str().unwrap().strip_prefix("room-").unwrap().parse().unwrap();
                assert_eq!(frame["seq"], next[number], "in order, without a hole");
                next[number] += 1;
            }
            Some("resumed") => {
                assert!(frame["rooms"].as_object().unwrap().values().all(|went_on| *went_on == true), "{frame}");
                break;
            }
            _ => panic!("{frame}"),
        }
    }
    assert_eq!(next, vec![MISSED + 2; ROOMS]);
}

/// Clients of a killed node resume on the other one, all at once.
async fn storm(clients: usize) -> Storm {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let own = [
        ("redis-url", redis.url()),
        ("database-url", database),
        ("limits.frames_per_second", "0".to_owned()),
        ("limits.handshake_seconds", "60".to_owned()),
    ];
    let own: Vec<(&str, &str)> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let one = TestNode::start(&own).await;
    let mut two = NodeProcess::start(&own);
    let store = &one.running.node().store;
    let pairs: Vec<Membership> = (0..clients)
        .flat_map(|number| (0..ROOMS).map(move |at| (user(number), room(at))))
        .map(|(user, room)| Membership { room, user, create_room: true })
        .collect();
    store.add_members(&pairs).await.unwrap();
    let places = say_everywhere(one.at(), "1").await;
    let mut sockets = Vec::new();
    for number in 0..clients {
        let mut client = v1(two.door, &user(number)).await;
        client.send(json!({"cate": "rooms"})).await;
        sockets.push(client);
    }
    two.process.kill();
    drop(sockets);
    for text in 2..MISSED + 2 {
        say_everywhere(one.at(), &text.to_string()).await;
    }
    let (before, started) = (store.statements(), Instant::now());
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let (door, places) = (one.at(), places.clone());
        tasks.spawn(async move {
            let mut client = v1(door, &user(number)).await;
            catch_up(&mut client, &places).await;
            client
        });
    }
    let clients = tasks.join_all().await;
    let storm = Storm { seconds: started.elapsed().as_secs_f64(), statements: store.statements() - before };
    eventually("all are live", || async { one.metric("gateway_connections").await as usize == clients.len() }).await;
    storm
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_killed_node_share_the_reads_of_what_they_missed() {
    let clients = if std::env::var_os("GATEWAY_LONG").is_some() { 1000 } else { 40 };
    let Storm { seconds, statements } = storm(clients).await;
    // One by one they would cost four for each client and room.
    assert!(statements < 200, "{statements} statements");
    println!(
        "{clients} clients resumed {ROOMS} rooms with {MISSED} messages each: {seconds:.2} s, {statements} statements"
    );
}
