//! Connections that short questions share: pools of `deadpool-redis`, one for each server that is asked.
//!
//! Where to connect is found out as for a layer's connections, so a primary that Sentinels name and the node of a
//! cluster that has a key are followed. The managers that `deadpool-redis` has for Sentinels and clusters (0.23.1) take
//! neither certificates nor time limits, which is [its issue 404](https://github.com/deadpool-rs/deadpool/issues/404),
//! and do not ask again while a connection lives. A connection on which anything failed is not used again: the server may be
//! another one's replica by now.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use deadpool_redis::{Manager, PoolConfig, PoolError, QueueMode, Runtime, Timeouts};
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, TlsCertificates, Value,
    aio::ConnectionLike,
    io::{AsyncDNSResolver, tcp::TcpSettings},
};

use super::host::{Resolved, Spec, Tls};
use crate::{
    LayerError,
    redis::{
        access::{Address, Login, OPENING},
        tls::TlsOptions,
    },
};

/// How soon a connection that was used before must say that it lives.
const ALIVE: Duration = Duration::from_millis(500);
/// The longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Most servers with a pool. Those of a cluster, or a primary and those before it; over it all pools are made anew.
const PLACES: usize = 64;

/// A few connections to a [`Host`](crate::Host) for short questions of the caller's own, kept by `deadpool-redis` and
/// asked for a sign of life before they are used again. Made by [`Host::pool`](crate::Host::pool). Clones share them.
///
/// Answers have no bound of their own: ask for what cannot be large, such as `GETRANGE key 0 99` instead of `GET key`.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    to: Resolved,
    login: Arc<Login>,
    tls: Option<Tls>,
    /// For each server.
    size: usize,
    pools: Mutex<Pools>,
}

/// The pools of an account and certificates as they were at some time.
#[derive(Default)]
struct Pools {
    version: u64,
    by_address: HashMap<Address, deadpool_redis::Pool>,
}

/// A connection of a [`Pool`] for a while; the next one gets it when this is dropped.
pub struct Pooled {
    /// `None` never, but while this is dropped.
    connection: Option<deadpool_redis::Connection>,
    is_doubtful: bool,
}

impl Pool {
    pub(super) fn new(spec: &Spec, size: usize) -> Result<Self, LayerError> {
        let to = spec.resolve(&TlsOptions::default())?;
        let (login, tls) = (Arc::clone(&spec.login), spec.tls.clone());
        Ok(Self(Arc::new(Inner { to, login, tls, size, pools: Mutex::default() })))
    }

    /// A connection to the server, to the primary where Sentinels know it, in a cluster to the node that has `key`.
    ///
    /// Fails with [`LayerError::Unavailable`] and the cause, or with [`LayerError::Timeout`] when all are in use, within
    /// 6 seconds.
    pub async fn get(&self, key: &[u8]) -> Result<Pooled, LayerError> {
        let address = async { self.0.to.target(key).await?.locate().await };
        let address = address.await.map_err(LayerError::Unavailable)?;
        let connection = self.0.pool(&address)?.get().await.map_err(|error| match error {
            PoolError::Timeout(_) => LayerError::Timeout,
            error => LayerError::Unavailable(format!("{address}: {error}").into()),
        })?;
        Ok(Pooled { connection: Some(connection), is_doubtful: false })
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

impl Inner {
    fn pool(&self, address: &Address) -> Result<deadpool_redis::Pool, LayerError> {
        let mut pools = self.pools.lock();
        let version = self.login.version();
        if pools.version != version {
            // Their idle connections go; those in use are taken back by nobody.
            *pools = Pools { version, ..Pools::default() };
        }
        let pools = &mut pools.by_address;
        if let Some(pool) = pools.get(address) {
            return Ok(pool.clone());
        }
        let wrong = |error: &dyn std::fmt::Display| LayerError::Config(error.to_string());
        let manager = self.manager(address).map_err(|error| wrong(&error))?;
        let config = PoolConfig {
            max_size: self.size,
            timeouts: Timeouts { wait: Some(ANSWER), create: Some(OPENING), recycle: Some(ALIVE) },
            // The one used last is most likely alive.
            queue_mode: QueueMode::Lifo,
        };
        let builder = deadpool_redis::Pool::builder(manager).config(config).runtime(Runtime::Tokio1);
        let pool = builder.build().map_err(|error| wrong(&error))?;
        if pools.len() >= PLACES {
            pools.clear();
        }
        pools.insert(address.clone(), pool.clone());
        Ok(pool)
    }

    fn manager(&self, address: &Address) -> RedisResult<Manager> {
        let account = self.login.account();
        let mut settings = RedisConnectionInfo::default().set_db(account.database.into());
        if let Some(user) = &account.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &account.password {
            settings = settings.set_password(password);
        }
        let mut config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(OPENING)).set_response_timeout(Some(ANSWER));
        let addr = match (address, &self.tls) {
            (Address::Unix(path), _) => ConnectionAddr::Unix(path.to_path_buf()),
            (Address::Tcp(host, port), None) => ConnectionAddr::Tcp(host.to_string(), *port),
            (Address::Tcp(host, port), Some(tls)) => {
                if tls.server_name.is_some() {
                    config = config.set_dns_resolver(Elsewhere(host.clone()));
                }
                ConnectionAddr::TcpTls {
                    host: tls.server_name.clone().unwrap_or_else(|| host.to_string()),
                    port: *port,
                    insecure: tls.insecure,
                    tls_params: None,
                }
            }
        };
        let mut info = addr
            .into_connection_info()?
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        if self.tls.is_some() {
            let TlsOptions { roots, client } = &*self.login.certificates();
            let own = |(chain, key): &(Vec<u8>, Vec<u8>)| ClientTlsConfig {
                client_cert: chain.clone(),
                client_key: key.clone(),
            };
            let certificates = TlsCertificates { client_tls: client.as_ref().map(own), root_cert: roots.clone() };
            // Nothing else makes the parameters of TLS.
            info = Client::build_with_tls(info, certificates)?.get_connection_info().clone();
        }
        Manager::new_with_config(info, config)
    }
}

/// Connects to this host, whatever name its certificate has to hold. The crate `redis` takes one for both.
struct Elsewhere(Arc<str>);

impl AsyncDNSResolver for Elsewhere {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        _name: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((&*self.0, port)).await?.collect();
            Ok(Box::new(found.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

impl Pooled {
    fn connection(&mut self) -> RedisResult<&mut deadpool_redis::Connection> {
        self.connection.as_mut().ok_or_else(|| RedisError::from((redis::ErrorKind::Client, "given back")))
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.is_doubtful) {
            drop(deadpool_redis::Connection::take(connection));
        }
    }
}

fn is_good(answer: &Value) -> bool {
    !matches!(answer, Value::ServerError(_))
}

impl ConnectionLike for Pooled {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            // Also when nobody waits for the answer any more.
            let before = std::mem::replace(&mut self.is_doubtful, true);
            let answer = self.connection()?.req_packed_command(command).await;
            self.is_doubtful = before || !answer.as_ref().is_ok_and(is_good);
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let before = std::mem::replace(&mut self.is_doubtful, true);
            let answers = self.connection()?.req_packed_commands(pipeline, offset, count).await;
            self.is_doubtful = before || !answers.as_ref().is_ok_and(|answers| answers.iter().all(is_good));
            answers
        })
    }

    fn get_db(&self) -> i64 {
        self.connection.as_ref().map_or(0, |connection| connection.get_db())
    }
}
