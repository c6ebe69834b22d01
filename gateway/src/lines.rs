//! What every line of the log says of the connection it was written for: its channel name and user, and the trace, where
//! one is kept. Known to whatever runs in the connection's turn, however deep, and to nobody else.

use std::fmt::Write as _;
use std::sync::Arc;

use opentelemetry::trace::TraceId;

/// A connection.
pub(crate) trait About: Send + Sync {
    fn channel(&self) -> &str;
    /// Empty where nobody is known.
    fn user(&self) -> &str;
}

/// What lines are about.
#[derive(Default)]
pub(crate) struct Of {
    pub(crate) about: Option<Arc<dyn About>>,
    /// Boxed: most connections have none, and each has room for it.
    pub(crate) trace: Option<Box<TraceId>>,
}

tokio::task_local! {
    static OF: Of;
}

/// Runs it with lines that are about that.
pub(crate) fn of<F: Future>(of: Of, future: F) -> impl Future<Output = F::Output> {
    OF.scope(of, future)
}

/// The fields that a line gets, but for those that it has.
pub(crate) fn fields(has: impl Fn(&str) -> bool, json: bool) -> String {
    let mut fields = String::new();
    let mut add = |name: &str, value: &str| {
        if has(name) {
            return;
        }
        // Writing to a string does not fail.
        let _ = match json {
            true => write!(fields, "\"{name}\":{},", serde_json::Value::from(value)),
            false => write!(fields, " {name}={value:?}"),
        };
    };
    // Nobody's line outside of connections.
    let _ = OF.try_with(|of| {
        if let Some(about) = &of.about {
            add("channel", about.channel());
            if !about.user().is_empty() {
                add("user", about.user());
            }
        }
        if let Some(trace) = &of.trace {
            add("trace_id", &trace.to_string());
        }
    });
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

    impl About for One {
        fn channel(&self) -> &str {
            "specific.a!b"
        }

        fn user(&self) -> &str {
            "o\"ne"
        }
    }

    #[tokio::test]
    async fn a_line_gets_what_it_lacks() {
        let trace = Some(Box::new(TraceId::from(10)));
        let of_one = Of { about: Some(Arc::new(One)), trace };
        let (all, json, rest) = of(of_one, async {
            tokio::task::yield_now().await;
            (fields(|_| false, false), fields(|_| false, true), fields(|name| name != "user", true))
        })
        .await;
        assert_eq!(all, r#" channel="specific.a!b" user="o\"ne" trace_id="0000000000000000000000000000000a""#);
        let json = serde_json::from_str::<serde_json::Value>(&format!("{{{}}}", json.trim_end_matches(',')));
        assert_eq!(json.unwrap()["user"], "o\"ne");
        assert_eq!(rest, r#""user":"o\"ne","#);
        assert_eq!(fields(|_| false, false), "");
    }
}
