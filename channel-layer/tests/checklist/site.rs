//! Where the tests of the core layer run.

use std::sync::{
    Mutex, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use channel_layer::{RedisCoreBuilder, RedisCoreLayer};
use testkit::redis::{RedisServer, Sentinels};

static SERVER: OnceLock<RedisServer> = OnceLock::new();
static SENTINELS: OnceLock<Mutex<Sentinels>> = OnceLock::new();
static SITES: AtomicU32 = AtomicU32::new(0);

/// One server or one set of Sentinels, shared by all tests; each has a prefix of its own.
pub(crate) struct Site {
    sentinel: bool,
    pub(crate) prefix: String,
}

impl Site {
    pub(crate) fn direct() -> Self {
        SERVER.get_or_init(RedisServer::start);
        Self::new(false)
    }

    pub(crate) fn sentinel() -> Self {
        SENTINELS.get_or_init(|| Mutex::new(Sentinels::start()));
        Self::new(true)
    }

    fn new(sentinel: bool) -> Self {
        Self { sentinel, prefix: format!("site{}:", SITES.fetch_add(1, Ordering::Relaxed)) }
    }

    pub(crate) fn url(&self) -> String {
        match self.sentinel {
            true => SENTINELS.get().unwrap().lock().unwrap().url(),
            false => SERVER.get().unwrap().url(),
        }
    }

    pub(crate) fn cli(&self, command: &[&str]) -> String {
        match self.sentinel {
            true => SENTINELS.get().unwrap().lock().unwrap().primary().cli(command),
            false => SERVER.get().unwrap().cli(command),
        }
    }

    /// The server's databases, as shards.
    fn hosts(&self, count: u8) -> Vec<String> {
        let url = self.url();
        (0..count).map(|number| format!("{url}/{number}")).collect()
    }

    pub(crate) fn builder(&self) -> RedisCoreBuilder {
        self.sharded(1)
    }

    pub(crate) fn sharded(&self, shards: u8) -> RedisCoreBuilder {
        RedisCoreLayer::builder_with_hosts(self.hosts(shards)).prefix(&self.prefix)
    }

    pub(crate) async fn layer(&self) -> RedisCoreLayer {
        self.builder().connect().await.unwrap()
    }
}
