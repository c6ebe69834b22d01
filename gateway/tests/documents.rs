//! What the documents say of the tests is true.
//!
//! `docs/faults.md` is made of `documents/faults.toml` and of the tests there are:
//! `GATEWAY_WRITE_DOCUMENTS=1 cargo test -p gateway --test documents` writes it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/faults.md");
const SCRIPT: &str = include_str!("../../test.sh");

/// The faults, by their letters: their number, and what they are called together.
const CODES: [(char, usize, &str); 9] = [
    ('R', 22, "Redis and the channel layer"),
    ('D', 15, "Database"),
    ('N', 12, "Nodes"),
    ('L', 8, "Networks and balancers"),
    ('P', 14, "The protocol"),
    ('A', 18, "Sign-in, rights and data"),
    ('O', 9, "What an operator is told"),
    ('S', 7, "Coming back"),
    ('F', 24, "First days: what strangers and newcomers met"),
];

const HEAD: &str = "\
# Faults and abuse

What a site has to survive, what is promised, and the tests that show it. `full`: tests show all of
the promise. `part`: the line says what they do not show, and why. `none`: no test, and the reason.
Tests marked † do their full measure, or run at all, only with `GATEWAY_LONG=1`. A name without a
file is a Rust test. A name behind a file is a test of the browser client (`clients/js/test`) or of
the Django app (`clients/django/tests`). `test.sh \"…\"` is a check of that script.

This page is made of `gateway/tests/documents/faults.toml` and of the tests there are, by
`GATEWAY_WRITE_DOCUMENTS=1 cargo test -p gateway --test documents`. A test whose name begins with a
code stands in the line of that fault by itself.

What nodes take under load and faults they give back. These are three nodes in ten minutes, with
clients that come and go; `what_nodes_take_in_ten_minutes_of_load_and_faults_is_given_back` compares
before and after, and draws:

![sockets, memory, open files and tasks of three nodes over ten minutes](soak.svg)
";

/// What is said of a fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    promise: String,
    /// Tests besides those whose names begin with the code.
    #[serde(default)]
    shown: Vec<String>,
    lacks: Option<String>,
}

/// All Rust files below these directories.
fn sources(directories: &[&str]) -> Vec<PathBuf> {
    files_of(directories, "rs")
}

fn files_of(directories: &[&str], wanted: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut open: Vec<PathBuf> = directories.iter().map(|directory| root.join(directory)).collect();
    let mut files = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == wanted) {
                files.push(path);
            }
        }
    }
    files
}

/// Every test by the name that `documents/faults.toml` gives it, and whether it asks for the long run.
fn tests() -> BTreeMap<String, bool> {
    let mut names = rust_tests();
    for (directory, extension, tests_of) in [
        ("clients/js/test", "mjs", javascript_tests as fn(&str) -> Vec<String>),
        ("clients/django/tests", "py", python_tests),
    ] {
        for path in files_of(&[directory], extension) {
            let file = path.file_name().unwrap().to_str().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            names.extend(tests_of(&text).into_iter().map(|test| (format!("{file}: {test}"), false)));
        }
    }
    names
}

/// The titles of `test("…")`, `it("…")` and `step("…")`, as they are written: one with a variable keeps its `${…}`.
fn javascript_tests(text: &str) -> Vec<String> {
    let mut titles = Vec::new();
    for call in ["test(", "it(", "step("] {
        for (at, _) in text.match_indices(call) {
            let is_a_longer_name =
                text[..at].ends_with(|before: char| before.is_alphanumeric() || ['_', '.', '$'].contains(&before));
            let title = &text[at + call.len()..];
            let Some(quote) = title.chars().next().filter(|first| ['"', '\'', '`'].contains(first)) else { continue };
            if !is_a_longer_name {
                titles.extend(title[1..].split(quote).next().map(str::to_owned));
            }
        }
    }
    titles
}

fn python_tests(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim_start).map(|line| line.strip_prefix("async ").unwrap_or(line));
    let functions = lines.filter_map(|line| line.strip_prefix("def ")?.split('(').next());
    functions.filter(|name| name.starts_with("test_")).map(str::to_owned).collect()
}

