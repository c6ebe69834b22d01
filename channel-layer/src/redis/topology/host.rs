//! Where Redis is, as users of the crate say it.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use super::{cluster::Cluster, connector::Connector, pool::Pool, sentinel::Sentinels, target::Target, url};
use crate::{
    BoxError, LayerError,
    redis::{
        access::{self, Access, Account, Address, Login},
        tls::TlsOptions,
        trust::Server,
    },
    shard::slot,
};

/// Where one Redis is: a server, a primary that Sentinels watch, or a whole Redis Cluster.
///
/// Usually made from a text, as in `Host::from("redis://127.0.0.1:6379/0")`; everything that takes a
/// host takes such a text too:
///
/// | text | what |
/// | --- | --- |
/// | `redis://[[user]:password@]host[:port][/db]` | one server; `valkey://` is the same |
/// | `rediss://…` | the same with TLS; ends in `#insecure` to accept any certificate, which is logged as a warning |
/// | `unix:///path[?db=n]` | one server on this machine |
/// | `redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/name[/db]` | the primary of that name; the addresses are those of the Sentinels, port 26379 by default |
/// | `redis+cluster://[[user]:password@]host[:port][,host[:port]…]` | a Redis Cluster; some of its nodes are enough |
/// | `rediss+sentinel://…`, `rediss+cluster://…` | the same with TLS, to the Sentinels too |
///
/// What has a meaning of its own in a URL must be percent-encoded (`/` in a password is `%2F`).
/// Options after `?`: `db`, `username`, `password`; `sentinel_username` and `sentinel_password`, as the
/// Sentinels are signed in to with these alone; with TLS `ssl_ca_certs`, `ssl_certfile` and
/// `ssl_keyfile` (paths of PEM files), `ssl_cert_reqs=none` (like `#insecure`) and `tls_server_name`, the name the
/// certificate must hold if it is not the host's. Time limits and pool sizes meant for Python's client
/// are ignored, so that both sides of a site can use one text; any other option is an error.
///
/// A host made from an unusable text is accepted here and refused by the layer, or by `FromStr` at
/// once, with [`LayerError::Config`]. Neither errors nor `Debug` show the text, as it may hold a
/// password.
#[derive(Clone)]
pub struct Host(Result<Spec, String>);

/// What a text says.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) kind: Kind,
    pub(super) account: Account,
    /// For the Sentinels themselves.
    pub(super) sentinel: Account,
    pub(super) tls: Option<Tls>,
    /// The two accounts, as they are now: whoever connects looks there.
    pub(super) login: Arc<Login>,
    sentinel_login: Arc<Login>,
}

#[derive(Clone)]
pub(super) enum Kind {
    One(Address),
    Sentinel { addresses: Vec<Address>, master_name: String },
    Cluster(Vec<Address>),
}

#[derive(Clone, Default)]
pub(super) struct Tls {
    pub(super) insecure: bool,
    pub(super) server_name: Option<String>,
    /// What this host says for itself; goes before what the layer is told for all of them.
    pub(super) options: TlsOptions,
    /// The two halves of the client certificate, until [`Spec::checked`] has put them together.
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) key: Option<Vec<u8>>,
}

impl Host {
    /// A server at an address, without a password.
    pub fn tcp(host: &str, port: u16) -> Self {
        Self::of(Kind::One(Address::Tcp(host.into(), port)))
    }

