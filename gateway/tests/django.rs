//! Django's own logins: a real project writes the sessions, and nobody else.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and one that tells figures")]

mod common;
mod django_site;

use std::time::{Duration, Instant};

use common::balancer::changed;
use common::{Client, Heard, NodeProcess, TestNode, eventually, printed};
use django_site::{Site, caches, databases};
use serde_json::{Value, json};
use testkit::mariadb::MariaDb;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::task::JoinSet;

const KEY: &str = "a-key, with a comma: and more than one block of the hash, so that it is hashed itself first ü";
const OLD: &str = "an-older-key";

/// A node that reads the sessions of a site in this database.
async fn node(url: &str, own: &[(&str, &str)]) -> TestNode {
    node_with_keys(KEY_SETTING.as_str(), url, own).await
}

async fn node_with_keys(keys: &str, url: &str, own: &[(&str, &str)]) -> TestNode {
    let base = [("django-secret-key", keys), ("django.database_url", url), ("django.recheck_seconds", "0.3")];
    let settings: Vec<_> = base.iter().chain(own).copied().collect();
    TestNode::start(&settings).await
}

/// A key with a comma is an entry of a list whose entries are lines.
static KEY_SETTING: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| lines(&[KEY]));

fn lines(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("{key}\n")).collect()
}

async fn try_enter(node: &TestNode, header: &str) -> Result<Client, u16> {
    let origin = format!("http://{}", node.running.public);
    node.at().try_connect("/ws/chat/lobby/", &[("cookie", header), ("origin", &origin)]).await
}

async fn enter(node: &TestNode, cookie: &str) -> Result<Client, u16> {
    try_enter(node, &format!("sessionid={cookie}")).await
}

/// What the node calls who comes with this cookie.
async fn name(client: &mut Client) -> String {
    client.say("lobby", "who am I?").await;
    client.until(|frame| frame["type"] == "chat").await["from_user"].as_str().unwrap().to_owned()
}

/// The status or the name.
async fn who(node: &TestNode, cookie: &str) -> Result<String, u16> {
    let mut client = enter(node, cookie).await?;
    let found = name(&mut client).await;
    client.close().await;
    Ok(found)
}

async fn rejected(node: &TestNode, reason: &str) -> bool {
    node.metric(&format!("gateway_handshakes_rejected_total{{reason=\"{reason}\"}}")).await > 0.0
}

/// From log-in to log-out, and all that ends a session in between.
async fn whole_life(site: &Site, node: &TestNode, stored: bool) {
    for user in ["ann", "bob", "cat", "dan", "eve"] {
        site.user(user);
    }
    let cookie = site.login("ann");
    assert_eq!(who(node, &cookie).await.as_deref(), Ok("ann"));
    assert_eq!(who(node, &format!("{cookie}x")).await, Err(401));
    // A tab that stays while its session does, through many checks.
    let mut tab = enter(node, &cookie).await.unwrap();
    let checks = node.metric("gateway_sign_ins_rechecked_total{result=\"good\"}").await;
    eventually("checks", async || {
        node.metric("gateway_sign_ins_rechecked_total{result=\"good\"}").await > checks + 1.0
    })
    .await;
    assert_eq!(name(&mut tab).await, "ann");
    if stored {
        site.call("logout", json!([cookie]));
        assert_eq!(tab.closed().await, 4401);
        assert_eq!(enter(node, &cookie).await.err(), Some(401));
    }
    // A new password, a user who may not come any more, one with another name, one who is gone.
    let ends = |user: &'static str, change: &'static str| async move {
        let cookie = site.login(user);
        let mut tab = enter(node, &cookie).await.unwrap();
        match change {
            "password" => drop(site.call("set_password", json!([user, "another"]))),
            "inactive" => site.update(user, json!({"is_active": false})),
            "rename" => site.update(user, json!({"username": "somebody"})),
            _ => drop(site.call("delete", json!([user]))),
        }
        assert_eq!(tab.closed().await, 4401, "{change}");
        let again = who(node, &cookie).await;
        let django = site.whoami(&cookie);
        match change {
            "rename" => assert_eq!((again.as_deref(), django["username"].as_str()), (Ok("somebody"), Some("somebody"))),
            _ => assert_eq!((again, django), (Err(401), Value::Null), "{change}"),
        }
    };
    ends("bob", "password").await;
    ends("cat", "inactive").await;
    ends("dan", "rename").await;
    ends("eve", "delete").await;
    // A visitor with a cart is nobody, and shows no credentials.
    let cart = site.call("visit", json!([])).as_str().unwrap().to_owned();
    assert_eq!(who(node, &cart).await, Err(401));
    assert!(rejected(node, "no_credentials").await);
    // Cookies without an origin are any page's.
    let cookie = site.login("ann");
    let headers = [("cookie", &*format!("sessionid={cookie}"))];
    assert_eq!(node.at().try_connect("/ws/chat/lobby/", &headers).await.err(), Some(403));
    let other = [headers[0], ("origin", "https://evil.example")];
    assert_eq!(node.at().try_connect("/ws/chat/lobby/", &other).await.err(), Some(403));
}

