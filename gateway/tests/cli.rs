//! The command line, as an operator types it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{TestNode, eventually};
use serde_json::Value;

struct Output {
    code: i32,
    out: String,
    err: String,
}

async fn gateway(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(arguments)
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

#[tokio::test]
async fn migrate_tells_what_it_did() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", directory.path().join("x.db").display());
    let env = [("GATEWAY_DATABASE_URL", url.as_str())];
    assert!(gateway(&["migrate", "status"], &env).await.out.contains("pending"));
    assert!(gateway(&["migrate"], &env).await.out.contains("applied"));
    assert!(gateway(&["migrate"], &env).await.out.contains("nothing to do"));
    assert!(!gateway(&["migrate", "status"], &env).await.out.contains("pending"));
    let output = gateway(&["check-config", "--live"], &[env[0], ("GATEWAY_JWT_SECRET", common::SECRET)]).await;
    assert_eq!(output.code, 0, "{}", output.err);
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
    assert_eq!(run(&["room", "list"]).await.1["rooms"][0]["display_name"], "Café");
    assert_eq!(run(&["room", "remove", "café", "alice"]).await.0, 0);
    assert_eq!(run(&["room", "delete", "café"]).await.0, 0);
    assert_eq!(run(&["room", "show", "café"]).await.0, 1);
    let key = [("GATEWAY_API_URL", url.as_str()), ("GATEWAY_API_KEY", "wrong")];
    assert_eq!(gateway(&["room", "list"], &key).await.code, 1);
    let down = node.at();
    node.running.drain().await;
    eventually("the node is gone", || async {
        gateway(&["healthcheck", "--api-url", &format!("http://{}", down.internal)], &[]).await.code == 1
    })
    .await;
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
