//! The front door: connections until they are sockets, and what is answered over HTTP.
//!
//! Only `server.rs`, `demo.rs`, `admin.rs` and `api/` know warp. It routes and answers; an upgraded connection is taken
//! out of it (`consumers/connection.rs`), because warp's own websocket type costs 137 KB per idle socket.

mod admin;
pub(crate) mod answers;
pub(crate) mod api;
mod bridged;
mod demo;
pub(crate) mod head;
pub(crate) mod server;
mod visit;
pub(crate) mod visitors;
