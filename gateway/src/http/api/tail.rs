//! What passes this node, a part at a time.

use std::time::Duration;

use serde_json::json;

use super::{ApiResult, Call, Problem};
use crate::node::Node;
use crate::tail::Filter;

/// What passed, in one answer: the default, and the most.
const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

/// Seconds that a call may wait for something to show.
const MAX_WAIT: u64 = 30;

pub(super) async fn show(call: &Call, node: &Node) -> ApiResult {
    let filter = Filter {
        user: call.query("user")?,
        room: call.query("room")?,
        texts: call.query::<bool>("texts")?.unwrap_or(false),
    };
    let wait = call.query::<u64>("wait")?.unwrap_or(0);
    if wait > MAX_WAIT {
        return Err(Problem::bad(format!("wait may be {MAX_WAIT} seconds")));
    }
    let most = usize::try_from(call.limit(DEFAULT_LIMIT, MAX_LIMIT)?).unwrap_or(usize::MAX);
    let part = node.hub.tail.after(call.query("after")?, &filter, most, Duration::from_secs(wait)).await;
    Ok(json!({"node": node.config.node_id, "events": part.events, "next": part.next, "missed": part.missed}))
}
