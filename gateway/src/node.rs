//! What the parts of a running node share: whoever serves a socket, publishes or looks after the node has all of it at
//! hand. `start.rs` puts it together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use channel_layer::{Event, GroupName, LayerError};
use persistence::Store;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::auth::SignIn;
use crate::auth::django::Django;
use crate::bridge::Bridges;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::config::Config;
use crate::current::Current;
use crate::health::Health;
use crate::hub::Hub;
use crate::layer::SharedLayer;
use crate::memory::MemoryLimit;
use crate::metrics::{ByType, Metrics};
use crate::names::GroupNames;
use crate::peers::Peers;
use crate::rate::{Bucket, WrongKeys};
use crate::redis;
use crate::seal::Seals;
use crate::socket::registry::Registry;
use crate::socket::{Pushed, Socket};
use crate::storing::admission::Admissions;
use crate::storing::writer::Writer;
use crate::traces::Traces;
use crate::websocket::WireFrame;

/// What connections and the API share.
#[derive(Debug)]
#[allow(missing_docs, reason = "each field is its type")]
pub struct Node {
    pub config: Current<Config>,
    pub store: Store,
    pub layer: SharedLayer,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub names: GroupNames,
    /// Paths whose consumers are the site's own.
    pub(crate) bridges: Bridges,
    pub(crate) hub: Arc<Hub>,
    pub(crate) writer: Writer,
    pub(crate) admissions: Arc<Admissions>,
    /// What `limits.handshakes_per_second` allows just now.
    pub(crate) handshakes: parking_lot::Mutex<Bucket>,
    pub(crate) sign_in: Current<SignIn>,
    /// The site's sessions and users, if they are read.
    pub(crate) django: Option<Arc<Django>>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) seals: Arc<Seals>,
    pub(crate) redis: Option<redis::Server>,
    /// How many streams are read at once for clients that catch up.
    pub(crate) resume_reads: Semaphore,
    /// How many changes of rooms and members are stored at once.
    pub(crate) changes: Semaphore,
    /// Bytes that publishing may take, from the stream and over HTTP.
    pub(crate) publishing: Budget,
    /// Bytes that bodies of API calls may take.
    pub(crate) bodies: Budget,
    /// Redactions that other nodes could not be told of yet.
    pub(crate) untold: parking_lot::Mutex<VecDeque<(GroupName, Event)>>,
    pub(crate) wrong_keys: WrongKeys,
    /// Lines of the log that refused API calls may take.
    pub(crate) refusals: parking_lot::Mutex<Bucket>,
    pub(crate) clock: Clock,
    pub(crate) health: Arc<Health>,
    pub(crate) memory: MemoryLimit,
    pub(crate) traces: Traces,
    /// Connections; a node waits for them when it leaves.
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: AtomicBool,
}

impl Node {
    /// The event as only nodes of this deployment can send it to this group: a place in the group's stream that
    /// it names is believed. For who stores messages by other ways than a node's, and tests.
    pub fn sealed(&self, group: &GroupName, event: Event) -> Event {
        self.seals.keys().seal(event, group.as_str())
    }

    /// Queues a word to all nodes that have joined the group.
    pub(crate) fn tell(&self, group: &GroupName, word: Event) -> Result<(), LayerError> {
        self.layer.group_send_later(group, &self.seals.word(word, group.as_str()))
    }

    /// Sends one frame to one socket, and counts it.
    pub(crate) fn send_to(&self, socket: &Socket, frame: &WireFrame, kind: &'static str) {
        match socket.send(frame) {
            Pushed::MustFlush | Pushed::Queued => {
                self.metrics.frames_sent.get_or_create(&ByType { r#type: kind }).inc();
            }
            Pushed::Full => {
                self.metrics.outbox_full.inc();
            }
            Pushed::Closed => {}
        }
    }

    /// Waits until the process should give back memory that it does not need.
    pub async fn memory_wanted(&self) {
        self.memory.wanted().await;
    }

    /// How often it is looked at again who is signed in.
    pub(crate) fn recheck(&self) -> Duration {
        self.config.django.recheck
    }

    /// Whether the node is leaving.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
