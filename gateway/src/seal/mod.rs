//! Who has the database seals its events, and believes no other claims.
//!
//! Anybody may write to the channel layer: what comes from there is true only as far as nothing depends on
//! it. Two kinds of events need more. One says that a message was stored at a place in a stream; the other
//! is a word from node to node. Both carry a seal: a keyed hash (SipHash-2-4, made for short messages and
//! as a message authentication code; 64 bits) over the group they are for and all their fields. The key is
//! made of a secret in the database, which Redis never sees.
//!
//! The secret is replaced every week by whichever node finds it too old. A new one is not used before
//! all nodes have had time to read it, and the one before it stays valid until the next, so nothing is lost
//! whenever a node learns of it.

mod content;
mod heard;

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use channel_layer::{Event, Value};
use parking_lot::{Mutex, RwLock};
use persistence::{Secret, Secrets};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;

use self::heard::Heard;
use crate::events;
use crate::metrics::{ByReason, Metrics};
use crate::seldom::SeldomOfKind;
use crate::words::{EventType, Trust};

/// The field that holds the seal: which key, and the hash.
const SEAL: &str = "seal";
const KEY_ID: usize = 4;
const SEAL_BYTES: usize = KEY_ID + 8;
const SEAL_TEXT: usize = SEAL_BYTES / 3 * 4;

/// The field of a word that says when it was sealed, in seconds by the database's clock.
const AT: &str = "at";
/// And one that tells it from another word of the same content in the same second.
const ONCE: &str = "once";

/// How old a secret becomes.
pub(crate) const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// A secret younger than this is known to us and perhaps not to all others.
const SPREADS: Duration = Duration::from_secs(600);

/// How old a word may be, and how far ahead of the clock that is known here. In between it is heard once.
const FRESH: i64 = 120;
const AHEAD: i64 = 30;

/// Why an event is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It has no seal, or something else in its place.
    Unsealed,
    /// Its seal is of another event, or for another group.
    Wrong,
    /// Its seal is of a key that is not, or no more, in the database.
    UnknownKey,
    /// A word of another time.
    Stale,
    /// A word that was heard before.
    Repeated,
}

impl Flaw {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unsealed => "unsealed",
            Self::Wrong => "wrong",
            Self::UnknownKey => "unknown_key",
            Self::Stale => "stale",
            Self::Repeated => "repeated",
        }
    }
}

/// The keys that count at a moment, and what the time is by the database's clock.
pub(crate) struct Keys {
    sealing: Key,
    other: Option<Key>,
    read_at: Instant,
    now: i64,
}

struct Key {
    id: [u8; KEY_ID],
    halves: (u64, u64),
}

impl Key {
    fn of(secret: &Secret) -> Self {
        let digest: [u8; 32] =
            Sha256::new().chain_update(b"seals of channel gateway\n").chain_update(secret.bytes()).finalize().into();
        let eight = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| digest[at + byte]));
        Self { id: std::array::from_fn(|byte| digest[16 + byte]), halves: (eight(0), eight(8)) }
    }

    #[expect(deprecated, reason = "what has replaced it in std may change its algorithm, and nodes must agree")]
    fn hash(&self, event: &Event, target: &str) -> [u8; 8] {
        use std::hash::{Hasher as _, SipHasher};
        let mut hasher = SipHasher::new_with_keys(self.halves.0, self.halves.1);
        content::write(event, target, SEAL, |piece| hasher.write(piece));
        hasher.finish().to_le_bytes()
    }
}

impl Keys {
    fn of(secrets: &Secrets) -> Self {
        let (current, previous) = (Key::of(&secrets.current), secrets.previous.as_ref().map(Key::of));
        let (sealing, other) = match previous {
            Some(previous) if secrets.age < SPREADS => (previous, Some(current)),
            previous => (current, previous),
        };
        Self { sealing, other, read_at: Instant::now(), now: secrets.now }
    }

    /// The event with the seal of a message that was stored, for its stream's group.
    pub(crate) fn seal(&self, event: Event, target: &str) -> Event {
        let mut bytes = [0; SEAL_BYTES];
        bytes[..KEY_ID].copy_from_slice(&self.sealing.id);
        bytes[KEY_ID..].copy_from_slice(&self.sealing.hash(&event, target));
        let mut text = [0; SEAL_TEXT];
        let written = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text).ok();
        let text = written.and_then(|length| std::str::from_utf8(text.get(..length)?).ok());
        event.with(SEAL, text.unwrap_or_default())
    }

    /// Whether who has the database has sealed this event for the target.
    fn check(&self, event: &Event, target: &str) -> Result<[u8; SEAL_BYTES], Flaw> {
        let mut seal = [0; SEAL_BYTES];
        let text = event.text(SEAL).filter(|text| text.len() == SEAL_TEXT).ok_or(Flaw::Unsealed)?;
        URL_SAFE_NO_PAD.decode_slice(text, &mut seal).map_err(|_| Flaw::Unsealed)?;
        let (id, hash) = seal.split_at(KEY_ID);
        let mut flaw = Flaw::UnknownKey;
        for key in [Some(&self.sealing), self.other.as_ref()].into_iter().flatten().filter(|key| key.id == id) {
            if bool::from(key.hash(event, target).as_slice().ct_eq(hash)) {
                return Ok(seal);
            }
            flaw = Flaw::Wrong;
        }
        Err(flaw)
    }

    /// The database's clock, which this node's own may differ from.
    fn clock(&self) -> i64 {
        self.now + i64::try_from(self.read_at.elapsed().as_secs()).unwrap_or(0)
    }

    fn are(&self, others: &Self) -> bool {
        let id = |key: Option<&Key>| key.map(|key| key.id);
        let has = |keys: &Self, one| one == id(Some(&keys.sealing)) || one == id(keys.other.as_ref());
        has(others, id(Some(&self.sealing))) && has(others, id(self.other.as_ref()))
    }
}

