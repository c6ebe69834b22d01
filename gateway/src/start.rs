//! Puts a node together from the settings: everything that serves sockets, started and stopped as one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use channel_layer::{ChannelLayer, Host, Serializer};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::auth;
use crate::auth::django::{Django, SourceFailed};
use crate::auth::{AskDjango, Jwks, SignIn, Tokens};
use crate::bridge::{self, Bridges};
use crate::budget::Budget;
use crate::config::{Config, ConfigErrors, LayerKind, Limits};
use crate::consumers::bridged;
use crate::consumers::routing::Router;
use crate::current::Current;
use crate::files::Files;
use crate::health::{self, Health};
use crate::http::api::LINES_AT_ONCE;
use crate::http::{server, visitors};
use crate::hub::Hub;
use crate::layer;
use crate::memory::MemoryLimit;
use crate::metrics::{ByResult, Metrics};
use crate::names::GroupNames;
use crate::node::Node;
use crate::peers::Peers;
use crate::publish::{changes, ingest};
use crate::rate::{Bucket, WrongKeys};
use crate::redis::{self, Deployment};
use crate::seal::Seals;
use crate::socket::registry::Registry;
use crate::storing::admission::Admissions;
use crate::storing::store;
use crate::storing::writer::Writer;
use crate::tokens::JwtAuth;
use crate::traces::{Report, Traces};
use crate::upkeep::{drain, memberships, memory, recheck, retention, secrets, site, skew, stalls, watch};

