//! The tables. All carry the prefix `gateway_`, so that they may share a database with the site's own.
//! Those of messages and notifications are in `kind.rs` and `row.rs`.

#![allow(unreachable_pub, reason = "the derive writes `pub`")]

pub(crate) mod deployment;
pub(crate) mod inboxes;
pub(crate) mod leases;
pub(crate) mod memberships;
pub(crate) mod receipts;
pub(crate) mod room_words;
pub(crate) mod rooms;
