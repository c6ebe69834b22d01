//! How many connections the process has files for. Those that the node itself needs must not be used up by
//! clients, or a lost connection to Redis or the database could not be made again.

use crate::config::Config;

/// Files of the node besides its connections to the database: Redis, listeners, and whatever a moment needs.
const OWN: usize = 64;

/// Connections on the public listener besides sockets: handshakes, pages, and the balancer's questions.
const VISITORS: usize = 32;

/// What the process may open files for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Files {
    /// Connections on the public listener.
    pub(crate) connections: usize,
    /// Sockets among them.
    pub(crate) sockets: usize,
}

impl Files {
    /// As the process is now.
    pub(crate) fn of(config: &Config) -> Self {
        // A system that does not tell its limit is taken for one without.
        let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
        Self::within(usize::try_from(limit).unwrap_or(usize::MAX), config.database_connections as usize)
    }

    fn within(limit: usize, database: usize) -> Self {
        let connections = limit.saturating_sub(OWN + database).max(2);
        Self { connections, sockets: connections.saturating_sub(VISITORS).max(1) }
    }

    /// The limit of sockets that holds, where one is configured, or 0.
    pub(crate) fn limit(self, configured: usize) -> usize {
        if configured == 0 {
            return self.sockets;
        }
        if configured > self.sockets {
            let sockets = self.sockets;
            tracing::warn!(configured, sockets, "limits.connections is more than the process may open files for");
        }
        configured.min(self.sockets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_files_are_left() {
        assert_eq!(Files::within(20_000, 10), Files { connections: 19_926, sockets: 19_894 });
        assert_eq!(Files::within(64, 10), Files { connections: 2, sockets: 1 });
        let files = Files::within(usize::MAX, 10);
        assert_eq!((files.limit(0), files.limit(5)), (files.sockets, 5));
        assert_eq!(Files::within(1_024, 10).limit(5_000), 918);
    }
}
