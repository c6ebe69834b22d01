//! Disks that get full: memory of a bounded size, mounted where only one server sees it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::process::{Guarded, private_dir};

/// Mounts in a namespace of its own, says so, and keeps it. `$1` is the directory, `$2` the size in MiB.
const HOLD: &str = r#"
mount -t tmpfs -o "size=${2}m,mode=0700" testkit "$1" && : >mounted && exec sleep infinity
"#;
const READY: Duration = Duration::from_secs(10);

/// A disk of a few MiB. Only processes that are started through it see it. It keeps its files until it is dropped. It
/// needs no root where the system lets every user make namespaces, as Debian does.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
    holder: Guarded,
    root: bool,
}

impl Disk {
    /// Mounts an empty one on a directory, which must exist.
    pub fn mount(directory: &Path, megabytes: u32) -> Self {
        let root = fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0);
        let dir = private_dir("disk");
        let (mounted, on, size) = (dir.join("mounted"), directory.display().to_string(), megabytes.to_string());
        let mut words = vec!["--mount"];
        if !root {
            words.push("--map-root-user");
        }
        words.extend(["sh", "-c", HOLD, "testkit-disk", &on, &size]);
        let holder = Guarded::spawn(dir, "unshare", words);
        if let Err(why) = holder.try_ready(READY, || mounted.exists()) {
            panic!(
                "a disk in a mount namespace needs root, or namespaces for everybody: it {why}{}",
                holder.log_tail()
            );
        }
        Self { directory: directory.to_owned(), holder, root }
    }

    /// The words in front of the command of a server that is to see it.
    pub fn command(&self) -> Vec<String> {
        let mut words = vec!["nsenter".to_owned(), format!("--target={}", self.holder.pid()), "--mount".to_owned()];
        if !self.root {
            // Who has made a namespace is root in it, which databases refuse to be.
            let words_of_nobody = ["--user", "--preserve-credentials", "unshare", "--user", "--map-user=1000"];
            words.extend(words_of_nobody.map(str::to_owned));
        }
        // It would leave the working directory of the caller, which is the server's own.
        words.extend(["env".to_owned(), format!("--chdir={}", self.working_directory().display())]);
        words
    }

    fn working_directory(&self) -> &Path {
        self.directory.parent().expect("nobody mounts over the root")
    }

    /// The directory, as everybody can reach it.
    pub fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        root.join(self.directory.strip_prefix("/").expect("an absolute path"))
    }

    /// Leaves not a byte of it.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("the disk is mounted");
        for block in [1 << 20, 4096] {
            let block = vec![0xff; block];
            let full = loop {
                if let Err(error) = filler.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        }
    }

    /// Gives back the space that [`fill`](Self::fill) took.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("the disk was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}
