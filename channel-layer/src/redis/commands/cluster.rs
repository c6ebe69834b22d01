//! Commands for a Redis Cluster: one commander per primary, and a task that keeps them the right ones.
//!
//! Addresses, the map and redirections are in the types of the crate `redis`; its `ClusterConnection` cannot send the
//! commands yet (line numbers of 1.8.1, in `cluster_handling/async_connection`; `tests/redis_crate.rs` shows the first
//! two, and fails once they are gone):
//!
//! - A command whose answer is lost with the connection is sent again, up to 16 times. `retries(0)` ends that, and with
//!   it the following of `MOVED` (`request.rs`, lines 204 to 213 and 228 to 234). Here nothing is sent twice.
//! - While it asks for the map, it holds the lock that every command needs, and makes connections to all nodes
//!   meanwhile, so that one that hangs stops the commands to all others (`mod.rs`, lines 983 to 1051).
//!   [Issue 2092](https://github.com/redis-rs/redis-rs/issues/2092) has mended that where connections are made anew, not
//!   here.
//! - A command whose node is away goes to a random one, which refuses it, and so on until the attempts are used up
//!   ([issue 2277](https://github.com/redis-rs/redis-rs/issues/2277)); here it fails at once.
//! - Commands to one node run as tasks of their own, so their order is not that of the calls once one of them waits.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, Value};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    BoxError,
    redis::{
        commander::{Commander, Ending, Failure, Heard, Refusal},
        connection::Connection,
        refusal::ErrorClass,
        topology::{Cluster, Node, Redirection},
    },
    shard::{SLOTS, slot},
};

/// How often a command follows a key that moves on.
const HOPS: u8 = 5;
/// How often the map is asked for while all is well, and while it is not.
const CALM: Duration = Duration::from_secs(10);
const WORRIED: Duration = Duration::from_millis(250);

/// Commanders of all primaries.
#[derive(Clone)]
pub(in crate::redis) struct ClusterCommands(Arc<Inner>);

struct Inner {
    cluster: Arc<Cluster>,
    name: &'static str,
    nodes: RwLock<HashMap<Node, Commander>>,
    /// The commanders' tasks, which end with their commanders; aborted when this is dropped.
    tasks: Mutex<JoinSet<()>>,
    /// Odd while every slot has a connected node.
    connections: watch::Sender<u64>,
    /// Somebody has met a node that has not what the map says.
    doubt: Notify,
}

impl ClusterCommands {
    /// The commands and the task to run for them.
    pub(super) fn new(cluster: Arc<Cluster>, name: &'static str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let inner = Arc::new(Inner {
            cluster,
            name,
            nodes: RwLock::default(),
            tasks: Mutex::default(),
            connections: watch::Sender::new(0),
            doubt: Notify::new(),
        });
        (Self(inner.clone()), mind(Arc::downgrade(&inner)))
    }

    fn of(&self, key: &[u8]) -> Option<(Commander, Node)> {
        let node = self.0.cluster.node_of(slot(key))?;
        Some((self.0.nodes.read().get(&node)?.clone(), node))
    }

    pub(super) fn reaches(&self, key: &[u8]) -> bool {
        self.of(key).is_some_and(|(commander, _)| commander.is_connected())
    }

    pub(super) fn start_with(&self, key: &[u8], command: Cmd, ending: Option<Box<dyn Ending>>) -> Result<(), Refusal> {
        let Some((commander, node)) = self.of(key) else {
            self.0.doubt.notify_one();
            return Err((Failure::NotConnected, ending));
        };
        let follow = Follow { inner: Arc::downgrade(&self.0), node, command: command.clone(), ending, hops: HOPS };
        commander.start_with(command, Some(Box::new(follow)), Heard::AtOnce).map_err(|(failure, ending)| {
            self.0.doubt.notify_one();
            (failure, ending.and_then(|follow| follow.give_back()))
        })
    }

    pub(super) fn renew(&self, key: &[u8]) {
        self.0.doubt.notify_one();
        let node = self.0.cluster.node_of(slot(key));
        if let Some(commander) = node.and_then(|node| self.0.nodes.read().get(&node).cloned()) {
            commander.renew();
        }
    }

    pub(super) fn check_role(&self, key: &[u8]) {
        if let Some((commander, _)) = self.of(key) {
            commander.check_role();
        }
    }

    pub(super) fn servers(&self) -> Vec<Commander> {
        self.0.nodes.read().values().cloned().collect()
    }

    /// Opens a connection to the primary that has the key, as it is now.
    pub(super) async fn open(&self, key: &[u8], name: &str) -> Result<Connection, BoxError> {
        // Whoever opens a connection has lost one or been sent away: the map may be old.
        self.0.cluster.refresh().await?;
        let node = self.0.cluster.node_of(slot(key)).ok_or("a slot that nobody serves")?;
        self.0.cluster.target(&node).open(name).await
    }

    pub(super) fn connections(&self) -> watch::Receiver<u64> {
        self.0.connections.subscribe()
    }
}

