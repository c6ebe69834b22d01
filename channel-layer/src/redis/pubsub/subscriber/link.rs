//! One connection of the subscriber: made, watched, and made again for ever.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use redis::PushInfo;
use tokio::time::{Instant, sleep};

use super::{
    probe::Probe,
    registry::Topic,
    session::Session,
    subscription::{Answers, Came, Subscription},
};
use crate::{
    BoxError,
    redis::{backoff::Backoff, topology::Target, trust::Trust},
};

/// How long the connection may be silent before a PING asks whether anybody is there.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the answer may take.
const PONG: Duration = Duration::from_secs(2);
/// How long nothing may have been heard for others to wait until it takes what it is told.
const STALLED: Duration = Duration::from_secs(1);

pub(super) struct Link {
    /// For the log; holds no password.
    pub(super) name: String,
    target: Target,
    state: State,
    backoff: Backoff,
    failures: u32,
    /// Whether this connection, or the last one, got as far as having every subscription in place.
    restored: bool,
    /// Whether any did.
    ever_restored: bool,
    /// Whether this connection has yet to get there for the first time.
    fresh: bool,
    pub(super) probe: Probe,
}

enum State {
    /// Nothing belongs to it.
    Idle,
    Opening(Attempt),
    Up(Box<Up>),
}

type Attempt = Pin<Box<dyn Future<Output = Result<(Subscription, Trust), BoxError>> + Send>>;

