//! The bridges of a node: which workers there are, and which of them gets a socket.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use channel_layer::ChannelLayer;
use parking_lot::Mutex;
use secrecy::SecretString;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::class::{About, Class};
use super::dial::dial;
use super::discovery::{Address, MOST_WORKERS};
use super::hello::greet;
use super::link::{Link, LinkError};
use super::metrics::{Because, BridgeMetrics, Ended, OfPath};
use super::proof::print;
use super::seat::{Accept, Answer, Client, Deny, Seated};
use super::settings::{Settings, Tls};
use super::wire::{self, Layer, Scope};
use crate::seldom::Seldom;

/// How long a handshake waits when there is no worker that could take it: one that is started again needs a moment.
const NO_WORKER_PATIENCE: Duration = Duration::from_secs(2);

/// How soon a worker is dialled again, the first time and at most; and one that knows another secret.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_AT_MOST: Duration = Duration::from_secs(2);
const AGAIN_WITH_SECRET: Duration = Duration::from_secs(5);

/// Classes that are kept although no socket has them.
const CLASSES: usize = 1000;

/// The shortest time over which clients are spread.
const LEAST_SPREAD: Duration = Duration::from_millis(100);

/// Who the node is, to workers.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) node: String,
    pub(crate) deployment: String,
}

/// How fast clients may come back when a worker leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaving {
    /// At most.
    pub(crate) window: Duration,
    /// So many in a second; 0: over the whole window.
    pub(crate) per_second: u32,
}

impl Leaving {
    /// Over which time so many come back, within the worker's window where it says one.
    pub(super) fn spread(self, sockets: usize, window: Option<Duration>) -> Duration {
        let window = window.unwrap_or(self.window);
        let needed = match self.per_second {
            0 => window,
            rate => Duration::from_secs_f64(sockets as f64 / f64::from(rate)),
        };
        needed.min(window).max(LEAST_SPREAD)
    }

    /// When a worker leaves: over which time its sockets are told, and within which time each of them comes back.
    /// Together not more than the worker's window.
    pub(super) fn goodbye(self, sockets: usize, window: Duration) -> (Duration, Duration) {
        let told = window / 2;
        let needed = match self.per_second {
            0 => window,
            rate => Duration::from_secs_f64(sockets as f64 / f64::from(rate)),
        };
        (told, needed.saturating_sub(told).min(told).max(LEAST_SPREAD))
    }
}

/// Why a handshake came to nothing.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The application refused it, or failed.
    Denied(Deny),
    /// There is no worker.
    NoWorker,
    /// All workers have as many handshakes as they may, or as many sockets.
    Busy,
    /// The application did not answer in time.
    Late,
    /// The worker went meanwhile.
    Lost,
}

/// All bridges of a node, in the order of the settings.
#[derive(Debug, Default)]
pub(crate) struct Bridges(Vec<Arc<Bridge>>);

/// One bridge and its links.
pub(crate) struct Bridge {
    pub(crate) settings: Settings,
    /// The newest, which may be another one than at the start.
    secret: Mutex<SecretString>,
    /// The newest, as the secret.
    tls: Mutex<Option<Tls>>,
    pub(super) identity: Identity,
    pub(super) leaving: Leaving,
    pub(super) metrics: BridgeMetrics,
    pub(super) layer: Arc<dyn ChannelLayer>,
    about_layer: Layer,
    /// The newest, as the secret.
    layer_keys: Mutex<Vec<SecretString>>,
    /// Those that share handlers, by name. As many as the site has.
    classes: Mutex<HashMap<String, Arc<Class>>>,
    links: Mutex<Vec<Arc<Link>>>,
    /// Since when no worker could take a socket.
    alone_since: Mutex<Option<Instant>>,
    /// Who waits for a place, one after the other.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
    /// A worker has come.
    newcomer: Notify,
    moving: Semaphore,
    /// Where workers were at the last look, and where somebody is dialling.
    wanted: Mutex<HashSet<Address>>,
    dialled: Mutex<HashSet<Address>>,
    /// An address is free for a successor.
    let_go: Notify,
}

/// A worker, as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkerInfo {
    /// The bridge's path, as configured.
    pub(crate) path: String,
    pub(crate) worker: String,
    pub(crate) app: String,
    pub(crate) address: String,
    pub(crate) sockets: usize,
    pub(crate) opening: usize,
    /// `ok`, `silent` or `draining`.
    pub(crate) state: &'static str,
}

