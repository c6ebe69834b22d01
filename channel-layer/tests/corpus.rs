//! The stored inputs of the fuzz targets go through the same checks in every test run.
#![allow(clippy::unwrap_used, reason = "tests")]

mod golden;

use std::{fs, path::PathBuf};

use channel_layer::{Event, Text, Value, fuzzing};
use golden::{argument, bytes, list, vectors};
use serde_json::Value as Json;

fn directory(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus", target].iter().collect()
}

#[test]
fn every_stored_input_keeps_the_rules() {
    for (target, check) in fuzzing::TARGETS {
        let mut checked = 0;
        for entry in fs::read_dir(directory(target)).unwrap() {
            check(&fs::read(entry.unwrap().path()).unwrap());
            checked += 1;
        }
        assert!(checked >= 20, "{checked} for {target}");
    }
}

/// Short payloads of a section: what a fuzzer starts from is better small.
fn payloads(vectors: &Json, format: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for section in ["encode", "unusual", "foreign"] {
        for case in list(vectors, &format!("{format}.{section}")) {
            if let Some(hex) = case["payload"]["hex"].as_str() {
                found.push((format!("{section}-{}", case["name"].as_str().unwrap()), bytes(hex)));
            }
        }
    }
    found.retain(|(_, payload)| payload.len() <= 600);
    found
}

/// Payloads of the core layer, without their random prefix.
fn routed(vectors: &Json) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for section in ["core_one_host", "core_four_hosts"] {
        let commands = list(vectors, section).iter().flat_map(|step| list(step, "commands"));
        for args in
            commands.map(|command| &command["args"]).filter(|args| args[0] == "ZADD" && args[3]["hex"].is_string())
        {
            let member = argument(&args[3]);
            let prefix = member.iter().take_while(|byte| **byte == member[0]).count();
            found.push((format!("{section}-{}", found.len()), member[prefix..].to_vec()));
        }
    }
    let long: Vec<(Text, Value)> = (0..15).map(|n| (n.to_string().into(), Value::from(n))).collect();
    let event = Event::try_from(Value::Map(long)).unwrap();
    for (name, route) in
        [("one", Value::from("a!b")), ("list", vec!["a!b".into(), Value::from("c")].into()), ("other", 5.into())]
    {
        let event = event.clone().with("__asgi_channel__", route);
        found.push((format!("msgpack-{name}"), event.to_msgpack().unwrap()));
        found.push((format!("json-{name}"), event.to_json().unwrap()));
    }
    found
}

#[test]
#[ignore = "writes the corpus anew"]
fn make_the_corpus_of_the_golden_vectors() {
    let vectors = vectors();
    for (target, _) in fuzzing::TARGETS {
        let inputs = match target {
            "msgpack" | "json" => payloads(&vectors, target),
            "fernet" => {
                let tokens = list(&vectors, "fernet.tokens").iter().enumerate();
                let tokens =
                    tokens.map(|(n, case)| (format!("token-{n}"), case["token_ascii"].as_str().unwrap().into()));
                tokens.chain(payloads(&vectors, "msgpack")).collect()
            }
            "names" => {
                let names = list(&vectors, "names").iter().enumerate();
                let names = names.map(|(n, case)| (format!("name-{n}"), case["name"].as_str().unwrap().into()));
                let globs = vectors["capacity"]["globs_in_order"].as_array().unwrap().iter().enumerate();
                let globs = globs
                    .map(|(n, glob)| (format!("glob-{n}"), format!("{}\nchat-1", glob[0].as_str().unwrap()).into()));
                names.chain(globs).collect()
            }
            "routed" => routed(&vectors),
            other => panic!("no inputs for {other}"),
        };
        fs::create_dir_all(directory(target)).unwrap();
        for (name, input) in inputs {
            fs::write(directory(target).join(name), input).unwrap();
        }
    }
}
