//! A cluster: three primaries, each with a replica.

use std::time::Duration;

use super::{RedisServer, options::READY, server::escaped};
use crate::wait;

const PRIMARIES: usize = 3;
const NODES: usize = 2 * PRIMARIES;
const SLOTS: usize = 16_384;
/// The longest [`Cluster::wait_failover`] waits; usually it takes 2 to 4 seconds.
const FAILOVER: Duration = Duration::from_secs(30);

/// Six nodes, at the start 0 to 2 primaries with a third of the slots each, and 3 to 5 their replicas
/// in the same order. A node that does not answer for a second is replaced by its replica; without
/// one the whole cluster refuses commands, as is Redis' default.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<RedisServer>,
    ids: Vec<String>,
    password: Option<String>,
}

impl Cluster {
    /// Starts the nodes, joins them, and waits until all agree that all is well, some 3 seconds.
    pub fn start() -> Self {
        Self::launch(None, &[])
    }

    /// Like [`start`](Self::start), with more options for every node.
    pub fn start_with(args: &[&str]) -> Self {
        Self::launch(None, args)
    }

    /// Like [`start`](Self::start), with a password for the user `default` of every node.
    pub fn with_password(password: &str) -> Self {
        Self::launch(Some(password), &[])
    }

    fn launch(password: Option<&str>, args: &[&str]) -> Self {
        let mut options = RedisServer::options().bus().args(&[
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            // A replica may take over however long it was cut off, and stays with its primary.
            "--cluster-replica-validity-factor",
            "0",
            "--cluster-allow-replica-migration",
            "no",
        ]);
        if let Some(password) = password {
            options = options.password(password);
        }
        let options = options.args(args);
        let nodes: Vec<RedisServer> = (0..NODES).map(|_| options.start()).collect();
        let ids = nodes.iter().map(|node| node.cli(&["CLUSTER", "MYID"])).collect();
        let cluster = Self { nodes, ids, password: password.map(str::to_owned) };
        cluster.join();
        cluster
    }

