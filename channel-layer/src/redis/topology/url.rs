//! Texts that say where Redis is. Errors name the part that is wrong and never what it holds, as a
//! password may have got anywhere.

use std::{path::PathBuf, sync::Arc};

use percent_encoding::percent_decode_str;
use url::Url;

use super::host::{Kind, Spec, Tls};
use crate::redis::access::Address;

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Options of Python's client that mean nothing here: time limits and connection pools are our own.
/// They may stand in a URL, so that both sides of a site can be given the same one.
const IGNORED: [&str; 11] = [
    "client_name",
    "decode_responses",
    "encoding",
    "health_check_interval",
    "max_connections",
    "protocol",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "timeout",
];

#[derive(Clone, Copy, PartialEq)]
enum Scheme {
    Tcp,
    Unix,
    Sentinel,
    Cluster,
}

pub(super) fn parse(text: &str) -> Result<Spec, String> {
    if text.chars().any(char::is_control) {
        return Err("it holds a control character".into());
    }
    let (scheme, rest) = text.split_once("://").ok_or("it does not begin with redis:// or another scheme")?;
    let (scheme, secure) = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "valkey" => (Scheme::Tcp, false),
        "rediss" | "valkeys" => (Scheme::Tcp, true),
        "unix" | "redis+unix" | "valkey+unix" => (Scheme::Unix, false),
        "redis+sentinel" | "valkey+sentinel" => (Scheme::Sentinel, false),
        "rediss+sentinel" | "valkeys+sentinel" => (Scheme::Sentinel, true),
        "redis+cluster" | "valkey+cluster" => (Scheme::Cluster, false),
        "rediss+cluster" | "valkeys+cluster" => (Scheme::Cluster, true),
        _ => return Err("its scheme is none of redis, rediss, unix, redis+sentinel, redis+cluster".into()),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    // The crate `url` knows one host only; every scheme without meaning to it will do.
    let whole = |host: &str| {
        Url::parse(&format!("redis://{credentials}@{host}{tail}")).map_err(|error| format!("its address: {error}"))
    };
    let url = whole(if scheme == Scheme::Unix { "unix" } else { hosts.split(',').next().unwrap_or_default() })?;
    let mut spec = Spec::new(match scheme {
        Scheme::Unix if !hosts.is_empty() => return Err("its path does not begin with /".into()),
        Scheme::Unix => {
            let path = decoded(url.path(), "its path")?;
            Kind::One(Address::Unix(Arc::new(PathBuf::from(path))))
        }
        Scheme::Tcp => match &addresses(hosts, REDIS_PORT)?[..] {
            [one] => Kind::One(one.clone()),
            _ => return Err("several addresses need redis+sentinel:// or redis+cluster://".into()),
        },
        Scheme::Cluster => Kind::Cluster(addresses(hosts, REDIS_PORT)?),
        Scheme::Sentinel => {
            let addresses = addresses(hosts, SENTINEL_PORT)?;
            let name = url.path().trim_start_matches('/').split('/').next().unwrap_or_default();
            Kind::Sentinel { addresses, master_name: decoded(name, "the primary's name")? }
        }
    });
    spec.tls = secure.then(Tls::default);
    let account = &mut spec.account;
    account.user = some(decoded(url.username(), "its user name")?);
    account.password = url.password().map(|password| decoded(password, "its password")).transpose()?.and_then(some);
    let database = match scheme {
        Scheme::Tcp | Scheme::Cluster => url.path().trim_matches('/'),
        Scheme::Sentinel => url.path().trim_matches('/').split_once('/').map_or("", |(_, database)| database),
        Scheme::Unix => "",
    };
    if !database.is_empty() {
        account.database = number(database)?;
    }
    for (name, value) in url.query_pairs() {
        option(&mut spec, &name, &value)?;
    }
    match (url.fragment(), &mut spec.tls) {
        (None | Some(""), _) => {}
        (Some("insecure"), Some(tls)) => tls.insecure = true,
        (Some("insecure"), None) => return Err("#insecure needs TLS, as in rediss://".into()),
        (Some(_), _) => return Err("what follows # can only be insecure".into()),
    }
    spec.checked()
}

