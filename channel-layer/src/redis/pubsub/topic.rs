//! Every name this layer has in Redis.

use crate::{ChannelName, GroupName};

/// A group's topic: `<prefix>__group__<group>`.
pub(super) fn group(prefix: &str, group: &GroupName) -> Box<[u8]> {
    format!("{}{group}", group_prefix(prefix)).into_bytes().into()
}

/// What the topics of all groups begin with.
pub(super) fn group_prefix(prefix: &str) -> String {
    format!("{prefix}__group__")
}

/// A channel's topic is its name, without any prefix.
pub(super) fn channel(channel: &ChannelName) -> Box<[u8]> {
    channel.as_str().as_bytes().into()
}

/// What `new_channel` makes: the layer's prefix and the caller's, with nothing between.
pub(super) fn channel_prefix(prefix: &str, wanted: &str) -> String {
    match wanted {
        "" => format!("{prefix}specific."),
        wanted => format!("{prefix}{wanted}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_topic_python_uses() {
        let room = GroupName::parse("room.1").unwrap();
        assert_eq!(&*group("asgi", &room), b"asgi__group__room.1");
    }
}