/// Names of functions that are tests, or of which a macro makes tests, and whether they ask for the long run.
fn rust_tests() -> BTreeMap<String, bool> {
    let crates = ["gateway", "gateway/testing", "channel-layer", "persistence", "testkit"];
    let directories: Vec<String> =
        crates.iter().flat_map(|name| [format!("{name}/src"), format!("{name}/tests")]).collect();
    let directories: Vec<&str> = directories.iter().map(String::as_str).collect();
    let mut names = BTreeMap::new();
    for file in sources(&directories) {
        let text = std::fs::read_to_string(&file).unwrap();
        let of_macro: BTreeSet<&str> = text
            .split("on_all_databases!(")
            .skip(1)
            .flat_map(|rest| rest.split(')').next().unwrap().split(','))
            .map(str::trim)
            .collect();
        let mut attribute = false;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let (indent, line) = (line.len() - line.trim_start().len(), line.trim());
            let Some(name) = function(line) else {
                attribute |= line.starts_with("#[test") || line.starts_with("#[tokio::test");
                attribute &= !line.is_empty();
                continue;
            };
            if attribute || of_macro.contains(name) {
                let end = format!("{}}}", " ".repeat(indent));
                let is_long = lines.by_ref().take_while(|line| *line != end).any(asks_for_long_run);
                names.insert(name.to_owned(), is_long);
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

fn asks_for_long_run(line: &str) -> bool {
    ["var_os(\"GATEWAY_LONG\")", "if long()", "if !long()", "is_long()"].iter().any(|asks| line.contains(asks))
}

/// The code that a test's name begins with, such as `N4`.
fn code_of(name: &str) -> Option<String> {
    let (code, _) = name.split_once('_')?;
    let (letter, number) = (code.chars().next()?.to_ascii_uppercase(), code.get(1..)?.parse::<usize>().ok()?);
    let known = CODES.iter().any(|(known, count, _)| *known == letter && (1..=*count).contains(&number));
    known.then(|| format!("{letter}{number}"))
}

/// What the page has to say, or what is wrong with what it is made of.
fn page(faults: &BTreeMap<String, Fault>, tests: &BTreeMap<String, bool>) -> Result<String, Vec<String>> {
    let mut wrong = Vec::new();
    let known: BTreeSet<String> = CODES
        .iter()
        .flat_map(|(letter, count, _)| (1..=*count).map(move |number| format!("{letter}{number}")))
        .collect();
    wrong.extend(faults.keys().filter(|code| !known.contains(*code)).map(|code| format!("{code} is no code")));
    let (mut sections, mut counts) = (String::new(), BTreeMap::<&str, usize>::new());
    for (letter, count, title) in CODES {
        write!(sections, "\n## {title}\n\n| code | shown | promise | by |\n| --- | --- | --- | --- |\n").unwrap();
        for code in (1..=count).map(|number| format!("{letter}{number}")) {
            let Some(Fault { promise, shown, lacks }) = faults.get(&code) else {
                wrong.push(format!("{code} is missing"));
                continue;
            };
            let own = tests.keys().filter(|name| code_of(name).as_ref() == Some(&code));
            let mut by: Vec<String> = Vec::new();
            for name in own.chain(shown) {
                let is_long = match name.strip_prefix("test.sh ") {
                    Some(check) => SCRIPT.contains(&format!("check {check} ")).then_some(false),
                    None => tests.get(name).copied(),
                };
                match is_long {
                    None => wrong.push(format!("{code} names {name}, which is no test")),
                    Some(is_long) => by.push(format!("`{name}`{}", if is_long { " †" } else { "" })),
                }
            }
            if let Some(name) = shown.iter().find(|name| code_of(name).as_ref() == Some(&code)) {
                wrong.push(format!("{code} need not name {name}"));
            }
            let degree = match (by.is_empty(), lacks) {
                (false, None) => "full",
                (false, Some(_)) => "part",
                (true, Some(_)) => "none",
                (true, None) => {
                    wrong.push(format!("{code} needs a test, or a reason (lacks)"));
                    continue;
                }
            };
            *counts.entry(degree).or_default() += 1;
            let lacks = lacks.as_ref().map(|lacks| format!(". Not shown: {lacks}")).unwrap_or_default();
            writeln!(sections, "| {code} | {degree} | {promise}{lacks} | {} |", by.join(", ")).unwrap();
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let count = |degree| counts.get(degree).copied().unwrap_or_default();
    let all = counts.values().sum::<usize>();
    let (full, part, none) = (count("full"), count("part"), count("none"));
    Ok(format!("{HEAD}\nOf {all} faults {full} are shown in full, {part} in part, {none} not.\n{sections}"))
}

#[test]
fn every_fault_has_tests_or_a_reason_and_the_page_says_so() {
    let faults: BTreeMap<String, Fault> = toml::from_str(include_str!("documents/faults.toml")).unwrap();
    let wanted = match page(&faults, &tests()) {
        Ok(page) => page,
        Err(wrong) => panic!("documents/faults.toml: {wrong:#?}"),
    };
    let has = std::fs::read_to_string(DOCUMENT).unwrap();
    if has != wanted && std::env::var_os("GATEWAY_WRITE_DOCUMENTS").is_some() {
        std::fs::write(DOCUMENT, wanted).unwrap();
        return;
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (has_lines, wants) = (lines(&has), lines(&wanted));
    let (missing, gone): (Vec<_>, Vec<_>) =
        (wants.difference(&has_lines).collect(), has_lines.difference(&wants).collect());
    assert!(
        has == wanted,
        "docs/faults.md: GATEWAY_WRITE_DOCUMENTS=1 writes it anew. Missing: {missing:#?} Gone: {gone:#?}"
    );
}

#[test]
fn a_fault_without_tests_needs_a_reason_and_tests_that_do_not_exist_are_told() {
    let fault = |shown: &[&str], lacks: Option<&str>| Fault {
        promise: "it is survived".to_owned(),
        shown: shown.iter().map(|name| (*name).to_owned()).collect(),
        lacks: lacks.map(str::to_owned),
    };
    let every = || -> BTreeMap<String, Fault> {
        let codes = CODES.iter().flat_map(|(letter, count, _)| (1..=*count).map(move |number| (letter, number)));
        codes.map(|(letter, number)| (format!("{letter}{number}"), fault(&[], Some("a reason")))).collect()
    };
    let tests = BTreeMap::from([("d3_one".to_owned(), false), ("other".to_owned(), true)]);
    let mut faults = every();
    faults.insert("D3".to_owned(), fault(&["other"], None));
    faults.insert("D4".to_owned(), fault(&["other"], Some("a half")));
    let made = page(&faults, &tests).unwrap();
    assert!(made.contains("| D3 | full | it is survived | `d3_one`, `other` † |\n"), "{made}");
    assert!(made.contains("| D4 | part | it is survived. Not shown: a half | `other` † |\n"), "{made}");
    assert!(made.contains("| D5 | none | it is survived. Not shown: a reason |  |\n"), "{made}");
    faults.insert("D5".to_owned(), fault(&[], None));
    faults.insert("D6".to_owned(), fault(&["gone"], Some("x")));
    faults.insert("X1".to_owned(), fault(&["other"], None));
    faults.remove("S7");
    let wrong = page(&faults, &tests).unwrap_err();
    for part in ["D5 needs a test", "D6 names gone", "X1 is no code", "S7 is missing"] {
        assert!(wrong.iter().any(|line| line.contains(part)), "{part}: {wrong:?}");
    }
}

#[test]
fn tests_of_the_clients_are_found_by_their_titles_and_names() {
    let text = "test(\"one's own\", async () => {\n  test(`after ${code}`, () => {});\n await step('a step', run);\n \
                await(\"no\"); /x/.test(\"no\"); visit(\"no\"); it(name)";
    assert_eq!(javascript_tests(text), ["one's own", "after ${code}", "a step"]);
    let text = "class A:\n    def test_one(self):\n    async def test_two(self):\n    def helper():\n# def test_no";
    assert_eq!(python_tests(text), ["test_one", "test_two"]);
    let tests = tests();
    for name in ["client.test.mjs: comes back after ${code}", "browser.mjs: signing out ends it"] {
        assert!(tests.contains_key(name), "{name}");
    }
    assert!(tests.contains_key("test_names.py: test_groups_of_users_and_rooms"));
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
