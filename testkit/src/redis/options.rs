//! How a server is started.

use std::{env, time::Duration};

use super::{RedisServer, server::is_ours};
use crate::{
    net::{free_port, free_port_pair},
    process::{Guarded, on_path, private_dir},
};

pub(super) const READY: Duration = Duration::from_secs(20);

/// The options that a [`RedisServer`] is started with. The default is an empty server without password and
/// persistence.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    program: Option<String>,
    password: Option<String>,
    persistent: bool,
    bus: bool,
    args: Vec<String>,
}

impl RedisOptions {
    /// The program, such as `valkey-server`. The default is the environment variable `TESTKIT_REDIS_SERVER`, and
    /// without it `redis-server`.
    #[must_use]
    pub fn program(mut self, program: &str) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// The password of the user `default`; none by default. [`RedisServer::cli`] signs in with it, and
    /// [`RedisServer::url`] has it.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Every write is on the disk before it is answered, so that
    /// [`restart_keeping`](RedisServer::restart_keeping) finds it again.
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.persistent = true;
        self
    }

    /// More options as on the command line, such as `["--maxmemory", "1mb"]`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// The server also listens on its port + 10,000, as the nodes of a cluster do.
    pub(super) fn bus(mut self) -> Self {
        self.bus = true;
        self
    }

    /// Starts the server and waits until it answers.
    pub fn start(&self) -> RedisServer {
        let program = program(self.program.as_deref());
        let mut last = String::new();
        // Somebody else may take the port between our look and the server's start.
        for _ in 0..10 {
            let port = if self.bus { free_port_pair() } else { free_port() };
            let process = Guarded::spawn(private_dir("redis"), &program, self.command(port));
            match process.try_ready(READY, || is_ours(port, self.password.as_deref(), process.pid())) {
                Ok(()) => return RedisServer::new(port, process, self.password.clone(), self.persistent),
                Err(why) => last = format!("{why}{}", process.log_tail()),
            }
        }
        panic!("{program} {last}");
    }

    fn command(&self, port: u16) -> Vec<String> {
        let port = port.to_string();
        let mut words = vec!["--port", &port, "--bind", "127.0.0.1", "--save", ""];
        // A replica that has to be filled is filled at once, not in 5 seconds.
        words.extend(["--repl-diskless-sync-delay", "0"]);
        words.extend(match self.persistent {
            true => ["--appendonly", "yes", "--appendfsync", "always"],
            false => ["--appendonly", "no", "--appendfsync", "no"],
        });
        if let Some(password) = &self.password {
            words.extend(["--requirepass", password, "--masterauth", password]);
        }
        words.extend(self.args.iter().map(String::as_str));
        words.into_iter().map(str::to_owned).collect()
    }
}

/// The program to start, which is there.
pub(super) fn program(wanted: Option<&str>) -> String {
    let program = wanted.map(str::to_owned).or_else(|| env::var("TESTKIT_REDIS_SERVER").ok());
    let program = program.unwrap_or_else(|| "redis-server".to_owned());
    assert!(on_path(&program), "{program} is missing: run ./test.sh, or apt-get install {program}");
    program
}
