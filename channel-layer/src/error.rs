//! The errors of this crate. Backend errors travel as `source`, so callers never learn the word Redis.

use crate::ChannelName;

/// An error of any kind, kept as the cause of another one.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why an operation of a channel layer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The channel holds as many unread events as its capacity allows; the event was not sent.
    #[error("channel {0} is full")]
    ChannelFull(ChannelName),
    /// The server behind the layer cannot be reached or refused the command. Whether a publish that
    /// was under way arrived is unknown; it is never repeated by the layer.
    #[error("channel layer is unavailable")]
    Unavailable(#[source] BoxError),
    /// No answer came in time.
    #[error("channel layer did not answer in time")]
    Timeout,
    /// The bounded queue of outgoing events is full; the event was not sent.
    #[error("the queue of outgoing events is full")]
    QueueFull,
    /// The event cannot be written in the layer's format.
    #[error("event cannot be encoded")]
    Encode(#[from] EventError),
    /// A name breaks the rules.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The channel was not opened by this layer object, which therefore cannot put it into a group.
    #[error("channel {0} does not belong to this process")]
    NotLocal(ChannelName),
    /// The layer has been shut down, or the channel was removed while somebody waited on it.
    #[error("channel layer is closed")]
    Closed,
    /// The configuration cannot work; the text names the setting.
    #[error("channel layer configuration: {0}")]
    Config(String),
}

/// Why a text is not a channel or group name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a valid {kind} name: it must be 1 to {limit} {unit}",
    unit = if *.strict { "ASCII letters, digits, hyphens, underscores or periods" } else { "bytes without control characters" }
)]
pub struct NameError {
    pub(crate) kind: &'static str,
    pub(crate) limit: usize,
    pub(crate) strict: bool,
}

/// Why a map is not a usable event, or cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The key `type` is missing.
    #[error("event has no type")]
    NoType,
    /// The value of `type` is not text.
    #[error("event type is not text")]
    TypeNotText,
    /// The handler's name would start with `_`, which keeps private methods unreachable.
    #[error("event type {0:?} leads to a private handler")]
    PrivateType(String),
    /// The outermost value is not a map.
    #[error("event is not a map")]
    NotAMap,
    /// An event sent to a channel has the key `__asgi_channel__`, in which the core layer names receivers.
    #[error("the key __asgi_channel__ is reserved")]
    ReservedKey,
    /// More than [`MAX_DEPTH`](crate::MAX_DEPTH) levels of lists and maps.
    #[error("event is nested too deeply")]
    TooDeep,
    /// More than [`MAX_VALUES`](crate::MAX_VALUES) values, or one longer than 4 GiB.
    #[error("event has too many values")]
    TooLarge,
    /// The bytes are not what Python's reader would accept; the text says what is wrong.
    #[error("malformed payload: {0}")]
    Malformed(&'static str),
    /// An encrypted payload was expected, and this is not one that any of the configured keys opens:
    /// the sender has other keys, or none.
    #[error("payload is not encrypted with a known key")]
    WrongKey,
    /// An encrypted payload is older than it may be, or more than a minute from the future.
    #[error("encrypted payload is too old or from the future")]
    WrongAge,
    /// A value has no form in the format: bytes in JSON, an integer beyond 64 bits.
    #[error("value cannot be represented: {0}")]
    Unsupported(&'static str),
    /// A serde error of the caller's type.
    #[error("{0}")]
    Serde(String),
}

impl serde::ser::Error for EventError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Serde(message.to_string())
    }
}

impl serde::de::Error for EventError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Serde(message.to_string())
    }
}
