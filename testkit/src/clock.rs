//! Processes whose clock is wrong.

use std::{fs, path::PathBuf};

/// What to add to a program's environment so that its wall clock is off by `offset`, such as `+2d`,
/// `+90s` or `-5s`. Time spans stay right. Panics if libfaketime is missing.
pub fn shifted(offset: &str) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", library().display().to_string()),
        ("FAKETIME", offset.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        // The name of the one above in older versions.
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

/// For programs with threads; every architecture has a directory of its own.
fn library() -> PathBuf {
    let dirs = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = dirs.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).filter(|path| path.is_file());
    found.next().expect("libfaketime is missing: run ./test.sh, or apt-get install libfaketime")
}
