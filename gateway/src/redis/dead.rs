//! The dead letters, for the API. A letter may be of any size: what is shown of it is not.

use serde_json::{Map, json};

use super::RedisFailed;
use super::connection::{Move, move_fields};
use super::entry::{Entry, entries};
use super::pool::Lent;
use super::server::{PATIENCE, Server};
use super::stream::ADDED;

/// Bytes of a field that are shown.
const SHOWN: usize = 64 * 1024;

/// Bytes of a page, about: what comes then is for the next one.
const PAGE: usize = 2 * 1024 * 1024;

/// Letters that are read at a time.
const STEP: u64 = 20;

/// The stream of what could never work.
pub(crate) struct DeadLetters {
    server: Server,
    redis: Lent,
    stream: String,
    dead: String,
}

/// Some of them.
pub(crate) struct Page {
    pub(crate) letters: Vec<serde_json::Value>,
    /// There are more behind the last one.
    pub(crate) has_more: bool,
}

impl DeadLetters {
    pub(crate) async fn open(server: Server, namespace: &str) -> Result<Self, RedisFailed> {
        let (stream, dead) = (format!("{namespace}:events"), format!("{namespace}:events:dead"));
        Ok(Self { redis: server.open(&dead).await?, server, stream, dead })
    }

    /// Those from `newest` down to `oldest`, at most `count` and as many as fit into a page; bounds as `XREVRANGE`
    /// knows them.
    pub(crate) async fn list(&mut self, newest: &str, oldest: &str, count: u64) -> Result<Page, RedisFailed> {
        let (mut letters, mut bytes, mut newest) = (Vec::new(), 0, newest.to_owned());
        loop {
            // One more than is wanted tells whether there are more.
            let step = STEP.min(count - letters.len() as u64 + 1);
            let mut command = redis::cmd("XREVRANGE");
            command.arg(&self.dead).arg(&newest).arg(oldest).arg("COUNT").arg(step);
            let read = entries(self.redis.ask(&command, SHOWN).await?);
            let is_last = (read.len() as u64) < step;
            let mut was_cut_short = false;
            for (place, entry) in read.iter().enumerate() {
                if letters.len() as u64 == count {
                    return Ok(Page { letters, has_more: true });
                }
                if place > 0 && lacks_room(entry) {
                    // The answer was full before it: it is the first of the next one.
                    was_cut_short = true;
                    break;
                }
                let letter = shown(entry);
                let size = letter.to_string().len();
                if bytes > 0 && bytes + size > PAGE {
                    return Ok(Page { letters, has_more: true });
                }
                bytes += size;
                newest = format!("({}", entry.id);
                letters.push(letter);
            }
            if is_last && !was_cut_short {
                return Ok(Page { letters, has_more: false });
            }
        }
    }

    /// Writes it to the stream again, without what was added, and takes it out of the dead letters once it is there.
    pub(crate) async fn retry(&mut self, id: &str) -> Result<bool, RedisFailed> {
        let mut read = redis::cmd("XRANGE");
        read.arg(&self.dead).arg(id).arg(id);
        let Some(entry) = entries(self.redis.ask(&read, 0).await?).into_iter().next() else { return Ok(false) };
        // The stream may be on another server. Should the last step fail, a repetition changes nothing.
        let mut stream = self.server.open_own(&self.stream, PATIENCE).await?;
        let what = Move { from: &self.dead, id, without_last: added(&entry), to: &self.stream, added: &[] };
        if !move_fields(&mut self.redis, &mut stream, &what).await? {
            return Ok(false);
        }
        self.drop_one(id).await?;
        Ok(true)
    }

    /// Forgets it.
    pub(crate) async fn drop_one(&mut self, id: &str) -> Result<bool, RedisFailed> {
        let dropped: i64 = redis::cmd("XDEL").arg(&self.dead).arg(id).query_async(&mut *self.redis).await?;
        Ok(dropped > 0)
    }
}

/// How many fields were added at the end of a letter: none to one that somebody has made by hand.
fn added(letter: &Entry) -> usize {
    let Some(first) = letter.fields.len().checked_sub(ADDED.len()) else { return 0 };
    let names = letter.fields[first..].iter().map(|(name, _)| &*name.bytes);
    if names.eq(ADDED.map(str::as_bytes)) { ADDED.len() } else { 0 }
}

/// Whether something is missing of an entry that would be shown if there were nothing before it.
fn lacks_room(entry: &Entry) -> bool {
    let lacks = |len: usize, has: usize| has < len.min(SHOWN);
    entry.has_more
        || entry
            .fields
            .iter()
            .any(|(name, value)| lacks(name.len, name.bytes.len()) || lacks(value.len, value.bytes.len()))
}

fn shown(entry: &Entry) -> serde_json::Value {
    let (mut fields, mut cut) = (Map::new(), Map::new());
    for (name, value) in &entry.fields {
        let name = String::from_utf8_lossy(&name.bytes).into_owned();
        if !value.is_whole() {
            cut.insert(name.clone(), json!(value.len));
        }
        fields.insert(name, json!(String::from_utf8_lossy(&value.bytes)));
    }
    let mut letter = json!({"dead_id": entry.id, "fields": fields});
    if !cut.is_empty() {
        letter["cut"] = json!(cut);
    }
    if entry.has_more {
        letter["has_more_fields"] = json!(true);
    }
    letter
}