#[tokio::test]
async fn a_login_opens_a_socket_and_what_ends_it_ends_the_socket_on_postgres() {
    let url = Postgres::shared().fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    // In the gateway's own database.
    let own =
        [("database-url", url.as_str()), ("django.database_url", ""), ("django-secret-key", KEY_SETTING.as_str())];
    let node = TestNode::start(&[&own[..], &[("django.recheck_seconds", "0.3")]].concat()).await;
    whole_life(&site, &node, true).await;
    for reason in ["session_unknown", "session_password", "user_inactive", "user_unknown"] {
        assert!(rejected(&node, reason).await, "{reason}");
    }
    // A hash that Django makes better at the log-in, and a session that Django extends.
    site.user("fay");
    let weak = site.call("weak_hash", json!(["fay", "secret"]));
    let cookie = site.login("fay");
    assert_ne!(site.call("hash", json!(["fay"])), weak);
    assert_eq!(who(&node, &cookie).await.as_deref(), Ok("fay"));
    site.call("expire", json!([cookie, 2]));
    let mut tab = enter(&node, &cookie).await.unwrap();
    site.call("expire", json!([cookie, 6]));
    let began = Instant::now();
    assert_eq!(tab.closed().await, 4401);
    assert!(began.elapsed().as_secs() >= 3, "Django had extended it");
    assert_eq!(enter(&node, &cookie).await.err(), Some(401));
    assert!(rejected(&node, "session_expired").await);
}

#[tokio::test]
async fn a_login_opens_a_socket_on_mariadb_where_django_keeps_the_sites_own_time() {
    let url = MariaDb::shared().fresh_database();
    let site = Site::start(json!({
        "databases": databases(&url), "use_tz": false, "time_zone": "Asia/Tokyo",
        "session_engine": "django.contrib.sessions.backends.cached_db",
    }));
    let node = node(&url, &[("django.time_zone", "Asia/Tokyo"), ("django.session_engine", "cached_db")]).await;
    whole_life(&site, &node, true).await;
    let cookie = site.login("ann");
    site.call("expire", json!([cookie, -1]));
    assert_eq!(enter(&node, &cookie).await.err(), Some(401));
    assert!(rejected(&node, "session_expired").await);
}

#[tokio::test]
async fn a_login_opens_a_socket_on_sqlite_with_an_own_user_model() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/site.sqlite3", directory.path().display());
    let site = Site::start(json!({"databases": databases(&url), "auth_user_model": "people.Person"}));
    let people = [
        ("django.user_table", "people"),
        ("django.user_name_column", "email"),
        ("django.user_active_column", "-"),
        ("django.session_engine", "django.contrib.sessions.backends.db"),
    ];
    let node = node(&url, &people).await;
    let id = site.user("grace@example.com");
    let cookie = site.login("grace@example.com");
    assert_eq!(site.whoami(&cookie)["id"].as_str(), Some(id.as_str()));
    assert_eq!(who(&node, &cookie).await.as_deref(), Ok("grace@example.com"));
    let mut tab = enter(&node, &cookie).await.unwrap();
    site.call("set_password", json!(["grace@example.com", "another"]));
    assert_eq!(tab.closed().await, 4401);
}

