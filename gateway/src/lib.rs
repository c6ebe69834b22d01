//! This crate is the WebSocket tier of a Django Channels application. Stateless nodes hold the sockets. They store every
//! message and notification before they deliver it, and speak `channels_redis` with Django.
//!
//! One chat message takes these steps:
//!
//! 1. `consumers/connection.rs`, `serve`, reads a frame from the socket.
//! 2. `consumers/chat.rs`, `receive`, decodes it and hands it to the writer (`storing/writer.rs`), which stores it.
//! 3. The channel layer's `group_send_later` encodes the event once and publishes it on the group's topic.
//! 4. The layer's subscriber hears it, on every node that has joined the group.
//! 5. `hub/deliver.rs`, `deliver_to_group`, checks the position, and fills a hole first.
//! 6. `events.rs`, `chat_message`, makes the frame of the event, once per node for all members.
//! 7. `hub/fan_out.rs`, `fan_out`, queues the same bytes in each member's outbox.
//! 8. `socket/mod.rs`, `flush_all`, writes once per socket for everything that is queued.
//!
//! [`run`] is a whole program, and [`RunningNode::start`] a node within one. [`Consumer`], `docs/consumers.md` and
//! `examples/` show how to write a consumer.

mod auth;
mod bridge;
mod budget;
pub mod cli;
mod clock;
mod close;
pub mod config;
pub mod consumers;
mod current;
mod data;
mod events;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handlers;
mod health;
mod http;
mod http_client;
mod hub;
pub mod import;
mod json;
mod layer;
mod lines;
mod live;
mod lossy;
mod memory;
mod metrics;
mod names;
mod node;
mod operators;
mod origin;
mod peers;
mod plan;
mod program;
mod proxies;
mod publish;
mod rate;
mod redis;
mod scope;
mod seal;
mod seldom;
mod socket;
mod start;
mod storing;
mod tail;
mod tokens;
mod traces;
mod upkeep;
mod websocket;
mod words;

pub use auth::django::SourceFailed;
pub use close::CloseReason;
pub use config::Config;
pub use consumers::framework::{Consumer, Context, Frame, Handlers, Outcome, OwnHandler, Refusal};
pub use consumers::routing::Router;
pub use handlers::Rendering;
pub use layer::SharedLayer;
pub use live::{Findings, check_live};
pub use names::{GroupNames, check as check_name, check_user as check_user_name, is_user_name, is_valid_name};
pub use node::Node;
pub use program::run;
pub use redis::{DeploymentError, NodeIdError, RedisFailed};
pub use scope::{Access, Scope, SignedInBy, User};
pub use start::{NodeError, NotReloaded, RunningNode, check_site, check_users};
pub use storing::store::store_options;
pub use tokens::{ClaimedUser, Claims, JwtAuth, TokenError};

pub use channel_layer::{Event, GroupName};
