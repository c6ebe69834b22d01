//! Both layers against the real `channels_redis`, in every setting that changes the bytes or their way,
//! in both directions: groups, direct sends, plain channels.
//!
//! Each shard is a server of its own, so that a message on a wrong one is heard by nobody; but the three
//! of the core layer are databases of one server. (Pub/sub knows no databases.)
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod common;

use std::sync::{Arc, OnceLock};

use channel_layer::{ChannelLayer, ChannelName, RedisCoreLayer, RedisPubSubLayer, Serializer};
use serde_json::{Value as Json, json};
use testkit::python::{Kind, Peer};
use testkit::redis::RedisServer;
use tokio::time::timeout;

use common::{PATIENCE, as_event, as_json, channel, group, heard, message, subscribed};

const MOST_SHARDS: usize = 10;
/// Enough names to meet most shards.
const GROUPS: usize = 12;
const CHANNELS: usize = 6;

/// What differs from the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    Plain,
    Encrypted,
    Json,
    EncryptedJson,
    Prefix,
}

impl Setting {
    fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted | Self::EncryptedJson)
    }

    fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::EncryptedJson)
    }
}

/// Python writes with the first and we with the second.
const KEYS: [&str; 2] = ["this site's key ✓", "the key before it"];

/// The servers that all tests share; each test has names of its own. They end with this process.
fn servers() -> &'static [RedisServer] {
    static SERVERS: OnceLock<Vec<RedisServer>> = OnceLock::new();
    SERVERS.get_or_init(|| (0..MOST_SHARDS).map(|_| RedisServer::start()).collect())
}

fn hosts(kind: Kind, shards: usize) -> Vec<String> {
    match (kind, shards) {
        (Kind::Core, 3) => (0..3).map(|number| servers()[0].database(number)).collect(),
        _ => servers()[..shards].iter().map(RedisServer::url).collect(),
    }
}

fn python(kind: Kind, setting: Setting, hosts: &[String], name: &str) -> Peer {
    let mut config = json!({"hosts": hosts});
    if setting.is_encrypted() {
        config["symmetric_encryption_keys"] = json!(KEYS);
    }
    if setting.is_json() {
        config["serializer_format"] = json!("json");
    }
    if setting == Setting::Prefix {
        config["prefix"] = json!(prefix(name));
    }
    Peer::start(kind, &config)
}

/// One that means something in a pattern of Redis.
fn prefix(name: &str) -> String {
    format!("s[i]te*.{name}:")
}

macro_rules! configured {
    ($builder:expr, $setting:expr, $name:expr) => {{
        let mut builder = $builder;
        if $setting == Setting::Prefix {
            builder = builder.prefix(&prefix($name));
        }
        if $setting.is_encrypted() {
            builder = builder.encryption_keys(&[KEYS[1].to_owned(), KEYS[0].to_owned()]);
        }
        if $setting.is_json() {
            builder = builder.serializer(Serializer::Json);
        }
        builder.connect().await.unwrap()
    }};
}

async fn rust(kind: Kind, setting: Setting, hosts: &[String], name: &str) -> Arc<dyn ChannelLayer> {
    match kind {
        Kind::Core => Arc::new(configured!(RedisCoreLayer::builder_with_hosts(hosts), setting, name)),
        Kind::PubSub => Arc::new(configured!(RedisPubSubLayer::builder_with_hosts(hosts), setting, name)),
    }
}

/// A message that the setting can carry, as Python has it and as we have it.
fn both(setting: Setting, n: usize) -> (Json, channel_layer::Event) {
    let mut message = message(n);
    let event = as_event(&message);
    // JSON has no bytes.
    if setting.is_json() {
        return (message, event);
    }
    message["bytes"] = json!({"hex": "00ff"});
    (message, event.with("bytes", vec![0_u8, 0xff]))
}

/// One site: a Python process and this one.
struct Site {
    kind: Kind,
    setting: Setting,
    shards: usize,
    name: &'static str,
    python: Peer,
    rust: Arc<dyn ChannelLayer>,
    theirs: Vec<String>,
    ours: Vec<ChannelName>,
}

impl Site {
    async fn start(kind: Kind, setting: Setting, shards: usize, name: &'static str) -> Self {
        let hosts = hosts(kind, shards);
        let python = python(kind, setting, &hosts, name);
        let rust = rust(kind, setting, &hosts, name).await;
        let theirs = (0..CHANNELS).map(|_| python.new_channel()).collect();
        let mut ours = Vec::new();
        for _ in 0..CHANNELS {
            ours.push(rust.new_channel("").await.unwrap());
        }
        Self { kind, setting, shards, name, python, rust, theirs, ours }
    }

    fn group(&self, at: usize) -> String {
        format!("room.{}.{at}", self.name)
    }

    /// Each group has one member here and one there.
    async fn join(&self) {
        for at in 0..GROUPS {
            let name = self.group(at);
            self.python.group_add(&name, &self.theirs[at % CHANNELS]);
            self.rust.group_add(&group(&name), &self.ours[at % CHANNELS]).await.unwrap();
        }
        if self.kind == Kind::PubSub {
            let prefix = if self.setting == Setting::Prefix { prefix(self.name) } else { "asgi".to_owned() };
            for at in 0..GROUPS {
                self.subscribed(&format!("{prefix}__group__{}", self.group(at)), 2).await;
            }
            for name in &self.theirs {
                self.subscribed(name, 1).await;
            }
        }
    }

    async fn subscribed(&self, topic: &str, wanted: usize) {
        subscribed(&servers()[..self.shards], topic, wanted).await;
    }

