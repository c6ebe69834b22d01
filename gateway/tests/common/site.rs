//! A site: a small HTTP server whose answers the test decides, wrong ones too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

type Respond = dyn Fn(&str) -> String + Send + Sync;

pub struct Site {
    pub address: SocketAddr,
    /// Heads of requests, in their order.
    pub heads: Arc<parking_lot::Mutex<Vec<String>>>,
    respond: Arc<parking_lot::Mutex<Arc<Respond>>>,
    /// Whether anybody is answered.
    pub open: watch::Sender<bool>,
    /// Requests that wait for it, and the most there were at once.
    pub at_once: Arc<(AtomicUsize, AtomicUsize)>,
    _serving: JoinSet<()>,
}

impl Site {
    pub async fn start(respond: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), respond).await
    }

    pub async fn start_at(address: SocketAddr, respond: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
        let respond: Arc<parking_lot::Mutex<Arc<Respond>>> = Arc::new(parking_lot::Mutex::new(Arc::new(respond)));
        let open = watch::Sender::new(true);
        let at_once: Arc<(AtomicUsize, AtomicUsize)> = Arc::default();
        let mut serving = JoinSet::new();
        let shared = (Arc::clone(&heads), Arc::clone(&respond), open.clone(), Arc::clone(&at_once));
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (heads, respond, open, at_once) = shared.clone();
                connections.spawn(async move { Self::serve(stream, &heads, &respond, &open, &at_once).await });
            }
        });
        Self { address, heads, respond, open, at_once, _serving: serving }
    }

    async fn serve(
        mut stream: TcpStream,
        heads: &parking_lot::Mutex<Vec<String>>,
        respond: &parking_lot::Mutex<Arc<Respond>>,
        open: &watch::Sender<bool>,
        at_once: &(AtomicUsize, AtomicUsize),
    ) {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end + 4]).into_owned();
                bytes.drain(..end + 4);
                heads.lock().push(head.clone());
                let waiting = at_once.0.fetch_add(1, Ordering::SeqCst) + 1;
                at_once.1.fetch_max(waiting, Ordering::SeqCst);
                let _ = open.subscribe().wait_for(|open| *open).await;
                at_once.0.fetch_sub(1, Ordering::SeqCst);
                let answer = Arc::clone(&respond.lock());
                let answer = answer(&head);
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            }
        }
    }

    pub fn answers(&self, respond: impl Fn(&str) -> String + Send + Sync + 'static) {
        *self.respond.lock() = Arc::new(respond);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn asked(&self) -> usize {
        self.heads.lock().len()
    }
}

pub fn response(status: &str, more: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{more}\r\n{body}", body.len())
}

pub fn ok(body: &Value) -> String {
    response("200 OK", "Content-Type: application/json\r\n", &body.to_string())
}

/// The value of a header of a head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let is_it = |line: &&str| line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name));
    head.lines().skip(1).find(is_it).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
}