impl Bridges {
    /// Makes them; nobody is dialled before [`start`](Self::start).
    pub(crate) fn new(
        all: &[Settings],
        identity: &Identity,
        leaving: Leaving,
        metrics: &BridgeMetrics,
        codes: &[u16],
        layer: &Arc<dyn ChannelLayer>,
        about_layer: &Layer,
    ) -> Self {
        let bridge = |settings: &Settings| {
            metrics.begin(settings.path.as_str(), codes);
            Arc::new(Bridge {
                settings: settings.clone(),
                secret: Mutex::new(settings.secret.clone()),
                tls: Mutex::new(settings.tls.clone()),
                identity: identity.clone(),
                leaving,
                metrics: metrics.clone(),
                layer: Arc::clone(layer),
                about_layer: about_layer.clone(),
                layer_keys: Mutex::new(about_layer.keys.clone()),
                classes: Mutex::default(),
                links: Mutex::default(),
                alone_since: Mutex::new(Some(Instant::now())),
                turn: tokio::sync::Mutex::default(),
                changed: Notify::new(),
                newcomer: Notify::new(),
                moving: Semaphore::new(settings.max_opening.max(1)),
                wanted: Mutex::default(),
                dialled: Mutex::default(),
                let_go: Notify::new(),
            })
        };
        Self(all.iter().map(bridge).collect())
    }

    /// Keeps links to all workers until `stop`.
    pub(crate) fn start(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        for bridge in &self.0 {
            let (bridge, own, stop) = (Arc::clone(bridge), tasks.clone(), stop.clone());
            tasks.spawn(async move { bridge.look_for_workers(&own, &stop).await });
        }
    }

    /// Takes over other secrets and certificates: links that are made from now on are made with those.
    pub(crate) fn take_secrets(&self, new: &[Settings]) {
        for (bridge, new) in self.0.iter().zip(new) {
            *bridge.secret.lock() = new.secret.clone();
            bridge.tls.lock().clone_from(&new.tls);
        }
    }

    /// Other keys of the layer, of which workers are told from now on.
    pub(crate) fn take_layer_keys(&self, keys: &[SecretString]) {
        for bridge in &self.0 {
            keys.clone_into(&mut bridge.layer_keys.lock());
        }
    }

    /// The first bridge that a path, as it was sent, belongs to.
    pub(crate) fn find(&self, raw_path: &str) -> Option<&Arc<Bridge>> {
        self.0.iter().find(|bridge| bridge.settings.path.matches(raw_path))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether each of them has a worker.
    pub(crate) fn have_workers(&self) -> bool {
        self.0.iter().all(|bridge| bridge.links.lock().iter().any(|link| !link.is_quiet() && !link.is_draining()))
    }

    /// All workers that this node is linked to.
    pub(crate) fn workers(&self) -> Vec<WorkerInfo> {
        let mut workers: Vec<_> = self.0.iter().flat_map(|bridge| bridge.workers()).collect();
        workers.sort_by(|one, other| (&one.path, &one.worker).cmp(&(&other.path, &other.worker)));
        workers
    }
}

/// What a look at the links says.
enum Choice {
    /// This one; one of its handshakes is taken.
    Free(Arc<Link>),
    /// All have as many handshakes as they may.
    Busy,
    /// There is none, or all are full.
    Nobody,
}

impl Bridge {
    /// As configured.
    pub(crate) fn path(&self) -> &str {
        self.settings.path.as_str()
    }

    /// One more socket is open.
    pub(crate) fn opened(&self) {
        self.metrics.sockets.get_or_create(&self.of_path()).inc();
    }

    /// One less.
    pub(crate) fn left(&self) {
        self.metrics.sockets.get_or_create(&self.of_path()).dec();
    }

    /// A socket was closed with this code; none: with one of the application's own.
    pub(crate) fn closed(&self, code: Option<u16>) {
        let code = match code {
            None => "app".to_owned(),
            // Clients choose among thousands.
            Some(code @ (1000..=1015 | 4000 | 4008 | 4401 | 4403 | 4404)) => code.to_string(),
            Some(3000..=3999) => "3000".to_owned(),
            Some(_) => "4999".to_owned(),
        };
        self.metrics.closed.get_or_create(&Ended { path: self.path().to_owned(), code }).inc();
    }

