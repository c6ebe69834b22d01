//! Ports.

use std::{
    hash::{BuildHasher, RandomState},
    net::TcpListener,
    sync::atomic::{AtomicU32, Ordering},
};

/// A TCP port on 127.0.0.1 that is free just now. It lies below the range the kernel takes
/// for outgoing connections, so a server can be stopped and started again on the same port. Another
/// process may still take it first: a caller that starts a server must check that it is its own.
pub fn free_port() -> u16 {
    static TRIES: AtomicU32 = AtomicU32::new(0);
    const FIRST: u64 = 15_000;
    const COUNT: u64 = 17_000;
    for _ in 0..1_000 {
        let seed = RandomState::new().hash_one(TRIES.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + seed % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// Like [`free_port`], with the port 10,000 above it free as well.
pub(crate) fn free_port_pair() -> u16 {
    for _ in 0..1_000 {
        let port = free_port();
        // The upper one, too, below the range of outgoing connections.
        if port < 22_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
    panic!("no two free ports 10,000 apart");
}
