//! What every socket is promised: of each stream n, n+1, n+2 …

use std::collections::HashMap;

use crate::book::Address;

/// The streams of one socket.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    streams: HashMap<Address, Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    /// The last that came, or the place that was asked from.
    at: Option<u64>,
    /// Asked and not yet answered: `false` would allow a jump.
    doubts: Option<Vec<String>>,
    /// Asked for the second time: what is under way may come once more.
    again: bool,
}

impl Wire {
    pub(crate) fn new_socket(&mut self) {
        self.streams.clear();
    }

    /// The client asks for everything after this place.
    pub(crate) fn asked(&mut self, stream: &Address, seq: u64, again: bool) {
        self.streams.insert(stream.clone(), Stream { at: Some(seq), doubts: Some(Vec::new()), again });
    }

    /// A stored frame has come. Returns what is wrong with it.
    pub(crate) fn came(&mut self, stream: &Address, seq: u64) -> Option<String> {
        let known = self.streams.entry(stream.clone()).or_default();
        let before = known.at.replace(seq);
        if before.is_none_or(|at| seq == at + 1) {
            return None;
        }
        let line = format!("{seq} came after {} on one socket, in {stream}", before.unwrap_or_default());
        let repeat = before.is_some_and(|at| seq <= at);
        match &mut known.doubts {
            Some(_) if known.again && repeat => None,
            Some(doubts) => {
                doubts.push(line);
                None
            }
            None => Some(line),
        }
    }

    /// The answer: whether the stream goes on from the place that was asked from. Returns what was wrong.
    pub(crate) fn resumed(&mut self, stream: &Address, complete: bool) -> Vec<String> {
        let known = self.streams.entry(stream.clone()).or_default();
        let doubts = known.doubts.take().unwrap_or_default();
        if complete {
            return doubts;
        }
        // Frames may have come before the answer; without one, anything may be the next.
        if doubts.is_empty() {
            known.at = None;
        }
        Vec::new()
    }
}

#[test]
fn a_jump_is_wrong_unless_the_answer_allows_it() {
    let stream = Address::from("room:a");
    let mut wire = Wire::default();
    wire.asked(&stream, 3, false);
    assert_eq!(wire.came(&stream, 4), None);
    assert_eq!(wire.came(&stream, 6), None);
    assert_eq!(wire.resumed(&stream, true).len(), 1);
    assert!(wire.came(&stream, 7).is_none() && wire.came(&stream, 7).is_some() && wire.came(&stream, 9).is_some());
    wire.asked(&stream, 3, false);
    wire.came(&stream, 6);
    assert!(wire.resumed(&stream, false).is_empty());
    assert!(wire.came(&stream, 7).is_none());
}