    /// Something that was for the application was dropped.
    pub(crate) fn drop_one(&self, reason: &'static str) {
        self.metrics.drop_one(reason);
    }

    /// What workers have to know.
    pub(super) fn secret(&self) -> SecretString {
        self.secret.lock().clone()
    }

    /// What workers are told of the layer.
    pub(super) fn layer_body(&self) -> Vec<u8> {
        let secret = self.secret();
        let prints: Vec<_> = self.layer_keys.lock().iter().filter_map(|key| print(&secret, key)).collect();
        self.about_layer.body(&prints)
    }

    /// The class that a worker names.
    pub(super) fn class(&self, about: &About) -> Arc<Class> {
        let mut classes = self.classes.lock();
        let class = match classes.get(&about.name) {
            Some(class) => Arc::clone(class),
            None => {
                if classes.len() >= CLASSES {
                    // Made with ever new arguments: those that nobody has any more make room.
                    classes.retain(|_, class| Arc::strong_count(class) > 1);
                }
                let class = Class::new(self.path(), about, &self.metrics);
                classes.insert(about.name.clone(), Arc::clone(&class));
                class
            }
        };
        drop(classes);
        class.learn(about);
        class
    }

    fn of_path(&self) -> OfPath {
        OfPath { path: self.path().to_owned() }
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        let info = |link: &Arc<Link>| WorkerInfo {
            path: self.path().to_owned(),
            worker: link.worker.clone(),
            app: link.app.clone(),
            address: link.address.to_string(),
            sockets: link.sockets(),
            opening: link.opening.load(Ordering::Relaxed),
            state: match (link.is_draining(), link.is_quiet()) {
                (true, _) => "draining",
                (false, true) => "silent",
                (false, false) => "ok",
            },
        };
        self.links.lock().iter().map(info).collect()
    }

    /// Opens a socket at a worker and waits for what its application says, until `deadline`. Also returns by what it is
    /// [opened again](Self::open_again).
    pub(crate) async fn open(
        self: &Arc<Self>,
        scope: &Scope<'_>,
        client: Arc<dyn Client>,
        deadline: Instant,
    ) -> Result<(Seated, Accept, Vec<u8>), Refused> {
        let body = scope.open(0);
        let (seated, accept) = self.open_with(&body, client, deadline).await?;
        Ok((seated, accept, body))
    }

    /// Opens a socket that is open already at another worker.
    pub(crate) async fn open_again(
        self: &Arc<Self>,
        first: &[u8],
        attempt: u64,
        state: Option<&[u8]>,
        client: &Arc<dyn Client>,
        deadline: Instant,
    ) -> Result<Seated, Refused> {
        let body = wire::reopen(first, attempt, state);
        loop {
            match self.open_with(&body, Arc::clone(client), deadline).await {
                // Another one may still do it.
                Err(Refused::Lost) if Instant::now() < deadline => {}
                result => return result.map(|(seated, _)| seated),
            }
        }
    }

    /// Waits until there is a worker that stays.
    pub(crate) async fn has_worker(&self) {
        loop {
            let newcomer = self.newcomer.notified();
            if self.links.lock().iter().any(|link| link.is_usable()) {
                return;
            }
            newcomer.await;
        }
    }

    /// A turn among the sockets that go on elsewhere: as many at once as workers take handshakes.
    pub(crate) async fn turn_to_move(&self) -> Option<SemaphorePermit<'_>> {
        self.moving.acquire().await.ok()
    }

    /// Counts a socket that was to go on elsewhere.
    pub(crate) fn moved(&self, silence: Option<Duration>) {
        self.metrics.reattached(self.path(), silence);
    }

    /// Over which time one more client comes back.
    pub(crate) fn spread(&self) -> Duration {
        self.leaving.spread(1, None)
    }

