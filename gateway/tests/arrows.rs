//! Which parts of the crates may use which: read from the sources. A part is a folder, or a file beside the folders.
//!
//! The lists say what is so today, to the letter: an arrow too many fails, and so does one that is gone and still
//! listed. To take an arrow away is always right; to add one is a question to ask first.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A part, and the parts that it uses.
type Arrows = BTreeMap<String, BTreeSet<String>>;

const GATEWAY: &str = include_str!("arrows/gateway.txt");
const CHANNEL_LAYER_REDIS: &str = include_str!("arrows/channel-layer-redis.txt");
const PERSISTENCE: &str = include_str!("arrows/persistence.txt");

/// The lines `part: used used`; what stands behind `circle:` are the parts that use each other in a circle.
fn listed(text: &str) -> (Arrows, BTreeSet<String>) {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut arrows: Arrows = lines
        .map(|line| {
            let (part, used) = line.split_once(':').unwrap();
            (part.to_owned(), used.split_whitespace().map(str::to_owned).collect())
        })
        .collect();
    let circle = arrows.remove("circle").unwrap_or_default();
    (arrows, circle)
}

/// The arrows between the parts of a folder. `path` is how its modules are named: `crate` or `crate::redis`.
fn read(folder: &str, path: &str) -> Arrows {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let parts: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|part| !matches!(part.as_str(), "lib" | "main" | "mod"))
        .collect();
    let mut arrows = Arrows::new();
    for part in &parts {
        let mut used = BTreeSet::new();
        let (file, inner) = (folder.join(format!("{part}.rs")), folder.join(part));
        if file.is_file() {
            uses(&std::fs::read_to_string(file).unwrap(), path, 0, &mut used);
        }
        if inner.is_dir() {
            uses_of_folder(&inner, path, 1, &mut used);
        }
        used.remove(part);
        used.retain(|used| parts.contains(used));
        arrows.insert(part.clone(), used);
    }
    arrows
}

fn uses_of_folder(folder: &Path, path: &str, depth: usize, used: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
        if entry.is_dir() {
            uses_of_folder(&entry, path, depth + 1, used);
        } else if name.ends_with(".rs") && !name.contains("tests") {
            // A `mod.rs` is the folder itself.
            let depth = if name == "mod.rs" { depth - 1 } else { depth };
            uses(&std::fs::read_to_string(entry).unwrap(), path, depth, used);
        }
    }
}

/// Notes what follows `path` in the code: in `use` lines, also those with a list in braces, and in between. `super` leads
/// out of a file that is `depth` folders deep.
fn uses(code: &str, path: &str, depth: usize, used: &mut BTreeSet<String>) {
    // Tests stand at the end and may use anything.
    let code = code.split("\n#[cfg(test)]\nmod ").next().unwrap();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let inner: Vec<&str> = path.split("::").skip(1).collect();
    let out = "super::".repeat(depth + 1);
    for (prefix, inner) in [("crate::", inner.as_slice()), (out.as_str(), [].as_slice())] {
        let mut rest = code.as_str();
        while let Some(at) = rest.find(prefix) {
            let before = rest[..at].chars().next_back();
            rest = &rest[at + prefix.len()..];
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            behind(rest, inner, used);
        }
    }
}

/// Notes the words behind a path, which may be within lists: the `a` of `path::a`, of `path::{a, …}`, of `{path::a, …}`.
fn behind(code: &str, path: &[&str], used: &mut BTreeSet<String>) {
    if let Some(list) = code.strip_prefix('{') {
        return items(list).into_iter().for_each(|item| behind(item, path, used));
    }
    match path {
        [] => used.extend(word(code)),
        [first, path @ ..] => {
            if let Some(code) = code.strip_prefix(first).and_then(|code| code.strip_prefix("::")) {
                behind(code, path, used);
            }
        }
    }
}

fn word(code: &str) -> Option<String> {
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    (end > 0).then(|| code[..end].to_owned())
}

/// Where the items of a list in braces begin.
fn items(list: &str) -> Vec<&str> {
    let (mut depth, mut begins, mut items) = (0, true, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if c.is_whitespace() => {}
            _ if begins => {
                items.push(&list[at..]);
                begins = false;
            }
            _ => {}
        }
    }
    items
}

/// The parts that lead back to themselves.
fn circle(arrows: &Arrows) -> BTreeSet<String> {
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(part) = next.pop() {
            for used in &arrows[&part] {
                if seen.insert(used.clone()) {
                    next.push(used.clone());
                }
            }
        }
        seen
    };
    arrows.keys().filter(|part| reached(part).contains(*part)).cloned().collect()
}

fn printed(arrows: &Arrows, circle: &BTreeSet<String>) -> String {
    let list = |used: &BTreeSet<String>| used.iter().map(|used| format!(" {used}")).collect::<String>();
    let lines = arrows.iter().map(|(part, used)| format!("{part}:{}\n", list(used))).collect::<String>();
    format!("circle:{}\n\n{lines}", list(circle))
}

fn holds(list: &str, folder: &str, path: &str) {
    let (arrows, (allowed, in_circle)) = (read(folder, path), listed(list));
    let circle = circle(&arrows);
    let is = |sign: &str, one: &Arrows, other: &Arrows| {
        let arrows = one.iter().flat_map(|(part, used)| used.iter().map(move |used| (part, used)));
        let more = arrows.filter(|(part, used)| !other.get(*part).is_some_and(|list| list.contains(*used)));
        more.map(|(part, used)| format!("{sign} {part} -> {used}\n")).collect::<String>()
    };
    let differs = is("new:", &arrows, &allowed) + &is("gone:", &allowed, &arrows);
    let all = printed(&arrows, &circle);
    assert!(differs.is_empty() && arrows.len() == allowed.len(), "{folder}\n{differs}\nall of it:\n{all}");
    assert_eq!(circle, in_circle, "{folder}: the circle is another\n{all}");
}

#[test]
fn the_arrows_of_the_gateway_are_the_listed_ones() {
    holds(GATEWAY, "gateway/src", "crate");
}

#[test]
fn the_arrows_of_the_layer_on_redis_are_the_listed_ones() {
    holds(CHANNEL_LAYER_REDIS, "channel-layer/src/redis", "crate::redis");
}

#[test]
fn the_arrows_of_the_store_are_the_listed_ones() {
    holds(PERSISTENCE, "persistence/src", "crate");
}

#[test]
fn arrows_are_read_however_they_are_written() {
    let mut used = BTreeSet::new();
    let code = "use crate::{\n    a::{self, b::c},\n    d as e, f::*,\n};\nuse crate::g::H;\n// crate::comment\nfn x() -> crate::i::J {\n\
                other_crate::k(super::l::m(), super::super::n::o) }\n\n#[cfg(test)]\nmod tests { use crate::p; }";
    uses(code, "crate", 1, &mut used);
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["a", "d", "f", "g", "i", "n"]);
    let mut used = BTreeSet::new();
    let code = "use crate::{\n    Other, inner::{a::b, c}, other::{inner::d},\n};\nuse crate::inner::e;\nuse crate::f;";
    uses(code, "crate::inner", 1, &mut used);
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["a", "c", "e"]);
}
