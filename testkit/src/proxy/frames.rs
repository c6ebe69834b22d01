//! Redis' replies as whole values.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

pub(super) type Drops = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// Says which values are dropped, and counts them.
#[derive(Default)]
pub(super) struct Filter {
    drops: Mutex<Option<Drops>>,
    dropped: AtomicU64,
}

impl Filter {
    pub(super) fn set(&self, drops: Option<Drops>) {
        *self.drops.lock().unwrap_or_else(PoisonError::into_inner) = drops;
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }

    fn drops(&self, value: &[u8]) -> bool {
        let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        let drop = drops.as_mut().is_some_and(|drops| drops(value));
        self.dropped.fetch_add(drop.into(), Ordering::SeqCst);
        drop
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

/// What has come of a value that is not yet complete.
#[derive(Default)]
pub(super) struct Frames {
    pending: Vec<u8>,
}

impl Frames {
    /// Takes more bytes; returns the values that are now complete, without the dropped ones.
    pub(super) fn pass(&mut self, bytes: &[u8], filter: &Filter) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        let (mut passed, mut at) = (Vec::new(), 0);
        while let Some(len) = value_len(&self.pending[at..]) {
            let value = &self.pending[at..at + len];
            if !filter.drops(value) {
                passed.extend_from_slice(value);
            }
            at += len;
        }
        self.pending.drain(..at);
        passed
    }
}

/// The bytes of the first value, of either version of the protocol, if it is complete.
fn value_len(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut wanted) = (0, 1_i64);
    while wanted > 0 {
        let line = line(&bytes[at..])?;
        at += line.len() + 2;
        wanted -= 1;
        let (&kind, number) = line.split_first()?;
        let number = std::str::from_utf8(number).ok().and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        match kind {
            b'$' | b'=' | b'!' if number >= 0 => at += usize::try_from(number).ok()? + 2,
            b'*' | b'~' | b'>' => wanted += number.max(0),
            b'%' => wanted += 2 * number,
            // Attributes come before the value they belong to.
            b'|' => wanted += 2 * number + 1,
            _ => {}
        }
        if at > bytes.len() {
            return None;
        }
    }
    Some(at)
}

fn line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some(&bytes[..end])
}

/// Whether the value brings a published message to a subscriber.
pub(super) fn is_message(value: &[u8]) -> bool {
    let mut lines = value.splitn(4, |&byte| byte == b'\n');
    let pushed = lines.next().is_some_and(|line| line.starts_with(b"*") || line.starts_with(b">"));
    let kind = lines.nth(1).unwrap_or_default().trim_ascii_end();
    pushed && [&b"message"[..], b"pmessage", b"smessage"].contains(&kind)
}
