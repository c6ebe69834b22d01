//! What an error reply means for whoever asked.

use crate::BoxError;

/// What to do about an error reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ErrorClass {
    /// The same command on the same connection may succeed a little later.
    Retryable,
    /// The server has lost its role or its place: ask anew who the primary is, connect, then retry.
    Failover,
    /// Another cluster node has the key: `MOVED` and `ASK` name it.
    Moved,
    /// A matter of passwords and rights. Retrying does not help until a person has done something.
    Denied,
    /// The memory limit is reached: what adds data fails, reading, removing and publishing go on.
    Full,
    /// The command itself is wrong, or its meaning is the caller's affair (`NOSCRIPT`, `WRONGTYPE`).
    Other,
}

/// By the first word of the text.
const WORDS: [(&str, ErrorClass); 20] = [
    // A script runs for too long.
    ("BUSY", ErrorClass::Retryable),
    // The disk is full or broken, and writes are refused until a snapshot succeeds.
    ("MISCONF", ErrorClass::Retryable),
    // Fewer replicas than `min-replicas-to-write` wants.
    ("NOREPLICAS", ErrorClass::Retryable),
    // The keys of a slot are being moved, and some of the command's are on either side.
    ("TRYAGAIN", ErrorClass::Retryable),
    // On a connection that worked: the server has become a replica that takes over all data.
    ("LOADING", ErrorClass::Failover),
    ("READONLY", ErrorClass::Failover),
    ("MASTERDOWN", ErrorClass::Failover),
    // A blocked command ended, because the server became a replica.
    ("UNBLOCKED", ErrorClass::Failover),
    ("CLUSTERDOWN", ErrorClass::Failover),
    // Valkey: the primary hands over to another server.
    ("REDIRECT", ErrorClass::Failover),
    ("MOVED", ErrorClass::Moved),
    ("ASK", ErrorClass::Moved),
    ("NOAUTH", ErrorClass::Denied),
    ("WRONGPASS", ErrorClass::Denied),
    ("NOPERM", ErrorClass::Denied),
    // Protected mode: a server without a password refuses other hosts.
    ("DENIED", ErrorClass::Denied),
    ("OOM", ErrorClass::Full),
    ("NOSCRIPT", ErrorClass::Other),
    ("WRONGTYPE", ErrorClass::Other),
    ("CROSSSLOT", ErrorClass::Other),
];

/// By the beginning of the whole text, for errors without a word of their own.
const TEXTS: [(&str, ErrorClass); 5] = [
    ("ERR max number of clients", ErrorClass::Retryable),
    // The three texts of servers before version 6 and of those without any password.
    ("ERR AUTH ", ErrorClass::Denied),
    ("ERR Client sent AUTH", ErrorClass::Denied),
    ("ERR invalid password", ErrorClass::Denied),
    ("ERR operation not permitted", ErrorClass::Denied),
];

impl ErrorClass {
    /// The class of an error reply, given without its leading `-`.
    pub(super) fn of(text: &str) -> Self {
        let word = text.split(' ').next().unwrap_or_default();
        let by_word = WORDS.iter().find(|(it, _)| *it == word);
        let by_text = || TEXTS.iter().find(|(it, _)| text.starts_with(it));
        by_word.or_else(by_text).map_or(Self::Other, |(_, class)| *class)
    }
}

/// Whether the server has lost its role: the connection is of no use any more, and a new one must be
/// opened by asking anew who the primary is.
pub(super) fn is_failover_error(text: &str) -> bool {
    ErrorClass::of(text) == ErrorClass::Failover
}

/// A server would not have us.
#[derive(Debug, thiserror::Error)]
#[error("the server said: {0}")]
pub(super) struct Refused(pub(super) String);

/// Why no connection could be opened: where, and what happened there. Never holds a password.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{place}: {why}")]
pub(super) struct Failed {
    place: String,
    why: String,
    denied: bool,
}

impl Failed {
    pub(super) fn at(place: impl Into<String>, error: &BoxError) -> Self {
        Self { place: place.into(), why: error.to_string(), denied: is_denied(error) }
    }

    /// Several attempts at one thing, none of which worked.
    pub(super) fn all(what: impl Into<String>, attempts: &[BoxError]) -> Self {
        let why: Vec<String> = attempts.iter().map(ToString::to_string).collect();
        let denied = !attempts.is_empty() && attempts.iter().all(is_denied);
        Self { place: what.into(), why: why.join("; "), denied }
    }
}

/// Whether opening a connection failed for a matter of passwords or rights, which no retry mends.
pub(super) fn is_denied(error: &BoxError) -> bool {
    let refused = error.downcast_ref::<Refused>().map(|it| ErrorClass::of(&it.0) == ErrorClass::Denied);
    refused.or_else(|| error.downcast_ref::<Failed>().map(|it| it.denied)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r12_every_error_has_its_class() {
        use ErrorClass::{Denied, Failover, Full, Moved, Other, Retryable};
        let table = [
            ("LOADING Redis is loading the dataset in memory", Failover),
            ("READONLY You can't write against a read only replica.", Failover),
            ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Failover),
            ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", Failover),
            ("CLUSTERDOWN The cluster is down", Failover),
            ("CLUSTERDOWN Hash slot not served", Failover),
            ("REDIRECT 127.0.0.1:6380", Failover),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", Retryable),
            ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist", Retryable),
            ("NOREPLICAS Not enough good replicas to write.", Retryable),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Retryable),
            ("ERR max number of clients reached", Retryable),
            ("MOVED 3999 127.0.0.1:6381", Moved),
            ("ASK 3999 127.0.0.1:6381", Moved),
            ("NOAUTH Authentication required.", Denied),
            ("WRONGPASS invalid username-password pair or user is disabled.", Denied),
            ("NOPERM this user has no permissions to run the 'eval' command", Denied),
            ("DENIED Redis is running in protected mode", Denied),
            ("ERR AUTH <password> called without any password configured for the default user.", Denied),
            ("ERR Client sent AUTH, but no password is set", Denied),
            ("ERR invalid password", Denied),
            ("OOM command not allowed when used memory > 'maxmemory'.", Full),
            ("NOSCRIPT No matching script. Please use EVAL.", Other),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Other),
            ("CROSSSLOT Keys in request don't hash to the same slot", Other),
            ("ERR unknown command 'X'", Other),
            ("ERR DB index is out of range", Other),
            ("MOVEDX", Other),
            ("", Other),
        ];
        for (text, class) in table {
            assert_eq!(ErrorClass::of(text), class, "{text}");
            assert_eq!(is_failover_error(text), class == Failover, "{text}");
        }
        for (word, _) in WORDS {
            assert!(table.iter().any(|(text, _)| text.split(' ').next() == Some(word)), "{word} is not in the table");
        }
    }

    #[test]
    fn a_denial_is_still_known_with_its_context() {
        let denied: BoxError = Refused("WRONGPASS invalid".into()).into();
        let away: BoxError = "connection refused".into();
        assert!(is_denied(&denied) && !is_denied(&away));
        assert!(!is_denied(&Refused("LOADING".into()).into()));
        let at: BoxError = Failed::at("redis:6379", &denied).into();
        assert_eq!(at.to_string(), "redis:6379: the server said: WRONGPASS invalid");
        assert!(is_denied(&at));
        assert!(!is_denied(&Failed::all("nobody answers", &[at, away]).into()));
        assert!(is_denied(&Failed::all("nobody answers", &[denied]).into()));
    }
}
