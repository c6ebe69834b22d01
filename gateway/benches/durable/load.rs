//! The process that publishes: does what it is told on its standard input, answers on its output.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::common::token;

/// What is said: 100 bytes.
pub(crate) const TEXT: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

/// Sockets that publish, and messages each has under way when there is no other measure.
const SOCKETS: usize = 32;
const WINDOW: usize = 64;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Notifications to users who have no sockets.
    Publish { inboxes: usize, per_second: Option<u32>, seconds: u64 },
    /// Clients in a room, in place of those there were.
    Connect { clients: usize, room: String },
    /// All of them ask at once for all of the room.
    Resume { frames: usize },
}

pub(crate) async fn work(door: SocketAddr) {
    let (mut crowd, mut publishers, mut run) = (Vec::new(), Vec::new(), 0);
    // Between orders there is nothing to do but wait.
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let answer = match serde_json::from_str(&line).unwrap() {
            Order::Publish { inboxes, per_second, seconds } => {
                if publishers.is_empty() {
                    publishers = connect(door, "publisher", SOCKETS, "/ws/notifications/").await;
                    make_inboxes(door).await;
                }
                run += 1;
                publish(&mut publishers, run, inboxes, per_second, Duration::from_secs(seconds)).await
            }
            Order::Connect { clients, room } => {
                crowd.clear();
                crowd = connect(door, "member", clients, &format!("/ws/chat/{room}/")).await;
                json!({})
            }
            Order::Resume { frames } => resume(&mut crowd, frames).await,
        };
        println!("{answer}");
    }
}

async fn connect(door: SocketAddr, name: &str, count: usize, path: &str) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for number in 0..count {
        let mut request = format!("ws://{door}{path}").into_client_request().unwrap();
        let protocols = format!("gateway.v1, bearer.{}", token(&format!("{name}-{number}")));
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
        sockets.push(tokio_tungstenite::connect_async(request).await.unwrap().0);
    }
    sockets
}

/// A browser may write to users who are known: they have been here once.
async fn make_inboxes(door: SocketAddr) {
    drop(connect(door, "user", 1000, "/ws/notifications/").await);
}

async fn publish(
    sockets: &mut Vec<Socket>,
    run: usize,
    inboxes: usize,
    per_second: Option<u32>,
    length: Duration,
) -> Value {
    let (began, mut tasks) = (Instant::now(), JoinSet::new());
    for (number, socket) in sockets.drain(..).enumerate() {
        let pace = per_second.map(|rate| Duration::from_secs(1) * SOCKETS as u32 / rate);
        tasks.spawn(publish_by(socket, number, run, inboxes, pace, length));
    }
    let (mut acks, mut pings) = (Vec::new(), Vec::new());
    for (socket, mut acked, mut pinged) in tasks.join_all().await {
        sockets.push(socket);
        acks.append(&mut acked);
        pings.append(&mut pinged);
    }
    let seconds = began.elapsed().as_secs_f64();
    acks.sort_unstable();
    pings.sort_unstable();
    let part = |times: &[Duration], part: usize| {
        times.get(times.len() * part / 100).copied().unwrap_or_default().as_micros() as u64
    };
    json!({"acked": acks.len(), "seconds": seconds, "p50": part(&acks, 50), "p99": part(&acks, 99), "ping": part(&pings, 50)})
}

/// One socket's part: how long each ack took, and each ping beside them.
async fn publish_by(
    mut socket: Socket,
    number: usize,
    run: usize,
    inboxes: usize,
    pace: Option<Duration>,
    length: Duration,
) -> (Socket, Vec<Duration>, Vec<Duration>) {
    let (mut under_way, mut acks, mut pings) = (HashMap::new(), Vec::new(), Vec::new());
    let (began, mut sent, mut pinged) = (Instant::now(), 0_usize, None);
    let mut next_ping = began;
    // Sockets do not all write at the same moment.
    let offset = pace.unwrap_or_default().mul_f64(number as f64 / SOCKETS as f64);
    loop {
        let now = Instant::now();
        let going = now - began < length;
        let due = match pace {
            Some(pace) if began + offset + pace * sent as u32 <= now => 1,
            Some(_) => 0,
            None => WINDOW.saturating_sub(under_way.len()),
        };
        if going {
            for _ in 0..due {
                let id = format!("{run}/{number}/{sent}");
                let user = format!("user-{}", (sent * SOCKETS + number) % inboxes);
                let frame = json!({"cate": "notification", "user_name": user, "message": TEXT, "client_id": id});
                under_way.insert(id, Instant::now());
                socket.feed(Message::text(frame.to_string())).await.unwrap();
                sent += 1;
            }
            if pinged.is_none() && now >= next_ping {
                (pinged, next_ping) = (Some(now), now + Duration::from_millis(100));
                socket.feed(Message::Ping(Vec::new().into())).await.unwrap();
            }
            socket.flush().await.unwrap();
        } else if under_way.is_empty() {
            return (socket, acks, pings);
        }
        let next = pace.map_or(began + length, |pace| began + offset + pace * sent as u32);
        let message = tokio::time::timeout_at(next.max(now + Duration::from_micros(100)).into(), socket.next()).await;
        match message {
            Ok(Some(Ok(Message::Text(text)))) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(frame["type"], "ack", "{frame}");
                let asked: Option<Instant> = under_way.remove(frame["client_id"].as_str().unwrap());
                acks.push(asked.expect("one of ours").elapsed());
            }
            Ok(Some(Ok(Message::Pong(_)))) => pings.extend(pinged.take().map(|at: Instant| at.elapsed())),
            Ok(Some(Ok(_))) | Err(_) => {}
            Ok(Some(Err(error))) => panic!("{error}"),
            Ok(None) => panic!("closed"),
        }
    }
}

async fn resume(crowd: &mut Vec<Socket>, frames: usize) -> Value {
    let (began, mut tasks) = (Instant::now(), JoinSet::new());
    for mut socket in crowd.drain(..) {
        tasks.spawn(async move {
            let ask = json!({"cate": "resume", "rooms": {"crowd": {"seq": 0}}}).to_string();
            socket.send(Message::text(ask)).await.unwrap();
            let mut came = 0;
            while let Some(Ok(message)) = socket.next().await {
                let Message::Text(text) = message else { continue };
                let frame: Value = serde_json::from_str(&text).unwrap();
                match frame["type"].as_str() {
                    Some("chat") => came += 1,
                    Some("resumed") => break,
                    _ => panic!("{frame}"),
                }
            }
            assert_eq!(came, frames);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    json!({"all": began.elapsed().as_micros() as u64})
}
