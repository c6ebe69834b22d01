//! What is measured: how.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::process::on_path;

use crate::generator::{Crowd, Generator, Pace};
use crate::neighbours::Neighbour;
use crate::publisher::Publisher;
use crate::report::Row;
use crate::servers::{Database, Limits, Site};

/// Sockets that may be opening at once where the cost of one is measured.
const OPENING: usize = 64;
/// Messages that everybody misses before the storm.
const MISSED: usize = 3;
const ROUNDS: usize = 10;
/// For what is still under way somewhere.
const SETTLE: Duration = Duration::from_millis(500);

/// Messages to rooms.
#[derive(Clone, Copy)]
pub(crate) struct Fanout {
    pub(crate) room_size: usize,
    pub(crate) pace: Pace,
    /// Sent through sockets and stored, not published on the layer.
    pub(crate) stored: bool,
    pub(crate) nodes: usize,
}

/// What those beside a neighbour hear.
const QUIET: Fanout = Fanout { room_size: 100, pace: Pace::Rate(20_000.0), stored: true, nodes: 1 };

/// Where and how long is measured.
pub(crate) struct Bench {
    pub(crate) place: Place,
    /// Sockets that hear messages, in rooms.
    pub(crate) members: usize,
    /// Sockets that stand still, come and go.
    pub(crate) crowd: usize,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    /// Cookies that sign in, instead of tokens.
    pub(crate) cookies: Vec<String>,
}

/// Whose servers are measured.
pub(crate) enum Place {
    /// New ones for each scenario.
    Own { gateway: PathBuf, database: Database },
    /// Some that run already.
    Theirs(Rc<Site>),
}

impl Bench {
    pub(crate) fn idle(&self) -> Result<Vec<Row>> {
        let Some(site) = self.site(1)? else { return Ok(Vec::new()) };
        let mut generator = self.generator(&site, self.crowd, 100, false)?;
        let before = site.watched.read();
        let mut opened = generator.open(OPENING)?;
        let mut connect = Row::new("connect", "connect", opened.open);
        connect.cost(&before.until(&site.watched.read()), opened.open as f64);
        connect.per_second = Some(opened.open as f64 / opened.seconds);
        connect.latencies(&mut opened.latencies);
        connect.notes.extend((opened.refused > 0).then(|| format!("{} refused", opened.refused)));
        generator.idle(SETTLE * 2)?;
        let still = site.watched.read();
        generator.idle(self.duration)?;
        let end = site.watched.read();
        let used = still.until(&end);
        let mut idle = Row::new("idle", "socket and second", opened.open);
        idle.cost(&used, opened.open as f64 * used.seconds);
        idle.kib_per_socket = kib_each(before.memory, end.memory, opened.open);
        Ok(vec![connect, idle])
    }

    pub(crate) fn rounds(&self, name: &'static str) -> Result<Vec<Row>> {
        let Some(site) = self.site(1)? else { return Ok(Vec::new()) };
        let mut generator = self.generator(&site, self.crowd, 100, false)?;
        let mut row = Row::new(name, "connect and leave", generator.sockets());
        let before = site.watched.read();
        let mut first = None;
        for round in 1..=ROUNDS {
            let opened = generator.open(OPENING)?;
            generator.idle(SETTLE)?;
            if round == 1 {
                first = kib_each(before.memory, site.watched.read().memory, opened.open);
            }
            if round < ROUNDS {
                generator.close(0);
                generator.idle(SETTLE)?;
            }
        }
        let end = site.watched.read();
        row.cost(&before.until(&end), (generator.sockets() * ROUNDS) as f64);
        row.kib_per_socket = kib_each(before.memory, end.memory, generator.sockets());
        row.notes.extend(first.map(|kib| format!("{kib:.2} KiB in the first round")));
        Ok(vec![row])
    }

    pub(crate) fn fanout(&self, name: &'static str, fanout: Fanout) -> Result<Vec<Row>> {
        let Some(site) = self.site(fanout.nodes)? else { return Ok(Vec::new()) };
        if !fanout.stored && site.redis_url.is_none() {
            return Ok(Vec::new());
        }
        let mut generator = self.generator(&site, self.members, fanout.room_size, false)?;
        generator.open(OPENING)?;
        Ok(vec![self.traffic(name, &site, &mut generator, fanout)?])
    }

    /// Warms up and measures.
    fn traffic(&self, name: &'static str, site: &Site, generator: &mut Generator, fanout: Fanout) -> Result<Row> {
        let publisher = match (&site.redis_url, fanout.stored) {
            (Some(url), false) => Some(Publisher::start(url)?),
            _ => None,
        };
        generator.traffic(fanout.pace, publisher.as_ref(), self.warm_up)?;
        generator.idle(SETTLE)?;
        let before = site.watched.read();
        let seconds = generator.traffic(fanout.pace, publisher.as_ref(), self.duration)?;
        let mut row = Row::new(name, "delivery", generator.sockets());
        let deliveries = generator.tally.deliveries as f64;
        row.cost(&before.until(&site.watched.read()), deliveries);
        row.per_second = Some(deliveries / seconds);
        row.deliveries(&mut generator.tally);
        Ok(row)
    }

