//! The table of all settings; flags, environment, file, `genconfig` and the documents follow it.

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Name of the flag without dashes, and of the key in the file (there with `_` for `-`). A dot
    /// separates section and key; those have no flag.
    pub name: &'static str,
    /// Default, as text; `None` when there is none or it depends on other settings.
    pub default: Option<&'static str>,
    /// Whether it must not be shown.
    pub secret: bool,
    /// Whether it is a switch: the flag takes no value.
    pub switch: bool,
    /// What it is, its unit, and when to change it.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable: `GATEWAY_LISTEN`, `GATEWAY_LIMITS__FRAME_BYTES`.
    pub fn environment(&self) -> String {
        format!("GATEWAY_{}", self.name.replace('.', "__").replace('-', "_").to_uppercase())
    }

    /// Whether it is a list whose entries may hold commas, where they stand one a line: in its `…_FILE`, or in a list
    /// of the settings file.
    pub fn is_list_of_secrets(&self) -> bool {
        matches!(self.name, "jwt-secret" | "layer-encryption-keys" | "django-secret-key" | "api-key" | "otlp-headers")
    }

    /// The key in the TOML file.
    pub fn file_key(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Whether a file can hold it (`…_FILE`): secrets, and keys of many lines.
    pub fn has_file(&self) -> bool {
        self.secret || self.name == "jwt-public-key"
    }

    /// Whether it has a flag of its own.
    pub fn has_flag(&self) -> bool {
        !self.name.contains('.')
    }
}

const fn text(name: &'static str, default: Option<&'static str>, help: &'static str) -> Setting {
    Setting { name, default, secret: false, switch: false, help }
}

const fn secret(name: &'static str, default: Option<&'static str>, help: &'static str) -> Setting {
    Setting { name, default, secret: true, switch: false, help }
}

const fn switch(name: &'static str, help: &'static str) -> Setting {
    Setting { name, default: None, secret: false, switch: true, help }
}

