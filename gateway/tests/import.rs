//! `gateway import` beside running nodes: what comes over, and what their sockets hear of it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{Client, Door, TestNode, eventually_within};
use persistence::{Range, Store, StoreOptions};
use serde_json::{Value, json};
use testkit::mariadb::MariaDb;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::io::AsyncWriteExt as _;

/// For what a slow machine has much to do for.
const LONG: Duration = Duration::from_secs(120);

struct Output {
    code: i32,
    report: Value,
    err: String,
}

/// Runs the import; `lines` go in by a pipe where the arguments say `-`.
async fn import(arguments: &[&str], env: &[(&str, &str)], lines: Option<&str>) -> Output {
    let mut command = command(arguments, env);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut importer = command.spawn().unwrap();
    let mut stdin = importer.stdin.take().unwrap();
    let writes = async {
        // Who refuses does not read to the end.
        let _ = stdin.write_all(lines.unwrap_or_default().as_bytes()).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(writes, importer.wait_with_output());
    let output = output.unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Output { code: output.status.code().unwrap(), report, err }
}

fn command(arguments: &[&str], env: &[(&str, &str)]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.arg("import").args(arguments).envs(env.iter().copied()).kill_on_drop(true);
    command
}

fn said(room: &str, id: usize) -> Value {
    let chat =
        json!({"room": room, "from_user": "ann", "message": format!("old {id}"), "date": "2020-01-02T03:04:05Z"});
    json!({"chat": chat, "source": "club.post", "id": id.to_string()})
}

fn rung(user: &str, id: usize, seen: bool) -> Value {
    let it = json!({"user": user, "from_user": "shop", "message": format!("old {id}"), "date": "2020-01-02T03:04:05.000006Z", "seen": seen});
    json!({"notification": it, "source": "club.alert", "id": id})
}

fn text(lines: impl IntoIterator<Item = Value>) -> String {
    lines.into_iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

fn file(directory: &Path, lines: &str) -> String {
    let path = directory.join("lines.jsonl");
    std::fs::write(&path, lines).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn store(database: &str) -> Store {
    Store::connect(StoreOptions::new(database)).await.unwrap()
}

/// All of a room, read as a client does.
async fn history(client: &mut Client, room: &str) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map_or(0, |(seq, _)| *seq);
        let page = client.ask(json!({"cate": "history", "group_name": room, "after": after, "limit": 100})).await;
        let page = page["messages"].as_array().unwrap().clone();
        if page.is_empty() {
            return all;
        }
        all.extend(page.iter().map(|row| (row["seq"].as_u64().unwrap(), row["message"].as_str().unwrap().to_owned())));
    }
}

/// Hears all of these frames, in any order, and no other one.
async fn told(client: &mut Client, frames: &[&Value]) {
    let mut left = frames.to_vec();
    while !left.is_empty() {
        let frame = client.frame().await;
        assert!(frames.contains(&&frame), "{frame}");
        left.retain(|wanted| **wanted != frame);
    }
}

async fn v1(door: Door, user: &str) -> Client {
    let mut client = door.v1("/ws/chat/lobby/", user).await;
    client.patience = LONG;
    // Until its first frame has been handled, nothing is sent to it.
    client.rooms().await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn open_sockets_are_told_to_read_anew_and_hear_nothing_else() {
    const MANY: usize = 2500;
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let redis_url = redis.url();
    let own = [("redis-url", redis_url.as_str()), ("database-url", database.as_str())];
    let (one, two) = (TestNode::start(&own).await, TestNode::start(&own).await);
    let (mut ann, mut bob) = (v1(one.at(), "ann").await, v1(two.at(), "bob").await);
    let mut plain = two.join("carol", "lobby").await;
    plain.patience = LONG;
    let rooms =
        [json!({"room": "lobby", "display_name": "The Lobby", "members": ["ann", "dave"]}), json!({"room": "chess"})];
    let chat = (0..MANY).flat_map(|id| [said("lobby", id), said("chess", id)]);
    let lines = text(rooms.into_iter().chain(chat).chain((0..5).map(|id| rung("bob", id, id < 3))));
    let env = [("GATEWAY_DATABASE_URL", database.as_str()), ("GATEWAY_REDIS_URL", redis_url.as_str())];
    let done = import(&["-"], &env, Some(&lines)).await;
    assert_eq!(
        (done.code, &done.report["stored"], &done.report["nodes_told"]),
        (0, &json!(2 * MANY + 5), &json!(true)),
        "{}",
        done.err
    );
    assert_eq!(
        (&done.report["rooms"], &done.report["rooms_made"], &done.report["members"]),
        (&json!(2), &json!(1), &json!(2))
    );
    assert_eq!((&done.report["compared"], &done.report["differing"]), (&json!(3), &json!(0)));
    let room = json!({"type": "resumed", "rooms": {"lobby": false}});
    let inbox = json!({"type": "resumed", "rooms": {}, "notifications": false});
    told(&mut ann, &[&room]).await;
    told(&mut bob, &[&room, &inbox]).await;
    let all = history(&mut ann, "lobby").await;
    assert!(all.iter().map(|(_, text)| text.clone()).eq((0..MANY).map(|id| format!("old {id}"))));
    let inbox = bob.ask(json!({"cate": "notifications"})).await;
    assert_eq!((&inbox["unseen"], inbox["notifications"].as_array().unwrap().len()), (&json!(2), 5));
    assert_eq!(inbox["notifications"][0]["date"], "2020-01-02T03:04:05.000006Z");
    // A live message is the next one on every node, and the first that who knows no positions hears.
    let ack = ann.say_acked("lobby", "live", "1").await;
    assert_eq!(ack["seq"], json!(MANY + 1));
    for (client, may_be_told) in [(&mut bob, true), (&mut plain, false)] {
        let frame = client.until(|frame| !may_be_told || frame["type"] != "resumed").await;
        assert_eq!(
            (&frame["message"], &frame["seq"], &frame["display_name"]),
            (&json!("live"), &json!(MANY + 1), &json!("The Lobby"))
        );
    }
    // Who comes back with what came before it resumes from there.
    let [.., (seq, _)] = &all[..] else { panic!() };
    let mut back = one.at().v1("/ws/chat/lobby/", "dave").await;
    back.send(json!({"cate": "resume", "rooms": {"lobby": seq - 1}})).await;
    assert_eq!(
        (back.frame().await["message"].clone(), back.hears().await),
        (json!(format!("old {}", MANY - 1)), "live".into())
    );
    assert_eq!(back.frame().await, json!({"type": "resumed", "rooms": {"lobby": true}}));
}

/// Live messages while an import goes into the same room: each is heard once, in order, whatever the client knows.
#[tokio::test(flavor = "multi_thread")]
async fn live_messages_during_an_import_are_neither_lost_nor_taken_for_old_ones() {
    const OLD: usize = 8_000;
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let redis_url = redis.url();
    let own =
        [("redis-url", redis_url.as_str()), ("database-url", database.as_str()), ("limits.frames_per_second", "0")];
    let (one, two) = (TestNode::start(&own).await, TestNode::start(&own).await);
    let (mut speaker, mut new, mut plain) =
        (v1(one.at(), "ann").await, v1(two.at(), "bob").await, two.join("carol", "lobby").await);
    plain.patience = LONG;
    speaker.say_acked("lobby", "before", "before").await;
    let directory = tempfile::tempdir().unwrap();
    let lines = file(directory.path(), &text((0..OLD).map(|id| said("lobby", id))));
    let env = [("GATEWAY_DATABASE_URL", database.as_str()), ("GATEWAY_REDIS_URL", redis_url.as_str())];
    let (arguments, mut count) = (["--append", lines.as_str()], 0);
    let importing = import(&arguments, &env, None);
    tokio::pin!(importing);
    let done = loop {
        let (live, id) = (format!("live {count}"), count.to_string());
        tokio::select! {
            done = &mut importing => break done,
            _ = speaker.say_acked("lobby", &live, &id) => count += 1,
        }
    };
    assert_eq!((done.code, &done.report["stored"]), (0, &json!(OLD)), "{}", done.err);
    // The one that was being said when the import ended may or may not have been.
    speaker.say_acked("lobby", "last", "last").await;
    let mut heard = Vec::new();
    for client in [&mut plain, &mut new] {
        let (mut texts, mut last, mut told) = (Vec::new(), 0, 0);
        loop {
            let frame = client.frame().await;
            if frame["type"] == "resumed" {
                told += 1;
                continue;
            }
            let seq = frame["seq"].as_u64().unwrap();
            assert!(frame["type"] == "chat" && seq > last, "{frame} after {last}");
            last = seq;
            texts.push(frame["message"].as_str().unwrap().to_owned());
            if texts.last().unwrap() == "last" {
                break;
            }
        }
        heard.push((texts, told));
    }
    assert!(heard[0].1 == 0 && heard[1].1 >= 1, "who keeps positions is told: {}, {}", heard[0].1, heard[1].1);
    assert_eq!(heard[0].0, heard[1].0);
    let said: Vec<_> = heard[0].0.iter().filter(|text| text.starts_with("live")).collect();
    assert!(said.len() >= count && said.iter().enumerate().all(|(n, text)| **text == format!("live {n}")), "{said:?}");
    let all = store(&database).await.messages("lobby", Range::After(0), 100_000).await.unwrap();
    assert!(all.iter().map(|row| row.seq).eq(1..=all.len() as u64));
    assert_eq!(all.len(), OLD + heard[0].0.len());
}

async fn killed_in_the_middle(database: &str) {
    const LINES: usize = 30_000;
    let directory = tempfile::tempdir().unwrap();
    let streams = ["lobby", "chess", "go"];
    let lines: Vec<_> = (0..LINES).map(|id| said(streams[id % 3], id)).collect();
    let file = file(directory.path(), &text(lines));
    let env = [("GATEWAY_DATABASE_URL", database)];
    assert_eq!(import(&["-"], &env, Some("")).await.code, 0, "nothing is no mistake, and makes the tables");
    let store = store(database).await;
    let count = async || {
        let rooms = store.rooms(None, 9).await.unwrap();
        rooms.iter().map(|room| room.last_seq).sum::<u64>()
    };
    let mut importer = command(&[&file], &env).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually_within(LONG, "something is stored", async || count().await > 0).await;
    importer.kill().await.unwrap();
    let before = count().await;
    assert!(before < LINES as u64, "it was killed too late");
    let done = import(&[&file], &env, None).await;
    // A transaction that the server ended after its client had gone counts as there.
    let (stored, known) = (done.report["stored"].as_u64().unwrap(), done.report["known"].as_u64().unwrap());
    assert_eq!((done.code, stored + known), (0, LINES as u64), "{}", done.err);
    assert!(known >= before && stored > 0, "{known} {before}");
    for (at, room) in streams.iter().enumerate() {
        let read = store.messages(room, Range::After(0), 100_000).await.unwrap();
        assert!(read.iter().map(|row| row.seq).eq(1..=read.len() as u64));
        assert!(
            read.iter().map(|row| row.event_id.clone().unwrap()).eq((at..LINES).step_by(3).map(|id| id.to_string()))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_is_run_again_and_nothing_is_lost_or_twice() {
    killed_in_the_middle(&Postgres::shared().fresh_database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_is_run_again_on_mariadb() {
    killed_in_the_middle(&MariaDb::shared().fresh_database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_is_run_again_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    killed_in_the_middle(&format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display())).await;
}

/// One node with its own layer and a SQLite file: it notices by itself, and goes on storing meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_sqlite_goes_on_and_notices() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
    let node = TestNode::start(&[("database-url", &database), ("limits.frames_per_second", "0")]).await;
    let mut ann = v1(node.at(), "ann").await;
    let lines = file(directory.path(), &text((0..3000).map(|id| said("lobby", id))));
    let env = [("GATEWAY_DATABASE_URL", database.as_str())];
    let (arguments, mut count) = ([lines.as_str()], 0);
    let importing = import(&arguments, &env, None);
    tokio::pin!(importing);
    let mut bob = node.join("bob", "elsewhere").await;
    bob.patience = LONG;
    let done = loop {
        let id = count.to_string();
        tokio::select! {
            done = &mut importing => break done,
            ack = bob.say_acked("elsewhere", "live", &id) => {
                assert_eq!(ack["type"], "ack", "{ack}");
                count += 1;
            }
        }
    };
    assert_eq!((done.code, &done.report["stored"]), (0, &json!(3000)), "{}", done.err);
    assert_eq!(ann.frame().await, json!({"type": "resumed", "rooms": {"lobby": false}}));
    eventually_within(LONG, "all of it can be read", || async {
        node.at().api("GET", "/api/rooms/lobby", None).await.1["seq"] == 3000
    })
    .await;
    assert_eq!(history(&mut ann, "lobby").await.len(), 3000);
}

#[tokio::test]
async fn run_again_it_brings_what_is_new_and_asks_before_it_goes_into_what_others_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
    let env = [("GATEWAY_DATABASE_URL", database.as_str())];
    let mut lines: Vec<_> = (0..10).flat_map(|id| [said("lobby", id), rung("ann", id, false)]).collect();
    let done = import(&["-"], &env, Some(&text(lines.clone()))).await;
    assert_eq!((done.code, &done.report["stored"], &done.report["known"]), (0, &json!(20), &json!(0)), "{}", done.err);
    lines.extend([said("lobby", 10), said("go", 0)]);
    lines[0]["chat"]["message"] = json!("edited");
    let done = import(&["-"], &env, Some(&text(lines.clone()))).await;
    assert_eq!((done.code, &done.report["stored"], &done.report["known"]), (0, &json!(2), &json!(20)), "{}", done.err);
    assert_eq!((&done.report["changed"], &done.report["differing"]), (&json!(1), &json!(0)));
    // Somebody has said something in the gateway's room, and another system had a room of that name.
    let store = store(&database).await;
    let live = persistence::Append {
        stream: persistence::Stream::Room("lobby".into()),
        from_user: "bob".into(),
        message: "live".into(),
        data: None,
        key: None,
        create_inbox: false,
        origin: None,
    };
    store.append(&[live]).await.unwrap()[0].as_ref().unwrap();
    let mut other = said("go", 7);
    other["source"] = json!("other");
    lines.extend([said("lobby", 11), rung("ann", 10, true)]);
    let done = import(&["-"], &env, Some(&text(lines.clone()))).await;
    let numbers = ["refused", "stored"].map(|what| done.report[what].as_u64().unwrap());
    assert_eq!((done.code, numbers), (1, [12, 1]), "{}", done.err);
    assert!(done.err.contains("room \"lobby\" is refused: it holds 1 messages of another source; see --append"));
    let done = import(&["-"], &env, Some(&text([other]))).await;
    assert_eq!((done.code, &done.report["refused"]), (1, &json!(1)), "{}", done.err);
    assert!(done.err.contains("room \"go\" is refused"), "{}", done.err);
    let done = import(&["--append", "-"], &env, Some(&text(lines))).await;
    assert_eq!((done.code, &done.report["stored"], &done.report["refused"]), (0, &json!(1), &json!(0)), "{}", done.err);
    let read = store.messages("lobby", Range::After(0), 99).await.unwrap();
    let texts: Vec<_> = read.iter().skip(9).map(|row| row.message.clone()).collect();
    assert_eq!(texts, ["old 9", "old 10", "live", "old 11"]);
    assert_eq!(read[0].message, "old 0");
}

#[tokio::test]
async fn bad_lines_are_listed_and_keep_their_stream_out() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
    let env = [("GATEWAY_DATABASE_URL", database.as_str())];
    let mut undated = said("bad", 2);
    undated["chat"]["date"] = json!("yesterday");
    let cut = said("cut", 2).to_string();
    let lines = [
        said("good", 1).to_string(),
        json!({"room": "bad", "members": ["ann"]}).to_string(),
        said("bad", 1).to_string(),
        String::new(),
        undated.to_string(),
        "this is no JSON".to_owned(),
        said("bad", 3).to_string(),
        said("cut", 1).to_string(),
        cut[..cut.len() - 9].to_owned(),
        rung("ann", 1, true).to_string(),
    ];
    let path = file(directory.path(), &lines.join("\n"));
    let done = import(&[&path], &env, None).await;
    let numbers = ["bad", "skipped", "stored", "rooms", "lines"].map(|what| done.report[what].as_u64().unwrap());
    assert_eq!((done.code, numbers), (1, [3, 4, 2, 0, 10]), "{}", done.err);
    for line in ["line 5: date", "line 6: ", "line 9: ", "nothing of room \"bad\"", "nothing of room \"cut\""] {
        assert!(done.err.lines().any(|said| said.starts_with(line)), "{line}: {}", done.err);
    }
    let store = store(&database).await;
    let rooms = async || -> Vec<_> {
        let rooms = store.rooms(None, 9).await.unwrap();
        rooms.into_iter().map(|room| (room.name, room.last_seq)).collect()
    };
    assert_eq!(rooms().await, [("good".to_owned(), 1)]);
    let done = import(&["--skip-bad", &path], &env, None).await;
    let numbers = ["bad", "skipped", "stored", "known", "rooms"].map(|what| done.report[what].as_u64().unwrap());
    assert_eq!((done.code, numbers), (0, [3, 0, 3, 2, 1]), "{}", done.err);
    assert_eq!(rooms().await, [("bad".to_owned(), 2), ("cut".to_owned(), 1), ("good".to_owned(), 1)]);
    assert_eq!(store.members("bad").await.unwrap(), ["ann"]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
    let env = [("GATEWAY_DATABASE_URL", database.as_str())];
    let refused = async |arguments: &[&str], env: &[(&str, &str)], says: &str| {
        let done = import(arguments, env, Some(&text([said("lobby", 1)]))).await;
        assert!(done.code != 0 && done.err.contains(says), "{}", done.err);
    };
    refused(&["nowhere.jsonl"], &env, "nowhere.jsonl cannot be read").await;
    refused(&["-"], &[("GATEWAY_DATABASE_URL", "sqlite::memory:")], "--database-url").await;
    refused(&["--spool-bytes", "10", "-"], &env, "--spool-bytes").await;
    refused(&["--spool-dir", "/nowhere", "-"], &env, "--spool-dir").await;
    refused(&[], &env, "FILE").await;
    // Another deployment's Redis.
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    refused(&["-"], &[env[0], ("GATEWAY_REDIS_URL", &redis.url())], "another deployment").await;
    // One that is away is told, and the nodes find out by themselves.
    drop(node);
    let away = format!("redis://127.0.0.1:{}", testkit::net::free_port());
    let done = import(&["-"], &[env[0], ("GATEWAY_REDIS_URL", &away)], Some(&text([said("lobby", 1)]))).await;
    assert_eq!((done.code, &done.report["nodes_told"]), (0, &json!(false)), "{}", done.err);
    assert!(done.err.contains("warning: the nodes cannot be told"), "{}", done.err);
}