    async fn open_with(
        self: &Arc<Self>,
        body: &[u8],
        client: Arc<dyn Client>,
        deadline: Instant,
    ) -> Result<(Seated, Accept), Refused> {
        let opening = self.metrics.opening.get_or_create(&self.of_path()).clone();
        opening.inc();
        let _opening = Finally(|| {
            opening.dec();
        });
        let mut tried = Vec::new();
        loop {
            let link = self.free_worker(&tried, deadline).await?;
            let seated = link.open(body, Arc::clone(&client));
            match timeout_at(deadline, seated.answer()).await {
                Ok(Answer::Accept(accept)) => return Ok((seated, accept)),
                Ok(Answer::Deny(deny)) => return Err(Refused::Denied(deny)),
                Ok(Answer::Lost) => return Err(Refused::Lost),
                Ok(Answer::NotTaken) => {
                    seated.not_taken();
                    tried.push(link);
                }
                Err(_) => return Err(Refused::Late),
            }
        }
    }

    /// A worker with a place for one more handshake. Who waits for that waits in line.
    async fn free_worker(&self, tried: &[Arc<Link>], deadline: Instant) -> Result<Arc<Link>, Refused> {
        if let Ok(_turn) = self.turn.try_lock()
            && let Choice::Free(link) = self.choose(tried)
        {
            return Ok(link);
        }
        let Ok(_turn) = timeout_at(deadline, self.turn.lock()).await else { return Err(Refused::Busy) };
        loop {
            let (until, refused) = match self.choose(tried) {
                Choice::Free(link) => return Ok(link),
                Choice::Busy => (deadline, Refused::Busy),
                // One that leaves will have a successor; one that is full has none.
                Choice::Nobody if tried.iter().all(|link| link.is_draining()) => {
                    (deadline.min(self.give_up_at()), Refused::NoWorker)
                }
                Choice::Nobody => return Err(Refused::Busy),
            };
            if timeout_at(until, self.changed.notified()).await.is_err() {
                return Err(refused);
            }
        }
    }

    fn give_up_at(&self) -> Instant {
        *self.alone_since.lock().get_or_insert_with(Instant::now) + NO_WORKER_PATIENCE
    }

    /// The less loaded of two random workers, of those that have a place.
    fn choose(&self, tried: &[Arc<Link>]) -> Choice {
        let links = self.links.lock();
        let usable = |link: &&Arc<Link>| link.is_usable() && !tried.iter().any(|tried| Arc::ptr_eq(tried, link));
        let usable: Vec<&Arc<Link>> = links.iter().filter(usable).collect();
        if usable.is_empty() {
            return Choice::Nobody;
        }
        *self.alone_since.lock() = None;
        let free: Vec<&Arc<Link>> =
            usable.into_iter().filter(|link| link.opening.load(Ordering::Relaxed) < link.max_opening).collect();
        let link = match free[..] {
            [] => return Choice::Busy,
            [only] => only,
            _ => {
                let one = rand::random_range(0..free.len());
                let other = (one + rand::random_range(1..free.len())) % free.len();
                if free[one].sockets() <= free[other].sockets() { free[one] } else { free[other] }
            }
        };
        // Only here it grows, and the links are locked.
        link.opening.fetch_add(1, Ordering::Relaxed);
        Choice::Free(Arc::clone(link))
    }

