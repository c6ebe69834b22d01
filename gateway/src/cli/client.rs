//! The commands that ask the API of a running node.

use std::time::Duration;

use clap::ArgMatches;
use serde_json::{Value, json};

use super::settings::given;
use super::table::{line, table};
use crate::config::Config;
use crate::names;

/// Longest wait for a connection, and for an answer.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// What passes the node, asked for at a time, and the seconds that an answer may wait for it.
const TAIL_PAGE: usize = 1000;
const TAIL_WAIT: u64 = 20;

/// Rooms asked for at a time.
const PAGE: usize = 1000;

/// Talks to the API of a running node.
pub struct ApiClient {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

/// Why a command that is a client of the API failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There can be no client.
    #[error("HTTP cannot be used")]
    Client(#[source] reqwest::Error),
    /// No answer.
    #[error("the node cannot be reached at {0}")]
    Unreachable(String, #[source] reqwest::Error),
    /// An answer that no node gives.
    #[error("{0} answered {1}, but not as the API does: is that the internal listener?")]
    Foreign(String, reqwest::StatusCode),
    /// What was given cannot be a name, and must not become part of a path.
    #[error("{0:?} is not valid: {1}")]
    Name(String, &'static str),
    /// What was given as data is none.
    #[error("--data is not JSON: {0}")]
    Data(String),
    /// An answer that says no.
    #[error("{0}")]
    Refused(String),
}

impl ApiClient {
    /// A client for the node of these settings, or of `--api-url`.
    pub fn new(matches: &ArgMatches, config: &Config) -> Result<Self, ApiError> {
        use secrecy::ExposeSecret;
        let url = given(matches, "api-url", "GATEWAY_API_URL");
        let url = url.unwrap_or_else(|| format!("http://{}", reachable(config.internal_listen)));
        let key = config.api_keys.first().map(|key| key.secret().expose_secret().to_owned());
        // A proxy from the environment is for the way out; a node is on this network.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIME).timeout(ANSWER_TIME);
        let http = http.build().map_err(ApiError::Client)?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), key })
    }

    /// Runs a command that is one question to the API and returns what to print: a table for people, else JSON.
    pub async fn run(&self, command: &str, matches: &ArgMatches, for_people: bool) -> Result<String, ApiError> {
        let answer = self.ask(command, matches).await?;
        let action = matches.subcommand().map(|(action, _)| action);
        Ok(match (for_people, command, action) {
            (false, ..) => answer.to_string(),
            (_, "user", Some("show")) => table(&json!({"sockets": answer["sockets"]})),
            (_, "nodes", _) => {
                let nodes = table(&json!({"nodes": nodes(&answer)}));
                match answer["workers"].as_array().is_some_and(|workers| !workers.is_empty()) {
                    true => format!("{nodes}\n\n{}", table(&json!({"workers": answer["workers"]}))),
                    false => nodes,
                }
            }
            _ => table(&answer),
        })
    }

    /// Runs `tail`: says a line for each thing that passes, until there were as many as asked for.
    pub async fn tail(
        &self,
        matches: &ArgMatches,
        for_people: bool,
        mut say: impl FnMut(&str),
    ) -> Result<(), ApiError> {
        let named = |name: &str| matches.get_one::<String>(name).map(|value| format!("&{name}={}", encode(value)));
        let mut filter = [named("user"), named("room")].into_iter().flatten().collect::<String>();
        if matches.get_flag("texts") {
            filter.push_str("&texts=true");
        }
        let (mut left, mut after) = (matches.get_one::<usize>("count").copied(), String::new());
        loop {
            let limit = left.unwrap_or(TAIL_PAGE).min(TAIL_PAGE);
            if limit == 0 {
                return Ok(());
            }
            // The first one only says where to begin.
            let wait = if after.is_empty() { 0 } else { TAIL_WAIT };
            let path = format!("/api/tail?wait={wait}&limit={limit}{after}{filter}");
            let answer = self.call(reqwest::Method::GET, &path, None).await?;
            after = format!("&after={}", answer["next"].as_u64().unwrap_or_default());
            if let Some(missed) = answer["missed"].as_u64().filter(|missed| *missed > 0) {
                let missed = json!({"what": "missed", "count": missed});
                say(&if for_people { line(&missed) } else { missed.to_string() });
            }
            let events = answer["events"].as_array().map_or(&[][..], Vec::as_slice);
            for event in events {
                say(&if for_people { line(event) } else { event.to_string() });
            }
            left = left.map(|left| left - events.len());
        }
    }

