//! Cgroups with a limit of memory. To a server they are what a container or a unit with a limit is.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::process::private_dir;

const MISSING: &str = "a cgroup with a limit of its memory needs root, and a memory controller that may be used: \
    /sys/fs/cgroup/memory (version 1), or \"memory\" in the cgroup.subtree_control of the process's cgroup or of one that \
    it is in (version 2). Run the tests as root (sudo -E ./test.sh), in a container with --privileged";

/// A cgroup of a test's own. Drop it after the processes in it.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    v2: bool,
}

impl Cgroup {
    /// Makes one with this much memory, and no swap.
    pub fn with_memory(bytes: u64) -> Self {
        let (parent, v2) = parent().unwrap_or_else(|| panic!("{MISSING}"));
        // For its name, which no other cgroup has.
        let name = private_dir("cgroup");
        let directory = parent.join(name.file_name().expect("a directory has a name"));
        let _ = fs::remove_dir(&name);
        fs::create_dir(&directory).unwrap_or_else(|error| panic!("{MISSING}: {}: {error}", directory.display()));
        let cgroup = Self { directory, v2 };
        let (limit, no_swap) = if v2 {
            ("memory.max", ("memory.swap.max", "0"))
        } else {
            ("memory.limit_in_bytes", ("memory.swappiness", "0"))
        };
        fs::write(cgroup.directory.join(limit), bytes.to_string()).unwrap_or_else(|error| panic!("{MISSING}: {error}"));
        // A kernel without swap has no such file.
        let _ = fs::write(cgroup.directory.join(no_swap.0), no_swap.1);
        cgroup
    }

    /// The words in front of the command of a server that is to be in it.
    pub fn command(&self) -> Vec<String> {
        let enter = format!("echo $$ >'{}' && exec \"$@\"", self.directory.join("cgroup.procs").display());
        ["sh", "-c", &enter, "sh"].map(str::to_owned).to_vec()
    }

    /// How often the kernel has killed somebody in it for want of memory.
    pub fn kills(&self) -> u64 {
        let (file, field) = if self.v2 { ("memory.events", "oom_kill ") } else { ("memory.oom_control", "oom_kill ") };
        let text = self.read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// The most that was ever taken of it, in bytes.
    pub fn peak(&self) -> u64 {
        let text = self.read(if self.v2 { "memory.peak" } else { "memory.max_usage_in_bytes" });
        text.trim().parse().unwrap_or(0)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The dead leave it a moment after they have died.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.directory).is_err() && self.directory.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A directory in which a cgroup can be made, and whether it is one of version 2.
fn parent() -> Option<(PathBuf, bool)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = |controller: &str| {
        let line = groups.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(controller)?.strip_prefix(':'));
        line.map(|path| path.trim_start_matches('/').to_owned())
    };
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if let Some(own) = own("memory").filter(|_| v1.join("cgroup.procs").exists()) {
        return Some((Some(v1.join(own)).filter(|path| path.exists()).unwrap_or(v1.to_owned()), false));
    }
    let root = Path::new("/sys/fs/cgroup");
    let mine = root.join(own("")?);
    let may = |path: &&Path| {
        let controllers = fs::read_to_string(path.join("cgroup.subtree_control")).unwrap_or_default();
        path.starts_with(root) && controllers.split_whitespace().any(|one| one == "memory")
    };
    mine.ancestors().find(may).map(|path| (path.to_owned(), true))
}
