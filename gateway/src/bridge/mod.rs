//! The bridge: sockets of the node whose consumers are the site's own, in Python.
//!
//! A *worker* runs the site's ASGI application and listens; every node dials every worker it finds. One *link* to a
//! worker carries many sockets, each with a number of its own, its *seat*. `docs/bridge-protocol.md` has the frames.
//!
//! This folder knows links and workers and nothing of WebSockets or of the node: what a socket is, its [`Client`] says.

mod class;
mod dial;
mod discovery;
mod groups;
mod hello;
mod link;
mod metrics;
mod msgpack;
mod path;
mod pool;
mod proof;
mod seat;
mod settings;
mod wire;

pub(crate) use class::{Class, Rendering, Said};
pub(crate) use discovery::Workers;
pub(crate) use groups::Joining;
pub(crate) use metrics::BridgeMetrics;
pub(crate) use path::Pattern;
pub(crate) use pool::{Bridge, Bridges, Identity, Leaving, Refused};
pub(crate) use seat::{Accept, Client, Deny, Queued, Seat, Seated};
pub(crate) use settings::{Auth, MAX_MESSAGE, Settings, Tls};
pub(crate) use wire::{Headers, Layer, Message, Scope};
