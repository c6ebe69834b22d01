//! Where settings come from, before they mean anything.

use std::collections::HashMap;

use super::bridge::{self, Table};
use super::{ConfigErrors, SETTINGS, Setting};

/// Where a value was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: the default.
    Default,
    /// The TOML file.
    File,
    /// The environment, or a file it names (`…_FILE`).
    Environment,
    /// A flag.
    Flag,
}

/// The texts of all settings that have a value.
#[derive(Clone, Default)]
pub struct Collected {
    values: HashMap<&'static str, (String, Source)>,
    /// The `[[bridge]]` of the file, in their order.
    pub(super) bridges: Vec<Table>,
    /// What is odd about the environment, a sentence each.
    odd: Vec<String>,
}

impl Collected {
    /// The text of a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(value, _)| value.as_str())
    }

    /// Where it came from.
    pub fn source(&self, name: &str) -> Source {
        self.values.get(name).map_or(Source::Default, |(_, source)| *source)
    }

    /// The settings whose values differ.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'static str> + 'a {
        let settings = SETTINGS.iter().map(|setting| setting.name).filter(|name| self.get(name) != other.get(name));
        // What can change while a node runs has names of its own.
        let kind = |key: &str| match key {
            "secret" | bridge::SECRET_FILE => "bridge.secret",
            "ca" | "certificate" | "key" => "bridge.certificates",
            _ => "bridge",
        };
        let part = move |bridges: &[Table], of: &str| -> Vec<Table> {
            let own = |table: &Table| {
                let kept = table.iter().filter(|(key, _)| kind(key) == of);
                kept.map(|(key, value)| (key.clone(), value.clone())).collect()
            };
            bridges.iter().map(own).collect()
        };
        let differ = move |kind: &&str| part(&self.bridges, kind) != part(&other.bridges, kind);
        settings.chain(["bridge", "bridge.secret", "bridge.certificates"].into_iter().filter(differ))
    }

    /// The `[[bridge]]` of the file: keys and texts of each, without secrets.
    pub fn bridges(&self) -> impl Iterator<Item = Vec<(&str, &str)>> {
        self.bridges.iter().map(|table| {
            let shown = |(key, value)| if key == "secret" { (key, "(hidden)") } else { (key, value) };
            table.iter().map(|(key, value)| shown((key.as_str(), value.as_str()))).collect()
        })
    }

    /// Looks at the names of the environment's variables: one of ours that is none is nearly always misspelt. A
    /// warning, or with `strict-env` an error.
    pub fn check_environment(&mut self, names: impl IntoIterator<Item = String>) -> Result<(), ConfigErrors> {
        let mut odd: Vec<String> = names.into_iter().filter_map(|name| misspelt(&name)).collect();
        odd.sort();
        let strict = self.get("strict-env").map(str::to_ascii_lowercase);
        let is_strict = strict.is_some_and(|text| !matches!(text.as_str(), "0" | "false" | "no" | "off"));
        if is_strict && !odd.is_empty() {
            if let Err(ConfigErrors(others)) = super::Config::from_collected(self) {
                odd.extend(others);
            }
            return Err(ConfigErrors(odd));
        }
        self.odd = odd;
        Ok(())
    }
}

/// Variables that are read past the table of settings.
const OTHERS: [&str; 2] = ["GATEWAY_CONFIG", "GATEWAY_API_URL"];

/// What to say about a variable that looks like one of ours and is none.
fn misspelt(name: &str) -> Option<String> {
    let rest = name.strip_prefix("GATEWAY_")?;
    // What Kubernetes tells of a service that is called gateway.
    let is_service = rest == "PORT"
        || rest.starts_with("SERVICE_HOST")
        || rest.starts_with("SERVICE_PORT")
        || rest.strip_prefix("PORT_").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    let known = SETTINGS.iter().flat_map(|setting| {
        let environment = setting.environment();
        let file = setting.has_file().then(|| format!("{environment}_FILE"));
        [Some(environment), file].into_iter().flatten()
    });
    let known: Vec<String> = known.chain(OTHERS.map(str::to_owned)).collect();
    if is_service || known.iter().any(|known| known == name) {
        return None;
    }
    let nearest = known.iter().min_by_key(|known| strsim::levenshtein(known, name))?;
    Some(format!("{name}: no setting has this variable; did you mean {nearest}?"))
}

/// What speaks against how settings were given, a sentence each.
pub fn warnings(collected: &Collected) -> Vec<String> {
    let shown = SETTINGS.iter().filter(|setting| {
        let is_flag = collected.source(setting.name) == Source::Flag;
        let value = collected.get(setting.name).unwrap_or_default();
        // Of a URL only the password is secret.
        setting.secret && is_flag && !value.is_empty() && (!setting.name.ends_with("-url") || has_password(value))
    });
    let warning = |setting: &Setting| {
        format!(
            "--{} shows a secret to everybody who can list this machine's processes: put it into a file and name that in \
             {}_FILE",
            setting.name,
            setting.environment()
        )
    };
    shown.map(warning).chain(collected.odd.iter().cloned()).collect()
}

/// Whether one of these URLs has a password, before its host or as a parameter.
fn has_password(urls: &str) -> bool {
    // Not cut at commas: one URL may name several hosts.
    urls.split("://").skip(1).any(|rest| {
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        place.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) || parameters.contains("password=")
    })
}

