//! What a binary is: arguments, settings, logs, then a command.

mod allocator;
mod log;
mod systemd;

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;

use persistence::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{self, ApiClient};
use crate::config::{self, Collected, Config, ConfigErrors};
use crate::consumers::routing::Router;
use crate::import;
use crate::live::check_live;
use crate::names;
use crate::redis::NodeIdError;
use crate::start::{NodeError, RunningNode, check_site, check_users};
use crate::storing::store::store_options;
use log::Log;
use systemd::Systemd;

/// Wrong settings.
const WRONG_SETTINGS: u8 = 2;

/// The drain window passed with sockets left.
const SOCKETS_LEFT: u8 = 3;

/// A whole program with these routes: the command line with all its commands and settings, the log, signals, the limit
/// of open files and, with the feature `allocator`, the allocator. `serve` runs a node until it is asked to stop. What it
/// returns is for `main` to return; [operations](https://github.com/channel-gateway/channel-gateway) explains each code.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     // The built-in consumers, and those of one's own.
///     gateway::run(gateway::consumers::routes())
/// }
/// ```
pub fn run(routes: Router) -> ExitCode {
    let matches = cli::command().get_matches();
    // Another provider installed before us would be ours too; the error says just that.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Each socket is a file; the usual soft limit of 1,024 would be reached by the first busy minute.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        note(&format!("warning: the limit of open files stays as it is: {error}"));
    }
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_park(allocator::on_park).build() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&error.into()),
        };
    runtime.block_on(command(&matches, routes))
}

