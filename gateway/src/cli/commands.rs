//! What may be asked, its manual, and what shells need to complete it.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::SETTINGS;

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
        .subcommand(only(
            Command::new("export")
                .about("Write all rooms, messages and notifications as lines that import reads, while nodes run")
                .arg(
                    Arg::new("file")
                        .required(true)
                        .value_name("FILE")
                        .help("Where the lines go; - writes them to standard output (docs/moving.md)"),
                )
                .arg(json.clone()),
            &["database-url", "database-connections"],
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
}
