//! Turning our values into the database's and back.

use sea_orm::{DbErr, sea_query};
use time::OffsetDateTime;

use crate::{StoreError, types::MAX_NAME_CHARS};

/// Most values bound in one statement; SQLite takes 32,766, the others 65,535.
pub(crate) const MAX_BINDS: usize = 30_000;
/// Most names in one `IN` list.
pub(crate) const MAX_LIST: usize = 1_000;
/// Most bytes of text in one insert, well below MariaDB's `max_allowed_packet` (16 MiB).
pub(crate) const MAX_INSERT_BYTES: usize = 4 * 1024 * 1024;

/// Microseconds since 1970.
pub(crate) fn micros(date: OffsetDateTime) -> i64 {
    i64::try_from(date.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)
}

/// The date of so many microseconds since 1970.
pub(crate) fn date(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A position as the databases know it; beyond their range nothing exists.
pub(crate) fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or(0)
}

/// A new epoch: positive, and exact in JavaScript and JSON.
pub(crate) fn new_epoch() -> i64 {
    use rand::RngExt;
    rand::rng().random_range(1..(1 << 53))
}

/// Whether this can be the name of a room or a user, the one rule for all who take names: 1 to 150 characters, no
/// control character, no `/`, and neither `.` nor `..`, which no URL can carry: clients of HTTP fold them.
pub fn is_valid_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && !name.chars().any(|character| character.is_control() || character == '/')
        && (name.len() <= MAX_NAME_CHARS || name.chars().count() <= MAX_NAME_CHARS)
}

/// Refuses what cannot be a name.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), StoreError> {
    if is_valid_name(name) {
        return Ok(());
    }
    Err(StoreError::Invalid(format!(
        "{what}: 1 to {MAX_NAME_CHARS} characters, no control character and no /, and neither . nor .. are allowed"
    )))
}

/// Sorted, without doubles and without names that cannot exist.
pub(crate) fn distinct<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<_> = names.into_iter().filter(|name| is_valid_name(name)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Repeats the last value until the length is a power of two, so that lists of many lengths share
/// few statements, and the connections' caches of prepared statements hold.
pub(crate) fn padded<T: Clone>(values: &[T]) -> Vec<T> {
    let mut padded = values.to_vec();
    if let Some(last) = values.last() {
        padded.resize(values.len().next_power_of_two(), last.clone());
    }
    padded
}

/// The builder's error, which means a bug here.
pub(crate) fn builder(error: sea_query::error::Error) -> DbErr {
    DbErr::Custom(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_keep_microseconds() {
        let now = 1_767_323_045_000_006;
        assert_eq!(micros(date(now)), now);
    }

    #[test]
    fn lists_are_padded_and_distinct() {
        assert_eq!(padded(&[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5, 5, 5, 5]);
        assert_eq!(padded::<i32>(&[]), [0; 0]);
        assert_eq!(distinct(["b", "a", "b", "", "x\0"]), ["a", "b"]);
    }

    #[test]
    fn names_have_a_rule() {
        for good in ["Łódź 1", "...", ".x", "a..", "\u{202e}", &"é".repeat(150)] {
            assert!(is_valid_name(good), "{good:?}");
        }
        for bad in ["", "a/b", "/", "a\nb", "\u{7f}", "\u{85}", ".", "..", &"x".repeat(151)] {
            assert!(!is_valid_name(bad), "{bad:?}");
        }
    }
}
