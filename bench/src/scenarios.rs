//! What is measured: the list.

use anyhow::Result;

use crate::generator::Pace;
use crate::measure::{Bench, Fanout};
use crate::neighbours::Neighbour;
use crate::report::Row;

/// A line or two of the table.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
    pub(crate) about: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Idle,
    Rounds,
    Fanout(Fanout),
    Storm,
    Beside(Neighbour),
    Stall,
}

const fn fanout(name: &'static str, about: &'static str, room_size: usize, pace: Pace, stored: bool) -> Scenario {
    let group = if stored { "fanout" } else { "live" };
    Scenario { name, group, about, kind: Kind::Fanout(Fanout { room_size, pace, stored, nodes: 1 }) }
}

const fn nodes(name: &'static str, about: &'static str, stored: bool) -> Scenario {
    let pace = Pace::InFlight(2);
    Scenario { name, group: "nodes", about, kind: Kind::Fanout(Fanout { room_size: 100, pace, stored, nodes: 2 }) }
}

const fn other(name: &'static str, group: &'static str, about: &'static str, kind: Kind) -> Scenario {
    Scenario { name, group, about, kind }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    other("idle", "connect", "connecting, 64 at once, and standing still: two rows, connect and idle", Kind::Idle),
    other("rounds", "connect", "memory after ten rounds of connecting and leaving", Kind::Rounds),
    fanout("rate-10", "2,000 deliveries per second in rooms of 10, stored", 10, Pace::Rate(2_000.0), true),
    fanout("rate-100", "20,000 per second in rooms of 100, stored", 100, Pace::Rate(20_000.0), true),
    fanout("full-100", "rooms of 100, two messages in flight in each, stored", 100, Pace::InFlight(2), true),
    fanout("full-1000", "a room of 1,000, four messages in flight, stored", 1_000, Pace::InFlight(4), true),
    fanout("deep-100", "rooms of 100, 320 messages in flight in all, stored", 100, Pace::InFlight(32), true),
    fanout("rate-10-live", "the same, published by group_send, not stored", 10, Pace::Rate(2_000.0), false),
    fanout("rate-100-live", "", 100, Pace::Rate(20_000.0), false),
    fanout("full-100-live", "", 100, Pace::InFlight(2), false),
    fanout("full-1000-live", "", 1_000, Pace::InFlight(4), false),
    fanout("deep-100-live", "", 100, Pace::InFlight(32), false),
    other("storm", "storm", "all sockets come back at once and resume what they missed", Kind::Storm),
    nodes("two-nodes", "full-100 on two nodes, each room on both", true),
    nodes("two-nodes-live", "full-100-live on two nodes", false),
    other("slow", "beside", "rate-100 beside 10 sockets that do not read", Kind::Beside(Neighbour::Slow)),
    other("flood", "beside", "rate-100 beside a user who sends 2,000 frames/s", Kind::Beside(Neighbour::Writer(2_000))),
    other("stall", "beside", "rate-100-live while PostgreSQL stands still and somebody writes", Kind::Stall),
];

impl Scenario {
    /// Measures it; no row where it is not possible.
    pub(crate) fn measure(&self, bench: &Bench) -> Result<Vec<Row>> {
        match self.kind {
            Kind::Idle => bench.idle(),
            Kind::Rounds => bench.rounds(self.name),
            Kind::Fanout(fanout) => bench.fanout(self.name, fanout),
            Kind::Storm => bench.storm(self.name),
            Kind::Beside(neighbour) => bench.beside(self.name, neighbour),
            Kind::Stall => bench.stall(self.name),
        }
    }
}
