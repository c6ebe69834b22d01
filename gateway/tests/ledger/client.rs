//! A client that behaves as `clients/js/client.js` does, with a page that shows what it is given.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use crate::book::{Address, Book, Diary, Place, Row};
use crate::random::Random;
use crate::wire::Wire;

/// Of the browser client's settings these are other ones: a minute has no room for waits of 30 s.
const BASE_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(2);
const STABLE_AFTER: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Frames under way without an answer, and frames that wait.
const WINDOW: usize = 16;
const MAX_PENDING: usize = 1000;
/// Rows of a page of history.
const PAGE: usize = 100;

/// Whose network is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) part: Option<usize>,
    pub(crate) silently: bool,
}

/// Something to publish.
#[derive(Debug)]
pub(crate) struct Say {
    pub(crate) to: Address,
    pub(crate) text: String,
    /// Sent again after its ack, which must then be the same.
    pub(crate) twice: bool,
}

/// What the clients talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    Gateway,
    /// Django Channels: no positions, so nothing to resume from.
    Channels,
}

pub(crate) struct Client {
    pub(crate) stack: Stack,
    pub(crate) user: String,
    pub(crate) rooms: Vec<String>,
    pub(crate) doors: Vec<SocketAddr>,
    /// Which cuts of the network hit it.
    pub(crate) part: usize,
    pub(crate) network: watch::Receiver<Cut>,
    pub(crate) says: mpsc::Receiver<Say>,
    pub(crate) book: Arc<Book>,
    pub(crate) diary: Arc<Mutex<Diary>>,
    pub(crate) random: Random,
    pub(crate) stop: CancellationToken,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Where it stands in a stream.
#[derive(Debug, Clone)]
struct At {
    seq: u64,
    id: Option<String>,
    /// Heard rather than told: a reason to drop what is not after it.
    live: bool,
}

struct Pending {
    say: Say,
    sent: bool,
}

/// What outlives its connections.
struct Session {
    client: Client,
    positions: HashMap<Address, At>,
    pending: Vec<Pending>,
    /// Streams that are being read again, and what came live meanwhile.
    reloading: HashMap<Address, Vec<Row>>,
    resuming: bool,
    resume_again: bool,
    holds: u32,
    held_until: Option<Instant>,
    wire: Wire,
}

impl Client {
    /// Lives until told to stop.
    pub(crate) async fn live(self) {
        // From the beginning, as a page that keeps its positions.
        let at = || At { seq: 0, id: None, live: false };
        let streams = self.rooms.iter().map(|room| format!("room:{room}")).chain([format!("user:{}", self.user)]);
        let positions = streams.map(|stream| (stream.into(), at())).collect();
        let session = Session {
            client: self,
            positions,
            pending: Vec::new(),
            reloading: HashMap::new(),
            resuming: false,
            resume_again: false,
            holds: 0,
            held_until: None,
            wire: Wire::default(),
        };
        session.live().await;
    }
}

impl Session {
    async fn live(mut self) {
        let (stop, mut attempt) = (self.client.stop.clone(), 0);
        while !stop.is_cancelled() {
            let opened = Instant::now();
            stop.run_until_cancelled(self.connection()).await;
            if opened.elapsed() >= STABLE_AFTER {
                attempt = 0;
            }
            self.resuming = false;
            self.resume_again = false;
            self.held_until = None;
            self.pending.iter_mut().for_each(|pending| pending.sent = false);
            let most = MAX_DELAY.min(BASE_DELAY * 2_u32.pow(attempt));
            attempt = (attempt + 1).min(8);
            let delay = self.client.random.part_of(most);
            stop.run_until_cancelled(sleep(delay)).await;
        }
    }

    fn is_cut(&self, cut: Cut) -> bool {
        cut.part == Some(self.client.part)
    }