    async fn ask(&self, command: &str, matches: &ArgMatches) -> Result<Value, ApiError> {
        let text = |matches: &ArgMatches, name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
        // Clients of HTTP fold a segment of dots, encoded or not, and then mean another path.
        let segment = |matches: &ArgMatches, name: &str| valid(text(matches, name)).map(|name| encode(&name));
        if command == "notify" {
            let (user, from) = (valid_user(text(matches, "user"))?, text(matches, "from"));
            let mut body = json!({
                "type": "notification", "to": format!("user:{user}"), "source": "cli",
                "data": {"message": text(matches, "text"), "from_user": from},
            });
            if let Some(id) = matches.get_one::<String>("id") {
                body["id"] = json!(id);
            }
            let mut answer = self.call(reqwest::Method::POST, "/api/events", Some(body)).await?;
            return Ok(answer["results"][0].take());
        }
        if command == "announce" {
            let mut body = json!({"message": text(matches, "text")});
            if let Some(data) = matches.get_one::<String>("data") {
                body["data"] = serde_json::from_str(data).map_err(|error| ApiError::Data(error.to_string()))?;
            }
            return self.call(reqwest::Method::POST, "/api/announce", Some(body)).await;
        }
        if command == "nodes" {
            return self.call(reqwest::Method::GET, "/api/nodes", None).await;
        }
        let Some((action, matches)) = matches.subcommand() else { return Ok(Value::Null) };
        if command == "user" {
            let path = format!("/api/users/{}", encode(&valid_user(text(matches, "user"))?));
            if action == "show" {
                return self.call(reqwest::Method::GET, &path, None).await;
            }
            if action == "erase" {
                let keeps = if matches.get_flag("keep-messages") { "?keep_messages=true" } else { "" };
                return self.call(reqwest::Method::DELETE, &format!("{path}{keeps}"), None).await;
            }
            let mut body = json!({"code": matches.get_one::<u16>("code")});
            if let Some(reason) = matches.get_one::<String>("reason") {
                body["reason"] = json!(reason);
            }
            return self.call(reqwest::Method::POST, &format!("{path}/disconnect"), Some(body)).await;
        }
        if command == "dead" {
            let one = || Ok::<_, ApiError>(format!("/api/dead/{}", segment(matches, "dead")?));
            let (method, path) = match action {
                "list" => {
                    let limit = matches.get_one::<u64>("limit").copied().unwrap_or_default();
                    let before = matches.get_one::<String>("before").map(|id| format!("&before={}", encode(id)));
                    (reqwest::Method::GET, format!("/api/dead?limit={limit}{}", before.unwrap_or_default()))
                }
                "show" => (reqwest::Method::GET, one()?),
                "retry" => (reqwest::Method::POST, format!("{}/retry", one()?)),
                _ => (reqwest::Method::DELETE, one()?),
            };
            return self.call(method, &path, None).await;
        }
        let room = || Ok::<_, ApiError>(format!("/api/rooms/{}", segment(matches, "room")?));
        let member = || {
            let user = valid_user(text(matches, "user"))?;
            Ok::<_, ApiError>(format!("{}/members/{}", room()?, encode(&user)))
        };
        let answer = match action {
            "list" => self.all_rooms().await?,
            "create" => {
                let body = matches.get_one::<String>("display-name").map(|name| json!({"display_name": name}));
                self.call(reqwest::Method::PUT, &room()?, body).await?
            }
            "delete" => self.call(reqwest::Method::DELETE, &room()?, None).await?,
            "show" => self.call(reqwest::Method::GET, &room()?, None).await?,
            "redact" => {
                let path = format!("{}/messages/{}", room()?, segment(matches, "id")?);
                self.call(reqwest::Method::DELETE, &path, None).await?
            }
            "add" => self.call(reqwest::Method::PUT, &member()?, None).await?,
            _ => self.call(reqwest::Method::DELETE, &member()?, None).await?,
        };
        Ok(answer)
    }

    /// All pages as one.
    async fn all_rooms(&self) -> Result<Value, ApiError> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let last = all.last().and_then(|room| room["name"].as_str());
            let after = last.map(|name| format!("&after={}", encode(name))).unwrap_or_default();
            let path = format!("/api/rooms?limit={PAGE}{after}");
            let mut page = self.call(reqwest::Method::GET, &path, None).await?;
            let rooms = page["rooms"].as_array_mut().map(std::mem::take).unwrap_or_default();
            let is_last = rooms.len() < PAGE;
            all.extend(rooms);
            if is_last {
                return Ok(json!({ "rooms": all }));
            }
        }
    }

    /// Asks for readiness.
    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/readyz", self.url)).timeout(Duration::from_secs(3)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<Value, ApiError> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let unreachable = |error: reqwest::Error| ApiError::Unreachable(self.url.clone(), error.without_url());
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.text().await.map_err(unreachable)?;
        let foreign = || ApiError::Foreign(self.url.clone(), status);
        let value: Value = serde_json::from_str(&text).map_err(|_| foreign())?;
        if status.is_success() {
            return Ok(value);
        }
        let detail = value["detail"].as_str().ok_or_else(foreign)?;
        Err(ApiError::Refused(format!("{status}: {detail}")))
    }
}

/// An address one can connect to: a listener on all addresses is reached on loopback.
fn reachable(address: std::net::SocketAddr) -> std::net::SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

fn valid_user(name: String) -> Result<String, ApiError> {
    match names::check_user(&name) {
        Ok(()) => Ok(name),
        Err(rule) => Err(ApiError::Name(name, rule)),
    }
}

fn valid(name: String) -> Result<String, ApiError> {
    match names::check(&name) {
        Ok(()) => Ok(name),
        Err(rule) => Err(ApiError::Name(name, rule)),
    }
}

fn encode(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// What people want to see of each node.
fn nodes(answer: &Value) -> Vec<Value> {
    let states = answer["states"].as_array().into_iter().flatten();
    let shown = states.map(|state| match state["state"].as_str() {
        Some("silent") => json!({"node": state["node"], "state": "silent"}),
        _ => json!({
            "node": state["node"], "state": state["state"], "version": state["version"], "sockets": state["sockets"],
            "users": state["users"], "up_seconds": state["uptime_seconds"].as_f64().unwrap_or_default() as u64,
        }),
    });
    shown.collect()
}