#[tokio::test]
async fn a_login_by_signed_cookie_opens_a_socket() {
    let url = Postgres::shared().fresh_database();
    let engine = "django.contrib.sessions.backends.signed_cookies";
    let site = Site::start(json!({"databases": databases(&url), "session_engine": engine}));
    let node = node(&url, &[("django.session_engine", "signed_cookies")]).await;
    whole_life(&site, &node, false).await;
    assert_eq!(enter(&node, "a:b:c").await.err(), Some(401));
    assert!(rejected(&node, "session_signature").await);
}

#[tokio::test]
async fn a_login_kept_in_redis_opens_a_socket() {
    let mut redis = RedisServer::start();
    let url = Postgres::shared().fresh_database();
    let serializer = json!({"SERIALIZER": "django_redis.serializers.json.JSONSerializer"});
    for (backend, options) in [
        ("django.core.cache.backends.redis.RedisCache", json!({})),
        ("django_redis.cache.RedisCache", json!({})),
        ("django_redis.cache.RedisCache", serializer),
    ] {
        let url = if options == json!({}) && backend.starts_with("django.") {
            url.clone()
        } else {
            Postgres::shared().fresh_database()
        };
        let engine = "django.contrib.sessions.backends.cache";
        let caches = caches(&redis, backend, options);
        let site = Site::start(json!({"databases": databases(&url), "session_engine": engine, "caches": caches}));
        let cache = redis.url();
        let own =
            [("django.session_engine", "cache"), ("django.cache_url", &*cache), ("django.cache_key_prefix", "shop")];
        let node = node(&url, &own).await;
        whole_life(&site, &node, true).await;
    }
    // Without the cache nobody can tell: 503, and open sockets stay.
    let engine = "django.contrib.sessions.backends.cache";
    let caches = caches(&redis, "django.core.cache.backends.redis.RedisCache", json!({}));
    let site = Site::start(json!({"databases": databases(&url), "session_engine": engine, "caches": caches}));
    let cache = redis.url();
    let own = [("django.session_engine", "cache"), ("django.cache_url", &*cache), ("django.cache_key_prefix", "shop")];
    let node = node(&url, &own).await;
    let cookie = site.login("ann");
    let mut tab = enter(&node, &cookie).await.unwrap();
    redis.pause();
    stays_without(&node, &cookie, &mut tab, "session_cache").await;
    redis.resume();
    is_judged_again(&node, &cookie, tab).await;
}

/// What a pickle holds beside data only Django can read, so Django is asked where it can be.
#[tokio::test]
async fn a_session_that_cannot_be_read_here_is_asked_about_where_that_is_possible() {
    let (redis, url) = (RedisServer::start(), Postgres::shared().fresh_database());
    let engine = "django.contrib.sessions.backends.cache";
    let caches = caches(&redis, "django.core.cache.backends.redis.RedisCache", json!({}));
    let site = Site::start(json!({"databases": databases(&url), "session_engine": engine, "caches": caches}));
    let asked = format!("http://127.0.0.1:{}/gateway/auth/", site.call("serve", json!([])));
    let cache = redis.url();
    let own = [("django.session_engine", "cache"), ("django.cache_url", &*cache), ("django.cache_key_prefix", "shop")];
    let ask = [("auth-url", &*asked), ("auth-secret", "between-node-and-site")];
    let (alone, asks) = (node(&url, &own).await, node(&url, &[own, [ask[0], ask[1], own[0]]].concat()).await);
    site.user("ann");
    let (plain, dated) = (site.login("ann"), site.login("ann"));
    site.call("date_in", json!([dated]));
    let questions = async || asks.metric("gateway_django_asked_total{result=\"user\"}").await;
    assert_eq!((who(&alone, &plain).await.as_deref(), who(&alone, &dated).await), (Ok("ann"), Err(401)));
    assert!(rejected(&alone, "session_payload").await);
    assert_eq!((who(&asks, &plain).await.as_deref(), questions().await), (Ok("ann"), 0.0));
    // Once for the handshake; on a busy machine it is asked about again before the socket is closed.
    assert_eq!(who(&asks, &dated).await.as_deref(), Ok("ann"));
    assert!(questions().await >= 1.0);
    // Whatever else is wrong with a session is not Django's to judge again.
    assert_eq!(who(&asks, &format!("{plain}x")).await, Err(401));
    // It is asked about again while its socket is open.
    let mut tab = enter(&asks, &dated).await.unwrap();
    site.call("logout", json!([dated]));
    tab.patience *= 3;
    assert_eq!(tab.closed().await, 4401);
    assert!(rejected(&asks, "session_unknown").await);
}

