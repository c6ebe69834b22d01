//! Which paths are bridged.

use percent_encoding::percent_decode_str;

/// The `path` of a bridge: one that ends in `/` takes everything below it, `{name}` takes one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: String,
    segments: Vec<Segment>,
    takes_all_below: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
}

impl Pattern {
    /// Reads a pattern; the error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let path = text.strip_prefix('/').ok_or("must begin with /")?;
        if path.contains(['?', '#', '%']) || path.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("must be a plain path: no query, no escapes, no blanks");
        }
        let takes_all_below = path.is_empty() || path.ends_with('/');
        let path = path.strip_suffix('/').unwrap_or(path);
        let segments =
            if path.is_empty() { Vec::new() } else { path.split('/').map(segment).collect::<Result<_, _>>()? };
        Ok(Self { text: text.to_owned(), segments, takes_all_below })
    }

    /// As it was configured.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a path, as it was sent, is bridged. The trailing slash may be left out, as everywhere.
    pub(crate) fn matches(&self, raw_path: &str) -> bool {
        let Some(path) = raw_path.strip_prefix('/') else { return false };
        let mut parts = path.split('/');
        let all = self.segments.iter().all(|segment| parts.next().is_some_and(|part| segment.matches(part)));
        all && (self.takes_all_below || matches!((parts.next(), parts.next()), (None | Some(""), None)))
    }
}

fn segment(text: &str) -> Result<Segment, &'static str> {
    let inner = text.strip_prefix('{').map(|rest| rest.strip_suffix('}').ok_or("a { needs its }")).transpose()?;
    match inner.unwrap_or(text) {
        "" => Err("a segment is empty"),
        name if name.contains(['{', '}']) => Err("{name} must be a whole segment"),
        name => Ok(if inner.is_some() { Segment::Any } else { Segment::Literal(name.to_owned()) }),
    }
}

impl Segment {
    fn matches(&self, part: &str) -> bool {
        match self {
            Self::Any => !part.is_empty(),
            Self::Literal(literal) => literal == part || percent_decode_str(part).eq(literal.bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_what_it_says() {
        for (pattern, taken, left) in [
            (
                "/ws/orders/",
                &["/ws/orders/", "/ws/orders", "/ws/orders/7/", "/ws/orders//", "/ws/%6frders/"][..],
                &["/ws/order/", "/ws/", "/ws/orders2/"][..],
            ),
            ("/ws/orders", &["/ws/orders", "/ws/orders/"], &["/ws/orders/7", "/ws/orders//", "/ws"]),
            ("/ws/{tenant}/chat/", &["/ws/a/chat/", "/ws/%2f/chat/b"], &["/ws//chat/", "/ws/a/b/chat/"]),
            ("/{any}", &["/x", "/x/"], &["/", "/x/y"]),
            ("/", &["/", "/x", "/x/y"], &["x", ""]),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            taken.iter().for_each(|path| assert!(parsed.matches(path), "{pattern} {path}"));
            left.iter().for_each(|path| assert!(!parsed.matches(path), "{pattern} {path}"));
        }
        for wrong in ["", "ws/", "/a?b", "/a//b", "/{a", "/a}", "/a{b}", "/{}", "/a b", "/%61"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