    /// One connection, from the handshake to its end.
    async fn connection(&mut self) {
        let mut network = self.client.network.clone();
        let _ = network.wait_for(|cut| !self.is_cut(*cut)).await;
        let Some(mut socket) = self.open().await else { return };
        self.client.diary.lock().connects += 1;
        let part = self.client.part;
        let cut = async {
            let cut = network.wait_for(|cut| cut.part == Some(part)).await.map(|cut| *cut);
            cut.is_ok_and(|cut| cut.silently)
        };
        let silently = tokio::select! {
            silently = cut => silently,
            () = self.talk(&mut socket) => false,
        };
        if silently {
            // Nothing is read any more, and the node is not told.
            let _ = network.wait_for(|cut| cut.part != Some(part)).await;
        }
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    async fn open(&mut self) -> Option<Socket> {
        let Client { stack, doors, user, rooms, random, .. } = &mut self.client;
        let door = random.pick(doors);
        let mut request = match stack {
            Stack::Gateway => format!("ws://{door}/ws/chat/"),
            Stack::Channels => format!("ws://{door}/ws/chat/?user={user}&rooms={}", rooms.join(",")),
        }
        .into_client_request()
        .unwrap();
        if *stack == Stack::Gateway {
            // Good on every clock that a node may have.
            let token = crate::common::token_with(user, &[], 30 * 24 * 3600);
            let protocols = format!("gateway.v1, bearer.{token}");
            request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
        }
        let connect = tokio_tungstenite::connect_async(request);
        timeout(CONNECT_TIMEOUT, connect).await.ok()?.ok().map(|(socket, _)| socket)
    }

    /// Returns when the connection is of no more use.
    async fn talk(&mut self, socket: &mut Socket) {
        let mut out = Vec::new();
        if self.client.stack == Stack::Gateway {
            self.wire.new_socket();
            self.resume(&mut out);
            out.push(json!({"cate": "rooms"}));
            self.read_again(&mut out);
        }
        loop {
            self.pump(&mut out);
            for frame in out.drain(..) {
                if socket.send(Message::text(frame.to_string())).await.is_err() {
                    return;
                }
            }
            let held = self.held_until;
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                        Ok(frame) => self.received(&frame, &mut out),
                        Err(error) => self.wrong(format!("{error}: {text}")),
                    },
                    Some(Ok(Message::Close(Some(frame)))) => {
                        let code = u16::from(frame.code);
                        // Where a handler has failed, Channels closes like this; the client comes back.
                        if self.client.stack == Stack::Channels {
                            return;
                        }
                        if code >= 4400 || [1002, 1003, 1007, 1008, 1009, 1011].contains(&code) {
                            self.wrong(format!("closed with {code} {}", frame.reason));
                        }
                        return;
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                },
                Some(say) = self.client.says.recv(), if self.pending.len() < MAX_PENDING => {
                    self.pending.push(Pending { say, sent: false });
                }
                () = async { sleep_until(held.unwrap_or_else(Instant::now)).await }, if held.is_some() => {
                    self.held_until = None;
                    if self.resume_again {
                        self.resume(&mut out);
                    }
                    self.read_again(&mut out);
                }
            }
        }
    }

    fn wrong(&self, line: String) {
        self.client.diary.lock().wrong.push(line);
    }

    /// Asks for what was missed.
    fn resume(&mut self, out: &mut Vec<Value>) {
        let mut frame = json!({"cate": "resume", "rooms": {}});
        for (stream, at) in &self.positions {
            let place = match &at.id {
                Some(id) => json!({"seq": at.seq, "id": id}),
                None => json!({"seq": at.seq}),
            };
            match stream.strip_prefix("room:") {
                Some(room) => frame["rooms"][room] = place,
                None => frame["notifications"] = place,
            }
            self.wire.asked(stream, at.seq, self.resume_again);
        }
        self.resuming = !self.positions.is_empty();
        self.resume_again = false;
        if self.resuming {
            out.push(frame);
        }
    }

    /// Asks for the next page of the streams whose missed part was too long.
    fn read_again(&self, out: &mut Vec<Value>) {
        out.extend(self.reloading.keys().map(|stream| self.next_page(stream)));
    }

    fn next_page(&self, stream: &Address) -> Value {
        let after = self.client.diary.lock().shown.get(stream).map_or(0, |rows| last_seq(rows));
        match stream.strip_prefix("room:") {
            Some(room) => json!({"cate": "history", "group_name": room, "after": after, "limit": PAGE}),
            None => json!({"cate": "notifications", "after": after, "limit": PAGE}),
        }
    }

    /// Sends what waits, in order, with a bounded number under way.
    fn pump(&mut self, out: &mut Vec<Value>) {
        if self.held_until.is_some() {
            return;
        }
        for Pending { say, sent } in self.pending.iter_mut().take(WINDOW).filter(|pending| !pending.sent) {
            *sent = true;
            out.push(match say.to.split_once(':') {
                Some(("room", room)) => {
                    json!({"cate": "chat", "group_name": room, "message": say.text, "client_id": say.text})
                }
                Some((_, user)) => {
                    json!({"cate": "notification", "user_name": user, "message": say.text, "client_id": say.text})
                }
                None => continue,
            });
        }
    }

    fn received(&mut self, frame: &Value, out: &mut Vec<Value>) {
        match frame["type"].as_str().unwrap_or_default() {
            "chat" => self.message(format!("room:{}", text(&frame["group_name"])).into(), frame),
            "notification" => self.message(format!("user:{}", self.client.user).into(), frame),
            "ack" => self.acked(frame),
            "error" => self.failed(frame),
            "resumed" => self.resumed(frame, out),
            "history" => {
                let stream = format!("room:{}", text(&frame["group_name"])).into();
                self.page(stream, &frame["messages"], frame["has_more"] == true, out);
            }
            "notifications" => {
                let stream = format!("user:{}", self.client.user).into();
                self.page(stream, &frame["notifications"], frame["has_more"] == true, out);
            }
            "rooms" => {
                for room in frame["rooms"].as_array().into_iter().flatten() {
                    let stream: Address = format!("room:{}", text(&room["group_name"])).into();
                    let (seq, id) = (room["seq"].as_u64().unwrap_or_default(), room["id"].as_str().map(str::to_owned));
                    self.positions.entry(stream).or_insert(At { seq, id, live: false });
                }
            }
            other => self.wrong(format!("an unexpected frame {other:?}: {frame}")),
        }
    }

