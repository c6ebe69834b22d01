//! Processes whose clock is wrong.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
    process::Command,
};

use tempfile::TempDir;

/// The wall clock of one program. It may jump while the program runs. It is for programs that libfaketime's changing
/// offset does not suit, and must outlive each start of the program.
#[derive(Debug)]
pub struct ShiftedClock {
    dir: TempDir,
    offset: File,
}

impl ShiftedClock {
    /// A clock that is right. Panics if there is no C compiler.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        // Also for servers that run as somebody else.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("the directory is ours");
        let source = dir.path().join("clock.c");
        fs::write(&source, include_str!("clock.c")).expect("its source can be written");
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([dir.path().join("clock.so"), source])
            .output()
            .expect("cc is missing: run ./test.sh, or apt-get install build-essential");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let offset = File::create_new(dir.path().join("offset")).expect("the offset can be made");
        let clock = Self { dir, offset };
        clock.set(0);
        clock
    }

    /// What to put in front of the program's command.
    pub fn command(&self) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        vec!["env".into(), format!("LD_PRELOAD={}", path("clock.so")), format!("SHIFTED_CLOCK={}", path("offset"))]
    }

    /// From now on the clock is this many seconds ahead of the system's; a negative number is behind it.
    pub fn set(&self, seconds: i64) {
        let nanoseconds = seconds * 1_000_000_000;
        self.offset.write_all_at(&nanoseconds.to_ne_bytes(), 0).expect("the offset can be written");
    }
}

impl Default for ShiftedClock {
    fn default() -> Self {
        Self::new()
    }
}

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
