//! N10: a version that is being replaced beside the one that replaces it, on one Redis and one database.
//!
//! The older one is built once from the repository's own history and kept below `target/`; `GATEWAY_OLDER` names a binary
//! that is there already. Only in the long run.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, one of which tells what it waits for")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{Client, Door, NodeProcess, eventually, token};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::process::private_dir;
use testkit::redis::RedisServer;

/// The newest commit whose database lacks something that this one's has (`m20261130_000007_redacted`): the node before
/// and the database after an update have met. Move it on with each migration.
const OLDER: &str = "acadd79f10034bcd255f7552a25810a07f0ccb4c";

/// Says what failed, in words.
fn run(command: &mut Command, why: &str) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{why}: {command:?}: {printed}");
}

/// The binary of the older version, which the first that asks builds for all.
fn older() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(build_older)
}

fn build_older() -> PathBuf {
    if let Some(binary) = std::env::var_os("GATEWAY_OLDER") {
        return binary.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let kept = root.join("target/older").join(&OLDER[..12]);
    let binary = kept.join("build/debug/gateway");
    if binary.exists() {
        return binary;
    }
    println!("building {OLDER}, which takes minutes, once");
    let source = kept.join("source");
    std::fs::create_dir_all(&source).unwrap();
    let has = Command::new("git").arg("-C").arg(root).args(["cat-file", "-e", &format!("{OLDER}^{{commit}}")]).output();
    assert!(
        has.is_ok_and(|has| has.status.success()),
        "this is no clone with the history of the last release: git fetch --unshallow brings it, or GATEWAY_OLDER names \
         a binary of {OLDER}"
    );
    let archive = kept.join("source.tar");
    run(
        Command::new("git").arg("-C").arg(root).args(["archive", "--output"]).arg(&archive).arg(OLDER),
        "its source cannot be taken out",
    );
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source), "its source cannot be unpacked");
    std::fs::remove_file(&archive).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(&source).args(["build", "--locked", "-p", "gateway", "--bin", "gateway", "--target-dir"]);
    run(build.arg(kept.join("build")), "it cannot be built");
    binary
}

/// Starts a node of the older version.
fn start_older(binary: &Path, own: &[(&str, &str)]) -> NodeProcess {
    NodeProcess::start_by(instead(binary), own)
}

/// What, in front of this version's command, runs the same of another binary.
fn instead(binary: &Path) -> Vec<String> {
    let other = format!("shift; exec '{}' \"$@\"", binary.display());
    ["sh", "-c", &other, "sh"].map(str::to_owned).into()
}

async fn v1(door: Door, path: &str, user: &str) -> Client {
    let mut client = door.v1(path, user).await;
    client.rooms().await;
    client
}

/// Who is in the lobby, by name.
async fn online(client: &mut Client) -> Vec<String> {
    let online = client.ask(json!({"cate": "presence", "group_name": "lobby"})).await;
    let mut users: Vec<_> =
        online["users"].as_array().unwrap().iter().map(|user| user.as_str().unwrap().to_owned()).collect();
    users.sort_unstable();
    users
}

/// Comes back with a place; whether it was taken, and what came before the answer.
async fn resumed(client: &mut Client, room: &str, place: &Value) -> (Vec<u64>, Value) {
    client.send(json!({"cate": "resume", "rooms": {room: place}})).await;
    let mut seqs = Vec::new();
    loop {
        let frame = client.frame().await;
        match frame["type"].as_str() {
            Some("chat") => seqs.push(frame["seq"].as_u64().unwrap()),
            Some("resumed") => return (seqs, frame["rooms"][room].clone()),
            _ => {}
        }
    }
}

/// Says something in the lobby and hears it, and what others have said before it: the ack.
async fn says(client: &mut Client, heard: &mut u64, text: &str, id: &str) -> Value {
    client.send(json!({"cate": "chat", "group_name": "lobby", "message": text, "client_id": id})).await;
    let mut ack = Value::Null;
    while ack.is_null() || *heard < ack["seq"].as_u64().unwrap() {
        let frame = client.frame().await;
        match frame["type"].as_str() {
            Some("ack" | "error") if frame["client_id"] == id => ack = frame,
            Some("chat") if frame["group_name"] == "lobby" => {
                assert_eq!(frame["seq"], *heard + 1, "{frame}");
                *heard += 1;
            }
            _ => {}
        }
    }
    ack
}

