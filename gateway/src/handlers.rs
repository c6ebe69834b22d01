//! What a class of consumers makes of events, as far as a node must know it to deliver: a pure function for those that
//! look the same to everybody, and for the others that they are the consumer's own.

use std::collections::HashMap;

use channel_layer::Event;
use serde::Serialize;

use crate::websocket::WireFrame;

/// A shared handler of our own: a pure function from event to what sockets are sent. `None` sends nothing.
pub(crate) type SharedHandler = fn(&Event) -> Option<Rendering>;

/// A shared handler of a consumer's, which may hold what its route was made with.
pub(crate) type AnyShared = Box<dyn Fn(&Event) -> Option<Rendering> + Send + Sync>;

/// What a shared handler made of an event, ready for all its sockets.
#[derive(Debug, Clone)]
pub struct Rendering {
    pub(crate) frame: WireFrame,
    /// The frame's type, for the count of sent frames.
    pub(crate) kind: &'static str,
    pub(crate) v1_only: bool,
    pub(crate) except_user: Option<String>,
    pub(crate) except_channel: Option<String>,
    /// A client that comes back is sent the same frame.
    pub(crate) is_kept: bool,
}

impl Rendering {
    /// A text frame. `kind` is its label in `gateway_frames_sent_total`.
    pub fn text(kind: &'static str, text: &str) -> Self {
        Self::of(kind, WireFrame::text(text))
    }

    fn of(kind: &'static str, frame: WireFrame) -> Self {
        Self { frame, kind, v1_only: false, except_user: None, except_channel: None, is_kept: false }
    }

    /// A JSON frame; `None` when the value cannot be JSON.
    pub fn json(kind: &'static str, value: &impl Serialize) -> Option<Self> {
        Some(Self::of(kind, WireFrame::json(value).ok()?))
    }

    /// It is what a client that comes back is sent for the event, too.
    pub(crate) fn kept_for_resume(mut self) -> Self {
        self.is_kept = true;
        self
    }

    /// Only for sockets that speak `gateway.v1`: plain clients get no frame they did not ask for.
    pub fn v1_only(mut self) -> Self {
        self.v1_only = true;
        self
    }

    /// Not for the sockets of this user.
    pub fn except_user(mut self, username: &str) -> Self {
        self.except_user = Some(username.to_owned());
        self
    }

    /// Not for the socket of this channel name.
    pub fn except_channel(mut self, channel_name: &str) -> Self {
        self.except_channel = Some(channel_name.to_owned());
        self
    }

    /// Whether every socket is to have it.
    pub(crate) fn is_for_all(&self) -> bool {
        !self.v1_only && self.except_user.is_none() && self.except_channel.is_none()
    }

    /// Whether this socket is to have it.
    pub(crate) fn is_for(&self, v1: bool, user: &str, channel_name: &str) -> bool {
        (v1 || !self.v1_only)
            && self.except_user.as_deref() != Some(user)
            && self.except_channel.as_deref() != Some(channel_name)
    }
}

/// What an event means to a class of consumers.
pub(crate) enum Lookup {
    Shared(AnyShared),
    Own,
    Disconnect,
    /// It is known, and nothing is made of it.
    Nothing,
    Unknown,
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shared(_) => "Shared",
            Self::Own => "Own",
            Self::Disconnect => "Disconnect",
            Self::Nothing => "Nothing",
            Self::Unknown => "Unknown",
        })
    }
}

/// Which events a class of consumers knows. All its sockets share it.
#[derive(Debug, Default)]
pub(crate) struct Table(HashMap<String, Lookup>);

impl Table {
    pub(crate) fn new(entries: impl IntoIterator<Item = (String, Lookup)>) -> Self {
        Self(entries.into_iter().collect())
    }

    pub(crate) fn lookup(&self, handler_name: &str) -> &Lookup {
        self.0.get(handler_name).unwrap_or(&Lookup::Unknown)
    }
}
