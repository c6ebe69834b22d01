//! A primary and its replica, watched by three sentinels.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};

use super::{
    RedisServer,
    options::{READY, program},
    server::{escaped, is_ours},
    wire::ask_text,
};
use crate::{
    net::free_port,
    process::{Guarded, private_dir},
    wait,
};

const NAME: &str = "mymaster";
const SENTINELS: usize = 3;
/// The longest [`Sentinels::wait_failover`] waits; usually it takes 2 to 3 seconds.
const FAILOVER: Duration = Duration::from_secs(60);
/// A failover that was asked for and has not happened by then is asked for again. Sentinels give one up, or take one
/// back, when the machine is too slow for their time-outs.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Passwords of a [`Sentinels`] set; none by default.
#[derive(Debug, Clone, Default)]
pub struct SentinelOptions {
    /// The password of the data servers' user `default`.
    pub password: Option<String>,
    /// The password of the sentinels' user `default`.
    pub sentinel_password: Option<String>,
}

/// One primary, one replica and three sentinels, two of which must agree. A primary that does not
/// answer for 1 second is replaced by the replica.
#[derive(Debug)]
pub struct Sentinels {
    data: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
    options: SentinelOptions,
    /// The primary as of the last failover that was waited for.
    primary: u16,
}

#[derive(Debug)]
struct Sentinel {
    port: u16,
    process: Guarded,
}

impl Sentinels {
    /// Starts all of it without passwords and waits until a failover would work.
    pub fn start() -> Self {
        Self::start_with(&SentinelOptions::default())
    }

    /// Starts all of it and waits until a failover would work, some 3 seconds.
    pub fn start_with(options: &SentinelOptions) -> Self {
        let mut server = RedisServer::options();
        if let Some(password) = &options.password {
            server = server.password(password);
        }
        let primary = server.start();
        let port = primary.port();
        let replica = server.args(&["--replicaof", "127.0.0.1", &port.to_string()]).start();
        // Sentinels ask a primary for its replicas when they meet it, then every 10 seconds only.
        wait::until("the replica's link", READY, || linked(&replica));
        let sentinels = (0..SENTINELS).map(|_| Sentinel::start(port, options)).collect();
        let all = Self { data: vec![primary, replica], sentinels, options: options.clone(), primary: port };
        wait::until("the sentinels' agreement", READY, || all.sentinels.iter().all(|one| all.is_settled(one)));
        all
    }

