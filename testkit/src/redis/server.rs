//! One server.

use std::{fmt::Write as _, fs, io::ErrorKind, path::Path};

use super::{
    RedisOptions, Tls,
    options::READY,
    tls,
    wire::{ask, ask_text},
};
use crate::{process::Guarded, tls::TlsOptions};

/// A Redis server of the test's own: empty, without persistence, on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    process: Guarded,
    password: Option<String>,
    /// What a restart goes back to.
    first_password: Option<String>,
    persistent: bool,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        Self::options().start()
    }

    /// Starts a server with more options, such as `["--maxmemory", "1mb"]`.
    pub fn start_with(args: &[&str]) -> Self {
        Self::options().args(args).start()
    }

    /// For a server with a password, with persistence, or of another program.
    pub fn options() -> RedisOptions {
        RedisOptions::default()
    }

    pub(super) fn new(port: u16, process: Guarded, password: Option<String>, persistent: bool) -> Self {
        Self { port, process, first_password: password.clone(), password, persistent }
    }

    /// The server's address as `redis://127.0.0.1:PORT`, with the password of the user `default` if
    /// there is one.
    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => self.url_as("", password),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// The server's address for a user. The user need not exist; `""` is the user `default`.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{}:{}@127.0.0.1:{}", escaped(user), escaped(password), self.port)
    }

    /// The address of one of the server's databases, 0 to 15.
    pub fn database(&self, number: u8) -> String {
        format!("{}/{number}", self.url())
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process, its directory and its log.
    pub fn process(&self) -> &Guarded {
        &self.process
    }

    /// Kills the server (`SIGKILL`); connections break, new ones are refused.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port, with nothing in it, and kills it first if it lives. Settings that were made
    /// while it ran (users, passwords, TLS) are gone too.
    pub fn restart_empty(&mut self) {
        if self.process.running() {
            self.process.kill();
        }
        remove(&self.process.dir().join("dump.rdb"));
        remove(&self.process.dir().join("appendonlydir"));
        self.restart();
    }

    /// Starts it again with its data, and kills it first if it lives. Only for a server started with
    /// [`RedisOptions::persistent`].
    pub fn restart_keeping(&mut self) {
        assert!(self.persistent, "only a persistent server keeps anything");
        if self.process.running() {
            self.process.kill();
        }
        self.restart();
    }

    /// Starts the killed server again, with the contents of its directory.
    pub(super) fn restart(&mut self) {
        self.process.start();
        self.password.clone_from(&self.first_password);
        let (port, pid) = (self.port, self.process.pid());
        self.process.wait_ready(READY, || is_ours(port, self.password.as_deref(), pid));
    }

    /// Freezes the server (`SIGSTOP`): connections stay open, and no answer comes.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Runs one command and returns its reply as text, the items of an array one a line. Panics on a
    /// lost connection; an error reply comes back as text that starts with `-`.
    pub fn cli(&self, command: &[&str]) -> String {
        let words: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
        self.raw(&words)
    }

    /// Like [`cli`](Self::cli), for arguments that are not text.
    pub fn raw(&self, command: &[&[u8]]) -> String {
        ask(self.port, self.password.as_deref(), command).unwrap_or_else(|error| {
            panic!("redis on port {}: {error}{}", self.port, self.process.log_tail());
        })
    }

    /// Like [`cli`](Self::cli), but a lost connection is `None`.
    pub fn try_cli(&self, command: &[&str]) -> Option<String> {
        ask_text(self.port, self.password.as_deref(), command).ok()
    }

    /// Whether the server answers `ROLE` as a primary.
    pub fn is_primary(&self) -> bool {
        self.try_cli(&["ROLE"]).is_some_and(|role| role.starts_with("master"))
    }

    /// Closes connections of a kind, `normal`, `pubsub`, `replica` or `master`, from the server's side;
    /// says how many.
    pub fn client_kill(&self, kind: &str) -> usize {
        let answer = self.cli(&["CLIENT", "KILL", "TYPE", kind]);
        answer.parse().unwrap_or_else(|_| panic!("CLIENT KILL TYPE {kind}: {answer}"))
    }

    /// Makes a user, or gives one another password (the only one from then on) and other rights, as
    /// `ACL SETUSER` takes them: `["allchannels", "+@all"]`. Open connections stay as they are.
    pub fn set_user(&self, user: &str, password: &str, rights: &[&str]) {
        let password = format!(">{password}");
        let answer = self.cli(&[&["ACL", "SETUSER", user, "reset", "on", &password], rights].concat());
        assert_eq!(answer, "OK", "ACL SETUSER {user} {rights:?}");
    }

    /// Takes a user away, its connections with it.
    pub fn delete_user(&self, user: &str) {
        assert_eq!(self.cli(&["ACL", "DELUSER", user]), "1", "{user}");
    }

    /// From now on the user `default` needs this password; open connections stay as they are.
    pub fn set_password(&mut self, password: &str) {
        assert_eq!(self.cli(&["CONFIG", "SET", "requirepass", password]), "OK");
        self.password = Some(password.to_owned());
    }

    /// Switches TLS on, on a port of its own, with certificates made for it; the plain port stays.
    /// Doing it again replaces the certificates and the port.
    pub fn switch_tls_on(&self, options: &TlsOptions) -> Tls {
        tls::switch_on(self, options)
    }

    /// Shows and trusts new connections certificates of another authority, on the same port.
    pub fn renew_tls(&self, options: &TlsOptions, before: &Tls) -> Tls {
        tls::renew(self, options, before)
    }
}

/// Whether the server on this port is the process we started, and no other test's, and has loaded its data.
pub(super) fn is_ours(port: u16, password: Option<&str>, pid: u32) -> bool {
    let ours = ask_text(port, password, &["INFO", "server"])
        .is_ok_and(|info| info.lines().any(|line| line.trim() == format!("process_id:{pid}")));
    ours && ask_text(port, password, &["PING"]).is_ok_and(|answer| !answer.starts_with("-LOADING"))
}

fn remove(path: &Path) {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = done
        && error.kind() != ErrorKind::NotFound
    {
        panic!("cannot remove {}: {error}", path.display());
    }
}

/// A user's name or password as a URL has it.
pub(super) fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => all.push(byte.into()),
            _ => {
                let _ = write!(all, "%{byte:02X}");
            }
        }
        all
    })
}
