//! A real Django project, and people in a real browser: processes that do what they are told.

mod browser;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::redis::RedisServer;

use crate::KEY;

/// A process that answers each line of JSON with one. It ends with this, or with us.
struct Servant {
    process: Child,
    pipes: Mutex<(Option<ChildStdin>, BufReader<ChildStdout>)>,
}

impl Drop for Servant {
    fn drop(&mut self) {
        // The end of its input is the sign to leave well.
        drop(self.pipes.get_mut().map(|pipes| pipes.0.take()));
        let patience = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && patience.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Servant {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pipes = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, pipes: Mutex::new(pipes) }
    }

    fn ask(&self, order: &Value) -> Value {
        writeln!(self.pipes.lock().unwrap().0.as_ref().unwrap(), "{order}").unwrap();
        self.answer()
    }

    fn answer(&self) -> Value {
        let mut line = String::new();
        self.pipes.lock().unwrap().1.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} was said: {error}"));
        assert!(answer["error"].is_null(), "{}", answer["error"].as_str().unwrap());
        answer["value"].clone()
    }
}

/// A Django project in a process of its own. It ends with this, or with us.
pub(crate) struct Site {
    process: Servant,
}

impl Site {
    /// Starts it with these settings over those that all have, and waits until its tables are made.
    pub(crate) fn start(own: Value) -> Self {
        Self::start_by(&testkit::python::python(), own)
    }

    /// The same with another Django.
    pub(crate) fn start_by(python: &Path, own: Value) -> Self {
        let mut settings = json!({
            "secret_key": KEY,
            "secret_key_fallbacks": [],
            "use_tz": true,
            "session_engine": "django.contrib.sessions.backends.db",
            "authentication_backends": ["django.contrib.auth.backends.ModelBackend"],
        });
        settings.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/django_site/site_process.py");
        let mut command = Command::new(python);
        command.args([script, &settings.to_string()]).env("PYTHONDONTWRITEBYTECODE", "1");
        let process = Servant::start(command);
        process.answer();
        Self { process }
    }

    pub(crate) fn order(&self, name: &str, arguments: Value, named: Value) -> Value {
        self.process.ask(&json!([name, arguments, named]))
    }

    pub(crate) fn call(&self, name: &str, arguments: Value) -> Value {
        self.order(name, arguments, json!({}))
    }

    pub(crate) fn user(&self, name: &str) -> String {
        self.call("user", json!([name, "secret"])).as_str().unwrap().to_owned()
    }

    pub(crate) fn login(&self, name: &str) -> String {
        self.call("login", json!([name, "secret"])).as_str().unwrap().to_owned()
    }

    pub(crate) fn update(&self, name: &str, fields: Value) {
        self.order("update", json!([name]), fields);
    }

    /// Whom Django's own view sees.
    pub(crate) fn whoami(&self, cookie: &str) -> Value {
        self.call("whoami", json!([cookie]))
    }
}

/// What Django calls a database that has this URL.
pub(crate) fn databases(url: &str) -> Value {
    let (scheme, place) = url.split_once("://").unwrap();
    let one = match scheme {
        "sqlite" => json!({"ENGINE": "django.db.backends.sqlite3", "NAME": place}),
        _ => {
            let (user, place) = place.split_once('@').unwrap();
            let (host, name) = place.split_once('/').unwrap();
            let (host, port) = host.split_once(':').unwrap();
            let engine = if scheme == "mysql" { "mysql" } else { "postgresql" };
            json!({
                "ENGINE": format!("django.db.backends.{engine}"), "NAME": name, "USER": user, "HOST": host, "PORT": port,
            })
        }
    };
    json!({"default": one})
}

pub(crate) fn caches(redis: &RedisServer, backend: &str, options: Value) -> Value {
    json!({"default": {"BACKEND": backend, "LOCATION": redis.url(), "KEY_PREFIX": "shop", "OPTIONS": options}})
}
