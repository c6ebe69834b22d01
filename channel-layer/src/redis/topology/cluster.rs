//! A Redis Cluster: who has which slot, as far as we know.
//!
//! The map is the crate's, the asking is ours: the crate `redis` takes the map of whoever answers first, also of a node
//! that is cut off from the others. That would be
//! [the consensus on `CLUSTER SLOTS` of its issue 828](https://github.com/redis-rs/redis-rs/issues/828). It also gives
//! its map to nobody but a strategy for reading from replicas.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use redis::{
    Pipeline, Value,
    cluster_read_routing::{ClusterTopology, Shard},
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep_until},
};

use super::{
    race::{Found, race},
    slots::{self, Node},
    target::Target,
};
use crate::{
    BoxError,
    redis::{
        access::{Access, Address},
        answer::{Answer, command, text_of},
        refusal::{Failed, Refused},
        trust::Server,
    },
};

/// The least time between two questions for the map.
const PAUSE: Duration = Duration::from_millis(100);

/// The cluster and the last map of it. There is none before the first [`refresh`](Self::refresh).
pub(crate) struct Cluster {
    seeds: Vec<Node>,
    access: Arc<Access>,
    known: RwLock<Known>,
    /// Of the nodes that have been connected to.
    servers: parking_lot::Mutex<HashMap<Node, Server>>,
    version: watch::Sender<u64>,
    refreshing: Mutex<Last>,
}

struct Known {
    map: ClusterTopology,
    /// The cluster's epoch when the map was made: it only ever rises.
    epoch: u64,
}

/// The last refresh that came to an end.
#[derive(Default)]
struct Last {
    began: Option<Instant>,
    error: Option<Failed>,
    /// How many there were; each begins with another node.
    count: usize,
}

/// What a node says.
struct Said {
    map: ClusterTopology,
    epoch: u64,
}

impl Cluster {
    pub(super) fn new(seeds: Vec<Address>, access: Arc<Access>) -> Self {
        let node = |seed| match seed {
            Address::Tcp(host, port) => Some(Node::new(&*host, port)),
            Address::Unix(_) => None,
        };
        let known = RwLock::new(Known { map: ClusterTopology::from_shards(Vec::new()), epoch: 0 });
        Self {
            seeds: seeds.into_iter().filter_map(node).collect(),
            access,
            known,
            servers: parking_lot::Mutex::default(),
            version: watch::Sender::new(0),
            refreshing: Mutex::default(),
        }
    }

    /// The primary that has the slot.
    pub(crate) fn node_of(&self, slot: u16) -> Option<Node> {
        self.known.read().map.shard_for_slot(slot).map(|shard| shard.primary().clone())
    }

    /// All primaries that have slots.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        primaries(&self.known.read().map)
    }

    /// How to reach a node: signed in and with TLS like every other.
    pub(crate) fn target(&self, node: &Node) -> Target {
        let server = self.servers.lock().entry(node.clone()).or_default().clone();
        Target::direct(address(node), self.access.clone(), server)
    }

    /// A number that changes with the map.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Asks for the map: the nodes of the last one, then those of the configuration, the next as soon
    /// as one has failed or is silent for a quarter of a second; within 2 seconds. A node that says the
    /// cluster is down, or knows an older state of it than we do, counts only if nobody knows better.
    ///
    /// Those who ask while others do share one answer, which is never older than their question; there
    /// are 100 ms at least between two.
    pub(crate) async fn refresh(&self) -> Result<(), BoxError> {
        let asked = Instant::now();
        let mut last = self.refreshing.lock().await;
        if let Some(began) = last.began {
            if began >= asked {
                return result(&last);
            }
            sleep_until(began + PAUSE).await;
        }
        let began = Instant::now();
        let said = race(self.questions(last.count)).await;
        last.began = Some(began);
        last.count = last.count.wrapping_add(1);
        last.error = match said {
            Ok(said) => {
                self.learn(said);
                None
            }
            Err(errors) => Some(Failed::all("no node of the cluster gives a map", &errors)),
        };
        result(&last)
    }

    fn questions(
        &self,
        turn: usize,
    ) -> impl Iterator<Item = impl Future<Output = Result<Found<Said>, BoxError>> + use<>> {
        let known = self.known.read();
        let mut nodes = primaries(&known.map);
        // One that is cut off from the others must not be asked first for ever.
        let turns = turn % nodes.len().max(1);
        nodes.rotate_left(turns);
        for other in known.map.shards().flat_map(Shard::replicas).chain(&self.seeds) {
            if !nodes.contains(other) {
                nodes.push(other.clone());
            }
        }
        let (newest, access) = (known.epoch, self.access.clone());
        nodes.into_iter().map(move |node| {
            let access = access.clone();
            async move { ask_one(&access, &node, newest).await }
        })
    }

    fn learn(&self, said: Said) {
        let mut known = self.known.write();
        known.epoch = said.epoch;
        if !slots::is_same(&known.map, &said.map) {
            known.map = said.map;
            let primaries = primaries(&known.map);
            self.servers.lock().retain(|node, _| primaries.contains(node));
            // While the lock is held: whoever sees the number sees the map.
            self.version.send_modify(|version| *version += 1);
        }
    }
}

fn primaries(map: &ClusterTopology) -> Vec<Node> {
    map.shards().map(|shard| shard.primary().clone()).collect()
}

fn address(node: &Node) -> Address {
    Address::Tcp(node.host().into(), node.port())
}

fn result(last: &Last) -> Result<(), BoxError> {
    match &last.error {
        Some(error) => Err(error.clone().into()),
        None => Ok(()),
    }
}

async fn ask_one(access: &Access, node: &Node, newest: u64) -> Result<Found<Said>, BoxError> {
    let mut connection = access.open(&address(node), "channel-layer:cluster").await?;
    let mut questions = Pipeline::new();
    questions.add_command(command([&b"CLUSTER"[..], b"SLOTS"])).add_command(command([&b"CLUSTER"[..], b"INFO"]));
    let answers = connection.ask(&questions).await.map_err(BoxError::from);
    answers
        .and_then(|answers| answer(&answers, node.host(), newest))
        .map_err(|error| Failed::at(node.to_string(), &error).into())
}

fn answer(replies: &[Value], asked: &str, newest: u64) -> Result<Found<Said>, BoxError> {
    let [slots, info] = replies else { return Err("an unexpected answer".into()) };
    if let Value::ServerError(error) = slots {
        return Err(Refused(text_of(error)).into());
    }
    let map = slots::read(slots, asked)?;
    // A user without the right to CLUSTER INFO has to take what there is.
    let Some(info) = info.as_text() else { return Ok(Found::Good(Said { map, epoch: newest })) };
    let field = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
    let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let healthy = field("cluster_state") == Some("ok");
    Ok(match healthy && epoch >= newest {
        true => Found::Good(Said { map, epoch }),
        false => Found::Doubtful(epoch, Said { map, epoch }),
    })
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
