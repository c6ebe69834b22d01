//! One server, whose address may have to be asked for.

use std::sync::Arc;

use super::sentinel::Sentinels;
use crate::{
    BoxError,
    redis::{
        access::{Access, Address},
        connection::{Connection, Stream},
        trust::{Server, Trust},
    },
};

/// How to reach one logical server. Cheap to clone. Holds a password: it has no `Debug`.
#[derive(Clone)]
pub(crate) struct Target {
    way: Way,
    access: Arc<Access>,
    server: Server,
}

#[derive(Clone)]
enum Way {
    Direct(Address),
    Sentinel(Arc<Sentinels>),
}

impl Target {
    pub(crate) fn direct(address: Address, access: Arc<Access>, server: Server) -> Self {
        Self { way: Way::Direct(address), access, server }
    }

    /// `access` is for the primary that the Sentinels name.
    pub(crate) fn sentinel(sentinels: Sentinels, access: Arc<Access>) -> Self {
        Self { way: Way::Sentinel(Arc::new(sentinels)), access, server: Server::default() }
    }

    /// Connects, signs in, chooses the database, makes sure that the server is a primary and hears a PONG;
    /// within 2 seconds. With Sentinels it asks them first, within 2 seconds of their own.
    pub(crate) async fn open(&self, client_name: &str) -> Result<Connection, BoxError> {
        let trust = self.trust();
        Connection::on(self.stream(client_name).await?, trust).await
    }

    /// Where it is now.
    pub(crate) async fn locate(&self) -> Result<Address, BoxError> {
        match &self.way {
            Way::Direct(address) => Ok(address.clone()),
            Way::Sentinel(sentinels) => Ok(sentinels.ask().await?.primary),
        }
    }

    /// For a connection that is about to be made.
    pub(crate) fn trust(&self) -> Trust {
        self.server.trust()
    }

    /// What [`open`](Self::open) puts a connection on; it speaks RESP2.
    pub(crate) async fn stream(&self, client_name: &str) -> Result<Box<dyn Stream>, BoxError> {
        match &self.way {
            Way::Direct(address) => self.access.stream(address, client_name, true).await,
            Way::Sentinel(sentinels) => {
                let verdict = sentinels.ask().await?;
                let opened = self.access.stream(&verdict.primary, client_name, true).await;
                if opened.is_err() {
                    // It may be the one that has not heard of a failover: others first, next time.
                    sentinels.distrust(&verdict.by);
                }
                opened
            }
        }
    }
}
