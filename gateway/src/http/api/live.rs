//! What is passed on to who is connected, and not stored.

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::{ApiResult, Call, Problem, text};
use crate::close;
use crate::data;
use crate::node::Node;
use crate::publish::envelope::{self, What};

/// The type of an announcement's frame. It is a site's own one (`gateway.send`), which sites may send themselves.
const ANNOUNCEMENT: &str = "announcement";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Announced {
    message: String,
    data: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Announcement<'a> {
    r#type: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

/// To all sockets of all nodes.
pub(super) async fn announce(call: &Call, node: &Node) -> ApiResult {
    let Announced { message, data } = call.body()?;
    let data = data.map_or(Ok(None), |data| data::read(data.get(), node.config.limits.data_bytes));
    let data = data.map_err(|wrong| match wrong {
        data::Wrong::TooLarge => Problem::too_large(wrong.detail()),
        _ => Problem::bad(wrong.detail()),
    })?;
    let data: Option<&RawValue> = data.as_deref().map(serde_json::from_str).transpose().unwrap_or(None);
    let frame = text(&Announcement { r#type: ANNOUNCEMENT, message: &message, data })?;
    if frame.len() > envelope::MAX_DATA {
        return Err(Problem::too_large("an announcement may have 64 KiB"));
    }
    envelope::run(node, What::Everyone(envelope::send(&frame))).await?;
    Ok(json!({"to": "everyone"}))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Goodbye {
    #[serde(default, deserialize_with = "crate::json::optional_whole")]
    code: Option<u64>,
    reason: Option<String>,
}

/// Closes a user's sockets on all nodes.
pub(super) async fn disconnect(call: &Call, node: &Node, user: &str) -> ApiResult {
    let Goodbye { code, reason } = if call.body.is_empty() { Goodbye::default() } else { call.body()? };
    if code.is_some_and(|code| !close::is_sendable_code(code)) {
        return Err(Problem::bad("code is none that a socket can be closed with"));
    }
    let group = node.names.user(user).map_err(|_| Problem::bad("the user is not a valid name"))?;
    let event = envelope::disconnect(code, reason);
    envelope::run(node, What::Live(group, event)).await?;
    Ok(json!({"user": user, "disconnected": true}))
}