fn addresses(hosts: &str, port: u16) -> Result<Vec<Address>, String> {
    let one = |host: &str| {
        let url = Url::parse(&format!("redis://{host}")).map_err(|error| format!("one of its addresses: {error}"))?;
        let host = match url.host() {
            // Without the brackets of an address in a URL.
            Some(url::Host::Ipv6(address)) => address.to_string(),
            Some(host) => decoded(&host.to_string(), "its host")?,
            None => String::new(),
        };
        match host.as_str() {
            "" => Err("its host is missing".to_owned()),
            "0.0.0.0" | "::" => Err("its host is the address of all interfaces".to_owned()),
            host => Ok(Address::Tcp(host.into(), url.port().unwrap_or(port))),
        }
    };
    hosts.split(',').map(one).collect()
}

fn option(spec: &mut Spec, name: &str, value: &str) -> Result<(), String> {
    let file = || std::fs::read(value).map_err(|error| format!("the file of its option {name}: {error}"));
    // What stands before the host wins, as in Python.
    let fill = |field: &mut Option<String>| {
        field.get_or_insert_with(|| value.to_owned());
        Ok(())
    };
    if let Some(of_tls) = name.strip_prefix("ssl_").or((name == "tls_server_name").then_some(name)) {
        let Some(tls) = &mut spec.tls else { return Err(format!("its option {name} needs TLS, as in rediss://")) };
        match of_tls {
            "cert_reqs" => match value.to_ascii_lowercase().trim_start_matches("cert_") {
                "none" => tls.insecure = true,
                "required" | "optional" => {}
                _ => return Err("its option ssl_cert_reqs is neither required nor none".into()),
            },
            "ca_certs" => tls.options.roots = Some(file()?),
            "certfile" => tls.certificate = Some(file()?),
            "keyfile" => tls.key = Some(file()?),
            "check_hostname" if value.eq_ignore_ascii_case("true") => {}
            "check_hostname" => return Err("ssl_check_hostname cannot be off; tls_server_name sets the name".into()),
            "tls_server_name" => tls.server_name = Some(value.to_owned()),
            _ => return Err("it has an option of TLS that is not known here".into()),
        }
        return Ok(());
    }
    let sentinel = matches!(spec.kind, Kind::Sentinel { .. });
    match name {
        "db" => spec.account.database = number(value)?,
        "username" | "user" => return fill(&mut spec.account.user),
        "password" | "pass" => return fill(&mut spec.account.password),
        "sentinel_username" if sentinel => spec.sentinel.user = Some(value.to_owned()),
        "sentinel_password" if sentinel => spec.sentinel.password = Some(value.to_owned()),
        _ if IGNORED.contains(&name) => {}
        // A misspelt `db` must not lead to another database.
        _ => {
            return Err(format!(
                "it has an unknown option; known are db, username, password and, of Python's, {}",
                IGNORED.join(", ")
            ));
        }
    }
    Ok(())
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "its database is not a number".to_owned())
}

