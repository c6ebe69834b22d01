//! Dead letters: events from the stream that can never work as they are.

use http::StatusCode;
use secrecy::ExposeSecret;
use serde_json::json;

use super::{ApiResult, Call, Problem};
use crate::node::Node;
use crate::redis::{DeadLetters, pool};

/// Dead letters of one answer.
const MAX_LIST: usize = 100;

async fn open(node: &Node) -> Result<(DeadLetters, deadpool_redis::Connection), Problem> {
    let unavailable = |detail: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
    // With the in-memory layer there is no stream, so there are no dead letters.
    let url =
        node.config.redis_url.as_ref().ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no stream"))?;
    let pool = pool(url.expose_secret()).map_err(|_| unavailable("Redis cannot be used"))?;
    let connection = pool.get().await.map_err(|_| unavailable("Redis is unavailable"))?;
    Ok((DeadLetters::new(&node.config.namespace), connection))
}

fn failed(error: deadpool_redis::redis::RedisError) -> Problem {
    tracing::warn!(error = &error as &dyn std::error::Error, "the dead letters cannot be read");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Redis is unavailable")
}

pub(super) async fn list(node: &Node) -> ApiResult {
    let (letters, mut redis) = open(node).await?;
    Ok(json!({"dead": letters.list(&mut redis, None, MAX_LIST).await.map_err(failed)?}))
}

pub(super) async fn show(node: &Node, id: &str) -> ApiResult {
    let (letters, mut redis) = open(node).await?;
    let found = letters.list(&mut redis, Some(valid(id)?), 1).await.map_err(failed)?;
    found.into_iter().next().ok_or_else(none)
}

/// `POST` tries again, `DELETE` forgets.
pub(super) async fn settle(call: &Call, node: &Node, id: &str) -> ApiResult {
    let (letters, mut redis) = open(node).await?;
    let (id, retry) = (valid(id)?, call.method == http::Method::POST);
    let found = if retry { letters.retry(&mut redis, id).await } else { letters.drop_one(&mut redis, id).await };
    if found.map_err(failed)? { Ok(json!({"dead_id": id, "retried": retry})) } else { Err(none()) }
}

fn valid(id: &str) -> Result<&str, Problem> {
    let shape = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if shape { Ok(id) } else { Err(Problem::bad("not the id of a dead letter")) }
}

fn none() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such dead letter")
}