impl Inner {
    /// The commander of a node, made if there is none yet.
    fn commander(&self, node: &Node) -> Commander {
        if let Some(commander) = self.nodes.read().get(node) {
            return commander.clone();
        }
        let mut nodes = self.nodes.write();
        let made = nodes.entry(node.clone()).or_insert_with(|| {
            let (commander, task) = Commander::new(self.cluster.target(node), self.name);
            let mut tasks = self.tasks.lock();
            // Those whose node has left.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
            commander
        });
        made.clone()
    }

    /// Makes the commanders those of the present primaries.
    fn follow_map(&self) -> Vec<Commander> {
        let primaries = self.cluster.nodes();
        self.nodes.write().retain(|node, _| primaries.contains(node));
        primaries.iter().map(|node| self.commander(node)).collect()
    }

    fn set_whole(&self, whole: bool) {
        self.connections.send_if_modified(|connections| {
            let changed = (*connections % 2 == 1) != whole;
            *connections += u64::from(changed);
            changed
        });
    }

    /// What was connected may be another server: who restores things must do it again.
    fn set_anew(&self) {
        self.connections.send_modify(|connections| *connections += 1 + *connections % 2);
    }
}

/// Keeps the commanders those of the primaries and notices when one is away.
async fn mind(inner: Weak<Inner>) {
    let mut connections: Vec<u64> = Vec::new();
    let mut nodes: Vec<Node> = Vec::new();
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let refreshed = inner.cluster.refresh().await;
        if let Err(error) = &refreshed {
            tracing::debug!(error = %error, "no map of the cluster");
        }
        let commanders = inner.follow_map();
        let covered = (0..SLOTS).all(|slot| inner.cluster.node_of(slot).is_some());
        let whole = covered && !commanders.is_empty() && commanders.iter().all(Commander::is_connected);
        let mut watches: Vec<_> = commanders.iter().map(Commander::connections).collect();
        let now: Vec<u64> = watches.iter_mut().map(|watch| *watch.borrow_and_update()).collect();
        let present = inner.cluster.nodes();
        match whole {
            true if now == connections && present == nodes => inner.set_whole(true),
            true => inner.set_anew(),
            false => inner.set_whole(false),
        }
        if whole {
            (connections, nodes) = (now, present);
        }
        let pause = if whole { CALM } else { WORRIED };
        let mut version = inner.cluster.version();
        version.mark_unchanged();
        let mut changes: FuturesUnordered<_> = watches.iter_mut().map(watch::Receiver::changed).collect();
        let news = async {
            tokio::select! {
                _ = changes.next(), if !changes.is_empty() => {}
                _ = version.changed() => {}
                () = inner.doubt.notified() => {}
            }
        };
        // The next round learns the rest.
        let _ = timeout(pause, news).await;
        drop(changes);
        drop(inner);
        // A storm of news is one.
        sleep(Duration::from_millis(5)).await;
    }
}

/// Follows a command that is sent on to another node.
struct Follow {
    inner: Weak<Inner>,
    node: Node,
    command: Cmd,
    ending: Option<Box<dyn Ending>>,
    hops: u8,
}

impl Ending for Follow {
    fn end(mut self: Box<Self>, result: Result<Value, Failure>) {
        let result = match (result, self.inner.upgrade()) {
            (Err(Failure::Refused(text)), Some(inner)) => match self.follow(&inner, &text) {
                Ok(()) => return,
                Err(failure) => Err(failure.unwrap_or(Failure::Refused(text))),
            },
            (Err(failure), Some(inner)) => {
                inner.doubt.notify_one();
                Err(failure)
            }
            (result, _) => result,
        };
        if let Some(ending) = self.ending.take() {
            ending.end(result);
        }
    }

    fn give_back(mut self: Box<Self>) -> Option<Box<dyn Ending>> {
        self.ending.take()
    }
}

impl Follow {
    /// Sends the command on, if that is what the refusal asks for. Nothing was done by whoever refused.
    fn follow(&mut self, inner: &Arc<Inner>, text: &str) -> Result<(), Option<Failure>> {
        match ErrorClass::of(text) {
            ErrorClass::Moved => {}
            ErrorClass::Failover => {
                inner.doubt.notify_one();
                return Err(None);
            }
            _ => return Err(None),
        }
        let Some(to) = Redirection::read(text, &self.node) else { return Err(None) };
        if !to.ask {
            inner.doubt.notify_one();
        }
        if self.hops == 0 {
            return Err(None);
        }
        let commander = inner.commander(&to.node);
        let next = Box::new(Follow {
            inner: Arc::downgrade(inner),
            node: to.node,
            command: self.command.clone(),
            ending: self.ending.take(),
            hops: self.hops - 1,
        });
        let sent = match to.ask {
            true => commander.start_asking(self.command.clone(), Some(next)),
            false => commander.start_with(self.command.clone(), Some(next), Heard::AtOnce),
        };
        sent.map_err(|(failure, next)| {
            self.ending = next.and_then(|next| next.give_back());
            Some(failure)
        })
    }
}
