//! Why a socket was closed, as data: the code and text a client gets, and whether it comes back.
//!
//! The rule of our own codes: below 4400 a client comes back by itself, from 4400 on not before
//! something has changed. `docs/protocol.md` has the same table.

use std::borrow::Cow;
use std::fmt;

/// A close code with the reason that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The consumer is done: 1000.
    Normal,
    /// The client closed, with this code (1005 when it gave none).
    ByClient(u16),
    /// The connection broke without a close frame: 1006 in logs, never sent.
    Lost,
    /// The node is leaving; the client comes back after a random time in this range: 1012.
    Restart {
        /// Shortest wait, in milliseconds.
        min_ms: u64,
        /// Longest wait, in milliseconds.
        max_ms: u64,
    },
    /// A frame that RFC 6455 does not allow: 1002.
    ProtocolError(&'static str),
    /// Text that is not UTF-8: 1007.
    NotUtf8,
    /// Flooding, or too many bad frames: 1008.
    PolicyViolation(&'static str),
    /// A frame or message over the limit: 1009.
    TooLarge,
    /// A handler failed: 1011.
    InternalError,
    /// The node has no room for this socket: 1013.
    Overloaded,
    /// No answer to a ping: 4000.
    PingTimeout,
    /// The outbox is full: 4008; the client comes back and catches up.
    SlowConsumer,
    /// Not signed in, or no longer: 4401.
    Unauthorized,
    /// Not allowed, or disconnected by an operator: 4403.
    Forbidden,
    /// No such room: 4404.
    NotFound,
    /// What a consumer or a `gateway.disconnect` event asked for.
    Custom(u16, Cow<'static, str>),
}

/// Bytes of text that fit into a close frame.
const MAX_TEXT: usize = 123;

impl CloseReason {
    /// What somebody else asks for. The text may be of any length; what fits into a close frame is kept.
    pub(crate) fn asked(code: u16, text: &str) -> Self {
        Self::Custom(code, text[..text.floor_char_boundary(MAX_TEXT)].to_owned().into())
    }

    /// The code in the close frame, or in the log for [`Lost`](Self::Lost) and [`ByClient`](Self::ByClient).
    pub fn code(&self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::ByClient(code) | Self::Custom(code, _) => *code,
            Self::Lost => 1006,
            Self::Restart { .. } => 1012,
            Self::ProtocolError(_) => 1002,
            Self::NotUtf8 => 1007,
            Self::PolicyViolation(_) => 1008,
            Self::TooLarge => 1009,
            Self::InternalError => 1011,
            Self::Overloaded => 1013,
            Self::PingTimeout => 4000,
            Self::SlowConsumer => 4008,
            Self::Unauthorized => 4401,
            Self::Forbidden => 4403,
            Self::NotFound => 4404,
        }
    }

    /// The text in the close frame.
    pub fn text(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Normal | Self::ByClient(_) | Self::Lost => "",
            Self::Restart { min_ms, max_ms } => return format!("retry={min_ms}-{max_ms}").into(),
            Self::ProtocolError(what) | Self::PolicyViolation(what) => what,
            Self::NotUtf8 => "text is not UTF-8",
            Self::TooLarge => "frame too large",
            Self::InternalError => "internal error",
            Self::Overloaded => "overloaded, try later",
            Self::PingTimeout => "ping time-out",
            Self::SlowConsumer => "slow consumer",
            Self::Unauthorized => "not signed in",
            Self::Forbidden => "not allowed",
            Self::NotFound => "no such room",
            Self::Custom(_, text) => return text.clone(),
        })
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByClient(code) => write!(f, "{code} by the client"),
            Self::Lost => f.write_str("1006 connection lost"),
            _ => write!(f, "{} {}", self.code(), self.text()),
        }
    }
}

/// Whether a close frame may carry this code (RFC 6455, section 7.4).
pub(crate) fn is_sendable(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The same of a number that somebody has written.
pub(crate) fn is_sendable_code(code: u64) -> bool {
    u16::try_from(code).is_ok_and(is_sendable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_somebody_else_says_there_is_kept_what_a_close_frame_can_carry() {
        assert_eq!(CloseReason::asked(4001, &"é".repeat(50_000)).to_string(), format!("4001 {}", "é".repeat(61)));
        assert_eq!(CloseReason::asked(4001, "bye").to_string(), "4001 bye");
    }
}