/// What cannot be judged is answered 503, ends no socket, and is named.
async fn stays_without(node: &TestNode, cookie: &str, tab: &mut Client, part: &str) {
    eventually("not ready", async || {
        let (status, text) = node.at().get("/readyz").await;
        status == 503 && text.contains(&format!("\"{part}\":\"unavailable\""))
    })
    .await;
    assert_eq!(enter(node, cookie).await.err(), Some(503));
    assert!(rejected(node, part).await);
    let due = async || node.metric("gateway_sign_ins_recheck_oldest_seconds").await;
    eventually("an old check", async || due().await > 0.5).await;
    assert_eq!(name(tab).await, "ann");
}

async fn is_judged_again(node: &TestNode, cookie: &str, mut tab: Client) {
    eventually("ready", async || node.at().get("/readyz").await.0 == 200).await;
    eventually("the check", async || node.metric("gateway_sign_ins_recheck_oldest_seconds").await == 0.0).await;
    assert_eq!(name(&mut tab).await, "ann");
    eventually("let in", async || enter(node, cookie).await.is_ok()).await;
}

#[tokio::test]
async fn without_the_sites_database_nobody_can_tell_and_open_sockets_stay() {
    let mut server = Postgres::start();
    let url = server.fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    let node = node(&url, &[]).await;
    site.user("ann");
    let cookie = site.login("ann");
    let mut tab = enter(&node, &cookie).await.unwrap();
    server.kill9();
    stays_without(&node, &cookie, &mut tab, "site_database").await;
    server.restart();
    is_judged_again(&node, &cookie, tab).await;
}

#[tokio::test]
async fn a_role_that_may_read_those_columns_only_is_enough_and_one_that_may_not_is_told() {
    let server = Postgres::shared();
    let url = server.fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    site.user("ann");
    let database = url.rsplit('/').next().unwrap();
    let role = format!("gateway_{database}");
    server.sql(
        database,
        &format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT ON django_session TO {role}; \
             GRANT SELECT (id, username, password, is_active) ON auth_user TO {role}"
        ),
    );
    let cookie = site.login("ann");
    let as_role = url.replace("postgres@", &format!("{role}@"));
    let node = node(&as_role, &[]).await;
    assert_eq!(who(&node, &cookie).await.as_deref(), Ok("ann"));
    server.sql(database, &format!("REVOKE SELECT ON django_session FROM {role}"));
    eventually("refused", async || enter(&node, &cookie).await.err() == Some(503)).await;
    eventually("not ready", async || node.at().get("/readyz").await.0 == 503).await;
}

/// The file and the rights of the document, as they stand but for where the server is.
#[tokio::test]
async fn the_lines_of_the_documents_read_the_sessions_of_a_site() {
    let server = Postgres::start();
    for statement in ["CREATE ROLE gateway LOGIN", "CREATE ROLE gateway_reader LOGIN", "CREATE DATABASE shop"] {
        server.sql("postgres", statement);
    }
    server.sql("postgres", "CREATE DATABASE gateway OWNER gateway");
    let place = format!("@127.0.0.1:{}/", server.port());
    let site = Site::start(json!({"databases": databases(&format!("postgres://postgres{place}shop"))}));
    server.sql("shop", &printed("Django sessions", "sql")[0]);
    let directory = tempfile::tempdir().unwrap();
    let (file, keys) = (directory.path().join("gateway.toml"), directory.path().join("keys"));
    std::fs::write(&file, changed(&printed("Django sessions", "toml")[0], "@db/", &place)).unwrap();
    std::fs::write(&keys, lines(&[KEY, OLD])).unwrap();
    let node = NodeProcess::start(&[
        ("config", file.to_str().unwrap()),
        ("django-secret-key_file", keys.to_str().unwrap()),
        ("database-url", ""),
        ("jwt-secret", ""),
    ]);
    site.user("ann");
    let cookie = format!("sessionid={}", site.login("ann"));
    let from =
        async |origin| node.door.try_connect("/ws/chat/lobby/", &[("cookie", &cookie), ("origin", origin)]).await;
    assert_eq!(name(&mut from("https://shop.example.com").await.unwrap()).await, "ann");
    assert_eq!(from("https://evil.example.com").await.err(), Some(403));
    // That is all the role may read.
    let may_read = |column: &str| {
        let asked = format!("SELECT has_column_privilege('gateway_reader', 'auth_user', '{column}', 'SELECT')");
        server.sql("shop", &asked).trim() == "t"
    };
    assert!(may_read("username") && !may_read("email"));
}

