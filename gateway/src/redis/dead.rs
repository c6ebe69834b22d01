//! The dead letters, for the API.

use redis::{self, Cmd, Value};
use serde_json::{Map, json};

use super::RedisFailed;
use super::pool::Lent;
use super::server::Server;
use super::stream::{ADDED, Entry, entries};

/// The stream of what could never work.
pub(crate) struct DeadLetters {
    server: Server,
    redis: Lent,
    stream: String,
    dead: String,
}

impl DeadLetters {
    pub(crate) async fn open(server: Server, namespace: &str) -> Result<Self, RedisFailed> {
        let (stream, dead) = (format!("{namespace}:events"), format!("{namespace}:events:dead"));
        Ok(Self { redis: server.open(&dead).await?, server, stream, dead })
    }

    /// Those from `newest` down to `oldest`, at most `count`; bounds as `XREVRANGE` knows them.
    pub(crate) async fn list(
        &mut self,
        newest: &str,
        oldest: &str,
        count: u64,
    ) -> Result<Vec<serde_json::Value>, RedisFailed> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.dead).arg(newest).arg(oldest).arg("COUNT").arg(count);
        let answer: Value = command.query_async(&mut *self.redis).await?;
        Ok(entries(answer).iter().map(shown).collect())
    }

    /// Writes it to the stream again, without what was added, and takes it out of the dead letters.
    pub(crate) async fn retry(&mut self, id: &str) -> Result<bool, RedisFailed> {
        let answer: Value = redis::cmd("XRANGE").arg(&self.dead).arg(id).arg(id).query_async(&mut *self.redis).await?;
        let Some(entry) = entries(answer).into_iter().next() else { return Ok(false) };
        let mut add = redis::cmd("XADD");
        add.arg(&self.stream).arg("*");
        for (name, value) in entry.fields.iter().filter(|(name, _)| !ADDED.contains(&name.as_str())) {
            add.arg(name).arg(value);
        }
        if self.server.is_cluster {
            // The two streams may be on two servers. Should the second step fail, a repetition changes nothing.
            let mut stream = self.server.open(&self.stream).await?;
            add.query_async::<()>(&mut *stream).await?;
            self.delete(id).query_async::<()>(&mut *self.redis).await?;
        } else {
            let mut again = redis::pipe();
            again.atomic().add_command(add).ignore().add_command(self.delete(id)).ignore();
            again.query_async::<()>(&mut *self.redis).await?;
        }
        Ok(true)
    }

    /// Forgets it.
    pub(crate) async fn drop_one(&mut self, id: &str) -> Result<bool, RedisFailed> {
        let dropped: i64 = self.delete(id).query_async(&mut *self.redis).await?;
        Ok(dropped > 0)
    }

    fn delete(&self, id: &str) -> Cmd {
        let mut delete = redis::cmd("XDEL");
        delete.arg(&self.dead).arg(id);
        delete
    }
}

fn shown(entry: &Entry) -> serde_json::Value {
    let fields: Map<String, serde_json::Value> =
        entry.fields.iter().map(|(name, value)| (name.clone(), json!(String::from_utf8_lossy(value)))).collect();
    json!({"dead_id": entry.id, "fields": fields})
}
