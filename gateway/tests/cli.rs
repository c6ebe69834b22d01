//! The command line, as an operator types it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{TestNode, eventually};
use serde_json::Value;
use testkit::postgres::Postgres;
use tokio::io::AsyncBufReadExt as _;

struct Output {
    code: i32,
    out: String,
    err: String,
}

async fn gateway(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(arguments)
        // The tests' own, which a node would take for a misspelt setting.
        .env_remove("GATEWAY_LONG")
        .envs(env.iter().copied())
        .current_dir(directory.path())
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
}

#[tokio::test]
async fn serve_without_a_way_to_sign_in_says_what_to_set() {
    let output = gateway(&["serve"], &[]).await;
    assert_eq!(output.code, 2);
    assert!(output.err.contains("--jwt-secret") && output.err.contains("--dev"), "{}", output.err);
    let output = gateway(&["serve", "--dev", "--listen", "0.0.0.0:0"], &[]).await;
    assert!(output.code == 2 && output.err.contains("loopback"), "{}", output.err);
}

#[tokio::test]
async fn all_mistakes_are_told_at_once_and_no_secret_is() {
    let env =
        [("GATEWAY_LISTEN", "nowhere"), ("GATEWAY_LIMITS__FRAME_BYTES", "many"), ("GATEWAY_JWT_SECRET", "canary")];
    let output = gateway(&["check-config", "--room-policy", "all"], &env).await;
    assert_eq!(output.code, 2);
    for name in ["listen", "limits.frame_bytes", "jwt-secret", "room-policy"] {
        assert!(output.err.contains(name), "{name}: {}", output.err);
    }
    assert!(!output.err.contains("canary"));
    let env =
        [("GATEWAY_JWT_SECRET", "canary-canary-canary"), ("GATEWAY_DATABASE_URL", "postgres://u:canary@127.0.0.1:1/x")];
    let output = gateway(&["config"], &env).await;
    assert!(output.code == 0 && output.out.contains("jwt-secret") && !output.out.contains("canary"), "{}", output.out);
    let output = gateway(&["migrate"], &env).await;
    assert!(output.code == 1 && !output.err.contains("canary"), "{}", output.err);
}

#[tokio::test]
async fn a_claim_with_ids_needs_users_that_can_be_read() {
    let url = Postgres::shared().fresh_database();
    let env = [
        ("GATEWAY_JWT_SECRET", common::SECRET),
        ("GATEWAY_JWT_USER_ID_CLAIM", "user_id"),
        ("GATEWAY_DJANGO__DATABASE_URL", url.as_str()),
    ];
    for command in ["check-config", "serve"] {
        for env in [&env[..], &env[..2]] {
            let output = gateway(&[command], env).await;
            assert!(output.code == 2 && output.err.contains("django.user_table"), "{command}: {}", output.err);
        }
    }
    let table = "CREATE TABLE auth_user (id integer PRIMARY KEY, username text, password text, is_active boolean)";
    Postgres::shared().sql(&url, table);
    let output = gateway(&["check-config"], &env).await;
    assert_eq!(output.code, 0, "{}", output.err);
    let output = gateway(&["check-config", "--user-name", "id", "--django-secret-key", "key"], &env[..1]).await;
    assert!(output.code == 2 && output.err.contains("--jwt-user-id-claim"), "{}", output.err);
}

#[tokio::test]
async fn settings_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[limits]\nping_second = 3\n").unwrap();
    let path = file.path().to_str().unwrap();
    let output = gateway(&["config", "--config", path], &[]).await;
    assert!(output.code == 2 && output.err.contains("did you mean limits.ping_seconds"), "{}", output.err);
    std::fs::write(file.path(), "[limits]\nping_seconds = 3\n").unwrap();
    let output = gateway(&["config", "--config", path], &[]).await;
    assert!(
        output
            .out
            .lines()
            .any(|line| line.starts_with("limits.ping_seconds") && line.contains(" 3 ") && line.contains("file"))
    );
}