    async fn hears(&self, channel: &ChannelName, n: usize) {
        let event = heard(&*self.rust, channel).await;
        assert_eq!(as_json(&event), both(self.setting, n).0, "{n} on {channel}");
    }

    fn python_hears(&self, channel: &str, n: usize) {
        assert_eq!(self.python.receive(channel, PATIENCE), Some(both(self.setting, n).0), "{n} on {channel}");
    }

    async fn python_sends_to_groups(&self) {
        for at in 0..GROUPS {
            self.python.group_send(&self.group(at), &both(self.setting, at).0);
            self.hears(&self.ours[at % CHANNELS], at).await;
            self.python_hears(&self.theirs[at % CHANNELS], at);
        }
    }

    async fn rust_sends_to_groups(&self) {
        for at in 0..GROUPS {
            self.rust.group_send(&group(&self.group(at)), &both(self.setting, at).1).await.unwrap();
            self.hears(&self.ours[at % CHANNELS], at).await;
            self.python_hears(&self.theirs[at % CHANNELS], at);
        }
    }

    async fn python_sends_to_channels(&self) {
        for (n, channel) in self.ours.iter().enumerate() {
            self.python.send(channel.as_str(), &both(self.setting, n).0);
        }
        for (n, channel) in self.ours.iter().enumerate() {
            self.hears(channel, n).await;
        }
    }

    async fn rust_sends_to_channels(&self) {
        for (n, name) in self.theirs.iter().enumerate() {
            self.rust.send(&channel(name), &both(self.setting, n).1).await.unwrap();
        }
        for (n, name) in self.theirs.iter().enumerate() {
            self.python_hears(name, n);
        }
    }

    /// A plain channel that neither side made; on core its messages go round the shards.
    async fn plain_channels(&self) {
        let (work, jobs) = (format!("work.{}", self.name), format!("jobs.{}", self.name));
        let rounds = 2 * self.shards;
        let number = |message: &Json| message["n"].as_u64().unwrap() as usize;

        let pending = self.python.order("receive_many", &[json!(work), json!(rounds), json!(PATIENCE.as_secs())]);
        if self.kind == Kind::PubSub {
            self.subscribed(&work, 1).await;
        }
        for n in 0..rounds {
            self.rust.send(&channel(&work), &both(self.setting, n).1).await.unwrap();
        }
        let mut heard: Vec<usize> = pending.list_within(PATIENCE).iter().map(number).collect();
        heard.sort_unstable();
        assert_eq!(heard, (0..rounds).collect::<Vec<_>>(), "Python hears all jobs");

        let (rust, name) = (self.rust.clone(), channel(&jobs));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut heard = Vec::new();
            for _ in 0..rounds {
                heard.push(as_json(&rust.receive(&name).await.unwrap()));
            }
            heard
        });
        if self.kind == Kind::PubSub {
            self.subscribed(&jobs, 1).await;
        }
        assert_eq!(self.python.send_many(&jobs, &message(0), rounds).value(), json!(rounds));
        let heard = timeout(PATIENCE, tasks.join_next()).await.expect("all jobs in time").unwrap().unwrap();
        let mut heard: Vec<usize> = heard.iter().map(number).collect();
        heard.sort_unstable();
        assert_eq!(heard, (0..rounds).collect::<Vec<_>>(), "Rust hears all jobs");
    }

    /// Nothing is left over: no message came twice.
    async fn nothing_else(&self) {
        for name in &self.theirs {
            self.rust.send(&channel(name), &both(self.setting, 1_000).1).await.unwrap();
            self.python_hears(name, 1_000);
        }
        for channel in &self.ours {
            self.python.send(channel.as_str(), &both(self.setting, 1_000).0);
            self.hears(channel, 1_000).await;
        }
        let stats = self.rust.stats();
        assert_eq!((stats.undecodable, stats.dropped, stats.publish_failed), (0, 0, 0));
    }
}

async fn both_ways(kind: Kind, setting: Setting, shards: usize, name: &'static str) {
    let site = Site::start(kind, setting, shards, name).await;
    site.join().await;
    site.python_sends_to_groups().await;
    site.rust_sends_to_groups().await;
    site.python_sends_to_channels().await;
    site.rust_sends_to_channels().await;
    site.plain_channels().await;
    site.nothing_else().await;
}

macro_rules! matrix {
    ($layer:ident, $kind:expr; $($name:ident, $setting:ident, $shards:literal;)*) => {
        mod $layer {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let name = concat!(stringify!($layer), ".", stringify!($name));
                    both_ways($kind, Setting::$setting, $shards, name).await;
                }
            )*
        }
    };
}

macro_rules! matrices {
    ($($layer:ident, $kind:expr;)*) => {
        $(matrix! {
            $layer, $kind;
            plain_on_1_host, Plain, 1;
            plain_on_3_hosts, Plain, 3;
            plain_on_10_hosts, Plain, 10;
            encrypted_on_1_host, Encrypted, 1;
            encrypted_on_3_hosts, Encrypted, 3;
            encrypted_on_10_hosts, Encrypted, 10;
            json_on_1_host, Json, 1;
            json_on_3_hosts, Json, 3;
            json_on_10_hosts, Json, 10;
            encrypted_json_on_1_host, EncryptedJson, 1;
            encrypted_json_on_3_hosts, EncryptedJson, 3;
            encrypted_json_on_10_hosts, EncryptedJson, 10;
            prefix_on_1_host, Prefix, 1;
            prefix_on_3_hosts, Prefix, 3;
            prefix_on_10_hosts, Prefix, 10;
        })*
    };
}

matrices! {
    core, Kind::Core;
    pubsub, Kind::PubSub;
}
