//! Redis, PostgreSQL, nodes, faulty links between them, and who breaks them.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use testkit::clock::ShiftedClock;
use testkit::postgres::Postgres;
use testkit::process::{Guarded, private_dir};
use testkit::proxy::ChaosProxy;
use testkit::python::python;
use testkit::redis::RedisServer;
use testkit::wait::until;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::Cut;
use crate::common::balancer::Balancer;
use crate::common::{Door, NodeProcess, PATIENCE, eventually};
use crate::schedule::{Schedule, What};

/// Every so many messages one is dropped between Redis and a node.
const DROPPED: usize = 7;

/// What runs as the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `lossy` nodes fill no holes and resume nothing.
    Gateway { lossy: bool },
    /// The same, and clients know only HAProxy in front of them.
    Balanced,
    /// Daphne with a Django Channels application on one of the layers of `channels_redis`.
    Channels { layer: &'static str },
}

pub(crate) struct Site {
    kind: Kind,
    pub(crate) redis: RedisServer,
    postgres: Postgres,
    pub(crate) nodes: Vec<NodeProcess>,
    /// Each node's link to Redis.
    links: Vec<ChaosProxy>,
    /// Each node's wall clock.
    clocks: Vec<ShiftedClock>,
    pub(crate) network: watch::Sender<Cut>,
    balancer: Option<Balancer>,
}

impl Site {
    /// Starts everything.
    pub(crate) async fn start(nodes: usize, kind: Kind) -> Self {
        let (redis, postgres) = (RedisServer::start(), Postgres::start());
        let database = postgres.fresh_database();
        let links: Vec<_> = (0..nodes).map(|_| ChaosProxy::redis(redis.port())).collect();
        let clocks: Vec<_> = (0..nodes).map(|_| ShiftedClock::new()).collect();
        let lossy = kind == Kind::Gateway { lossy: true };
        let spawn = |(number, link): (usize, &ChaosProxy)| match kind {
            Kind::Gateway { .. } | Kind::Balanced => {
                let settings = [
                    ("redis-url", &*link.url()),
                    ("database-url", &database),
                    ("node-id", &format!("node-{number}")),
                    ("room-policy", "members"),
                    ("limits.frames_per_second", "0"),
                    ("test-lossy", if lossy { "1" } else { "0" }),
                    // As long as the balancer needs to see that the node leaves.
                    ("drain.delay_seconds", "3"),
                ];
                NodeProcess::spawn_by(clocks[number].command(), private_dir("gateway"), &settings)
            }
            Kind::Channels { layer } => daphne(layer, &link.url()),
        };
        let nodes: Vec<_> = links.iter().enumerate().map(spawn).collect();
        let network = watch::Sender::new(Cut::default());
        let mut site = Self { kind, redis, postgres, nodes, links, clocks, network, balancer: None };
        site.ready().await;
        if kind == Kind::Balanced {
            let doors: Vec<_> = site.nodes.iter().map(|node| node.door).collect();
            site.balancer = Some(Balancer::haproxy(&doors));
        }
        site
    }

    /// Waits until every node is ready. Panics if one does not run.
    pub(crate) async fn ready(&self) {
        for node in &self.nodes {
            eventually("the node is ready", || async {
                assert!(node.process.running(), "a node has ended{}", node.process.log_tail());
                let url = format!("http://{}/readyz", node.door.internal);
                let answer = crate::common::http_client().get(url).send().await;
                // The other stack has no such page: that it answers is enough.
                answer.is_ok_and(|answer| answer.status() == 200 || matches!(self.kind, Kind::Channels { .. }))
            })
            .await;
        }
    }

    /// Where clients connect.
    pub(crate) fn public(&self) -> Vec<SocketAddr> {
        if let Some(balancer) = &self.balancer {
            return vec![balancer.door.public];
        }
        self.nodes.iter().map(|node| node.door.public).collect()
    }

