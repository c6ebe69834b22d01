//! What a node says of itself, for operators.

use channel_layer::Event;
use serde::{Deserialize, Serialize};

use super::{ASK, Peers};
use crate::events::rfc3339;
use crate::metrics::process_usage;

/// What a node is asked for, and the field of its answer.
pub(super) const STATE: &str = "state";

/// How a node is. Counts are since its start. What a node of another version does not say is 0.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NodeState {
    pub(crate) node: String,
    /// `ready`, `not_ready`, `draining`; `silent` for one that did not answer.
    state: String,
    version: String,
    /// When it was started, by the database's clock.
    started: Option<String>,
    uptime_seconds: f64,
    sockets: u64,
    users: u64,
    groups: i64,
    /// Of the processor.
    cpu_seconds: f64,
    memory_bytes: u64,
    opened: u64,
    refused: u64,
    frames_received: u64,
    frames_sent: u64,
    events_published: u64,
    events_received: u64,
    store_errors: u64,
}

impl NodeState {
    /// One that did not answer.
    fn silent(node: String) -> Self {
        Self { node, state: "silent".to_owned(), ..Self::default() }
    }
}

impl Peers {
    /// All nodes heard of lately and how they are, by their names.
    pub(crate) async fn states(&self) -> Vec<NodeState> {
        let mut states = vec![self.state()];
        for answer in self.ask(Event::new(ASK).with("what", STATE)).await {
            let state = answer.text(STATE).and_then(|text| serde_json::from_str::<NodeState>(text).ok());
            states.extend(state.filter(|state| states.iter().all(|known| known.node != state.node)));
        }
        for name in self.nodes() {
            if states.iter().all(|known| known.node != name) {
                states.push(NodeState::silent(name));
            }
        }
        states.sort_by(|one, other| one.node.cmp(&other.node));
        states
    }

    /// How this one is.
    pub(super) fn state(&self) -> NodeState {
        let (metrics, clock) = (&self.health.metrics, &self.health.clock);
        let (layer, totals) = (self.layer.stats(), metrics.totals());
        let (cpu_seconds, memory_bytes) = process_usage();
        let uptime = clock.millis();
        let started = clock.database() - std::time::Duration::from_millis(uptime);
        let state = match (metrics.draining.get() > 0, self.health.was_ready()) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "not_ready",
        };
        NodeState {
            node: self.node_id.clone(),
            state: state.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Some(rfc3339(started)),
            uptime_seconds: uptime as f64 / 1000.0,
            sockets: self.registry.len() as u64,
            users: self.registry.user_count() as u64,
            groups: metrics.groups.get(),
            cpu_seconds,
            memory_bytes,
            opened: metrics.connections_opened.get(),
            refused: totals.handshakes_rejected,
            frames_received: totals.frames_received,
            frames_sent: totals.frames_sent,
            events_published: layer.published,
            events_received: layer.received,
            store_errors: totals.store_errors,
        }
    }
}
