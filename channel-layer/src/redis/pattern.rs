//! Patterns as Redis understands them.

/// A pattern that matches everything that begins with `text`.
pub(super) fn beginning_with(text: &str) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(text.len() + 1);
    for byte in text.bytes() {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_their_own_text_only() {
        assert_eq!(beginning_with("asgispecific.ab"), b"asgispecific.ab*");
        assert_eq!(beginning_with("a*b?[c]\\"), b"a\\*b\\?\\[c\\]\\\\*");
    }
}
