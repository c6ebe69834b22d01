//! The words that are ours: what frames, events and questions are called. Each list stands once, and everything that goes
//! by it follows: what has no place in it cannot be sent or read, and what is new in it does not compile before it is
//! dealt with.

/// Makes an enum of words with their texts.
macro_rules! words {
    ($(#[$about:meta])* $vis:vis enum $name:ident { $($variant:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name {
            $(#[doc = concat!("`", $text, "`")] $variant,)+
        }

        impl $name {
            /// All of them.
            #[cfg_attr(not(test), allow(dead_code, reason = "for tests that go through all of them"))]
            $vis const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As it is written.
            $vis const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The one that is written like this.
            $vis fn of(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// The `type` of a frame to a client. A site's own frames (`gateway.send`) may not have one of these.
    pub(crate) enum FrameType {
        Chat = "chat",
        Notification = "notification",
        Ack = "ack",
        History = "history",
        Notifications = "notifications",
        Seen = "seen",
        Resumed = "resumed",
        Rooms = "rooms",
        Typing = "typing",
        Presence = "presence",
        Redacted = "redacted",
        Auth = "auth",
        Error = "error",
        Pong = "pong",
    }
}

words! {
    /// The `cate` of a frame from a client.
    pub(crate) enum Cate {
        Chat = "chat",
        Notification = "notification",
        Rooms = "rooms",
        History = "history",
        Notifications = "notifications",
        Seen = "seen",
        Typing = "typing",
        Presence = "presence",
        Resume = "resume",
        Auth = "auth",
        Ping = "ping",
    }
}

words! {
    /// The type of an event on the layer that means something to the built-in consumers, as the name of its handler.
    pub(crate) enum EventType {
        ChatMessage = "chat_message",
        NotificationMessage = "notification_message",
        Disconnect = "gateway_disconnect",
        Send = "gateway_send",
        Seen = "gateway_seen",
        Typing = "gateway_typing",
        RoomsChanged = "gateway_rooms_changed",
        Redacted = "gateway_redacted",
    }
}

/// Whom an event is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Everybody.
    Anybody,
    /// Everybody, but its place in a stream a node only.
    Position,
    /// A node only. Said again, it does harm.
    Once,
    /// A node only. Said again, it does none, and there are many.
    Often,
}

impl EventType {
    /// The type of an event, if it is one of ours.
    pub(crate) fn of_event(event: &channel_layer::Event) -> Option<Self> {
        Self::of(&event.handler_name().ok()?)
    }

    /// Whom it is believed (`seal/`).
    pub(crate) const fn trust(self) -> Trust {
        match self {
            Self::Disconnect | Self::Send => Trust::Anybody,
            Self::ChatMessage | Self::NotificationMessage => Trust::Position,
            Self::Seen | Self::RoomsChanged | Self::Redacted => Trust::Once,
            Self::Typing => Trust::Often,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_word_is_read_as_it_is_written() {
        assert!(FrameType::ALL.iter().all(|word| FrameType::of(word.as_str()) == Some(*word)));
        assert!(Cate::ALL.iter().all(|word| Cate::of(word.as_str()) == Some(*word)));
        assert!(EventType::ALL.iter().all(|word| EventType::of(word.as_str()) == Some(*word)));
        assert_eq!((FrameType::of("cart"), Cate::of(""), EventType::of("chat.message")), (None, None, None));
    }

    fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                // Tests stand at the end, and write what a client sees.
                let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                found.push((path.display().to_string(), code));
            }
        }
    }

    /// A frame or event that is written out by hand would be in no list.
    #[test]
    fn no_frame_and_no_event_is_named_by_hand() {
        let mut found = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        for (path, code) in found {
            // What the command line publishes and what goes wrong with a call are no frames.
            if ["words.rs", "cli/client.rs", "problem.rs", "seal/tests.rs"].iter().any(|other| path.ends_with(other)) {
                continue;
            }
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                let by_hand = line.contains("\"type\": \"") || line.contains("r#type: \"");
                assert!(!by_hand, "{path}: {line}");
                let event = EventType::ALL.iter().find(|word| line.contains(&format!("\"{}\"", word.as_str())));
                assert_eq!(event, None, "{path}: {line}");
            }
        }
    }
}
