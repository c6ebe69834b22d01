//! Subscribing: one task owns the connections and everything that depends on them, so that joins and
//! leaves happen one after another and what Redis knows always follows what we want.

mod cluster;
mod hearing;
mod link;
mod links;
mod map;
mod members;
mod probe;
mod registry;
mod route;
mod session;
mod subscription;
mod task;
mod waiting;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::{
    link::Link, links::Links, map::Mapper, probe::Probe, registry::Registry, route::Router, session::Kind, task::Task,
};

use super::{publishers::Publishers, topic};
use crate::{
    ChannelName, GroupName, LayerError, RelaySink,
    codec::Codec,
    name,
    redis::{
        inbox::Inbox,
        topology::{Target, Topology},
    },
    stats::Counters,
};

/// How many orders may wait for the task.
const ORDERS: usize = 1_024;
/// How long a join may wait for Redis.
const JOIN: Duration = Duration::from_secs(5);

type Reply<T> = oneshot::Sender<Result<T, LayerError>>;
/// The local channels; the task writes, everybody reads.
type Directory = Arc<Mutex<HashMap<ChannelName, Arc<Inbox>>>>;

/// Who is in a group, as far as this process knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Member {
    Relay(u64),
    Channel(ChannelName),
}

/// What the task can be told.
enum Order {
    Join {
        member: Member,
        groups: Vec<GroupName>,
        reply: Reply<()>,
    },
    Leave {
        member: Member,
        groups: Vec<GroupName>,
        reply: Reply<()>,
    },
    /// `only` if nobody else can know the name.
    OpenChannel {
        name: ChannelName,
        only: bool,
        reply: Reply<()>,
    },
    CloseChannel {
        name: ChannelName,
        reply: Reply<()>,
    },
    OpenRelay {
        relay: NewRelay,
        reply: Reply<u64>,
    },
    Flush {
        reply: Reply<()>,
    },
}

/// A relay to be opened. It ends when nobody holds `alive` any more.
pub(super) struct NewRelay {
    pub(super) sink: Arc<dyn RelaySink>,
    /// What its channel names begin with; 16 hex digits follow.
    pub(super) prefix: String,
    pub(super) alive: Weak<()>,
}

/// The handle on the task.
pub(super) struct Subscriber {
    orders: mpsc::Sender<Order>,
    directory: Directory,
    ready: watch::Receiver<bool>,
    /// Told when a relay's handle is gone.
    pub(super) relay_gone: Arc<Notify>,
}

impl Subscriber {
    /// The handle, and the task to run for it.
    pub(super) fn new(
        topology: &Topology,
        prefix: &str,
        codec: Codec,
        probe_every: Duration,
        publishers: Arc<Publishers>,
        counters: Arc<Counters>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let (ready_sender, ready) = watch::channel(false);
        let directory = Directory::default();
        let relay_gone = Arc::new(Notify::new());
        let (links, mapper) = match topology {
            Topology::Shards(targets) => (shards(targets, prefix, probe_every), None),
            Topology::Cluster(cluster) => {
                (Links::new(Vec::new(), Router::cluster(prefix)), Some(Mapper::new(cluster.clone())))
            }
        };
        let registry = Registry::new(prefix.to_owned(), directory.clone(), codec, counters.clone());
        let task = Task {
            links,
            registry,
            mapper,
            prefix: prefix.to_owned(),
            probe_every,
            publishers,
            counters,
            ready: ready_sender,
            orders: receiver,
            relay_gone: relay_gone.clone(),
            warned: None,
        };
        (Self { orders, directory, ready, relay_gone }, task.run())
    }

    /// Whether every subscription is in place.
    pub(super) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Returns when every subscription is in place.
    pub(super) async fn ready(&self) -> Result<(), LayerError> {
        let mut ready = self.ready.clone();
        ready.wait_for(|ready| *ready).await.map(|_| ()).map_err(|_| LayerError::Closed)
    }

    /// A channel of this process.
    pub(super) fn local(&self, name: &ChannelName) -> Option<Arc<Inbox>> {
        self.directory.lock().get(name).cloned()
    }

    pub(super) async fn join(&self, member: Member, groups: Vec<GroupName>) -> Result<(), LayerError> {
        self.order(|reply| Order::Join { member, groups, reply }).await
    }

    pub(super) async fn leave(&self, member: Member, groups: Vec<GroupName>) -> Result<(), LayerError> {
        self.order(|reply| Order::Leave { member, groups, reply }).await
    }

    /// Opens a channel; `only` if nobody else can know the name, so that it ends with a caller who
    /// has stopped waiting.
    pub(super) async fn open_channel(&self, name: ChannelName, only: bool) -> Result<(), LayerError> {
        self.order(|reply| Order::OpenChannel { name, only, reply }).await
    }

    pub(super) async fn close_channel(&self, name: ChannelName) -> Result<(), LayerError> {
        self.order(|reply| Order::CloseChannel { name, reply }).await
    }

    pub(super) async fn open_relay(&self, relay: NewRelay) -> Result<u64, LayerError> {
        self.order(|reply| Order::OpenRelay { relay, reply }).await
    }

    pub(super) async fn flush(&self) -> Result<(), LayerError> {
        self.order(|reply| Order::Flush { reply }).await
    }

    async fn order<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, LayerError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.orders.send(order(reply)).await.map_err(|_| LayerError::Closed)?;
            answer.await.map_err(|_| LayerError::Closed)?
        };
        // The task keeps the deadline of a join; this one is for a task that does not come to it.
        match tokio::time::timeout(JOIN + Duration::from_secs(1), exchange).await {
            Ok(result) => result,
            Err(_late) => Err(LayerError::Timeout),
        }
    }
}

fn shards(targets: &[Target], prefix: &str, probe_every: Duration) -> Links {
    let links = targets.iter().enumerate().map(|(at, target)| {
        let own = format!("{}{}", topic::channel_prefix(prefix, ""), name::random_hex32());
        let probe = Probe::new(own.into_bytes().into(), Kind::Plain, probe_every);
        Link::new(format!("host {} of {}", at + 1, targets.len()), target.clone(), probe)
    });
    Links::new(links.collect(), Router::Shards(targets.len()))
}
