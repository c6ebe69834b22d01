//! The tables. All carry the prefix `gateway_`, so that they may share a database with the site's own.

#![allow(unreachable_pub, reason = "the derive writes `pub`")]

pub(crate) mod deployment;
pub(crate) mod inboxes;
pub(crate) mod leases;
pub(crate) mod memberships;
pub(crate) mod messages;
pub(crate) mod notifications;
pub(crate) mod receipts;
pub(crate) mod rooms;
