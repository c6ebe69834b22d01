//! What a node does beside its sockets, now and then.

pub(crate) mod drain;
pub(crate) mod memberships;
pub(crate) mod memory;
pub(crate) mod recheck;
pub(crate) mod retention;
pub(crate) mod secrets;
pub(crate) mod site;
pub(crate) mod skew;
pub(crate) mod stalls;
pub(crate) mod watch;
