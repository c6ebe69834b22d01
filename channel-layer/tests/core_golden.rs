//! The golden steps of Python's core layer, done by ours on a real Redis: after each of them the keys of all
//! databases are what Python's commands would have made of them.
//!
//! What may differ: client ids and local parts are random, so the file's are replaced by ours, and a queue is
//! where its own name leads; `$inflight` is not ours to use; the time is now; our own memberships are dated a
//! minute ahead and their groups live a minute longer. And the random bytes before a message.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
mod golden;

use std::collections::BTreeMap;

use channel_layer::{ChannelLayer, ChannelName, Event, LayerError, RedisCoreLayer, Serializer, Value};
use common::{channel, group, heard};
use golden::{argument, bytes, event, hex, list, vectors};
use serde_json::Value as Json;
use testkit::redis::RedisServer;

/// The members of a key in order, and seconds to live.
#[derive(Debug, Clone, Default, PartialEq)]
struct Key {
    members: Vec<(Vec<u8>, f64)>,
    ttl: Option<i64>,
}

/// By database and key.
type Databases = BTreeMap<(u8, String), Key>;

/// What Redis would hold after Python's commands.
#[derive(Default)]
struct Python(Databases);

impl Python {
    fn command(&mut self, database: u8, words: &[Vec<u8>]) {
        let text = |at: usize| String::from_utf8(words[at].clone()).unwrap();
        let name = text(0).to_uppercase();
        if words.len() < 2 || name == "EVAL" || name == "KEYS" {
            return;
        }
        let at = (database, text(1));
        match &*name {
            "ZADD" => {
                let key = self.0.entry(at).or_default();
                key.members.retain(|(member, _)| *member != words[3]);
                key.members.push((words[3].clone(), text(2).parse().unwrap()));
                key.members.sort_by(|(a, x), (b, y)| x.total_cmp(y).then(a.cmp(b)));
            }
            "EXPIRE" => self.0.entry(at).or_default().ttl = text(2).parse().ok(),
            "ZREM" => self.members(at, |members| members.retain(|(member, _)| *member != words[2])),
            "ZREMRANGEBYSCORE" => {
                let oldest: f64 = text(3).parse().unwrap();
                self.members(at, |members| members.retain(|(_, score)| *score > oldest));
            }
            "BZPOPMIN" | "ZPOPMIN" => self.members(at, |members| drop(members.drain(..1.min(members.len())))),
            "DEL" => words[1..].iter().for_each(|key| {
                self.0.remove(&(database, String::from_utf8(key.clone()).unwrap()));
            }),
            "ZCOUNT" | "ZRANGE" => {}
            other => panic!("{other}"),
        }
    }

    fn members(&mut self, at: (u8, String), change: impl FnOnce(&mut Vec<(Vec<u8>, f64)>)) {
        if let Some(key) = self.0.get_mut(&at) {
            change(&mut key.members);
            if key.members.is_empty() {
                self.0.remove(&at);
            }
        }
    }
}

