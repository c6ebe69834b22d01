//! The commands of the core layer. Scripts run on declared keys only, take their time from Redis
//! (`TIME`; the clocks of the nodes do not matter) and travel as plain `EVAL`: an `EVALSHA` in a
//! pipeline would be lost whenever the server has forgotten the script.

use bytes::Bytes;
use redis::Cmd;

use crate::redis::answer::command;

/// Puts messages into queues: `KEYS` the queues, each once, `ARGV` the expiry in seconds, then for each
/// queue how many messages it gets, and for each of these a message and a capacity. Returns the places
/// of messages whose queue was full, and as negative numbers of those whose key is no queue: these must
/// not keep the others from getting theirs.
///
/// A score is never below the newest one by less than a second: equal microseconds and a clock set
/// back a little do not change the order of arrival. Further ahead is another host's clock, which
/// nobody follows.
///
/// What is too old goes last: a script that has written once may go on although Redis is full, and
/// then no sender would ever hear that it is. One line, as Redis hashes the text each time: that is most
/// of what a script costs beside its commands.
const DELIVER: &str = "\
local call, t = redis.call, redis.call('TIME') \
local now, old = t[1] + t[2] / 1000000, t[1] - ARGV[1] \
local full, place, at = {}, 0, 2 \
for _, key in ipairs(KEYS) do \
  local last = at + 2 * ARGV[at] \
  local held = redis.pcall('ZCOUNT', key, '(' .. old, '+inf') \
  local odd = type(held) == 'table' \
  if odd and not held.err:find('WRONGTYPE') then return held end \
  local newest = not odd and held > 0 and call('ZRANGE', key, -1, -1, 'WITHSCORES')[2] \
  local score = now \
  if newest and newest - now >= 0 and newest - now < 1 then score = newest + 2^-22 end \
  local new = {} \
  for i = at + 1, last, 2 do \
    place = place + 1 \
    if odd then \
      full[#full + 1] = -place \
    elseif held >= tonumber(ARGV[i + 1]) then \
      full[#full + 1] = place \
    else \
      new[#new + 1], new[#new + 2] = score, ARGV[i] \
      score, held = score + 2^-22, held + 1 \
    end \
  end \
  if #new > 0 then \
    call('ZADD', key, unpack(new)) \
    call('EXPIRE', key, ARGV[1]) \
  end \
  at = last + 1 \
end \
for _, key in ipairs(KEYS) do redis.pcall('ZREMRANGEBYSCORE', key, 0, old) end \
return full";

/// Adds members to groups: `KEYS` the groups, `ARGV` how many seconds ahead of now the score lies,
/// the groups' expiry, then one member per group. Whatever else stands under a group's name goes: it
/// would keep the group, and all that are renewed after it, from their members. Returns how often.
const JOIN: &str = "\
local t = redis.call('TIME')
local score = t[1] + t[2] / 1000000 + ARGV[1]
local foreign = 0
for i, key in ipairs(KEYS) do
  local added = redis.pcall('ZADD', key, score, ARGV[i + 2])
  if type(added) == 'table' then
    if not string.find(added.err, 'WRONGTYPE', 1, true) then return added end
    redis.call('DEL', key)
    redis.call('ZADD', key, score, ARGV[i + 2])
    foreign = foreign + 1
  end
  redis.call('EXPIRE', key, ARGV[2])
end
return foreign";

/// The members of a group, without those whose membership has expired.
const MEMBERS: &str = "\
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, redis.call('TIME')[1] - ARGV[1])
return redis.call('ZRANGE', KEYS[1], 0, -1)";

/// Says that some client ids are alive: `KEYS` the set of all, `ARGV` for how many seconds, then the
/// ids. Returns how many of them were unknown or counted as dead, the time, and ids that have not been
/// renewed. Who was thought dead itself does not judge others: perhaps it was Redis that was away, and
/// all of them will be back in a moment.
const HEARTBEAT: &str = "\
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
if redis.call('TYPE', KEYS[1])['ok'] ~= 'zset' then redis.call('DEL', KEYS[1]) end
local new = 0
for i = 2, #ARGV do
  local alive = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not alive or tonumber(alive) < now then new = new + 1 end
  redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
end
local dead = {}
if new == 0 then dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100) end
return {new, t[1], t[2], dead}";

/// How many messages one command may carry: Lua hands over no more than some thousand words at once.
pub(super) const MOST_PARCELS: usize = 1_000;

/// One message for one queue.
pub(super) struct Parcel {
    pub(super) queue: Bytes,
    pub(super) message: Bytes,
    pub(super) capacity: usize,
}

