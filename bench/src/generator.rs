//! The load: many sockets on one thread and one epoll, so that it takes as little as it can from the
//! machine that it shares with the server.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem::take;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memchr::memmem;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use serde_json::{Value, json};

use crate::frames;
use crate::publisher::Publisher;
use crate::socket::{Socket, State, Tokens, connect, request};
use crate::tally::{Delivered, Marks, Room, Tally};

/// Largest frame that can be read.
const BUFFER: usize = 256 * 1024;
const EVENTS: usize = 512;
/// What a message has beside its mark: a sentence's length.
const PADDING: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
/// How long sockets may take to open and messages to arrive.
const PATIENCE: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(8);
/// Who was refused comes back after this.
const RETRY: Duration = Duration::from_millis(200);

/// The sockets to make: spread over rooms, and within each room over the addresses.
pub(crate) struct Crowd<'a> {
    pub(crate) addresses: &'a [SocketAddr],
    pub(crate) secret: &'a str,
    /// Cookies that sign in, in turn; tokens if there are none.
    pub(crate) cookies: &'a [String],
    pub(crate) sockets: usize,
    pub(crate) room_size: usize,
    /// They offer `gateway.v1` and resume where they were.
    pub(crate) resume: bool,
}

/// How messages follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many deliveries per second, whatever becomes of them.
    Rate(f64),
    /// So many messages in flight in each room: the next one goes when every member has one.
    InFlight(usize),
}

/// How opening went.
pub(crate) struct Opened {
    pub(crate) seconds: f64,
    pub(crate) open: usize,
    /// Attempts that failed; they were repeated.
    pub(crate) refused: u64,
    /// From the first attempt to the upgrade, or to the end of the resume, µs.
    pub(crate) latencies: Vec<u32>,
}

pub(crate) struct Generator {
    epoll: OwnedFd,
    start: Instant,
    /// Sets this run's messages and rooms apart from others'.
    run: u32,
    resume: bool,
    sockets: Vec<Socket>,
    rooms: Vec<Room>,
    marks: Marks,
    pub(crate) tally: Tally,
    /// Rooms in which a message has reached everybody.
    done: Vec<usize>,
    opening: usize,
    open: usize,
    failed: Vec<usize>,
    refused: u64,
    latencies: Vec<u32>,
    /// Streams whose resume was answered `false`.
    pub(crate) not_resumed: u64,
    buffer: Vec<u8>,
    events: Vec<Event>,
}

