//! A link that misbehaves when told to.

mod frames;
mod link;

use std::{
    io, net,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{net::TcpListener, runtime, sync::mpsc, task::JoinSet, time::timeout};

use self::{
    frames::Filter,
    link::{Direction, Flow, State},
};
use crate::net::free_port;

/// A TCP proxy on a free port of 127.0.0.1, in front of a server on this machine. It passes everything on until told
/// otherwise. An order holds for present and new connections alike, and takes effect before the call returns.
#[derive(Debug)]
pub struct ChaosProxy {
    port: u16,
    shared: Arc<Shared>,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// A direction of a connection through a [`ChaosProxy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
    /// Both.
    Both,
}

#[derive(Debug)]
struct Shared {
    target: AtomicU16,
    open: AtomicUsize,
    accepted: AtomicU64,
    to_server: Direction,
    to_client: Direction,
    /// What is done with the server's replies; only for a server that speaks Redis' protocol.
    filter: Option<Filter>,
}

struct Order {
    what: What,
    done: SyncSender<()>,
}

enum What {
    Cut,
    Refuse,
    Accept,
}

impl ChaosProxy {
    /// In front of any server on this port.
    pub fn to(port: u16) -> Self {
        Self::start(port, None)
    }

    /// In front of a Redis server that speaks no TLS on this port: its replies pass as whole values and
    /// can be dropped one by one.
    pub fn redis(port: u16) -> Self {
        Self::start(port, Some(Filter::default()))
    }

    fn start(target: u16, filter: Option<Filter>) -> Self {
        let shared = Arc::new(Shared {
            target: AtomicU16::new(target),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            to_server: Direction::new(),
            to_client: Direction::new(),
            filter,
        });
        // Somebody else may take the port between our look and our listening.
        let listener = (0..10).find_map(|_| net::TcpListener::bind(("127.0.0.1", free_port())).ok());
        let listener = listener.expect("a free port");
        listener.set_nonblocking(true).expect("a listener can be non-blocking");
        let port = listener.local_addr().expect("bound").port();
        let (orders, received) = mpsc::channel(64);
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let run = run(port, listener, received, shared.clone());
        let body = move || runtime.block_on(run).expect("the proxy can listen");
        let thread = thread::Builder::new().name("chaos-proxy".into()).spawn(body).expect("a thread");
        Self { port, shared, orders: Some(orders), thread: Some(thread) }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address to connect to as `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Everything flows again, new connections are accepted, nothing is dropped. What a
    /// [`hold`](Self::hold) kept back follows; connections that lost bytes in a
    /// [`black_hole`](Self::black_hole) are reset, because the rest would make no sense.
    pub fn pass(&self) {
        for direction in self.ways(Way::Both) {
            direction.set(|flow| *flow = Flow::default());
            direction.limit(u64::MAX);
        }
        if let Some(filter) = &self.shared.filter {
            filter.set(None);
        }
        self.order(What::Accept);
    }

    /// Every byte takes this much longer from now on, each way. It costs no throughput.
    pub fn delay(&self, by: Duration) {
        self.ways(Way::Both).for_each(|direction| direction.set(|flow| flow.delay = by));
    }

    /// Resets all connections (`RST`); new ones are accepted.
    pub fn cut(&self) {
        self.order(What::Cut);
    }

    /// New connections are refused, present ones stay.
    pub fn refuse(&self) {
        self.order(What::Refuse);
    }

    /// Ends [`refuse`](Self::refuse) alone.
    pub fn accept(&self) {
        self.order(What::Accept);
    }

    /// Nothing is read any more, so the senders' buffers fill, as on a link whose packets are dropped;
    /// afterwards everything arrives late. New connections are accepted.
    pub fn hold(&self, way: Way) {
        self.ways(way).for_each(|direction| direction.set(|flow| flow.state = State::Hold));
    }

    /// Everything is read and thrown away, the end of a connection too. New connections are accepted.
    pub fn black_hole(&self, way: Way) {
        self.ways(way).for_each(|direction| direction.set(|flow| flow.state = State::Hole));
    }

    /// Everything of the present connections is read and thrown away, the end of a connection too. New connections
    /// pass. A firewall that has forgotten its connections behaves like this.
    pub fn strand(&self) {
        let accepted = self.accepted();
        self.ways(Way::Both).for_each(|direction| direction.set(|flow| flow.stranded = accepted));
    }

    /// Counts this many more bytes over all connections, then resets the connection of the last one, once.
    pub fn cut_after(&self, bytes: u64, way: Way) {
        self.ways(way).for_each(|direction| direction.limit(bytes));
    }

    /// Drops every `nth` message that the server pushes to subscribers; 1 drops all. All other bytes pass, so the
    /// subscription is healthy and deaf. Only for [`redis`](Self::redis).
    pub fn drop_messages(&self, nth: usize) {
        let mut seen = 0;
        self.drop_replies(move |reply| {
            let counted = frames::is_message(reply);
            seen += usize::from(counted);
            counted && seen % nth == 0
        });
    }

    /// Drops each of the server's replies and pushes for which `drop` returns `true`; `drop` gets the bytes of the
    /// whole value. An earlier order to drop ends. Only for [`redis`](Self::redis).
    pub fn drop_replies(&self, drop: impl FnMut(&[u8]) -> bool + Send + 'static) {
        let filter = self.shared.filter.as_ref().expect("only a proxy made by ChaosProxy::redis reads replies");
        filter.set(Some(Box::new(drop)));
    }

    /// How many replies were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.shared.filter.as_ref().map_or(0, Filter::dropped)
    }

    /// New connections go to the server on another port, as when a name's address has changed.
    pub fn retarget(&self, port: u16) {
        self.shared.target.store(port, Ordering::SeqCst);
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many bytes have gone through, of both directions if asked for both.
    pub fn bytes(&self, way: Way) -> u64 {
        self.ways(way).map(Direction::bytes).sum()
    }

    fn ways(&self, way: Way) -> impl Iterator<Item = &Direction> {
        let to_server = (way != Way::ToClient).then_some(&self.shared.to_server);
        let to_client = (way != Way::ToServer).then_some(&self.shared.to_client);
        to_server.into_iter().chain(to_client)
    }

    fn order(&self, what: What) {
        let (done, wait) = sync_channel(1);
        let orders = self.orders.as_ref().expect("open until dropped");
        orders.try_send(Order { what, done }).unwrap_or_else(|_| panic!("the proxy's thread has died"));
        wait.recv().expect("the proxy's thread lives");
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(
    port: u16,
    listener: net::TcpListener,
    mut orders: mpsc::Receiver<Order>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let mut listener = Some(TcpListener::from_std(listener)?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(Order { what, done }) = order else { return Ok(()) };
                match what {
                    What::Cut => {
                        connections.shutdown().await;
                        // Those that connected but were not yet looked at.
                        while let Ok(Ok(client)) = timeout(Duration::ZERO, accepted(listener.as_ref())).await {
                            link::reset(&client);
                        }
                    }
                    What::Refuse => listener = None,
                    What::Accept if listener.is_none() => {
                        listener = Some(TcpListener::bind(("127.0.0.1", port)).await?);
                    }
                    What::Accept => {}
                }
                let _ = done.send(());
            }
            client = accepted(listener.as_ref()) => {
                if let Ok(client) = client {
                    let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(link::serve(client, number, shared.clone()));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn accepted(listener: Option<&TcpListener>) -> io::Result<tokio::net::TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}