#[tokio::test]
async fn a_key_is_rotated_with_fallbacks_and_a_lost_one_ends_what_it_signed() {
    let url = Postgres::shared().fresh_database();
    let site = Site::start(json!({"databases": databases(&url), "secret_key": OLD}));
    site.user("ann");
    let before = site.login("ann");
    site.call("keys", json!([KEY, [OLD]]));
    let both = node_with_keys(&lines(&[KEY, OLD]), &url, &[]).await;
    assert_eq!(who(&both, &before).await.as_deref(), Ok("ann"));
    let new = node(&url, &[]).await;
    assert_eq!(who(&new, &before).await, Err(401));
    assert!(rejected(&new, "session_signature").await);
    // Django gives the visitor a session of the new key.
    let mut tab = enter(&both, &before).await.unwrap();
    assert_eq!(site.whoami(&before)["username"], "ann");
    assert_eq!(tab.closed().await, 4401);
    let after = site.login("ann");
    assert_eq!(who(&new, &after).await.as_deref(), Ok("ann"));
    // A node that reads its settings again takes other keys, and looks at open sockets by them.
    let mut tab = enter(&new, &after).await.unwrap();
    let mut config = gateway::Config::clone(&new.running.node().config);
    config.django.secret_keys = vec![OLD.into()];
    new.running.reload(&config).unwrap();
    assert_eq!(tab.closed().await, 4401);
    assert_eq!(who(&new, &after).await, Err(401));
    config.django.secret_keys = vec![KEY.into(), OLD.into()];
    new.running.reload(&config).unwrap();
    assert_eq!(who(&new, &after).await.as_deref(), Ok("ann"));
}

