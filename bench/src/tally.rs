//! What was sent and who got it: exact, message by message.

use std::collections::BTreeSet;

use memchr::memmem::Finder;

/// Where a message's mark begins: `~#RUN.ROOM.NUMBER~`.
const MARK: &[u8] = b"~#";

/// A room and its messages.
pub(crate) struct Room {
    pub(crate) name: String,
    /// Sockets that are to get each message.
    pub(crate) members: u32,
    /// `(seq, id)` of the first message, for those who come back.
    pub(crate) position: Option<(u64, String)>,
    sent: Vec<Sent>,
}

struct Sent {
    /// When it was to be sent, ns.
    at: u64,
    missing: u32,
}

/// What a socket has got of its room: everything before `next` but what was `skipped`.
#[derive(Default)]
pub(crate) struct Place {
    next: u32,
    skipped: BTreeSet<u32>,
}

/// The counts of a measurement.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) deliveries: u64,
    /// Deliveries still to come; at the end: lost.
    pub(crate) missing: u64,
    pub(crate) twice: u64,
    pub(crate) out_of_order: u64,
    /// Sockets that the server closed.
    pub(crate) closed: u64,
    /// From the time a message was to be sent to the time it was read, µs.
    pub(crate) latencies: Vec<u32>,
    pub(crate) last_delivery: u64,
}

/// What a delivery means for the room.
pub(crate) enum Delivered {
    /// Others still wait for this message, or it was a repetition.
    One,
    /// Every member has it.
    Whole,
}

impl Room {
    /// A room without members.
    pub(crate) fn new(name: String) -> Self {
        Self { name, members: 0, position: None, sent: Vec::new() }
    }

    /// Writes the mark of a new message that is to be sent at `at`.
    pub(crate) fn send(&mut self, run: u32, room: usize, at: u64, tally: &mut Tally) -> String {
        let mark = format!("~#{run}.{room}.{}~", self.sent.len());
        self.sent.push(Sent { at, missing: self.members });
        tally.missing += u64::from(self.members);
        mark
    }

    /// Counts that the socket at `place` got the message `number` at `now`.
    pub(crate) fn deliver(&mut self, place: &mut Place, number: u32, now: u64, tally: &mut Tally) -> Delivered {
        let Some(sent) = self.sent.get_mut(number as usize) else { return Delivered::One };
        if number == place.next {
            place.next += 1;
        } else if number > place.next {
            place.skipped.extend(place.next..number);
            place.next = number + 1;
        } else if place.skipped.remove(&number) {
            tally.out_of_order += 1;
        } else {
            tally.twice += 1;
            return Delivered::One;
        }
        sent.missing = sent.missing.saturating_sub(1);
        tally.missing = tally.missing.saturating_sub(1);
        tally.deliveries += 1;
        tally.last_delivery = now;
        tally.latencies.push(u32::try_from(now.saturating_sub(sent.at) / 1_000).unwrap_or(u32::MAX));
        if sent.missing == 0 { Delivered::Whole } else { Delivered::One }
    }
}

impl Tally {
    /// Forgets what was counted; what is still missing stays so.
    pub(crate) fn restart(&mut self) {
        *self = Self { missing: self.missing, ..Self::default() };
    }
}

/// Finds the marks in frames.
pub(crate) struct Marks(Finder<'static>);

impl Marks {
    pub(crate) fn new() -> Self {
        Self(Finder::new(MARK))
    }

    /// Room and number of the message in this frame, if it is one of this run.
    pub(crate) fn find(&self, run: u32, frame: &[u8]) -> Option<(usize, u32)> {
        let start = self.0.find(frame)? + MARK.len();
        let mut numbers = [0_u32; 3];
        let mut at = 0;
        for &byte in &frame[start..] {
            match byte {
                b'0'..=b'9' => numbers[at] = numbers[at].checked_mul(10)?.checked_add(u32::from(byte - b'0'))?,
                b'.' if at < 2 => at += 1,
                b'~' if at == 2 && numbers[0] == run => return Some((numbers[1] as usize, numbers[2])),
                _ => return None,
            }
        }
        None
    }
}

/// The values at these shares (0 to 1) of the sorted list, which gets sorted.
pub(crate) fn quantiles<const N: usize>(values: &mut [u32], shares: [f64; N]) -> Option<[u32; N]> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    Some(shares.map(|share| values[(last as f64 * share).round() as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_it_is() {
        let mut room = Room::new(String::new());
        room.members = 1;
        let mut tally = Tally::default();
        room.send(7, 12, 0, &mut tally);
        let mark = room.send(7, 12, 0, &mut tally);
        let frame = format!("{{\"message\":\"{mark}xxx\"}}");
        assert_eq!(Marks::new().find(7, frame.as_bytes()), Some((12, 1)));
        assert_eq!(Marks::new().find(8, frame.as_bytes()), None);
        assert_eq!(Marks::new().find(7, b"~#7.12"), None);
    }

    #[test]
    fn what_is_lost_repeated_or_late_is_counted() {
        let mut room = Room::new(String::new());
        room.members = 1;
        let (mut tally, mut place) = (Tally::default(), Place::default());
        for _ in 0..5 {
            room.send(1, 0, 0, &mut tally);
        }
        for number in [0, 2, 1, 1, 4] {
            room.deliver(&mut place, number, 0, &mut tally);
        }
        assert_eq!((tally.deliveries, tally.missing, tally.twice, tally.out_of_order), (4, 1, 1, 1));
    }

    #[test]
    fn quantiles_are_values_of_the_list() {
        let mut values: Vec<u32> = (0..=100).rev().collect();
        assert_eq!(quantiles(&mut values, [0.0, 0.5, 0.99, 1.0]), Some([0, 50, 99, 100]));
        assert_eq!(quantiles(&mut [], [0.5]), None);
    }
}