    /// A server behind a Unix socket.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::of(Kind::One(Address::Unix(Arc::new(path.as_ref().to_path_buf()))))
    }

    /// The primary which the Sentinels at these addresses (host and port) know as `master_name`. They
    /// are asked whenever a connection is made; the first that knows the name as a primary which is not
    /// down decides.
    pub fn sentinel<H: Into<String>>(addresses: impl IntoIterator<Item = (H, u16)>, master_name: &str) -> Self {
        Self::of(Kind::Sentinel { addresses: all(addresses), master_name: master_name.to_owned() })
    }

    /// The Redis Cluster to which the nodes at these addresses (host and port) belong.
    pub fn cluster<H: Into<String>>(addresses: impl IntoIterator<Item = (H, u16)>) -> Self {
        Self::of(Kind::Cluster(all(addresses)))
    }

    /// Signs in with a password, as this user or, without one, as `default`.
    #[must_use]
    pub fn credentials(self, user: Option<&str>, password: &str) -> Self {
        self.with(|spec| {
            spec.account.user = user.map(str::to_owned);
            spec.account.password = Some(password.to_owned());
        })
    }

    /// Signs in to the Sentinels; without this they are asked without a password.
    #[must_use]
    pub fn sentinel_credentials(self, user: Option<&str>, password: &str) -> Self {
        self.with(|spec| {
            let password = Some(password.to_owned());
            spec.sentinel = Account { user: user.map(str::to_owned), password, database: 0 };
        })
    }

    /// The number of the database, 0 by default. Pub/sub hears the same in all databases of a server.
    #[must_use]
    pub fn database(self, number: u32) -> Self {
        self.with(|spec| spec.account.database = number)
    }

    /// Uses TLS, for the Sentinels too. The certificate must hold `server_name` or, without it, the
    /// host's name or IP address.
    #[must_use]
    pub fn tls(self, server_name: Option<&str>) -> Self {
        self.with(|spec| {
            let tls = spec.tls.get_or_insert_default();
            tls.server_name = server_name.map(str::to_owned);
        })
    }

    /// The certificates (PEM) to trust instead of the public authorities; goes before what a layer is
    /// told for all its hosts. Changes nothing without TLS.
    #[must_use]
    pub fn root_certificates(self, pem: &[u8]) -> Self {
        self.with(|spec| {
            if let Some(tls) = &mut spec.tls {
                tls.options.roots = Some(pem.to_vec());
            }
        })
    }

    /// The certificate to show to servers that want one, with its chain, and its key (both PEM); goes
    /// before what a layer is told for all its hosts. Changes nothing without TLS.
    #[must_use]
    pub fn client_certificate(self, chain: &[u8], key: &[u8]) -> Self {
        self.with(|spec| {
            if let Some(tls) = &mut spec.tls {
                tls.options.client = Some((chain.to_vec(), key.to_vec()));
            }
        })
    }

    /// Whether connections to it use TLS.
    pub fn uses_tls(&self) -> bool {
        self.0.as_ref().is_ok_and(|spec| spec.tls.is_some())
    }

    /// Whether it is a Redis Cluster.
    pub fn is_cluster(&self) -> bool {
        self.0.as_ref().is_ok_and(|spec| matches!(spec.kind, Kind::Cluster(_)))
    }

    /// Where it is, for comparing: `host:port`, `unix:path`, `name@host:port,…` behind Sentinels, each with `/database`;
    /// `cluster:host:port,…`. Without credentials. Empty if the host cannot be meant.
    pub fn place(&self) -> String {
        let Ok(spec) = &self.0 else { return String::new() };
        let shown = |addresses: &[Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let database = spec.account.database;
        match &spec.kind {
            Kind::One(address @ Address::Tcp(..)) => format!("{address}/{database}"),
            Kind::One(address @ Address::Unix(_)) => format!("unix:{address}/{database}"),
            Kind::Sentinel { addresses, master_name } => format!("{master_name}@{}/{database}", shown(addresses)),
            Kind::Cluster(addresses) => format!("cluster:{}", shown(addresses)),
        }
    }

    /// What opens connections to it for commands of the caller's own, which the layers know nothing
    /// about. Fails with [`LayerError::Config`] if the host cannot be meant.
    pub fn connector(&self) -> Result<Connector, LayerError> {
        Ok(Connector::new(self.spec()?.resolve(&TlsOptions::default())?))
    }

    /// A pool of at most `size` connections to each of its servers, for short questions of the caller's own. Fails with
    /// [`LayerError::Config`] if the host cannot be meant.
    pub fn pool(&self, size: usize) -> Result<Pool, LayerError> {
        Pool::new(self.spec()?, size)
    }

    /// Whether the two are the same servers, reached in the same way, whatever the credentials and certificates.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Ok(own), Ok(other)) => own.is_same_place(other),
            _ => false,
        }
    }

    /// Signs in as the other host says from now on, and with its certificates, on new connections of all that was made
    /// of this host; the open ones stay. Changes nothing, and says so, if the other is not the same place, or if
    /// its certificates cannot be used.
    pub fn take_credentials(&self, other: &Self) -> bool {
        let (Ok(own), Ok(other)) = (&self.0, &other.0) else { return false };
        let can_be = own.is_same_place(other) && other.resolve(&TlsOptions::default()).is_ok();
        if can_be {
            own.login.set(&other.login);
            own.sentinel_login.set(&other.sentinel_login);
        }
        can_be
    }

    /// Whether connections to it are made with the same certificates as those to the other.
    pub fn has_certificates_of(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Ok(own), Ok(other)) => own.login.certificates() == other.login.certificates(),
            _ => false,
        }
    }

    fn of(kind: Kind) -> Self {
        Self(Spec::new(kind).checked())
    }

    fn with(self, change: impl FnOnce(&mut Spec)) -> Self {
        Self(self.0.and_then(|mut spec| {
            change(&mut spec);
            spec.checked()
        }))
    }

    pub(super) fn spec(&self) -> Result<&Spec, LayerError> {
        self.0.as_ref().map_err(|why| LayerError::Config(format!("the URL of Redis: {why}")))
    }
}