#[tokio::test]
async fn five_hundred_random_sessions_are_judged_as_django_judges_them() {
    let redis = RedisServer::start();
    let backends =
        ["django.contrib.auth.backends.ModelBackend", "django.contrib.auth.backends.AllowAllUsersModelBackend"];
    let seed = std::env::var("GATEWAY_DJANGO_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| std::process::id().into());
    let cache = redis.url();
    for engine in ["db", "signed_cookies", "cache", "cached_db"] {
        let url = Postgres::shared().fresh_database();
        let site = Site::start(json!({
            "databases": databases(&url), "secret_key_fallbacks": [OLD], "authentication_backends": backends,
            "session_engine": format!("django.contrib.sessions.backends.{engine}"),
            "caches": caches(&redis, "django.core.cache.backends.redis.RedisCache", json!({})),
        }));
        let keys = lines(&[KEY, OLD]);
        let own = [
            ("django.session_engine", engine),
            ("django.auth_backends", &*backends.join(",")),
            ("django.cache_url", &*cache),
            ("django.cache_key_prefix", "shop"),
            ("limits.connections_per_user", "0"),
            ("django.recheck_seconds", "300"),
        ];
        let node = node_with_keys(&keys, &url, &own).await;
        let cookies = site.call("random", json!([seed, 130]));
        let cookies: Vec<&str> = cookies.as_array().unwrap().iter().map(|cookie| cookie.as_str().unwrap()).collect();
        let mut ours = Vec::new();
        for cookie in &cookies {
            let found = match who(&node, cookie).await {
                Ok(name) => json!(name),
                Err(401) => Value::Null,
                Err(status) => panic!("{status} for {cookie} of seed {seed}"),
            };
            ours.push(found);
        }
        // Asked last: for a session of an older key it makes a new one.
        let django = site.call("whoami_all", json!([cookies]));
        let mut let_in = 0;
        for ((cookie, ours), django) in cookies.iter().zip(&ours).zip(django.as_array().unwrap()) {
            assert_eq!(*ours, django["username"], "{engine}, {cookie} of seed {seed}");
            let_in += usize::from(!ours.is_null());
        }
        assert!((10..125).contains(&let_in), "{let_in} of seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_sockets_with_sessions_is_a_few_statements() {
    let sockets = if std::env::var_os("GATEWAY_LONG").is_some() { 5000 } else { 1000 };
    let url = Postgres::shared().fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    let node = std::sync::Arc::new(node(&url, &[("django.recheck_seconds", "2")]).await);
    let cookies = site.call("users", json!(["storm-", sockets]));
    let count = async || node.metric("gateway_store_seconds_count{operation=\"site_rows\"}").await;
    let before = count().await;
    let began = Instant::now();
    let mut arriving = JoinSet::new();
    for cookie in cookies.as_array().unwrap() {
        let (node, cookie) = (std::sync::Arc::clone(&node), cookie.as_str().unwrap().to_owned());
        arriving.spawn(async move {
            let origin = format!("http://{}", node.running.public);
            let headers = [("cookie", &*format!("sessionid={cookie}")), ("origin", &*origin)];
            // Who is told to come back, as on a machine that is busy with other things, does so.
            while began.elapsed() < Duration::from_secs(240) {
                let patience = Duration::from_secs(60);
                if let Some(client) = node.at().knock_patiently("/ws/chat/lobby/", &headers, patience).await {
                    return client;
                }
            }
            panic!("nobody was let in")
        });
    }
    let mut clients = arriving.join_all().await;
    let reads = count().await - before;
    println!("{sockets} sockets by session: {reads} statements, {:.2} s", began.elapsed().as_secs_f64());
    // Those who have come are looked at again meanwhile: their sessions, their users.
    let rechecks = 2.0 * began.elapsed().as_secs_f64();
    assert!(reads <= sockets as f64 / 10.0 + rechecks, "{reads}");
    let good = async || node.metric("gateway_sign_ins_rechecked_total{result=\"good\"}").await;
    eventually("all checked again", async || good().await >= sockets as f64).await;
    let heard = clients[0].hear_within(Duration::from_millis(1)).await;
    assert!(!matches!(heard, Some(Heard::Closed(..) | Heard::Gone)), "{heard:?}");
}

#[tokio::test]
async fn a_token_with_an_id_gets_the_name_of_the_sites_user_and_is_looked_at_again() {
    let url = Postgres::shared().fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    let id = site.user("ann");
    let by_id = [("jwt-user-id-claim", "user_id"), ("django.database_url", &*url), ("django.recheck_seconds", "0.3")];
    let node = TestNode::start(&by_id).await;
    let signer = gateway::JwtAuth::new(&[common::SECRET.into()], "user_id", &[], None);
    let with = async |id: &str| {
        let bearer = format!("Bearer {}", signer.sign(id, None, 600).unwrap());
        node.at().try_connect("/ws/chat/lobby/", &[("authorization", &bearer)]).await
    };
    let mut tab = with(&id).await.unwrap();
    assert_eq!(name(&mut tab).await, "ann");
    assert_eq!(with("99").await.err(), Some(401));
    assert!(rejected(&node, "user_unknown").await);
    site.update("ann", json!({"is_active": false}));
    assert_eq!(tab.closed().await, 4401);
}

#[tokio::test]
async fn with_user_name_id_a_session_is_called_by_the_id_and_a_new_name_changes_nothing() {
    let url = Postgres::shared().fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    let id = site.user("ann");
    let cookie = site.login("ann");
    let node = node(&url, &[("user-name", "id")]).await;
    let mut tab = enter(&node, &cookie).await.unwrap();
    assert_eq!(name(&mut tab).await, id);
    site.update("ann", json!({"username": "anna"}));
    let checks = node.metric("gateway_sign_ins_rechecked_total{result=\"good\"}").await;
    eventually("checks", async || {
        node.metric("gateway_sign_ins_rechecked_total{result=\"good\"}").await > checks + 1.0
    })
    .await;
    assert_eq!(name(&mut tab).await, id);
}

#[tokio::test]
async fn a_name_that_is_impossible_here_is_refused() {
    let url = Postgres::shared().fresh_database();
    let site = Site::start(json!({"databases": databases(&url)}));
    let node = node(&url, &[]).await;
    for name in ["anon.abc", "..", "a/b"] {
        site.user(name);
        let cookie = site.call("login", json!([name, "secret"])).as_str().unwrap().to_owned();
        assert_eq!(enter(&node, &cookie).await.err(), Some(401), "{name}");
    }
    assert!(rejected(&node, "name").await);
}
