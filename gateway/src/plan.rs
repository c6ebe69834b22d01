//! How many machines so many users need (`gateway plan`): reckoned from what `bench/run.sh` has measured.

use std::fmt::Write as _;

use serde::Deserialize;

/// What was measured; `docs/benchmarks.md` says how.
const FIGURES: &str = include_str!("../../bench/figures.json");

/// How busy the processors may be when one node is away: what is left is for storms and moments.
const BUSY: f64 = 0.6;

/// The same for the database, which has others to serve.
const DATABASE_BUSY: f64 = 0.5;

/// A node without sockets, and what its queues and caches may take with the default limits (`docs/limits.md`).
const EMPTY_MIB: f64 = 64.0;
const QUEUES_MIB: f64 = 250.0;

/// Ports from which a balancer connects to one address, as Linux has them by default.
const PORTS: f64 = 28_232.0;

/// More nodes than this are no plan.
const MOST: u32 = 1_000;

#[derive(Deserialize)]
struct Figures {
    connect_us: f64,
    idle_us_per_second: f64,
    socket_kib: f64,
    storm_us: f64,
    stored_rooms_of_10: Cost,
    stored_rooms_of_100: Cost,
    live_rooms_of_10: Cost,
    live_rooms_of_100: Cost,
    delivery_us_of_1000_sockets: f64,
    delivery_us_of_19000_sockets: f64,
    most_sockets: f64,
    kernel_socket_kib: f64,
}

/// Microseconds for each delivery.
#[derive(Deserialize)]
struct Cost {
    node_us: f64,
    #[serde(default)]
    database_us: f64,
    #[serde(default)]
    redis_us: f64,
}

/// What a message costs by itself, and for each of its members, in microseconds: a line through two measurements.
#[derive(Debug, Clone, Copy)]
struct Line {
    message: f64,
    member: f64,
}

impl Line {
    fn through(of_10: f64, of_100: f64) -> Self {
        let (ten, hundred) = (10.0 * of_10, 100.0 * of_100);
        let member = (hundred - ten) / 90.0;
        Self { message: ten - 10.0 * member, member }
    }

    fn at(self, members: f64) -> f64 {
        self.message + self.member * members
    }
}

/// What is expected of the site.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// People who are there at the same time.
    pub(crate) users: f64,
    /// Sockets of each: tabs and devices.
    pub(crate) sockets_per_user: f64,
    /// Chat messages a second, all rooms together.
    pub(crate) messages: f64,
    /// Sockets that hear a message.
    pub(crate) members: f64,
    /// Sockets that come and go a second.
    pub(crate) connects: f64,
    /// Cores of a node.
    pub(crate) cores: f64,
}

