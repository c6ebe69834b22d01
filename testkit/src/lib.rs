//! This crate gives tests real servers, links to them that fail on demand, and the real Python packages as peers.
//!
//! Each server has a free port and a private directory, and ends with its test. It leaves nothing behind, even if the
//! test process is killed. A missing program is a panic that names the command which installs it; no test is skipped.
//! Nothing here needs an async runtime.
//!
//! | for | module |
//! | --- | --- |
//! | Redis: a server, a primary under Sentinels, a cluster | [`redis`] |
//! | databases | [`postgres`], [`mariadb`], and [`pgbouncer`] in front of one |
//! | links that delay, cut, hold or swallow bytes | [`proxy`] |
//! | `channels_redis` in Python | [`python`] |
//! | full disks, little memory, wrong clocks | [`disk`], [`cgroup`], [`clock`] |
//! | certificates, ports, processes, waiting | [`tls`], [`net`], [`process`], [`wait`] |
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
