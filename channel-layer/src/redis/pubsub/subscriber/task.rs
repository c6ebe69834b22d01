//! The task: connects, restores, reads, obeys; for ever.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use redis::PushInfo;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Order,
    hearing::Taken,
    link::{Event, Link},
    links::Links,
    map::Mapper,
    probe::Verdict,
    registry::{Changes, Registry, Topic},
    session::{Heard, Kind},
    subscription::Answers,
};
use crate::{BoxError, redis::pubsub::publishers::Publishers, stats::Counters};

/// How often deadlines and the connections' health are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How often, at most, undecodable payloads are logged.
const WARN_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Task {
    pub(super) links: Links,
    pub(super) registry: Registry,
    /// For a cluster.
    pub(super) mapper: Option<Mapper>,
    pub(super) prefix: String,
    pub(super) probe_every: Duration,
    pub(super) publishers: Arc<Publishers>,
    pub(super) counters: Arc<Counters>,
    pub(super) ready: watch::Sender<bool>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) relay_gone: Arc<Notify>,
    /// When undecodable payloads were logged last.
    pub(super) warned: Option<Instant>,
}

impl Task {
    /// Ends when nobody can give orders any more.
    pub(super) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                (at, event) = poll_fn(|cx| self.links.poll(cx)) => match event {
                    Event::Opened => self.opened(at),
                    Event::Pushed(pushed) => self.pushed(at, pushed),
                    Event::Answered(answers) => self.answered(at, answers),
                    Event::Lost(error) => self.lost(at, &error),
                },
                order = self.orders.recv(), if !self.links.are_congested() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                () = poll_fn(|cx| poll_mapper(&mut self.mapper, cx)) => self.look_at_map(),
                () = self.relay_gone.notified() => self.end_dead_relays(),
                now = tick.tick() => self.tick(now),
            }
        }
    }

    // ---- connections ----

    /// Asks a new connection for everything that belongs to it.
    fn opened(&mut self, at: usize) {
        let router = self.links.router();
        let (subscribe, mut patterns) = self.registry.everything(|topic| router.link_of(topic) == Some(at));
        patterns.retain(|(_, pattern)| router.has_pattern(pattern, at));
        let (sharded, plain) =
            subscribe.into_iter().partition::<Vec<_>, _>(|topic| router.kind_of(topic) == Kind::Sharded);
        let Some(link) = self.links.get(at) else { return };
        link.subscribe_probe();
        let Some(session) = link.session() else { return };
        session.subscribe(Kind::Plain, &plain);
        session.subscribe(Kind::Sharded, &sharded);
        for (relay, pattern) in patterns {
            session.psubscribe(relay, &pattern);
        }
        session.mark_restored();
    }

    fn restored(&mut self, at: usize) {
        let Some(link) = self.links.get(at) else { return };
        if link.restored(Instant::now()) {
            tracing::info!(link = link.name, "subscriber connection to Redis restored");
            // Those of a cluster come and go with its nodes.
            if self.mapper.is_none() {
                self.counters.reconnected();
            }
        }
        self.settle();
    }

    /// Tells everybody when all is well.
    pub(super) fn settle(&mut self) {
        if !self.links.are_restored() || !self.is_placed() {
            return;
        }
        // Also if all was well before: a relay may have been opened while a new node was connected to.
        self.registry.restored();
        if self.ready.send_replace(true) {
            return;
        }
        if let Some(mapper) = &mut self.mapper
            && mapper.is_back()
        {
            self.counters.reconnected();
        }
    }

    fn lost(&mut self, at: usize, error: &BoxError) {
        let Some(link) = self.links.get(at) else { return };
        tracing::warn!(link = link.name, %error, "subscriber connection to Redis lost");
        link.lose();
        self.ready.send_replace(false);
        let router = self.links.router();
        self.registry.disconnected(|topic| router.link_of(topic) == Some(at));
        if let Some(mapper) = &mut self.mapper {
            mapper.ask();
        }
    }

    fn tick(&mut self, now: Instant) {
        let changes = self.registry.expire(now);
        self.apply(changes);
        // Also those whose opener gave up before it had a handle to drop.
        self.end_dead_relays();
        for at in 0..self.links.count() {
            let health = self.links.get(at).map_or(Ok(()), |link| link.check(now));
            match health {
                Ok(()) => self.probe(at, now),
                Err(error) => self.lost(at, &error),
            }
        }
        let settled = *self.ready.borrow();
        if let Some(mapper) = &mut self.mapper
            && (mapper.tick(now, settled) || !settled)
        {
            self.look_at_map();
        }
    }

    fn probe(&mut self, at: usize, now: Instant) {
        let Some(link) = self.links.get(at).filter(|link| link.is_restored()) else { return };
        let verdict = link.probe.look(now);
        match verdict {
            Verdict::Early => return,
            Verdict::Heard => {}
            Verdict::Missed | Verdict::Deaf => {
                let missed = self.counters.probe_missed();
                tracing::warn!(link = link.name, missed, "a probe published to Redis was not heard");
            }
        }
        if verdict == Verdict::Deaf {
            // Either of the two may be connected to the wrong server.
            link.distrust();
            self.publishers.renew(at, &link.probe.topic);
            self.lost(at, &"its subscriptions are deaf: two probes in a row were not heard".into());
            return;
        }
        // A publisher without a connection says nothing about the subscription.
        if self.publishers.probe(at, &link.probe.topic) {
            link.probe.sent();
        }
    }

    fn end_dead_relays(&mut self) {
        let (changes, patterns) = self.registry.close_dead_relays();
        self.apply(changes);
        for pattern in patterns {
            self.links.with_pattern(&pattern).for_each(|session| session.punsubscribe(&pattern));
        }
    }

    // ---- reading ----

    /// Takes in everything that has been published, then hands over what it was.
    fn pushed(&mut self, at: usize, pushed: Vec<PushInfo>) {
        let mut result = Ok(());
        for push in pushed {
            let Some(session) = self.links.get(at).and_then(Link::session) else { break };
            let heard = session.hear(push);
            result = self.hear(at, heard);
            if result.is_err() {
                break;
            }
        }
        self.registry.deliver();
        if let Err(error) = result {
            self.lost(at, &error);
        }
    }

    /// Takes in what the answers to everything that was asked last mean.
    fn answered(&mut self, at: usize, answers: Answers) {
        let Some(session) = self.links.get(at).and_then(Link::session) else { return };
        let result = match session.answered(answers) {
            Ok(heard) => heard.into_iter().try_for_each(|heard| self.hear(at, heard)),
            Err(broken) => Err(broken.into()),
        };
        self.registry.deliver();
        if let Err(error) = result {
            self.lost(at, &error);
        }
    }

    fn hear(&mut self, at: usize, heard: Heard) -> Result<(), BoxError> {
        match heard {
            Heard::Message { topic, .. } if !self.links.router().takes(&topic, at) => {}
            Heard::Message { topic, payload } => match self.registry.message(&topic, &payload) {
                Taken::Yes => {}
                Taken::Undecodable => self.undecodable(&topic, &payload),
                Taken::Unknown => {
                    if let Some(link) = self.links.get(at) {
                        link.probe.heard(&topic);
                    }
                }
            },
            Heard::PatternMessage { pattern, topic, payload } => {
                let taken = self.links.router().takes_matched(&pattern, &topic, at);
                if taken && !self.registry.pattern_message(&topic, &payload) {
                    self.undecodable(&topic, &payload);
                }
            }
            Heard::Confirmed(topic) if !self.links.router().takes(&topic, at) => {}
            Heard::Confirmed(topic) => {
                let changes = self.registry.confirmed(&topic);
                self.apply(changes);
            }
            Heard::RelayConfirmed(id) => self.registry.relay_confirmed(id),
            Heard::Restored => self.restored(at),
            Heard::Refused { topic, why } => self.refused(at, &topic, &why)?,
            Heard::Moved(topic) if self.has_moved(at, &topic) => {}
            Heard::Moved(_) => return Err("the server has ended a subscription".into()),
            Heard::Nothing => {}
        }
        Ok(())
    }

    fn refused(&mut self, at: usize, topic: &Topic, why: &str) -> Result<(), BoxError> {
        if self.is_misplaced(topic, why) {
            return Ok(());
        }
        let (deaf, changes) = self.registry.refused(topic, why);
        self.apply(changes);
        if deaf {
            // Starting anew, and telling the relays, is better than being deaf to it.
            return Err(format!("a subscription was refused: {why}").into());
        }
        if let Some(link) = self.links.get(at).filter(|link| link.probe.topic == *topic) {
            tracing::warn!(link = link.name, why, "the probe's topic was refused: deaf subscriptions go unnoticed");
            link.probe.allow(false);
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

    // ---- orders ----

    fn apply(&mut self, changes: Changes) {
        self.notice_homeless(&changes);
        self.links.apply(changes);
    }

    fn obey(&mut self, order: Order) {
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
                let connected = self.links.are_up();
                let (id, pattern) = self.registry.open_relay(relay, connected, reply);
                let sessions = self.links.with_pattern(&pattern);
                let asked = sessions.map(|session| session.psubscribe(id, &pattern)).count();
                self.registry.relay_asked(id, asked);
                return;
            }
        };
        self.apply(changes);
    }
}

fn poll_mapper(mapper: &mut Option<Mapper>, cx: &mut Context<'_>) -> Poll<()> {
    mapper.as_mut().map_or(Poll::Pending, |mapper| mapper.poll(cx))
}
