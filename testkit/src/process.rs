//! Servers that cannot outlive the test.

use std::{
    ffi::OsStr,
    fs,
    hash::{BuildHasher, RandomState},
    io::{BufRead, BufReader, Write},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use crate::wait;

/// The watchdog: starts the server in a process group of its own and obeys one-line orders on its
/// standard input. When that pipe ends, for whatever reason, it stops the server and removes the
/// directory. `$1` is the directory, `$2` the signal of an orderly stop, the rest the command.
const WATCHDOG: &str = r#"
dir=$1; orderly=$2; shift 2
start() { setsid "$@" >>"$dir/log" 2>&1 </dev/null & pid=$!; }
all() { kill "-$1" -- "-$pid" 2>/dev/null || kill "-$1" "$pid" 2>/dev/null; }
stop() {
  kill "-$1" "$pid" 2>/dev/null
  all CONT
  if [ "$1" != KILL ]; then ( sleep 5; all KILL ) & late=$!; else late=; all KILL; fi
  wait "$pid" 2>/dev/null
  [ -z "$late" ] || kill "$late" 2>/dev/null
  all KILL
}
start "$@"; echo "$pid"
while read -r order argument; do
  case $order in
    stop) stop "$argument" ;;
    start) start "$@" ;;
    signal) kill "-$argument" "$pid" 2>/dev/null ;;
    all) all "$argument" ;;
    wait) wait "$pid"; echo "$?" >"$dir/exit" ;;
  esac
  echo "$pid"
done
stop "$orderly"
rm -rf "$dir"
"#;

/// A running server and its private directory. Both are gone when this is dropped, and also when the
/// test process dies in any other way.
#[derive(Debug)]
pub struct Guarded {
    program: String,
    dir: PathBuf,
    pid: u32,
    watchdog: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Makes a private directory (mode 0700) under the system's temporary directory. Hand it to a
/// [`Guarded`], which removes it.
pub fn private_dir(name: &str) -> PathBuf {
    let random = RandomState::new().hash_one(std::process::id());
    let dir = std::env::temp_dir().join(format!("testkit-{name}-{random:016x}"));
    fs::DirBuilder::new().mode(0o700).create(&dir).unwrap_or_else(|error| {
        panic!("cannot make the directory {}: {error}", dir.display());
    });
    dir
}

/// Whether no thread of the process runs any more: it is frozen, or has ended.
pub fn stands_still(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| matches!(state(&thread.path().join("stat")), None | Some('T' | 'Z' | 'X')))
}

/// Whether a program can be found on the search path.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

impl Guarded {
    /// Starts `program` with `args`; on the end it is killed. Takes over `dir` (see
    /// [`private_dir`]). The output goes to `dir/log`.
    pub fn spawn<S: AsRef<OsStr>>(dir: PathBuf, program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Self {
        Self::spawn_with(dir, "KILL", &[], program, args)
    }

    /// Like [`spawn`](Self::spawn), for servers that leave something behind when killed: on the end
    /// they get the signal `stop` (a name without `SIG`, such as `INT`) and 5 seconds. `env` is added
    /// to the environment.
    pub fn spawn_with<S: AsRef<OsStr>>(
        dir: PathBuf,
        stop: &str,
        env: &[(&str, &str)],
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "testkit-watchdog"])
            .arg(&dir)
            .arg(stop)
            .arg(program.as_ref())
            .args(args)
            .envs(env.iter().copied())
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal must not end the watchdog before it has cleaned up.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let orders = watchdog.stdin.take();
        let answers = BufReader::new(watchdog.stdout.take().expect("stdout is a pipe"));
        let program = program.as_ref().to_string_lossy().into_owned();
        let mut guarded = Self { program, dir, pid: 0, watchdog, orders, answers };
        guarded.read_pid();
        guarded
    }

    fn read_pid(&mut self) {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        self.pid = line.trim().parse().unwrap_or_else(|_| {
            panic!("the watchdog of {} is gone ({read:?}){}", self.program, self.log_tail());
        });
    }

    fn order(&mut self, order: &str) {
        let orders = self.orders.as_mut().expect("open until dropped");
        writeln!(orders, "{order}").expect("the watchdog lives");
        self.read_pid();
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The private directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sends a signal, named without `SIG`, to the server's main process.
    pub fn signal(&mut self, signal: &str) {
        self.order(&format!("signal {signal}"));
    }

    /// Freezes the server with all its children (`SIGSTOP`): connections stay open, and no answer comes.
    /// Returns when each of its threads stands still: the signal stops them one by one, and on a busy machine the last
    /// one goes on for long.
    pub fn pause(&mut self) {
        self.order("all STOP");
        wait::until("the server stands still", Duration::from_secs(30), || stands_still(self.pid));
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.order("all CONT");
    }

    /// Kills the server with all its children (`SIGKILL`) and returns when it is dead. The directory
    /// stays.
    pub fn kill(&mut self) {
        self.order("stop KILL");
    }

    /// Stops the server by the named signal and returns when it is dead, after 5 seconds at most.
    pub fn stop(&mut self, signal: &str) {
        self.order(&format!("stop {signal}"));
    }

    /// Starts the same command again, in the same directory, after [`kill`](Self::kill) or
    /// [`stop`](Self::stop).
    pub fn start(&mut self) {
        self.order("start");
    }

    /// The code that the server has ended with by itself; waits for the end. A signal `n` counts as 128 + `n`.
    pub fn exit_code(&mut self) -> i32 {
        self.order("wait");
        let code = fs::read_to_string(self.dir.join("exit")).expect("the watchdog has written it");
        code.trim().parse().expect("a number")
    }

    /// Whether the server's main process lives. One that has ended, but was not waited for yet, does not.
    pub fn running(&self) -> bool {
        !matches!(self.state(), Some('Z' | 'X') | None)
    }

    /// Whether the server's main process is frozen.
    pub fn paused(&self) -> bool {
        self.state() == Some('T')
    }

    fn state(&self) -> Option<char> {
        state(Path::new(&format!("/proc/{}/stat", self.pid)))
    }

    /// The last lines the server wrote, for messages of failing tests.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(self.dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        format!("\n--- last lines of {} ---\n{}\n---", self.program, tail.join("\n"))
    }

    /// Polls until `ready` says yes. Panics with the log's tail if the server dies or `limit` passes.
    pub fn wait_ready(&self, limit: Duration, mut ready: impl FnMut() -> bool) {
        if let Err(why) = self.try_ready(limit, &mut ready) {
            panic!("{} {why}{}", self.program, self.log_tail());
        }
    }

    /// Like [`wait_ready`](Self::wait_ready), but tells instead of panicking.
    pub fn try_ready(&self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            if !self.running() {
                return Err("died at start".to_owned());
            }
            if ready() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("was not ready within {limit:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.orders.take());
        // When the watchdog has ended, the server is dead and the directory gone.
        let _ = self.watchdog.wait();
    }
}

/// The state of a process or thread, as its file in `/proc` says it.
fn state(stat: &Path) -> Option<char> {
    let stat = fs::read_to_string(stat).ok()?;
    // "pid (name) state …"; the name may hold anything, so look behind its last bracket.
    stat.rsplit(')').next()?.trim_start().chars().next()
}
