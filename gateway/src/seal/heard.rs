//! Words that were heard, so that none is heard twice.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{AHEAD, FRESH, SEAL_BYTES};

/// Words of one generation: 1 MiB or so for both. When there are more the oldest are forgotten too soon, which
/// only lets who repeats them cause what the word itself has caused.
const MOST: usize = 32_768;

/// After it no word of the generation is fresh any more.
const GENERATION: Duration = Duration::from_secs((FRESH + AHEAD) as u64);

/// Two generations, so that each word is known for one at least.
#[derive(Default)]
pub(super) struct Heard {
    young: HashSet<[u8; SEAL_BYTES]>,
    old: HashSet<[u8; SEAL_BYTES]>,
    since: Option<Instant>,
}

impl Heard {
    /// Whether this word has not been heard. It is from now on.
    pub(super) fn is_new(&mut self, seal: [u8; SEAL_BYTES], now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= GENERATION || self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        !self.old.contains(&seal) && self.young.insert(seal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_new_once_as_long_as_it_is_fresh_and_memory_is_bounded() {
        let (mut heard, start) = (Heard::default(), Instant::now());
        assert!(heard.is_new([1; SEAL_BYTES], start + GENERATION / 2));
        for later in [1, 2, 3] {
            assert!(!heard.is_new([1; SEAL_BYTES], start + GENERATION / 2 * later), "{later}");
        }
        for number in 0..100_000_u32 {
            let mut seal = [0; SEAL_BYTES];
            seal[..4].copy_from_slice(&number.to_le_bytes());
            assert!(heard.is_new(seal, start + GENERATION * 3));
            assert!(heard.young.len() <= MOST && heard.old.len() <= MOST);
        }
    }
}