/// What nobody has set is shown as what it comes to: by other settings, or by the machine.
#[tokio::test]
async fn config_shows_what_the_defaults_come_to() {
    let shown = async |arguments: &'static [&'static str]| {
        let secret = ("GATEWAY_JWT_SECRET", common::SECRET);
        let output = gateway(&[&["config"], arguments].concat(), &[secret]).await;
        assert_eq!(output.code, 0, "{}", output.err);
        move |name: &str| {
            let line = output.out.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
            line[name.len()..].trim().to_owned()
        }
    };
    let line = shown(&[]).await;
    assert_eq!((line("layer"), line("room-policy")), ("memory  [default]".into(), "members  [default]".into()));
    assert_eq!(line("allowed-origins"), "the request's own host  [default]");
    assert_eq!(line("django.session_salt"), "django.contrib.sessions.SessionStore  [default]");
    assert_eq!(line("django.database_url"), "that of database-url  [default]");
    assert_eq!(
        (line("bridge.frame_bytes"), line("bridge.outbox_bytes")),
        ("65536  [default]".into(), "1048576  [default]".into())
    );
    assert!(
        line("limits.connections").starts_with("0 (the open files leave room for "),
        "{}",
        line("limits.connections")
    );
    assert!(line("limits.memory_bytes").contains("cgroup"), "{}", line("limits.memory_bytes"));
    assert!(line("node-id").ends_with("(another one each time)  [default]"), "{}", line("node-id"));
    assert_eq!(line("jwt-secret"), "(hidden)  [environment]");
    let line = shown(&["--redis-url", "redis://127.0.0.1:1", "--room-policy", "open", "--node-id", "one"]).await;
    assert_eq!((line("layer"), line("room-policy")), ("pubsub  [default]".into(), "open  [flag]".into()));
    assert_eq!(line("node-id"), "one  [flag]");
}

#[tokio::test]
async fn migrate_tells_what_it_did() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", directory.path().join("x.db").display());
    let env = [("GATEWAY_DATABASE_URL", url.as_str())];
    assert!(gateway(&["migrate", "status"], &env).await.out.contains("pending"));
    assert!(gateway(&["migrate"], &env).await.out.contains("applied"));
    assert!(gateway(&["migrate"], &env).await.out.contains("nothing to do"));
    assert!(!gateway(&["migrate", "status"], &env).await.out.contains("pending"));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&directory.path().join("x.db").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "the owner's only");
    let output = gateway(&["check-config", "--live"], &[env[0], ("GATEWAY_JWT_SECRET", common::SECRET)]).await;
    assert_eq!(output.code, 0, "{}", output.err);
}

