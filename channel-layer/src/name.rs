//! Names of channels and groups: checked once, cheap to clone ever after.

use std::{fmt, sync::Arc};

use crate::NameError;

/// The longest name `parse` accepts, in bytes; the rule of Django Channels is "less than 100 characters".
pub const MAX_NAME: usize = 99;
/// The longest name `parse_any` accepts, in bytes.
pub const MAX_ANY_NAME: usize = 512;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts any text of 1 to 512 bytes without control characters. Only the Redis pub/sub
            /// layer can carry such names; a site needs this if its Python side already uses them.
            pub fn parse_any(name: &str) -> Result<Self, NameError> {
                if name.is_empty() || name.len() > MAX_ANY_NAME || name.chars().any(char::is_control) {
                    return Err(NameError { kind: $kind, limit: MAX_ANY_NAME, strict: false });
                }
                Ok(Self(Arc::from(name)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// For names made by this crate, which are right by construction.
            #[allow(dead_code, reason = "each kind of name uses its own half of the constructors")]
            pub(crate) fn trusted(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::parse(name)
            }
        }
    };
}

name_type! {
    /// The name of a group: a set of channels that hear the same events.
    GroupName, "group"
}

name_type! {
    /// The name of a channel: one consumer's mailbox.
    ChannelName, "channel"
}

impl GroupName {
    /// Accepts `[A-Za-z0-9._-]{1,99}`. Stricter than Channels, whose pattern also lets a trailing
    /// newline and non-ASCII digits pass.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let name = Self(Arc::from(name));
        name.check_strict()?;
        Ok(name)
    }

    /// Whether `parse` would accept it.
    pub(crate) fn check_strict(&self) -> Result<(), NameError> {
        if self.0.len() <= MAX_NAME && is_plain(&self.0) {
            Ok(())
        } else {
            Err(NameError { kind: "group", limit: MAX_NAME, strict: true })
        }
    }
}

impl ChannelName {
    /// Accepts the characters of a group name and at most one `!`, which divides the process part
    /// from the local part and cannot come first; 1 to 99 bytes in all.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let (process, local) = name.split_once('!').unwrap_or((name, ""));
        if name.len() <= MAX_NAME && is_plain(process) && local.bytes().all(is_name_byte) {
            Ok(Self(Arc::from(name)))
        } else {
            Err(NameError { kind: "channel", limit: MAX_NAME, strict: true })
        }
    }

    /// Up to and including the `!`, or all of it: the name a message queue is found by.
    pub fn non_local(&self) -> &str {
        match self.0.find('!') {
            Some(at) => &self.0[..=at],
            None => &self.0,
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// 32 lower-case hex digits nobody can guess: the random part of a channel name.
pub(crate) fn random_hex32() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// 16 lower-case hex digits.
pub(crate) fn random_hex16() -> String {
    format!("{:016x}", rand::random::<u64>())
}