    /// Where the sentinels are, as `127.0.0.1:PORT`.
    pub fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect()
    }

    /// What the sentinels call the primary.
    pub fn master_name(&self) -> &'static str {
        NAME
    }

    /// All of it as `redis+sentinel://[:password@]host:port,…/master_name[?sentinel_password=…]`.
    pub fn url(&self) -> String {
        let user = self.options.password.as_ref().map(|password| format!(":{}@", escaped(password)));
        let query = self.options.sentinel_password.as_ref().map(|text| format!("?sentinel_password={}", escaped(text)));
        let (user, query) = (user.unwrap_or_default(), query.unwrap_or_default());
        format!("redis+sentinel://{user}{}/{NAME}{query}", self.addresses().join(","))
    }

    /// All of it as an entry of `hosts` in the configuration of Python's layers.
    pub fn python_host(&self) -> Json {
        let sentinels: Vec<Json> = self.sentinels.iter().map(|one| json!(["127.0.0.1", one.port])).collect();
        let mut host = json!({"sentinels": sentinels, "master_name": NAME});
        if let Some(password) = &self.options.password {
            host["password"] = json!(password);
        }
        if let Some(password) = &self.options.sentinel_password {
            host["sentinel_kwargs"] = json!({ "password": password });
        }
        host
    }

    /// The primary's port, as of the start or the last [`wait_failover`](Self::wait_failover).
    pub fn primary_port(&self) -> u16 {
        self.primary
    }

    /// The primary, as of the start or the last [`wait_failover`](Self::wait_failover).
    pub fn primary(&mut self) -> &mut RedisServer {
        let primary = self.primary;
        self.data.iter_mut().find(|server| server.port() == primary).expect("one of ours")
    }

    /// The data server that is not the [`primary`](Self::primary).
    pub fn replica(&mut self) -> &mut RedisServer {
        let primary = self.primary;
        self.data.iter_mut().find(|server| server.port() != primary).expect("one of ours")
    }

    /// Kills the primary (`SIGKILL`).
    pub fn kill_primary(&mut self) {
        self.primary().kill();
    }

    /// Asks a sentinel for a failover although the primary is well; it becomes a replica.
    pub fn switch_over(&self) {
        let answer = self.ask(self.alive(), &["SENTINEL", "FAILOVER", NAME]);
        assert_eq!(answer.as_deref(), Some("OK"), "SENTINEL FAILOVER");
    }

    /// Waits until every living sentinel names the other data server, and that one says so itself;
    /// returns its port.
    pub fn wait_failover(&mut self) -> u16 {
        let (old, new) = (self.primary, self.replica().port());
        let wanted = format!("127.0.0.1\n{new}");
        let mut asked = Instant::now();
        wait::until(&format!("the failover from port {old} to {new}"), FAILOVER, || {
            if asked.elapsed() > ASK_AGAIN {
                asked = Instant::now();
                // A primary that was killed or frozen is replaced without being asked for.
                if self.data.iter().any(|server| server.port() == old && server.is_primary()) {
                    self.ask(self.alive(), &["SENTINEL", "FAILOVER", NAME]);
                }
            }
            let living = self.sentinels.iter().filter(|one| one.awake());
            let mut named = living.map(|one| self.ask(one, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]));
            named.all(|address| address.as_ref() == Some(&wanted))
                && self.data.iter().any(|server| server.port() == new && server.is_primary())
        });
        self.primary = new;
        new
    }

    /// Starts the data server that was killed again, empty, and waits until the sentinels have made it
    /// a replica and it has what the primary has, so that the next failover can go there.
    pub fn bring_back(&mut self) {
        self.replica().restart_empty();
        wait::until("becoming a replica", FAILOVER, || {
            // What the sentinels know of it may be of before.
            let replica = self.data.iter().find(|server| server.port() != self.primary);
            self.sentinels.iter().filter(|one| one.awake()).all(|one| self.is_settled(one))
                && replica.is_some_and(linked)
        });
    }

    /// Kills the sentinel with this index, 0 to 2.
    pub fn kill_sentinel(&mut self, index: usize) {
        self.sentinels[index].process.kill();
    }

    /// Freezes the sentinel with this index.
    pub fn pause_sentinel(&mut self, index: usize) {
        self.sentinels[index].process.pause();
    }

    /// Ends a [`pause_sentinel`](Self::pause_sentinel).
    pub fn resume_sentinel(&mut self, index: usize) {
        self.sentinels[index].process.resume();
    }

    /// Runs a command on the sentinel with this index, as [`RedisServer::cli`] does.
    pub fn cli(&self, index: usize, command: &[&str]) -> String {
        self.ask(&self.sentinels[index], command).expect("the sentinel answers")
    }

    fn alive(&self) -> &Sentinel {
        self.sentinels.iter().find(|one| one.awake()).expect("a living sentinel")
    }

    fn ask(&self, one: &Sentinel, command: &[&str]) -> Option<String> {
        ask_text(one.port, self.options.sentinel_password.as_deref(), command).ok()
    }

    /// Whether this sentinel knows all other servers and the primary is well.
    fn is_settled(&self, one: &Sentinel) -> bool {
        let Some(answer) = self.ask(one, &["SENTINEL", "MASTER", NAME]) else { return false };
        let lines: Vec<&str> = answer.lines().collect();
        let field = |name: &str| lines.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let others = (SENTINELS - 1).to_string();
        let known = field("flags") == Some("master")
            && field("num-slaves") == Some("1")
            && field("num-other-sentinels") == Some(&others);
        // What the replica said of itself decides whether it may be promoted.
        let replica = self.ask(one, &["SENTINEL", "REPLICAS", NAME]).unwrap_or_default();
        known && replica.contains("master-link-status\nok") && replica.contains("flags\nslave\n")
    }
}

impl Sentinel {
    fn start(primary: u16, options: &SentinelOptions) -> Self {
        let program = program(None);
        let mut last = String::new();
        for _ in 0..10 {
            let port = free_port();
            let dir = private_dir("sentinel");
            fs::write(dir.join("sentinel.conf"), config(port, primary, options)).expect("the directory is ours");
            let process = Guarded::spawn(dir, &program, ["sentinel.conf", "--sentinel"]);
            let password = options.sentinel_password.as_deref();
            match process.try_ready(READY, || is_ours(port, password, process.pid())) {
                Ok(()) => {
                    hasten(port, password);
                    return Self { port, process };
                }
                Err(why) => last = format!("{why}{}", process.log_tail()),
            }
        }
        panic!("{program} --sentinel {last}");
    }

    fn awake(&self) -> bool {
        self.process.running() && !self.process.paused()
    }
}

fn config(port: u16, primary: u16, options: &SentinelOptions) -> String {
    let mut text = format!(
        "port {port}\nbind 127.0.0.1\n\
         sentinel monitor {NAME} 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds {NAME} 1000\n\
         sentinel failover-timeout {NAME} 4000\n"
    );
    if let Some(password) = &options.password {
        let _ = writeln!(text, "sentinel auth-pass {NAME} \"{password}\"");
    }
    if let Some(password) = &options.sentinel_password {
        let _ = writeln!(text, "requirepass \"{password}\"\nsentinel sentinel-pass \"{password}\"");
    }
    text
}

/// Shortens a sentinel's waits: 2 seconds between introductions, 10 between looks at a server, and 30 of
/// doing nothing after the machine was busy. Sentinels before Redis 7 refuse this
/// and are merely slower.
fn hasten(port: u16, password: Option<&str>) {
    let words = ["SENTINEL", "DEBUG", "info-period", "500", "publish-period", "300", "tilt-period", "2000"];
    let _ = ask_text(port, password, &words);
}

fn linked(replica: &RedisServer) -> bool {
    replica.try_cli(&["INFO", "replication"]).is_some_and(|info| info.contains("master_link_status:up"))
}
