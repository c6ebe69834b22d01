//! The command line: what may be asked, and the commands that are clients of the API.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use crate::config::{Collected, Config, ConfigErrors, RoomPolicy, SETTINGS, Source, collect, read_settings};
use crate::names;
use crate::plan::{self, Load};

/// The whole command line.
pub fn command() -> Command {
    let settings = || {
        SETTINGS.iter().filter(|setting| setting.has_flag()).map(|setting| {
            let mut help = setting.help.to_owned();
            if let Some(default) = setting.default {
                let _ = write!(help, " [default: {default}]");
            }
            let _ = write!(help, " [env: {}]", setting.environment());
            let arg = Arg::new(setting.name).long(setting.name).help(help).global(true).help_heading("Settings");
            if setting.switch { arg.action(ArgAction::SetTrue) } else { arg.value_name("VALUE") }
        })
    };
    // A command's help shows the settings that mean something to it; the others may be given all the same.
    let only = |command: Command, wanted: &'static [&'static str]| {
        command.args(settings().filter(|arg| !wanted.contains(&arg.get_id().as_str())).map(|arg| arg.hide(true)))
    };
    let api_url = Arg::new("api-url")
        .long("api-url")
        .global(true)
        .value_name("URL")
        .help("Where the API is; default: the internal listener of these settings [env: GATEWAY_API_URL]");
    let json = Arg::new("json")
        .long("json")
        .global(true)
        .action(ArgAction::SetTrue)
        .help("Print JSON also on a terminal, as always into a file or a pipe");
    // Clients of the API.
    let client =
        |command: Command| only(command.arg(api_url.clone()).arg(json.clone()), &["api-key", "internal-listen"]);
    let room = Arg::new("room").required(true).value_name("ROOM");
    let user = Arg::new("user").required(true).value_name("USER");
    let dead = Arg::new("dead").required(true).value_name("DEAD_ID");
    Command::new("gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The WebSocket tier of a Django Channels application")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(settings())
        .arg(
            Arg::new("config")
                .long("config")
                .global(true)
                .value_name("FILE")
                .help("TOML file with settings [env: GATEWAY_CONFIG]"),
        )
        .subcommand(Command::new("serve").about("Run a node"))
        .subcommand(only(
            Command::new("migrate")
                .about("Bring the database's tables up to date, or tell which migrations are applied")
                .arg(Arg::new("what").value_parser(["up", "status"]).default_value("up")),
            &["database-url", "database-connections"],
        ))
        .subcommand(only(
            Command::new("import")
                .about("Bring rooms, messages and notifications of another system in, while nodes run")
                .arg(
                    Arg::new("file")
                        .required(true)
                        .value_name("FILE")
                        .help("Lines of JSON; - reads them from standard input (docs/importing.md)"),
                )
                .arg(
                    Arg::new("append")
                        .long("append")
                        .action(ArgAction::SetTrue)
                        .help("Also into rooms and inboxes that hold messages of another source"),
                )
                .arg(
                    Arg::new("skip-bad")
                        .long("skip-bad")
                        .action(ArgAction::SetTrue)
                        .help("Store the rest of a room or inbox of which a line cannot be read"),
                )
                .arg(
                    Arg::new("spool-dir").long("spool-dir").value_name("DIR").help(
                        "Where standard input is kept while it is checked [default: the system's for such files]",
                    ),
                )
                .arg(
                    Arg::new("spool-bytes")
                        .long("spool-bytes")
                        .value_name("N")
                        .default_value("17179869184")
                        .value_parser(clap::value_parser!(u64))
                        .help("How much of it at most"),
                )
                .arg(json.clone()),
            &["database-url", "database-connections", "redis-url", "layer", "layer-prefix", "namespace"],
        ))
        .subcommand(
            Command::new("check-config")
                .about("Check the settings; with --live also Redis and the database")
                .arg(Arg::new("live").long("live").action(ArgAction::SetTrue)),
        )
        .subcommand(Command::new("config").about("Show the settings in force, and where each comes from"))
        .subcommand(only(
            Command::new("plan")
                .about("Reckon how many nodes, and what of the database, Redis and the balancer, so many users need")
                .args(PLAN.iter().map(|(name, default, help)| {
                    Arg::new(*name).long(*name).value_name("N").default_value(*default).value_parser(amount).help(*help)
                })),
            &[],
        ))
        .subcommand(only(
            Command::new("genconfig").about("Print a settings file with every setting and its default"),
            &[],
        ))
        .subcommand(only(
            Command::new("token")
                .about("Sign a token for a user with the first JWT secret")
                .arg(user.clone())
                .arg(Arg::new("rooms").long("rooms").value_name("A,B").help("Rooms that count for the socket"))
                .arg(
                    Arg::new("seconds")
                        .long("seconds")
                        .value_name("N")
                        .default_value("3600")
                        .value_parser(clap::value_parser!(u64)),
                ),
            &["jwt-secret", "jwt-user-claim", "jwt-audience", "jwt-issuer"],
        ))
        .subcommand(client(
            Command::new("notify")
                .about("Notify a user")
                .arg(user.clone())
                .arg(Arg::new("text").required(true).value_name("TEXT"))
                .arg(Arg::new("from").long("from").value_name("NAME").default_value("gateway").help("Who it is from"))
                .arg(
                    Arg::new("id")
                        .long("id")
                        .value_name("ID")
                        .help("Identity, up to 128 bytes: the same again changes nothing; default: a new one"),
                ),
        ))
        .subcommand(client(
            Command::new("announce")
                .about("Tell everybody who is connected, on all nodes")
                .arg(Arg::new("text").required(true).value_name("TEXT"))
                .arg(Arg::new("data").long("data").value_name("JSON").help("An object of your own beside the text")),
        ))
        .subcommand(client(
            Command::new("room")
                .about("Rooms and members")
                .subcommand_required(true)
                .subcommand(Command::new("list").about("List the rooms"))
                .subcommand(
                    Command::new("create")
                        .about("Make a room")
                        .arg(room.clone())
                        .arg(Arg::new("display-name").long("display-name").value_name("NAME")),
                )
                .subcommand(Command::new("delete").about("Delete a room with its messages").arg(room.clone()))
                .subcommand(Command::new("show").about("Show a room").arg(room.clone()))
                .subcommand(
                    Command::new("redact")
                        .about("Take away what a message says; its place stays")
                        .arg(room.clone())
                        .arg(Arg::new("id").required(true).value_name("ID")),
                )
                .subcommand(Command::new("add").about("Put a user into a room").arg(room.clone()).arg(user.clone()))
                .subcommand(Command::new("remove").about("Take a user out of a room").arg(room).arg(user.clone())),
        ))
        .subcommand(client(
            Command::new("user")
                .about("Where a user is connected, closing that, and taking a user away")
                .subcommand_required(true)
                .subcommand(Command::new("show").about("List a user's sockets, on all nodes").arg(user.clone()))
                .subcommand(
                    Command::new("disconnect")
                        .about("Close a user's sockets, on all nodes")
                        .arg(user.clone())
                        .arg(
                            Arg::new("code")
                                .long("code")
                                .value_name("CODE")
                                .default_value("4403")
                                .value_parser(clap::value_parser!(u16))
                                .help("Close code: clients come back by themselves after those below 4400"),
                        )
                        .arg(Arg::new("reason").long("reason").value_name("TEXT").help("Reason in the close frame")),
                )
                .subcommand(
                    Command::new("erase")
                        .about("Close the sockets, leave all rooms, delete the inbox, and redact what the user has written")
                        .arg(user.clone())
                        .arg(
                            Arg::new("keep-messages")
                                .long("keep-messages")
                                .action(ArgAction::SetTrue)
                                .help("Leave what the user has written into rooms"),
                        ),
                ),
        ))
        .subcommand(client(Command::new("nodes").about(
            "List the nodes that are alive, and the workers of Python consumers that the asked one is linked to",
        )))
        .subcommand(client(
            Command::new("tail")
                .about("Follow what passes the node: events on their way to sockets, sockets that come and go")
                .arg(Arg::new("user").long("user").value_name("USER").help("Only what is to, from or of this user"))
                .arg(
                    Arg::new("room")
                        .long("room")
                        .value_name("ROOM")
                        .help("Only what is for this room; with --user, either"),
                )
                .arg(
                    Arg::new("texts")
                        .long("texts")
                        .action(ArgAction::SetTrue)
                        .help("Show what people have written, too"),
                )
                .arg(
                    Arg::new("count")
                        .long("count")
                        .value_name("N")
                        .value_parser(clap::value_parser!(usize))
                        .help("End after so many; default: when it is interrupted"),
                ),
        ))
        .subcommand(client(
            Command::new("dead")
                .about("Events from the stream that can never work as they are")
                .subcommand_required(true)
                .subcommand(
                    Command::new("list")
                        .about("List the newest")
                        .arg(
                            Arg::new("limit")
                                .long("limit")
                                .value_name("N")
                                .default_value("100")
                                .value_parser(clap::value_parser!(u64))
                                .help("At most so many, up to 1000"),
                        )
                        .arg(Arg::new("before").long("before").value_name("DEAD_ID").help("Only what is older")),
                )
                .subcommand(Command::new("show").about("Show one").arg(dead.clone()))
                .subcommand(Command::new("retry").about("Write it to the stream again").arg(dead.clone()))
                .subcommand(Command::new("drop").about("Forget it").arg(dead)),
        ))
        .subcommand(client(
            Command::new("healthcheck").about("Ask the local node whether it is ready; exit code 0 or 1"),
        ))
        .subcommand(only(
            Command::new("completions")
                .about("Print what a shell needs to complete these commands")
                .arg(Arg::new("shell").required(true).value_parser(clap::value_parser!(clap_complete::Shell))),
            &[],
        ))
        .subcommand(only(Command::new("man").about("Print the manual page of these commands, for man"), &[]))
        .subcommand(only(Command::new("version").about("Print the version"), &[]))
}