/// Hears the lobby up to this place; each place once, and none left out.
async fn hears_up_to(client: &mut Client, heard: &mut u64, last: u64) {
    while *heard < last {
        let frame = client.until(|frame| frame["type"] == "chat" && frame["group_name"] == "lobby").await;
        assert_eq!(frame["seq"], *heard + 1, "{frame}");
        *heard += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn n10_the_version_before_and_this_one_are_one_site_on_pubsub() {
    if std::env::var_os("GATEWAY_LONG").is_some() {
        side_by_side("pubsub").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn n10_the_version_before_and_this_one_are_one_site_on_core() {
    if std::env::var_os("GATEWAY_LONG").is_some() {
        side_by_side("core").await;
    }
}

async fn side_by_side(layer: &str) {
    let binary = older();
    let (redis, postgres) = (RedisServer::start(), Postgres::shared());
    let (redis_url, database) = (redis.url(), postgres.fresh_database());
    let own = [
        ("redis-url", redis_url.as_str()),
        ("database-url", &database),
        ("layer", layer),
        ("limits.frames_per_second", "0"),
    ];
    let older = [start_older(binary, &own), start_older(binary, &own)];

    // Before the update.
    let mut alice = v1(older[0].door, "/ws/chat/lobby/", "alice").await;
    let mut bob = v1(older[1].door, "/ws/chat/lobby/", "bob").await;
    let (mut last, mut heard) = (0, [0; 4]);
    let mut left = Value::Null;
    for n in 1..=5 {
        left = says(&mut alice, &mut heard[0], &n.to_string(), &n.to_string()).await;
        last += 1;
    }
    hears_up_to(&mut bob, &mut heard[1], last).await;

    // The new version's migration, under the nodes of the old one, which go on.
    let mut migrate = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    let migrated = migrate.arg("migrate").env("GATEWAY_DATABASE_URL", &database).output().await.unwrap();
    assert!(migrated.status.success() && String::from_utf8_lossy(&migrated.stdout).contains("applied"), "{migrated:?}");
    says(&mut bob, &mut heard[1], "migrated", "migrated").await;
    last += 1;
    let newer = [NodeProcess::start(&own), NodeProcess::start(&own)];
    let doors = [older[0].door, older[1].door, newer[0].door, newer[1].door];
    for door in doors {
        eventually("each sees all four", || async {
            door.api("GET", "/api/nodes", None).await.1["nodes"].as_array().is_some_and(|nodes| nodes.len() == 4)
        })
        .await;
    }

    // Chat, with data, from each to all.
    let mut carol = v1(newer[0].door, "/ws/chat/lobby/", "carol").await;
    let mut dave = v1(newer[1].door, "/ws/chat/lobby/", "dave").await;
    (heard[2], heard[3]) = (last, last);
    let mut clients = [alice, bob, carol, dave];
    for round in 0..5 {
        for client in &mut clients {
            let frame = json!({"cate": "chat", "group_name": "lobby", "message": "x", "data": {"n": 1.5}, "client_id": format!("r{round}")});
            client.send(frame).await;
            last += 1;
        }
    }
    for (client, heard) in clients.iter_mut().zip(&mut heard) {
        hears_up_to(client, heard, last).await;
    }
    [alice, bob, carol, dave] = clients;

    // Notifications, and that they were seen, both ways.
    let mut alice_too = v1(newer[1].door, "/ws/notifications/", "alice").await;
    let mut carol_too = v1(older[1].door, "/ws/notifications/", "carol").await;
    for (from, too) in [(&mut carol, &mut alice_too), (&mut bob, &mut carol_too)] {
        for name in ["alice", "carol"] {
            from.send(json!({"cate": "notification", "user_name": name, "message": "ring", "client_id": name})).await;
            from.until(|frame| frame["type"] == "ack" && frame["client_id"] == name).await;
        }
        assert_eq!(too.until(|frame| frame["type"] == "notification").await["message"], "ring");
    }
    let seen = alice_too.ask(json!({"cate": "seen", "up_to": 1})).await;
    assert_eq!(alice.until(|frame| frame["type"] == "seen").await["unseen"], seen["unseen"]);
    carol.send(json!({"cate": "seen", "up_to": 1})).await;
    carol_too.until(|frame| frame["type"] == "seen").await;

    // Live events and presence.
    carol.send(json!({"cate": "typing", "group_name": "lobby"})).await;
    assert_eq!(alice.until(|frame| frame["type"] == "typing").await["from_user"], "carol");
    alice.send(json!({"cate": "typing", "group_name": "lobby"})).await;
    assert_eq!(
        dave.until(|frame| frame["type"] == "typing" && frame["from_user"] == "alice").await["group_name"],
        "lobby"
    );
    for client in [&mut alice, &mut carol] {
        // A node that answers the others too late is left out of one answer.
        while online(client).await != ["alice", "bob", "carol", "dave"] {}
    }

    // Rooms and members by either's API.
    for (number, (by, listener, door)) in
        [(newer[0].door, &mut alice, older[1].door), (older[0].door, &mut carol, newer[1].door)].into_iter().enumerate()
    {
        let (room, user) = (format!("side-{number}"), ["alice", "carol"][number]);
        for path in [format!("/api/rooms/{room}"), format!("/api/rooms/{room}/members/{user}")] {
            assert_eq!(by.api("PUT", &path, None).await.0, 200, "{path}");
        }
        let event =
            json!({"type": "chat", "to": format!("room:{room}"), "data": {"message": "inside", "from_user": "ops"}});
        eventually("the new member hears the room", || async {
            let (status, answer) = door.api("GET", &format!("/api/rooms/{room}"), None).await;
            status == 200 && answer["online"] == json!([user])
        })
        .await;
        let (status, answer) = door.api("POST", "/api/events", Some(event)).await;
        assert_eq!(status, 200, "{answer}");
        let frame = listener.until(|frame| frame["group_name"] == room.as_str() && frame["type"] == "chat").await;
        assert_eq!(frame["message"], "inside");
        assert_eq!(by.api("DELETE", &format!("/api/rooms/{room}/members/{user}"), None).await.0, 200);
        let deadline = Instant::now() + Duration::from_secs(20);
        while listener.rooms().await.contains(&room) {
            assert!(Instant::now() < deadline, "the room is silent");
        }
    }

    // The stream: whichever takes an entry, it is stored once.
    let count = async || doors[0].api("GET", "/api/rooms/lobby", None).await.1["seq"].as_u64().unwrap();
    let before = count().await;
    for id in 0..40 {
        let data = r#"{"message":"entry","from_user":"shop"}"#;
        let id = (id / 2).to_string();
        redis.cli(&[
            "XADD",
            "gateway:events",
            "*",
            "id",
            &id,
            "source",
            "shop",
            "type",
            "chat",
            "to",
            "room:lobby",
            "data",
            data,
        ]);
    }
    eventually("the stream is done", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "0" }).await;
    assert_eq!(count().await, before + 20);
    last += 20;
    hears_up_to(&mut alice, &mut heard[0], last).await;
    hears_up_to(&mut carol, &mut heard[2], last).await;

    // Repeats and places are the database's.
    let again = v1_say(newer[0].door, "alice", "5", "5").await;
    assert_eq!((&again["id"], &again["seq"]), (&left["id"], &left["seq"]));
    let place = json!({"seq": left["seq"], "id": left["id"]});
    for door in [newer[1].door, older[0].door] {
        let mut back = door.v1("/ws/chat/", "bob").await;
        let (seqs, went_on) = resumed(&mut back, "lobby", &place).await;
        assert_eq!((seqs, went_on), ((6..=last).collect(), json!(true)));
    }

    // What only the new one knows: the old one shows it without harm.
    let first = left["id"].as_str().unwrap();
    assert_eq!(newer[0].door.api("DELETE", &format!("/api/rooms/lobby/messages/{first}"), None).await.0, 200);
    let page = alice.ask(json!({"cate": "history", "group_name": "lobby", "after": 4, "limit": 1})).await;
    assert_eq!(page["messages"][0]["message"], "", "{page}");

    // Either ends sockets of the other.
    for (by, user, client) in [(newer[0].door, "bob", &mut bob), (older[0].door, "dave", &mut dave)] {
        assert_eq!(by.api("POST", &format!("/api/users/{user}/disconnect"), None).await.0, 200);
        assert_eq!(client.closed().await, 4403);
    }

    // The older ones leave, one after the other, while somebody speaks; their client is sent elsewhere and misses nothing.
    let [mut first, mut second] = older;
    for node in [&mut first, &mut second] {
        says(&mut carol, &mut heard[2], "during", &uuid::Uuid::new_v4().to_string()).await;
        last += 1;
        node.process.signal("TERM");
        says(&mut carol, &mut heard[2], "during", &uuid::Uuid::new_v4().to_string()).await;
        last += 1;
    }
    let id = heard[0];
    assert!(matches!(alice.closed().await, 1001 | 1012));
    let mut alice = newer[0].door.v1("/ws/chat/lobby/", "alice").await;
    let (seqs, went_on) = resumed(&mut alice, "lobby", &json!({"seq": id})).await;
    assert_eq!((seqs, went_on), ((id + 1..=last).collect(), json!(true)));
    assert_eq!((first.process.exit_code(), second.process.exit_code()), (0, 0), "{}", first.log());

    // And cannot come back: their schema is behind.
    let mut gone = NodeProcess::spawn_by(instead(binary), private_dir("gateway"), &own);
    assert_eq!(gone.process.exit_code(), 1);
    assert!(gone.log().contains("newer"), "{}", gone.log());
}

/// Says something on a socket of its own: the ack.
async fn v1_say(door: Door, user: &str, text: &str, id: &str) -> Value {
    let bearer = format!("Bearer {}", token(user));
    let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
    let mut client = door.try_connect("/ws/chat/", &headers).await.unwrap();
    client.patience = Duration::from_secs(20);
    client.say_acked("lobby", text, id).await
}
