//! How a core layer is set up.

use std::time::Duration;

use crate::{LayerError, capacity::Capacity, redis::site::check_name};

/// Seconds a message waits, as in channels_redis.
const EXPIRY: u64 = 60;
/// Seconds a membership lasts after it was renewed last, as in channels_redis.
const GROUP_EXPIRY: u64 = 86_400;
/// Messages a queue holds, as in channels_redis.
const CAPACITY: usize = 100;
/// Random bytes before each message, as in channels_redis.
const RANDOM_PREFIX: usize = 12;
/// Queues of a node.
const CLIENTS: usize = 4;
/// How often we say that we live, and notice that Redis has lost our keys.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long we count as alive after that.
const ALIVE: Duration = Duration::from_secs(45);

/// What this layer has beside the settings of the site.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) namespace: String,
    pub(super) expiry: u64,
    pub(super) group_expiry: u64,
    pub(super) capacity: Capacity,
    pub(super) random_prefix: usize,
    pub(super) clients: usize,
    pub(super) heartbeat: Duration,
    pub(super) alive: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "gateway".to_owned(),
            expiry: EXPIRY,
            group_expiry: GROUP_EXPIRY,
            capacity: Capacity::new(CAPACITY),
            random_prefix: RANDOM_PREFIX,
            clients: CLIENTS,
            heartbeat: HEARTBEAT,
            alive: ALIVE,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), LayerError> {
        let wrong = |text: &str| Err(LayerError::Config(text.to_owned()));
        check_name("namespace", &self.namespace)?;
        if self.expiry == 0 || self.group_expiry == 0 {
            return wrong("expiry and group_expiry must be at least one second");
        }
        if self.clients == 0 || self.clients > 64 {
            return wrong("there must be 1 to 64 client ids");
        }
        Ok(())
    }
}