    fn message(&mut self, stream: Address, frame: &Value) {
        let row = row(frame);
        if let Some((id, seq)) = &row.place {
            if let Some(line) = self.wire.came(&stream, *seq) {
                self.wrong(line);
            }
            if self.positions.get(&stream).is_some_and(|at| at.live && *seq <= at.seq) {
                self.client.diary.lock().dropped += 1;
                return;
            }
            self.positions.insert(Arc::clone(&stream), At { seq: *seq, id: Some(id.clone()), live: true });
        } else if self.client.stack == Stack::Gateway {
            self.wrong(format!("a frame without a position: {frame}"));
        }
        match self.reloading.get_mut(&stream) {
            Some(waiting) => waiting.push(row),
            None => self.client.diary.lock().shown.entry(stream).or_default().push(row),
        }
    }

    fn acked(&mut self, frame: &Value) {
        let client_id = text(&frame["client_id"]);
        self.holds = 0;
        self.client.book.acked(client_id, place(frame));
        let Some(at) = self.pending.iter().position(|pending| pending.say.text == client_id) else { return };
        let pending = &mut self.pending[at];
        if pending.say.twice {
            pending.say.twice = false;
            pending.sent = false;
        } else {
            self.pending.remove(at);
        }
    }

    fn failed(&mut self, frame: &Value) {
        let (code, client_id) = (text(&frame["code"]), frame["client_id"].as_str());
        if !["unavailable", "rate_limited"].contains(&code) {
            self.wrong(frame.to_string());
            return;
        }
        if self.resuming && code == "unavailable" && client_id.is_none() {
            self.resume_again = true;
        }
        let named = client_id.filter(|id| self.pending.iter().any(|pending| pending.say.text == *id));
        for pending in &mut self.pending {
            if named.is_none_or(|id| pending.say.text == id) {
                pending.sent = false;
            }
        }
        if self.held_until.is_none() {
            let most = Duration::from_millis(1_000 << self.holds.min(2));
            self.holds += 1;
            self.held_until = Some(Instant::now() + most / 2 + self.client.random.part_of(most / 2));
        }
    }

    fn resumed(&mut self, frame: &Value, out: &mut Vec<Value>) {
        self.resuming = false;
        let rooms = frame["rooms"].as_object().cloned().unwrap_or_else(Map::new);
        let rooms = rooms.into_iter().map(|(room, complete)| (format!("room:{room}"), complete));
        let inbox = frame.get("notifications").map(|complete| (format!("user:{}", self.client.user), complete.clone()));
        for (stream, complete) in rooms.chain(inbox) {
            let (stream, complete): (Address, bool) = (stream.into(), complete == true);
            for line in self.wire.resumed(&stream, complete) {
                self.wrong(line);
            }
            if !complete {
                self.positions.remove(&stream);
                self.reloading.entry(Arc::clone(&stream)).or_default();
                out.push(self.next_page(&stream));
                self.client.diary.lock().reloads += 1;
            }
        }
    }

    /// A page of a stream that is read again; after the last of them what came live is shown.
    fn page(&mut self, stream: Address, rows: &Value, has_more: bool, out: &mut Vec<Value>) {
        if !self.reloading.contains_key(&stream) {
            return;
        }
        let mut diary = self.client.diary.lock();
        let shown = diary.shown.entry(Arc::clone(&stream)).or_default();
        let fresh = |shown: &Vec<Row>, row: &Row| row.place.as_ref().is_some_and(|(_, seq)| *seq > last_seq(shown));
        for row in rows.as_array().into_iter().flatten().map(row) {
            if fresh(shown, &row) {
                shown.push(row);
            }
        }
        if has_more {
            drop(diary);
            out.push(self.next_page(&stream));
            return;
        }
        for row in self.reloading.remove(&stream).unwrap_or_default() {
            if fresh(shown, &row) {
                shown.push(row);
            }
        }
    }
}

fn last_seq(rows: &[Row]) -> u64 {
    rows.last().and_then(|row| row.place.as_ref()).map_or(0, |(_, seq)| *seq)
}

fn row(frame: &Value) -> Row {
    Row { place: place(frame), text: text(&frame["message"]).to_owned() }
}

fn place(frame: &Value) -> Option<Place> {
    Some((frame["id"].as_str()?.to_owned(), frame["seq"].as_u64()?))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
