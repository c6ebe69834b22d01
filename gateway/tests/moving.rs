//! What `docs/moving.md` says: taking everything out and in again, restoring, and moving to other servers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Client, Door, NodeProcess, TestNode, eventually};
use persistence::{Append, Range, Seen, Store, StoreOptions, Stream};
use serde_json::{Value, json};
use testkit::mariadb::MariaDb;
use testkit::postgres::{Postgres, newer_programs};
use testkit::redis::RedisServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// For what a slow machine has much to do for.
const LONG: Duration = Duration::from_secs(120);

fn gateway(arguments: &[&str], database: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(arguments).env("GATEWAY_DATABASE_URL", database).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command that succeeds: what it prints.
async fn good(arguments: &[&str], database: &str) -> String {
    let output = gateway(arguments, database).output().await.unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that is in a database.
async fn exported(database: &str) -> String {
    good(&["export", "-"], database).await
}

/// Puts lines into a database, whose tables are made.
async fn imported(database: &str, directory: &Path, lines: &str) -> Value {
    let file = directory.join("lines.jsonl");
    std::fs::write(&file, lines).unwrap();
    serde_json::from_str(&good(&["import", file.to_str().unwrap()], database).await).unwrap()
}

async fn store(database: &str) -> Store {
    let store = Store::connect(StoreOptions::new(database)).await.unwrap();
    store.migrate().await.unwrap();
    store
}

fn sqlite(directory: &Path, name: &str) -> String {
    format!("sqlite://{}?mode=rwc", directory.join(name).display())
}

fn append(stream: Stream, text: &str, data: Option<&str>, origin: Option<(&str, &str)>) -> Append {
    Append {
        stream,
        from_user: "ann".into(),
        message: text.into(),
        data: data.map(Into::into),
        key: None,
        create_inbox: true,
        origin: origin.map(|(source, id)| (source.into(), id.into())),
    }
}

// ---- Export ----

/// A site with everything that there may be.
async fn furnish(store: &Store) {
    let rooms =
        [("lobby", Some("The Lobby")), ("tea & \"cake\"", None), ("Ünïcödé ✨", Some("✨\\n")), ("empty", None)];
    let rooms: Vec<_> = rooms.iter().map(|(name, display)| (name.to_string(), display.map(str::to_owned))).collect();
    store.put_rooms(&rooms).await.unwrap();
    let crowd = (0..1201).map(|n| ("lobby", format!("user-{n}"))).chain([("Ünïcödé ✨", "Jörg".to_owned())]);
    let crowd: Vec<_> =
        crowd.map(|(room, user)| persistence::Membership { room: room.into(), user, create_room: false }).collect();
    for crowd in crowd.chunks(200) {
        store.add_members(crowd).await.unwrap();
    }
    let data =
        [r#"{"a":1.10,"big":123456789012345678901234567890,"b":[null,{"c":"\ud83d\ude00"}]}"#, "{ \"two\":\n\r 2 }"];
    let long = "x".repeat(64 * 1024);
    let mut batch = Vec::new();
    for n in 0..700 {
        let text = if n % 300 == 7 { long.clone() } else { format!("message {n}\n\"quoted\" \u{1f600}\u{2028}") };
        let data = data.get(n % 5).copied();
        let id = n.to_string();
        // Seventy services, more than an import could once tell apart.
        let source = format!("service-{}", n % 70);
        let origin = (n % 3 == 0).then_some((source.as_str(), id.as_str()));
        let stream = match n % 4 {
            0 => Stream::Room("Ünïcödé ✨".into()),
            3 => Stream::Inbox(format!("user-{}", n % 7)),
            _ => Stream::Room("lobby".into()),
        };
        batch.push(append(stream, &text, data, origin));
    }
    for batch in batch.chunks(50) {
        assert!(store.append(batch).await.unwrap().iter().all(Result::is_ok));
    }
    store.mark_seen("user-3", Seen::UpTo(4)).await.unwrap();
    let second = store.messages("lobby", Range::After(1), 1).await.unwrap().remove(0);
    store.redact("lobby", second.id).await.unwrap();
}

/// Messages of these tests are numbers, written as texts.
fn number(text: &Value) -> Option<usize> {
    text.as_str()?.parse().ok()
}

/// From each database to the next, and back: what comes out is the same, and so is what clients are shown.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_and_imported_anywhere_is_exported_again_alike() {
    let directory = tempfile::tempdir().unwrap();
    let first = sqlite(directory.path(), "first.db");
    furnish(&store(&first).await).await;
    let lines = exported(&first).await;
    let databases =
        [Postgres::shared().fresh_database(), MariaDb::shared().fresh_database(), sqlite(directory.path(), "last.db")];
    for database in &databases {
        let report = imported(database, directory.path(), &lines).await;
        assert_eq!(report["stored"], 700, "{report}");
        assert_eq!(
            (&report["rooms_made"], &report["members"], &report["differing"]),
            (&json!(4), &json!(1202), &json!(0))
        );
        let again = exported(database).await;
        let differ = again.lines().zip(lines.lines()).find(|(one, other)| one != other);
        assert!(differ.is_none() && again.lines().count() == lines.lines().count(), "{database}: {differ:?}");
        // Nothing of it is new to it.
        let report = imported(database, directory.path(), &lines).await;
        assert_eq!((&report["stored"], &report["known"], &report["changed"]), (&json!(0), &json!(700), &json!(0)));
    }
    let (old, new) = (store(&first).await, store(&databases[2]).await);
    for room in ["lobby", "Ünïcödé ✨"] {
        let [before, after] = [&old, &new].map(|store| store.messages(room, Range::After(0), 10_000));
        let (before, after) = (before.await.unwrap(), after.await.unwrap());
        let show = |row: &persistence::Message| {
            let own = row.source.clone().filter(|source| source != "gateway");
            (row.seq, row.date, row.from_user.clone(), row.message.clone(), own, row.redacted)
        };
        assert!(!before.is_empty() && before.iter().map(show).eq(after.iter().map(show)), "{room}");
        assert!(before.iter().any(|row| row.redacted) || room != "lobby");
    }
    assert_eq!(old.unseen("user-3").await.unwrap(), new.unseen("user-3").await.unwrap());
    assert!(old.unseen("user-3").await.unwrap() > 0);
}

/// While a node is written to: what comes out is of one moment, on each database.
async fn of_one_moment(database: &str) {
    let node = TestNode::start(&[("database-url", database), ("limits.frames_per_second", "0")]).await;
    let mut ann = node.at().v1("/ws/chat/a/", "ann").await;
    let mut bob = node.at().v1("/ws/chat/b/", "bob").await;
    for (client, room) in [(&mut ann, "a"), (&mut bob, "b")] {
        client.patience = LONG;
        client.say_acked(room, "0", "0").await;
    }
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("lines.jsonl");
    let mut exports = 0;
    let mut count = 1;
    let mut exporting = None;
    // In turns, so at each moment `a` has as many as `b`, or one more.
    while exports < 3 {
        let export =
            exporting.get_or_insert_with(|| Box::pin(gateway(&["export", path.to_str().unwrap()], database).output()));
        let id = count.to_string();
        tokio::select! {
            done = export => {
                let done = done.unwrap();
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                exporting = None;
                exports += 1;
                let lines = std::fs::read_to_string(&path).unwrap();
                let of = |room: &str| {
                    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
                    lines.filter(|line| line["chat"]["room"] == room).map(|line| line["chat"]["message"].clone()).collect::<Vec<_>>()
                };
                let (a, b) = (of("a"), of("b"));
                assert!(a.len() == b.len() || a.len() == b.len() + 1, "{} and {}", a.len(), b.len());
                assert!(!a.is_empty() && a.iter().enumerate().all(|(n, text)| number(text) == Some(n)));
                let report: Value = serde_json::from_slice(&done.stdout).unwrap();
                assert_eq!(report["messages"], a.len() + b.len());
            }
            () = async {
                ann.say_acked("a", &id, &id).await;
            } => {
                bob.say_acked("b", &id, &id).await;
                count += 1;
            }
        }
        if exporting.is_none() {
            // The one that was being said may or may not have been; both are told once more.
            ann.say_acked("a", &id, &id).await;
            bob.say_acked("b", &id, &id).await;
            count += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_beside_a_node_that_is_written_to_is_of_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    of_one_moment(&sqlite(directory.path(), "gateway.db")).await;
    of_one_moment(&Postgres::shared().fresh_database()).await;
    of_one_moment(&MariaDb::shared().fresh_database()).await;
}

/// Bytes of memory that a process has in use.
fn memory_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// 100 MB of messages, and a reader that lets the export wait: it takes little memory, and the node goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_takes_little_memory_and_waits_for_its_reader() {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    let node = TestNode::start(&[("database-url", &database)]).await;
    let mut ann = node.at().v1("/ws/chat/lobby/", "ann").await;
    ann.say_acked("lobby", "1", "1").await;
    postgres.sql(
        &database,
        "INSERT INTO gateway_messages (room_id, seq, id, date, from_user, message) \
         SELECT id, n, gen_random_uuid(), 1700000000000000 + n, 'bob', repeat('x', 2000) \
         FROM gateway_rooms, generate_series(2, 50000) n; \
         UPDATE gateway_rooms SET last_seq = 50000, \
         last_id = (SELECT id FROM gateway_messages WHERE seq = 50000)",
    );
    let mut export = gateway(&["export", "-"], &database).spawn().unwrap();
    let mut out = export.stdout.take().unwrap();
    let mut start = [0; 4096];
    out.read_exact(&mut start).await.unwrap();
    assert!(start.starts_with(br#"{"room":"lobby","#));
    // It has read ahead as far as it will.
    let taken = async || {
        postgres.sql(&database, "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()")
    };
    eventually("it waits", || async { taken().await.trim() == "1" }).await;
    assert_eq!(ann.say_acked("lobby", "after", "2").await["seq"], 50_001);
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).await.unwrap();
    assert!(export.wait().await.unwrap().success());
    let lines = start.iter().chain(&rest).filter(|byte| **byte == b'\n').count();
    assert_eq!((lines, rest.len() > 100_000_000), (50_001, true), "the room's line, and 50,000");
    drop(rest);
    // Again, for its memory, which is asked for while there is still somebody to ask.
    let mut export = gateway(&["export", "-"], &database).spawn().unwrap();
    let (mut out, pid) = (export.stdout.take().unwrap(), export.id().unwrap());
    let (mut most, mut buffer, mut read) = (0, vec![0; 1 << 20], 0);
    while read < 100_000_000 {
        let bytes = out.read(&mut buffer).await.unwrap();
        assert_ne!(bytes, 0);
        read += bytes;
        most = memory_of(pid).max(most);
    }
    assert!(most < 100 << 20, "{} MiB", most >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_says_so_and_leaves_no_half_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let database = sqlite(directory.path(), "gateway.db");
    let fails = async |arguments: &[&str], database: &str, says: &str| {
        let output = gateway(arguments, database).output().await.unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && err.contains(says), "{arguments:?}: {err}");
    };
    let file = directory.path().join("lines.jsonl").display().to_string();
    // Nothing is made that was not there.
    fails(&["export", &file], &database, "the database").await;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    fails(&["export", &file], "sqlite::memory:", "--database-url").await;
    let store = store(&database).await;
    store.create_room("lobby", None).await.unwrap();
    fails(&["export", "/dev/full"], &database, "/dev/full cannot be written").await;
    fails(&["export", "/nowhere/lines"], &database, "/nowhere/lines cannot be written").await;
    let report: Value = serde_json::from_str(&good(&["export", &file], &database).await).unwrap();
    assert_eq!((&report["rooms"], &report["lines"]), (&json!(1), &json!(1)));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!((std::fs::read_to_string(&file).unwrap().lines().count(), mode), (1, 0o600));
    assert!(!Path::new(&format!("{file}.part")).exists());
}

// ---- Restoring ----

/// Comes back with the places it had; whether they were taken, and what came before the answer.
async fn comes_back(door: Door, user: &str, place: &Value) -> (Client, Vec<u64>, bool) {
    let mut client = door.v1("/ws/chat/lobby/", user).await;
    client.patience = LONG;
    client.send(json!({"cate": "resume", "rooms": {"lobby": place}})).await;
    let mut seqs = Vec::new();
    loop {
        let frame = client.frame().await;
        match frame["type"].as_str() {
            Some("chat") => seqs.push(frame["seq"].as_u64().unwrap()),
            Some("resumed") => return (client, seqs, frame["rooms"]["lobby"].as_bool().unwrap()),
            _ => {}
        }
    }
}

fn place(ack: &Value) -> Value {
    json!({"seq": ack["seq"], "id": ack["id"]})
}

/// A dump is made while people talk, and restored later, when no node runs: whose place is in it goes on from there,
/// everybody else is told to read anew, and what was said before and repeated is known.
async fn restored(dump: impl AsyncFn(&str), restore: impl AsyncFn(&str), database: &str, fresh: &str) {
    let settings = |database: &str| {
        [("database-url".to_owned(), database.to_owned()), ("limits.frames_per_second".to_owned(), "0".to_owned())]
    };
    let start = async |database: &str| {
        let settings = settings(database);
        let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        TestNode::start(&settings).await
    };
    let node = start(database).await;
    let mut ann = node.at().v1("/ws/chat/lobby/", "ann").await;
    ann.patience = LONG;
    let mut acks = Vec::new();
    let dumping = dump(database);
    tokio::pin!(dumping);
    let mut dumped = None;
    // Some before, some while it is made, some after.
    while dumped.is_none_or(|at| acks.len() < at + 10) {
        let id = acks.len().to_string();
        let said = ann.say_acked("lobby", &id, &id);
        if acks.len() < 10 || dumped.is_some() {
            acks.push(said.await);
        } else {
            // Said to its end, whichever comes first.
            let (ack, done) = tokio::join!(said, async {
                tokio::time::timeout(Duration::from_millis(20), &mut dumping).await.is_ok()
            });
            acks.push(ack);
            if done {
                dumped = Some(acks.len());
            }
        }
    }
    drop(ann);
    node.running.drain().await;
    restore(fresh).await;
    let kept = store(fresh).await.room("lobby").await.unwrap().unwrap().last_seq;
    assert!(kept >= 10 && kept < acks.len() as u64, "{kept} of {}", acks.len());
    let node = start(fresh).await;
    let at = |seq: u64| place(&acks[seq as usize - 1]);
    let (_bob, seqs, went_on) = comes_back(node.at(), "bob", &at(4)).await;
    assert_eq!((seqs, went_on), ((5..=kept).collect(), true));
    let (_carol, seqs, went_on) = comes_back(node.at(), "carol", &at(kept + 1)).await;
    assert_eq!((seqs, went_on), (vec![], false));
    // Others take the places of what is gone: who had those is told so, too.
    let mut ann = node.at().v1("/ws/chat/lobby/", "ann").await;
    for n in 0..5 {
        assert_eq!(ann.say_acked("lobby", "after", &format!("after {n}")).await["seq"], kept + 1 + n);
    }
    let (_dave, seqs, went_on) = comes_back(node.at(), "dave", &at(kept + 2)).await;
    assert_eq!((seqs, went_on), (vec![], false));
    // A message that the dump has is known, one that it has not is stored.
    let known = ann.say_acked("lobby", "3", "3").await;
    assert_eq!((&known["seq"], &known["id"]), (&acks[3]["seq"], &acks[3]["id"]));
    let id = kept.to_string();
    assert_eq!(ann.say_acked("lobby", &id, &id).await["seq"], kept + 6);
}

/// Runs a program with this as its input, and returns what it prints.
async fn run(program: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writes = async {
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(writes, child.wait_with_output());
    let output = output.unwrap();
    assert!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The dump of one server restored on another.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_postgres_made_while_people_talk_is_restored_on_another_server() {
    let (old, new) = (Postgres::shared(), Postgres::start());
    let (database, fresh) = (old.fresh_database(), new.fresh_database());
    let kept = Mutex::new(Vec::new());
    let dump = async |database: &str| {
        *kept.lock().await =
            run(&old.program("pg_dump"), &["--no-owner", "--format=custom", "-d", database], &[]).await;
    };
    let restore = async |fresh: &str| {
        let arguments = ["--no-owner", "--exit-on-error", "-d", fresh];
        run(&new.program("pg_restore"), &arguments, &kept.lock().await).await;
    };
    restored(dump, restore, &database, &fresh).await;
}

// ---- A new major version of PostgreSQL ----

/// Says one thing after the other until its node leaves: what was acknowledged, where it was last, and what it was about
/// to say then.
async fn talk(mut client: Client, user: &'static str, all: Arc<AtomicUsize>) -> (Vec<Value>, Value, String) {
    let (mut acks, mut last) = (Vec::new(), Value::Null);
    loop {
        let id = format!("{user} {}", acks.len());
        let said = json!({"cate": "chat", "group_name": "lobby", "message": id, "client_id": id});
        client.try_send_text(&said.to_string()).await;
        loop {
            match client.hear().await {
                common::Heard::Frame(frame) if frame["type"] == "ack" => {
                    acks.push(frame);
                    all.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                common::Heard::Frame(frame) if frame["type"] == "chat" => last = place(&frame),
                common::Heard::Frame(_) => {}
                common::Heard::Closed(..) | common::Heard::Gone => return (acks, last, id),
            }
        }
    }
}

/// While people talk all nodes are stopped, the database is moved by `move_it`, which returns its new URL, and the nodes
/// are started with that. Nothing acknowledged is lost, whoever comes back goes on from their place, and what was being
/// said when the nodes stopped is stored once.
async fn moved_to_a_new_version(database: &str, move_it: impl AsyncFnOnce() -> String) {
    let redis = RedisServer::start();
    let redis_url = redis.url();
    // However much is said while the first node ends.
    let most = [("limits.resume_frames", "0")];
    let start = |database: &str| NodeProcess::start(&keys(&redis_url, database, &most));
    let nodes = [start(database), start(database)];
    let mut bob = nodes[0].door.v1("/ws/chat/lobby/", "bob").await;
    nodes[1].door.api("PUT", "/api/rooms/lobby/members/bob", None).await;
    let envelope =
        json!({"type": "notification", "to": "user:bob", "data": {"message": "before", "from_user": "shop"}});
    assert_eq!(nodes[1].door.api("POST", "/api/events", Some(envelope)).await.0, 200);
    let notified = bob.until(|frame| frame["type"] == "notification").await;
    drop(bob);
    let all = Arc::new(AtomicUsize::new(0));
    let mut talking = JoinSet::new();
    for (at, user) in ["ann", "carol", "dave", "eve"].into_iter().enumerate() {
        let mut client = nodes[at % 2].door.v1("/ws/chat/lobby/", user).await;
        client.patience = LONG;
        let talk = talk(client, user, Arc::clone(&all));
        talking.spawn(async move { (user, talk.await) });
    }
    eventually("they talk", async || all.load(Ordering::Relaxed) > 200).await;
    let before = all.load(Ordering::Relaxed);
    for mut node in nodes {
        node.process.signal("TERM");
        assert_eq!(node.process.exit_code(), 0, "{}", node.log());
    }
    // Services go on publishing: it waits for a node.
    published(&redis, 0..5);
    let database = move_it().await;
    let nodes = [start(&database), start(&database)];

    let kept = nodes[0].door.api("GET", "/api/rooms/lobby", None).await.1["seq"].as_u64().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut back = Vec::new();
    for (at, (user, (acks, last, unsaid))) in talking.join_all().await.into_iter().enumerate() {
        for (number, ack) in acks.iter().enumerate() {
            let said = (ack["id"].clone(), format!("{user} {number}"));
            assert!(acknowledged.insert(ack["seq"].as_u64().unwrap(), said).is_none());
        }
        let (client, seqs, went_on) = comes_back(nodes[at % 2].door, user, &last).await;
        let next = last["seq"].as_u64().unwrap() + 1;
        assert!(went_on && seqs.iter().copied().eq(next..next + seqs.len() as u64), "{user}: {last}, {seqs:?}");
        assert!(next + seqs.len() as u64 > kept, "{user}: {last}, {seqs:?} of {kept}");
        back.push((client, unsaid));
    }
    assert!(acknowledged.len() > before.max(200) - 1, "{} of {before}", acknowledged.len());
    // What each of them was about to say may have been stored without an ack, and is said again.
    for (client, unsaid) in &mut back {
        client.say_acked("lobby", unsaid, unsaid).await;
    }
    eventually("what waited in the stream is stored", async || redis.cli(&["XLEN", "gateway:events"]).trim() == "0")
        .await;
    let (stored, mut texts) = (store(&database).await, HashSet::new());
    let rows = stored.messages("lobby", Range::After(0), 100_000).await.unwrap();
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row.seq, number as u64 + 1, "no hole");
        assert!(row.message == "entry" || texts.insert(row.message.clone()), "{} is there twice", row.message);
        if let Some((id, text)) = acknowledged.remove(&row.seq) {
            assert_eq!((row.id.to_string(), &*row.message), (id.as_str().unwrap().to_owned(), text.as_str()));
        }
    }
    assert!(acknowledged.is_empty(), "acknowledged and lost: {acknowledged:?}");
    assert_eq!(rows.iter().filter(|row| row.message == "entry").count(), 5);
    assert!(back.iter().all(|(_, unsaid)| texts.contains(unsaid)));
    // The inbox has its place, too, and both nodes go on.
    let mut bob = nodes[1].door.v1("/ws/notifications/", "bob").await;
    bob.send(json!({"cate": "resume", "rooms": {}, "notifications": place(&notified)})).await;
    assert_eq!(bob.until(|frame| frame["type"] == "resumed").await["notifications"], true);
    let envelope = json!({"type": "notification", "to": "user:bob", "data": {"message": "after", "from_user": "shop"}});
    assert_eq!(nodes[0].door.api("POST", "/api/events", Some(envelope)).await.0, 200);
    assert_eq!(bob.until(|frame| frame["type"] == "notification").await["seq"], notified["seq"].as_u64().unwrap() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_major_version_of_postgres_by_dump_and_restore_loses_nothing() {
    if std::env::var_os("GATEWAY_LONG").is_none() {
        return;
    }
    let (old, new) = (Postgres::start(), Postgres::start_of(newer_programs()));
    assert!(new.major() > old.major(), "{} and {}", old.major(), new.major());
    let database = old.fresh_database();
    let move_it = async || {
        let dump = run(&new.program("pg_dump"), &["--no-owner", "--format=custom", "-d", &database], &[]).await;
        let fresh = new.fresh_database();
        run(&new.program("pg_restore"), &["--no-owner", "--exit-on-error", "-d", &fresh], &dump).await;
        fresh
    };
    moved_to_a_new_version(&database, move_it).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_major_version_of_postgres_by_pg_upgrade_loses_nothing() {
    if std::env::var_os("GATEWAY_LONG").is_none() {
        return;
    }
    let mut server = Postgres::start();
    let (database, before) = (server.fresh_database(), server.major());
    let same = database.clone();
    let move_it = async || {
        server.upgrade(newer_programs());
        assert!(server.major() > before);
        same
    };
    moved_to_a_new_version(&database, move_it).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_mariadb_made_while_people_talk_is_restored() {
    let server = MariaDb::shared();
    let (database, fresh) = (server.fresh_database(), server.fresh_database());
    let port = format!("--port={}", server.port());
    let name = |database: &str| database.rsplit('/').next().unwrap().to_owned();
    let kept = Mutex::new(Vec::new());
    let dump = async |database: &str| {
        let login = ["--no-defaults", "--host=127.0.0.1", &port, "--user=root"];
        let name = name(database);
        let arguments = [&login[..], &["--single-transaction", "--hex-blob", &name]].concat();
        *kept.lock().await = run(&server.program("mariadb-dump"), &arguments, &[]).await;
    };
    let restore = async |fresh: &str| {
        let arguments = ["--no-defaults", "--host=127.0.0.1", &port, "--user=root", &name(fresh)];
        run(&server.program("mariadb"), &arguments, &kept.lock().await).await;
    };
    restored(dump, restore, &database, &fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_sqlite_made_while_people_talk_is_restored() {
    let directory = tempfile::tempdir().unwrap();
    let (database, copy) = (sqlite(directory.path(), "gateway.db"), sqlite(directory.path(), "copy.db"));
    let [from, to] = ["gateway.db", "copy.db"].map(|name| directory.path().join(name).display().to_string());
    let dump = async |_: &str| {
        let vacuum = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('VACUUM INTO ?', sys.argv[2:])";
        run(Path::new("python3"), &["-c", vacuum, &from, &to], &[]).await;
    };
    restored(dump, async |_: &str| (), &database, &copy).await;
}

// ---- Moving ----

fn keys<'a>(redis: &'a str, database: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("redis-url", redis), ("database-url", database), ("limits.frames_per_second", "0")], more].concat()
}

fn published(redis: &RedisServer, ids: std::ops::Range<u32>) {
    for id in ids {
        let (id, data) = (id.to_string(), r#"{"message":"entry","from_user":"shop"}"#);
        let fields = ["id", &id, "source", "shop", "type", "chat", "to", "room:lobby", "data", data];
        redis.cli(&[&["XADD", "gateway:events", "*"][..], &fields].concat());
    }
}

/// Everything to a new Redis, node by node, while people talk and a service publishes.
#[tokio::test(flavor = "multi_thread")]
async fn another_redis_is_moved_to_node_by_node_and_nothing_is_lost() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let (old_url, new_url, database) = (old.url(), new.url(), Postgres::shared().fresh_database());
    let nodes =
        [NodeProcess::start(&keys(&old_url, &database, &[])), NodeProcess::start(&keys(&old_url, &database, &[]))];
    let mut bob = nodes[1].door.v1("/ws/chat/lobby/", "bob").await;
    bob.patience = LONG;
    bob.rooms().await;
    let mut ann = nodes[0].door.v1("/ws/chat/lobby/", "ann").await;
    for n in 0..5 {
        ann.say_acked("lobby", &n.to_string(), &n.to_string()).await;
    }
    published(&old, 0..5);
    // Publishers first: what they write waits in the new one for nodes.
    published(&new, 5..10);
    eventually("nothing is left in the old stream", || async { old.cli(&["XLEN", "gateway:events"]).trim() == "0" })
        .await;
    let [first, second] = nodes;
    let mut moved = Vec::new();
    let mut last = 10;
    let mut heard = 0;
    for (mut node, talks) in [(first, true), (second, false)] {
        node.process.signal("TERM");
        assert!(matches!(ended(if talks { &mut ann } else { &mut bob }, &mut heard, talks).await, 1001 | 1012));
        assert_eq!(node.process.exit_code(), 0, "{}", node.log());
        moved.push(NodeProcess::start(&keys(&new_url, &database, &[])));
        let door = moved.last().unwrap().door;
        if talks {
            // One node here and one there: what is stored reaches the other by comparing positions.
            eventually("the entries that waited are stored", || async {
                new.cli(&["XLEN", "gateway:events"]).trim() == "0"
            })
            .await;
            last += 5;
            ann = door.v1("/ws/chat/lobby/", "ann").await;
            assert_eq!(ann.say_acked("lobby", "between", "between").await["seq"], last + 1);
            last += 1;
            while heard < last {
                let frame = bob.until(|frame| frame["type"] == "chat").await;
                assert_eq!(frame["seq"], heard + 1);
                heard += 1;
            }
        } else {
            let (client, seqs, went_on) = comes_back(door, "bob", &json!({"seq": heard})).await;
            assert_eq!((seqs, went_on), (vec![], true));
            bob = client;
        }
    }
    assert_eq!(ann.say_acked("lobby", "moved", "moved").await["seq"], last + 1);
    assert_eq!(bob.hears().await, "moved");
    assert_eq!(old.cli(&["PUBSUB", "CHANNELS"]).trim(), "", "nobody is left at the old one");
}

/// The code that a socket ends with; what the other one hears meanwhile is counted by the test.
async fn ended(client: &mut Client, heard: &mut u64, passes_over: bool) -> u16 {
    loop {
        match client.hear().await {
            common::Heard::Closed(code, _) => return code,
            common::Heard::Gone => return 1006,
            common::Heard::Frame(frame) if !passes_over => *heard = frame["seq"].as_u64().unwrap_or(*heard),
            common::Heard::Frame(_) => {}
        }
    }
}

/// Node by node from one layer to the other, and back: stored messages reach everybody all the time.
#[tokio::test(flavor = "multi_thread")]
async fn the_layer_is_changed_node_by_node_and_changed_back() {
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let url = redis.url();
    let start = async |layer: &str| TestNode::start(&keys(&url, &database, &[("layer", layer)])).await;
    let mut nodes = [start("pubsub").await, start("pubsub").await];
    let mut last = 0;
    let mut places = [Value::Null, Value::Null];
    for layer in ["core", "pubsub"] {
        for number in 0..2 {
            let old = std::mem::replace(&mut nodes[number], start(layer).await);
            old.running.drain().await;
            let doors = [nodes[0].at(), nodes[1].at()];
            let mut clients = Vec::new();
            for (at, user) in ["ann", "bob"].into_iter().enumerate() {
                let from = if places[at].is_null() { json!(0) } else { places[at].clone() };
                let (client, _, went_on) = comes_back(doors[at], user, &from).await;
                assert!(went_on, "{layer}: {from}");
                clients.push(client);
            }
            let [ann, bob] = &mut clients[..] else { panic!("two") };
            for turn in 0..2 {
                let (speaker, listener) = if turn == 0 { (&mut *ann, &mut *bob) } else { (&mut *bob, &mut *ann) };
                let id = format!("{layer} {number} {last}");
                let ack = speaker.say_acked("lobby", &id, &id).await;
                last += 1;
                assert_eq!(ack["seq"], last);
                // At once on the same layer, and otherwise when positions are compared.
                listener.until(|frame| frame["id"] == ack["id"]).await;
                places = [place(&ack), place(&ack)];
            }
        }
    }
}

/// From SQLite to PostgreSQL under the same Redis, with the commands that the document prints.
#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_postgres_with_the_same_redis_after_its_note_of_the_old_database_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (sqlite(directory.path(), "gateway.db"), Postgres::shared().fresh_database());
    let redis = RedisServer::start();
    let url = redis.url();
    let node = TestNode::start(&keys(&url, &old, &[])).await;
    let mut ann = node.at().v1("/ws/chat/lobby/", "ann").await;
    let mut acks = Vec::new();
    for n in 0..10 {
        acks.push(ann.say_acked("lobby", &n.to_string(), &n.to_string()).await);
    }
    // Once while people talk, and once more for the rest.
    let lines = exported(&old).await;
    assert_eq!(imported(&new, directory.path(), &lines).await["stored"], 10);
    for n in 10..15 {
        acks.push(ann.say_acked("lobby", &n.to_string(), &n.to_string()).await);
    }
    node.running.drain().await;
    let report = imported(&new, directory.path(), &exported(&old).await).await;
    assert_eq!((&report["stored"], &report["known"]), (&json!(5), &json!(10)));
    // Redis knows the deployment by its database.
    let refused = TestNode::try_start(&keys(&url, &new, &[]), gateway::consumers::routes()).await;
    let Err(error) = refused else { panic!("another database was taken") };
    let says = format!("{:#}", anyhow::Error::from(error));
    assert!(says.contains("gateway:deployment"), "{says}");
    redis.cli(&["DEL", "gateway:deployment", "gateway:layer:asgi"]);
    let node = TestNode::start(&keys(&url, &new, &[])).await;
    // Messages have new ids here: places of before are of another history.
    let (mut ann, seqs, went_on) = comes_back(node.at(), "ann", &place(&acks[9])).await;
    assert_eq!((seqs, went_on), (vec![], false));
    let history = ann.ask(json!({"cate": "history", "group_name": "lobby", "limit": 100})).await;
    let rows = history["messages"].as_array().unwrap();
    assert!(rows.iter().map(|row| &row["date"]).eq(acks.iter().map(|ack| &ack["date"])), "{history}");
    assert!(rows.iter().enumerate().all(|(n, row)| row["seq"] == n + 1 && number(&row["message"]) == Some(n)));
    assert_eq!(ann.say_acked("lobby", "here", "here").await["seq"], 16);
}
