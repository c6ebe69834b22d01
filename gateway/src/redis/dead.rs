//! The dead letters, for the API. A letter may be of any size: what is shown of it is not.

use serde_json::{Map, json};

use super::RedisFailed;
use super::entry::{Entry, entries};
use super::pool::Lent;
use super::server::{LETTER_TIME, Server};
use super::unread::{self, ADDED, Beginning, CUT, CUT_FIELDS, Moved};

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
        let (mut letters, mut bytes, mut newest, mut most) = (Vec::new(), 0, newest.to_owned(), STEP);
        loop {
            // One more than is wanted tells whether there are more.
            let step = most.min(count - letters.len() as u64 + 1);
            let Some(read) = self.read([&newest, oldest], step).await? else {
                // It is not known which of them is large.
                most = 1;
                continue;
            };
            let is_last = (read.len() as u64) < step;
            for letter in read {
                if letters.len() as u64 == count {
                    return Ok(Page { letters, has_more: true });
                }
                let shown = shown(&letter);
                let size = shown.to_string().len();
                if bytes > 0 && bytes + size > PAGE {
                    return Ok(Page { letters, has_more: true });
                }
                bytes += size;
                newest = before(&letter.id);
                letters.push(shown);
            }
            if is_last {
                return Ok(Page { letters, has_more: false });
            }
        }
    }

    /// So many letters; of one that is too large, its beginning. Nothing if they are too large together.
    async fn read(&mut self, range: [&str; 2], count: u64) -> Result<Option<Vec<Beginning>>, RedisFailed> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.dead).arg(&range).arg("COUNT").arg(count);
        if let Some(answer) = self.redis.ask(&command).await? {
            return Ok(Some(entries(answer).into_iter().map(Beginning::of).collect()));
        }
        self.open_again().await?;
        if count > 1 {
            return Ok(None);
        }
        let letter = unread::beginning(&mut self.redis, &self.dead, range).await?;
        Ok(Some(letter.into_iter().collect()))
    }

    async fn open_again(&mut self) -> Result<(), RedisFailed> {
        self.redis = self.server.open(&self.dead).await?;
        Ok(())
    }

    /// Writes it to the stream again, without what was added, and takes it out of the dead letters once it is there.
    pub(crate) async fn retry(&mut self, id: &str) -> Result<Moved, RedisFailed> {
        let moved = self.write_again(id).await?;
        if moved == Moved::Yes {
            // Should this fail, a repetition changes nothing.
            self.drop_one(id).await?;
        }
        Ok(moved)
    }

    async fn write_again(&mut self, id: &str) -> Result<Moved, RedisFailed> {
        let mut read = redis::cmd("XRANGE");
        read.arg(&self.dead).arg(id).arg(id);
        let Some(answer) = self.redis.ask(&read).await? else {
            self.open_again().await?;
            if self.server.is_cluster {
                return Ok(Moved::TooLarge);
            }
            let mut own = self.server.open_own(&self.dead, LETTER_TIME).await?;
            return Ok(unread::retry(&mut own, [&self.dead, &self.stream], id).await?);
        };
        let Some(letter) = entries(answer).into_iter().next() else { return Ok(Moved::Gone) };
        let fields = original(&letter);
        if fields.is_empty() {
            return Ok(Moved::Gone);
        }
        // The stream may be on another server.
        let mut stream = self.server.open_own(&self.stream, LETTER_TIME).await?;
        let mut add = redis::cmd("XADD");
        add.arg(&self.stream).arg("*").arg(fields).query_async::<()>(&mut stream).await?;
        Ok(Moved::Yes)
    }

    /// Forgets it.
    pub(crate) async fn drop_one(&mut self, id: &str) -> Result<bool, RedisFailed> {
        let dropped: i64 = redis::cmd("XDEL").arg(&self.dead).arg(id).query_async(&mut *self.redis).await?;
        Ok(dropped > 0)
    }
}

/// The last id that comes before this one. Redis before 6.2 knows no exclusive bounds.
pub(crate) fn before(id: &str) -> String {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    match (ms.parse::<u64>(), seq.parse::<u64>()) {
        (Ok(_), Ok(seq)) if seq > 0 => format!("{ms}-{}", seq - 1),
        (Ok(ms), _) if ms > 0 => format!("{}-{}", ms - 1, u64::MAX),
        _ => "0-0".to_owned(),
    }
}

/// A letter's fields without those that were added at its end: all, if somebody has made it by hand.
fn original(letter: &Entry) -> &[(Vec<u8>, Vec<u8>)] {
    let Some(first) = letter.fields.len().checked_sub(ADDED.len()) else { return &letter.fields };
    let (before, added) = letter.fields.split_at(first);
    let names = added.iter().map(|(name, _)| &**name);
    if names.eq(ADDED.map(str::as_bytes)) { before } else { &letter.fields }
}

impl Beginning {
    /// What is shown of an entry that was read whole.
    fn of(entry: Entry) -> Self {
        let count = entry.fields.len();
        let last = count.saturating_sub(ADDED.len());
        let fields = entry.fields.into_iter().enumerate();
        let kept =
            fields.filter(|(place, _)| *place < CUT_FIELDS || *place >= last).map(|(_, (mut name, mut value))| {
                let len = value.len();
                name.truncate(CUT);
                value.truncate(CUT);
                (name, value, len)
            });
        Self { id: entry.id, fields: kept.collect(), count }
    }
}

fn shown(letter: &Beginning) -> serde_json::Value {
    let (mut fields, mut cut) = (Map::new(), Map::new());
    for (name, value, len) in &letter.fields {
        let name = String::from_utf8_lossy(name).into_owned();
        if value.len() < *len {
            cut.insert(name.clone(), json!(len));
        }
        fields.insert(name, json!(String::from_utf8_lossy(value)));
    }
    let mut shown = json!({"dead_id": letter.id, "fields": fields});
    if !cut.is_empty() {
        shown["cut"] = json!(cut);
    }
    if letter.fields.len() < letter.count {
        shown["has_more_fields"] = json!(true);
    }
    shown
}
