//! Dead letters: events from the stream that can never work as they are.

use http::StatusCode;
use serde_json::json;

use super::{ApiResult, Call, Problem};
use crate::node::Node;
use crate::redis::{DeadLetters, Moved, RedisFailed};

/// Dead letters of one answer: the default, and the most; fewer where they are large.
const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

impl From<RedisFailed> for Problem {
    fn from(error: RedisFailed) -> Self {
        Self::unavailable("Redis is unavailable").because(&error)
    }
}

async fn open(node: &Node) -> Result<DeadLetters, Problem> {
    // With the in-memory layer there is no stream, so there are no dead letters.
    let server = node.redis.clone().ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no stream"))?;
    Ok(DeadLetters::open(server, &node.config.namespace).await?)
}

pub(super) async fn list(call: &Call, node: &Node) -> ApiResult {
    let limit = call.limit(DEFAULT_LIMIT, MAX_LIMIT)?;
    let before: Option<String> = call.query("before")?;
    let newest = before.as_deref().map(valid).transpose()?.map(crate::redis::before);
    let page = open(node).await?.list(newest.as_deref().unwrap_or("+"), "-", limit).await?;
    Ok(json!({"dead": page.letters, "has_more": page.has_more}))
}

pub(super) async fn show(node: &Node, id: &str) -> ApiResult {
    let id = valid(id)?;
    open(node).await?.list(id, id, 1).await?.letters.into_iter().next().ok_or_else(none)
}

pub(super) async fn retry(node: &Node, id: &str) -> ApiResult {
    let id = valid(id)?;
    match open(node).await?.retry(id).await? {
        Moved::TooLarge => Err(Problem::too_large("the dead letter is too large to be moved; it stays where it is")),
        moved => settled(id, true, moved == Moved::Yes),
    }
}

pub(super) async fn drop_one(node: &Node, id: &str) -> ApiResult {
    let id = valid(id)?;
    settled(id, false, open(node).await?.drop_one(id).await?)
}

fn settled(id: &str, retried: bool, found: bool) -> ApiResult {
    if found { Ok(json!({"dead_id": id, "retried": retried})) } else { Err(none()) }
}

/// An id in full, as Redis gives it: milliseconds and a number.
fn valid(id: &str) -> Result<&str, Problem> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok();
    match id.split_once('-') {
        Some((milliseconds, sequence)) if number(milliseconds) && number(sequence) => Ok(id),
        _ => Err(Problem::bad("not the id of a dead letter")),
    }
}

fn none() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such dead letter")
}