pub(super) struct Up {
    subscription: Subscription,
    pub(super) session: Session,
    heard: Instant,
    /// When what is under way was asked.
    asked: Instant,
    /// Whether it takes nothing of the much that waits for it.
    stalled: bool,
    trust: Trust,
    /// Ends when the trust is lost.
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What happened on a link.
pub(super) enum Event {
    /// There is a connection; nothing has been asked on it yet.
    Opened,
    Pushed(Vec<PushInfo>),
    /// To everything that was under way.
    Answered(Answers),
    Lost(BoxError),
}

impl Link {
    /// Begins to connect.
    pub(super) fn new(name: String, target: Target, probe: Probe) -> Self {
        let state = State::Opening(attempt(&target, Duration::ZERO));
        Self {
            name,
            target,
            state,
            backoff: Backoff::default(),
            failures: 0,
            restored: false,
            ever_restored: false,
            fresh: true,
            probe,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            let attempt = match &mut self.state {
                State::Idle => return Poll::Pending,
                State::Up(up) => return up.poll(cx),
                State::Opening(attempt) => attempt,
            };
            match ready!(attempt.as_mut().poll(cx)) {
                Ok((subscription, trust)) => {
                    self.failures = 0;
                    self.restored = false;
                    self.fresh = true;
                    self.state = State::Up(Box::new(Up::new(subscription, trust)));
                    return Poll::Ready(Event::Opened);
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    fn failed(&mut self, error: &BoxError) {
        let link = &self.name;
        match self.failures {
            0 => tracing::warn!(%link, %error, "Redis is away"),
            _ => tracing::debug!(%link, %error, "Redis is still away"),
        }
        self.failures += 1;
        self.state = State::Opening(attempt(&self.target, self.backoff.pause_after(error)));
    }

    /// Throws the connection away and begins to make a new one.
    pub(super) fn lose(&mut self) {
        // At once after a connection that worked; one that was refused something must not be made anew
        // as fast as the network allows.
        let pause = match std::mem::take(&mut self.restored) {
            true => Duration::ZERO,
            false => self.backoff.next_pause(),
        };
        self.state = State::Opening(attempt(&self.target, pause));
    }

    pub(super) fn up(&mut self) -> Option<&mut Up> {
        match &mut self.state {
            State::Up(up) => Some(up),
            State::Idle | State::Opening(_) => None,
        }
    }

    /// Its server does not hear what is published, or hears what nobody else does.
    pub(super) fn distrust(&mut self) {
        if let State::Up(up) = &self.state {
            up.trust.lose();
        }
    }

    pub(super) fn session(&mut self) -> Option<&mut Session> {
        self.up().map(|up| &mut up.session)
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether every subscription is in place.
    pub(super) fn is_restored(&self) -> bool {
        self.restored && self.is_up()
    }

    /// Ends the connection, because nothing belongs to it any more.
    pub(super) fn rest(&mut self) {
        self.state = State::Idle;
        self.restored = false;
    }

    /// Begins to connect again, if it was at rest.
    pub(super) fn wake(&mut self) {
        if self.is_idle() {
            self.failures = 0;
            self.state = State::Opening(attempt(&self.target, Duration::ZERO));
        }
    }

    /// Something was asked for that is to be in place before the link counts as restored.
    pub(super) fn await_again(&mut self) {
        if let State::Up(up) = &mut self.state {
            self.restored = false;
            up.session.mark_restored();
        }
    }

    /// Every subscription is in place; tells whether a lost connection was made good with it.
    pub(super) fn restored(&mut self, now: Instant) -> bool {
        self.restored = true;
        if !std::mem::take(&mut self.fresh) {
            return false;
        }
        self.backoff.reset();
        self.probe.rest(now);
        std::mem::replace(&mut self.ever_restored, true)
    }

    /// Whether it should be given time to take what waits for it. One that takes nothing at all is
    /// not waited for: that would delay the others.
    pub(super) fn is_congested(&self) -> bool {
        match &self.state {
            State::Up(up) => up.session.is_congested() && !up.stalled,
            State::Idle | State::Opening(_) => false,
        }
    }

    /// Looks after the connection's health; an error if it has none.
    pub(super) fn check(&mut self, now: Instant) -> Result<(), BoxError> {
        let Some(up) = self.up() else { return Ok(()) };
        if up.session.is_hopeless() {
            return Err("it does not read what it is told".into());
        }
        up.stalled = now.duration_since(up.heard) > STALLED;
        let silent = now.duration_since(up.heard);
        match up.subscription.is_asking() {
            // Nothing else notices a server that hangs or a line that is cut.
            true if silent > SILENCE + PONG && now.duration_since(up.asked) > PONG => {
                return Err("no answer to a PING within 2 seconds".into());
            }
            false if silent > SILENCE && up.session.is_silent() => up.session.ping(),
            _ => {}
        }
        Ok(())
    }

    /// Subscribes to the topic of the probe.
    pub(super) fn subscribe_probe(&mut self) {
        self.probe.allow(true);
        let (kind, topic) = (self.probe.kind, self.probe.topic.clone());
        if let Some(session) = self.session() {
            session.subscribe(kind, &[topic]);
        }
    }

    /// Probes with another topic from now on.
    pub(super) fn change_probe(&mut self, topic: Topic, now: Instant) {
        let kind = self.probe.kind;
        let old = std::mem::replace(&mut self.probe.topic, topic);
        if let Some(session) = self.session() {
            session.unsubscribe(kind, &[old]);
            self.subscribe_probe();
        }
        self.probe.rest(now);
    }
}

impl Up {
    fn new(subscription: Subscription, trust: Trust) -> Self {
        let (session, lost, now) = (Session::default(), Box::pin(trust.lost()), Instant::now());
        Self { subscription, session, heard: now, asked: now, stalled: false, trust, lost }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.lost.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Event::Lost("the server is no primary any more, or deaf".into()));
        }
        if !self.subscription.is_asking()
            && let Some(question) = self.session.take()
        {
            self.asked = Instant::now();
            self.subscription.ask(question);
        }
        let came = ready!(self.subscription.poll(cx));
        self.heard = Instant::now();
        Poll::Ready(match came {
            Came::Pushed(pushed) => Event::Pushed(pushed),
            Came::Answers(Ok(answers)) => Event::Answered(answers),
            Came::Answers(Err(error)) => Event::Lost(error.into()),
            Came::End => Event::Lost("the server closed the connection".into()),
        })
    }
}

fn attempt(target: &Target, pause: Duration) -> Attempt {
    let target = target.clone();
    Box::pin(async move {
        sleep(pause).await;
        let trust = target.trust();
        let stream = target.stream("channel-layer:subscribe").await?;
        Ok((Subscription::on(stream).await?, trust))
    })
}
