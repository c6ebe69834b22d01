//! How many unread events a channel may hold, by its name.

use regex::Regex;

use crate::LayerError;

/// Which channels a capacity is for: a shell pattern or a regular expression, as in `channel_capacity`
/// of `channels_redis`.
///
/// ```
/// use channel_layer::ChannelPattern;
///
/// let responses = ChannelPattern::glob("http.response!*");
/// assert!(responses.matches("http.response!abc"));
/// let sends = ChannelPattern::regex(r"^websocket\.send!.+")?;
/// assert!(!sends.matches("websocket.send!"));
/// # Ok::<(), channel_layer::LayerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChannelPattern(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Glob(Vec<Part>),
    Regex(Regex),
}

/// A piece of a shell pattern.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Anything,
    One(Set),
}

/// A set of characters, or all but them.
#[derive(Debug, Clone, PartialEq)]
struct Set {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl ChannelPattern {
    /// A shell pattern over the whole name, as Python's `fnmatch` reads it, case-sensitive: `*` is
    /// anything (also `.` and `!`), `?` one character, `[abc]`, `[a-z]` and `[!abc]` one of a set. A `[`
    /// that is never closed stands for itself.
    pub fn glob(pattern: &str) -> Self {
        Self(Kind::Glob(parse_glob(pattern)))
    }

    /// A regular expression that has to match from the start of the name, but not to its end, as
    /// Python's `re.match`. The syntax is that of the crate `regex`; what it does not know (look-around,
    /// back references) is a [`LayerError::Config`].
    pub fn regex(pattern: &str) -> Result<Self, LayerError> {
        match Regex::new(pattern) {
            Ok(regex) => Ok(Self(Kind::Regex(regex))),
            Err(error) => Err(LayerError::Config(format!("channel_capacity: pattern {pattern:?}: {error}"))),
        }
    }

    /// Whether a channel of this full name is meant.
    pub fn matches(&self, channel: &str) -> bool {
        match &self.0 {
            Kind::Glob(parts) => glob_matches(parts, channel),
            // The leftmost match is found: if there is one at the start, it is that one.
            Kind::Regex(regex) => regex.find(channel).is_some_and(|found| found.start() == 0),
        }
    }
}

/// A text is a shell pattern, as in `channel_capacity`.
impl From<&str> for ChannelPattern {
    fn from(pattern: &str) -> Self {
        Self::glob(pattern)
    }
}

/// The capacity of every channel.
#[derive(Debug, Clone)]
pub(crate) struct Capacity {
    default: usize,
    patterns: Vec<(ChannelPattern, usize)>,
}

impl Capacity {
    /// At least 1, as every capacity.
    pub(crate) fn new(default: usize) -> Self {
        Self { default: default.max(1), patterns: Vec::new() }
    }

    pub(crate) fn set_default(&mut self, default: usize) {
        self.default = default.max(1);
    }

    /// Adds a pattern behind the others: the first that matches counts.
    pub(crate) fn add(&mut self, pattern: ChannelPattern, capacity: usize) {
        self.patterns.push((pattern, capacity.max(1)));
    }

