//! Real servers for tests: each on a free port, in a private directory, dead with the test; links to them
//! that fail on demand, and the real Python packages as peers.
//!
//! Nothing here needs an async runtime, and nothing is left behind even if the test process is
//! killed. A missing program is a panic that names the command which installs it, never a skip.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of tests may fail a test by panicking")]

pub mod cgroup;
pub mod clock;
pub mod disk;
pub mod mariadb;
pub mod net;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod python;
pub mod redis;
pub mod tls;
pub mod wait;