fn all<H: Into<String>>(addresses: impl IntoIterator<Item = (H, u16)>) -> Vec<Address> {
    addresses.into_iter().map(|(host, port)| Address::Tcp(host.into().into(), port)).collect()
}

impl From<&str> for Host {
    fn from(text: &str) -> Self {
        Self(url::parse(text))
    }
}

impl From<&String> for Host {
    fn from(text: &String) -> Self {
        Self(url::parse(text))
    }
}

impl From<String> for Host {
    fn from(text: String) -> Self {
        Self(url::parse(&text))
    }
}

impl From<&Host> for Host {
    fn from(host: &Host) -> Self {
        host.clone()
    }
}

impl FromStr for Host {
    type Err = LayerError;

    fn from_str(text: &str) -> Result<Self, LayerError> {
        let host = Self::from(text);
        host.spec()?;
        Ok(host)
    }
}

impl fmt::Debug for Host {
    /// Addresses and names, no credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = match &self.0 {
            Ok(spec) => spec,
            Err(why) => return f.debug_tuple("Host").field(why).finish(),
        };
        let shown = |addresses: &[Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut f = f.debug_struct("Host");
        match &spec.kind {
            Kind::One(address) => f.field("address", &address.to_string()),
            Kind::Sentinel { addresses, master_name } => {
                f.field("sentinels", &shown(addresses)).field("master_name", master_name)
            }
            Kind::Cluster(addresses) => f.field("cluster", &shown(addresses)),
        };
        f.field("database", &spec.account.database).field("tls", &spec.tls.is_some()).finish_non_exhaustive()
    }
}

impl Spec {
    pub(super) fn new(kind: Kind) -> Self {
        let (login, sentinel_login) = (Arc::default(), Arc::default());
        Self { kind, account: Account::default(), sentinel: Account::default(), tls: None, login, sentinel_login }
    }

    fn is_same_place(&self, other: &Self) -> bool {
        let is_same_kind = match (&self.kind, &other.kind) {
            (Kind::One(own), Kind::One(other)) => own == other,
            (Kind::Sentinel { addresses, master_name }, Kind::Sentinel { addresses: others, master_name: name }) => {
                addresses == others && master_name == name
            }
            (Kind::Cluster(own), Kind::Cluster(other)) => own == other,
            _ => false,
        };
        let tls = |spec: &Self| spec.tls.as_ref().map(|tls| (tls.insecure, tls.server_name.clone()));
        is_same_kind && self.account.database == other.account.database && tls(self) == tls(other)
    }

