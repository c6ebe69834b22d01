//! Networks that lose packets, are slow, or are changed under a client.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, some of which tell figures")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::{Client, Door, Heard, PATIENCE, TestNode, eventually, eventually_within, token};
use persistence::{Append, Stream};
use serde_json::json;
use testkit::proxy::{ChaosProxy, Way};

// ---- L5: a bad link ----

/// Set in the process that is inside, to the port of the node.
const INSIDE: &str = "GATEWAY_TEST_IN_A_BAD_NETWORK";

/// Makes a network of its own that loses one of so many packets to and from the port of the node and takes so much a
/// second, and runs the command there. It is gone with the command.
const BAD_NETWORK: &str = r#"
set -e
ip link set lo mtu 1500 up
tc qdisc add dev lo root tbf rate "$RATE" burst 4kb latency 1s
# One of so many, and not by chance: by chance one in some dozen runs loses six in a row, which is too long a silence.
[ "$LOSS" = 0 ] || for port in --dport --sport; do
  iptables -A INPUT -i lo -p tcp $port "$PORT" -m statistic --mode nth --every "$LOSS" --packet 0 -j DROP
done
exec "$@"
"#;

/// Runs a test of this file there.
fn in_a_network(loss: &str, rate: &str, test: &str) {
    for program in ["ip", "tc", "iptables", "unshare"] {
        assert!(testkit::process::on_path(program), "{program} is missing: run ./test.sh");
    }
    let port = testkit::net::free_port().to_string();
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let out = std::process::Command::new("unshare")
        .args(["--net"].iter().chain(if root { &[][..] } else { &["--map-root-user"] }))
        .args(["sh", "-c", BAD_NETWORK, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs([("PORT", port.as_str()), ("LOSS", loss), ("RATE", rate), (INSIDE, &port)])
        .output()
        .unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && printed.contains("1 passed"), "root, or namespaces for all, is needed: {printed}");
    println!("{printed}");
}

/// L5: a link that loses 20 % and takes 64 kbit/s is slow, and nobody on it is taken for dead.
#[test]
fn l5_a_link_that_loses_a_fifth_and_is_slow_works_and_nobody_is_taken_for_dead() {
    in_a_network("5", "64kbit", "inside_people_talk");
}

/// L5: the answer to a ping comes behind all that was on its way before; who takes that is not dead.
#[test]
fn l5_who_takes_a_long_page_over_a_slow_link_is_not_taken_for_dead() {
    in_a_network("0", "256kbit", "inside_a_page_is_long");
}

/// L5: what waits in the node's kernel takes longer than the answer to a ping may.
#[test]
fn l5_what_the_kernel_still_sends_over_a_slow_link_is_a_sign_of_life() {
    in_a_network("0", "64kbit", "inside_the_kernel_is_full");
}

/// The node in the network of one of the tests above; none outside of it.
async fn inside(limits: &[(&str, &str)]) -> Option<TestNode> {
    let port = std::env::var(INSIDE).ok()?;
    Some(TestNode::start(&[limits, &[("listen", &format!("127.0.0.1:{port}"))]].concat()).await)
}

/// A page takes 9 s, longer than anybody may be silent; what of it waits in the kernel, where nobody sees it go, less.
#[tokio::test(flavor = "multi_thread")]
async fn inside_a_page_is_long() {
    let Some(node) = inside(&[("limits.ping_seconds", "1"), ("limits.pong_seconds", "6")]).await else { return };
    a_page_takes(&node, 40).await;
}

/// What the kernel takes at once goes for longer than anybody may be silent, and nothing is left that the node sees go.
#[tokio::test(flavor = "multi_thread")]
async fn inside_the_kernel_is_full() {
    let Some(node) = inside(&[("limits.ping_seconds", "1"), ("limits.pong_seconds", "3")]).await else { return };
    assert!(a_page_takes(&node, 10).await > Duration::from_secs(4));
}

/// How long a page of so many large messages takes. Whoever asked for it is there when it has come, and is answered.
async fn a_page_takes(node: &TestNode, messages: usize) -> Duration {
    let mut alice = node.join("alice", "lobby").await;
    let rows: Vec<Append> = (0..messages).map(|_| large_message()).collect();
    assert!(node.running.node().store.append(&rows).await.unwrap().iter().all(Result::is_ok));
    alice.patience = Duration::from_secs(60);
    let began = Instant::now();
    let page = alice.ask(json!({"cate": "history", "group_name": "lobby", "limit": 100})).await;
    let came = page["messages"].as_array().map_or(0, Vec::len);
    assert!(came >= messages.min(30), "as many as a page has room for: {came}");
    let took = began.elapsed();
    println!("the page took {:.1} s", took.as_secs_f64());
    alice.send(json!({"cate": "ping"})).await;
    alice.until(|frame| frame["type"] == "pong").await;
    assert_eq!(given_up(node), 0.0);
    took
}

/// Sockets closed with 4000. What `/metrics` answers would take seconds over this link.
fn given_up(node: &TestNode) -> f64 {
    let line = "gateway_connections_closed_total{code=\"4000\"}";
    let text = node.running.node().metrics.encode();
    text.lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok()).unwrap_or(0.0)
}

fn large_message() -> Append {
    Append {
        stream: Stream::Room("lobby".into()),
        from_user: "bob".into(),
        message: "x".repeat(8000).into(),
        data: None,
        key: None,
        create_inbox: false,
        origin: None,
    }
}

/// Messages, of which the first one is large. By the last one TCP knows the link again.
const MESSAGES: u64 = 20;

fn text(number: u64) -> String {
    "x".repeat(if number == 1 { 8 * 1024 } else { 200 + number as usize })
}

