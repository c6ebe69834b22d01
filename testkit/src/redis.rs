//! Redis servers.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{
    net::free_port,
    process::{Guarded, on_path, private_dir},
};

/// A Redis server of the test's own: empty, without persistence, on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    process: Guarded,
}

const READY: Duration = Duration::from_secs(10);

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more options, such as `["--maxmemory", "1mb"]`.
    pub fn start_with(args: &[&str]) -> Self {
        assert!(on_path("redis-server"), "redis-server is missing: run ./test.sh, or apt-get install redis-server");
        let mut last = String::new();
        // Somebody else may take the port between our look and the server's start.
        for _ in 0..10 {
            let port = free_port();
            let dir = private_dir("redis");
            let number = port.to_string();
            let base = ["--port", &number, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
            let process = Guarded::spawn(dir, "redis-server", base.iter().chain(args));
            match process.try_ready(READY, || is_ours(port, process.pid())) {
                Ok(()) => return Self { port, process },
                Err(why) => last = format!("{why}{}", process.log_tail()),
            }
        }
        panic!("redis-server {last}");
    }

    /// The server's address as `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
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

    /// Starts it again after [`kill`](Self::kill), on the same port and with nothing in it.
    pub fn restart_empty(&mut self) {
        if self.process.running() {
            self.process.kill();
        }
        self.process.start();
        let (port, pid) = (self.port, self.process.pid());
        self.process.wait_ready(READY, || is_ours(port, pid));
    }

    /// Freezes the server (`SIGSTOP`): connections stay open, nobody answers.
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
        ask(self.port, command).unwrap_or_else(|error| {
            panic!("redis on port {}: {error}{}", self.port, self.process.log_tail());
        })
    }
}

/// Whether the server on this port is the process we started, and no other test's.
fn is_ours(port: u16, pid: u32) -> bool {
    ask(port, &[b"INFO", b"server"])
        .is_ok_and(|info| info.lines().any(|line| line.trim() == format!("process_id:{pid}")))
}

fn ask(port: u16, command: &[&[u8]]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request)?;
    let mut text = String::new();
    read_reply(&mut BufReader::new(stream), &mut text)?;
    Ok(text)
}

fn read_reply(from: &mut impl BufRead, text: &mut String) -> std::io::Result<()> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or(std::io::ErrorKind::UnexpectedEof)?;
    match kind {
        "$" => {
            let Ok(len) = rest.parse::<usize>() else { return Ok(()) };
            let mut bytes = vec![0; len + 2];
            from.read_exact(&mut bytes)?;
            text.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        "*" => {
            for at in 0..rest.parse::<i64>().unwrap_or(0) {
                if at > 0 {
                    text.push('\n');
                }
                read_reply(from, text)?;
            }
        }
        "-" => {
            let _ = write!(text, "-{rest}");
        }
        _ => text.push_str(rest),
    }
    Ok(())
}
