//! The settings of Django's sessions and users: what a site's `settings.py` says of them.

use std::time::Duration;

use channel_layer::Host;
use jiff::tz::TimeZone;
use persistence::SiteTables;
use secrecy::{ExposeSecret, SecretString};

use super::Reading;

/// Where the site keeps its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEngine {
    /// `db`, and `cached_db`, whose rows are the same.
    Rows,
    /// `signed_cookies`.
    Cookies,
    /// `cache`, in Redis.
    Cache,
}

/// How to read Django's logins.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each one's meaning stands in the table of settings")]
pub struct DjangoConfig {
    /// Without one, sessions are not looked at.
    pub secret_keys: Vec<SecretString>,
    pub engine: SessionEngine,
    pub time_zone: TimeZone,
    pub cookie_name: String,
    /// In seconds.
    pub cookie_age: i64,
    pub salt: String,
    pub database_url: Option<SecretString>,
    pub database_connections: u32,
    pub database_statement: Duration,
    pub tables: SiteTables,
    pub auth_backends: Vec<String>,
    pub cache: Option<Host>,
    /// What stands before a session's key in the cache.
    pub cache_prefix: String,
    pub recheck: Duration,
}

/// Where Django's own engines stand.
const ENGINES: &str = "django.contrib.sessions.backends.";