    /// The capacity of a channel, by its full name.
    pub(crate) fn of(&self, channel: &str) -> usize {
        let own = self.patterns.iter().find(|(pattern, _)| pattern.matches(channel));
        own.map_or(self.default, |(_, capacity)| *capacity)
    }
}

fn parse_glob(glob: &str) -> Vec<Part> {
    let chars: Vec<char> = glob.chars().collect();
    let mut parts = Vec::new();
    let mut rest = &chars[..];
    while let [first, tail @ ..] = rest {
        rest = tail;
        parts.push(match first {
            '*' => Part::Anything,
            '?' => Part::One(Set { negated: true, ranges: Vec::new() }),
            '[' => match set_end(tail) {
                Some(end) => {
                    rest = &tail[end + 1..];
                    Part::One(parse_set(&tail[..end]))
                }
                None => literal('['),
            },
            c => literal(*c),
        });
    }
    // Several `*` in a row are one.
    parts.dedup_by(|next, part| *next == Part::Anything && *part == Part::Anything);
    parts
}

fn literal(c: char) -> Part {
    Part::One(Set { negated: false, ranges: vec![(c, c)] })
}

fn glob_matches(parts: &[Part], name: &str) -> bool {
    let (mut parts, mut name) = (parts, name.chars());
    // Where to go on if the last `*` has to take one more character.
    let mut retry: Option<(&[Part], std::str::Chars<'_>)> = None;
    loop {
        let mut ahead = name.clone();
        match (parts, ahead.next()) {
            ([], None) => return true,
            ([Part::Anything, after @ ..], _) => {
                retry = Some((after, name.clone()));
                parts = after;
                continue;
            }
            ([Part::One(set), after @ ..], Some(c)) if set.holds(c) => {
                (parts, name) = (after, ahead);
                continue;
            }
            _ => {}
        }
        let Some((after, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        (parts, name) = (after, from.clone());
    }
}

impl Set {
    fn holds(&self, c: char) -> bool {
        self.negated != self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&c))
    }
}

/// Where the `]` is that ends a set. One that comes first, also behind `!`, belongs to the set.
fn set_end(set: &[char]) -> Option<usize> {
    let skipped = match set {
        ['!', ']', ..] => 2,
        ['!', ..] | [']', ..] => 1,
        _ => 0,
    };
    Some(skipped + set[skipped..].iter().position(|c| *c == ']')?)
}

fn parse_set(set: &[char]) -> Set {
    let (negated, set) = match set {
        ['!', set @ ..] => (true, set),
        set => (false, set),
    };
    let parts = set_parts(set);
    let mut ranges: Vec<(char, char)> = parts.iter().flatten().map(|c| (*c, *c)).collect();
    for pair in parts.windows(2) {
        if let (Some(from), Some(to)) = (pair[0].last(), pair[1].first()) {
            ranges.push((*from, *to));
        }
    }
    Set { negated, ranges }
}

/// Splits a set at the hyphens that make ranges, as Python does: not at the first or last character,
/// nor right behind a range. A range that runs backwards is taken out, ends included.
fn set_parts(set: &[char]) -> Vec<Vec<char>> {
    let mut parts: Vec<Vec<char>> = Vec::new();
    let mut start = 0;
    let mut from = 1;
    while let Some(hyphen) = set.iter().enumerate().skip(from).find(|(_, c)| **c == '-').map(|(at, _)| at) {
        parts.push(set[start..hyphen].to_vec());
        start = hyphen + 1;
        from = hyphen + 3;
    }
    match (&set[start..], parts.last_mut()) {
        ([], Some(last)) => last.push('-'),
        (end, _) => parts.push(end.to_vec()),
    }
    for at in (1..parts.len()).rev() {
        if parts[at - 1].last() > parts[at].first() {
            let rest = parts.remove(at);
            parts[at - 1].pop();
            parts[at - 1].extend_from_slice(&rest[1..]);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden;

    fn check(capacity: &Capacity, cases: &serde_json::Value, count: usize) {
        let cases = cases.as_array().unwrap();
        assert_eq!(cases.len(), count);
        for case in cases {
            assert_eq!(
                capacity.of(case["channel"].as_str().unwrap()) as u64,
                case["capacity"].as_u64().unwrap(),
                "{case}"
            );
        }
    }

    fn capacity(vectors: &serde_json::Value, patterns: &str, compile: impl Fn(&str) -> ChannelPattern) -> Capacity {
        let mut capacity = Capacity::new(vectors["default_capacity"].as_u64().unwrap() as usize);
        for entry in vectors[patterns].as_array().unwrap() {
            capacity.add(compile(entry[0].as_str().unwrap()), entry[1].as_u64().unwrap() as usize);
        }
        capacity
    }

    #[test]
    fn the_first_pattern_that_matches_decides_as_in_python() {
        let vectors = &golden::vectors()["capacity"];
        check(&capacity(vectors, "globs_in_order", ChannelPattern::glob), &vectors["by_glob"], 13);
        check(
            &capacity(vectors, "regexes_in_order", |text| ChannelPattern::regex(text).unwrap()),
            &vectors["by_regex"],
            4,
        );
    }

    /// Every verdict here is `fnmatch.fnmatchcase`'s.
    #[test]
    fn globs_are_read_as_python_reads_them() {
        for (glob, yes, no) in [
            ("", &[""][..], &["a"][..]),
            ("***", &["", "a.b!c"], &[]),
            ("a**b", &["ab", "a!b"], &["ba"]),
            ("[!abc]x", &["dx", "!x"], &["ax", "x"]),
            ("[]x]", &["]", "x"], &["a", "[]x]"]),
            ("[!]x]", &["a", "!"], &["]", "x"]),
            ("a[b", &["a[b"], &["ab"]),
            ("[", &["["], &[""]),
            ("[]", &["[]"], &["", "["]),
            ("[!]", &["[!]"], &["a"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("[-a]", &["a", "-"], &["b"]),
            ("[a-c-e]", &["a", "b", "c", "-", "e"], &["d"]),
            ("[a-cx-z]", &["b", "y"], &["d", "-"]),
            ("[c-a]", &[], &["a", "b", "c", "-"]),
            ("[!c-a]", &["a", "b", "c", "-"], &[""]),
            ("[c-ax]", &["x"], &["a", "c"]),
            ("[--a]", &["-", ".", "A", "a"], &["b"]),
            ("[^a]", &["^", "a"], &["b"]),
            ("[a&&b]", &["a", "&", "b"], &["c"]),
            (r"[\d]", &["\\", "d"], &["1"]),
            ("a.b", &["a.b"], &["axb"]),
            ("A", &["A"], &["a"]),
            ("?", &["é", "\n"], &["", "ab"]),
        ] {
            let pattern = ChannelPattern::glob(glob);
            yes.iter().for_each(|name| assert!(pattern.matches(name), "{glob} is for {name:?}"));
            no.iter().for_each(|name| assert!(!pattern.matches(name), "{glob} is not for {name:?}"));
        }
    }

    #[test]
    fn a_regular_expression_matches_from_the_start_only() {
        let pattern = ChannelPattern::regex("b|ab").unwrap();
        assert!(pattern.matches("abc") && pattern.matches("b") && !pattern.matches("xb"));
        let error = ChannelPattern::regex("(?=a)").unwrap_err();
        assert!(matches!(error, LayerError::Config(text) if text.contains("channel_capacity")));
    }

    #[test]
    fn a_capacity_is_at_least_one() {
        let mut capacity = Capacity::new(0);
        capacity.add(ChannelPattern::glob("a*"), 0);
        assert_eq!((capacity.of("abc"), capacity.of("b")), (1, 1));
    }
}
