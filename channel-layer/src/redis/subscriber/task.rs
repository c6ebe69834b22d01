//! The task: connects, restores, reads, obeys; for ever.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep},
};

use super::{
    Order,
    registry::{Changes, Registry},
    session::{Heard, Session},
};
use crate::{
    BoxError,
    redis::{
        backoff::Backoff,
        connection::{Connection, Target, fill},
        wire,
    },
    stats::Counters,
};

/// How often deadlines and the connection's health are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long the connection may be silent before a PING asks whether anybody is there.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the answer may take.
const PONG: Duration = Duration::from_secs(2);
/// How often, at most, undecodable payloads are logged.
const WARN_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Task {
    target: Target,
    registry: Registry,
    counters: Arc<Counters>,
    ready: watch::Sender<bool>,
    orders: mpsc::Receiver<Order>,
    relay_gone: Arc<Notify>,
    tick: Interval,
    backoff: Backoff,
    warned: Option<Instant>,
    /// Whether the last connection got as far as having every subscription in place.
    restored: bool,
}

/// Nobody can give orders any more.
struct Closed;

impl Task {
    pub(super) fn new(
        target: Target,
        registry: Registry,
        counters: Arc<Counters>,
        ready: watch::Sender<bool>,
        orders: mpsc::Receiver<Order>,
        relay_gone: Arc<Notify>,
    ) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let backoff = Backoff::default();
        Self { target, registry, counters, ready, orders, relay_gone, tick, backoff, warned: None, restored: true }
    }

    pub(super) async fn run(mut self) {
        let mut first = true;
        while let Ok(connection) = self.connect().await {
            let result = self.serve(connection, first).await;
            self.ready.send_replace(false);
            self.registry.disconnected();
            match result {
                Ok(Closed) => return,
                Err(error) => tracing::warn!(%error, "subscriber connection to Redis lost"),
            }
            first &= !self.restored;
        }
    }

    /// Tries for ever, obeying orders meanwhile.
    async fn connect(&mut self) -> Result<Connection, Closed> {
        let mut failures = 0_u32;
        // At once after a connection that worked; one that was refused something must not be made anew
        // as fast as the network allows.
        let mut pause = match std::mem::take(&mut self.restored) {
            true => Duration::ZERO,
            false => self.backoff.next_pause(),
        };
        loop {
            let target = self.target.clone();
            let attempt = async move {
                sleep(pause).await;
                target.open("channel-layer:subscribe").await
            };
            tokio::pin!(attempt);
            let result = loop {
                tokio::select! {
                    result = &mut attempt => break result,
                    order = self.orders.recv() => self.obey(order.ok_or(Closed)?, None),
                    () = self.relay_gone.notified() => drop(self.registry.close_dead_relays()),
                    now = self.tick.tick() => {
                        drop(self.registry.expire(now));
                        drop(self.registry.close_dead_relays());
                    }
                }
            };
            let error = match result {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            match failures {
                0 => tracing::warn!(%error, "Redis is away"),
                _ => tracing::debug!(%error, "Redis is still away"),
            }
            failures += 1;
            pause = self.backoff.pause_after(&error);
        }
    }

    async fn serve(&mut self, connection: Connection, first: bool) -> Result<Closed, BoxError> {
        let Connection { stream, mut buffer } = connection;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut session = Session::default();
        let (subscribe, patterns) = self.registry.everything();
        session.apply(Changes { subscribe, unsubscribe: Vec::new() });
        for (relay, pattern) in patterns {
            session.psubscribe(relay, &pattern);
        }
        session.mark_restored();

        let mut heard = Instant::now();
        let mut pinged: Option<Instant> = None;
        loop {
            tokio::select! {
                read = fill(&mut reader, &mut buffer) => {
                    read?;
                    heard = Instant::now();
                    pinged = None;
                    self.read(&mut session, &mut buffer, first)?;
                }
                written = session.write(&mut writer), if session.has_output() => written?,
                order = self.orders.recv(), if !session.is_congested() => match order {
                    Some(order) => self.obey(order, Some(&mut session)),
                    None => return Ok(Closed),
                },
                () = self.relay_gone.notified() => self.end_dead_relays(&mut session),
                now = self.tick.tick() => {
                    session.apply(self.registry.expire(now));
                    // Also those whose opener gave up before it had a handle to drop.
                    self.end_dead_relays(&mut session);
                    match pinged {
                        // Nothing else notices a server that hangs or a line that is cut.
                        Some(at) if now.duration_since(at) > PONG => {
                            return Err("no answer to a PING within 2 seconds".into());
                        }
                        None if now.duration_since(heard) > SILENCE => {
                            session.ping();
                            pinged = Some(now);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn end_dead_relays(&mut self, session: &mut Session) {
        let (changes, patterns) = self.registry.close_dead_relays();
        session.apply(changes);
        patterns.iter().for_each(|pattern| session.punsubscribe(pattern));
    }

    /// Takes every complete message out of the buffer, then hands over what they were.
    fn read(&mut self, session: &mut Session, buffer: &mut BytesMut, first: bool) -> Result<(), BoxError> {
        let mut at = 0;
        let mut result = Ok(());
        while let Some(rest) = buffer.get(at..).filter(|rest| !rest.is_empty()) {
            match wire::parse(rest) {
                Ok(Some((reply, length))) => {
                    at += length;
                    let heard = session.hear(reply).map_err(BoxError::from);
                    if let Err(error) = heard.and_then(|it| self.heard(it, session, first)) {
                        result = Err(error);
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
        }
        buffer.advance(at);
        self.registry.deliver();
        result
    }

    fn heard(&mut self, heard: Heard<'_>, session: &mut Session, first: bool) -> Result<(), BoxError> {
        match heard {
            Heard::Message { topic, payload } => {
                if !self.registry.message(topic, payload) {
                    self.undecodable(topic, payload);
                }
            }
            Heard::PatternMessage { topic, payload } => {
                if !self.registry.pattern_message(topic, payload) {
                    self.undecodable(topic, payload);
                }
            }
            Heard::Confirmed(topic) => session.apply(self.registry.confirmed(&topic)),
            Heard::RelayConfirmed(id) => self.registry.relay_confirmed(id),
            Heard::Restored => {
                self.backoff.reset();
                self.restored = true;
                if !first {
                    self.counters.reconnected();
                    tracing::info!("subscriber connection to Redis restored");
                }
                self.registry.restored();
                self.ready.send_replace(true);
            }
            Heard::Refused { topics, why } => {
                for topic in topics {
                    let (deaf, changes) = self.registry.refused(&topic, &why);
                    session.apply(changes);
                    if deaf {
                        // Starting anew, and telling the relays, is better than being deaf to it.
                        return Err(format!("a subscription was refused: {why}").into());
                    }
                }
            }
            Heard::Nothing => {}
        }
        Ok(())
    }

    /// Counts a payload nobody can read; logs its size and topic, never its content, now and then.
    fn undecodable(&mut self, topic: &[u8], payload: &[u8]) {
        let total = self.counters.undecodable();
        let now = Instant::now();
        if self.warned.is_none_or(|at| now.duration_since(at) >= WARN_EVERY) {
            self.warned = Some(now);
            let topic = String::from_utf8_lossy(topic);
            tracing::warn!(%topic, bytes = payload.len(), total, "undecodable payload skipped");
        }
    }

    fn obey(&mut self, order: Order, session: Option<&mut Session>) {
        let changes = match order {
            Order::Join { member, groups, reply } => self.registry.join(member, groups, reply),
            Order::OpenChannel { name, only, reply } => self.registry.open_channel(name, only, reply),
            Order::Leave { member, groups, reply } => {
                let changes = self.registry.leave(&member, &groups);
                let _ = reply.send(Ok(()));
                changes
            }
            Order::CloseChannel { name, reply } => {
                let changes = self.registry.close_channel(&name);
                let _ = reply.send(Ok(()));
                changes
            }
            Order::Flush { reply } => {
                let changes = self.registry.flush();
                let _ = reply.send(Ok(()));
                changes
            }
            Order::OpenRelay { relay, reply } => {
                let (id, pattern) = self.registry.open_relay(relay, session.is_some(), reply);
                if let Some(session) = session {
                    session.psubscribe(id, &pattern);
                }
                return;
            }
        };
        // Without a connection there is nothing to tell: the next one subscribes to everything.
        if let Some(session) = session {
            session.apply(changes);
        }
    }
}