async fn command(matches: &clap::ArgMatches, routes: Router) -> ExitCode {
    let Some((command, arguments)) = matches.subcommand() else { return ExitCode::from(WRONG_SETTINGS) };
    match command {
        "version" => {
            say(concat!("gateway ", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        "genconfig" => {
            say(cli::genconfig().trim_end());
            return ExitCode::SUCCESS;
        }
        "plan" => {
            say(cli::plan(arguments).trim_end());
            return ExitCode::SUCCESS;
        }
        "completions" => {
            say(cli::completions(arguments).trim_end());
            return ExitCode::SUCCESS;
        }
        "man" => {
            return match cli::manual() {
                Ok(page) => {
                    say(page.trim_end());
                    ExitCode::SUCCESS
                }
                Err(error) => failed(&error.into()),
            };
        }
        _ => {}
    }
    let collected = match cli::settings(arguments) {
        Ok(collected) => collected,
        Err(errors) => return wrong_settings(&errors),
    };
    let config = match Config::from_collected(&collected) {
        Ok(config) => config,
        Err(errors) => {
            // A misspelt variable may be why.
            config::warnings(&collected).iter().for_each(|warning| complain(&format!("warning: {warning}")));
            return wrong_settings(&errors);
        }
    };
    let result = match command {
        "config" => {
            say(cli::show(&collected, &config).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        "serve" => match config.check_serve() {
            Ok(()) => serve(config, collected, arguments, routes).await,
            Err(errors) => return wrong_settings(&errors),
        },
        "migrate" => migrate(&config, arguments).await,
        "import" => bring_over(&config, arguments).await,
        "export" => take_out(&config, arguments).await,
        "check-config" => match config.check_serve() {
            Ok(()) => {
                let warnings = config::warnings(&collected).into_iter().chain(config.drain.warning());
                warnings.for_each(|warning| say(&format!("warning: {warning}")));
                check_config(&config, arguments.get_flag("live")).await
            }
            Err(errors) => return wrong_settings(&errors),
        },
        "token" => token(&config, arguments),
        "tail" => tail(&config, arguments).await,
        "healthcheck" => healthcheck(&config, arguments).await,
        _ => call_api(&config, command, arguments).await,
    };
    result.unwrap_or_else(|error| failed(&error))
}

/// Runs a node until it is asked to stop, and leaves well.
async fn serve(
    config: Config,
    collected: Collected,
    arguments: &clap::ArgMatches,
    routes: Router,
) -> anyhow::Result<ExitCode> {
    // Before anything else: a signal is obeyed at any time.
    let (mut stop, mut hangup) = (StopSignals::new()?, signal(SignalKind::hangup())?);
    let log = log::start(config.log_json, config.log_level.as_deref());
    let systemd = Systemd::from_env();
    let mut beat = pin!(systemd.beat());
    config::warnings(&collected).iter().for_each(|warning| tracing::warn!("{warning}"));
    config.drain.warning().iter().for_each(|warning| tracing::warn!("{warning}"));
    let dev = config.dev;
    let users = tokio::select! {
        users = check_users(&config) => users,
        () = stop.recv() => return Ok(ExitCode::SUCCESS),
    };
    match users {
        Ok(warning) => warning.iter().for_each(|warning| tracing::warn!("{warning}")),
        Err(errors) => return Ok(wrong_settings(&errors)),
    }
    // While it waits for Redis or the database too.
    let starting = async {
        let mut starting = pin!(RunningNode::start(config, routes));
        loop {
            tokio::select! {
                node = &mut starting => return node,
                _ = hangup.recv() => tracing::info!("asked to read the settings again: not before the node runs"),
            }
        }
    };
    let node = tokio::select! {
        node = starting => node?,
        () = stop.recv() => {
            tracing::info!("asked to stop before the start was done");
            return Ok(ExitCode::SUCCESS);
        }
    };
    tracing::info!(public = %node.public, internal = %node.internal, node = node.node().config.node_id, "listening");
    systemd.ready();
    if dev {
        say(&format!("open http://{}/", node.public));
    }
    let metrics = &node.node().metrics;
    let moves = || (2 * metrics.connections_opened.get()).saturating_sub(metrics.connections.get().unsigned_abs());
    let reloads = async {
        let mut collected = collected;
        loop {
            // Never the last one: the sender is the process.
            hangup.recv().await;
            reload(&node, &mut collected, arguments, &log);
        }
    };
    tokio::select! {
        () = stop.recv() => {}
        never = &mut beat => match never {},
        () = reloads => {}
        () = allocator::give_back_after_storms(moves) => {}
        () = allocator::give_back_when(async || node.node().memory_wanted().await) => {}
        () = log.count_dropped(|lines| metrics.take_log_lines_dropped(lines)) => {}
    }
    let drain = &node.node().config.drain;
    systemd.stopping(drain.delay.saturating_add(drain.window));
    let drained = async {
        let mut drained = pin!(node.drain());
        loop {
            tokio::select! {
                left = &mut drained => return left,
                _ = hangup.recv() => tracing::info!("asked to read the settings again: the node is leaving"),
            }
        }
    };
    let left = tokio::select! {
        left = drained => left,
        never = &mut beat => match never {},
        () = stop.recv() => {
            tracing::warn!("asked to stop again: leaving at once");
            return Ok(ExitCode::from(SOCKETS_LEFT));
        }
    };
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::from(SOCKETS_LEFT) })
}

/// Reads the settings again and takes over what can change. What is wrong changes nothing.
fn reload(node: &RunningNode, collected: &mut Collected, arguments: &clap::ArgMatches, log: &Log) {
    let read = cli::settings(arguments).and_then(|new| {
        let config = Config::from_collected(&new)?;
        config.check_serve()?;
        Ok((new, config))
    });
    let (new, config) = match read {
        Ok(read) => read,
        Err(ConfigErrors(errors)) => {
            errors.iter().for_each(|error| tracing::error!("the settings stay as they were: {error}"));
            return;
        }
    };
    let before = &node.node().config;
    let (mut changed, fixed): (Vec<_>, Vec<_>) =
        new.differences(collected).partition(|setting| before.takes(&config, setting));
    let renewed = before.renewed_certificates(&config);
    changed.extend(renewed.into_iter().filter(|setting| !changed.contains(setting)).collect::<Vec<_>>());
    if let Err(error) = node.reload(&config) {
        tracing::error!(error = &error as &dyn std::error::Error, "the settings stay as they were");
        return;
    }
    log.set_level(config.log_level.as_deref());
    config.drain.warning().iter().for_each(|warning| tracing::warn!("{warning}"));
    for setting in fixed {
        tracing::warn!(setting, "another value of this setting needs a restart");
    }
    tracing::info!(changed = changed.join(", "), "the settings were read again");
    *collected = new;
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A line of what a command is asked for. Whoever reads it may have gone, which ends nothing.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A line beside it.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn complain(error: &str) {
    note(&format!("error: {error}"));
}

async fn migrate(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let store = Store::connect(store_options(config)).await?;
    if arguments.get_one::<String>("what").is_some_and(|what| what == "status") {
        for (name, applied) in store.migration_status().await? {
            say(&format!("{name}  {}", if applied { "applied" } else { "pending" }));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let applied = store.migrate().await?;
    applied.iter().for_each(|name| say(&format!("applied {name}")));
    if applied.is_empty() {
        say("nothing to do");
    }
    Ok(ExitCode::SUCCESS)
}

async fn bring_over(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let text = |name| arguments.get_one::<String>(name).cloned();
    let options = import::Options {
        file: text("file").unwrap_or_default(),
        append: arguments.get_flag("append"),
        skip_bad: arguments.get_flag("skip-bad"),
        spool_dir: text("spool-dir").map_or_else(std::env::temp_dir, Into::into),
        spool_bytes: arguments.get_one("spool-bytes").copied().unwrap_or(u64::MAX),
    };
    let skip_bad = options.skip_bad;
    let report = import::run(config, options).await?;
    let for_people = std::io::stdout().is_terminal() && !arguments.get_flag("json");
    say(&if for_people { report.text() } else { serde_json::to_string(&report)? });
    Ok(if report.is_whole(skip_bad) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn take_out(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let file = arguments.get_one::<String>("file").cloned().unwrap_or_default();
    let done = import::export::run(config, &file).await?;
    let is_json = arguments.get_flag("json");
    if file == "-" {
        // Standard output has the lines.
        note(&if is_json { serde_json::to_string(&done)? } else { done.text() });
    } else {
        let for_people = std::io::stdout().is_terminal() && !is_json;
        say(&if for_people { done.text() } else { serde_json::to_string(&done)? });
    }
    Ok(ExitCode::SUCCESS)
}

async fn check_config(config: &Config, live: bool) -> anyhow::Result<ExitCode> {
    match check_users(config).await {
        Ok(warning) => warning.iter().for_each(|warning| say(&format!("warning: {warning}"))),
        Err(errors) => return Ok(wrong_settings(&errors)),
    }
    if live {
        let found = check_live(config).await;
        found.good.iter().for_each(|good| say(good));
        found.warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
        found.errors.iter().for_each(|error| complain(error));
        if !found.errors.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        if check_site(config).await? {
            say("the site's users can be read, and its sessions where they are wanted");
        }
    }
    say("the settings are good");
    Ok(ExitCode::SUCCESS)
}

fn token(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let auth = config.jwt();
    let user = arguments.get_one::<String>("user").cloned().unwrap_or_default();
    let rooms =
        arguments.get_one::<String>("rooms").map(|rooms| rooms.split(',').map(str::to_owned).collect::<Vec<_>>());
    names::check_user(&user).map_err(|rule| anyhow::anyhow!("{user:?} is not valid: {rule}"))?;
    for name in rooms.iter().flatten() {
        names::check(name).map_err(|rule| anyhow::anyhow!("{name:?} is not valid: {rule}"))?;
    }
    let seconds = arguments.get_one::<u64>("seconds").copied().unwrap_or(3600);
    say(&auth.sign(&user, rooms.as_deref(), seconds)?.to_string());
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let ready = ApiClient::new(arguments, config)?.is_ready().await;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn tail(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let for_people = std::io::stdout().is_terminal() && !arguments.get_flag("json");
    ApiClient::new(arguments, config)?.tail(arguments, for_people, say).await?;
    Ok(ExitCode::SUCCESS)
}

async fn call_api(config: &Config, command: &str, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let for_people = std::io::stdout().is_terminal() && !arguments.get_flag("json");
    say(&ApiClient::new(arguments, config)?.run(command, arguments, for_people).await?);
    Ok(ExitCode::SUCCESS)
}

fn wrong_settings(errors: &ConfigErrors) -> ExitCode {
    for error in &errors.0 {
        complain(error);
    }
    ExitCode::from(WRONG_SETTINGS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    complain(&format!("{error:#}"));
    // Another node has the id: that is for who sets it to change.
    if let Some(NodeError::NodeId(NodeIdError::Taken(_))) = error.downcast_ref::<NodeError>() {
        return ExitCode::from(WRONG_SETTINGS);
    }
    ExitCode::FAILURE
}
