//! The ledger: what was acknowledged, what every client was shown, and whether they agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// A stream as publishers address it: `room:NAME` or `user:NAME`.
pub(crate) type Address = Arc<str>;

/// Where a message stands in its stream: `(id, seq)`.
pub(crate) type Place = (String, u64);

/// What publishers were promised. Every text is published only once, however often it is tried.
#[derive(Default)]
pub(crate) struct Book {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    given: BTreeMap<String, Address>,
    acked: BTreeMap<String, Acked>,
    wrong: Vec<String>,
}

#[derive(Debug, Clone)]
struct Acked {
    to: Address,
    /// Not every door says it.
    place: Option<Place>,
}

impl Book {
    /// Somebody is about to publish this, and will not give up before it is acknowledged.
    pub(crate) fn given(&self, to: &Address, text: &str) {
        let before = self.inner.lock().given.insert(text.to_owned(), Arc::clone(to));
        assert!(before.is_none(), "{text} is published twice");
    }

    /// It was acknowledged, perhaps not for the first time.
    pub(crate) fn acked(&self, text: &str, place: Option<Place>) {
        let mut inner = self.inner.lock();
        let Some(to) = inner.given.get(text).cloned() else {
            inner.wrong.push(format!("an ack for {text}, which nobody published"));
            return;
        };
        let first = inner.acked.entry(text.to_owned()).or_insert_with(|| Acked { to, place: place.clone() });
        if first.place != place {
            let line = format!("{text} was acknowledged as {:?}, and repeated as {place:?}", first.place);
            inner.wrong.push(line);
        }
    }

    pub(crate) fn wrong(&self, line: String) {
        self.inner.lock().wrong.push(line);
    }

    /// What is published and not yet acknowledged.
    pub(crate) fn open(&self) -> Vec<String> {
        let inner = self.inner.lock();
        inner.given.keys().filter(|text| !inner.acked.contains_key(*text)).cloned().collect()
    }

    /// How many messages each stream must have.
    pub(crate) fn lengths(&self) -> HashMap<Address, usize> {
        let mut lengths = HashMap::new();
        for acked in self.inner.lock().acked.values() {
            *lengths.entry(Arc::clone(&acked.to)).or_default() += 1;
        }
        lengths
    }
}

/// A message as it was shown to a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// `None` from a stack that has no positions.
    pub(crate) place: Option<Place>,
    pub(crate) text: String,
}

/// What one client has seen.
#[derive(Debug, Default)]
pub(crate) struct Diary {
    pub(crate) shown: HashMap<Address, Vec<Row>>,
    /// What its sockets brought and must not bring.
    pub(crate) wrong: Vec<String>,
    pub(crate) connects: usize,
    /// Frames of the catch-up or later that it had been shown before, and did not show again.
    pub(crate) dropped: usize,
    /// Streams it had to read again with `history`.
    pub(crate) reloads: usize,
}

/// A client, its streams and its diary.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) streams: Vec<Address>,
    pub(crate) diary: Arc<Mutex<Diary>>,
}

impl Member {
    /// Whether it has been shown as much as there is.
    pub(crate) fn is_complete(&self, lengths: &HashMap<Address, usize>) -> bool {
        let diary = self.diary.lock();
        self.streams.iter().all(|stream| {
            diary.shown.get(stream).map_or(0, Vec::len) >= lengths.get(stream).copied().unwrap_or_default()
        })
    }
}

/// What the comparison found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) acked: usize,
    pub(crate) wanted: usize,
    pub(crate) connects: usize,
    pub(crate) dropped: usize,
    pub(crate) reloads: usize,
    /// Acknowledged, and not shown to a member.
    pub(crate) lost: Vec<String>,
    /// Shown twice.
    pub(crate) duplicates: Vec<String>,
    /// Not shown as 1, 2, 3 …
    pub(crate) order: Vec<String>,
    /// Shown and never acknowledged, or otherwise than acknowledged; or a stream that is not as long as
    /// what was published to it.
    pub(crate) different: Vec<String>,
    /// What sockets or acks had that they must not have.
    pub(crate) wrong: Vec<String>,
}

impl Verdict {
    pub(crate) fn of(book: &Book, members: &[Member]) -> Self {
        let book = book.inner.lock();
        let mut verdict = Self { acked: book.acked.len(), wrong: book.wrong.clone(), ..Self::default() };
        let mut streams: HashMap<&Address, Vec<(&String, &Acked)>> = HashMap::new();
        for (text, acked) in &book.acked {
            streams.entry(&acked.to).or_default().push((text, acked));
        }
        for (stream, all) in &streams {
            verdict.check_numbers(stream, all);
        }
        for member in members {
            let diary = member.diary.lock();
            verdict.connects += diary.connects;
            verdict.dropped += diary.dropped;
            verdict.reloads += diary.reloads;
            verdict.wrong.extend(diary.wrong.iter().map(|line| format!("{}: {line}", member.name)));
            for stream in &member.streams {
                let wanted = streams.get(stream).map(Vec::as_slice).unwrap_or_default();
                let shown = diary.shown.get(stream).map(Vec::as_slice).unwrap_or_default();
                verdict.compare(&format!("{} in {stream}", member.name), wanted, shown);
            }
        }
        verdict
    }

