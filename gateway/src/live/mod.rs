//! `gateway check-config --live`: whether the servers are there and let a node do all that it does, told at once.

mod rights;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, LayerError, RelaySink};
use parking_lot::Mutex;
use persistence::{Store, StoreError};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::timeout;
use uuid::Uuid;

use crate::auth::{AskDjango, Jwks};
use crate::config::Config;
use crate::http_client;
use crate::layer;
use crate::redis;
use crate::storing::store::store_options;

/// How long an event may be under way.
const WAY: Duration = Duration::from_secs(3);

/// Groups for each host of the layer: they go to hosts by their names.
const GROUPS_PER_HOST: usize = 8;

/// Clocks that are further apart are named.
const APART: f64 = 2.0;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What works.
    pub good: Vec<String>,
    /// What works, and may not be meant.
    pub warnings: Vec<String>,
    /// What a node could not do.
    pub errors: Vec<String>,
}

impl Findings {
    pub(crate) fn good(&mut self, what: String) {
        self.good.push(what);
    }

    pub(crate) fn warn(&mut self, what: String) {
        self.warnings.push(what);
    }

    /// An error with all its causes.
    pub(crate) fn wrong(&mut self, what: &str, error: &dyn Error) {
        let (mut text, mut next) = (what.to_owned(), Some(error));
        while let Some(error) = next {
            text = format!("{text}: {error}");
            next = error.source();
        }
        self.errors.push(text);
    }

    fn clock(&mut self, of: &str, theirs: OffsetDateTime) {
        let ahead = (theirs - OffsetDateTime::now_utc()).as_seconds_f64();
        if ahead.abs() >= APART {
            self.warn(format!(
                "the clock of {of} is {ahead:.1} s ahead of this machine's: does NTP run on both hosts?"
            ));
        }
    }
}

/// Tries what a node of these settings does: every kind of statement on the database, every command on Redis, an event
/// through the layer. Nothing of it stays.
pub async fn check_live(config: &Config) -> Findings {
    let mut found = Findings::default();
    let deployment = match database(config, &mut found).await {
        Ok(deployment) => deployment,
        Err(error) => {
            found.wrong("the database", &error);
            None
        }
    };
    match channel_layer(config).await {
        Ok(()) => found.good("the channel layer answers".to_owned()),
        Err(error) => found.wrong("the channel layer", &error),
    }
    rights::check_rights(config, deployment, &mut found).await;
    if let Ok(Some(server)) = redis::Server::of(config)
        && let Ok(time) = server.time().await
    {
        found.clock("Redis", time);
    }
    found.warnings.extend(redis::other_layer(&config.layer).await);
    sign_in(config, &mut found).await;
    found
}

/// Who is asked about visitors.
async fn sign_in(config: &Config, found: &mut Findings) {
    if let Some(source) = &config.jwks {
        match Jwks::try_once(source).await {
            Ok(0) => found.warn("the JWKS has no key that is of use here".to_owned()),
            Ok(keys) => found.good(format!("the JWKS has keys: {keys}")),
            Err(error) => found.wrong("the JWKS", &error),
        }
    }
    if let Some(url) = &config.auth_url {
        match AskDjango::try_once(url, config.auth_secret.as_ref(), config.auth_time).await {
            Ok(()) => found.good("ask Django is answered".to_owned()),
            Err(why) => found.errors.push(format!("ask Django, {}: it {why}", http_client::shown(url))),
        }
    }
}

/// Returns the deployment's id, if there is one yet.
async fn database(config: &Config, found: &mut Findings) -> Result<Option<Uuid>, StoreError> {
    let store = Store::connect(store_options(config)).await?;
    store.ping().await?;
    found.good("the database answers".to_owned());
    found.clock("the database", store.clock().await?);
    if store.migration_status().await?.iter().all(|(_, applied)| !applied) {
        found.warn("the database is empty: the first node, or gateway migrate, makes the tables".to_owned());
        return Ok(None);
    }
    store.check_schema().await?;
    for (what, error) in store.refused().await {
        found.wrong(&format!("the database refuses {what}, which a node needs"), &error);
    }
    Ok(Some(store.deployment_id().await?))
}

/// Hears what comes from the layer.
#[derive(Default)]
struct Ear {
    heard: Mutex<Vec<GroupName>>,
    news: Notify,
}

impl RelaySink for Ear {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        self.heard.lock().extend(batch.drain(..).filter_map(|delivery| match delivery {
            Delivery::Group { group, .. } => Some(group),
            _ => None,
        }));
        self.news.notify_one();
    }
}

/// An event through groups on every host, and through a channel.
async fn channel_layer(config: &Config) -> Result<(), LayerError> {
    let layer = layer::connect(config).await?;
    layer.ping().await?;
    let mark = Uuid::new_v4().simple();
    let groups: Result<Vec<_>, _> = (0..config.layer.hosts.len().max(1) * GROUPS_PER_HOST)
        .map(|number| GroupName::parse(&format!("r.check-{mark}-{number}")))
        .collect();
    let groups = groups?;
    let tried = try_layer(&**layer, &groups).await;
    let closed = layer.close().await;
    tried.and(closed)
}

async fn try_layer(layer: &dyn ChannelLayer, groups: &[GroupName]) -> Result<(), LayerError> {
    let event = Event::new("gateway.check");
    let ear = Arc::new(Ear::default());
    let relay = layer.relay(Arc::clone(&ear) as Arc<dyn RelaySink>).await?;
    relay.join(groups).await?;
    for group in groups {
        layer.group_send(group, &event).await?;
    }
    let all = async {
        while ear.heard.lock().len() < groups.len() {
            ear.news.notified().await;
        }
    };
    timeout(WAY, all).await.map_err(|_late| LayerError::Timeout)?;
    relay.leave(groups).await?;
    let channel = layer.new_channel("").await?;
    layer.send(&channel, &event).await?;
    timeout(WAY, layer.receive(&channel)).await.map_err(|_late| LayerError::Timeout)??;
    layer.remove_channel(&channel).await
}
