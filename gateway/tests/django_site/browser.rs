//! People who log in by Django's own form, in Chromium, behind HAProxy with one route to the site and one to the nodes.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::process::private_dir;
use testkit::redis::RedisServer;

use super::{Servant, Site, caches, databases};
use crate::common::balancer::{Balancer, HAPROXY, changed};
use crate::common::{self, TestNode, eventually};
use crate::{KEY, OLD, enter, lines};

/// A site with these, behind the balancer.
#[derive(Clone, Copy, Debug)]
struct Case {
    django: &'static str,
    postgres: bool,
    engine: &'static str,
    nodes: usize,
}

/// Each Django, each engine, each database, one node and two; with `GATEWAY_LONG` all with all.
fn cases() -> Vec<Case> {
    let engines = ["db", "cached_db", "signed_cookies", "cache"];
    if std::env::var_os("GATEWAY_LONG").is_none() {
        return vec![
            Case { django: "4.2", postgres: false, engine: "db", nodes: 2 },
            Case { django: "5.2", postgres: true, engine: "cached_db", nodes: 1 },
            Case { django: "6", postgres: true, engine: "signed_cookies", nodes: 2 },
            Case { django: "5.2", postgres: false, engine: "cache", nodes: 2 },
        ];
    }
    let mut all = Vec::new();
    for django in ["4.2", "5.2", "6"] {
        for engine in engines {
            for postgres in [true, false] {
                all.push(Case { django, postgres, engine, nodes: 1 + usize::from(postgres) });
            }
        }
    }
    all
}

/// The interpreter of that Django. Django 6 needs a Python that not every machine has.
fn python(django: &str) -> Option<PathBuf> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv/django");
    let python = PathBuf::from(path).join(django).join("bin/python");
    if !python.is_file() {
        assert_eq!(django, "6", "{} is missing: run ./test.sh --install-only", python.display());
        println!("Django 6 is not here, so nobody logs in by it");
        return None;
    }
    Some(python)
}

/// The site and the nodes behind one address.
fn behind_haproxy(nodes: &[TestNode], site: u64) -> Balancer {
    let routes = "    use_backend gateway if { path_beg /ws/ } || { path /readyz }\n    default_backend site";
    let config = changed(HAPROXY, "    default_backend gateway", routes);
    let doors: Vec<_> = nodes.iter().map(TestNode::at).collect();
    Balancer::haproxy_with(&doors, &format!("{config}\nbackend site\n    server site 127.0.0.1:{site}\n"))
}

struct Browser(Servant);

impl Browser {
    fn start() -> Self {
        let client = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/js");
        assert!(PathBuf::from(client).join("node_modules/playwright-core").is_dir(), "run ./test.sh --install-only");
        let mut command = Command::new("node");
        command.arg(format!("{client}/test/people.mjs"));
        Self(Servant::start(command))
    }

    fn order(&self, order: &str, who: &str, mut more: Value) -> Value {
        more["order"] = order.into();
        more["who"] = who.into();
        self.0.ask(&more)
    }

    fn sees(&self, who: &str, text: &str) {
        self.order("see", who, json!({"text": text}));
    }

    fn says(&self, who: &str, text: &str) {
        assert_eq!(self.order("say", who, json!({"text": text})), "open");
    }
}