    fn join(&self) {
        let third = |at: usize| (SLOTS * at / PRIMARIES).to_string();
        // Equal epochs would have to be sorted out first; only who knows nobody may be given one.
        for (at, node) in self.nodes.iter().enumerate() {
            ok(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
        }
        for (at, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[at + 1..] {
                ok(node, &["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string()]);
            }
        }
        for (at, node) in self.nodes[..PRIMARIES].iter().enumerate() {
            let last = (SLOTS * (at + 1) / PRIMARIES - 1).to_string();
            ok(node, &["CLUSTER", "ADDSLOTSRANGE", &third(at), &last]);
        }
        let acquainted = |node: &RedisServer| {
            let lines = node.cli(&["CLUSTER", "NODES"]);
            lines.lines().count() == NODES && !lines.contains("handshake") && !lines.contains("disconnected")
        };
        wait::until("everybody's acquaintance", READY, || self.nodes.iter().all(acquainted));
        for (at, replica) in self.nodes[PRIMARIES..].iter().enumerate() {
            ok(replica, &["CLUSTER", "REPLICATE", &self.ids[at]]);
        }
        wait::until("the cluster's agreement", READY, || self.is_whole());
    }

    /// Whether every node thinks that all slots are served, with all three replicas linked and known to
    /// all.
    fn is_whole(&self) -> bool {
        self.nodes.iter().all(|node| {
            let lines = node.try_cli(&["CLUSTER", "NODES"]).unwrap_or_default();
            let replicas = lines.lines().filter(|line| line.contains("slave ")).count();
            let link = node.try_cli(&["INFO", "replication"]).unwrap_or_default();
            is_ok(node) && replicas == PRIMARIES && !lines.contains("fail") && !link.contains("master_link_status:down")
        })
    }

    /// The addresses of all nodes as `redis://127.0.0.1:PORT`, with the password if there is one.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The cluster as `redis+cluster://[:password@]127.0.0.1:PORT,…`.
    pub fn url(&self) -> String {
        let user = self.password.as_ref().map(|password| format!(":{}@", escaped(password))).unwrap_or_default();
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{user}{}", nodes.join(","))
    }

    /// The node with this index, 0 to 5.
    pub fn node(&self, index: usize) -> &RedisServer {
        &self.nodes[index]
    }

    /// The node's id in the cluster.
    pub fn id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    /// The slot of a key or a sharded topic, from Redis itself.
    pub fn slot_of(&self, key: &str) -> u16 {
        let answer = self.living().cli(&["CLUSTER", "KEYSLOT", key]);
        answer.parse().expect("a slot's number")
    }

    /// The index of the node that serves the slot, as a living node knows it; `None` while that one is
    /// known to be dead.
    pub fn owner_of(&self, slot: u16) -> Option<usize> {
        owner(&self.living().cli(&["CLUSTER", "NODES"]), slot).and_then(|id| self.index(&id))
    }

    /// The index of the node that serves the key. Panics if it is dead.
    pub fn primary_of(&self, key: &str) -> usize {
        let slot = self.slot_of(key);
        self.owner_of(slot).unwrap_or_else(|| panic!("nobody serves slot {slot}"))
    }

    /// Kills the node (`SIGKILL`) that serves the key; returns its index.
    pub fn kill_primary_of(&mut self, key: &str) -> usize {
        let index = self.primary_of(key);
        self.kill(index);
        index
    }

    /// Kills a node.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].kill();
    }

    /// Starts a killed node again, empty but a member still, and waits until the cluster is whole.
    pub fn bring_back(&mut self, index: usize) {
        self.nodes[index].restart_empty();
        wait::until("the cluster's agreement", FAILOVER, || self.is_whole());
    }

    /// Freezes a node (`SIGSTOP`).
    pub fn pause(&mut self, index: usize) {
        self.nodes[index].pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self, index: usize) {
        self.nodes[index].resume();
    }

    /// Waits until all other living nodes agree that the dead or frozen node `lost` serves nothing and
    /// every slot is served; returns the index of the node that has taken its place.
    pub fn wait_failover(&self, lost: usize) -> usize {
        let heir = (lost + PRIMARIES) % NODES;
        let others = || self.nodes.iter().enumerate().filter(|&(index, node)| index != lost && awake(node));
        wait::until(&format!("the failover from node {lost} to node {heir}"), FAILOVER, || {
            others().all(|(_, node)| {
                let lines = node.try_cli(&["CLUSTER", "NODES"]).unwrap_or_default();
                let serves = |index: usize| lines.lines().any(|line| serves_any(line, &self.ids[index]));
                is_ok(node) && !serves(lost) && serves(heir)
            })
        });
        heir
    }

    /// Makes the node's replica take its place although it is well; returns the replica's index.
    pub fn switch_over(&self, index: usize) -> usize {
        let heir = (index + PRIMARIES) % NODES;
        ok(&self.nodes[heir], &["CLUSTER", "FAILOVER"]);
        self.wait_failover(index)
    }

    /// Moves a slot with all its keys from one primary to another; afterwards every node knows.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to);
        self.end_move(slot, from, to);
    }

    /// Only begins to move a slot: until [`end_move`](Self::end_move), `from` answers ASK for keys that it
    /// does not have.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        ok(&self.nodes[to], &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]]);
        ok(&self.nodes[from], &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]]);
    }

    /// Moves the keys of a slot and gives it away, after [`begin_move`](Self::begin_move).
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        let number = slot.to_string();
        let port = self.nodes[to].port().to_string();
        loop {
            let keys = self.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &number, "100"]);
            if keys.is_empty() {
                break;
            }
            let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
            if let Some(password) = &self.password {
                command.extend(["AUTH", password]);
            }
            command.push("KEYS");
            command.extend(keys.lines());
            ok(&self.nodes[from], &command);
        }
        // The new owner first: if it died in between, nobody would have the slot.
        ok(&self.nodes[to], &["CLUSTER", "SETSLOT", &number, "NODE", &self.ids[to]]);
        ok(&self.nodes[from], &["CLUSTER", "SETSLOT", &number, "NODE", &self.ids[to]]);
        wait::until("everybody's knowledge of the move", READY, || {
            self.nodes.iter().filter(|node| awake(node)).all(|node| {
                let lines = node.try_cli(&["CLUSTER", "NODES"]).unwrap_or_default();
                owner(&lines, slot).as_deref() == Some(&self.ids[to])
            })
        });
    }

    fn living(&self) -> &RedisServer {
        self.nodes.iter().find(|node| awake(node)).expect("a living node")
    }

    fn index(&self, id: &str) -> Option<usize> {
        self.ids.iter().position(|known| known == id)
    }
}

fn ok(node: &RedisServer, command: &[&str]) {
    let answer = node.cli(command);
    assert_eq!(answer, "OK", "{command:?} on port {}", node.port());
}

/// A frozen node would only keep us waiting.
fn awake(node: &RedisServer) -> bool {
    node.process().running() && !node.process().paused()
}

fn is_ok(node: &RedisServer) -> bool {
    node.try_cli(&["CLUSTER", "INFO"]).is_some_and(|info| info.contains("cluster_state:ok"))
}

/// Whether this line of `CLUSTER NODES` is the node's, alive and with slots.
fn serves_any(line: &str, id: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    words[0] == id && !is_failed(&words) && words.len() > 8
}

/// Who serves the slot, by an answer of `CLUSTER NODES`: lines of
/// `id address flags primary ping pong epoch link slot slot …`.
fn owner(lines: &str, slot: u16) -> Option<String> {
    let holds = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = (first.parse::<u16>(), last.parse::<u16>());
        matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&slot))
    };
    let words = lines.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut serving = words.filter(|words| words.len() > 8 && !is_failed(words));
    serving.find(|words| words[8..].iter().any(|range| holds(range))).map(|words| words[0].to_owned())
}

fn is_failed(words: &[&str]) -> bool {
    words[2].split(',').any(|flag| flag == "fail")
}