/// What Redis holds.
fn actual(server: &RedisServer) -> Databases {
    const DUMP: &str = "\
redis.call('SELECT', ARGV[1])
local hex = function(text) return (text:gsub('.', function(c) return string.format('%02x', c:byte()) end)) end
local lines = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #members, 2 do
    lines[#lines + 1] = key .. ' ' .. redis.call('TTL', key) .. ' ' .. members[i + 1] .. ' ' .. hex(members[i])
  end
end
return lines";
    let mut all = Databases::new();
    for database in 0..4_u8 {
        let dump = server.cli(&["EVAL", DUMP, "0", &database.to_string()]);
        for line in dump.lines() {
            let [key, ttl, score, member] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            if key.starts_with("gateway:") {
                continue;
            }
            let key = all.entry((database, key.to_owned())).or_default();
            key.members.push((bytes(member), score.parse().unwrap()));
            key.ttl = ttl.parse().ok();
        }
    }
    all
}

fn now() -> f64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

/// Where channels_redis puts a name: the low twelve bits of its CRC-32, divided into equal parts.
fn shard(name: &str, shards: usize) -> u8 {
    let mut crc = u32::MAX;
    for byte in name.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    (f64::from(!crc & 0xfff) / (4096.0 / shards as f64)) as u8
}

struct Replay {
    server: RedisServer,
    shards: usize,
    steps: Vec<Json>,
    /// The next step, and how many had a state of their own in the file.
    at: usize,
    python: Python,
    a: RedisCoreLayer,
    b: RedisCoreLayer,
    names: [ChannelName; 4],
    /// The file's random parts and ours.
    replaced: Vec<(String, String)>,
}

impl Replay {
    async fn start(section: &str, shards: usize) -> Self {
        let server = RedisServer::start();
        let vectors = vectors();
        let steps = list(&vectors, section).to_vec();
        let hosts: Vec<String> = (0..shards as u8).map(|number| server.database(number)).collect();
        let build = || RedisCoreLayer::builder_with_hosts(&hosts).client_ids(1).connect();
        let (a, b) = (build().await.unwrap(), build().await.unwrap());
        let names = [
            a.new_channel("").await.unwrap(),
            a.new_channel("").await.unwrap(),
            b.new_channel("").await.unwrap(),
            b.new_channel("other").await.unwrap(),
        ];
        let mut replaced = Vec::new();
        for (name, ours) in ["a1", "a2", "b1", "b_other_prefix"].iter().zip(&names) {
            let theirs = steps[0]["names"][name].as_str().unwrap();
            for (theirs, ours) in parts(theirs).into_iter().zip(parts(ours.as_str())) {
                replaced.push((theirs.to_owned(), ours.to_owned()));
            }
        }
        let python = Python::default();
        let mut replay = Self { server, shards, steps, at: 0, python, a, b, names, replaced };
        replay.done("new_channel");
        replay
    }

    fn translated(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for (theirs, ours) in &self.replaced {
            while let Some(at) = bytes.windows(theirs.len()).position(|some| some == theirs.as_bytes()) {
                bytes[at..at + theirs.len()].copy_from_slice(ours.as_bytes());
            }
        }
        bytes
    }

    /// A queue of ours is where its name leads; the file has other names.
    fn database(&self, theirs: u8, key: &str) -> u8 {
        match key.strip_prefix("asgi").filter(|name| name.contains('!')) {
            Some(name) => shard(name, self.shards),
            None => theirs,
        }
    }

    fn step(&self) -> &Json {
        &self.steps[self.at]
    }

    fn message(&self) -> Event {
        event(&self.step()["message"]).unwrap()
    }

    fn result(&self) -> Vec<Event> {
        let result = &self.step()["result"];
        let one = std::slice::from_ref(result);
        result.as_array().map_or(one, Vec::as_slice).iter().map(|result| event(result).unwrap()).collect()
    }

    /// The step has been done by us: the same happens to Python's state, and both must be alike.
    fn done(&mut self, step: &str) {
        let name = self.step()["step"].as_str().unwrap().to_owned();
        assert!(name.starts_with(step), "{name} is not {step}");
        for command in self.steps[self.at]["commands"].as_array().unwrap() {
            // The scripts' own commands are in the file, and the arguments of a script are no keys.
            let words = command["args"].as_array().unwrap();
            if words[0] == "EVAL" {
                continue;
            }
            let words: Vec<Vec<u8>> = words.iter().map(|word| self.translated(&argument(word))).collect();
            let key = words.get(1).map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
            if key.ends_with("$inflight") {
                continue;
            }
            let theirs = command["db"].as_u64().unwrap() as u8;
            // A flush names all its keys at once.
            match words[0].eq_ignore_ascii_case(b"del") {
                true => self.python.0.retain(|(_, key), _| !words.contains(&key.clone().into_bytes())),
                false => self.python.command(self.database(theirs, &key), &words),
            }
        }
        self.compare(&name);
        self.at += 1;
    }

    fn compare(&self, step: &str) {
        let (ours, theirs) = (actual(&self.server), &self.python.0);
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{step}: keys");
        for ((at, ours), theirs) in ours.iter().zip(theirs.values()) {
            let group = at.1.contains(":group:");
            let prefix = match (group, &*at.1) {
                (true, _) => 0,
                (false, "asgijson.chan") => 4,
                (false, _) => 12,
            };
            let strip = |key: &Key| key.members.iter().map(|(member, _)| hex(&member[prefix..])).collect::<Vec<_>>();
            let (mut our_members, mut their_members) = (strip(ours), strip(theirs));
            if group {
                // Nobody relies on the order of a group's members.
                our_members.sort();
                their_members.sort();
            }
            assert_eq!(our_members, their_members, "{step}: {at:?}");
            let (now, ahead) = (now(), if group { 60.0 } else { 0.0 });
            for (_, score) in &ours.members {
                assert!((now - 60.0..=now + ahead + 1.0).contains(score), "{step}: {at:?} has {score} at {now}");
            }
            let (ttl, expected) = (ours.ttl.unwrap(), theirs.ttl.unwrap());
            assert!((expected - 10..=expected + ahead as i64).contains(&ttl), "{step}: {at:?} lives for {ttl}");
        }
    }

    /// As if the members of a key had come so much earlier.
    fn age(&self, database: u8, key: &str, seconds: u64) {
        let older = "\
redis.call('SELECT', ARGV[1])
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('ZINCRBY', KEYS[1], -ARGV[2], member)
end";
        self.server.cli(&["EVAL", older, "1", key, &database.to_string(), &seconds.to_string()]);
    }

    /// What both sections begin with.
    async fn groups(&mut self, group_database: u8) {
        let room = group("room.1");
        let [a1, a2, b1, other] = self.names.clone();
        self.a.group_add(&room, &a1).await.unwrap();
        self.done("group_add room.1 a1");
        for (layer, member) in [(&self.b, &b1), (&self.a, &a2), (&self.a, &channel("plain.chan")), (&self.b, &other)] {
            layer.group_add(&room, member).await.unwrap();
        }
        self.done("group_add room.1 b1, a2");
        self.a.group_send(&room, &self.message()).await.unwrap();
        self.done("group_send room.1");
        if self.step()["step"].as_str().unwrap().starts_with("a receives for a1") {
            let wanted = self.result();
            assert_eq!([heard(&self.a, &a1).await, heard(&self.a, &a2).await], wanted[..]);
            self.done("a receives for a1");
        }
        self.a.group_discard(&room, &a1).await.unwrap();
        self.done("group_discard room.1 a1");
        self.a.group_discard(&room, &channel("never-there")).await.unwrap();
        self.done("group_discard of a non-member");
        self.a.group_send(&group("nobody"), &Event::new("x")).await.unwrap();
        self.done("group_send to a group without members");
        self.age(group_database, "asgi:group:room.1", 86_400 + 61);
        self.a.group_send(&room, &Event::new("x")).await.unwrap();
        self.done("group_send one day later");
    }

    async fn plain(&mut self) {
        let plain = channel("plain.chan");
        self.a.send(&plain, &self.message()).await.unwrap();
        self.done("send to a plain channel");
        self.a.send(&plain, &Event::new("second")).await.unwrap();
        self.done("send again to the same plain channel");
    }

    async fn direct(&mut self) {
        self.a.send(&self.names[2], &self.message()).await.unwrap();
        self.done("send to b1");
    }
}

/// The client id and the local part.
fn parts(name: &str) -> [&str; 2] {
    let (process, local) = name.split_once('!').unwrap();
    [process.rsplit_once('.').unwrap().1, local]
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_host_every_step_leaves_the_keys_of_python() {
    let mut replay = Replay::start("core_one_host", 1).await;
    replay.plain().await;
    let wanted = replay.result();
    assert_eq!([heard(&replay.b, &channel("plain.chan")).await], wanted[..]);
    replay.done("receive from the plain channel");
    replay.direct().await;
    let wanted = replay.result();
    assert_eq!([heard(&replay.b, &replay.names[2]).await], wanted[..]);
    replay.done("b receives on b1");
    replay.groups(0).await;

    let url = replay.server.url();
    let small = RedisCoreLayer::builder(&url).prefix("other_prefix").capacity(1).expiry(30).group_expiry(600);
    let small = small.connect().await.unwrap();
    let full = channel("full");
    // The file does not have the message that is there already.
    small.send(&full, &Event::new("first")).await.unwrap();
    let first = [vec![0; 12], Event::new("first").to_msgpack().unwrap()].concat();
    let seeded = Key { members: vec![(first, 1_700_000_000.0)], ttl: Some(30) };
    replay.python.0.insert((0, "other_prefixfull".into()), seeded);
    assert!(matches!(small.send(&full, &Event::new("x")).await, Err(LayerError::ChannelFull(_))));
    assert_eq!(replay.step()["error"], "ChannelFull");
    replay.done("send over capacity 1");
    small.group_add(&group("g"), &full).await.unwrap();
    replay.done("group_add with group_expiry 600");
    small.group_send(&group("g"), &Event::new("dropped")).await.unwrap();
    replay.done("group_send to a full channel");
    replay.age(0, "other_prefixfull", 31);
    small.send(&full, &Event::new("after expiry")).await.unwrap();
    replay.done("send 31 s later");
    let json = RedisCoreLayer::builder(&url).serializer(Serializer::Json).random_prefix_length(4);
    let json = json.connect().await.unwrap();
    json.send(&channel("json.chan"), &Event::new("t").with("v", "h\u{e9}")).await.unwrap();
    replay.done("send with serializer_format json");
    small.flush().await.unwrap();
    replay.done("flush with prefix other_prefix");
    replay.a.flush().await.unwrap();
    replay.done("flush with the default prefix");
    assert_eq!((replay.at, actual(&replay.server).len()), (21, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_four_hosts_every_step_leaves_the_keys_of_python() {
    let mut replay = Replay::start("core_four_hosts", 4).await;
    replay.plain().await;
    replay.direct().await;
    replay.groups(2).await;
    replay.a.flush().await.unwrap();
    replay.done("flush with the default prefix");
    assert_eq!((replay.at, actual(&replay.server).len()), (12, 0));
}

/// The states in the file are those that the replay of its commands gives.
#[test]
fn the_replayed_commands_give_the_states_of_the_file() {
    let vectors = vectors();
    let mut compared = 0;
    for section in ["core_one_host", "core_four_hosts"] {
        let mut python = Python::default();
        for step in list(&vectors, section) {
            for command in step["commands"].as_array().unwrap() {
                let words: Vec<Vec<u8>> = match command["args"].as_array().unwrap() {
                    words if words[0] == "EVAL" => continue,
                    words => words.iter().map(argument).collect(),
                };
                python.command(command["db"].as_u64().unwrap() as u8, &words);
            }
            let Some(state) = step["state"].as_object() else { continue };
            for (database, keys) in state {
                for (key, wanted) in keys.as_object().unwrap() {
                    let number = database.strip_prefix("db").unwrap().parse().unwrap();
                    let ours = &python.0[&(number, key.clone())];
                    let members: Vec<(Vec<u8>, f64)> = wanted["members"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|it| {
                            (bytes(it["member_hex"].as_str().unwrap()), it["score"].as_str().unwrap().parse().unwrap())
                        })
                        .collect();
                    assert_eq!(ours.members, members, "{}: {key}", step["step"]);
                    assert_eq!(ours.ttl.is_some(), wanted["has_ttl"].as_bool().unwrap());
                    compared += 1;
                }
            }
        }
    }
    assert!(compared >= 10, "{compared}");
}

/// `new_channel` makes names of the shape that Python makes.
#[tokio::test]
async fn names_of_channels_have_the_shape_of_python() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let name = layer.new_channel("").await.unwrap();
    let hexadecimal =
        |text: &str| text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(parts(name.as_str()).into_iter().all(hexadecimal), "{name}");
    assert!(name.as_str().starts_with("specific.") && name.as_str().len() == 74, "{name}");
    assert!(layer.new_channel(&"p".repeat(33)).await.is_ok() && layer.new_channel(&"p".repeat(34)).await.is_err());
}