    pub(crate) fn storm(&self, name: &'static str) -> Result<Vec<Row>> {
        let Some(site) = self.site(1)? else { return Ok(Vec::new()) };
        // One of each room stays and writes.
        let rooms = (self.crowd / 100).max(1);
        let room_size = self.crowd / rooms;
        let mut generator = self.generator(&site, rooms * (room_size + 1), room_size + 1, true)?;
        generator.open(OPENING)?;
        // The first message is the position that everybody comes back with.
        generator.step(1, room_size + 1)?;
        generator.close(rooms);
        generator.step(MISSED, 1)?;
        generator.idle(SETTLE * 2)?;
        let before = site.watched.read();
        let mut opened = generator.open(usize::MAX)?;
        let back = opened.latencies.len();
        let used = before.until(&site.watched.read());
        generator.idle(SETTLE)?;
        let mut row = Row::new(name, "resume", back);
        row.cost(&used, back as f64);
        row.per_second = Some(back as f64 / opened.seconds);
        row.deliveries(&mut generator.tally);
        row.latencies(&mut opened.latencies);
        row.notes.push(format!("{:.2} s for all, {} refused", opened.seconds, opened.refused));
        row.notes.extend((generator.not_resumed > 0).then(|| format!("{} answered false", generator.not_resumed)));
        Ok(vec![row])
    }

    /// The same load first alone, then with a neighbour, on one node with its default limits.
    pub(crate) fn beside(&self, name: &'static str, neighbour: Neighbour) -> Result<Vec<Row>> {
        let Place::Own { gateway, database } = &self.place else { return Ok(Vec::new()) };
        let site = Site::start(gateway, &[], 1, Limits::Default, *database)?;
        let mut generator = self.generator(&site, self.members, QUIET.room_size, false)?;
        generator.open(OPENING)?;
        let alone = self.traffic(name, &site, &mut generator, QUIET)?;
        let mut row = with(neighbour, &site, || self.traffic(name, &site, &mut generator, QUIET))?;
        row.notes.push(format!("p99 alone {:.2} ms", alone.p99_ms.unwrap_or(0.0)));
        let node = site.own.as_ref().and_then(|own| own.nodes.first()).context("a node")?;
        for code in ["4008", "1008"] {
            let closed = node.metric(&format!("gateway_connections_closed_total{{code=\"{code}\"}}"))?;
            row.notes.extend((closed > 0.0).then(|| format!("neighbour closed {closed} times with {code}")));
        }
        Ok(vec![row])
    }

    /// Events that need no database, beside a user who writes while it stands still.
    pub(crate) fn stall(&self, name: &'static str) -> Result<Vec<Row>> {
        let Place::Own { gateway, .. } = &self.place else { return Ok(Vec::new()) };
        if !on_path("initdb") && !Path::new("/usr/lib/postgresql").is_dir() {
            eprintln!("{name}: left out, PostgreSQL is missing");
            return Ok(Vec::new());
        }
        let live = Fanout { stored: false, ..QUIET };
        let mut site = Site::start(gateway, &[], 1, Limits::Default, Database::Postgres)?;
        let mut postgres = site.own.as_mut().and_then(|own| own.postgres.take()).context("a PostgreSQL")?;
        let mut generator = self.generator(&site, self.members, live.room_size, false)?;
        generator.open(OPENING)?;
        let alone = self.traffic(name, &site, &mut generator, live)?;
        let mut row = with(Neighbour::Writer(20), &site, || {
            // The writer is in before the database stops.
            generator.idle(SETTLE)?;
            postgres.pause();
            self.traffic(name, &site, &mut generator, live)
        })?;
        row.notes.push(format!("p99 alone {:.2} ms", alone.p99_ms.unwrap_or(0.0)));
        Ok(vec![row])
    }

    fn generator(&self, site: &Site, sockets: usize, room_size: usize, resume: bool) -> Result<Generator> {
        // With fewer sockets than a room wants there is one room.
        let room_size = room_size.min(sockets);
        let (addresses, secret, cookies) = (&site.addresses, &site.secret, &self.cookies);
        Generator::new(&Crowd { addresses, secret, cookies, sockets, room_size, resume })
    }

    /// Nothing where so many nodes cannot be had.
    fn site(&self, nodes: usize) -> Result<Option<Rc<Site>>> {
        Ok(match &self.place {
            Place::Own { gateway, database } => {
                Some(Rc::new(Site::start(gateway, &[], nodes, Limits::Off, *database)?))
            }
            Place::Theirs(site) => (site.addresses.len() >= nodes).then(|| Rc::clone(site)),
        })
    }
}

/// Does something while a neighbour is there.
fn with<T>(neighbour: Neighbour, site: &Site, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    let address = *site.addresses.first().context("a node")?;
    let redis_url = site.redis_url.as_deref().context("a Redis")?;
    let (stop, secret) = (&stop, site.secret.as_str());
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || neighbour.run(address, secret, redis_url, stop));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        match thread.join() {
            Ok(neighbour) => neighbour.context("the neighbour")?,
            Err(_) => anyhow::bail!("the neighbour panicked"),
        }
        result
    })
}

/// KiB of memory per socket.
fn kib_each(before: u64, after: u64, sockets: usize) -> Option<f64> {
    (after > 0 && sockets > 0).then(|| (after as f64 - before as f64) / sockets as f64)
}
