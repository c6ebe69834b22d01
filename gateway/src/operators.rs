//! Sessions of operators at `/admin/`: who has shown an API key to the page need not show it again for a while.
//!
//! A session is its cookie: an end, an id, and a signature that only who has the key can make. So every node with the
//! key takes it, none of them remembers it, and it ends with the key. Those that were ended before their time are
//! remembered until then.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// How long a session lasts, in seconds.
const LASTS: i64 = 8 * 3600;

/// Ended sessions that are remembered; of more, those that would have ended soonest are forgotten.
const MAX_ENDED: usize = 1024;

/// The sessions that were ended before their time, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    ended: Mutex<HashMap<String, i64>>,
}

/// An operator's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// Stands in the log; nothing can be made of it.
    pub(crate) id: String,
    /// Seconds since 1970, by the database's clock.
    pub(crate) ends: i64,
}

impl Sessions {
    /// Ends a session now; `ends` is when it would have ended.
    pub(crate) fn end(&self, session: &str, ends: i64, now: i64) {
        let mut ended = self.ended.lock();
        ended.retain(|_, ends| *ends > now);
        if ends <= now || ends > now + LASTS + 60 || session.len() > 64 {
            return;
        }
        if ended.len() >= MAX_ENDED
            && let Some(soonest) = ended.iter().min_by_key(|(_, ends)| **ends).map(|(session, _)| session.clone())
        {
            ended.remove(&soonest);
        }
        ended.insert(session.to_owned(), ends);
    }

    fn has_ended(&self, session: &str) -> bool {
        self.ended.lock().contains_key(session)
    }

    /// The session of this cookie, if a node with this key made it and it goes on.
    pub(crate) fn read(&self, cookie: &str, key: &SecretString, now: i64) -> Option<Session> {
        let (claims, signature) = cookie.rsplit_once('.')?;
        let good: bool = signature_of(claims, key).as_bytes().ct_eq(signature.as_bytes()).into();
        let (ends, id) = claims.split_once('.').filter(|_| good)?;
        let ends: i64 = ends.parse().ok()?;
        (ends > now && !self.has_ended(id)).then(|| Session { id: id.to_owned(), ends })
    }
}

impl Session {
    pub(crate) fn begin(now: i64) -> Self {
        Self { id: format!("{:016x}", rand::random::<u64>()), ends: now + LASTS }
    }

    pub(crate) fn cookie(&self, key: &SecretString) -> String {
        let claims = format!("{}.{}", self.ends, self.id);
        format!("{claims}.{}", signature_of(&claims, key))
    }
}

fn signature_of(claims: &str, key: &SecretString) -> String {
    let sign = |key: &[u8], text: &str| {
        let mac = Hmac::<Sha256>::new_from_slice(key).map(|mac| mac.chain_update(text).finalize().into_bytes());
        // Any length is one that a key of HMAC may have.
        mac.unwrap_or_default()
    };
    // A key of its own: what is signed here is good for nothing else.
    let derived = sign(key.expose_secret().as_bytes(), "channel gateway: sessions of operators");
    URL_SAFE_NO_PAD.encode(sign(&derived, claims))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_good_with_its_key_until_it_ends_or_is_ended() {
        let (sessions, key) = (Sessions::default(), SecretString::from("key"));
        let session = Session::begin(1000);
        let cookie = session.cookie(&key);
        assert_eq!(sessions.read(&cookie, &key, 1000), Some(session.clone()));
        assert_eq!(Sessions::default().read(&cookie, &key, 1000 + LASTS - 1), Some(session.clone()), "on another node");
        assert_eq!(sessions.read(&cookie, &key, 1000 + LASTS), None);
        assert_eq!(sessions.read(&cookie, &SecretString::from("other"), 1000), None);
        let (claims, signature) = cookie.rsplit_once('.').unwrap();
        let longer = claims.replacen(&session.ends.to_string(), &(session.ends + 1).to_string(), 1);
        for forged in [format!("{longer}.{signature}"), format!("{claims}."), claims.to_owned(), String::new()] {
            assert_eq!(sessions.read(&forged, &key, 1000), None, "{forged}");
        }
        sessions.end(&session.id, session.ends, 1000);
        assert_eq!(sessions.read(&cookie, &key, 1000), None);
        assert!(!cookie.contains("key"));
    }

    #[test]
    fn ended_sessions_take_no_more_memory_however_many_there_are() {
        let sessions = Sessions::default();
        for number in 0..5000_i64 {
            sessions.end(&format!("{number}"), 1000 + number, 0);
        }
        assert_eq!(sessions.ended.lock().len(), MAX_ENDED);
        assert!(sessions.has_ended("4999") && !sessions.has_ended("0"));
        sessions.end("over", 0, 6000);
        sessions.end("too far", i64::MAX, 6000);
        assert_eq!(sessions.ended.lock().len(), 0);
    }
}
