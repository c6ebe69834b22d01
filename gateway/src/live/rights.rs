//! Trying every command that a node uses beside the layer, on keys made for that, and looking at how Redis is set up.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Cmd, RedisError, Value};
use uuid::Uuid;

use super::Findings;
use crate::config::Config;
use crate::redis::{Connection, Deployment, DeploymentError, GROUP, RedisFailed, Server};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The oldest Redis that has streams.
const OLDEST: u32 = 5;

/// Looks at the first host, where a node keeps what is its own, and at the others as far as the layer needs it.
pub(super) async fn check_rights(config: &Config, deployment: Option<Uuid>, found: &mut Findings) {
    for (number, host) in config.layer.hosts.iter().enumerate() {
        let server = match Server::at(host) {
            Ok(server) => server,
            Err(error) => return found.wrong(&format!("Redis, host {}", number + 1), &error),
        };
        if let Err(error) = set_up(&server, number + 1, found).await {
            found.wrong(&format!("Redis, host {}", number + 1), &error);
        } else if number == 0 {
            let tried = async {
                commands(&server, config, found).await?;
                real_keys(&server, config, deployment, found).await
            };
            if let Err(error) = tried.await {
                found.wrong("Redis", &error);
            }
        }
    }
}

/// Version, memory and persistence, as far as the user may know.
async fn set_up(server: &Server, number: usize, found: &mut Findings) -> Result<(), RedisFailed> {
    let mut redis = server.open_own("", PATIENCE).await?;
    let info: Result<String, RedisError> = redis::cmd("INFO").query_async(&mut redis).await;
    let info = match info {
        Ok(info) => info,
        Err(error) if error.code() == Some("NOPERM") => {
            let what = "has no right to INFO: version, maxmemory-policy and persistence could not be looked at";
            found.warn(format!("host {number} of Redis: the user {what}"));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let info: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let say = |name: &str| info.get(name).copied().unwrap_or_default();
    let version = say("redis_version");
    found.good(format!("host {number} of Redis answers, version {version}"));
    if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major < OLDEST) {
        found.errors.push(format!("host {number} of Redis is of version {version}: streams need {OLDEST}.0 or later"));
    }
    let policy = say("maxmemory_policy");
    if !matches!(say("maxmemory"), "" | "0") && policy != "noeviction" {
        found.warn(format!(
            "host {number} of Redis has maxmemory-policy {policy}: at its limit it throws away what was not read yet. \
             Set noeviction"
        ));
    }
    if number == 1 && say("aof_enabled") == "0" {
        found.warn(
            "Redis keeps no append-only file: what waits in the event stream is lost if it dies. Set appendonly yes \
             if services publish by XADD"
                .to_owned(),
        );
    }
    Ok(())
}

/// Every command, each for itself: all that are refused are told at once.
async fn commands(server: &Server, config: &Config, found: &mut Findings) -> Result<(), RedisFailed> {
    let mark = Uuid::new_v4().simple().to_string();
    let (stream, text) =
        (format!("{}:check:{mark}", config.namespace), format!("{}:check:{mark}:id", config.namespace));
    let cmd = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command
    };
    let mut redis = server.open_own(&stream, PATIENCE).await?;
    let mut added = None;
    for words in [
        &["XADD", &stream, "*", "id", "check"][..],
        &["XGROUP", "CREATE", &stream, GROUP, "0", "MKSTREAM"],
        &["XREADGROUP", "GROUP", GROUP, "check", "COUNT", "1", "STREAMS", &stream, ">"],
        &["XPENDING", &stream, GROUP, "-", "+", "1"],
        &["XRANGE", &stream, "-", "+", "COUNT", "1"],
        &["XREVRANGE", &stream, "+", "-", "COUNT", "1"],
        &["XLEN", &stream],
    ] {
        let answer = attempt(&mut redis, &cmd(words), found).await;
        if let ("XADD", Some(Value::BulkString(id))) = (words[0], answer) {
            added = String::from_utf8(id).ok();
        }
    }
    let id = added.as_deref().unwrap_or("0-1");
    attempt(&mut redis, &cmd(&["XCLAIM", &stream, GROUP, "check", "0", id, "JUSTID"]), found).await;
    for words in [&["XACK", &stream, GROUP, id][..], &["XDEL", &stream, id]] {
        attempt(&mut redis, &cmd(words), found).await;
    }
    let script = cmd(&["EVAL", "return 1", "1", &stream]);
    if script.query_async::<Value>(&mut redis).await.is_err() {
        found.warn(
            "the Redis user may not EVAL: entries that were given up or are over 4 MiB stay in the stream".into(),
        );
    }
    let mut ours = server.open_own(&text, PATIENCE).await?;
    for words in [
        &["SET", &text, "check", "PX", "1000", "NX"][..],
        &["GETRANGE", &text, "0", "99"],
        &["SETNX", &text, "check"],
        &["TIME"],
        &["UNWATCH"],
    ] {
        attempt(&mut ours, &cmd(words), found).await;
    }
    // Not what a node does.
    let gone = cmd(&["DEL", &stream]).query_async::<Value>(&mut redis).await;
    let _ = cmd(&["DEL", &text]).query_async::<Value>(&mut ours).await;
    if gone.is_err() && cmd(&["XLEN", &stream]).query_async::<Value>(&mut redis).await.is_ok() {
        found.warn(format!("the key {stream} of this check is left: the Redis user may not DEL"));
    }
    Ok(())
}

async fn attempt(redis: &mut Connection, command: &Cmd, found: &mut Findings) -> Option<Value> {
    let name = command.args_iter().next();
    let name = match name {
        Some(redis::Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
        _ => String::new(),
    };
    match command.query_async::<Value>(redis).await {
        Ok(Value::ServerError(error)) => refusal(&name, &error.into(), found),
        Ok(answer) => return Some(answer),
        Err(error) => refusal(&name, &error, found),
    }
    None
}

fn refusal(name: &str, error: &RedisError, found: &mut Findings) {
    // What was refused before leaves no group to read from.
    if error.code() != Some("NOGROUP") {
        found.wrong(&format!("Redis refuses {name}, which a node needs on the keys of its namespace"), error);
    }
}

/// The keys that a node uses: what they are, and whose.
async fn real_keys(
    server: &Server,
    config: &Config,
    deployment: Option<Uuid>,
    found: &mut Findings,
) -> Result<(), RedisFailed> {
    let stream = format!("{}:events", config.namespace);
    for key in [format!("{stream}:dead"), stream] {
        let mut redis = server.open_own(&key, PATIENCE).await?;
        let length = redis::cmd("XLEN").arg(&key).query_async::<Value>(&mut redis).await;
        if length.is_err_and(|error| error.code() == Some("WRONGTYPE")) {
            found.errors.push(format!("{key} in Redis is no stream: delete it, or choose another --namespace"));
        }
    }
    // A database that is empty gets an id that no Redis knows.
    match Deployment::new(server.clone(), config, deployment.unwrap_or_default()).look().await {
        Ok(()) => {}
        Err(DeploymentError::Unavailable(failed)) => return Err(failed),
        Err(error) => found.errors.push(error.to_string()),
    }
    Ok(())
}