/// Seals events, and tells which to believe.
pub(crate) struct Seals {
    keys: RwLock<Arc<Keys>>,
    heard: Mutex<Heard>,
    /// The keys or the clock may have changed.
    doubted: Notify,
    metrics: Arc<Metrics>,
    warnings: SeldomOfKind,
}

impl Seals {
    pub(crate) fn new(secrets: &Secrets, metrics: &Arc<Metrics>) -> Self {
        Self {
            keys: RwLock::new(Arc::new(Keys::of(secrets))),
            heard: Mutex::default(),
            doubted: Notify::new(),
            metrics: Arc::clone(metrics),
            warnings: SeldomOfKind::default(),
        }
    }

    /// The keys of this moment. Who has many events takes them once.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read())
    }

    /// A word to the nodes, sealed for the group or channel it is sent to.
    pub(crate) fn word(&self, event: Event, target: &str) -> Event {
        let keys = self.keys();
        keys.seal(event.with(AT, keys.clock()).with(ONCE, rand::random::<i64>()), target)
    }

    /// What of an event that has come for a group, or for a channel, is to be believed: a word of a node as a
    /// whole or not at all, a stored message with its place or as one that was not stored.
    pub(crate) fn believe(&self, keys: &Keys, event: Arc<Event>, target: &str) -> Option<Arc<Event>> {
        let Some(kind) = EventType::of_event(&event) else { return Some(event) };
        match kind.trust() {
            Trust::Anybody => return Some(event),
            Trust::Once | Trust::Often => {
                let again_is_fine = kind.trust() == Trust::Often;
                return self.hears(keys, kind.as_str(), &event, target, again_is_fine).then_some(event);
            }
            Trust::Position => {}
        }
        if events::position(&event).is_none() {
            return Some(event);
        }
        match keys.check(&event, target) {
            Ok(_) => Some(event),
            Err(flaw) => {
                self.complain(
                    kind.as_str(),
                    flaw,
                    target,
                    "an event claims a place that is not its own; it counts as not stored",
                );
                Some(Arc::new(events::without_place(&event)))
            }
        }
    }

    /// Whether a word is one of ours, of now, and new unless it may be said again. `kind` is its type.
    pub(crate) fn hears(
        &self,
        keys: &Keys,
        kind: &'static str,
        word: &Event,
        target: &str,
        again_is_fine: bool,
    ) -> bool {
        let judged = keys.check(word, target).and_then(|seal| {
            let age = keys.clock().saturating_sub(word.get(AT).and_then(Value::as_i64).ok_or(Flaw::Stale)?);
            if !(-AHEAD..=FRESH).contains(&age) {
                return Err(Flaw::Stale);
            }
            let new = again_is_fine || self.heard.lock().is_new(seal, Instant::now());
            if new { Ok(()) } else { Err(Flaw::Repeated) }
        });
        if let Err(flaw) = judged {
            self.complain(kind, flaw, target, "an event that only nodes may send is ignored");
        }
        judged.is_ok()
    }

    fn complain(&self, kind: &'static str, flaw: Flaw, target: &str, what: &str) {
        self.metrics.layer_events_forged.get_or_create(&ByReason { reason: flaw.as_str() }).inc();
        if matches!(flaw, Flaw::UnknownKey | Flaw::Stale) {
            self.doubted.notify_one();
        }
        if let Some(times) = self.warnings.again(kind, flaw.as_str()) {
            tracing::warn!(
                event_type = kind,
                group = target,
                reason = flaw.as_str(),
                times,
                "{what}: find out who sends it; nodes with another database or of an older version do, too"
            );
        }
    }

    /// Waits until the keys or the clock may have changed.
    pub(crate) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Takes over what was read. Returns whether the keys are others.
    pub(crate) fn renew(&self, secrets: &Secrets) -> bool {
        let keys = Arc::new(Keys::of(secrets));
        let before = std::mem::replace(&mut *self.keys.write(), Arc::clone(&keys));
        !keys.are(&before)
    }
}

impl std::fmt::Debug for Seals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seals")
    }
}

#[cfg(test)]
mod tests;
