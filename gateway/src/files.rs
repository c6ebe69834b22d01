//! How many connections the process has files for. Those that the node itself needs must not be used up by
//! clients, or a lost connection to Redis or the database could not be made again.

use crate::config::Config;

/// Files of the node that it always may need: Redis, listeners, the certificates of a moment.
const OWN: usize = 64;

/// Files of a connection to the database: a SQLite file is three, and of a hung server the old ones stay a while.
const PER_DATABASE_CONNECTION: usize = 3;

/// Connections on the internal listener, at most; less where there are few files.
const INTERNAL: usize = 512;

/// Connections on the public listener besides sockets: handshakes, pages, and the balancer's questions.
const VISITORS: usize = 32;

/// Fewer sockets than this are hardly meant.
const FEW: usize = 256;

/// What the process may open files for. Several nodes in one process each take all of them for theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Files {
    /// Connections on the public listener.
    pub(crate) connections: usize,
    /// Sockets among them.
    pub(crate) sockets: usize,
    /// Connections on the internal listener.
    pub(crate) internal: usize,
}

impl Files {
    /// As the process is now.
    pub(crate) fn of(config: &Config) -> Self {
        // A system that does not tell its limit is taken for one without.
        let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
        // A thread of the runtime may have a ring.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let sites = if config.reads_site() { config.django.database_connections } else { 0 };
        let own = OWN + threads + PER_DATABASE_CONNECTION * (config.database_connections + sites) as usize;
        Self::within(usize::try_from(limit).unwrap_or(usize::MAX), own)
    }

    fn within(limit: usize, own: usize) -> Self {
        let internal = (limit / 8).clamp(2, INTERNAL);
        let connections = limit.saturating_sub(own + internal).max(2);
        Self { connections, sockets: connections.saturating_sub(VISITORS).max(1), internal }
    }

    /// The limit of sockets that holds, where one is configured, or 0. Says so if it is not the one that is meant.
    pub(crate) fn limit(self, configured: usize) -> usize {
        let sockets = self.sockets;
        match configured {
            0 if sockets < FEW => tracing::warn!(sockets, "the limit of open files leaves room for few sockets"),
            0 => tracing::info!(sockets, "the limit of open files leaves room for this many"),
            configured if configured > sockets => {
                tracing::warn!(
                    configured,
                    sockets,
                    "the limit of open files leaves room for less than limits.connections"
                );
            }
            configured => return configured,
        }
        sockets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_files_are_left() {
        assert_eq!(Files::within(20_000, 96), Files { connections: 19_392, sockets: 19_360, internal: 512 });
        assert_eq!(Files::within(1_024, 96), Files { connections: 800, sockets: 768, internal: 128 });
        assert_eq!(Files::within(64, 96), Files { connections: 2, sockets: 1, internal: 8 });
        let files = Files::within(usize::MAX, 96);
        assert_eq!((files.limit(0), files.limit(5)), (files.sockets, 5));
        assert_eq!(Files::within(1_024, 96).limit(5_000), 768);
    }
}
