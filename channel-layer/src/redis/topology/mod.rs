//! Where all of it is: several servers that share the work, Sentinels that know the primary, a cluster.

mod cluster;
mod connector;
mod host;
mod pool;
mod race;
mod sentinel;
mod slots;
mod target;
mod url;

use std::sync::Arc;

use futures_util::future::try_join_all;

use self::host::Resolved;
pub(super) use self::{
    cluster::Cluster,
    slots::{Node, Redirection},
    target::Target,
};
pub use self::{
    connector::Connector,
    host::Host,
    pool::{Pool, Pooled},
};
use super::tls::TlsOptions;
use crate::{BoxError, LayerError};

/// What a layer's hosts are together.
#[derive(Clone)]
pub(super) enum Topology {
    /// One or more servers, each with a share of the names; their order counts.
    Shards(Arc<[Target]>),
    Cluster(Arc<Cluster>),
}

impl Topology {
    /// Makes a connection to everything and lets it go again, to see whether it works.
    pub(super) async fn try_out(&self) -> Result<(), BoxError> {
        const NAME: &str = "channel-layer:probe";
        match self {
            Self::Shards(targets) => try_join_all(targets.iter().map(|target| target.open(NAME))).await.map(drop),
            Self::Cluster(cluster) => {
                cluster.refresh().await?;
                let targets: Vec<_> = cluster.nodes().iter().map(|node| cluster.target(node)).collect();
                try_join_all(targets.iter().map(|target| target.open(NAME))).await.map(drop)
            }
        }
    }

    /// Several hosts are shards, in this order; a cluster has to be alone.
    pub(super) fn of(hosts: &[Host], tls: &TlsOptions) -> Result<Self, LayerError> {
        let mut targets = Vec::with_capacity(hosts.len());
        let mut secure = false;
        for host in hosts {
            let spec = host.spec()?;
            secure |= spec.tls.is_some();
            match spec.resolve(tls)? {
                Resolved::Target(target) => targets.push(target),
                Resolved::Cluster(cluster) if hosts.len() == 1 => {
                    needs(secure, tls)?;
                    return Ok(Self::Cluster(cluster));
                }
                Resolved::Cluster(_) => {
                    return Err(LayerError::Config("a cluster cannot be one of several hosts".into()));
                }
            }
        }
        if targets.is_empty() {
            return Err(LayerError::Config("the list of hosts is empty".into()));
        }
        needs(secure, tls)?;
        Ok(Self::Shards(targets.into()))
    }
}

/// Certificates for connections without TLS are a mistake that should not wait to be found.
fn needs(secure: bool, tls: &TlsOptions) -> Result<(), LayerError> {
    match secure || tls.is_empty() {
        true => Ok(()),
        false => Err(LayerError::Config("there are certificates, but no host uses TLS, as in rediss://".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(hosts: &[&str]) -> Result<Topology, LayerError> {
        let hosts: Vec<Host> = hosts.iter().map(|host| Host::from(*host)).collect();
        Topology::of(&hosts, &TlsOptions::default())
    }

    #[test]
    fn several_hosts_are_shards_and_a_cluster_is_alone() {
        let mixed = ["redis://a/0", "redis+sentinel://b,c/site", "unix:///d", "rediss://e"];
        assert!(matches!(parse(&mixed), Ok(Topology::Shards(targets)) if targets.len() == 4));
        assert!(matches!(parse(&["redis+cluster://a,b"]), Ok(Topology::Cluster(_))));
        for hosts in [&["redis+cluster://a", "redis://b"][..], &["redis://b", "redis+cluster://a"], &[], &["x"]] {
            assert!(matches!(parse(hosts), Err(LayerError::Config(_))), "{hosts:?}");
        }
    }

    #[test]
    fn certificates_without_tls_are_a_mistake() {
        let tls = TlsOptions { roots: Some(b"x".to_vec()), client: None };
        let Err(LayerError::Config(error)) = Topology::of(&["redis://a".into()], &tls) else { panic!() };
        assert!(error.contains("no host uses TLS"), "{error}");
    }

    #[test]
    fn hosts_built_by_hand_are_as_those_of_a_text_and_tell_no_secret() {
        let built = Host::sentinel([("a", 1), ("b", 26379)], "site")
            .credentials(Some("u"), "hidden")
            .sentinel_credentials(None, "hidden")
            .database(3)
            .tls(Some("name"));
        let text = "rediss+sentinel://u:hidden@a:1,b/site/3?sentinel_password=hidden&tls_server_name=name";
        let read = Host::from(text);
        assert_eq!(format!("{built:?}"), format!("{read:?}"));
        assert!(!format!("{built:?}").contains("hidden"));
        assert!(text.parse::<Host>().is_ok() && "redis://:hidden@".parse::<Host>().is_err());
        for wrong in [Host::tcp("", 1), Host::unix(""), Host::sentinel([("a", 1)], ""), Host::from("hidden")] {
            assert!(matches!(Topology::of(&[wrong], &TlsOptions::default()), Err(LayerError::Config(_))));
        }
        let wrong = Host::cluster([("a", 1)]).database(1);
        assert!(matches!(Topology::of(&[wrong], &TlsOptions::default()), Err(LayerError::Config(_))));
        assert!(Topology::of(&[Host::unix("/x").database(1)], &TlsOptions::default()).is_ok());
    }
}
