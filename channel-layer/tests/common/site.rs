//! A relay on a layer, and what it has heard.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{sync::Arc, time::Duration};

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, RedisPubSubLayer, Relay, RelaySink};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

struct Collector(mpsc::Sender<Delivery>);

impl RelaySink for Collector {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        for delivery in batch.drain(..) {
            let _ = self.0.try_send(delivery);
        }
    }
}

pub(crate) struct Site {
    pub(crate) layer: Arc<dyn ChannelLayer>,
    pub(crate) relay: Relay,
    pub(crate) deliveries: mpsc::Receiver<Delivery>,
    pub(crate) group: GroupName,
    /// How often the relay was told of a loss, and of a return.
    pub(crate) downs: usize,
    pub(crate) ups: usize,
}

impl Site {
    /// A relay of the layer, in the groups; sends go to the first of them.
    pub(crate) async fn new(layer: impl ChannelLayer, groups: &[&str]) -> Self {
        let (sender, deliveries) = mpsc::channel(10_000);
        let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
        let groups: Vec<GroupName> = groups.iter().map(|name| GroupName::parse(name).unwrap()).collect();
        relay.join(&groups).await.unwrap();
        Self { layer: Arc::new(layer), relay, deliveries, group: groups[0].clone(), downs: 0, ups: 0 }
    }

    /// A relay of a layer that is not connected yet; in no group so far.
    pub(crate) async fn new_later(layer: impl ChannelLayer) -> Self {
        let (sender, deliveries) = mpsc::channel(10_000);
        let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
        let group = GroupName::parse("room").unwrap();
        Self { layer: Arc::new(layer), relay, deliveries, group, downs: 0, ups: 0 }
    }

    /// A relay of a pub/sub layer.
    pub(crate) async fn start(url: &str) -> Self {
        Self::new(RedisPubSubLayer::connect(url).await.unwrap(), &["room"]).await
    }

    /// Waits for the event with this mark.
    pub(crate) async fn hears(&mut self, wanted: &str) {
        let what = format!("the event {wanted}");
        self.until(
            &what,
            |_, last| matches!(last, Some(Delivery::Group { event, .. }) if event.text("mark") == Some(wanted)),
        )
        .await;
    }

    /// Waits for the loss of a connection to have been told as often as this.
    pub(crate) async fn is_down(&mut self, times: usize) {
        self.until("the loss is told", |site, _| site.downs >= times).await;
        assert_eq!(self.downs, times, "told once");
    }

    /// Waits for the return of all subscriptions to have been told as often as this.
    pub(crate) async fn is_up(&mut self, times: usize) {
        self.until("the return is told", |site, _| site.ups >= times).await;
        assert_eq!(self.ups, times, "told once");
    }

    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self, Option<&Delivery>) -> bool) {
        let mut last = None;
        let found = async {
            while !done(self, last.as_ref()) {
                last = self.deliveries.recv().await;
                match &last {
                    Some(Delivery::Disconnected) => self.downs += 1,
                    Some(Delivery::Reconnected(_)) => self.ups += 1,
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in time: {what}"));
    }

    /// An event sent now arrives; for a while sending may fail.
    pub(crate) async fn works(&mut self) {
        let mark = format!("{:?}", Instant::now());
        let event = Event::new("test.event").with("mark", mark.as_str());
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.layer.group_send(&self.group, &event).await {
            assert!(Instant::now() < deadline, "{error}");
            self.listen().await;
        }
        self.hears(&mark).await;
    }

    /// Events arrive sooner or later; those of a first while may be lost.
    pub(crate) async fn works_again(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for n in 0.. {
            let mark = format!("again {n} {:?}", Instant::now());
            let event = Event::new("test.event").with("mark", mark.as_str());
            let sent = self.layer.group_send(&self.group, &event).await;
            match sent.is_ok() {
                true if timeout(Duration::from_millis(300), self.hears(&mark)).await.is_ok() => return,
                true => {}
                false => self.listen().await,
            }
            assert!(Instant::now() < deadline, "nothing arrives any more: {sent:?}");
        }
    }

    /// The layer answers sooner or later: everything is connected.
    pub(crate) async fn answers(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.layer.ping().await {
            assert!(Instant::now() < deadline, "{error}");
            self.listen().await;
        }
    }

    /// Takes what comes for a moment, so that the layer can go on between two attempts.
    async fn listen(&mut self) {
        let _ = timeout(Duration::from_millis(20), self.until("", |_, _| false)).await;
    }
}
