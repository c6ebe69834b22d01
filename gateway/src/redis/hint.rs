//! Telling a layer that the site does not use: both kinds may share a Redis without noticing each other.

use std::time::Duration;

use channel_layer::Host;
use redis::{self, Value};

use super::RedisFailed;
use super::server::Server;
use crate::config::{LayerConfig, LayerKind};

/// The look at a Redis with many keys ends after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keys looked at with one command.
const SCAN: usize = 1000;

/// Logs a warning if another kind of layer has left its traces.
pub(crate) async fn warn_of_other_layer(layer: LayerConfig) {
    if let Some(hint) = other_layer(&layer).await {
        tracing::warn!("{hint}");
    }
}

/// What speaks for another kind of layer under the same prefix, if anything does.
pub(crate) async fn other_layer(layer: &LayerConfig) -> Option<String> {
    let look = async {
        for host in &layer.hosts {
            match sees_other(layer, host).await {
                Ok(None) => {}
                Ok(found) => return found,
                // A user without the right to look is no reason to complain.
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no look at other layers"),
            }
        }
        None
    };
    tokio::time::timeout(PATIENCE, look).await.ok().flatten()
}

async fn sees_other(layer: &LayerConfig, host: &Host) -> Result<Option<String>, RedisFailed> {
    let mut redis = Server::at(host)?.open("").await?;
    let prefix = literally(&layer.prefix);
    match layer.kind {
        LayerKind::Memory => Ok(None),
        LayerKind::PubSub => {
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(format!("{prefix}:group:*")).arg("COUNT").arg(SCAN);
                let (next, keys): (String, Vec<Value>) = scan.query_async(&mut *redis).await?;
                if !keys.is_empty() {
                    return Ok(Some(format!(
                        "this node uses the pub/sub layer, but there are keys {}:group:* in Redis: does the site use \
                         channels_redis.core.RedisChannelLayer? Then set --layer core; the two do not hear each other. \
                         After a change of layers the keys are gone within a day",
                        layer.prefix
                    )));
                }
                if next == "0" {
                    return Ok(None);
                }
                cursor = next;
            }
        }
        LayerKind::Core => {
            let mut list = redis::cmd("PUBSUB");
            list.arg("CHANNELS").arg(format!("{prefix}__group__*"));
            let channels: Vec<Value> = list.query_async(&mut *redis).await?;
            Ok((!channels.is_empty()).then(|| {
                format!(
                    "this node uses the core layer, but somebody is subscribed to {}__group__*: does the site use \
                     channels_redis.pubsub.RedisPubSubChannelLayer? Then set --layer pubsub; the two do not hear each other",
                    layer.prefix
                )
            }))
        }
    }
}

/// A text as a pattern that matches nothing else.
fn literally(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if "*?[]^-\\".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}
