//! Whether what belongs to the site is there: the database with its sessions and users, and the cache with its sessions.
//! Without them nobody who comes by a session can be judged, so `/readyz` says no.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::health::Health;
use crate::node::Node;

/// How often each is asked.
const EVERY: Duration = Duration::from_secs(2);

/// How soon it must answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Runs until the node stops.
pub(crate) async fn watch(node: Arc<Node>) {
    let Some(django) = &node.django else { return };
    let cache = async {
        if django.has_cache() {
            ask_again_and_again(&node.health, "session_cache", || django.check_cache()).await;
        }
    };
    tokio::join!(ask_again_and_again(&node.health, "site_database", || django.check_database()), cache);
}

async fn ask_again_and_again<E: Error + 'static, F>(health: &Health, part: &'static str, ask: impl Fn() -> F)
where
    F: Future<Output = Result<(), E>>,
{
    let mut was_up = true;
    loop {
        let mut answer = pin!(ask());
        let answer = match timeout(ANSWER, &mut answer).await {
            Ok(answer) => answer,
            Err(_late) => {
                health.note_part(part, false, true);
                // Not given up: each question that hangs costs a connection.
                answer.await
            }
        };
        health.note_part(part, answer.is_ok(), true);
        match answer {
            Ok(()) if !was_up => tracing::warn!(part, "a part of the site answers again"),
            Err(error) if was_up => {
                tracing::error!(
                    part,
                    error = &error as &dyn Error,
                    "a part of the site does not answer: nobody can come by a session"
                );
                was_up = false;
                sleep(EVERY).await;
                continue;
            }
            Ok(()) | Err(_) => {}
        }
        was_up = health.is_there(part);
        sleep(EVERY).await;
    }
}
