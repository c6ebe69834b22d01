//! Ports.

use std::{
    hash::{BuildHasher, RandomState},
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::atomic::{AtomicU32, Ordering},
};

/// A TCP port on 127.0.0.1 that is free just now, and that nobody else is given by this kit, in any process, before this
/// process ends. It lies below the range the kernel takes for outgoing connections, so a server can be stopped and
/// started again on the same port. A process that does not ask this kit may still take it first: a caller that starts a
/// server must check that it is its own.
pub fn free_port() -> u16 {
    static TRIES: AtomicU32 = AtomicU32::new(0);
    const FIRST: u64 = 15_000;
    const COUNT: u64 = 17_000;
    for _ in 0..1_000 {
        let seed = RandomState::new().hash_one(TRIES.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + seed % COUNT) as u16;
        if is_free(port) && is_ours(port) {
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
        if port < 22_000 && is_free(port + 10_000) && is_ours(port + 10_000) {
            return port;
        }
    }
    panic!("no two free ports 10,000 apart");
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Marks the port as given away, by a name that the kernel forgets with this process. The tests of the Django app use the
/// same names.
fn is_ours(port: u16) -> bool {
    let name = SocketAddr::from_abstract_name(format!("testkit-port-{port}")).expect("a short name");
    UnixListener::bind_addr(&name).map(std::mem::forget).is_ok()
}
