//! What is done inside the server with entries that are too large to be read, or are not to be: scripts.
//!
//! They travel as plain `EVAL`: they are seldom, and so no connection has to know them.

use redis::{Cmd, RedisResult};

use super::connection::Connection;

/// What a dead letter has behind its original fields.
pub(crate) const ADDED: [&str; 3] = ["reason", "deliveries", "at"];

/// Bytes of a text of which no more is wanted than its beginning.
pub(crate) const CUT: usize = 64 * 1024;

/// Bytes of a beginning, about, and its fields at most.
const CUT_ENTRY: usize = 2 * 1024 * 1024;
pub(crate) const CUT_FIELDS: usize = 2048;

/// Names and values that a script can write at once; Lua's stack has place for 8,000.
const TEXTS: usize = 7000;

/// Adds an entry's fields to the dead letters. One with too many of them loses those that are too many.
const BURY: &str = "
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then return 0 end
local texts, most, reason = entry[2], tonumber(ARGV[2]), ARGV[3]
if #texts > most then
  reason = reason .. '; the first ' .. most / 2 .. ' of ' .. #texts / 2 .. ' fields are kept'
  for place = #texts, most + 1, -1 do texts[place] = nil end
end
for _, text in ipairs({'reason', reason, 'deliveries', ARGV[4], 'at', ARGV[5]}) do
  texts[#texts + 1] = text
end
redis.call('XADD', KEYS[2], '*', unpack(texts))
return 1";

/// Adds a dead letter's original fields to the stream, all or none.
const RETRY: &str = "
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then return 0 end
local texts, last = entry[2], #entry[2]
if texts[last - 5] == 'reason' and texts[last - 3] == 'deliveries' and texts[last - 1] == 'at' then
  last = last - 6
end
if last == 0 then return 0 end
if last > tonumber(ARGV[2]) then return -1 end
redis.call('XADD', KEYS[2], '*', unpack(texts, 1, last))
return 1";

/// The beginning of an entry: the first fields and the last three, each cut, with their lengths.
const BEGINNING: &str = "
local entry = redis.call('XREVRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', 1)[1]
if not entry then return false end
local texts, fields = entry[2], {}
local each, left, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local function keep(place)
  local name, value = texts[place]:sub(1, each), texts[place + 1]
  local part = value:sub(1, each)
  fields[#fields + 1] = {name, part, #value}
  left = left - #name - #part
end
local last = math.max(#texts - 6, 0)
for place = 1, last, 2 do
  if left <= 0 or #fields == most then break end
  keep(place)
end
for place = last + 1, #texts, 2 do keep(place) end
return {entry[1], #texts / 2, fields}";

/// What became of an entry that was to go to another stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    Yes,
    /// There is none.
    Gone,
    /// It cannot be written whole, so it stays where it is.
    TooLarge,
}

/// The beginning of an entry.
pub(crate) struct Beginning {
    pub(crate) id: String,
    /// Names, values and the lengths of the values, which may be longer than what is here of them.
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>, usize)>,
    /// How many fields it has.
    pub(crate) count: usize,
}

fn script(text: &str, keys: &[&str]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(keys.len()).arg(keys);
    command
}

/// Makes an entry a dead letter, within one server; `false` if there is none.
pub(crate) async fn bury(
    redis: &mut Connection,
    [from, to]: [&str; 2],
    id: &str,
    added: &[String; 3],
) -> RedisResult<bool> {
    let mut command = script(BURY, &[from, to]);
    command.arg(id).arg(TEXTS - 2 * ADDED.len()).arg(added).query_async(redis).await
}

/// Adds a dead letter to the stream again, within one server. The letter stays where it was.
pub(crate) async fn retry(redis: &mut Connection, [from, to]: [&str; 2], id: &str) -> RedisResult<Moved> {
    let moved: i64 = script(RETRY, &[from, to]).arg(id).arg(TEXTS).query_async(redis).await?;
    Ok(match moved {
        1 => Moved::Yes,
        0 => Moved::Gone,
        _ => Moved::TooLarge,
    })
}

/// The beginning of the newest entry from `newest` down to `oldest`, bounds as `XREVRANGE` knows them.
pub(crate) async fn beginning(
    redis: &mut Connection,
    stream: &str,
    [newest, oldest]: [&str; 2],
) -> RedisResult<Option<Beginning>> {
    let mut command = script(BEGINNING, &[stream]);
    command.arg(newest).arg(oldest).arg(CUT).arg(CUT_ENTRY).arg(CUT_FIELDS);
    let entry: Option<(String, usize, Vec<_>)> = command.query_async(redis).await?;
    Ok(entry.map(|(id, count, fields)| Beginning { id, fields, count }))
}
