//! The generator for a moment, on real nodes: what it counts is what was sent.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testkit::net::free_port;
use testkit::process::{Guarded, private_dir};

const SECRET: &str = "test-secret-test-secret-test-secret";

/// The gateway that was built with this test.
fn gateway() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_gateway-bench")).with_file_name("gateway");
    assert!(binary.exists(), "{} is missing: run cargo build --package gateway", binary.display());
    binary
}

/// The rows for twenty sockets and half a second.
fn rows(arguments: &[&str]) -> Vec<Value> {
    rows_of("20", "0.5", arguments)
}

fn rows_of(sockets: &str, seconds: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-bench"));
    command.args(["--json", "--members", sockets, "--crowd", sockets, "--duration", seconds]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["rows"].as_array().unwrap().clone()
}

fn row<'a>(rows: &'a [Value], scenario: &str) -> &'a Value {
    rows.iter().find(|row| row["scenario"] == scenario).unwrap_or_else(|| panic!("no {scenario} in {rows:?}"))
}

fn positive(row: &Value, figures: &[&str]) {
    for figure in figures {
        assert!(row[figure].as_f64().is_some_and(|value| value > 0.0), "{figure} of {row}");
    }
}

fn nothing_wrong(row: &Value) {
    for fault in ["lost", "twice", "out_of_order"] {
        assert_eq!(row[fault], 0, "{fault} of {row}");
    }
}

#[test]
fn neighbours_are_let_in_and_closed_alone() {
    let gateway = gateway();
    // Fewer sockets would have to say so much each that they exceed the default limits themselves.
    // In less time a slow reader's buffers might not be full before the end.
    let rows = rows_of("1000", "2", &["--gateway", gateway.to_str().unwrap(), "--only", "slow,flood"]);
    for (scenario, code) in [("slow", "4008"), ("flood", "1008")] {
        let row = row(&rows, scenario);
        nothing_wrong(row);
        assert!(row["notes"].to_string().contains(&format!("with {code}")), "{row}");
    }
}

#[test]
fn servers_of_its_own_are_measured() {
    let gateway = gateway();
    let rows = rows(&["--gateway", gateway.to_str().unwrap(), "--only", "idle,rate-10,two-nodes-live,storm"]);
    positive(row(&rows, "connect"), &["gateway_us", "redis_us", "p99_ms", "per_second"]);
    // Of twenty sockets it may be below nothing: the allocator gives memory back meanwhile.
    assert!(row(&rows, "idle")["kib_per_socket"].is_number(), "{}", row(&rows, "idle"));
    for scenario in ["rate-10", "two-nodes-live"] {
        positive(row(&rows, scenario), &["gateway_us", "redis_us", "p50_ms", "p99_ms", "max_ms", "per_second"]);
        nothing_wrong(row(&rows, scenario));
    }
    let storm = row(&rows, "storm");
    assert_eq!(storm["sockets"], 20, "{storm}");
    let notes = storm["notes"].to_string();
    assert!(notes.contains(" 0 refused") && !notes.contains("false"), "{storm}");
    nothing_wrong(storm);
}

#[test]
fn a_node_that_runs_already_is_measured() {
    let public = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let address = public.to_string();
    let env = [
        ("GATEWAY_LISTEN", address.as_str()),
        ("GATEWAY_INTERNAL_LISTEN", "127.0.0.1:0"),
        ("GATEWAY_DATABASE_URL", "sqlite::memory:"),
        ("GATEWAY_JWT_SECRET", SECRET),
        ("GATEWAY_ROOM_POLICY", "open"),
    ];
    let node = Guarded::spawn_with(private_dir("gateway"), "KILL", &env, gateway(), ["serve"]);
    node.wait_ready(Duration::from_secs(40), || std::net::TcpStream::connect(public).is_ok());

    let url = format!("ws://{address}");
    let pid = node.pid().to_string();
    let common = ["--url", &url, "--token-secret", SECRET, "--only", "rate-10,rate-10-live,two-nodes,slow"];
    let without = rows(&common);
    // The others need a Redis, another node, and limits that are known.
    assert_eq!(without.len(), 1, "{without:?}");
    nothing_wrong(row(&without, "rate-10"));
    assert_eq!(row(&without, "rate-10")["gateway_us"], Value::Null);
    let with = rows(&[&common[..], &["--pid", &pid]].concat());
    positive(row(&with, "rate-10"), &["gateway_us", "per_second"]);
}