    pub(crate) fn internal(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.door.internal).collect()
    }

    /// Messages between Redis and the nodes that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.links.iter().map(ChaosProxy::dropped).sum()
    }

    /// Suffers what the schedule says, each kind of server in a thread of its own; everything runs again
    /// when this returns.
    pub(crate) async fn suffer(self, schedule: &Schedule) -> Self {
        let Self { kind, redis, postgres, nodes, links, clocks, network, balancer } = self;
        let began = Instant::now();
        if schedule.drops {
            links.iter().for_each(|link| link.drop_messages(DROPPED));
        }
        let redis = break_down(schedule, began, redis, |redis, what, wait| match what {
            What::RedisEmptied => {
                redis.kill();
                wait();
                redis.restart_empty();
            }
            What::RedisStopped => {
                redis.pause();
                wait();
                redis.resume();
            }
            _ => {}
        });
        let postgres = break_down(schedule, began, postgres, |postgres, what, wait| {
            if what == What::PostgresKilled {
                postgres.kill9();
                wait();
                postgres.restart();
            }
        });
        let nodes = break_down(schedule, began, nodes, |nodes, what, wait| match what {
            What::NodeKilled(number) => {
                nodes[number].process.kill();
                wait();
                nodes[number].process.start();
            }
            What::NodeReplaced(number) => replace(&mut nodes[number]),
            _ => {}
        });
        let clocks = break_down(schedule, began, clocks, |clocks, what, wait| {
            if let What::ClockJumps { node, hours } = what {
                clocks[node].set(hours * 3600);
                wait();
                clocks[node].set(0);
            }
        });
        let network = break_down(schedule, began, network, |network, what, wait| {
            if let What::ClientsCut { part, silently } = what {
                network.send_replace(Cut { part: Some(part), silently });
                wait();
                network.send_replace(Cut::default());
            }
        });
        let (redis, postgres, nodes, clocks, network) = tokio::join!(redis, postgres, nodes, clocks, network);
        tokio::time::sleep_until((began + schedule.length).into()).await;
        links.iter().for_each(ChaosProxy::pass);
        let site = Self { kind, redis, postgres, nodes, links, clocks, network, balancer };
        site.ready().await;
        site
    }
}

/// A node leaves well, and the next one takes its place.
fn replace(node: &mut NodeProcess) {
    node.process.signal("TERM");
    until("the node has left", PATIENCE * 2, || !node.process.running());
    let code = node.process.exit_code();
    assert_eq!(code, 0, "{}", node.log());
    node.process.start();
    let internal = node.door.internal;
    node.process.wait_ready(PATIENCE * 2, || crate::common::ready(internal));
}

/// A process of the Python stack.
fn daphne(layer: &str, redis: &str) -> NodeProcess {
    let port = testkit::net::free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let code = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ledger");
    let env = [("PYTHONPATH", code), ("PYTHONDONTWRITEBYTECODE", "1"), ("LAYER", layer), ("REDIS_URL", redis)];
    let arguments = ["-m", "daphne", "-b", "127.0.0.1", "-p", &port.to_string(), "channels_peer:application"];
    let process = Guarded::spawn_with(private_dir("daphne"), "KILL", &env, python(), arguments);
    NodeProcess { process, door: Door { public: address, internal: address } }
}

/// Runs the part of the schedule that `act` knows, at the times it says. `act` breaks, waits, and repairs.
async fn break_down<S: Send + 'static>(
    schedule: &Schedule,
    began: Instant,
    mut server: S,
    act: impl Fn(&mut S, What, &dyn Fn()) + Send + 'static,
) -> S {
    let faults = schedule.faults.clone();
    let mut thread = JoinSet::new();
    thread.spawn_blocking(move || {
        for fault in faults {
            // One of another server is over at once, and waits for nothing.
            let wait_until = |at: Duration| thread::sleep((began + at).saturating_duration_since(Instant::now()));
            wait_until(fault.at);
            act(&mut server, fault.what, &|| wait_until(fault.at + fault.lasting));
        }
        server
    });
    thread.join_next().await.unwrap().unwrap()
}