/// How long a node waits for Redis and the database when it starts.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long what is being written may take when a node stops, and then saying goodbye on the layer.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Bytes of the bodies of API calls, with what is made of them.
const BODIES: u32 = 16 * 1024 * 1024;

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The channel layer cannot be used.
    #[error("the channel layer cannot be used")]
    Layer(#[from] channel_layer::LayerError),
    /// The database cannot be used.
    #[error("the database cannot be used")]
    Store(#[from] persistence::StoreError),
    /// Another deployment uses this Redis.
    #[error(transparent)]
    Deployment(#[from] redis::DeploymentError),
    /// Redis does not answer beside the layer.
    #[error(transparent)]
    Redis(#[from] redis::RedisFailed),
    /// There can be no client of HTTP, for the ways to sign in that need one.
    #[error("HTTP cannot be used")]
    Http(#[source] reqwest::Error),
    /// The site's sessions cannot be read with these settings.
    #[error(transparent)]
    Site(#[from] SourceFailed),
    /// Another node has this one's id.
    #[error(transparent)]
    NodeId(#[from] redis::NodeIdError),
    /// An address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
}

/// Why other settings were not taken over.
#[derive(Debug, thiserror::Error)]
pub enum NotReloaded {
    /// As often as a process can.
    #[error("the settings were reloaded too often: restart the node")]
    TooOften,
    /// The channel layer cannot use them.
    #[error("the channel layer cannot use them")]
    Layer(#[from] channel_layer::LayerError),
    /// A database cannot use them.
    #[error("the database cannot use them")]
    Store(#[from] persistence::StoreError),
    /// There can be no client of HTTP.
    #[error("HTTP cannot be used")]
    Http(#[source] reqwest::Error),
}

/// A running node. Call [`drain`](Self::drain) to leave well; dropping it stops it at once.
pub struct RunningNode {
    node: Arc<Node>,
    /// Address of the public listener, with the port the system chose if it was 0.
    pub public: SocketAddr,
    /// Address of the internal listener.
    pub internal: SocketAddr,
    accepting: CancellationToken,
    stop: CancellationToken,
    _stop_on_drop: tokio_util::sync::DropGuard,
    background: TaskTracker,
    /// The node's id in Redis, to be given back.
    id: Option<Arc<redis::NodeId>>,
}

impl RunningNode {
    /// Starts a node: database, layer, hub, listeners.
    pub async fn start(mut config: Config, router: Router) -> Result<Self, NodeError> {
        let files = Files::of(&config);
        config.limits.connections = files.limit(config.limits.connections);
        let (store, deployment, secrets) =
            patiently("the database", || store::open_store(&config), |error| error.is_retryable()).await?;
        let stop = CancellationToken::new();
        let stop_on_drop = stop.clone().drop_guard();
        let (tasks, background) = (TaskTracker::new(), TaskTracker::new());
        let retryable = |error: &channel_layer::LayerError| !matches!(error, channel_layer::LayerError::Config(_));
        let layer = patiently("the channel layer", || layer::connect(&config), retryable).await?;
        let server = redis::Server::of(&config)?;
        let mut claimed = None;
        if let Some(server) = &server {
            let deployment = Deployment::new(server.clone(), &config, deployment);
            let retryable = |error: &redis::DeploymentError| matches!(error, redis::DeploymentError::Unavailable(_));
            patiently("Redis", || deployment.claim(), retryable).await?;
            let id = redis::NodeId::new(server.clone(), &config);
            let retryable = |error: &redis::NodeIdError| matches!(error, redis::NodeIdError::Unavailable(_));
            patiently("Redis", || id.take(), retryable).await?;
            claimed = Some((deployment, Arc::new(id)));
            let hint = redis::warn_of_other_layer(config.layer.clone());
            background.spawn(stop.clone().run_until_cancelled_owned(hint));
        }
        let names = GroupNames::new(&config.user_group, config.layer.raw_group_names);
        let (metrics, registry) = (Arc::new(Metrics::new()), Arc::new(Registry::new()));
        let health = Arc::new(Health::new(&metrics));
        let seals = Arc::new(Seals::new(&secrets, &metrics));
        let django = if config.reads_site() {
            Some(Arc::new(Django::start(&config, &store, &health.clock, &metrics, &background, &stop)?))
        } else {
            None
        };
        let sign_in = sign_in(&config, django.clone(), &health)?;
        let start_hub = || {
            Hub::start(
                Arc::clone(&layer),
                store.clone(),
                Arc::clone(&registry),
                &health,
                Arc::clone(&seals),
                &config,
                &background,
                &stop,
            )
        };
        let hub = patiently("the channel layer", start_hub, retryable).await?;
        let public = server::listen(config.listen).map_err(|error| NodeError::Listen(config.listen, error))?;
        let internal =
            server::listen(config.internal_listen).map_err(|error| NodeError::Listen(config.internal_listen, error))?;
        let addresses = (public.local_addr(), internal.local_addr());
        let bridges = bridges(&config, deployment, &metrics, &layer);
        let traces = traces(&config, &health, &background, &stop)?;
        let admissions =
            Arc::new(Admissions::start(&store, config.limits.rooms_per_user, &metrics, &background, &stop));
        let peers = Arc::new(Peers::new(&config, &layer, &seals, &health, &hub, &registry, &admissions));
        let node = Arc::new(Node {
            writer: Writer::start(
                config.limits.write_queue_bytes,
                &store,
                &layer,
                &names,
                &seals,
                &health,
                &background,
                &stop,
            ),
            admissions,
            handshakes: parking_lot::Mutex::new(Bucket::full(config.limits.handshakes_per_second, Instant::now())),
            sign_in: Current::new(sign_in),
            django,
            peers,
            seals,
            resume_reads: Semaphore::new(config.limits.resumes_at_once),
            changes: Semaphore::new(4),
            clock: health.clock.clone(),
            health,
            publishing: Budget::new(config.limits.publish_bytes),
            bodies: Budget::new(BODIES),
            untold: parking_lot::Mutex::default(),
            wrong_keys: WrongKeys::default(),
            refusals: parking_lot::Mutex::new(Bucket::full(LINES_AT_ONCE, Instant::now())),
            memory: MemoryLimit::of(config.limits.memory_bytes),
            traces,
            draining: AtomicBool::new(false),
            config: Current::new(config),
            store,
            layer,
            redis: server.clone(),
            registry,
            metrics,
            names,
            bridges,
            hub,
            tasks,
        });
        skew::at_start(&node).await;
        let accepting = stop.child_token();
        let leaving = Arc::clone(&node);
        let ready = health::watch(Arc::clone(&node.health), node.layer.clone(), node.store.clone(), move || {
            leaving.is_draining()
        });
        background.spawn(stop.clone().run_until_cancelled_owned(ready));
        background.spawn(stop.clone().run_until_cancelled_owned(skew::watch(Arc::clone(&node))));
        let mut id = None;
        if let Some((deployment, taken)) = claimed {
            let keep = Arc::clone(&taken).keep(Arc::clone(&node.health));
            background.spawn(stop.clone().run_until_cancelled_owned(keep));
            id = Some(taken);
            background
                .spawn(stop.clone().run_until_cancelled_owned(deployment.keep_claiming(Arc::clone(&node.health))));
        }
        background.spawn(stop.clone().run_until_cancelled_owned(watch::watch(Arc::clone(&node))));
        background.spawn(stop.clone().run_until_cancelled_owned(recheck::watch(Arc::clone(&node))));
        if let Some(jwks) = &node.sign_in.tokens.jwks {
            node.health.note_part(auth::JWKS, false, true);
            let keep = Arc::clone(jwks).keep(Arc::clone(&node.health));
            background.spawn(stop.clone().run_until_cancelled_owned(keep));
        }
        if let Some(ask) = &node.sign_in.ask {
            background.spawn(stop.clone().run_until_cancelled_owned(Arc::clone(ask).keep()));
        }
        if node.django.is_some() {
            background.spawn(stop.clone().run_until_cancelled_owned(site::watch(Arc::clone(&node))));
        }
        node.bridges.start(&background, &stop);
        memory::start(&node, &background, &stop);
        stalls::start(&node.metrics, &background, &stop);
        background.spawn(stop.clone().run_until_cancelled_owned(memberships::watch(Arc::clone(&node))));
        background.spawn(stop.clone().run_until_cancelled_owned(changes::tell_again(Arc::clone(&node))));
        background.spawn(stop.clone().run_until_cancelled_owned(secrets::keep_reading(Arc::clone(&node))));
        background.spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&node.peers).answer_others()));
        background.spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&node.peers).tell_of_losses()));
        if let Some(server) = server {
            let ingest = ingest::ingest(Arc::clone(&node), server);
            background.spawn(stop.clone().run_until_cancelled_owned(ingest));
        }
        background.spawn(retention::run(Arc::clone(&node), accepting.clone()));
        let (router, most) = (Arc::new(router), files.connections);
        background.spawn(visitors::serve_public(Arc::clone(&node), router, public, most, accepting.clone()));
        background.spawn(visitors::serve_internal(Arc::clone(&node), internal, files.internal, stop.clone()));
        let listen = |error| NodeError::Listen(node.config.listen, error);
        let (public, internal) = (addresses.0.map_err(listen)?, addresses.1.map_err(listen)?);
        Ok(Self { node, public, internal, accepting, stop, _stop_on_drop: stop_on_drop, background, id })
    }

    /// Takes over what these settings can change while the node runs; see [`Config::takes`].
    pub fn reload(&self, new: &Config) -> Result<(), NotReloaded> {
        let node = &self.node;
        let files = Files::of(new);
        let before = &*node.config;
        let config = before.with_changes_of(new);
        let limits = Limits { connections: files.limit(new.limits.connections), ..config.limits.clone() };
        let config = Config { limits, ..config };
        // With --dev the secret is this process's own, and goes on.
        let keeps_keys = config.dev && config.jwt_secrets.is_empty();
        let sign_in = self.sign_in_anew(&config)?;
        if before.takes(new, "layer-encryption-keys") && node.redis.is_some() {
            let keys = config.layer.encryption_keys.iter().map(|key| key.expose_secret().to_owned());
            node.layer.set_encryption_keys(&keys.collect::<Vec<_>>())?;
        }
        // Whoever connects from now on signs in anew; nobody is cut off.
        for (setting, own, others) in [
            ("redis-url", before.layer.hosts.as_slice(), new.layer.hosts.as_slice()),
            ("django.cache_url", before.django.cache.as_slice(), new.django.cache.as_slice()),
        ] {
            if before.takes(new, setting) {
                own.iter().zip(others).for_each(|(own, other)| _ = own.take_credentials(other));
            }
        }
        node.store.take_credentials(config.database_url.expose_secret())?;
        if let Some(django) = &node.django {
            django.take_credentials(&config.django)?;
            if !config.django.secret_keys.is_empty() {
                django.set_keys(&config.django);
            }
        }
        node.bridges.take_secrets(&config.bridges);
        node.bridges.take_layer_keys(&config.layer.encryption_keys);
        if let Some(traces) = &config.traces {
            node.traces.set_headers(&traces.headers);
        }
        node.admissions.set_rooms_per_user(config.limits.rooms_per_user);
        if let (Some(ask), Some(url)) = (&sign_in.ask, &config.auth_url) {
            ask.set(url, config.auth_secret.as_ref());
        }
        let replaced = (keeps_keys || node.sign_in.replace(sign_in)) && node.config.replace(config);
        if replaced { Ok(()) } else { Err(NotReloaded::TooOften) }
    }

    /// The ways to sign in by these settings; a JWKS from another place is read by a task of its own.
    fn sign_in_anew(&self, config: &Config) -> Result<SignIn, NotReloaded> {
        let node = &self.node;
        let now = &*node.sign_in;
        let jwks = match (&now.tokens.jwks, &config.jwks) {
            (Some(jwks), Some(source)) if jwks.is_of(source) => Some(Arc::clone(jwks)),
            (before, source) => {
                let jwks = source.clone().map(Jwks::new).transpose().map_err(NotReloaded::Http)?.map(Arc::new);
                if let Some(before) = before {
                    before.give_up();
                    node.health.forget_part(auth::JWKS);
                }
                if let Some(jwks) = &jwks {
                    let keep = Arc::clone(jwks).keep(Arc::clone(&node.health));
                    self.background.spawn(self.stop.clone().run_until_cancelled_owned(keep));
                }
                jwks
            }
        };
        Ok(SignIn {
            tokens: Tokens { auth: jwt(config), jwks },
            django: now.django.clone(),
            ask: now.ask.clone(),
            user_name: now.user_name,
            anonymous: now.anonymous,
            clock: node.clock.clone(),
        })
    }

    /// What the node's parts share.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Leaves without losing anyone: not ready, no new sockets, the open ones closed over the drain
    /// window, then everything stopped. Returns how many sockets were left.
    pub async fn drain(self) -> usize {
        let left = drain::drain(&self.node, &self.accepting).await;
        self.stop.cancel();
        self.background.close();
        // What is being written gets its time; the store bounds it.
        let _ = tokio::time::timeout(LAST_WORDS, self.background.wait()).await;
        match tokio::time::timeout(LAST_WORDS, self.node.layer.close()).await {
            Ok(Ok(())) => {}
            // The others find out by themselves.
            Ok(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "groups could not be left"),
            Err(_) => tracing::warn!("groups could not be left in time"),
        }
        if let Some(id) = &self.id
            && !matches!(tokio::time::timeout(LAST_WORDS, id.give_back()).await, Ok(Ok(())))
        {
            tracing::debug!("the node's id could not be given back; it is free in some seconds");
        }
        left
    }
}

fn bridges(config: &Config, deployment: Uuid, metrics: &Metrics, layer: &Arc<dyn ChannelLayer>) -> Bridges {
    let identity = bridge::Identity { node: config.node_id.clone(), deployment: deployment.to_string() };
    let leaving = bridge::Leaving { window: config.drain.window, per_second: config.drain.reconnects_per_second };
    let about_layer = bridge::Layer {
        kind: match config.layer.kind {
            LayerKind::Memory => "memory",
            LayerKind::PubSub => "pubsub",
            LayerKind::Core => "core",
        },
        prefix: config.layer.prefix.clone(),
        serializer: match config.layer.serializer {
            Serializer::MsgPack => "msgpack",
            Serializer::Json => "json",
        },
        raw_group_names: config.layer.raw_group_names,
        hosts: config.layer.hosts.iter().map(Host::place).collect(),
        keys: config.layer.encryption_keys.clone(),
    };
    Bridges::new(&config.bridges, &identity, leaving, &metrics.bridge, bridged::CODES, layer, &about_layer)
}

fn traces(
    config: &Config,
    health: &Arc<Health>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Traces, NodeError> {
    let Some(settings) = &config.traces else { return Ok(Traces::default()) };
    let spans = |result| health.metrics.traces_spans.get_or_create(&ByResult { result }).clone();
    let health = Arc::clone(health);
    let report = Report {
        overflowed: spans("overflowed"),
        failed: spans("failed"),
        sent: spans("sent"),
        note: Box::new(move |turn| health.note("traces", turn)),
    };
    Traces::start(settings, &config.node_id, report, tasks, stop).map_err(NodeError::Http)
}

fn jwt(config: &Config) -> JwtAuth {
    if config.jwt_secrets.is_empty() && config.dev {
        // Good for this process: nobody else can sign in, and a restart signs everybody out.
        let secret = SecretString::from(Uuid::new_v4().to_string());
        return Config { jwt_secrets: vec![secret], ..config.clone() }.jwt();
    }
    config.jwt()
}

fn ask_django(config: &Config, url: reqwest::Url, health: &Arc<Health>) -> Result<AskDjango, reqwest::Error> {
    AskDjango::new(url, config.auth_secret.as_ref(), config.auth_time, config.auth_at_once, health)
}

fn sign_in(config: &Config, django: Option<Arc<Django>>, health: &Arc<Health>) -> Result<SignIn, NodeError> {
    let jwks = config.jwks.clone().map(Jwks::new).transpose().map_err(NodeError::Http)?;
    let ask = config.auth_url.clone().map(|url| ask_django(config, url, health));
    Ok(SignIn {
        tokens: Tokens { auth: jwt(config), jwks: jwks.map(Arc::new) },
        django,
        ask: ask.transpose().map_err(NodeError::Http)?.map(Arc::new),
        user_name: config.user_name,
        anonymous: config.anonymous,
        clock: health.clock.clone(),
    })
}

/// What speaks against these settings that only the site's database knows: a claim that holds an id means nothing
/// without the users. Returns a warning where the database does not answer.
pub async fn check_users(config: &Config) -> Result<Option<String>, ConfigErrors> {
    let Some(claim) = &config.jwt_user_id_claim else { return Ok(None) };
    let (django, own) = (&config.django, &config.database_url);
    let is_file = django.database_url.as_ref().unwrap_or(own).expose_secret().starts_with("sqlite:");
    match auth::django::check_tables(django, own).await {
        Ok(()) => Ok(None),
        Err(error) if error.is_retryable() && !is_file => Ok(Some(
            "the database with the site's users does not answer: nobody comes by an id until it does".to_owned(),
        )),
        Err(_) => Err(ConfigErrors(vec![format!(
            "jwt-user-id-claim: {claim} holds ids, and the names to them cannot be read from the table {}: set \
             django.database_url, django.user_table and its columns, and let the role read them",
            django.tables.users
        )])),
    }
}

/// Whether sessions and users of the site are read with these settings; an error if that is not possible now.
pub async fn check_site(config: &Config) -> Result<bool, NodeError> {
    if config.reads_site() {
        auth::django::check_tables(&config.django, &config.database_url).await.map_err(SourceFailed::from)?;
    }
    Ok(config.reads_site())
}

/// Tries again for a while: at a start of a whole site the parts come up in any order.
async fn patiently<T, E, F>(what: &str, connect: impl Fn() -> F, retryable: impl Fn(&E) -> bool) -> Result<T, E>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let give_up = tokio::time::Instant::now() + START_PATIENCE;
    loop {
        match connect().await {
            Err(error) if retryable(&error) && tokio::time::Instant::now() < give_up => {
                tracing::warn!(error = &error as &dyn std::error::Error, "{what} is not there yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            result => return result,
        }
    }
}