fn decoded(text: &str, what: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| format!("{what} is not UTF-8"))?;
    Ok(text.into_owned())
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.into(), port)
    }

    fn spec(text: &str) -> Spec {
        parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn one_server_in_all_its_forms() {
        for (text, wanted) in [
            ("redis://localhost", tcp("localhost", 6379)),
            ("REDIS://localhost:6380/", tcp("localhost", 6380)),
            ("valkey://10.0.0.1:1", tcp("10.0.0.1", 1)),
            ("rediss://[::1]:7", tcp("::1", 7)),
            ("unix:///run/redis.sock", Address::Unix(Arc::new("/run/redis.sock".into()))),
            ("redis+unix:///run/a%20b?db=2", Address::Unix(Arc::new("/run/a b".into()))),
        ] {
            match spec(text).kind {
                Kind::One(address) => assert_eq!(address, wanted, "{text}"),
                _ => panic!("{text}"),
            }
        }
        for (text, user, password, database) in [
            ("redis://h", None, None, 0),
            ("redis://:p%2Fw@h/3", None, Some("p/w"), 3),
            ("redis://u:p@h?db=4", Some("u"), Some("p"), 4),
            ("redis://h/1?db=4&username=u&password=p%26&socket_timeout=20", Some("u"), Some("p&"), 4),
            ("redis://u:p@h?password=other", Some("u"), Some("p"), 0),
            ("unix:///s?db=5&user=u&pass=p", Some("u"), Some("p"), 5),
            ("unix://u:p@/s", Some("u"), Some("p"), 0),
        ] {
            let account = spec(text).account;
            assert_eq!((account.user.as_deref(), account.password.as_deref()), (user, password), "{text}");
            assert_eq!(account.database, database, "{text}");
        }
        assert!(spec("rediss://h").tls.is_some_and(|tls| !tls.insecure));
        assert!(spec("rediss://h/#insecure").tls.is_some_and(|tls| tls.insecure));
        assert!(spec("rediss://h?ssl_cert_reqs=CERT_NONE").tls.is_some_and(|tls| tls.insecure));
        let named = spec("rediss://h?tls_server_name=n&ssl_check_hostname=True").tls;
        assert_eq!(named.and_then(|tls| tls.server_name).as_deref(), Some("n"));
    }

    #[test]
    fn sentinels_and_clusters_have_several_addresses() {
        let text = "redis+sentinel://u:p@a:1,b,[::2]:3/my%20site/4?sentinel_username=su&sentinel_password=sp";
        let spec_ = spec(text);
        let Kind::Sentinel { addresses, master_name } = spec_.kind else { panic!() };
        assert_eq!(addresses, [tcp("a", 1), tcp("b", 26379), tcp("::2", 3)]);
        assert_eq!((master_name.as_str(), spec_.account.database), ("my site", 4));
        assert_eq!((spec_.account.user.as_deref(), spec_.account.password.as_deref()), (Some("u"), Some("p")));
        assert_eq!((spec_.sentinel.user.as_deref(), spec_.sentinel.password.as_deref()), (Some("su"), Some("sp")));
        assert!(spec("rediss+sentinel://a/site").tls.is_some());
        let Kind::Cluster(addresses) = spec("rediss+cluster://:p@a:1,b").kind else { panic!() };
        assert_eq!(addresses, [tcp("a", 1), tcp("b", 6379)]);
    }

    #[test]
    fn an_unusable_text_is_refused_and_never_repeated() {
        for text in [
            "hidden",
            "hidden://hidden",
            "hidden://h/0",
            "redis://",
            "redis:///0",
            "redis://:6379",
            "redis://0.0.0.0",
            "redis://:hidden@ho st:x",
            "redis://:hidden#word@h",
            "redis://:hidden@h:hidden",
            "redis://:hidden@h/hidden",
            "redis://h/0/hidden",
            "redis://h/-1",
            "redis://h?db=hidden",
            "redis://h?bd=3&hidden=hidden",
            "redis://h\n/hidden",
            "redis://a,b/hidden",
            "redis://h/#hidden",
            "redis://h/#insecure",
            "redis://u@h",
            "redis://%ff:hidden@h",
            "redis://h?ssl_ca_certs=hidden",
            "redis://h?sentinel_password=hidden",
            "rediss://h?ssl_hidden=hidden",
            "rediss://h?ssl_cert_reqs=hidden",
            "rediss://h?ssl_check_hostname=False",
            "rediss://h?ssl_certfile=/dev/null",
            "unix://hidden/hidden",
            "unix://",
            "redis+sentinel://a:1",
            "redis+sentinel://a:1/",
            "redis+sentinel://a:1/site/hidden",
            "redis+sentinel://a:1/site/0/hidden",
            "redis+cluster://a:1/3",
            "redis+cluster://a,,b",
        ] {
            let Err(error) = parse(text) else { panic!("{text}") };
            assert!(!error.is_empty() && !error.contains("hidden"), "{text}: {error}");
        }
    }
}
