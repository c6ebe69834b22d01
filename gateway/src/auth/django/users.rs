//! Who the site's users are now: by id, read for many in one statement.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use persistence::SiteUser;

use super::{Away, Found, LONGEST_ID, Row, Rows};
use crate::seldom::Seldom;

/// How long a user is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Bytes of users that are remembered; over it the memory starts afresh.
const REMEMBERED_BYTES: usize = 8 << 20;

/// What one takes beside the texts, about: three blocks of memory and a place in the map.
const USER_COST: usize = 160;

/// A user of the site, without what is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    /// As Django writes it: a number, or a UUID in lower case with dashes.
    pub(crate) id: Arc<str>,
    pub(crate) username: Arc<str>,
    /// Whether the user may sign in.
    pub(crate) active: bool,
}

/// Reads users of the site.
#[derive(Debug)]
pub(crate) struct Users {
    rows: Arc<Rows>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    users: HashMap<Arc<str>, (Person, Instant)>,
    bytes: usize,
}

impl Users {
    pub(super) fn new(rows: &Arc<Rows>) -> Self {
        Self { rows: Arc::clone(rows), known: Mutex::default() }
    }

    /// The user with this id, as it was within the last minute.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<Person>, Away> {
        if id.len() > LONGEST_ID {
            return Ok(None);
        }
        if let Some(person) = self.known.lock().get(id, Instant::now()) {
            return Ok(Some(person));
        }
        let Some(user) = self.read(id).await? else { return Ok(None) };
        let person = Person::from(&user);
        self.known.lock().add(id.into(), person.clone(), Instant::now());
        Ok(Some(person))
    }

    /// The row of the user with this id, as it is now.
    pub(super) async fn read(&self, id: &str) -> Result<Option<SiteUser>, Away> {
        match self.rows.load(Row::User(id.into())).await.map_err(|error| away("site_database", &error))? {
            Found::User(user) => Ok(user),
            Found::Session(_) => Ok(None),
        }
    }
}

impl From<&SiteUser> for Person {
    fn from(user: &SiteUser) -> Self {
        Self { id: user.id.as_str().into(), username: user.name.as_str().into(), active: user.active }
    }
}

impl Known {
    fn get(&self, id: &str, now: Instant) -> Option<Person> {
        let (person, since) = self.users.get(id)?;
        (now.duration_since(*since) < REMEMBERED).then(|| person.clone())
    }

    fn add(&mut self, id: Arc<str>, person: Person, now: Instant) {
        let bytes = USER_COST + id.len() + person.id.len() + person.username.len();
        if self.bytes + bytes > REMEMBERED_BYTES {
            *self = Self::default();
        }
        if self.users.insert(id, (person, now)).is_none() {
            self.bytes += bytes;
        }
    }
}

/// What cannot be judged now, and a line about it now and then.
pub(super) fn away(what: &'static str, error: &(dyn std::error::Error + 'static)) -> Away {
    static LINES: Seldom = Seldom::new();
    if let Some(times) = LINES.again() {
        tracing::warn!(what, times, error, "who comes by a session or an id cannot be judged now");
    }
    Away(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_remembered_for_a_minute_within_a_bound() {
        let (mut known, start) = (Known::default(), Instant::now());
        let person = |n: u32| Person { id: n.to_string().into(), username: "u".repeat(150).into(), active: true };
        known.add("1".into(), person(1), start);
        assert_eq!(known.get("1", start + REMEMBERED - Duration::from_millis(1)), Some(person(1)));
        assert_eq!(known.get("1", start + REMEMBERED), None);
        for n in 0..100_000 {
            known.add(n.to_string().into(), person(n), start);
            assert!(known.bytes <= REMEMBERED_BYTES);
        }
        assert!(known.users.len() > 1000 && known.users.len() <= REMEMBERED_BYTES / USER_COST);
    }
}