impl Reading<'_> {
    pub(super) fn django(&mut self) -> DjangoConfig {
        let secret_keys = self.secrets("django-secret-key");
        let name = self.text("django.session_engine");
        let engine = match name.strip_prefix(ENGINES).unwrap_or(&name) {
            "db" | "cached_db" | "" => SessionEngine::Rows,
            "signed_cookies" => SessionEngine::Cookies,
            "cache" => SessionEngine::Cache,
            "file" => self.wrong("django.session_engine", "file is on Django's own disk; use --auth-url", SessionEngine::Rows),
            _ => self.wrong(
                "django.session_engine",
                "must be db, cached_db, signed_cookies or cache. For an engine of your own that keeps rows as db does, set \
                 db and django.session_salt; otherwise use --auth-url",
                SessionEngine::Rows,
            ),
        };
        let salt = match (self.text("django.session_salt"), engine) {
            (salt, _) if !salt.is_empty() => salt,
            (_, SessionEngine::Cookies) => format!("{ENGINES}signed_cookies"),
            (_, SessionEngine::Rows | SessionEngine::Cache) => "django.contrib.sessions.SessionStore".to_owned(),
        };
        let zone = self.text("django.time_zone");
        let time_zone = TimeZone::get(if zone.is_empty() { "UTC" } else { &zone }).unwrap_or_else(|_| {
            self.wrong("django.time_zone", "must be the name of a time zone, such as Europe/Berlin", TimeZone::UTC)
        });
        let cache_url = self.secret("django.cache_url");
        let cache = cache_url.and_then(|url| self.cache(url.expose_secret()));
        if engine == SessionEngine::Cache && !secret_keys.is_empty() && self.text("django.cache_url").is_empty() {
            self.errors.push("django.session_engine: cache needs django.cache_url, the Redis of the cache".to_owned());
        }
        let database_url = self.secret("django.database_url");
        if let Some(url) = &database_url {
            let scheme = url.expose_secret().split(':').next().unwrap_or_default();
            if !["sqlite", "postgres", "postgresql", "mysql", "mariadb"].contains(&scheme) {
                self.errors.push("django.database_url: must begin with sqlite:, postgres:// or mysql://".to_owned());
            }
        }
        let active = self.name("django.user_active_column", 1);
        let recheck: f64 = self.number("django.recheck_seconds");
        DjangoConfig {
            secret_keys,
            engine,
            time_zone,
            cookie_name: self.name("django.session_cookie_name", 1),
            cookie_age: self.number("django.session_cookie_age"),
            salt,
            database_url,
            database_connections: self.number::<u32>("django.database_connections").max(1),
            database_statement: self.some_time("django.database_statement_seconds"),
            tables: SiteTables {
                sessions: self.name("django.session_table", 2),
                users: self.name("django.user_table", 2),
                user_id: self.name("django.user_id_column", 1),
                user_name: self.name("django.user_name_column", 1),
                user_password: self.name("django.user_password_column", 1),
                user_active: Some(active).filter(|name| name != "-"),
            },
            auth_backends: self.list("django.auth_backends"),
            cache,
            cache_prefix: format!(
                "{}:{}",
                self.text("django.cache_key_prefix"),
                self.number::<u64>("django.cache_version")
            ),
            recheck: Duration::try_from_secs_f64(recheck).ok().filter(|every| !every.is_zero()).unwrap_or_else(|| {
                self.wrong("django.recheck_seconds", "must be more than 0", Duration::from_secs(300))
            }),
        }
    }

    /// A name of one part, or of up to two with a dot between.
    fn name(&mut self, key: &str, parts: usize) -> String {
        let name = self.text(key);
        let is_good = name.split('.').count() <= parts
            && name
                .split('.')
                .all(|part| !part.is_empty() && !part.chars().any(|c| c.is_control() || c == '"' || c == '`'));
        if is_good || parts == 1 && key.ends_with("cookie_name") && !name.is_empty() {
            return name;
        }
        let what = if parts == 1 { "must be a name" } else { "must be the name of a table, or schema.table" };
        self.wrong(key, what, name)
    }

    fn cache(&mut self, url: &str) -> Option<Host> {
        match url.parse::<Host>().and_then(|host| host.connector().map(|_| host)) {
            Ok(host) if host.is_cluster() => {
                self.wrong("django.cache_url", "a Redis Cluster cannot be read; use --auth-url", None)
            }
            Ok(host) => Some(host),
            Err(channel_layer::LayerError::Config(why)) => self.wrong("django.cache_url", &why, None),
            Err(other) => self.wrong("django.cache_url", &other.to_string(), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    fn django(file: &str) -> DjangoConfig {
        config(&[("django-secret-key", "one,two")], &[], file).unwrap().django
    }

    #[test]
    fn defaults_are_djangos() {
        let django = django("");
        let keys: Vec<_> = django.secret_keys.iter().map(|key| key.expose_secret()).collect();
        assert_eq!(keys, ["one", "two"]);
        assert_eq!(
            (django.engine, django.cookie_name.as_str(), django.cookie_age),
            (SessionEngine::Rows, "sessionid", 1_209_600)
        );
        assert_eq!(django.salt, "django.contrib.sessions.SessionStore");
        assert_eq!((django.cache_prefix.as_str(), django.recheck), (":1", Duration::from_secs(300)));
        assert_eq!(django.auth_backends, ["django.contrib.auth.backends.ModelBackend"]);
        assert_eq!(django.time_zone, TimeZone::UTC);
        let columns = [&django.tables.user_id, &django.tables.user_name, &django.tables.user_password];
        assert_eq!(columns, ["id", "username", "password"]);
        assert_eq!(
            (django.tables.users.as_str(), django.tables.user_active.as_deref()),
            ("auth_user", Some("is_active"))
        );
        assert!(!format!("{django:?}").contains("two"));
    }

    #[test]
    fn engines_by_short_and_by_dotted_name() {
        for (name, engine, salt) in [
            ("cached_db", SessionEngine::Rows, "django.contrib.sessions.SessionStore"),
            ("django.contrib.sessions.backends.db", SessionEngine::Rows, "django.contrib.sessions.SessionStore"),
            (
                "django.contrib.sessions.backends.signed_cookies",
                SessionEngine::Cookies,
                "django.contrib.sessions.backends.signed_cookies",
            ),
        ] {
            let django = django(&format!("[django]\nsession_engine = \"{name}\"\n"));
            assert_eq!((django.engine, django.salt.as_str()), (engine, salt));
        }
        let own = django(
            "[django]\nsession_salt = \"django.contrib.sessions.TenantSessionStore\"\nuser_active_column = \"-\"\n",
        );
        assert_eq!(own.salt, "django.contrib.sessions.TenantSessionStore");
        assert_eq!(own.tables.user_active, None);
        let cache =
            django("[django]\nsession_engine = \"cache\"\ncache_url = \"redis://h/1\"\ncache_key_prefix = \"s\"\n");
        assert_eq!(
            (cache.engine, cache.cache_prefix.as_str(), cache.cache.is_some()),
            (SessionEngine::Cache, "s:1", true)
        );
    }

    #[test]
    fn what_cannot_work_is_a_wrong_setting() {
        for (line, word) in [
            ("session_engine = \"file\"", "--auth-url"),
            ("session_engine = \"shop.sessions\"", "session_salt"),
            ("session_engine = \"cache\"", "cache_url"),
            ("time_zone = \"Mars/Olympus\"", "time_zone"),
            ("recheck_seconds = 0", "recheck_seconds"),
            ("user_table = \"a.b.c\"", "user_table"),
            ("user_id_column = \"a.b\"", "user_id_column"),
            ("database_url = \"mongodb://u:canary@h\"", "database_url"),
            ("cache_url = \"http://:canary@h\"", "cache_url"),
            ("cache_url = \"redis+cluster://h\"", "Cluster"),
        ] {
            let errors = config(&[("django-secret-key", "one")], &[], &format!("[django]\n{line}\n")).unwrap_err();
            assert!(
                errors.len() == 1 && errors[0].contains(word) && !errors[0].contains("canary"),
                "{line}: {errors:?}"
            );
        }
    }
}