async fn case(browser: &Browser, case: Case) {
    let Some(python) = python(case.django) else { return };
    let (redis, own) = (RedisServer::start(), Postgres::shared().fresh_database());
    let directory = private_dir("site");
    let url = match case.postgres {
        true => Postgres::shared().fresh_database(),
        false => format!("sqlite://{}/site.sqlite3", directory.display()),
    };
    let backend = "django.core.cache.backends.redis.RedisCache";
    let site = Site::start_by(
        &python,
        json!({
            "databases": databases(&url), "secret_key": OLD, "caches": caches(&redis, backend, json!({})),
            "session_engine": format!("django.contrib.sessions.backends.{}", case.engine),
        }),
    );
    let redis_url = redis.url();
    let keys = lines(&[KEY, OLD]);
    let settings = [
        ("database-url", own.as_str()),
        ("redis-url", &redis_url),
        ("jwt-secret", ""),
        ("django-secret-key", &keys),
        ("django.database_url", &url),
        ("django.session_engine", case.engine),
        ("django.cache_url", &redis_url),
        ("django.cache_key_prefix", "shop"),
        ("django.recheck_seconds", "0.3"),
    ];
    let mut nodes = Vec::new();
    for _ in 0..case.nodes {
        nodes.push(TestNode::start(&settings).await);
    }
    let balancer = behind_haproxy(&nodes, site.call("serve", json!([])).as_u64().unwrap());
    let page = format!("http://{}", balancer.door.public);
    let (ann, bob) = (format!("ann of {case:?}"), format!("bob of {case:?}"));
    let logs_in = |who: &str, name: &str| {
        let cookies = browser.order("log_in", who, json!({"url": page, "name": name, "password": "secret"}));
        assert_eq!(cookies, json!(["csrftoken", "sessionid"]));
    };
    site.user("ann");
    site.user("bob");
    logs_in(&ann, "ann");

    // The key is changed. Her session is of the old one, and good; that of bob is of the new one. His hash is made better as
    // he logs in.
    site.call("keys", json!([KEY, [OLD]]));
    let weak = site.call("weak_hash", json!(["bob", "secret"]));
    browser.order("reload", &ann, json!({}));
    logs_in(&bob, "bob");
    assert_ne!(site.call("hash", json!(["bob"])), weak);
    browser.says(&ann, "hello");
    browser.sees(&bob, "ann says hello");
    browser.says(&bob, "hi");
    browser.sees(&ann, "bob says hi");

    // Django gives her a session of the new key as soon as a page asks who she is. Where that ends the old one the socket
    // ends with it, and comes back with the new cookie.
    assert_eq!(browser.order("visit", &ann, json!({"path": "/account/"})), "ann");
    if case.engine != "signed_cookies" {
        browser.sees(&ann, "waiting after 4401");
    }
    browser.says(&bob, "still there?");
    browser.sees(&ann, "bob says still there?");
    browser.says(&ann, "yes");
    browser.sees(&bob, "ann says yes");

    browser.order("log_out", &ann, json!({}));
    if case.engine == "signed_cookies" {
        // Nobody but the site can know that.
        let event = json!({"type": "gateway.disconnect", "to": "user:ann", "data": {"code": 4401}});
        assert_eq!(nodes[0].at().api("POST", "/api/events", Some(event)).await.0, 200);
    }
    browser.sees(&ann, "closed after 4401");
    browser.says(&bob, "she is gone");
    let shown = browser.order("shown", &ann, json!({}));
    assert!(!shown.as_array().unwrap().contains(&json!("bob says she is gone")), "{shown}");
    for node in &nodes {
        eventually("only bob is left", async || node.metric("gateway_connections").await <= 1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_log_in_by_djangos_own_form_in_a_real_browser_chat_and_are_out_when_they_log_out() {
    let browser = Browser::start();
    for each in cases() {
        case(&browser, each).await;
    }
}

/// The victim is logged in, and the cookie goes along with whatever any page asks.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_get_nothing_by_a_session_in_a_real_browser() {
    let url = Postgres::shared().fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    let nodes = [crate::node(&url, &[]).await];
    site.user("victim");
    let cookie = site.login("victim");
    assert!(enter(&nodes[0], &cookie).await.is_ok());
    let balancer = behind_haproxy(&nodes, site.call("serve", json!([])).as_u64().unwrap());
    let gateway = format!("http://{}", balancer.door.public);
    common::browser("origins.mjs", &[("GATEWAY_URL", &gateway), ("COOKIE", "sessionid"), ("TOKEN", &cookie)]).await;
}
