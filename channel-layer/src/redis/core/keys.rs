//! Every name the core layer has in Redis, and what can be read out of one.

use bytes::Bytes;

use crate::{ChannelName, GroupName, MAX_NAME};

/// A channel's queue: `<prefix><name up to and including the !>`.
pub(super) fn queue(prefix: &str, non_local: &str) -> Bytes {
    [prefix, non_local].concat().into()
}

/// A group's members: `<prefix>:group:<group>`.
pub(super) fn group(prefix: &str, group: &GroupName) -> Bytes {
    [prefix, ":group:", group.as_str()].concat().into()
}

/// What every group's key begins with.
pub(super) fn groups(prefix: &str) -> String {
    format!("{prefix}:group:")
}

/// Our own key, outside the layer's prefix so that a flush of Python's leaves it alone: the client ids
/// of all nodes that speak this crate, each with the time until which it counts as alive.
pub(super) fn clients(namespace: &str, prefix: &str) -> Bytes {
    format!("{namespace}:clients:{prefix}").into()
}

/// Held by the node that clears away what a dead client id has left.
pub(super) fn sweeper(namespace: &str, prefix: &str) -> Bytes {
    format!("{namespace}:sweeper:{prefix}").into()
}

/// The client id in a member's name: the 32 hex digits before the `!`.
pub(super) fn client_of(member: &str) -> Option<&str> {
    let process = &member[..member.find('!')?];
    let id = &process[process.rfind('.')? + 1..];
    (id.len() == 32).then_some(id)
}

/// Whether a member of a group can be a channel by Python's rule, which is looser than ours: it knows
/// digits and letters of all alphabets.
pub(super) fn may_be_channel(member: &str) -> bool {
    let (process, local) = member.split_once('!').unwrap_or((member, ""));
    let plain = |c: char| matches!(c, '-' | '_' | '.');
    member.chars().count() <= MAX_NAME
        && !process.is_empty()
        && process.chars().all(|c| c.is_ascii_alphanumeric() || (!c.is_ascii() && c.is_numeric()) || plain(c))
        && local.chars().all(|c| c.is_alphanumeric() || plain(c))
}

/// Whether a key under the prefix has the shape of a queue (or of Python's backup of one) or of a group.
pub(super) fn is_ours(prefix: &str, key: &[u8]) -> bool {
    let Some(rest) = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(prefix)) else { return false };
    match rest.strip_prefix(":group:") {
        Some(group) => GroupName::parse(group).is_ok(),
        None => ChannelName::parse(rest.strip_suffix("$inflight").unwrap_or(rest)).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_channels_redis() {
        let channel = ChannelName::parse("specific.0123456789abcdef0123456789abcdef!x").unwrap();
        assert_eq!(queue("asgi", channel.non_local()), "asgispecific.0123456789abcdef0123456789abcdef!");
        assert_eq!(group("asgi", &GroupName::parse("room.1").unwrap()), "asgi:group:room.1");
        assert_eq!(client_of(channel.as_str()), Some("0123456789abcdef0123456789abcdef"));
        for other in ["plain", "specific.short!x", "nodot!x", "!", "a.!"] {
            assert_eq!(client_of(other), None, "{other}");
        }
    }

    #[test]
    fn members_lead_to_queues_and_nowhere_else() {
        for channel in ["plain", "specific.0a!x", "a٣", "a!é", "a!", "a-b_c.d!e-f_g.h"] {
            assert!(may_be_channel(channel), "{channel}");
        }
        let long = "a".repeat(MAX_NAME + 1);
        for other in ["", "!", "!a", "a!b!c", ":group:room", "a b", "a$inflight", "a*", "a\n", "é", "a\0", &long] {
            assert!(!may_be_channel(other), "{other}");
        }
    }

    #[test]
    fn only_keys_of_the_layer_s_shape_are_ours() {
        for ours in ["asgi:group:room", "asgiplain", "asgispecific.ab!", "asgispecific.ab!$inflight"] {
            assert!(is_ours("asgi", ours.as_bytes()), "{ours}");
        }
        for other in ["asgi", "asgi:x", "asgi2:group:room", "asgi:group:a b", "asgi__group__x y", "other", "asgi!x"] {
            assert!(!is_ours("asgi", other.as_bytes()), "{other}");
        }
    }
}
