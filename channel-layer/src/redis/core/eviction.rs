//! A Redis that throws keys away when it is full throws away groups and what waits in queues.

use super::shared::Shared;
use crate::redis::{
    answer::{Answer, command},
    commander::PATIENCE,
};

impl Shared {
    /// Says so in the log if a server of a shard evicts.
    pub(super) async fn warn_of_eviction(&self, shard: usize) {
        for server in self.commands.servers(shard) {
            // A user without the right to ask is not told; without memory limit nothing is evicted.
            let Ok(answer) = server.call(command([&b"INFO"[..], b"memory"]), PATIENCE).await else { continue };
            let Some(info) = answer.into_text().and_then(|text| String::from_utf8(text).ok()) else { continue };
            if let Some(policy) = evicts(&info)
                && self.may_warn("eviction")
            {
                tracing::warn!(
                    policy,
                    shard,
                    "Redis evicts keys when it is full, groups and queues among them: it should have noeviction"
                );
            }
        }
    }
}

/// The policy by which a server evicts, read from its `INFO memory`.
fn evicts(info: &str) -> Option<&str> {
    let value = |key: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(key));
    let limited = value("maxmemory:").is_some_and(|bytes| bytes != "0");
    value("maxmemory_policy:").filter(|policy| limited && *policy != "noeviction")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_a_limit_and_a_policy_evicts() {
        let info = |bytes: u64, policy: &str| format!("# Memory\r\nmaxmemory:{bytes}\r\nmaxmemory_policy:{policy}\r\n");
        assert_eq!(evicts(&info(1, "allkeys-lru")), Some("allkeys-lru"));
        assert_eq!(evicts(&info(1, "volatile-ttl")), Some("volatile-ttl"));
        assert_eq!(evicts(&info(1, "noeviction")), None);
        assert_eq!(evicts(&info(0, "allkeys-lru")), None);
        assert_eq!(evicts(""), None);
    }
}