/// All settings, in the order of the documents.
pub const SETTINGS: &[Setting] = &[
    text("listen", Some("127.0.0.1:8000"), "Public address: browsers, behind the balancer"),
    text(
        "internal-listen",
        Some("127.0.0.1:9000"),
        "Internal address: metrics and API; never to be reached from outside",
    ),
    secret(
        "redis-url",
        None,
        "Redis of the channel layer, as in CHANNEL_LAYERS: redis://, rediss://, unix://, redis+sentinel://HOST,HOST/NAME or redis+cluster://; several, comma between, are shards. Without it the node is alone (in-memory layer)",
    ),
    text(
        "redis-ca",
        None,
        "File with the certificates (PEM) to trust for rediss://, instead of the public authorities",
    ),
    text("redis-client-certificate", None, "File with the certificate (PEM) to show to a Redis that wants one"),
    text("redis-client-key", None, "File with the key (PEM) of that certificate"),
    text(
        "layer",
        None,
        "memory, pubsub (RedisPubSubChannelLayer) or core (RedisChannelLayer): what the site's Python side uses; default memory without a Redis URL, else pubsub",
    ),
    text("layer-prefix", Some("asgi"), "Prefix of the channel layer in Redis, as in CHANNEL_LAYERS"),
    secret(
        "layer-encryption-keys",
        None,
        "Keys that encrypt events on the layer, comma between: symmetric_encryption_keys in CHANNEL_LAYERS. The first one encrypts, all decrypt",
    ),
    text("layer-serializer", Some("msgpack"), "Format of events on the layer: msgpack or json, as in CHANNEL_LAYERS"),
    text("layer-expiry", Some("60"), "Seconds an event waits for its reader (core layer), as in CHANNEL_LAYERS"),
    text(
        "layer-group-expiry",
        Some("86400"),
        "Seconds a membership that nobody renews lasts (core layer), as in CHANNEL_LAYERS",
    ),
    text(
        "layer-capacity",
        Some("100"),
        "Events that may wait in one queue (core layer), as in CHANNEL_LAYERS; the sender's counts. Raise it on both sides if layer_over_capacity_total rises",
    ),
    text("namespace", Some("gateway"), "Prefix of this gateway's own Redis keys"),
    switch(
        "raw-group-names",
        "Take any UTF-8 name for a group as it is (pub/sub layer), for sites that already send to such names",
    ),
    text("user-group", Some("{username}"), "Name of a user's group, with {username} in it"),
    secret(
        "database-url",
        Some("sqlite://gateway.db?mode=rwc"),
        "Database: sqlite://FILE?mode=rwc, sqlite::memory:, postgres:// or mysql://",
    ),
    text("database-connections", Some("10"), "Connections to the database, at most"),
    text(
        "database-wait-seconds",
        Some("2"),
        "Seconds that a call waits for one of these connections. More where short storms make the database slow, and visitors may rather wait than come again",
    ),
    text(
        "database-statement-seconds",
        Some("10"),
        "Seconds that a statement may take, at least 0.1; then it is given up and its sender told to try again. More where the database is slow for longer than that and still does its work; less to be told sooner",
    ),
    secret(
        "jwt-secret",
        None,
        "Secrets of HS256/384/512 tokens, comma between; the first one signs. At least 16 bytes each",
    ),
    text(
        "jwt-public-key",
        None,
        "Public keys (PEM) of RS, PS, ES and EdDSA tokens, one block behind the other; also from a file, as secrets are",
    ),
    text("jwks", None, "JWKS with the public keys of tokens: an https:// URL, or the name of a file"),
    text(
        "jwt-leeway",
        Some("30"),
        "Seconds that nbf and iat may be ahead of the database's clock; exp counts to the second",
    ),
    text("jwt-user-claim", Some("sub"), "Claim that holds the username"),
    text(
        "jwt-user-id-claim",
        None,
        "Claim that holds the user's id, such as user_id; the username is then read from Django's user table, and jwt-user-claim means nothing",
    ),
    text("jwt-audience", None, "Accepted values of the claim aud, comma between; unset: not checked"),
    text("jwt-issuer", None, "Accepted value of the claim iss; unset: not checked"),
    text(
        "user-name",
        Some("username"),
        "What a user is called everywhere: username, or id (as Django writes it). The same for every way to sign in",
    ),
    text(
        "anonymous",
        Some("off"),
        "Visitors without credentials: off, listen (they hear the open room of the URL) or talk (and post there)",
    ),
    text(
        "auth-url",
        None,
        "View of the site that is asked who somebody is, with the browser's Cookie and Authorization. Only what every node can reach; never a page that redirects",
    ),
    secret("auth-secret", None, "What the view at auth-url gets as X-Gateway-Secret, at least 16 bytes"),
    text(
        "auth-seconds",
        Some("2"),
        "Seconds that the view at auth-url may take for an answer; then visitors get 503. More where it is slow to start; less than limits.handshake_seconds",
    ),
    text(
        "auth-at-once",
        Some("64"),
        "Questions that the view at auth-url is asked at the same time; others wait. No more than Django has workers, or it answers late",
    ),
    secret(
        "django-secret-key",
        None,
        "SECRET_KEY of a Django project, and its SECRET_KEY_FALLBACKS behind it, comma between; in a file one a line. With it, Django's session cookie signs in",
    ),
    secret(
        "api-key",
        None,
        "Keys of the API on the internal listener, comma between; one written NAME:KEY is called NAME in the log. Without one the API answers 401 (not with --dev)",
    ),
    text(
        "allowed-origins",
        None,
        "Origins that may connect, comma between: hosts (.example.com with subdomains), or scheme://host[:port] (app shells' too), or *; default: the request's own host",
    ),
    text(
        "trusted-proxies",
        None,
        "Proxies whose X-Forwarded-For, -Host and -Proto, or Forwarded, count: addresses and networks (10.0.0.0/8), comma between",
    ),
    text(
        "room-policy",
        None,
        "members, or open: connecting to a room makes it and joins it; default members, with --dev open",
    ),
    text("client-notifications", Some("any"), "Whom browsers may notify: any, shared-room or off"),
    switch("dev", "Sign in anybody by name, open rooms, the demo page; only on loopback"),
    switch("no-io-uring", "Write to every socket by itself, also where Linux offers io_uring"),
    text("node-id", None, "Name of this node; default: host name and a random part"),
    text(
        "otlp-endpoint",
        None,
        "Collector of traces that speaks OTLP by HTTP, such as http://collector:4318; without a path /v1/traces is added. Unset: no traces",
    ),
    secret(
        "otlp-headers",
        None,
        "Headers that the collector wants, NAME=VALUE with comma between; in a file one a line",
    ),
    text(
        "otlp-sample-ratio",
        Some("1"),
        "Share of the traces that begin here which are kept, 0 to 1. Who sends a traceparent has decided already",
    ),
    text("log-format", Some("text"), "text or json"),
    text(
        "log-level",
        None,
        "error, warn, info, debug or trace, or directives as RUST_LOG has them; default RUST_LOG, else info",
    ),
    switch(
        "strict-env",
        "Refuse to start where a variable GATEWAY_… of the environment is no setting, instead of a warning",
    ),
    text(
        "limits.connections",
        Some("0"),
        "Sockets on this node; over it 503. Set it to what the machine's memory holds; 0: what the limit of open files allows",
    ),
    text("limits.connections_per_user", Some("100"), "Sockets of one user on this node; over it 429"),
    text(
        "limits.connections_per_address",
        Some("0"),
        "Connections of one client address (of IPv6, a /64) on this node, also those that are no sockets yet; over it 429. Needs trusted proxies behind a balancer",
    ),
    text("limits.frame_bytes", Some("65536"), "Bytes of a client's frame or message; over it close 1009"),
    text(
        "limits.data_bytes",
        Some("16384"),
        "Bytes of the data that a sender may give beside the text of a message, at most 1048576; over it too_large. 0: that many",
    ),
    text("limits.outbox_bytes", Some("1048576"), "Bytes that may wait for a slow client; over it close 4008"),
    text(
        "limits.frames_per_second",
        Some("50"),
        "Frames a socket may send per second, on average; pings, pongs and the pieces of a message are frames too",
    ),
    text(
        "limits.frames_burst",
        Some("100"),
        "Frames a socket may send at once; after as many more it is closed with 1008. 0, as of frames_per_second, is no limit",
    ),
    text(
        "limits.rooms_per_user",
        Some("1000"),
        "Rooms a user may hear; over it 429 for who would join one more, and who was given more hears the oldest. Less saves memory: a room costs each of its sockets some hundred bytes",
    ),
    text(
        "limits.resume_frames",
        Some("1000"),
        "Missed frames of one stream that a resume sends; who missed more reloads. 0: any number",
    ),
    text(
        "limits.resumes_at_once",
        Some("16"),
        "Streams that are read from the database at the same time for clients that come back. More where the database has cores to spare and clients wait long for what they missed; each may take one of database-connections",
    ),
    text(
        "limits.recent_bytes",
        Some("33554432"),
        "Bytes of recent messages that the node keeps for clients that come back; 0: they are read from the database",
    ),
    text(
        "limits.write_queue_bytes",
        Some("67108864"),
        "Bytes of messages that may wait to be stored. A client that has too many of them waiting is not read from; when there is no room at all it is answered unavailable. Raise it if writes_refused_total rises while the database is only slow; 0: any number",
    ),
    text(
        "limits.publish_bytes",
        Some("16777216"),
        "Bytes of what services publish at the same time, from the stream and over HTTP, with what is made of it. More if api_refused_total{reason=\"busy\"} rises while the database has time",
    ),
    text(
        "limits.memory_bytes",
        Some("0"),
        "Bytes of memory the process may take; over it new sockets get 503, and the slowest readers are closed with 4008. 0: nine tenths of the cgroup's limit, where there is one. Set it where several processes share a machine without cgroups",
    ),
    text(
        "limits.handshake_seconds",
        Some("10"),
        "Seconds until a connection must have sent its request, got its answer and taken it. More where a storm of reconnects takes longer",
    ),
    text(
        "limits.handshakes_per_second",
        Some("0"),
        "Handshakes this node takes in a second; over it 503. Set it to what the database stands when everybody comes back",
    ),
    text(
        "limits.ping_seconds",
        Some("25"),
        "Seconds without a sign of life until a ping is sent. Less than the balancer's idle time-out",
    ),
    text("limits.pong_seconds", Some("10"), "Seconds the answer to a ping may take; then close 4000"),
    text(
        "django.session_engine",
        Some("db"),
        "SESSION_ENGINE: db, cached_db, signed_cookies or cache, by short or dotted name",
    ),
    text("django.time_zone", Some("UTC"), "TIME_ZONE, where USE_TZ is off and the database keeps no zones"),
    text("django.session_cookie_name", Some("sessionid"), "SESSION_COOKIE_NAME"),
    text("django.session_cookie_age", Some("1209600"), "SESSION_COOKIE_AGE in seconds, for signed_cookies"),
    text(
        "django.session_salt",
        None,
        "Salt of the sessions' signatures, for a session class of the site's own: django.contrib.sessions. and the class's name; default: by engine",
    ),
    text("django.session_table", Some("django_session"), "Table of the sessions; schema.table for another schema"),
    secret(
        "django.database_url",
        None,
        "Database of the site's sessions and users, which is only read; default: database-url",
    ),
    text(
        "django.database_connections",
        Some("4"),
        "Connections to that database, at most, where it is one of its own. More where many come by session at once and site_rows takes long",
    ),
    text(
        "django.database_statement_seconds",
        Some("5"),
        "Seconds that a statement there may take, at least 0.1; then visitors get 503. Less than limits.handshake_seconds",
    ),
    text("django.user_table", Some("auth_user"), "Table of the users (AUTH_USER_MODEL)"),
    text("django.user_id_column", Some("id"), "Column of the users' primary key"),
    text("django.user_name_column", Some("username"), "Column of USERNAME_FIELD"),
    text("django.user_password_column", Some("password"), "Column of the password's hash"),
    text("django.user_active_column", Some("is_active"), "Column that says whether a user may sign in; - for none"),
    text(
        "django.auth_backends",
        Some("django.contrib.auth.backends.ModelBackend"),
        "AUTHENTICATION_BACKENDS, comma between",
    ),
    secret("django.cache_url", None, "Redis of the cache with the sessions, for the engine cache"),
    text("django.cache_key_prefix", None, "KEY_PREFIX of that cache"),
    text("django.cache_version", Some("1"), "VERSION of that cache"),
    text(
        "django.recheck_seconds",
        Some("300"),
        "Seconds after which an open socket's session or user is looked at again, up to a quarter more. Less ends sockets sooner after a log-out, and asks the database more often",
    ),
    text(
        "drain.delay_seconds",
        Some("5"),
        "Seconds between 'not ready' and the first close, so that the balancer notices",
    ),
    text(
        "drain.window_seconds",
        Some("20"),
        "Seconds over which sockets are closed and clients come back, at most; with few sockets it is less",
    ),
    text(
        "drain.reconnects_per_second",
        Some("500"),
        "Sockets that the nodes which stay can take per second, more where there are many; 0: always the whole window",
    ),
    text(
        "drain.grace_seconds",
        Some("0"),
        "Seconds between SIGTERM and the kill by what runs the node: stop_grace_period, or terminationGracePeriodSeconds less preStop. A drain that may take longer is warned of; 0: not known. systemd is told by the node and needs none",
    ),
    text(
        "retention.messages_days",
        Some("0"),
        "Days after which chat messages are deleted; 0 keeps them. The newest of a room always stays",
    ),
    text(
        "retention.messages_per_room",
        Some("0"),
        "Newest chat messages kept in each room, older ones are deleted; 0 keeps all",
    ),
    text(
        "retention.notifications_days",
        Some("0"),
        "Days after which notifications are deleted, seen or not; 0 keeps them. A user's newest always stays",
    ),
    text(
        "retention.interval_seconds",
        Some("600"),
        "Seconds from one clean-up to the next; one node does it for all. 0: not on this node",
    ),
    text(
        "bridge.path",
        None,
        "Path whose sockets the site's own Python consumers serve: one that ends in / takes everything below it, {name} takes one segment. Several [[bridge]] may follow each other, the first that matches is taken",
    ),
    text(
        "bridge.workers",
        None,
        "Where gateway_worker listens: unix:/run/site/worker-*.sock, tcp://HOST:PORT or tcp://HOST:PORT-PORT (every address of the name)",
    ),
    secret(
        "bridge.secret",
        None,
        "What node and workers prove to each other, at least 16 bytes; in the file also secret_file, the name of a file with it",
    ),
    text(
        "bridge.auth",
        Some("app"),
        "app: the application decides who may connect; gateway: who is not signed in here is refused, and the application is told who it is",
    ),
    text(
        "bridge.frame_bytes",
        None,
        "Bytes of a client's frame or message, at most 16777216; default limits.frame_bytes",
    ),
    text(
        "bridge.outbox_bytes",
        None,
        "Bytes that may wait for a slow client; from half of them on the application's send() waits; default limits.outbox_bytes",
    ),
    text("bridge.slow_seconds", Some("10"), "Seconds that send() may wait for a client; then it is closed with 4008"),
    text(
        "bridge.max_opening",
        Some("32"),
        "Handshakes at once for each worker; others wait, limits.handshake_seconds at most",
    ),
    text(
        "bridge.ca",
        None,
        "File with the certificates (PEM) to trust for workers at tcp://; without it there is no TLS",
    ),
    text("bridge.certificate", None, "File with the certificate (PEM) to show to workers that want one"),
    text("bridge.key", None, "File with the key (PEM) of that certificate"),
];
