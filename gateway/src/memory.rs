//! The process's memory and its limit: the settings', or what the cgroup allows. `upkeep/memory.rs` looks at it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

/// Looks that what was given back has to be seen in, before more readers go. Not if it goes on rising.
const PATIENCE: u32 = 3;

/// The limit of the process's memory, and how it stands.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    /// Bytes; 0 is none.
    limit: u64,
    /// Where the limit is from; others may take of it too.
    cgroup: Option<Cgroup>,
    over: AtomicBool,
    wanted: Notify,
}

impl MemoryLimit {
    /// Of the settings, or nine tenths of what the cgroup allows.
    pub(crate) fn of(configured: u64) -> Self {
        let cgroup = if configured == 0 { Cgroup::own() } else { None };
        let limit = cgroup.as_ref().map_or(configured, Cgroup::share);
        if limit > 0 {
            let from = cgroup.as_ref().map_or("limits.memory_bytes", |_| "the cgroup");
            tracing::info!(limit, from, "memory is limited");
        }
        Self { limit, cgroup, over: AtomicBool::new(false), wanted: Notify::new() }
    }

    /// Whether there is no memory for more sockets.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// From now on there is, or there is not.
    pub(crate) fn set_over(&self, is_over: bool) {
        self.over.store(is_over, Ordering::Relaxed);
    }

    /// Bytes; 0 is no limit.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that others take of the cgroup's limit, if it is that and can be read. `own` are this process's.
    pub(crate) fn outside(&self, own: u64) -> Option<u64> {
        Some(self.cgroup.as_ref()?.used()?.saturating_sub(own))
    }

    /// Has the allocator give back what it can.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits until the allocator is to give back what it can.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

/// What has become of it over several looks.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    /// Since when it is over, and how often that has been seen.
    over: Option<(Instant, u64)>,
    pub(crate) closed: u64,
    /// Looks until more readers go, and the memory then.
    wait: u32,
    at: u64,
}

/// What a look says.
pub(crate) enum Look {
    Under,
    Begins,
    /// Still: so many bytes have to be given back now.
    Over {
        excess: u64,
        looks: u64,
    },
    Ends {
        since: Instant,
        closed: u64,
    },
}

impl Pressure {
    pub(crate) fn look(&mut self, used: u64, limit: u64) -> Look {
        // It ends a little under the limit, or it would begin again at once.
        let low = limit / 16 * 15;
        let Some((since, looks)) = &mut self.over else {
            if used <= limit {
                return Look::Under;
            }
            *self = Self { over: Some((Instant::now(), 0)), closed: 0, wait: PATIENCE, at: used };
            return Look::Begins;
        };
        if used < low {
            let ends = Look::Ends { since: *since, closed: self.closed };
            self.over = None;
            return ends;
        }
        *looks += 1;
        let looks = *looks;
        let rises = used > self.at + limit / 64;
        if used <= limit || (self.wait > 0 && !rises) {
            self.wait = self.wait.saturating_sub(1);
            return Look::Over { excess: 0, looks };
        }
        (self.wait, self.at) = (PATIENCE, used);
        Look::Over { excess: used - low, looks }
    }
}

/// The memory of this process in bytes.
pub(crate) struct Resident {
    pub(crate) all: u64,
    /// Without what is mapped from files.
    pub(crate) own: u64,
}

impl Resident {
    pub(crate) fn now() -> Option<Self> {
        Self::of(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn of(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let all = field("VmRSS:")?;
        Some(Self { all, own: field("RssAnon:").unwrap_or(all) })
    }
}

/// The cgroup, this process's or one that it is in, whose limit is the least.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cgroup {
    directory: PathBuf,
    limit: u64,
    files: &'static Files,
}

/// What the files of a cgroup are called.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    filesystem: &'static str,
    limit: &'static str,
    used: &'static str,
    /// What the kernel takes back by itself, in `memory.stat`.
    reclaimable: &'static [&'static str],
}

const V2: Files = Files {
    filesystem: "cgroup2",
    limit: "memory.max",
    used: "memory.current",
    reclaimable: &["file", "slab_reclaimable"],
};
const V1: Files = Files {
    filesystem: "cgroup",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: &["total_cache"],
};

/// Version 1 says no limit with a number near the largest.
const NO_LIMIT: u64 = 1 << 60;

/// What the process may take where the settings name no limit; `None` where its cgroup has none either.
pub(crate) fn limit_here() -> Option<u64> {
    Cgroup::own().as_ref().map(Cgroup::share)
}

impl Cgroup {
    /// Nine tenths: the kernel ends a process that takes all.
    fn share(&self) -> u64 {
        self.limit / 10 * 9
    }

    fn own() -> Option<Self> {
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        Self::find(&read(Path::new("/proc/self/cgroup"))?, &read(Path::new("/proc/self/mountinfo"))?, read)
    }

    /// `groups` and `mounts` are what `/proc` says of the process.
    fn find(groups: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<Self> {
        let found = [&V2, &V1].into_iter().flat_map(|files| {
            let mounted = files.mounted(groups, mounts);
            let directories = mounted.iter().flat_map(|(mount, directory)| {
                directory.ancestors().take_while(move |at| at.starts_with(mount)).map(Path::to_owned)
            });
            let read = &read;
            let limited = directories.filter_map(move |directory| {
                let limit = read(&directory.join(files.limit))?.trim().parse().ok()?;
                (limit < NO_LIMIT).then_some(Self { directory, limit, files })
            });
            limited.collect::<Vec<_>>()
        });
        found.min_by_key(|cgroup| cgroup.limit)
    }

    /// Bytes that are taken by all that are in it and that the kernel cannot simply take back; its own for their
    /// sockets are among them.
    fn used(&self) -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(self.directory.join(name)).ok();
        let used: u64 = read(self.files.used)?.trim().parse().ok()?;
        Some(used.saturating_sub(self.files.reclaimable(&read("memory.stat")?)))
    }
}

