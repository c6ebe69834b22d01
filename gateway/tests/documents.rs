//! What the documents say of the tests is true.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const FAULTS: &str = include_str!("../../docs/faults.md");
const SCRIPT: &str = include_str!("../../test.sh");

/// The faults, by their letters: so many of each.
const CODES: [(char, usize); 8] = [('O', 9), ('R', 22), ('D', 15), ('N', 12), ('L', 8), ('P', 14), ('A', 14), ('S', 7)];

/// What stands where a fault has no test.
const NONE: &str = "no test";

/// All Rust files below these directories.
fn sources(directories: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut open: Vec<PathBuf> = directories.iter().map(|directory| root.join(directory)).collect();
    let mut files = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// Names of functions that are tests, or of which a macro makes tests.
fn tests() -> BTreeSet<String> {
    let crates = ["gateway", "channel-layer", "persistence", "testkit"];
    let directories: Vec<String> =
        crates.iter().flat_map(|name| [format!("{name}/src"), format!("{name}/tests")]).collect();
    let directories: Vec<&str> = directories.iter().map(String::as_str).collect();
    let mut names = BTreeSet::new();
    for file in sources(&directories) {
        let text = std::fs::read_to_string(&file).unwrap();
        let of_macro: BTreeSet<&str> = text
            .split("on_all_databases!(")
            .skip(1)
            .flat_map(|rest| rest.split(')').next().unwrap().split(','))
            .map(str::trim)
            .collect();
        let mut attribute = false;
        for line in text.lines().map(str::trim) {
            let Some(name) = function(line) else {
                attribute |= line.starts_with("#[test") || line.starts_with("#[tokio::test");
                attribute &= !line.is_empty();
                continue;
            };
            if attribute || of_macro.contains(name) {
                names.insert(name.to_owned());
            }
            attribute = false;
        }
    }
    names
}

fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// The code that a test's name begins with, such as `N4`.
fn code_of(name: &str) -> Option<String> {
    let (code, _) = name.split_once('_')?;
    let (letter, number) = (code.chars().next()?.to_ascii_uppercase(), code.get(1..)?.parse::<usize>().ok()?);
    let known = CODES.iter().any(|(known, count)| *known == letter && (1..=*count).contains(&number));
    known.then(|| format!("{letter}{number}"))
}

/// By code: what is promised, and what shows it.
fn rows() -> BTreeMap<String, (String, String)> {
    let mut rows = BTreeMap::new();
    for line in FAULTS.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [code, promise, shown] = cells[..] else { panic!("three cells: {line}") };
        if code_of(&format!("{}_", code.to_lowercase())).is_some() {
            let before = rows.insert(code.to_owned(), (promise.to_owned(), shown.to_owned()));
            assert!(before.is_none(), "{code} twice");
        }
    }
    rows
}

#[test]
fn every_fault_has_a_line_and_every_test_named_there_exists() {
    let (rows, tests) = (rows(), tests());
    let mut wrong = Vec::new();
    for (letter, count) in CODES {
        for code in (1..=count).map(|number| format!("{letter}{number}")) {
            let Some((promise, shown)) = rows.get(&code) else {
                wrong.push(format!("{code} is missing"));
                continue;
            };
            let named: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
            if promise.is_empty() || named.is_empty() != (shown == NONE) {
                wrong.push(format!("{code} needs a promise, and tests or {NONE:?}"));
            }
            for name in named {
                let exists = match name.strip_prefix("test.sh ") {
                    Some(check) => SCRIPT.contains(&format!("check {check} ")),
                    None => tests.contains(name),
                };
                if !exists {
                    wrong.push(format!("{code} names {name}, which is no test"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "docs/faults.md: {wrong:#?}");
}

#[test]
fn every_test_with_a_code_in_its_name_is_in_the_line_of_that_fault() {
    let rows = rows();
    let missing: Vec<String> = tests()
        .into_iter()
        .filter_map(|name| Some((code_of(&name)?, name)))
        .filter(|(code, name)| rows.get(code).is_none_or(|(_, shown)| !shown.contains(&format!("`{name}`"))))
        .map(|(code, name)| format!("{code}: {name}"))
        .collect();
    assert!(missing.is_empty(), "docs/faults.md does not name {missing:#?}");
}

/// What stands between backquotes, without blocks of code.
fn spans(text: &str) -> Vec<String> {
    let mut in_block = false;
    let prose = text.lines().filter(|line| {
        let is_fence = line.trim_start().trim_start_matches("//!").trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_rust_file_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let directories = ["gateway", "channel-layer", "persistence", "testkit", "bench"];
    let directories = directories.map(|name| [format!("{name}/src"), format!("{name}/tests")]).concat();
    let mut directories: Vec<&str> = directories.iter().map(String::as_str).collect();
    directories.extend(["gateway/examples", "gateway/testing/src", "persistence/benches", "channel-layer/benches"]);
    let files: Vec<String> = sources(&directories).iter().map(|path| path.display().to_string()).collect();
    let roots = ["gateway/src/lib.rs", "persistence/src/lib.rs", "channel-layer/src/lib.rs"];
    let mut wrong = Vec::new();
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/limits.md"].into_iter().chain(roots) {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let is_rust = document.ends_with(".rs");
        let text: String =
            text.lines().filter(|line| !is_rust || line.starts_with("//!")).flat_map(|line| [line, "\n"]).collect();
        let named = spans(&text).into_iter().filter(|span| span.ends_with(".rs") && !span.contains([' ', '*']));
        let missing = named.filter(|name| !files.iter().any(|file| file.ends_with(&format!("/{name}"))));
        wrong.extend(missing.map(|name| format!("{document}: {name}")));
    }
    assert!(wrong.is_empty(), "no such files: {wrong:#?}");
}
