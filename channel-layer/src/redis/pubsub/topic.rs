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

/// A pattern that matches everything that begins with `text`.
pub(super) fn pattern(text: &str) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(text.len() + 1);
    for byte in text.bytes() {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_their_own_text_only() {
        assert_eq!(pattern("asgispecific.ab"), b"asgispecific.ab*");
        assert_eq!(pattern("a*b?[c]\\"), b"a\\*b\\?\\[c\\]\\\\*");
    }

    #[test]
    fn a_group_has_the_topic_python_uses() {
        let room = GroupName::parse("room.1").unwrap();
        assert_eq!(&*group("asgi", &room), b"asgi__group__room.1");
    }
}
