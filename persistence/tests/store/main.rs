//! The store against real SQLite, PostgreSQL and MariaDB: every behaviour on all three.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

mod append;
mod changes;
mod concurrency;
mod faults;
mod identity;
mod import;
mod keys;
mod known;
mod leases;
mod notifications;
mod redact;
mod retention;
mod rooms;
mod schema;
mod secrets;
mod site;
mod snapshot;
mod tls;
