//! Sockets whose consumers are the site's own, by a worker that does what a script says: also what no good worker does.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod flow;
mod groups;
mod links;
mod opening;
mod python;
mod reattach;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use common::{Door, TestNode};
use futures_util::{SinkExt, StreamExt};
use http::Response;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use worker::{Link, SECRET, Worker};

const PATIENCE: Duration = Duration::from_secs(20);

/// A node with one bridge, and where its workers' sockets are.
pub struct Site {
    pub node: TestNode,
    pub directory: tempfile::TempDir,
}

impl Site {
    pub async fn start(own: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let workers = format!("unix:{}/worker-*.sock", directory.path().display());
        let base = [("bridge.path", "/ws/orders/"), ("bridge.workers", workers.as_str()), ("bridge.secret", SECRET)];
        let kept = base.iter().filter(|(key, _)| !own.iter().any(|(other, _)| other == key));
        let all: Vec<_> = kept.chain(own).copied().collect();
        Self { node: TestNode::start(&all).await, directory }
    }

    pub fn socket(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("worker-{number}.sock"))
    }

    /// A node with a worker, linked.
    pub async fn linked(own: &[(&str, &str)]) -> (Self, Worker, Link) {
        let site = Self::start(own).await;
        let worker = Worker::at(&site.socket(1));
        let link = worker.link().await;
        (site, worker, link)
    }

    /// The same with a worker that knows groups.
    pub async fn with_groups(own: &[(&str, &str)]) -> (Self, Worker, Link) {
        let site = Self::start(own).await;
        let worker = Worker::at(&site.socket(1)).with(worker::Manner { groups: true, ..worker::Manner::default() });
        let mut link = worker.link().await;
        link.expect(worker::LAYER).await;
        (site, worker, link)
    }

    pub fn door(&self) -> Door {
        self.node.at()
    }

    /// A client whose handshake is under way.
    pub fn knock(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> tokio::task::JoinHandle<Result<Guest, Response<Option<Vec<u8>>>>> {
        let (door, path) = (self.door(), path.to_owned());
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        #[expect(clippy::disallowed_methods, reason = "joined by who knocks")]
        tokio::spawn(async move { Guest::connect(door, &path, &headers).await })
    }

    /// A client that the worker has accepted: its number there, and itself.
    pub async fn open(&self, link: &mut Link) -> (u64, Guest) {
        let guest = self.knock("/ws/orders/", &[]);
        let (sid, _) = link.open().await;
        link.accept(sid).await;
        (sid, guest.await.unwrap().unwrap())
    }

    /// The status of a refused handshake.
    pub async fn refused(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        self.knock(path, headers).await.unwrap().err().expect("a refusal").status().as_u16()
    }

    pub async fn metric(&self, line: &str) -> f64 {
        self.node.metric(line).await
    }
}

/// A client of a bridged path; every wait has an end.
pub struct Guest {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub response: Response<Option<Vec<u8>>>,
}

impl Guest {
    async fn connect(door: Door, path: &str, headers: &[(String, String)]) -> Result<Self, Response<Option<Vec<u8>>>> {
        let mut request = format!("ws://{}{path}", door.public).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        match timeout(PATIENCE, tokio_tungstenite::connect_async(request)).await.expect("an answer in time") {
            Ok((socket, response)) => Ok(Self { socket, response }),
            Err(Error::Http(response)) => Err(*response),
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn send(&mut self, message: impl Into<Message>) {
        self.socket.send(message.into()).await.unwrap();
    }

    /// The next message that is no ping.
    pub async fn next(&mut self) -> Message {
        let next = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(message)) => break message,
                    other => panic!("a message was expected, not {other:?}"),
                }
            }
        };
        timeout(PATIENCE, next).await.expect("a message in time")
    }

    pub async fn text(&mut self) -> String {
        self.next().await.into_text().unwrap().to_string()
    }

    /// The code and the reason that the node closes with; messages before them are skipped.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            if let Message::Close(frame) = self.next().await {
                return frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
            }
        }
    }

    pub async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.to_owned().into() };
        self.socket.close(Some(frame)).await.unwrap();
    }

    /// The bare connection.
    pub fn tcp(&mut self) -> &mut TcpStream {
        match self.socket.get_mut() {
            MaybeTlsStream::Plain(stream) => stream,
            _ => panic!("no TLS here"),
        }
    }

    pub async fn hears_end(&mut self) {
        while timeout(PATIENCE, self.socket.next()).await.expect("the end in time").is_some_and(|next| next.is_ok()) {}
    }
}