/// Collects flags over environment over file over defaults. `file` is TOML text.
pub fn collect(
    flags: &HashMap<String, String>,
    environment: &dyn Fn(&str) -> Option<String>,
    file: Option<&str>,
) -> Result<Collected, ConfigErrors> {
    let mut errors = Vec::new();
    let mut collected = Collected::default();
    let mut in_file = read_file(file.unwrap_or_default(), &mut collected.bridges, &mut errors);
    for setting in SETTINGS {
        // An empty value is an unset one, wherever it stands.
        let found = flags
            .get(setting.name)
            .filter(|value| !value.is_empty())
            .map(|value| (value.clone(), Source::Flag))
            .or_else(|| from_environment(setting, environment, &mut errors).map(|value| (value, Source::Environment)))
            .or_else(|| {
                let value = in_file.remove(&setting.file_key()).filter(|value| !value.is_empty());
                value.map(|value| (value, Source::File))
            })
            .or_else(|| setting.default.map(|value| (value.to_owned(), Source::Default)));
        if let Some(found) = found {
            collected.values.insert(setting.name, found);
        }
        in_file.remove(&setting.file_key());
    }
    for unknown in in_file.keys() {
        errors.push(unknown_key(unknown));
    }
    if errors.is_empty() {
        return Ok(collected);
    }
    // What is wrong with the values is told with it. A bridge that lacks what was misspelt is told of once.
    if errors.iter().any(|error| error.starts_with("bridge ")) {
        collected.bridges.clear();
    }
    if let Err(ConfigErrors(others)) = super::Config::from_collected(&collected) {
        errors.extend(others);
    }
    errors.sort();
    errors.dedup();
    Err(ConfigErrors(errors))
}

fn from_environment(
    setting: &Setting,
    environment: &dyn Fn(&str) -> Option<String>,
    errors: &mut Vec<String>,
) -> Option<String> {
    let name = setting.environment();
    if let Some(value) = environment(&name).filter(|value| !value.is_empty()) {
        return Some(value);
    }
    let path = environment(&format!("{name}_FILE")).filter(|path| setting.has_file() && !path.is_empty())?;
    match std::fs::read_to_string(&path) {
        Ok(text) if setting.is_list_of_secrets() => {
            Some(text.lines().filter(|line| !line.is_empty()).map(entry).collect())
                .filter(|text: &String| !text.is_empty())
        }
        Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()).filter(|text| !text.is_empty()),
        Err(error) => {
            errors.push(format!("{name}_FILE: {path} cannot be read: {error}"));
            None
        }
    }
}

/// A list whose entries may hold commas has each on a line of its own.
fn entry(text: &str) -> String {
    format!("{text}\n")
}

/// Flattens `[section]` and key to `section.key`; lists become comma-separated.
fn read_file(text: &str, bridges: &mut Vec<Table>, errors: &mut Vec<String>) -> HashMap<String, String> {
    let mut values = HashMap::new();
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            // The message without the excerpt, which could show a secret.
            errors.push(format!("the settings file is not TOML: {}", error.message()));
            return values;
        }
    };
    for (key, value) in table {
        match value {
            toml::Value::Table(bridge) if key == "bridge" => bridges.push(read_bridge(1, bridge, errors)),
            toml::Value::Array(all) if key == "bridge" && all.iter().all(toml::Value::is_table) => {
                for (number, bridge) in all.into_iter().enumerate() {
                    let toml::Value::Table(bridge) = bridge else { continue };
                    bridges.push(read_bridge(number + 1, bridge, errors));
                }
            }
            // What one holds that is none is told of by its keys.
            toml::Value::Table(section) if section.is_empty() && !is_section(&key) => {
                let nearest = sections().min_by_key(|known| strsim::levenshtein(known, &key)).unwrap_or_default();
                errors.push(format!("[{key}]: no such section; did you mean [{nearest}]?"));
            }
            toml::Value::Table(section) => {
                for (inner, value) in section {
                    insert(&mut values, format!("{key}.{inner}"), value, errors);
                }
            }
            value => insert(&mut values, key, value, errors),
        }
    }
    values
}

/// One `[[bridge]]`.
fn read_bridge(number: usize, table: toml::Table, errors: &mut Vec<String>) -> Table {
    let (mut values, mut own) = (HashMap::new(), Vec::new());
    for (key, value) in table {
        match bridge::keys().any(|known| known == key) {
            true => insert(&mut values, key, value, &mut own),
            false => {
                let nearest = bridge::keys().min_by_key(|known| strsim::levenshtein(known, &key)).unwrap_or_default();
                own.push(format!("{key}: no such key; did you mean {nearest}?"));
            }
        }
    }
    errors.extend(own.into_iter().map(|error| format!("bridge {number}: {error}")));
    values.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn insert(values: &mut HashMap<String, String>, key: String, value: toml::Value, errors: &mut Vec<String>) {
    let text = match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(switch) => switch.to_string(),
        toml::Value::Array(entries) if entries.iter().all(toml::Value::is_str) => {
            let entries = entries.iter().filter_map(toml::Value::as_str);
            match SETTINGS.iter().any(|setting| setting.is_list_of_secrets() && setting.file_key() == key) {
                true => entries.map(entry).collect(),
                false => entries.collect::<Vec<_>>().join(","),
            }
        }
        _ => {
            errors.push(format!("{key}: must be text, a number, true or false, or a list of texts"));
            return;
        }
    };
    values.insert(key, text);
}

fn sections() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter_map(|setting| Some(setting.name.split_once('.')?.0))
}

fn is_section(name: &str) -> bool {
    sections().any(|known| known == name)
}

fn unknown_key(key: &str) -> String {
    let nearest = SETTINGS.iter().map(Setting::file_key).min_by_key(|known| strsim::levenshtein(known, key));
    match nearest {
        Some(nearest) => format!("{key}: no such setting; did you mean {nearest}?"),
        None => format!("{key}: no such setting"),
    }
}