/// Says every second message, when it has heard the one before; then is silent but for the answer to a ping. Returns
/// how long the messages took.
async fn talk(mut client: Client, first: bool) -> Duration {
    client.patience = Duration::from_secs(90);
    let began = Instant::now();
    for number in 1..=MESSAGES {
        if (number % 2 == 1) == first {
            client.say("lobby", &text(number)).await;
        }
        let frame = client.until(|frame| frame["type"] == "chat").await;
        assert_eq!((frame["seq"].as_u64(), frame["message"].as_str()), (Some(number), Some(text(number).as_str())));
    }
    let (took, pings) = (began.elapsed(), client.pings);
    assert_eq!(client.hear_within(Duration::from_secs(12)).await, None);
    assert!(client.pings > pings);
    took
}

/// Who says nothing for 35 s is dead, as usual; pings come sooner. TCP alone may say nothing for 10 s here.
#[tokio::test(flavor = "multi_thread")]
async fn inside_people_talk() {
    let Some(node) = inside(&[("limits.ping_seconds", "5"), ("limits.pong_seconds", "30")]).await else { return };
    let door = node.at();
    let open = async |user: &str| {
        let began = Instant::now();
        let bearer = format!("Bearer {}", token(user));
        loop {
            if let Some(client) = door.knock("/ws/chat/lobby/", &[("authorization", &bearer)]).await {
                return client;
            }
            assert!(began.elapsed() < Duration::from_secs(90), "let in at last");
        }
    };
    let (alice, bob) = tokio::join!(open("alice"), open("bob"));
    let (took, _) = tokio::join!(talk(alice, true), talk(bob, false));
    println!("{MESSAGES} messages, one after another, took {:.1} s", took.as_secs_f64());
    assert_eq!(given_up(&node), 0.0);
}

// ---- L6: another network ----

fn through(proxy: &ChaosProxy, door: Door) -> Door {
    Door { public: ([127, 0, 0, 1], proxy.port()).into(), ..door }
}

async fn is_online(door: Door, user: &str) -> bool {
    let (_, room) = door.api("GET", "/api/rooms/lobby", None).await;
    room["online"].as_array().unwrap().iter().any(|online| online == user)
}

async fn sockets(door: Door, user: &str) -> usize {
    door.api("GET", &format!("/api/users/{user}"), None).await.1["sockets"].as_array().unwrap().len()
}

/// Hears nothing, and answers pings.
async fn silent(client: &mut Client) {
    let heard = client.hear_within(Duration::from_secs(3600)).await;
    panic!("nothing was to come, not {heard:?}");
}

async fn resume(client: &mut Client, seq: u64) {
    client.send(json!({"cate": "resume", "rooms": {"lobby": {"seq": seq}}})).await;
}

/// L6: the old socket hangs, as nobody has told the node; the new one is live at once, gets what the old one was not
/// shown, and says again what was not acked, which is stored once. Nobody sees the user leave.
#[tokio::test(flavor = "multi_thread")]
async fn l6_a_client_that_changes_its_network_misses_nothing_and_is_never_away() {
    let node = TestNode::start(&[("limits.ping_seconds", "1"), ("limits.pong_seconds", "4")]).await;
    let door = node.at();
    let wifi = ChaosProxy::to(door.public.port());
    let mut old = through(&wifi, door).v1("/ws/chat/lobby/", "alice").await;
    let mut bob = door.join("bob", "lobby").await;
    resume(&mut old, 0).await;
    old.until(|frame| frame["type"] == "resumed").await;
    bob.say("lobby", "1").await;
    assert_eq!((old.hears().await, bob.hears().await), ("1".into(), "1".into()));

    // What she says still leaves, and nothing comes back, nor will.
    wifi.black_hole(Way::ToClient);
    old.send(json!({"cate": "chat", "group_name": "lobby", "message": "2", "client_id": "mine"})).await;
    assert_eq!(bob.hears().await, "2");
    wifi.black_hole(Way::Both);
    bob.say("lobby", "3").await;
    assert_eq!(bob.hears().await, "3");

    let mut new = door.v1("/ws/chat/lobby/", "alice").await;
    resume(&mut new, 1).await;
    assert_eq!(sockets(door, "alice").await, 2, "both are hers for a while");
    let shown = [new.frame().await, new.frame().await];
    assert_eq!(shown.each_ref().map(|frame| frame["seq"].as_u64()), [Some(2), Some(3)]);
    let ack = new.say_acked("lobby", "2", "mine").await;
    assert_eq!((&ack["type"], &ack["id"], &ack["seq"]), (&json!("ack"), &shown[0]["id"], &json!(2)));
    bob.hears_nothing_before_own("lobby").await;
    assert_eq!(new.until(|frame| frame["type"] == "chat").await["seq"], 4);

    // The old one is found dead; she is there before, while and after.
    let ended = "gateway_connections_closed_total{code=\"4000\"}";
    let given_up = eventually_within(PATIENCE * 3, "the old socket is given up", || async {
        assert!(is_online(door, "alice").await, "she was never away");
        node.metric(ended).await == 1.0
    });
    tokio::select! {
        () = given_up => {}
        _ = silent(&mut new) => {}
        _ = silent(&mut bob) => {}
    }
    eventually("it is gone", || async { sockets(door, "alice").await == 1 }).await;
    assert!(is_online(door, "alice").await);
    bob.say("lobby", "5").await;
    assert_eq!(new.hears().await, "5");
    let heard = old.hear_within(Duration::from_millis(100)).await;
    assert!(matches!(heard, None | Some(Heard::Gone)), "nothing came to the old one: {heard:?}");
}