/// What the site needs for it, in words.
pub(crate) fn plan(load: &Load) -> Result<String, serde_json::Error> {
    let figures: Figures = serde_json::from_str(FIGURES)?;
    let of =
        |cost: fn(&Cost) -> f64| Line::through(cost(&figures.stored_rooms_of_10), cost(&figures.stored_rooms_of_100));
    let node = of(|cost| cost.node_us);
    let (database, redis) = (of(|cost| cost.database_us), of(|cost| cost.redis_us));
    // Those were measured with 1,000 sockets; many more are in no cache of the processor.
    let many = figures.delivery_us_of_19000_sockets / figures.delivery_us_of_1000_sockets;
    let live = Line::through(figures.live_rooms_of_10.node_us, figures.live_rooms_of_100.node_us);

    let sockets = load.users * load.sockets_per_user;
    // All nodes together; each further one hears every message.
    let cores = |nodes: u32| {
        let further = f64::from(nodes - 1).min((load.members - 1.0).max(0.0));
        let messages = load.messages * (node.message + many * node.member * load.members + further * live.message);
        (messages + load.connects * figures.connect_us + sockets * figures.idle_us_per_second) / 1e6
    };
    // Without one of them; and with no more sockets on any than were ever measured.
    let fits = |nodes: &u32| {
        let left = f64::from(nodes - 1);
        cores(*nodes) <= left * load.cores * BUSY && sockets <= left * figures.most_sockets
    };
    let Some(nodes) = (2..=MOST).find(fits) else {
        return Ok(format!("More than {MOST} nodes of {} cores: give them more cores.\n", load.cores));
    };
    let left = f64::from(nodes - 1);
    let per_node = sockets / left;
    let memory = EMPTY_MIB + QUEUES_MIB + per_node * figures.socket_kib / 1024.0;
    let kernel = per_node * figures.kernel_socket_kib / 1024.0;
    let database_cores = load.messages * database.at(load.members) / 1e6;
    // It was measured with one node; each further one that hears a message costs at most as much again.
    let listeners = f64::from(nodes).min(load.members.max(1.0));
    let redis_cores = load.messages * (redis.message * listeners + redis.member * load.members) / 1e6;
    let ports = (sockets / left / PORTS).ceil().max(1.0);

    let mut text = String::new();
    let mut line = |what: &str, needs: String| {
        let _ = writeln!(text, "{what:<12}{needs}");
    };
    line(
        "load",
        format!(
            "{sockets:.0} sockets; {:.0} messages and {:.0} deliveries a second",
            load.messages,
            load.messages * load.members
        ),
    );
    line(
        "nodes",
        format!(
            "{nodes} of {} cores; {:.2} of {:.0} cores busy, one node may be away",
            load.cores,
            cores(nodes),
            f64::from(nodes) * load.cores
        ),
    );
    line(
        "memory",
        format!(
            "{memory:.0} MiB each as its limit, and {kernel:.0} MiB of the kernel's, for {per_node:.0} sockets on each when one is away"
        ),
    );
    line("files", format!("{:.0} each (LimitNOFILE=, nofile)", (per_node * 1.2 + 1_024.0).ceil()));
    line(
        "database",
        format!(
            "{:.1} cores that do nothing else ({database_cores:.2} busy), {} connections, {:.1} million messages a day",
            (database_cores / DATABASE_BUSY).max(0.5),
            nodes * 10,
            load.messages * 86_400.0 / 1e6
        ),
    );
    line(
        "Redis",
        format!("{redis_cores:.2} of one core{}", if redis_cores > BUSY { ": shard it (redis-url)" } else { "" }),
    );
    line(
        "balancer",
        format!(
            "{:.0} files, {:.0} MiB of the kernel's; {ports:.0} address{} of its own towards the nodes (28,000 ports for each node and address)",
            2.0 * sockets + 1_024.0,
            2.0 * sockets * figures.kernel_socket_kib / 1024.0,
            if ports > 1.0 { "es" } else { "" }
        ),
    );
    line(
        "a storm",
        format!(
            "everybody back and resumed: {:.1} s of all cores that are left; a drain spreads it over 20 s at most for each node",
            sockets * (figures.connect_us + figures.storm_us) / 1e6 / (left * load.cores)
        ),
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/capacity.md");
    const BENCHMARKS: &str = include_str!("../../docs/benchmarks.md");

    fn load(users: f64, messages: f64) -> Load {
        Load { users, messages, members: 50.0, sockets_per_user: 1.5, connects: 50.0, cores: 2.0 }
    }

    #[test]
    fn a_line_goes_through_both_measurements() {
        let line = Line::through(19.3, 3.76);
        assert!((line.at(10.0) - 193.0).abs() < 1e-9 && (line.at(100.0) - 376.0).abs() < 1e-9);
    }

    #[test]
    fn the_document_shows_what_is_reckoned_and_the_figures_were_measured() {
        for (users, messages) in [(10_000.0, 500.0), (100_000.0, 2_000.0)] {
            let plan = plan(&load(users, messages)).unwrap();
            assert!(DOCUMENT.contains(&plan), "docs/capacity.md lacks:\n{plan}");
        }
        let figures: serde_json::Value = serde_json::from_str(FIGURES).unwrap();
        let mut numbers = Vec::new();
        for (name, value) in figures.as_object().unwrap() {
            match value {
                // What the kernel says of its own.
                serde_json::Value::Number(_) if name == "kernel_socket_kib" => {}
                serde_json::Value::Number(number) => numbers.push(number.as_f64().unwrap()),
                serde_json::Value::Object(costs) => numbers.extend(costs.values().map(|cost| cost.as_f64().unwrap())),
                _ => {}
            }
        }
        let benchmarks = BENCHMARKS.replace(',', "");
        let unknown: Vec<f64> = numbers
            .into_iter()
            .filter(|number| {
                let mut words = benchmarks.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
                !words.any(|word| word.trim_matches('.').parse() == Ok(*number))
            })
            .collect();
        assert!(unknown.is_empty(), "docs/benchmarks.md does not have {unknown:?}");
    }

    #[test]
    fn more_of_anything_needs_no_fewer_nodes_and_one_may_always_be_away() {
        let nodes = |load: &Load| {
            let text = plan(load).unwrap();
            let line = text.lines().find(|line| line.starts_with("nodes")).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
        };
        let mut before = 2;
        for messages in [1.0, 100.0, 1_000.0, 3_000.0] {
            let now = nodes(&load(1_000.0, messages));
            assert!(now >= before, "{messages}");
            before = now;
        }
        assert!(nodes(&load(1.0, 1.0)) == 2 && before > 2, "{before}");
        assert!(plan(&Load { members: 1e6, ..load(1e6, 1e5) }).unwrap().starts_with("More than"));
    }
}
