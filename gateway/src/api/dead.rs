//! Dead letters: events from the stream that can never work as they are.

use http::StatusCode;
use serde_json::json;

use super::{ApiResult, Call, Problem};
use crate::node::Node;
use crate::redis::{DeadLetters, RedisFailed, Server};

/// Dead letters of one answer.
const MAX_LIST: usize = 100;

impl From<RedisFailed> for Problem {
    fn from(error: RedisFailed) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "the dead letters cannot be read");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Redis is unavailable")
    }
}

async fn open(node: &Node) -> Result<DeadLetters, Problem> {
    // With the in-memory layer there is no stream, so there are no dead letters.
    let server = Server::of(&node.config).map_err(RedisFailed::from)?;
    let server = server.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no stream"))?;
    Ok(DeadLetters::open(server, &node.config.namespace).await?)
}

pub(super) async fn list(node: &Node) -> ApiResult {
    Ok(json!({"dead": open(node).await?.list(None, MAX_LIST).await?}))
}

pub(super) async fn show(node: &Node, id: &str) -> ApiResult {
    let found = open(node).await?.list(Some(valid(id)?), 1).await?;
    found.into_iter().next().ok_or_else(none)
}

/// `POST` tries again, `DELETE` forgets.
pub(super) async fn settle(call: &Call, node: &Node, id: &str) -> ApiResult {
    let mut letters = open(node).await?;
    let (id, retry) = (valid(id)?, call.method == http::Method::POST);
    let found = if retry { letters.retry(id).await? } else { letters.drop_one(id).await? };
    if found { Ok(json!({"dead_id": id, "retried": retry})) } else { Err(none()) }
}

fn valid(id: &str) -> Result<&str, Problem> {
    let shape = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if shape { Ok(id) } else { Err(Problem::bad("not the id of a dead letter")) }
}

fn none() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such dead letter")
}