impl Files {
    /// Where the hierarchy is mounted, and the process's directory in it.
    fn mounted(&self, groups: &str, mounts: &str) -> Option<(PathBuf, PathBuf)> {
        let is_v2 = self.filesystem == V2.filesystem;
        let own = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let ours = if is_v2 { controllers.is_empty() } else { controllers.split(',').any(|one| one == "memory") };
            ours.then_some(path)
        })?;
        mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, mount) = (before.next()?, PathBuf::from(before.next()?));
            let mut after = after.split(' ');
            let options = after.clone().nth(2)?;
            let ours = after.next()? == self.filesystem && (is_v2 || options.split(',').any(|one| one == "memory"));
            if !ours {
                return None;
            }
            // In a container the mount may show a part of the hierarchy only, while the path is the whole one; what
            // cannot be seen from here is above the mount.
            let below = Path::new(own).strip_prefix(root).unwrap_or(Path::new(""));
            Some((mount.clone(), mount.join(below)))
        })
    }

    fn reclaimable(&self, stat: &str) -> u64 {
        let fields = stat.lines().filter_map(|line| line.split_once(' '));
        let ours = fields.filter(|(name, _)| self.reclaimable.contains(name));
        ours.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_V1: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const MOUNTS_V2: &str = "28 23 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn found(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<(String, u64)> {
        let read =
            |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| text.to_string());
        Cgroup::find(groups, mounts, read).map(|cgroup| (cgroup.directory.display().to_string(), cgroup.limit))
    }

    #[test]
    fn the_least_limit_of_a_cgroup_and_those_it_is_in_counts() {
        let v1 = "9:name=systemd:/\n4:memory:/site/node\n3:cpuset:/\n0::/\n";
        let none = "9223372036854771712\n";
        let own = ("/sys/fs/cgroup/memory/site/node/memory.limit_in_bytes", "300\n");
        let site = ("/sys/fs/cgroup/memory/site/memory.limit_in_bytes", "200\n");
        let root = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", none);
        assert_eq!(found(v1, MOUNTS_V1, &[own, root]).unwrap().1, 300);
        assert_eq!(found(v1, MOUNTS_V1, &[own, site, root]), Some(("/sys/fs/cgroup/memory/site".to_owned(), 200)));
        assert_eq!(found(v1, MOUNTS_V1, &[root]), None);

        let v2 = "0::/system.slice/gateway.service\n";
        let own = ("/sys/fs/cgroup/system.slice/gateway.service/memory.max", "max\n");
        let slice = ("/sys/fs/cgroup/system.slice/memory.max", "268435456\n");
        assert_eq!(found(v2, MOUNTS_V2, &[own]), None);
        assert_eq!(found(v2, MOUNTS_V2, &[own, slice]).unwrap().1, 268_435_456);
    }

    #[test]
    fn in_a_container_the_mount_is_the_cgroup() {
        // Version 1 without a namespace of its own: the path is the host's, and so is the root of the mount.
        let mounts = "70 60 0:32 /docker/4711 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let limit = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "512\n");
        assert_eq!(found("4:memory:/docker/4711\n", mounts, &[limit]).unwrap().1, 512);
        // Version 2 with one: the path is the root.
        assert_eq!(found("0::/\n", MOUNTS_V2, &[("/sys/fs/cgroup/memory.max", "512\n")]).unwrap().1, 512);
        // A path that is not under the mount's root.
        assert_eq!(found("0::/../other\n", MOUNTS_V2, &[("/sys/fs/cgroup/memory.max", "512\n")]).unwrap().1, 512);
        assert_eq!(found("", "", &[]), None);
    }

    #[test]
    fn what_the_kernel_takes_back_by_itself_is_not_taken() {
        let stat = "anon 100\nfile 20\nsock 7\nslab_reclaimable 3\ninactive_file 19\n";
        assert_eq!((V2.reclaimable(stat), V1.reclaimable("cache 5\ntotal_cache 8\n")), (23, 8));
    }

    #[test]
    fn the_process_knows_its_memory() {
        let status = "Name:\tgateway\nVmHWM:\t  99 kB\nVmRSS:\t   12 kB\nRssAnon:\t   8 kB\n";
        let resident = Resident::of(status).unwrap();
        assert_eq!((resident.all, resident.own), (12 * 1024, 8 * 1024));
        assert!(Resident::of("Name:\tgateway\n").is_none());
    }

    fn excess(look: &Look) -> Option<u64> {
        match look {
            Look::Over { excess, .. } => Some(*excess),
            _ => None,
        }
    }

    #[test]
    fn readers_go_only_after_caches_and_no_more_than_has_to_be() {
        let mut pressure = Pressure::default();
        assert!(matches!(pressure.look(1600, 1600), Look::Under));
        assert!(matches!(pressure.look(1610, 1600), Look::Begins));
        for _ in 0..PATIENCE {
            assert_eq!(excess(&pressure.look(1610, 1600)), Some(0), "what was given back has to be seen first");
        }
        assert_eq!(excess(&pressure.look(1610, 1600)), Some(110));
        assert_eq!(excess(&pressure.look(1590, 1600)), Some(0));
        assert_eq!(excess(&pressure.look(1700, 1600)), Some(200), "it rises all the same");
        assert_eq!(excess(&pressure.look(1500, 1600)), Some(0), "not yet enough under it");
        assert!(matches!(pressure.look(1499, 1600), Look::Ends { .. }));
        assert!(matches!(pressure.look(1510, 1600), Look::Under));
    }
}
