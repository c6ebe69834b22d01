//! One connection through the proxy.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    Shared,
    frames::{Filter, Frames},
};

/// How the bytes of one direction are treated.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flow {
    pub(super) delay: Duration,
    pub(super) state: State,
    /// Connections accepted before this many have got into a hole.
    pub(super) stranded: u64,
}

impl Flow {
    /// What is done with the bytes of the connection that was accepted as this one.
    fn state_of(&self, number: u64) -> State {
        if number < self.stranded { State::Hole } else { self.state }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Pass,
    Hold,
    Hole,
}

/// What all connections have in common for one direction.
#[derive(Debug)]
pub(super) struct Direction {
    flow: watch::Sender<Flow>,
    /// Bytes until a connection is cut; `u64::MAX` is never.
    left: AtomicU64,
    bytes: AtomicU64,
}

impl Direction {
    pub(super) fn new() -> Self {
        Self { flow: watch::Sender::new(Flow::default()), left: AtomicU64::new(u64::MAX), bytes: AtomicU64::new(0) }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Flow)) {
        self.flow.send_modify(change);
    }

    pub(super) fn limit(&self, bytes: u64) {
        self.left.store(bytes, Ordering::SeqCst);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// How many of these bytes may still pass; fewer, or `true`, means that the connection is cut.
    fn allowed(&self, wanted: u64) -> (u64, bool) {
        let take = |left: u64| match left {
            u64::MAX => None,
            // Once is enough.
            left if left <= wanted => Some(u64::MAX),
            left => Some(left - wanted),
        };
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(left) => (left.min(wanted), left <= wanted),
            Err(_) => (wanted, false),
        }
    }
}

/// Resets both sides unless it ended in good order.
struct Link {
    client: TcpStream,
    server: TcpStream,
    shared: Arc<Shared>,
    orderly: bool,
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.orderly {
            reset(&self.client);
            reset(&self.server);
        }
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The stream will end with a reset when it is dropped.
pub(super) fn reset(stream: &TcpStream) {
    // It may have been reset by the other side.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Serves a connection, the `number`th from 0 that was accepted.
pub(super) async fn serve(client: TcpStream, number: u64, shared: Arc<Shared>) {
    let target = shared.target.load(Ordering::SeqCst);
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return reset(&client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    shared.open.fetch_add(1, Ordering::SeqCst);
    let mut link = Link { client, server, shared: shared.clone(), orderly: false };
    let (from_client, to_client) = link.client.split();
    let (from_server, to_server) = link.server.split();
    let requests = pump(number, from_client, to_server, &shared.to_server, None);
    let replies = pump(number, from_server, to_client, &shared.to_client, shared.filter.as_ref());
    link.orderly = tokio::try_join!(requests, replies).is_ok();
}

async fn pump(
    number: u64,
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    direction: &Direction,
    filter: Option<&Filter>,
) -> io::Result<()> {
    // On its way are as many reads as a delay may need; then the sender has to wait.
    let (queue, waiting) = mpsc::channel(4096);
    tokio::try_join!(take(number, from, queue, direction, filter), give(number, waiting, to, direction)).map(drop)
}

async fn take(
    number: u64,
    mut from: ReadHalf<'_>,
    queue: mpsc::Sender<(Instant, Vec<u8>)>,
    direction: &Direction,
    filter: Option<&Filter>,
) -> io::Result<()> {
    let mut flow = direction.flow.subscribe();
    let mut frames = Frames::default();
    let mut buffer = vec![0; 64 << 10];
    let mut lost = false;
    loop {
        let now = *flow.borrow_and_update();
        let state = now.state_of(number);
        if lost && state != State::Hole {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let changed = flow.changed();
        if state == State::Hold {
            let _ = changed.await;
            continue;
        }
        let read = tokio::select! {
            biased;
            _ = changed => continue,
            read = from.read(&mut buffer) => read,
        };
        if state == State::Hole {
            lost = true;
            if matches!(read, Ok(0) | Err(_)) {
                let _ = flow.changed().await;
            }
            continue;
        }
        let read = read?;
        if read == 0 {
            return Ok(());
        }
        let bytes = match filter {
            Some(filter) => frames.pass(&buffer[..read], filter),
            None => buffer[..read].to_vec(),
        };
        if queue.send((Instant::now() + now.delay, bytes)).await.is_err() {
            return Ok(());
        }
    }
}

async fn give(
    number: u64,
    mut waiting: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: WriteHalf<'_>,
    direction: &Direction,
) -> io::Result<()> {
    let mut flow = direction.flow.subscribe();
    while let Some((due, bytes)) = waiting.recv().await {
        sleep_until(due).await;
        // What was on its way when the link was held is held too, what it lost to a hole is lost.
        let state = flow.wait_for(|flow| flow.state_of(number) != State::Hold).await.map(|flow| flow.state_of(number));
        if matches!(state, Ok(State::Hole)) {
            let _ = flow.wait_for(|flow| flow.state_of(number) != State::Hole).await;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let (allowed, cut) = direction.allowed(bytes.len() as u64);
        direction.bytes.fetch_add(allowed, Ordering::SeqCst);
        to.write_all(&bytes[..allowed as usize]).await?;
        if cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
    to.shutdown().await
}