/// What a shell needs to complete the commands.
pub fn completions(matches: &ArgMatches) -> String {
    let mut text = Vec::new();
    if let Some(shell) = matches.get_one::<clap_complete::Shell>("shell") {
        clap_complete::generate(*shell, &mut command(), "gateway", &mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The manual page: what the command is, its settings, then each command with its own options.
pub fn manual() -> std::io::Result<String> {
    let mut root = command();
    root.build();
    let mut text = Vec::new();
    clap_mangen::Man::new(root.clone()).render(&mut text)?;
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        manual_of(command, &format!("gateway {}", command.get_name()), &mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A command, and those in it.
fn manual_of(command: &Command, name: &str, text: &mut Vec<u8>) -> std::io::Result<()> {
    use std::io::Write as _;
    let page = clap_mangen::Man::new(command.clone());
    writeln!(text, ".SH {}", name.to_uppercase())?;
    page.render_description_section(&mut *text)?;
    page.render_synopsis_section(&mut *text)?;
    let shown = |arg: &&Arg| {
        !arg.is_hide_set() && !arg.is_global_set() && !["help", "version"].contains(&arg.get_id().as_str())
    };
    if command.get_arguments().filter(shown).count() > 0 {
        page.render_options_section(&mut *text)?;
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        manual_of(inner, &format!("{name} {}", inner.get_name()), text)?;
    }
    Ok(())
}

/// Collects the settings of a command line.
pub fn settings(matches: &ArgMatches) -> Result<Collected, ConfigErrors> {
    let mut flags = HashMap::new();
    for setting in SETTINGS.iter().filter(|setting| setting.has_flag()) {
        if setting.switch {
            if matches.get_flag(setting.name) {
                flags.insert(setting.name.to_owned(), "true".to_owned());
            }
        } else if let Some(value) = matches.get_one::<String>(setting.name) {
            flags.insert(setting.name.to_owned(), value.clone());
        }
    }
    let file = match given(matches, "config", "GATEWAY_CONFIG") {
        Some(path) => Some(read_settings(&path)?),
        None => None,
    };
    let mut collected = collect(&flags, &|name| std::env::var(name).ok(), file.as_deref())?;
    collected.check_environment(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))?;
    Ok(collected)
}

/// A flag, or else its variable. Empty is unset.
fn given(matches: &ArgMatches, name: &str, variable: &str) -> Option<String> {
    let flag = matches.get_one::<String>(name).cloned().filter(|value| !value.is_empty());
    flag.or_else(|| std::env::var(variable).ok().filter(|value| !value.is_empty()))
}

/// What `plan` is told: option, default, help.
const PLAN: [(&str, &str, &str); 6] = [
    ("users", "10000", "People who are there at the same time"),
    ("messages", "100", "Chat messages a second, all rooms together"),
    ("members", "50", "Sockets that hear a message"),
    ("sockets-per-user", "1.5", "Tabs and devices of each"),
    ("connects", "50", "Sockets that come, and go, a second"),
    ("cores", "2", "Cores of a node"),
];

fn amount(text: &str) -> Result<f64, String> {
    let amount: f64 = text.parse().map_err(|_| "a number, please".to_owned())?;
    if amount > 0.0 && amount <= 1e9 { Ok(amount) } else { Err("more than 0, at most 1000000000".into()) }
}

/// What so many users need.
pub fn plan(matches: &ArgMatches) -> String {
    let given = |name: &str| matches.get_one::<f64>(name).copied().unwrap_or_default();
    plan::plan(&Load {
        users: given("users"),
        messages: given("messages"),
        members: given("members"),
        sockets_per_user: given("sockets-per-user"),
        connects: given("connects"),
        cores: given("cores"),
    })
    .unwrap_or_else(|error| format!("the figures cannot be read: {error}"))
}

/// A settings file with every setting, its meaning and its default.
pub fn genconfig() -> String {
    let mut text =
        String::from("# Settings of the channel gateway. A flag or an environment variable goes over this file.\n");
    let mut section = "";
    for setting in SETTINGS {
        let key = setting.file_key();
        let (in_section, key) = key.split_once('.').unwrap_or(("", &key));
        if in_section != section {
            section = setting.name.split('.').next().unwrap_or_default();
            // There may be none of them, or several.
            let header = if section == "bridge" { "#[[bridge]]".to_owned() } else { format!("[{section}]") };
            let _ = write!(text, "\n{header}\n");
        }
        let number = setting.default.is_some_and(|default| default.parse::<f64>().is_ok());
        let value = match setting.default {
            Some(default) if number => default.to_owned(),
            Some(default) => format!("{default:?}"),
            None if setting.switch => "false".to_owned(),
            None => "\"\"".to_owned(),
        };
        let _ = write!(text, "# {}\n# {}\n#{key} = {value}\n", setting.help, setting.environment());
    }
    text
}

/// The settings in force, secrets hidden. Defaults that follow from others are what they are here.
pub fn show(collected: &Collected, config: &Config) -> String {
    let computed = |name: &str| -> Option<String> {
        Some(match name {
            "layer" => config.layer.kind.name().to_owned(),
            "room-policy" => match config.room_policy {
                RoomPolicy::Open => "open".to_owned(),
                RoomPolicy::Members => "members".to_owned(),
            },
            "allowed-origins" => "the request's own host".to_owned(),
            "node-id" => format!("{} (another one each time)", config.node_id),
            "log-level" => std::env::var("RUST_LOG").ok().filter(|level| !level.is_empty()).unwrap_or("info".into()),
            _ => return None,
        })
    };
    let mut text = String::new();
    let in_file = collected.bridges().count() > 0;
    for setting in SETTINGS.iter().filter(|setting| !(in_file && setting.name.starts_with("bridge."))) {
        let value = match collected.get(setting.name) {
            None => match computed(setting.name) {
                Some(computed) => computed,
                None if setting.switch => "false".to_owned(),
                None => "(not set)".to_owned(),
            },
            Some(_) if setting.secret && collected.source(setting.name) != Source::Default => "(hidden)".to_owned(),
            Some(value) => value.to_owned(),
        };
        let source = match collected.source(setting.name) {
            Source::Default => "default",
            Source::File => "file",
            Source::Environment => "environment",
            Source::Flag => "flag",
        };
        let _ = writeln!(text, "{:<34} {value}  [{source}]", setting.name);
    }
    for (number, bridge) in collected.bridges().enumerate() {
        for (key, value) in bridge {
            let _ = writeln!(text, "{:<34} {value}  [file]", format!("bridge.{}.{key}", number + 1));
        }
    }
    text
}

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
        let key = config.api_key.as_ref().map(|key| key.expose_secret().to_owned());
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
                let nodes = answer["nodes"].as_array().into_iter().flatten();
                let nodes = table(&json!({"nodes": nodes.map(|node| json!({"node": node})).collect::<Vec<_>>()}));
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

/// Something that passed on one line: when and what, then its fields by name, the texts last.
fn line(event: &Value) -> String {
    const TEXTS: [&str; 3] = ["message", "text", "data"];
    let field = |name: &str| event.get(name).map(cell);
    let mut words: Vec<String> = [field("at"), field("what")].into_iter().flatten().collect();
    let fields = event.as_object().into_iter().flatten();
    let (texts, others): (Vec<_>, Vec<_>) = fields
        .filter(|(name, _)| !["at", "what"].contains(&name.as_str()))
        .partition(|(name, _)| TEXTS.contains(&name.as_str()));
    words.extend(others.into_iter().chain(texts).map(|(name, value)| format!("{name}={}", cell(value))));
    words.join("  ")
}

/// An answer as people read it: a list as a table, anything else a line for each of its fields.
fn table(answer: &Value) -> String {
    let Some(fields) = answer.as_object() else { return cell(answer) };
    let lists = fields.values().filter_map(Value::as_array).filter(|list| list.iter().all(Value::is_object));
    let (list, is_list) = match lists.collect::<Vec<_>>()[..] {
        [list] if fields.values().all(|value| value.is_array() || value.is_boolean()) => (list.clone(), true),
        _ => (Vec::new(), false),
    };
    let rows: Vec<Vec<(String, String)>> = match is_list {
        true => list.iter().map(cells).collect(),
        false => return aligned(cells(answer).into_iter().map(|(name, value)| vec![name, value]).collect()),
    };
    if rows.is_empty() {
        return "none".to_owned();
    }
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let head = columns.iter().map(|name| name.to_uppercase()).collect();
    let body = rows.iter().map(|row| {
        let of = |column: &&str| row.iter().find(|(name, _)| name == column).map_or("-", |(_, value)| value).to_owned();
        columns.iter().map(of).collect()
    });
    aligned(std::iter::once(head).chain(body).collect())
}

/// The fields of an object, with those of the objects in it.
fn cells(value: &Value) -> Vec<(String, String)> {
    let fields = value.as_object().into_iter().flatten();
    fields
        .flat_map(|(name, value)| match value {
            Value::Object(_) => cells(value),
            value => vec![(name.clone(), cell(value))],
        })
        .collect()
}

/// A value on one line; what cannot be seen is escaped.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn aligned(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn a_commands_help_shows_its_own_options_first_and_the_servers_not_at_all() {
        let help = |command: &str| {
            let mut root = super::command();
            root.build();
            root.find_subcommand_mut(command).unwrap().render_long_help().to_string()
        };
        let notify = help("notify");
        let at = |what: &str| notify.find(what).unwrap_or_else(|| panic!("{what}: {notify}"));
        assert!(at("--from") < at("--api-key") && at("--id") < at("--internal-listen") && at("--json") > 0);
        assert!(!notify.contains("--room-policy") && !notify.contains("--database-url"), "{notify}");
        assert!(help("migrate").contains("--database-url") && !help("migrate").contains("--api-key"));
        assert!(help("serve").contains("--room-policy") && !help("serve").contains("--api-url"));
        // Given all the same, in front and behind.
        for words in
            [&["gateway", "--listen", "x", "notify", "a", "b"][..], &["gateway", "notify", "a", "b", "--listen", "x"]]
        {
            let matches = super::command().try_get_matches_from(words).unwrap();
            let (_, notify) = matches.subcommand().unwrap();
            assert_eq!(notify.get_one::<String>("listen").unwrap(), "x", "{words:?}");
        }
    }

    #[test]
    fn people_read_tables() {
        let rooms = json!({"rooms": [
            {"name": "lobby", "display_name": "The \u{202e}Lobby", "seq": 7}, {"name": "a", "display_name": "a", "seq": 10},
        ]});
        let lines = ["DISPLAY_NAME       NAME   SEQ", "The \\u{202e}Lobby  lobby  7", "a                  a      10"];
        assert_eq!(table(&rooms), lines.join("\n"));
        let room = json!({"name": "lobby", "members": ["alice", "bob"], "online": [], "seq": 7});
        assert_eq!(table(&room), "members  alice, bob\nname     lobby\nonline   -\nseq      7");
        let dead =
            json!({"dead": [{"dead_id": "1-0", "fields": {"id": "42", "reason": "no_room"}}], "has_more": false});
        assert_eq!(table(&dead), "DEAD_ID  ID  REASON\n1-0      42  no_room");
        assert_eq!(table(&json!({"dead": [], "has_more": false})), "none");
    }

    #[test]
    fn what_passes_is_a_line() {
        let event = json!({"at": "2026-01-02T03:04:05.000006Z", "what": "chat_message", "message": "a\nb", "room": "lobby", "sockets": 2});
        assert_eq!(line(&event), "2026-01-02T03:04:05.000006Z  chat_message  room=lobby  sockets=2  message=a\\nb");
    }

    #[test]
    fn the_manual_and_the_shells_know_every_command() {
        let manual = manual().unwrap();
        let mut root = super::command();
        root.build();
        for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = command.get_name();
            assert!(manual.contains(&format!(".SH GATEWAY {}\n", name.to_uppercase())), "{name}");
            for shell in ["bash", "zsh", "fish"] {
                let matches = super::command().try_get_matches_from(["gateway", "completions", shell]).unwrap();
                assert!(completions(matches.subcommand().unwrap().1).contains(name), "{shell} {name}");
            }
        }
        assert!(manual.contains("GATEWAY USER DISCONNECT") && manual.contains("\\-\\-listen"), "{manual}");
    }

    #[test]
    fn the_document_of_all_settings_is_true() {
        let document = include_str!("../../docs/configuration.md");
        assert!(document.contains(&genconfig()), "docs/configuration.md must hold what `gateway genconfig` prints");
    }

    #[test]
    fn a_generated_file_is_a_valid_file() {
        let file: String = genconfig()
            .split("#[[bridge]]")
            .take(1)
            .flat_map(str::lines)
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|line| !line.starts_with(' ') && line.contains(" = "))
                    .unwrap_or(line)
                    .to_owned()
                    + "\n"
            })
            .filter(|line| !line.contains("= \"\""))
            .collect();
        let collected = collect(&HashMap::new(), &|_| None, Some(&file)).unwrap();
        Config::from_collected(&collected).unwrap();
    }
}
