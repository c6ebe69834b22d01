//! The settings: collected from a command line, shown, and as a file.

use std::collections::HashMap;
use std::fmt::Write as _;

use clap::ArgMatches;

use crate::config::{Collected, Config, ConfigErrors, RoomPolicy, SETTINGS, Source, collect, read_settings};
use crate::files::Files;
use crate::http_client;
use crate::memory::limit_here;

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
pub(super) fn given(matches: &ArgMatches, name: &str, variable: &str) -> Option<String> {
    let flag = matches.get_one::<String>(name).cloned().filter(|value| !value.is_empty());
    flag.or_else(|| std::env::var(variable).ok().filter(|value| !value.is_empty()))
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

/// The settings in force, secrets hidden. Defaults that follow from others or from the machine are what they are here.
pub fn show(collected: &Collected, config: &Config) -> String {
    let computed = |name: &str| -> Option<String> {
        Some(match name {
            "layer" => config.layer.kind.name().to_owned(),
            "room-policy" => match config.room_policy {
                RoomPolicy::Open => "open".to_owned(),
                RoomPolicy::Members => "members".to_owned(),
            },
            "allowed-origins" => "the request's own host".to_owned(),
            "django.session_salt" => config.django.salt.clone(),
            "django.database_url" => "that of database-url".to_owned(),
            "bridge.frame_bytes" => config.limits.frame_bytes.to_string(),
            "bridge.outbox_bytes" => config.limits.outbox_bytes.to_string(),
            "node-id" => format!("{} (another one each time)", config.node_id),
            "log-level" => std::env::var("RUST_LOG").ok().filter(|level| !level.is_empty()).unwrap_or("info".into()),
            _ => return None,
        })
    };
    // What a limit that is 0 comes to.
    let here = |name: &str| match name {
        "limits.connections" => Some(format!("the open files leave room for {}", Files::of(config).sockets)),
        "limits.memory_bytes" => Some(match limit_here() {
            Some(bytes) => format!("the cgroup leaves {bytes}"),
            None => "none: the cgroup has no limit".to_owned(),
        }),
        _ => None,
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
            Some(value) => match here(setting.name).filter(|_| value == "0") {
                Some(here) => format!("{value} ({here})"),
                // User, password and query of a URL may be secrets.
                None if value.contains("://") && ["jwks", "auth-url", "otlp-endpoint"].contains(&setting.name) => {
                    reqwest::Url::parse(value).map_or_else(|_| "(hidden)".to_owned(), |url| http_client::shown(&url))
                }
                None => value.to_owned(),
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_of_all_settings_is_true() {
        let document = include_str!("../../../docs/configuration.md");
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
