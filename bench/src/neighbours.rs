//! Others on the node, who should not be noticed by those that are measured.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::frames;
use crate::publisher::Publisher;
use crate::socket::{Tokens, request};

const STEP: Duration = Duration::from_millis(5);
/// Sockets of the user who does not read.
const SLOW: usize = 10;
/// What each of them is sent every step: 3.2 MB a second.
const LARGE: usize = 16 * 1024;
/// A slow socket is opened again after this, closed by the gateway or not.
const SLOW_LIFE: Duration = Duration::from_secs(3);

/// Who is beside the measured sockets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Neighbour {
    /// Ten sockets of a user who is sent more than anybody takes, and never reads.
    Slow,
    /// A user who sends so many frames per second into a room of his own, and comes back when closed.
    Writer(u32),
}

impl Neighbour {
    /// Goes on until `stop` is set.
    pub(crate) fn run(self, address: SocketAddr, secret: &str, redis_url: &str, stop: &AtomicBool) -> Result<()> {
        let tokens = Tokens::new(secret);
        match self {
            Self::Slow => slow(address, &tokens, &Publisher::start(redis_url)?, stop),
            Self::Writer(frames) => writer(address, &tokens, frames, stop),
        }
    }
}

fn slow(address: SocketAddr, tokens: &Tokens, publisher: &Publisher, stop: &AtomicBool) -> Result<()> {
    let text = "x".repeat(LARGE);
    while !stop.load(Ordering::Relaxed) {
        let sockets = (0..SLOW).map(|_| join(address, tokens, "slow")).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        while begun.elapsed() < SLOW_LIFE && !stop.load(Ordering::Relaxed) {
            publisher.notify("slow", &text)?;
            std::thread::sleep(STEP);
        }
        drop(sockets);
    }
    Ok(())
}

fn writer(address: SocketAddr, tokens: &Tokens, per_second: u32, stop: &AtomicBool) -> Result<()> {
    let mut frame = Vec::new();
    frames::encode(frames::TEXT, br#"{"cate":"chat","group_name":"writer","message":"again"}"#, &mut frame);
    let interval = STEP.max(Duration::from_secs(1) / per_second);
    let burst = frame.repeat((f64::from(per_second) * interval.as_secs_f64()).round() as usize);
    let mut scratch = vec![0; 64 * 1024];
    let mut was_in = false;
    while !stop.load(Ordering::Relaxed) {
        // Refused while the database is away, for instance: it tries again.
        if let Ok(socket) = join(address, tokens, "writer") {
            was_in = true;
            socket.set_nonblocking(true)?;
            while !stop.load(Ordering::Relaxed) && write_and_read(&socket, &burst, &mut scratch) {
                std::thread::sleep(interval);
            }
        }
        std::thread::sleep(STEP);
    }
    was_in.then_some(()).context("always refused")
}

/// Whether the connection lives.
fn write_and_read(mut socket: &TcpStream, bytes: &[u8], scratch: &mut [u8]) -> bool {
    let lives = |result: std::io::Result<usize>| match result {
        Ok(count) => count > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    lives(socket.write(bytes)) && lives(socket.read(scratch))
}

/// Opens a socket to a room of the user's own.
fn join(address: SocketAddr, tokens: &Tokens, user: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let shown = format!("Authorization: Bearer {}", tokens.sign(user)?);
    socket.write_all(&request(address, user, &shown, false))?;
    let mut status = [0; 12];
    socket.read_exact(&mut status)?;
    status.ends_with(b"101").then_some(socket).context("refused")
}
