//! Django's side: the real `channels_redis` writes to browsers, and hears from them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::process::Stdio;

use common::{TestNode, eventually};
use serde_json::{Value, json};
use testkit::redis::RedisServer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A Python process with `RedisPubSubChannelLayer`, told what to do line by line.
struct Django {
    _process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

const SCRIPT: &str = r#"
import asyncio, json, sys
from channels_redis.pubsub import RedisPubSubChannelLayer

async def main():
    layer = RedisPubSubChannelLayer(hosts=[sys.argv[1]])
    loop = asyncio.get_running_loop()
    mine = await layer.new_channel()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        op = order.pop("op")
        if op == "receive":
            answer = await asyncio.wait_for(layer.receive(mine), 10)
        elif op == "group_add":
            answer = await layer.group_add(order["group"], mine)
            await asyncio.sleep(0.3)  # it does not wait for Redis itself
        elif op == "name":
            answer = mine
        else:
            answer = await getattr(layer, op)(*order["args"])
        print(json.dumps(answer), flush=True)

asyncio.run(main())
"#;

impl Django {
    fn start(redis: &RedisServer) -> Self {
        let mut process = Command::new(testkit::python::python())
            .args(["-c", SCRIPT, &redis.url()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, orders, answers }
    }

    async fn order(&mut self, order: Value) -> Value {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(common::PATIENCE * 2, self.answers.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&answer.expect("the Python process lives")).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn django_writes_to_browsers_and_hears_from_them() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let mut django = Django::start(&redis);
    let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);

    // group_send to a room: everybody in it; no seq, a date of delivery, and no position moved.
    let event = json!({"type": "chat.message", "message": "from Django", "group_name": "lobby", "from_user": "django", "cate": "chat"});
    django.order(json!({"op": "group_send", "args": ["chat_lobby", event]})).await;
    for socket in [&mut alice, &mut bob] {
        let frame = socket.frame().await;
        assert_eq!(
            (frame["type"].as_str(), frame["message"].as_str(), frame["from_user"].as_str()),
            (Some("chat"), Some("from Django"), Some("django"))
        );
        assert!(frame.get("seq").is_none() && frame["date"].is_string(), "{frame}");
    }
    // group_send to a user, by name.
    let event = json!({"type": "notification.message", "message": "paid", "from_user": "shop", "cate": "notification", "id": 7});
    django.order(json!({"op": "group_send", "args": ["alice", event]})).await;
    let frame = alice.frame().await;
    assert_eq!(
        (frame["type"].as_str(), frame["id"].as_u64(), frame["message"].as_str()),
        (Some("notification"), Some(7), Some("paid"))
    );
    // send to one socket's channel name.
    let (_, answer) = node.at().api("GET", "/api/users/bob", None).await;
    let channel = answer["sockets"][0]["channel_name"].as_str().unwrap();
    assert!(channel.starts_with("asgispecific.") && channel.len() == "asgispecific.".len() + 32, "{channel}");
    let event = json!({"type": "gateway.send", "text": "{\"type\":\"cart\",\"items\":2}"});
    django.order(json!({"op": "send", "args": [channel, event]})).await;
    assert_eq!(bob.frame().await, json!({"type": "cart", "items": 2}));
    // What nobody knows closes nothing.
    django.order(json!({"op": "group_send", "args": ["chat_lobby", {"type": "no.such.thing"}]})).await;
    django.order(json!({"op": "group_send", "args": ["chat_lobby", {"no": "type"}]})).await;
    eventually("counted", || async { node.metric("gateway_layer_events_unhandled_total").await == 2.0 }).await;

    // And from a browser to Django.
    django.order(json!({"op": "group_add", "group": "chat_lobby"})).await;
    let ack = alice.say_acked("lobby", "héllo Django", "1").await;
    let event = django.order(json!({"op": "receive"})).await;
    assert_eq!(
        (
            event["type"].as_str(),
            event["message"].as_str(),
            event["group_name"].as_str(),
            event["from_user"].as_str(),
            event["cate"].as_str()
        ),
        (Some("chat_message"), Some("héllo Django"), Some("lobby"), Some("alice"), Some("chat"))
    );
    assert_eq!((&event["id"], &event["seq"], &event["date"]), (&ack["id"], &ack["seq"], &ack["date"]));
    assert!(event["epoch"].is_i64());
    // And to a channel of Django's.
    let mine = django.order(json!({"op": "name"})).await;
    let mine = channel_layer::ChannelName::parse(mine.as_str().unwrap()).unwrap();
    node.running.node().layer.send(&mine, &gateway::Event::new("job.done").with("n", 1)).await.unwrap();
    assert_eq!(django.order(json!({"op": "receive"})).await, json!({"type": "job.done", "n": 1}));

    django
        .order(json!({"op": "group_send", "args": ["alice", {"type": "gateway.disconnect", "reason": "logged out"}]}))
        .await;
    assert_eq!(alice.closed().await, 4403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_costs_one_subscription_however_many_sockets_are_in_it() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(node.join("alice", "lobby").await);
    }
    let channels = redis.cli(&["PUBSUB", "CHANNELS", "asgi__group__*"]);
    let mut channels: Vec<&str> = channels.split_whitespace().collect();
    channels.retain(|channel| !channel.contains("__group__r.gateway.nodes"));
    channels.sort_unstable();
    assert_eq!(channels, ["asgi__group__alice", "asgi__group__chat_lobby"]);
    let counts = redis.cli(&["PUBSUB", "NUMSUB", "asgi__group__chat_lobby"]);
    assert_eq!(counts.split_whitespace().last(), Some("1"), "{counts}");
    // One command per publish, whatever the number of members.
    let commands = || -> u64 {
        let stats = redis.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_publish:")).unwrap_or_default().to_owned();
        line.split(['=', ',']).nth(1).and_then(|calls| calls.parse().ok()).unwrap_or(0)
    };
    let before = commands();
    for _ in 0..10 {
        sockets[0].say_acked("lobby", "x", &uuid::Uuid::new_v4().to_string()).await;
    }
    // The ack does not wait for Redis, so the last PUBLISH may still be on its way.
    eventually("ten are published", || async { commands() >= before + 10 }).await;
    let published = commands() - before;
    assert!(
        (10..=12).contains(&published),
        "{published} PUBLISH commands for 10 messages, greetings of the node aside"
    );
    // The last one out ends the subscription.
    for socket in sockets {
        socket.close().await;
    }
    eventually("unsubscribed", || async {
        redis.cli(&["PUBSUB", "NUMSUB", "asgi__group__chat_lobby"]).split_whitespace().last() == Some("0")
    })
    .await;
}
