//! Whether connections still lead to the right server: what one of them finds out, all of them act on.

use std::future::Future;

use tokio::sync::watch;

/// Shared by all connections of a process to one logical server.
#[derive(Clone, Default)]
pub(super) struct Server {
    /// How often its connections have been found to lead to the wrong server.
    misled: watch::Sender<u64>,
}

/// What a connection was made under. Ends for all that were made under it at once.
#[derive(Clone)]
pub(super) struct Trust {
    misled: watch::Sender<u64>,
    at: u64,
}

impl Server {
    /// For a connection that is about to be made.
    pub(super) fn trust(&self) -> Trust {
        Trust { misled: self.misled.clone(), at: *self.misled.borrow() }
    }
}

impl Trust {
    /// The connection leads to a server that is no primary, or does not hear what is published.
    pub(super) fn lose(&self) {
        // Those who find out later than others must not end the next connections.
        self.misled.send_if_modified(|misled| {
            let first = *misled == self.at;
            *misled += u64::from(first);
            first
        });
    }

    pub(super) fn is_lost(&self) -> bool {
        *self.misled.borrow() != self.at
    }

    /// Returns when somebody has lost it.
    pub(super) fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut misled, at) = (self.misled.subscribe(), self.at);
        async move {
            // It fails when nobody is left who could lose it.
            if misled.wait_for(|misled| *misled != at).await.is_err() {
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_one_connection_finds_out_ends_all_that_were_made_before_and_none_that_is_made_after() {
        let server = Server::default();
        let (one, two) = (server.trust(), server.trust());
        let waiting = two.lost();
        one.lose();
        assert!(one.is_lost() && two.is_lost() && waiting.now_or_never().is_some());
        let three = server.trust();
        two.lose();
        assert!(!three.is_lost() && three.lost().now_or_never().is_none());
    }
}
