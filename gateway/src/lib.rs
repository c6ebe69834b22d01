//! The WebSocket tier of a Django Channels application: stateless nodes that hold the sockets, store
//! every message and notification before it is delivered, and speak `channels_redis` with Django.
//!
//! The path of one chat message, step by step:
//!
//! 1. `consumers/connection.rs`, `serve`: reads a frame from the socket
//! 2. `consumers/chat.rs`, `receive`: decodes it and hands it to the writer (`storing/writer.rs`), which stores it
//! 3. the channel layer's `group_send_later`: encodes once, publishes on the group's topic
//! 4. the layer's subscriber on every node that has joined the group hears it
//! 5. `hub/deliver.rs`, `deliver_to_group`: position checked, a hole filled first
//! 6. `events.rs`, `chat_message`: event → frame, once per node for all members
//! 7. `hub/deliver.rs`, `fan_out`: the same bytes into each member's outbox
//! 8. `socket/mod.rs`, `flush_all`: one write per socket for everything queued
//!
//! To write a consumer of your own, see [`Consumer`], `docs/consumers.md` and `examples/`.

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
mod live;
mod lossy;
mod memory;
mod metrics;
mod names;
mod node;
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
pub use start::{NodeError, RunningNode, TooManyReloads, check_site, check_users};
pub use storing::store::store_options;
pub use tokens::{ClaimedUser, Claims, JwtAuth, TokenError};

pub use channel_layer::{Event, GroupName};
