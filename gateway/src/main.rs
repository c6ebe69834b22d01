//! The `gateway` binary: arguments, settings, logs, then a command.
#![allow(clippy::print_stdout, reason = "what a command is asked for goes to standard output")]

mod allocator;
mod log;

use std::process::ExitCode;

use gateway::cli::{self, ApiClient};
use gateway::config::{self, ConfigErrors};
use gateway::{Config, Node, consumers, store_options};
use persistence::Store;

/// Wrong settings.
const WRONG_SETTINGS: u8 = 2;

/// The drain window passed with sockets left.
const SOCKETS_LEFT: u8 = 3;

fn main() -> ExitCode {
    let matches = cli::command().get_matches();
    // Another provider installed before us would be ours too; the error says just that.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Each socket is a file; the usual soft limit of 1,024 would be reached by the first busy minute.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        eprintln!("warning: the limit of open files stays as it is: {error}");
    }
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_park(allocator::on_park).build() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&error.into()),
        };
    runtime.block_on(run(&matches))
}

async fn run(matches: &clap::ArgMatches) -> ExitCode {
    let Some((command, arguments)) = matches.subcommand() else { return ExitCode::from(WRONG_SETTINGS) };
    match command {
        "version" => {
            println!("gateway {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        "genconfig" => {
            print!("{}", cli::genconfig());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let collected = match cli::settings(arguments) {
        Ok(collected) => collected,
        Err(errors) => return wrong_settings(&errors),
    };
    let config = match Config::from_collected(&collected) {
        Ok(config) => config,
        Err(errors) => return wrong_settings(&errors),
    };
    let result = match command {
        "config" => {
            print!("{}", cli::show(&collected));
            Ok(ExitCode::SUCCESS)
        }
        "serve" => match config.check_serve() {
            Ok(()) => serve(config, &config::warnings(&collected)).await,
            Err(errors) => return wrong_settings(&errors),
        },
        "migrate" => migrate(&config, arguments).await,
        "check-config" => match config.check_serve() {
            Ok(()) => {
                config::warnings(&collected).iter().for_each(|warning| println!("warning: {warning}"));
                check_config(&config, arguments.get_flag("live")).await
            }
            Err(errors) => return wrong_settings(&errors),
        },
        "token" => token(&config, arguments),
        "healthcheck" => healthcheck(&config, arguments).await,
        _ => call_api(&config, command, arguments).await,
    };
    result.unwrap_or_else(|error| failed(&error))
}

/// Runs a node until it is asked to stop, and leaves well.
async fn serve(config: Config, warnings: &[String]) -> anyhow::Result<ExitCode> {
    let log = log::start(config.log_json);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let dev = config.dev;
    let mut stop = StopSignals::new()?;
    let users = tokio::select! {
        users = gateway::check_users(&config) => users,
        () = stop.recv() => return Ok(ExitCode::SUCCESS),
    };
    match users {
        Ok(warning) => warning.iter().for_each(|warning| tracing::warn!("{warning}")),
        Err(errors) => return Ok(wrong_settings(&errors)),
    }
    // While it waits for Redis or the database too.
    let node = tokio::select! {
        node = Node::start(config, consumers::routes()) => node?,
        () = stop.recv() => {
            tracing::info!("asked to stop before the start was done");
            return Ok(ExitCode::SUCCESS);
        }
    };
    tracing::info!(public = %node.public, internal = %node.internal, node = node.node().config.node_id, "listening");
    if dev {
        println!("open http://{}/", node.public);
    }
    let metrics = &node.node().metrics;
    let moves = || (2 * metrics.connections_opened.get()).saturating_sub(metrics.connections.get().unsigned_abs());
    tokio::select! {
        () = stop.recv() => {}
        () = allocator::give_back_after_storms(moves) => {}
        () = allocator::give_back_when(async || node.node().memory_wanted().await) => {}
        () = log.count_dropped(|lines| _ = metrics.log_lines_dropped.set(lines)) => {}
    }
    let left = tokio::select! {
        left = node.drain() => left,
        () = stop.recv() => {
            tracing::warn!("asked to stop again: leaving at once");
            return Ok(ExitCode::from(SOCKETS_LEFT));
        }
    };
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::from(SOCKETS_LEFT) })
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn migrate(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let store = Store::connect(store_options(config)).await?;
    if arguments.get_one::<String>("what").is_some_and(|what| what == "status") {
        for (name, applied) in store.migration_status().await? {
            println!("{name}  {}", if applied { "applied" } else { "pending" });
        }
        return Ok(ExitCode::SUCCESS);
    }
    let applied = store.migrate().await?;
    applied.iter().for_each(|name| println!("applied {name}"));
    if applied.is_empty() {
        println!("nothing to do");
    }
    Ok(ExitCode::SUCCESS)
}

async fn check_config(config: &Config, live: bool) -> anyhow::Result<ExitCode> {
    match gateway::check_users(config).await {
        Ok(warning) => warning.iter().for_each(|warning| println!("warning: {warning}")),
        Err(errors) => return Ok(wrong_settings(&errors)),
    }
    if live {
        let store = Store::connect(store_options(config)).await?;
        store.ping().await?;
        println!("the database answers");
        let odd = gateway::check_layer(config).await?;
        println!("the channel layer answers");
        if let Some(odd) = odd {
            println!("warning: {odd}");
        }
        if gateway::check_site(config).await? {
            println!("the site's users can be read, and its sessions where they are wanted");
        }
    }
    println!("the settings are good");
    Ok(ExitCode::SUCCESS)
}

fn token(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let auth = config.jwt();
    let user = arguments.get_one::<String>("user").cloned().unwrap_or_default();
    let rooms =
        arguments.get_one::<String>("rooms").map(|rooms| rooms.split(',').map(str::to_owned).collect::<Vec<_>>());
    gateway::check_user_name(&user).map_err(|rule| anyhow::anyhow!("{user:?} is not valid: {rule}"))?;
    for name in rooms.iter().flatten() {
        gateway::check_name(name).map_err(|rule| anyhow::anyhow!("{name:?} is not valid: {rule}"))?;
    }
    let seconds = arguments.get_one::<u64>("seconds").copied().unwrap_or(3600);
    println!("{}", auth.sign(&user, rooms.as_deref(), seconds)?);
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(config: &Config, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    let ready = ApiClient::new(arguments, config)?.is_ready().await;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn call_api(config: &Config, command: &str, arguments: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    println!("{}", ApiClient::new(arguments, config)?.run(command, arguments).await?);
    Ok(ExitCode::SUCCESS)
}

fn wrong_settings(errors: &ConfigErrors) -> ExitCode {
    for error in &errors.0 {
        eprintln!("error: {error}");
    }
    ExitCode::from(WRONG_SETTINGS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
