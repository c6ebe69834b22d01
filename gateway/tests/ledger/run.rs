//! One run: a site, its clients and publishers, a schedule of faults, a verdict.
#![allow(clippy::print_stdout, reason = "the test reports what it did")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::book::{Address, Book, Diary, Member, Verdict};
use crate::client::{Client, Cut, Say, Stack};
use crate::doors::{Http, Stream};
use crate::random::Random;
use crate::schedule::{PARTS, Schedule};
use crate::site::{Kind, Site};

/// Publishers of each kind beside the sockets.
const HTTP_PUBLISHERS: usize = 3;
const STREAM_PUBLISHERS: usize = 3;

/// How long everything may take to be acknowledged and shown after the last fault: positions are compared
/// twice a minute, and what a dead node had taken from the stream is claimed after 30 s.
const SETTLE: Duration = Duration::from_secs(150);
/// The same when it is known that it will not come.
const SETTLE_LOSSY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) rooms: usize,
    /// Messages published a second, by all publishers.
    pub(crate) per_second: u32,
    pub(crate) seconds: u64,
}

impl Load {
    /// One user in ten has two devices.
    fn user(self, client: usize) -> String {
        format!("user-{}", client % (self.clients * 9 / 10))
    }

    fn rooms_of(self, client: usize) -> Vec<String> {
        let user = client % (self.clients * 9 / 10);
        let (first, second) = (user % self.rooms, (user / self.rooms + user + 1) % self.rooms);
        let mut rooms = vec![format!("room-{first}")];
        if second != first {
            rooms.push(format!("room-{second}"));
        }
        rooms
    }

    fn addresses(self) -> Vec<Address> {
        let rooms = (0..self.rooms).map(|room| format!("room:room-{room}").into());
        let users = (0..self.clients * 9 / 10).map(|client| format!("user:{}", self.user(client)).into());
        // Rooms are written to more often than users.
        rooms.clone().chain(rooms.clone()).chain(rooms.cycle().take(self.clients)).chain(users).collect()
    }
}