impl Generator {
    /// Prepares the sockets; none is open yet.
    pub(crate) fn new(crowd: &Crowd) -> Result<Self> {
        let run = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u32);
        let tokens = Tokens::new(crowd.secret);
        let count = (crowd.sockets / crowd.room_size).max(1);
        let mut rooms: Vec<Room> = (0..count).map(|number| Room::new(format!("bench{run}-{number}"))).collect();
        let mut sockets = Vec::with_capacity(crowd.sockets);
        for number in 0..crowd.sockets {
            let room = number % count;
            let address = crowd.addresses[number / count % crowd.addresses.len()];
            rooms[room].members += 1;
            let shown = match crowd.cookies.get(number % crowd.cookies.len().max(1)) {
                Some(cookie) => format!("Cookie: {cookie}\r\nOrigin: http://{address}"),
                None => format!("Authorization: Bearer {}", tokens.sign(&format!("user{run}-{number}"))?),
            };
            sockets.push(Socket::new(address, room, request(address, &rooms[room].name, &shown, crowd.resume)));
        }
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).context("no epoll")?,
            start: Instant::now(),
            run,
            resume: crowd.resume,
            sockets,
            rooms,
            marks: Marks::new(),
            tally: Tally::default(),
            done: Vec::new(),
            opening: 0,
            open: 0,
            failed: Vec::new(),
            refused: 0,
            latencies: Vec::new(),
            not_resumed: 0,
            buffer: vec![0; BUFFER],
            events: Vec::with_capacity(EVENTS),
        })
    }

    pub(crate) fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Opens what is closed, at most `at_once` under way; who is refused tries again.
    pub(crate) fn open(&mut self, at_once: usize) -> Result<Opened> {
        let start = self.now();
        (self.refused, self.latencies) = (0, Vec::with_capacity(self.sockets.len()));
        let mut waiting: VecDeque<usize> =
            (0..self.sockets.len()).filter(|&at| self.sockets[at].state == State::Closed).collect();
        let mut later: VecDeque<(u64, usize)> = VecDeque::new();
        while self.open < self.sockets.len() && self.now() < start + nanos(PATIENCE) {
            while self.opening < at_once
                && let Some(at) = waiting.pop_front()
            {
                self.sockets[at].began = self.now();
                self.begin(at);
            }
            while let Some((_, at)) = later.pop_front_if(|(due, _)| *due <= self.start.elapsed().as_nanos() as u64) {
                self.begin(at);
            }
            self.poll(Duration::from_millis(20))?;
            let due = self.now() + nanos(RETRY);
            later.extend(take(&mut self.failed).into_iter().map(|at| (due, at)));
        }
        Ok(Opened {
            seconds: (self.now() - start) as f64 / 1e9,
            open: self.open,
            refused: self.refused,
            latencies: take(&mut self.latencies),
        })
    }

    /// Closes all sockets but the first `keep`, without a word to the server.
    pub(crate) fn close(&mut self, keep: usize) {
        for socket in self.sockets.iter_mut().skip(keep).filter(|socket| socket.state != State::Closed) {
            self.open -= usize::from(socket.state == State::Open);
            socket.close();
        }
    }

    /// Sends for `span`, by each room's first socket or by the publisher, and waits for what is under
    /// way. Counts from nothing; returns the seconds until the last delivery.
    pub(crate) fn traffic(&mut self, pace: Pace, by: Option<&Publisher>, span: Duration) -> Result<f64> {
        self.tally.restart();
        let start = self.now();
        let end = start + nanos(span);
        match pace {
            Pace::Rate(deliveries) => {
                let interval = 1e9 * self.rooms[0].members as f64 / deliveries;
                for number in 0_usize.. {
                    let due = start + (number as f64 * interval) as u64;
                    if due >= end {
                        break;
                    }
                    self.poll_until(due)?;
                    self.send(number % self.rooms.len(), due, by)?;
                }
                self.poll_until(end)?;
            }
            Pace::InFlight(messages) => {
                self.done = (0..self.rooms.len()).cycle().take(messages * self.rooms.len()).collect();
                while self.now() < end {
                    for room in take(&mut self.done) {
                        self.send(room, self.now(), by)?;
                    }
                    self.poll(Duration::from_millis(20))?;
                }
            }
        }
        let late = self.now() + nanos(DRAIN);
        while self.tally.missing > 0 && self.now() < late {
            self.poll(Duration::from_millis(5))?;
        }
        Ok(self.tally.last_delivery.saturating_sub(start) as f64 / 1e9)
    }

    /// Sends `count` messages in each room, one after another, each waited for by `receivers` sockets
    /// per room.
    pub(crate) fn step(&mut self, count: usize, receivers: usize) -> Result<()> {
        for _ in 0..count {
            let wanted = self.tally.deliveries + (self.rooms.len() * receivers) as u64;
            for room in 0..self.rooms.len() {
                self.send(room, self.now(), None)?;
            }
            let late = self.now() + nanos(PATIENCE);
            while self.tally.deliveries < wanted {
                anyhow::ensure!(self.now() < late, "a message did not arrive within {PATIENCE:?}");
                self.poll(Duration::from_millis(20))?;
            }
        }
        Ok(())
    }

    /// Serves the sockets for a while.
    pub(crate) fn idle(&mut self, span: Duration) -> Result<()> {
        self.poll_until(self.now() + nanos(span))
    }

    /// Nanoseconds since this was made.
    fn now(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    fn send(&mut self, room: usize, at: u64, by: Option<&Publisher>) -> Result<()> {
        let mark = self.rooms[room].send(self.run, room, at, &mut self.tally);
        let (name, text) = (&self.rooms[room].name, mark + PADDING);
        if let Some(publisher) = by {
            return publisher.chat(name, &text);
        }
        let frame = format!(r#"{{"cate":"chat","group_name":"{name}","message":"{text}"}}"#);
        // The first sockets are one of each room.
        self.say(room, frames::TEXT, frame.as_bytes());
        Ok(())
    }

    fn say(&mut self, at: usize, opcode: u8, payload: &[u8]) {
        if self.sockets[at].send(opcode, payload) {
            self.watch(at, EventFlags::IN | EventFlags::OUT);
        }
    }

    fn watch(&mut self, at: usize, events: EventFlags) {
        if let Some(stream) = &self.sockets[at].stream {
            // Fails for a socket that is broken, which the reader then sees.
            let _ = epoll::modify(&self.epoll, stream, EventData::new_u64(at as u64), events);
        }
    }

    fn begin(&mut self, at: usize) {
        self.opening += 1;
        self.sockets[at].state = State::Connecting;
        let begun = connect(self.sockets[at].address, at).and_then(|stream| {
            let both = EventFlags::IN | EventFlags::OUT;
            epoll::add(&self.epoll, &stream, EventData::new_u64(at as u64), both)?;
            Ok(stream)
        });
        match begun {
            Ok(stream) => self.sockets[at].stream = Some(stream),
            Err(_) => self.gone(at),
        }
    }

    /// The socket has ended, whoever ended it.
    fn gone(&mut self, at: usize) {
        if self.sockets[at].state == State::Open {
            self.open -= 1;
            self.tally.closed += 1;
        } else {
            self.opening -= 1;
            self.refused += 1;
            self.failed.push(at);
        }
        self.sockets[at].close();
    }

    fn opened(&mut self, at: usize) {
        let now = self.now();
        let socket = &mut self.sockets[at];
        socket.state = State::Open;
        self.latencies.push(u32::try_from((now - socket.began) / 1_000).unwrap_or(u32::MAX));
        self.opening -= 1;
        self.open += 1;
    }

    fn poll_until(&mut self, due: u64) -> Result<()> {
        while let Some(left) = due.checked_sub(self.now()).filter(|left| *left > 0) {
            self.poll(Duration::from_nanos(left))?;
        }
        Ok(())
    }

    fn poll(&mut self, at_most: Duration) -> Result<()> {
        let timeout = Timespec::try_from(at_most)?;
        let mut events = take(&mut self.events);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll"),
        }
        for event in events.drain(..) {
            self.serve(event.data.u64() as usize, event.flags);
        }
        self.events = events;
        Ok(())
    }

    fn serve(&mut self, at: usize, flags: EventFlags) {
        let socket = &mut self.sockets[at];
        if flags.contains(EventFlags::OUT) && socket.stream.is_some() {
            if socket.state == State::Connecting && !flags.contains(EventFlags::ERR) {
                socket.state = State::Upgrading;
                socket.unsent.clone_from(&socket.request);
            }
            if !socket.flush() {
                self.watch(at, EventFlags::IN);
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && self.sockets[at].stream.is_some() {
            self.receive(at);
        }
    }

    fn receive(&mut self, at: usize) {
        let mut buffer = take(&mut self.buffer);
        loop {
            let kept = self.sockets[at].rest.len();
            buffer[..kept].copy_from_slice(&self.sockets[at].rest);
            let end = match self.sockets[at].read(&mut buffer[kept..]) {
                Ok(read) if read > 0 => kept + read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.gone(at);
                    break;
                }
            };
            let used = self.consume(at, &buffer[..end]);
            let socket = &mut self.sockets[at];
            socket.rest.clear();
            socket.rest.extend_from_slice(&buffer[used..end]);
            if socket.state == State::Closed || end < buffer.len() {
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Serves whole frames; says how far they reach.
    fn consume(&mut self, at: usize, bytes: &[u8]) -> usize {
        let now = self.now();
        let mut used = 0;
        if self.sockets[at].state == State::Upgrading {
            let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return 0 };
            if bytes.get(9..12) != Some(b"101") {
                self.gone(at);
                return bytes.len();
            }
            used = end + 4;
            self.upgraded(at);
        }
        while let Some((opcode, payload)) = frames::decode(&bytes[used..]) {
            let frame = &bytes[used + payload.start..used + payload.end];
            used += payload.end;
            match opcode {
                frames::PING => self.say(at, frames::PONG, frame),
                frames::CLOSE => {
                    self.gone(at);
                    return bytes.len();
                }
                _ => self.hear(at, frame, now),
            }
        }
        used
    }

    fn upgraded(&mut self, at: usize) {
        if !self.resume {
            return self.opened(at);
        }
        let room = &self.rooms[self.sockets[at].room];
        let rooms = match &room.position {
            Some((seq, id)) => json!({ room.name.as_str(): {"seq": seq, "id": id} }),
            None => json!({}),
        };
        let frame = json!({"cate": "resume", "rooms": rooms}).to_string();
        self.sockets[at].state = State::Resuming;
        self.say(at, frames::TEXT, frame.as_bytes());
    }

    fn hear(&mut self, at: usize, frame: &[u8], now: u64) {
        let socket = &mut self.sockets[at];
        if let Some((room, number)) = self.marks.find(self.run, frame) {
            if room != socket.room {
                return;
            }
            let room = &mut self.rooms[room];
            if self.resume && room.position.is_none() {
                room.position = position(frame);
            }
            if let Delivered::Whole = room.deliver(&mut socket.place, number, now, &mut self.tally) {
                self.done.push(socket.room);
            }
        } else if socket.state == State::Resuming && memmem::find(frame, br#""type":"resumed""#).is_some() {
            self.not_resumed += u64::from(memmem::find(frame, b"false").is_some());
            self.opened(at);
        }
    }
}

/// `seq` and `id` of a chat frame.
fn position(frame: &[u8]) -> Option<(u64, String)> {
    let frame: Value = serde_json::from_slice(frame).ok()?;
    Some((frame["seq"].as_u64()?, frame["id"].as_str()?.to_owned()))
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