    /// Every publish took one number, however often it was tried.
    fn check_numbers(&mut self, stream: &str, all: &[(&String, &Acked)]) {
        let seqs: Vec<u64> = all.iter().filter_map(|(_, acked)| Some(acked.place.as_ref()?.1)).collect();
        let distinct: BTreeSet<u64> = seqs.iter().copied().collect();
        if distinct.len() < seqs.len() || distinct.last().is_some_and(|last| *last > all.len() as u64) {
            self.different.push(format!("{stream} has {} messages and these numbers: {distinct:?}", all.len()));
        }
    }

    fn compare(&mut self, who: &str, wanted: &[(&String, &Acked)], shown: &[Row]) {
        self.wanted += wanted.len();
        let mut seen: HashMap<&str, &Row> = HashMap::new();
        for row in shown {
            if seen.insert(&row.text, row).is_some() {
                self.duplicates.push(format!("{who}: {row:?}"));
            }
        }
        for (at, row) in shown.iter().enumerate() {
            if let Some((_, seq)) = row.place
                && seq != at as u64 + 1
            {
                self.order.push(format!("{who}: {row:?} came as number {}", at + 1));
                break;
            }
        }
        for (text, acked) in wanted {
            match seen.remove(text.as_str()) {
                None => self.lost.push(format!("{who}: {text} {:?}", acked.place)),
                Some(row) if acked.place.is_some() && acked.place != row.place => {
                    self.different.push(format!("{who}: {row:?}, acknowledged as {:?}", acked.place));
                }
                Some(_) => {}
            }
        }
        self.different.extend(seen.values().map(|row| format!("{who}: {row:?} was never acknowledged")));
    }

    pub(crate) fn is_clean(&self) -> bool {
        [&self.lost, &self.duplicates, &self.order, &self.different, &self.wrong].iter().all(|lines| lines.is_empty())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acked, wanted, connects, dropped, reloads, .. } = self;
        writeln!(
            f,
            "{acked} acknowledged, {wanted} deliveries due, {connects} connects, {dropped} repeats not shown, {reloads} reloads"
        )?;
        let kinds = [
            ("lost", &self.lost),
            ("shown twice", &self.duplicates),
            ("out of order", &self.order),
            ("different", &self.different),
            ("wrong", &self.wrong),
        ];
        for (kind, lines) in kinds {
            writeln!(f, "  {kind}: {}", lines.len())?;
            lines.iter().take(8).try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: u64) -> Row {
        Row { place: Some((format!("id {seq}"), seq)), text: format!("text {seq}") }
    }

    /// The verdict on a member who was shown these, of 1, 2, 3 and 4.
    fn shown(seqs: &[u64]) -> Verdict {
        let (book, stream) = (Book::default(), Address::from("room:a"));
        for seq in 1..=4 {
            let Row { place, text } = row(seq);
            book.given(&stream, &text);
            book.acked(&text, place);
        }
        let diary = Diary {
            shown: HashMap::from([(Arc::clone(&stream), seqs.iter().copied().map(row).collect())]),
            ..Diary::default()
        };
        let member = Member { name: "one".into(), streams: vec![stream], diary: Arc::new(Mutex::new(diary)) };
        Verdict::of(&book, &[member])
    }

    #[test]
    fn the_checker_sees_losses_repeats_and_disorder() {
        let counts = |seqs| {
            let Verdict { lost, duplicates, order, different, .. } = shown(seqs);
            (lost.len(), duplicates.len(), order.len(), different.len())
        };
        assert!(shown(&[1, 2, 3, 4]).is_clean());
        assert_eq!(counts(&[1, 2, 3]), (1, 0, 0, 0));
        assert_eq!(counts(&[1, 2, 4]), (1, 0, 1, 0));
        assert_eq!(counts(&[1, 3, 2, 4]), (0, 0, 1, 0));
        assert_eq!(counts(&[1, 2, 2, 3, 4]), (0, 1, 1, 0));
        assert_eq!(counts(&[1, 2, 3, 4, 5]), (0, 0, 0, 1));
        assert_eq!(counts(&[]), (4, 0, 0, 0));
    }

    #[test]
    fn the_checker_sees_a_publish_that_took_two_numbers() {
        let (book, stream) = (Book::default(), Address::from("room:a"));
        book.given(&stream, "text");
        book.acked("text", Some(("one".into(), 1)));
        assert!(Verdict::of(&book, &[]).is_clean());
        book.acked("text", Some(("two".into(), 2)));
        assert_eq!(Verdict::of(&book, &[]).wrong.len(), 1);
        book.given(&stream, "more");
        book.acked("more", Some(("three".into(), 3)));
        assert_eq!(Verdict::of(&book, &[]).different.len(), 1);
    }
}