    /// Itself, if all of it fits together.
    pub(super) fn checked(mut self) -> Result<Self, String> {
        let account = &self.account;
        if account.user.is_some() && account.password.is_none() {
            return Err("it has a user name but no password".into());
        }
        let empty = |address: &Address| match address {
            Address::Tcp(host, _) => host.is_empty(),
            Address::Unix(path) => path.as_os_str().is_empty() || path.as_os_str() == "/",
        };
        match &self.kind {
            Kind::One(address) if empty(address) => return Err("its host or path is missing".into()),
            Kind::One(_) => {}
            Kind::Sentinel { addresses, .. } | Kind::Cluster(addresses)
                if addresses.is_empty() || addresses.iter().any(empty) =>
            {
                return Err("one of its addresses is missing".into());
            }
            Kind::Sentinel { master_name, .. } if master_name.is_empty() => {
                return Err("the primary's name is missing, as in redis+sentinel://host/name".into());
            }
            Kind::Sentinel { .. } => {}
            Kind::Cluster(_) if account.database != 0 => return Err("a cluster has only database 0".into()),
            Kind::Cluster(_) => {}
        }
        if let Some(tls) = &mut self.tls {
            match (tls.certificate.take(), tls.key.take()) {
                (Some(certificate), Some(key)) => tls.options.client = Some((certificate, key)),
                (None, None) => {}
                _ => return Err("ssl_certfile and ssl_keyfile need each other".into()),
            }
        }
        // Not those of the host that this was made of.
        let certificates = || self.tls.as_ref().map(|tls| tls.options.clone()).unwrap_or_default();
        self.login = Arc::new(Login::new(self.account.clone(), certificates()));
        self.sentinel_login = Arc::new(Login::new(self.sentinel.clone(), certificates()));
        Ok(self)
    }

    /// How connections to the servers themselves are made; `options` where the host says nothing.
    fn access(&self, login: &Arc<Login>, options: &TlsOptions) -> Result<Arc<Access>, LayerError> {
        let tls =
            |tls: &Tls| access::Tls::new(login.certificates(), options.clone(), tls.insecure, tls.server_name.clone());
        let tls = self.tls.as_ref().map(tls).transpose()?;
        Ok(Arc::new(Access { login: Arc::clone(login), tls }))
    }

    pub(super) fn resolve(&self, options: &TlsOptions) -> Result<Resolved, LayerError> {
        let access = self.access(&self.login, options)?;
        Ok(match &self.kind {
            Kind::One(address) => Resolved::Target(Target::direct(address.clone(), access, Server::default())),
            Kind::Sentinel { addresses, master_name } => {
                let to_sentinels = self.access(&self.sentinel_login, options)?;
                let sentinels = Sentinels::new(addresses.clone(), master_name.clone(), to_sentinels);
                Resolved::Target(Target::sentinel(sentinels, access))
            }
            Kind::Cluster(addresses) => Resolved::Cluster(Arc::new(Cluster::new(addresses.clone(), access))),
        })
    }
}

pub(super) enum Resolved {
    Target(Target),
    Cluster(Arc<Cluster>),
}

impl Resolved {
    /// How to reach the server; in a cluster the node that has `key`.
    pub(super) async fn target(&self, key: &[u8]) -> Result<Target, BoxError> {
        match self {
            Self::Target(target) => Ok(target.clone()),
            Self::Cluster(cluster) => {
                cluster.refresh().await?;
                let node = cluster.node_of(slot(key)).ok_or("no node of the cluster has the key")?;
                Ok(cluster.target(&node))
            }
        }
    }
}
