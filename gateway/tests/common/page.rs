//! A page: a client that comes back by itself and shows everything once and in order.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Client, Door, Heard, token};

/// A client of `gateway.v1` that shows each message of the room `lobby` once and in order, as a page does.
pub struct Page {
    pub user: String,
    pub client: Client,
    pub seq: u64,
    id: Value,
    /// How the last connection ended.
    pub code: u16,
}

impl Page {
    pub async fn open(door: Door, user: &str) -> Self {
        let client = try_open(door, user, PATIENT).await.expect("let in");
        let mut page = Self { user: user.to_owned(), client, seq: 0, id: Value::Null, code: 0 };
        page.client.send(json!({"cate": "rooms"})).await;
        page.client.until(|frame| frame["type"] == "rooms").await;
        page
    }

    /// Tries again and again, as the browser client does: at random times, less and less often. It gives up a handshake
    /// after so long.
    pub async fn come_back(&mut self, door: Door, patience: Duration) {
        let mut longest = Duration::from_millis(500);
        self.client = loop {
            sleep(longest.mul_f64(rand::random())).await;
            if let Some(client) = try_open(door, &self.user, patience).await {
                break client;
            }
            longest = (longest * 2).min(Duration::from_secs(5));
        };
        let place = if self.seq == 0 { json!(0) } else { json!({"seq": self.seq, "id": self.id}) };
        self.client.send(json!({"cate": "resume", "rooms": {"lobby": place}})).await;
    }

    /// Takes what comes until `last` has been shown; false when the connection ended before.
    pub async fn shows(&mut self, last: u64) -> bool {
        while self.seq < last {
            match self.client.hear().await {
                Heard::Frame(frame) => self.take(&frame),
                Heard::Closed(code, _) => return self.ended(code),
                Heard::Gone => return self.ended(1006),
            }
        }
        true
    }

    fn ended(&mut self, code: u16) -> bool {
        self.code = code;
        false
    }

    pub fn take(&mut self, frame: &Value) {
        match frame["type"].as_str() {
            Some("chat") => {
                assert_eq!(frame["seq"], self.seq + 1, "in order, without a hole, once: {}", self.user);
                (self.seq, self.id) = (self.seq + 1, frame["id"].clone());
            }
            Some("resumed") => assert_eq!(frame["rooms"]["lobby"], true, "{frame}"),
            _ => {}
        }
    }
}

/// How long the browser client waits for a handshake, and what is enough where nobody answers.
pub const PATIENT: Duration = Duration::from_secs(15);
pub const IMPATIENT: Duration = Duration::from_secs(3);

/// Connects to the room `lobby`, or not.
pub async fn try_open(door: Door, user: &str, patience: Duration) -> Option<Client> {
    let bearer = format!("Bearer {}", token(user));
    let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
    door.knock_patiently("/ws/chat/lobby/", &headers, patience).await
}

/// Says something in the room `lobby` through the API; its place.
pub async fn say(door: Door, text: &str) -> u64 {
    let event = json!({"type": "chat", "to": "room:lobby", "data": {"message": text, "from_user": "ops"}});
    let (status, answer) = door.api("POST", "/api/events", Some(event)).await;
    assert_eq!(status, 200, "{answer}");
    answer["results"][0]["seq"].as_u64().unwrap()
}