    /// Something about the links has changed: who waits for a place looks again.
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }

    fn add(&self, link: &Arc<Link>) {
        self.links.lock().push(Arc::clone(link));
        *self.alone_since.lock() = None;
        self.metrics.links.get_or_create(&self.of_path()).inc();
        self.changed();
        self.newcomer.notify_waiters();
    }

    fn remove(&self, link: &Arc<Link>) {
        let mut links = self.links.lock();
        links.retain(|other| !Arc::ptr_eq(other, link));
        if links.is_empty() {
            self.alone_since.lock().get_or_insert_with(Instant::now);
        }
        drop(links);
        self.metrics.links.get_or_create(&self.of_path()).dec();
        link.end();
        self.changed();
    }

    /// A worker leaves: whoever listens at its address from now on is dialled while its own link goes on. For an
    /// address only one link that leaves is kept beside another one, whatever they say.
    pub(super) fn let_go(&self, link: &Link) {
        let links = self.links.lock();
        if links.iter().any(|other| other.address == link.address && other.is_let_go()) {
            return;
        }
        link.note_let_go();
        drop(links);
        self.dialled.lock().remove(&link.address);
        self.let_go.notify_one();
    }

    /// Looks where workers are, and has each of them dialled.
    async fn look_for_workers(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        let (failed, many) = (Seldom::new(), Seldom::new());
        let workers = &self.settings.workers;
        loop {
            match stop.run_until_cancelled(workers.look()).await {
                None => return,
                // Those that were known are dialled on.
                Some(Err(error)) => {
                    self.metrics.link_errors.get_or_create(&Because { reason: "address" }).inc();
                    if let Some(times) = failed.again() {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(path = self.path(), error, times, "workers cannot be looked for");
                    }
                }
                Some(Ok((found, too_many))) => {
                    if too_many && many.again().is_some() {
                        tracing::warn!(
                            path = self.path(),
                            most = MOST_WORKERS,
                            "there are more workers than are dialled"
                        );
                    }
                    *self.wanted.lock() = found.iter().cloned().collect();
                    for address in found {
                        if self.dialled.lock().insert(address.clone()) {
                            let (bridge, stop) = (Arc::clone(self), stop.clone());
                            tasks.spawn(async move { bridge.keep_link(address, &stop).await });
                        }
                    }
                }
            }
            let again = async {
                self.let_go.notified().await;
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(workers.interval()) => {}
                () = again => {}
            }
        }
    }

    /// Keeps a link to the worker at an address for as long as there is one.
    async fn keep_link(self: Arc<Self>, address: Address, stop: &CancellationToken) {
        let mut trouble = Trouble::default();
        let mut pause = AGAIN;
        while self.wanted.lock().contains(&address) {
            pause = match self.link(&address, stop, &mut trouble).await {
                Linked::Never => (pause * 2).min(trouble.pause),
                Linked::Was => AGAIN,
                // Somebody else dials it now.
                Linked::LetGo => return,
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
        self.dialled.lock().remove(&address);
    }

    /// One link from its beginning to its end.
    async fn link(self: &Arc<Self>, address: &Address, stop: &CancellationToken, trouble: &mut Trouble) -> Linked {
        let start = async {
            let tls = self.tls.lock().clone();
            let (mut reader, mut writer) = dial(&self.settings.workers, tls, address).await?;
            let (welcome, early) = greet(self, &mut reader, &mut writer).await?;
            Ok::<_, LinkError>((reader, writer, welcome, early))
        };
        let (reader, writer, welcome, early) = match stop.run_until_cancelled(start).await {
            None => return Linked::Never,
            Some(Ok(started)) => started,
            Some(Err(error)) => {
                self.note(&error);
                trouble.tell(self.path(), address, &error);
                return Linked::Never;
            }
        };
        *trouble = Trouble::default();
        let link = Arc::new(Link::new(Arc::clone(self), address.clone(), welcome));
        self.add(&link);
        let _removed = Finally(|| self.remove(&link));
        let (worker, app) = (link.worker.as_str(), link.app.as_str());
        tracing::info!(path = self.path(), %address, worker, app, "linked to a worker");
        let result = link.run(reader, writer, early, stop).await;
        let sockets = link.sockets();
        match result {
            Ok(()) => {}
            Err(LinkError::Closed(_)) if link.is_draining() => {
                tracing::info!(path = self.path(), %address, worker, sockets, "a worker has left");
            }
            Err(error) => {
                self.note(&error);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(path = self.path(), %address, worker, sockets, error, "the link to a worker is lost");
            }
        }
        if link.is_let_go() { Linked::LetGo } else { Linked::Was }
    }

    fn note(&self, error: &LinkError) {
        self.metrics.link_errors.get_or_create(&Because { reason: error.reason() }).inc();
    }
}

/// What became of a link.
enum Linked {
    /// It did not come to be.
    Never,
    Was,
    /// It was, and has left its address to a successor.
    LetGo,
}

/// What the log has been told of an address that cannot be linked to.
struct Trouble {
    told: HashMap<&'static str, Seldom>,
    pause: Duration,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { told: HashMap::new(), pause: AGAIN_AT_MOST }
    }
}

impl Trouble {
    fn tell(&mut self, path: &str, address: &Address, error: &LinkError) {
        self.pause = if matches!(error, LinkError::Secret) { AGAIN_WITH_SECRET } else { AGAIN_AT_MOST };
        if let Some(times) = self.told.entry(error.reason()).or_default().again() {
            let error = error as &dyn std::error::Error;
            tracing::warn!(path, %address, error, times, "no link to a worker");
        }
    }
}

/// Does something whatever ends the block.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").field("path", &self.path()).finish_non_exhaustive()
    }
}
