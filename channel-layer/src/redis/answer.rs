//! Commands and what comes back, in the types of the crate `redis`.

use redis::{Cmd, ServerError, Value};

/// A command of these words.
pub(super) fn command<'a>(words: impl IntoIterator<Item = &'a [u8], IntoIter: ExactSizeIterator + Clone>) -> Cmd {
    let words = words.into_iter();
    let mut command = Cmd::with_capacity(words.len(), words.clone().map(<[u8]>::len).sum());
    for word in words {
        command.arg(word);
    }
    command
}

/// About how many bytes a command has.
pub(super) fn size(command: &Cmd) -> usize {
    command.args_iter().map(|word| if let redis::Arg::Simple(word) = word { word.len() + 16 } else { 16 }).sum()
}

/// Looking into an answer.
pub(super) trait Answer {
    fn as_list(&self) -> Option<&[Value]>;
    fn into_list(self) -> Option<Vec<Value>>;
    /// The text, if it is one and UTF-8.
    fn as_text(&self) -> Option<&str>;
    fn into_text(self) -> Option<Vec<u8>>;
    fn as_int(&self) -> Option<i64>;
}

impl Answer for Value {
    fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    fn into_list(self) -> Option<Vec<Value>> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Self::BulkString(text) => std::str::from_utf8(text).ok(),
            Self::SimpleString(text) => Some(text),
            Self::Okay => Some("OK"),
            _ => None,
        }
    }

    fn into_text(self) -> Option<Vec<u8>> {
        match self {
            Self::BulkString(text) => Some(text),
            Self::SimpleString(text) => Some(text.into()),
            Self::Okay => Some(b"OK".into()),
            _ => None,
        }
    }

    fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(int) => Some(*int),
            _ => None,
        }
    }
}

/// An error as the server wrote it, without its leading `-`.
pub(super) fn text_of(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

/// Errors of answers in tests.
#[cfg(test)]
pub(super) fn error(text: &str) -> Value {
    match redis::parse_redis_value(format!("*1\r\n-{text}\r\n").as_bytes()) {
        Ok(Value::Array(mut items)) => items.remove(0),
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_words() {
        for text in ["MOVED 3999 127.0.0.1:6381", "ERR max number of clients reached", "ODD thing", "NOAUTH x", "ALONE"]
        {
            let Value::ServerError(error) = error(text) else { panic!() };
            assert_eq!(text_of(&error), text);
        }
    }

    #[test]
    fn a_command_is_its_words() {
        let command = command([&b"PUBLISH"[..], b"topic", b""]);
        assert_eq!(command.get_packed_command(), b"*3\r\n$7\r\nPUBLISH\r\n$5\r\ntopic\r\n$0\r\n\r\n");
        assert_eq!(size(&command), 12 + 48);
    }
}