/// A file that others may read, and secrets that others may list: told by name, and no secret with it.
#[tokio::test]
async fn a_node_says_at_its_start_what_others_may_read() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("gateway.db");
    std::fs::write(&database, "").unwrap();
    std::fs::set_permissions(&database, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let url = format!("sqlite://{}?mode=rwc", database.display());
    let flags = ["serve", "--jwt-secret", "canary-canary-canary", "--api-key", "canary", "--database-url", &url];
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(flags).args(["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]);
    let mut node = command.kill_on_drop(true).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(node.stderr.take().unwrap()).lines();
    let mut log = String::new();
    while !log.contains("listening") {
        let line = tokio::time::timeout(common::PATIENCE, lines.next_line()).await.expect("it starts").unwrap();
        log += &(line.expect("it runs") + "\n");
    }
    node.kill().await.unwrap();
    let warned = |parts: [&str; 2]| {
        log.lines().any(|line| line.contains("WARN") && parts.iter().all(|part| line.contains(part)))
    };
    assert!(
        warned(["--jwt-secret", "GATEWAY_JWT_SECRET_FILE"]) && warned(["--api-key", "GATEWAY_API_KEY_FILE"]),
        "{log}"
    );
    assert!(warned(["chmod 600", &database.display().to_string()]), "{log}");
    assert!(!log.contains("canary") && !log.contains("DATABASE_URL"), "{log}");
    // Given so that nobody can list them, there is nothing to say.
    let env = [("GATEWAY_JWT_SECRET", "canary-canary-canary"), ("GATEWAY_API_KEY", "canary")];
    assert!(!gateway(&["check-config"], &env).await.out.contains("warning"));
    let output = gateway(&["check-config", "--api-key", "canary"], &env).await;
    assert!(output.out.contains("warning: --api-key") && !output.out.contains("canary"), "{}", output.out);
}

#[tokio::test]
async fn rooms_and_notifications_from_the_command_line() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let url = format!("http://{}", node.at().internal);
    let run = |arguments: &'static [&'static str]| {
        let url = url.clone();
        async move {
            let output = gateway(arguments, &[("GATEWAY_API_URL", &url), ("GATEWAY_API_KEY", "key")]).await;
            (output.code, serde_json::from_str::<Value>(&output.out).unwrap_or_default())
        }
    };
    assert_eq!(run(&["healthcheck"]).await.0, 0);
    assert_eq!(run(&["room", "create", "café/", "--display-name", "Café"]).await.0, 1, "no slash in names");
    assert_eq!(run(&["room", "create", "café", "--display-name", "Café"]).await.0, 0);
    assert_eq!(run(&["room", "add", "café", "alice"]).await.0, 0);
    assert_eq!(run(&["room", "add", "nowhere", "alice"]).await.0, 1);
    let mut alice = node.at().connect("/ws/chat/", "alice").await;
    assert_eq!(run(&["room", "show", "café"]).await.1["online"][0], "alice");
    assert_eq!(run(&["notify", "alice", "hello", "--from", "ops"]).await.1["seq"], 1);
    let frame = alice.frame().await;
    assert_eq!((frame["message"].as_str(), frame["from_user"].as_str()), (Some("hello"), Some("ops")));
    // The waiting inbox of somebody nobody has seen yet.
    assert_eq!(run(&["notify", "later", "hello"]).await.1["seq"], 1);
    // The same identity again changes nothing, and other content under it is refused.
    for repeated in [false, true] {
        let (code, answer) = run(&["notify", "later", "once", "--id", "mail-1"]).await;
        assert_eq!((code, &answer["seq"], &answer["repeated"]), (0, &Value::from(2), &Value::from(repeated)));
    }
    assert_eq!(run(&["notify", "later", "twice", "--id", "mail-1"]).await.0, 1);
    assert_eq!(run(&["room", "list"]).await.1["rooms"][0]["display_name"], "Café");
    assert_eq!(run(&["room", "remove", "café", "alice"]).await.0, 0);
    assert_eq!(run(&["room", "delete", "café"]).await.0, 0);
    assert_eq!(run(&["room", "show", "café"]).await.0, 1);
    let key = [("GATEWAY_API_URL", url.as_str()), ("GATEWAY_API_KEY", "wrong")];
    let output = gateway(&["room", "list"], &key).await;
    assert!(output.code == 1 && output.err.contains("the API key is missing or wrong"), "{}", output.err);
    // A secret from a file, and a proxy that is for the way out only.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "key\n").unwrap();
    let env = [("GATEWAY_API_KEY_FILE", file.path().to_str().unwrap()), ("http_proxy", "http://127.0.0.1:1")];
    let output = gateway(&["room", "list", "--api-url", &format!("{url}/")], &env).await;
    assert_eq!((output.code, output.out.trim()), (0, r#"{"rooms":[]}"#), "{}", output.err);
    // The in-memory layer has no stream, so there are no dead letters.
    let output = gateway(&["dead", "list", "--api-url", &url, "--api-key", "key"], &[]).await;
    assert!(output.code == 1 && output.err.contains("there is no stream"), "{}", output.err);
    // The wrong listener is told from a node that refuses.
    let public = format!("http://{}", node.at().public);
    let output = gateway(&["room", "list", "--api-url", &public], &[]).await;
    assert!(output.code == 1 && output.err.contains("is that the internal listener"), "{}", output.err);
    let down = node.at();
    node.running.drain().await;
    eventually("the node is gone", || async {
        gateway(&["healthcheck", "--api-url", &format!("http://{}", down.internal)], &[]).await.code == 1
    })
    .await;
}

/// Clients of HTTP fold dots in a path, encoded or not: `members/..` would be the room itself.
#[tokio::test]
async fn dots_are_no_name_and_never_a_step_up_in_a_path() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let door = node.at();
    assert_eq!(door.api("PUT", "/api/rooms/lobby/members/alice", None).await.0, 404);
    assert_eq!(door.api("PUT", "/api/rooms/lobby", None).await.0, 200);
    assert_eq!(door.api("PUT", "/api/rooms/lobby/members/alice", None).await.0, 200);
    let url = format!("http://{}", door.internal);
    let env = [("GATEWAY_API_URL", url.as_str()), ("GATEWAY_API_KEY", "key"), ("GATEWAY_JWT_SECRET", common::SECRET)];
    for name in ["..", ".", "", "a/b", "a\u{85}"] {
        for command in [
            &["room", "remove", "lobby", name][..],
            &["room", "add", "lobby", name],
            &["room", "delete", name],
            &["room", "show", name],
            &["room", "create", name],
            &["notify", name, "hello"],
            &["dead", "show", name],
            &["dead", "drop", name],
            &["dead", "retry", name],
            &["token", name],
            &["token", "alice", "--rooms", name],
        ] {
            let output = gateway(command, &env).await;
            assert!(output.code == 1 && output.err.contains("is not valid"), "{command:?}: {}", output.err);
        }
    }
    let (status, room) = door.api("GET", "/api/rooms/lobby", None).await;
    assert_eq!((status, &room["members"][0]), (200, &Value::from("alice")));
    // A name that only begins like that is one.
    assert_eq!(gateway(&["room", "create", "..."], &env).await.code, 0);
    assert_eq!(gateway(&["room", "delete", "..."], &env).await.code, 0);
}

#[tokio::test]
async fn the_default_address_is_the_internal_listener_and_dev_needs_no_key() {
    let node = TestNode::start(&[("dev", "true"), ("api-key", "")]).await;
    let internal = node.at().internal.to_string();
    let env = [("GATEWAY_INTERNAL_LISTEN", internal.as_str())];
    let output = gateway(&["notify", "alice", "hello"], &env).await;
    assert_eq!(output.code, 0, "{}", output.err);
    assert_eq!(node.at().api_with("GET", "/api/users/alice/notifications", None, &[]).await.1["unseen"], 1);
    // A node that listens on all addresses is reached on loopback.
    let everywhere = internal.replace("127.0.0.1", "0.0.0.0");
    let env = [("GATEWAY_INTERNAL_LISTEN", everywhere.as_str())];
    assert_eq!(gateway(&["healthcheck"], &env).await.code, 0);
    assert_eq!(gateway(&["notify", "a/b", "hello"], &env).await.code, 1);
}

#[tokio::test]
async fn all_rooms_are_listed_however_many_there_are() {
    let node = TestNode::start(&[]).await;
    let rooms: Vec<_> = (0..1001)
        .map(|number| persistence::Membership {
            room: format!("r{number:04}"),
            user: "alice".into(),
            create_room: true,
        })
        .collect();
    node.running.node().store.add_members(&rooms).await.unwrap();
    let url = format!("http://{}", node.at().internal);
    let output = gateway(&["room", "list", "--api-url", &url, "--api-key", "key"], &[]).await;
    let listed: Value = serde_json::from_str(&output.out).unwrap();
    let listed = listed["rooms"].as_array().unwrap();
    assert_eq!((listed.len(), &listed[1000]["name"]), (1001, &Value::from("r1000")));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_tried_again_and_dropped() {
    let redis = testkit::redis::RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let url = format!("http://{}", node.at().internal);
    let dead = async |arguments: &[&str]| {
        let arguments = [&["dead"], arguments, &["--api-url", &url, "--api-key", "key"]].concat();
        let output = gateway(&arguments, &[]).await;
        (output.code, serde_json::from_str::<Value>(&output.out).unwrap_or_default())
    };
    for id in ["1", "2"] {
        let fields = ["id", id, "source", "s", "type", "chat", "to", "room:later", "data", r#"{"message":"hi"}"#];
        redis.cli(&[&["XADD", "gateway:events", "*"], &fields[..]].concat());
    }
    let count = async || dead(&["list"]).await.1["dead"].as_array().unwrap().len();
    eventually("two dead letters", || async { count().await == 2 }).await;
    let newest = dead(&["list", "--limit", "1"]).await.1["dead"][0]["dead_id"].as_str().unwrap().to_owned();
    let (_, older) = dead(&["list", "--before", &newest]).await;
    assert_eq!((older["dead"].as_array().unwrap().len(), &older["dead"][0]["fields"]["id"]), (1, &Value::from("1")));
    assert_eq!(dead(&["show", &newest]).await.1["fields"]["id"], "2");
    node.at().api("PUT", "/api/rooms/later", None).await;
    assert_eq!(dead(&["retry", &newest]).await.0, 0);
    eventually("it works now", || async { node.at().api("GET", "/api/rooms/later", None).await.1["seq"] == 1 }).await;
    assert_eq!(dead(&["show", &newest]).await.0, 1);
    assert_eq!(dead(&["drop", older["dead"][0]["dead_id"].as_str().unwrap()]).await.0, 0);
    assert_eq!(count().await, 0);
}

#[tokio::test]
async fn a_token_signs_in() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let output =
        gateway(&["token", "alice", "--rooms", "lobby", "--seconds", "60"], &[("GATEWAY_JWT_SECRET", common::SECRET)])
            .await;
    let path = format!("/ws/chat/lobby/?token={}", output.out.trim());
    assert!(node.at().try_connect(&path, &[]).await.is_ok());
    assert_eq!(gateway(&["token", "a/b"], &[("GATEWAY_JWT_SECRET", common::SECRET)]).await.code, 1);
    assert!(gateway(&["version"], &[]).await.out.starts_with("gateway 0."));
}

/// What operators ask for by hand: who is where, which nodes there are, and what passes.
#[tokio::test(flavor = "multi_thread")]
async fn users_nodes_and_what_passes() {
    let node = TestNode::start(&[("node-id", "one")]).await;
    let url = format!("http://{}", node.at().internal);
    let env = [("GATEWAY_API_URL", url.as_str()), ("GATEWAY_API_KEY", "key")];
    let json = |output: &Output| serde_json::from_str::<Value>(&output.out).unwrap();
    assert_eq!(node.at().internal_get("/readyz").await.0, 200);
    let nodes = gateway(&["nodes"], &env).await;
    let nodes = json(&nodes);
    assert_eq!((&nodes["nodes"], &nodes["workers"]), (&serde_json::json!(["one"]), &serde_json::json!([])), "{nodes}");
    assert_eq!((&nodes["states"][0]["state"], &nodes["states"][0]["sockets"]), (&"ready".into(), &0.into()), "{nodes}");

    let mut tail = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    tail.args(["tail", "--room", "lobby", "--user", "alice"]).envs(env);
    tail.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut tail = tail.spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(tail.stdout.take().unwrap()).lines();
    // What passes is shown from its first question on.
    let first = loop {
        drop(node.join("alice", "lobby").await);
        let line = tokio::time::timeout(std::time::Duration::from_millis(100), lines.next_line()).await;
        if let Ok(line) = line {
            break line.unwrap().unwrap();
        }
    };
    assert!(first.contains("socket "), "{first}");
    eventually("she has left", || async { node.metric("gateway_connections").await == 0.0 }).await;
    let mut alice = node.join("alice", "lobby").await;
    alice.say("lobby", "secret words").await;
    alice.hears().await;
    let shown = gateway(&["user", "show", "alice"], &env).await;
    assert_eq!(json(&shown)["sockets"].as_array().unwrap().len(), 1, "{}", shown.err);
    let said = gateway(&["user", "disconnect", "alice", "--code", "4401", "--reason", "out"], &env).await;
    assert_eq!(json(&said)["disconnected"], true, "{}", said.err);
    assert_eq!(alice.closed().await, 4401);
    assert!(gateway(&["user", "show", "a/b"], &env).await.err.contains("not valid"));
    let mut seen: Vec<Value> = Vec::new();
    while seen.last().is_none_or(|last| last["what"] != "gateway_disconnect") {
        let line = tokio::time::timeout(common::PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert!(!line.contains("secret words"), "{line}");
        let one: Value = serde_json::from_str(&line).unwrap();
        if one["what"] == "socket opened" {
            seen.clear();
        }
        // Her other sockets are told of the room that she has joined.
        if one["what"] != "gateway_rooms_changed" {
            seen.push(one);
        }
    }
    let what: Vec<&str> = seen.iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["socket opened", "chat_message", "gateway_disconnect"], "{seen:#?}");
    assert_eq!(
        (&seen[1]["room"], &seen[1]["from_user"], &seen[1]["sockets"]),
        (&"lobby".into(), &"alice".into(), &1.into())
    );
    // So many, and no more.
    let mut counted = std::pin::pin!(gateway(&["tail", "--user", "alice", "--count", "1"], &env));
    let counted = loop {
        tokio::select! {
            counted = &mut counted => break counted,
            _alice = node.join("alice", "lobby") => {}
        }
    };
    assert_eq!((counted.code, counted.out.lines().count()), (0, 1), "{}{}", counted.out, counted.err);
}

#[tokio::test]
async fn shells_and_man_learn_the_commands_from_the_program() {
    let bash = gateway(&["completions", "bash"], &[]).await;
    assert!(bash.code == 0 && bash.out.contains("announce") && bash.out.contains("disconnect"), "{}", bash.err);
    assert_eq!(gateway(&["completions", "cmd"], &[]).await.code, 2);
    let page = gateway(&["man"], &[]).await;
    assert!(page.code == 0 && page.out.contains(".TH gateway 1"), "{}", &page.out[..200]);
}

/// `script` gives the command a terminal.
#[tokio::test(flavor = "multi_thread")]
async fn f23_people_at_a_terminal_read_tables_and_programs_json() {
    let node = TestNode::start(&[]).await;
    node.at().api("PUT", "/api/rooms/lobby", None).await;
    let url = format!("http://{}", node.at().internal);
    let list = ["room", "list", "--api-url", &url, "--api-key", "key"];
    let at_a_terminal = async |more: &str| {
        let command = format!("{} {} {more}", env!("CARGO_BIN_EXE_gateway"), list.join(" "));
        let mut script = tokio::process::Command::new("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).kill_on_drop(true);
        let output = tokio::time::timeout(common::PATIENCE, script.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = at_a_terminal("").await;
    assert!(table.contains("DISPLAY_NAME") && !table.contains('{'), "{table}");
    let json = |text: &str| serde_json::from_str::<Value>(text.trim()).unwrap()["rooms"][0]["name"].clone();
    assert_eq!(json(&at_a_terminal("--json").await), "lobby");
    assert_eq!(json(&gateway(&list, &[]).await.out), "lobby");
}