/// Parcels for the same queue stand together, in the order in which they are to arrive;
/// [`MOST_PARCELS`] at most.
pub(super) fn deliver(parcels: &[Parcel], expiry: u64) -> Cmd {
    let queues = || parcels.chunk_by(|one, next| one.queue == next.queue);
    let numbers: Vec<String> = parcels.iter().map(|parcel| parcel.capacity.to_string()).collect();
    let counts: Vec<String> = queues().map(|parcels| parcels.len().to_string()).collect();
    let (keys, expiry) = (counts.len().to_string(), expiry.to_string());
    let mut words: Vec<&[u8]> = Vec::with_capacity(4 + 2 * counts.len() + 2 * parcels.len());
    words.extend([b"EVAL", DELIVER.as_bytes(), keys.as_bytes()]);
    words.extend(queues().map(|parcels| &*parcels[0].queue));
    words.push(expiry.as_bytes());
    let mut numbers = numbers.iter();
    for (parcels, count) in queues().zip(&counts) {
        words.push(count.as_bytes());
        for (parcel, capacity) in parcels.iter().zip(&mut numbers) {
            words.extend([&*parcel.message, capacity.as_bytes()]);
        }
    }
    command(words)
}

/// Pairs of group keys and members.
pub(super) fn join(pairs: &[(Bytes, Bytes)], ahead: u64, group_expiry: u64) -> Cmd {
    let (count, ahead, expiry) = (pairs.len().to_string(), ahead.to_string(), group_expiry.to_string());
    let mut words: Vec<&[u8]> = vec![b"EVAL", JOIN.as_bytes(), count.as_bytes()];
    words.extend(pairs.iter().map(|(group, _)| &**group));
    words.extend([ahead.as_bytes(), expiry.as_bytes()]);
    words.extend(pairs.iter().map(|(_, member)| &**member));
    command(words)
}

pub(super) fn leave(group: &[u8], members: &[&[u8]]) -> Cmd {
    command([&[b"ZREM", group], members].concat())
}

pub(super) fn members(group: &[u8], group_expiry: u64) -> Cmd {
    command([&b"EVAL"[..], MEMBERS.as_bytes(), b"1", group, group_expiry.to_string().as_bytes()])
}

pub(super) fn heartbeat(clients: &[u8], seconds: f64, ids: &[String]) -> Cmd {
    let seconds = seconds.to_string();
    let mut words: Vec<&[u8]> = vec![b"EVAL", HEARTBEAT.as_bytes(), b"1", clients, seconds.as_bytes()];
    words.extend(ids.iter().map(String::as_bytes));
    command(words)
}

/// Puts a message back where it was taken from.
pub(super) fn put_back(queue: &[u8], score: &[u8], message: &[u8]) -> Cmd {
    command([&b"ZADD"[..], queue, score, message])
}

pub(super) fn expire(key: &[u8], seconds: u64) -> Cmd {
    command([&b"EXPIRE"[..], key, seconds.to_string().as_bytes()])
}

/// The first message of one of the queues, or of the key that wakes the reader; waits if there is none.
pub(super) fn pop_waiting(queues: &[Bytes], wake: Option<&Bytes>, seconds: u64) -> Cmd {
    let seconds = seconds.to_string();
    let mut words: Vec<&[u8]> = vec![b"BZPOPMIN"];
    words.extend(queues.iter().chain(wake).map(|key| &**key));
    words.push(seconds.as_bytes());
    command(words)
}

/// Messages of the first of the queues that has any, or else of the key that wakes the reader; waits if there is none.
pub(super) fn pop_or_wait(queues: &[Bytes], wake: Option<&Bytes>, seconds: u64, count: usize) -> Cmd {
    let keys = queues.len() + usize::from(wake.is_some());
    let (seconds, count, keys) = (seconds.to_string(), count.to_string(), keys.to_string());
    let mut words: Vec<&[u8]> = vec![b"BZMPOP", seconds.as_bytes(), keys.as_bytes()];
    words.extend(queues.iter().chain(wake).map(|key| &**key));
    words.extend([&b"MIN"[..], b"COUNT", count.as_bytes()]);
    command(words)
}

/// Ends a reader's wait.
pub(super) fn wake(key: &[u8]) -> Cmd {
    command([&b"ZADD"[..], key, b"0", b"wake"])
}

pub(super) fn pop(queue: &[u8], count: usize) -> Cmd {
    command([&b"ZPOPMIN"[..], queue, count.to_string().as_bytes()])
}

pub(super) fn delete(key: &[u8]) -> Cmd {
    command([&b"DEL"[..], key])
}

/// Deletes a key that is no sorted set.
pub(super) fn delete_foreign(key: &[u8]) -> Cmd {
    const DELETE: &str = "\
if redis.call('TYPE', KEYS[1])['ok'] ~= 'zset' then return redis.call('DEL', KEYS[1]) end
return 0";
    command([&b"EVAL"[..], DELETE.as_bytes(), b"1", key])
}

pub(super) fn scan(cursor: &[u8], pattern: &[u8]) -> Cmd {
    command([&b"SCAN"[..], cursor, b"MATCH", pattern, b"COUNT", b"1000"])
}

/// All members of a group, whatever their age.
pub(super) fn all_members(group: &[u8]) -> Cmd {
    command([&b"ZRANGE"[..], group, b"0", b"-1"])
}
