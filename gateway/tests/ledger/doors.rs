//! Publishers that are no sockets: HTTP and the stream. Each goes on until it is told that it is stored.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value as Reply};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::book::{Address, Book};
use crate::random::Random;

/// How long an answer may take until the publisher tries again.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// `POST /api/events` on any node, with the text as the idempotency key.
pub(crate) struct Http {
    pub(crate) doors: Vec<SocketAddr>,
    pub(crate) client: reqwest::Client,
    pub(crate) book: Arc<Book>,
    pub(crate) random: Random,
}

impl Http {
    pub(crate) fn client() -> reqwest::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().timeout(PATIENCE).build().unwrap()
    }

    /// Publishes it, and now and then once more.
    pub(crate) async fn publish(&mut self, to: &Address, text: &str) {
        let times = if self.random.one_in(10) { 2 } else { 1 };
        for _ in 0..times {
            while !self.is_stored(to, text).await {
                sleep(PAUSE + self.random.part_of(PAUSE)).await;
            }
        }
    }

    async fn is_stored(&mut self, to: &Address, text: &str) -> bool {
        let url = format!("http://{}/api/events", self.random.pick(&self.doors));
        let kind = if to.starts_with("room:") { "chat" } else { "notification" };
        let event = json!({"type": kind, "to": &**to, "data": {"message": text, "from_user": "shop"}});
        let request = self.client.post(url).bearer_auth("key").header("idempotency-key", text).json(&event);
        let Ok(answer) = request.send().await else { return false };
        let status = answer.status().as_u16();
        let Ok(answer) = answer.json::<Value>().await else { return false };
        let result = &answer["results"][0];
        match (status, result["id"].as_str(), result["seq"].as_u64()) {
            (200, Some(id), Some(seq)) => {
                self.book.acked(text, Some((id.to_owned(), seq)));
                true
            }
            (503, ..) => false,
            _ => {
                self.book.wrong(format!("{text} was answered with {status} {answer}"));
                true
            }
        }
    }
}

/// `XADD`, with the text as the identity. Redis may forget an entry before a node has stored it; so it is
/// written again until it was seen to go from the Redis that took it.
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) book: Arc<Book>,
}

impl Stream {
    pub(crate) async fn publish(&self, to: &Address, text: &str) {
        loop {
            match timeout(PATIENCE * 10, self.try_publish(to, text)).await {
                Ok(Ok(())) => break self.book.acked(text, None),
                Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn try_publish(&self, to: &Address, text: &str) -> Result<(), RedisError> {
        let kind = if to.starts_with("room:") { "chat" } else { "notification" };
        let data = json!({"message": text, "from_user": "shop"}).to_string();
        // This connection never comes back as one to another Redis.
        let mut redis: MultiplexedConnection =
            redis::Client::open(self.url.as_str())?.get_multiplexed_async_connection().await?;
        let mut add = redis::cmd("XADD");
        add.arg(crate::EVENTS).arg("*").arg(&[("id", text), ("source", "ledger"), ("type", kind), ("to", to)]);
        let id: String = add.arg("data").arg(data).query_async(&mut redis).await?;
        loop {
            let found: Reply =
                redis::cmd("XRANGE").arg(crate::EVENTS).arg(&id).arg(&id).query_async(&mut redis).await?;
            if matches!(&found, Reply::Array(entries) if entries.is_empty()) {
                return Ok(());
            }
            sleep(PAUSE / 2).await;
        }
    }
}