/// The clients of a run, and what they are written to with.
struct Clients {
    stack: Stack,
    members: Vec<Member>,
    says: Vec<mpsc::Sender<Say>>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Clients {
    async fn start(
        load: Load,
        seed: u64,
        stack: Stack,
        doors: &[SocketAddr],
        network: &watch::Sender<Cut>,
        book: &Arc<Book>,
    ) -> Self {
        let mut clients = Self {
            stack,
            members: Vec::new(),
            says: Vec::new(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        for number in 0..load.clients {
            let (user, rooms) = (load.user(number), load.rooms_of(number));
            let streams = rooms.iter().map(|room| format!("room:{room}")).chain([format!("user:{user}")]);
            let (say, says) = mpsc::channel(64);
            let diary = Arc::new(Mutex::new(Diary::default()));
            clients.members.push(Member {
                name: format!("client {number}"),
                streams: streams.map(Address::from).collect(),
                diary: Arc::clone(&diary),
            });
            clients.says.push(say);
            let client = Client {
                stack,
                user,
                rooms,
                doors: doors.to_vec(),
                part: number % PARTS,
                network: network.subscribe(),
                says,
                book: Arc::clone(book),
                diary,
                random: Random::of_part(seed, number as u64),
                stop: clients.stop.clone(),
            };
            clients.tasks.spawn(client.live());
        }
        until("all clients are connected", Duration::from_secs(60), || {
            clients.members.iter().all(|member| member.diary.lock().connects > 0)
        })
        .await
        .unwrap();
        clients
    }

    fn are_complete(&self, book: &Book) -> bool {
        let lengths = book.lengths();
        self.members.iter().all(|member| member.is_complete(&lengths))
    }

    async fn end(mut self) -> Vec<Member> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.members
    }
}

/// A run of the gateway.
pub(crate) async fn gateway(load: Load, schedule: &Schedule, kind: Kind) -> Verdict {
    println!("{schedule}{load:?}, {kind:?}");
    let site = Site::start(crate::NODES, kind).await;
    make_members(load, &site).await;
    endure(site, load, schedule, kind).await.1
}

/// The same on a site that is there, with its rooms and members.
pub(crate) async fn endure(site: Site, load: Load, schedule: &Schedule, kind: Kind) -> (Site, Verdict) {
    let book = Arc::new(Book::default());
    let clients = Clients::start(load, schedule.seed, Stack::Gateway, &site.public(), &site.network, &book).await;
    let mut publishers = JoinSet::new();
    // Half of all messages come from sockets.
    let by_socket = load.per_second / 2;
    publish_by_sockets(load, schedule.seed, by_socket, &clients, &book, &mut publishers);
    publish_by_doors(load, schedule.seed, load.per_second - by_socket, &site, &book, &mut publishers);
    let site = site.suffer(schedule).await;
    println!("{} pub/sub messages were dropped; settling", site.dropped());
    let settling = Instant::now();
    let finished = until("everything is acknowledged", SETTLE, || {
        while publishers.try_join_next().transpose().unwrap().is_some() {}
        publishers.is_empty() && book.open().is_empty()
    });
    if finished.await.is_err() {
        for line in book.open() {
            book.wrong(format!("{line} was not acknowledged in time"));
        }
    }
    println!("everything acknowledged after {:.1} s", settling.elapsed().as_secs_f64());
    let settle = if kind == (Kind::Gateway { lossy: true }) { SETTLE_LOSSY } else { SETTLE };
    let shown = until("everything is shown", settle, || clients.are_complete(&book)).await;
    println!("shown: {shown:?} after {:.1} s", settling.elapsed().as_secs_f64());
    check_dead_letters(&site, &book).await;
    let verdict = Verdict::of(&book, &clients.end().await);
    println!("{verdict}");
    (site, verdict)
}

/// Every user in their rooms, on any node.
pub(crate) async fn make_members(load: Load, site: &Site) {
    let door = site.nodes[0].door;
    for room in 0..load.rooms {
        assert_eq!(door.api("PUT", &format!("/api/rooms/room-{room}"), Some(json!({}))).await.0, 200);
    }
    for client in 0..load.clients * 9 / 10 {
        for room in load.rooms_of(client) {
            let path = format!("/api/rooms/{room}/members/{}", load.user(client));
            assert_eq!(door.api("PUT", &path, None).await.0, 200, "{path}");
        }
    }
}

/// A fifth of the clients publish until the faults are over.
fn publish_by_sockets(
    load: Load,
    seed: u64,
    per_second: u32,
    clients: &Clients,
    book: &Arc<Book>,
    publishers: &mut JoinSet<()>,
) {
    let sockets = load.clients / 5;
    // Where a repeat is a second message, only lost acks are a reason for one.
    let without_keys = clients.stack == Stack::Channels;
    for (number, says) in clients.says.iter().take(sockets).cloned().enumerate() {
        let mut pace = Pace::new(load, Random::of_part(seed, 10_000 + number as u64), per_second, sockets);
        let book = Arc::clone(book);
        let own: Vec<Address> = load.rooms_of(number).iter().map(|room| format!("room:{room}").into()).collect();
        publishers.spawn(async move {
            let mut count = 0;
            while let Some(any) = pace.next().await {
                // A socket may write to its rooms and to any user.
                let to = if any.starts_with("room:") { pace.random.pick(&own).clone() } else { any };
                let say =
                    Say { to, text: format!("s{number}/{count}"), twice: pace.random.one_in(10) && !without_keys };
                book.given(&say.to, &say.text);
                says.send(say).await.unwrap();
                count += 1;
            }
        });
    }
}

/// Publishes by HTTP and to the stream until the faults are over; each then finishes what it began.
fn publish_by_doors(
    load: Load,
    seed: u64,
    per_second: u32,
    site: &Site,
    book: &Arc<Book>,
    publishers: &mut JoinSet<()>,
) {
    let all = HTTP_PUBLISHERS + STREAM_PUBLISHERS;
    let http = Http::client();
    for number in 0..HTTP_PUBLISHERS {
        let mut pace = Pace::new(load, Random::of_part(seed, 20_000 + number as u64), per_second, all);
        let random = Random::of_part(seed, 30_000 + number as u64);
        let mut door = Http { doors: site.internal(), client: http.clone(), book: Arc::clone(book), random };
        publishers.spawn(async move {
            let mut count = 0;
            while let Some(to) = pace.next().await {
                let text = format!("h{number}/{count}");
                door.book.given(&to, &text);
                door.publish(&to, &text).await;
                count += 1;
            }
        });
    }
    for number in 0..STREAM_PUBLISHERS {
        let mut pace = Pace::new(load, Random::of_part(seed, 40_000 + number as u64), per_second, all);
        let door = Stream { url: site.redis.url(), book: Arc::clone(book) };
        publishers.spawn(async move {
            let mut count = 0;
            while let Some(to) = pace.next().await {
                let text = format!("x{number}/{count}");
                door.book.given(&to, &text);
                door.publish(&to, &text).await;
                count += 1;
            }
        });
    }
}

/// A run of the Python stack under the same load and schedule, all of it by sockets.
pub(crate) async fn channels(load: Load, schedule: &Schedule, layer: &'static str) -> Verdict {
    println!("Django Channels, channels_redis {layer}: seed {}, {load:?}", schedule.seed);
    let site = Site::start(crate::NODES, Kind::Channels { layer }).await;
    let book = Arc::new(Book::default());
    let clients = Clients::start(load, schedule.seed, Stack::Channels, &site.public(), &site.network, &book).await;
    let mut publishers = JoinSet::new();
    publish_by_sockets(load, schedule.seed, load.per_second, &clients, &book, &mut publishers);
    let site = site.suffer(schedule).await;
    println!("{} pub/sub messages were dropped; settling", site.dropped());
    let finished = until("everything is acknowledged", SETTLE / 4, || {
        while publishers.try_join_next().transpose().unwrap().is_some() {}
        publishers.is_empty() && book.open().is_empty()
    });
    let finished = finished.await;
    let shown = until("everything is shown", SETTLE_LOSSY, || clients.are_complete(&book)).await;
    let verdict = Verdict::of(&book, &clients.end().await);
    println!("acknowledged: {finished:?}, shown: {shown:?}\n{verdict}");
    verdict
}

/// When a publisher writes next, and to whom.
struct Pace {
    random: Random,
    addresses: Vec<Address>,
    pause: Duration,
    end: Instant,
}

impl Pace {
    /// One of `of` publishers who together write so much a second.
    fn new(load: Load, random: Random, per_second: u32, of: usize) -> Self {
        let pause = Duration::from_secs(1) * of as u32 / per_second.max(1);
        Self { random, addresses: load.addresses(), pause, end: Instant::now() + Duration::from_secs(load.seconds) }
    }

    async fn next(&mut self) -> Option<Address> {
        sleep(self.random.part_of(self.pause * 2)).await;
        (Instant::now() < self.end).then(|| Arc::clone(self.random.pick(&self.addresses)))
    }
}

/// What the stream's publishers wrote is all of use.
async fn check_dead_letters(site: &Site, book: &Book) {
    let (status, answer) = site.nodes[0].door.api("GET", "/api/dead", None).await;
    if status != 200 || answer.to_string().contains("dead_id") {
        book.wrong(format!("dead letters: {status} {answer}"));
    }
}

/// Looks until it holds.
pub(crate) async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + limit;
    while !holds() {
        if Instant::now() >= end {
            return Err(format!("{what}: not within {limit:?}"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
