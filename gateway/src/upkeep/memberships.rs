//! A lost word about a membership is noticed: what open sockets hear is compared with the database.
//!
//! Changes are told through the layer and take effect at once. This is for when the layer was away:
//! every socket carries a version of the memberships it knows, and one whose user's version has
//! changed is told to look again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use channel_layer::Event;
use persistence::StoreError;

use crate::names;
use crate::node::Node;
use crate::storing::admission::version;
use crate::words::EventType;

/// How often: while the layer works, and while it is away.
const EVERY: Duration = Duration::from_secs(60);
const WHILE_DOWN: Duration = Duration::from_secs(2);

/// Users of one statement.
const CHUNK: usize = 500;

/// Runs until the node stops.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut failed = false;
    loop {
        let soon = failed || node.hub.is_layer_down();
        let wait = if soon { WHILE_DOWN } else { EVERY.mul_f64(rand::random_range(0.8..1.2)) };
        let _ = tokio::time::timeout(wait, node.hub.memberships_doubtful()).await;
        let compared = node.metrics.time_store("memberships", compare(&node)).await;
        // The doubt is as it was.
        failed = compared.is_err();
        node.health.note("memberships", &compared);
    }
}

async fn compare(node: &Node) -> Result<(), StoreError> {
    let news = Arc::new(Event::new(EventType::RoomsChanged.as_str()));
    let mut users = node.registry.users();
    // Who has no name has no memberships.
    users.retain(|user| !user.starts_with(names::ANONYMOUS));
    for users in users.chunks(CHUNK) {
        let rooms = node.store.rooms_of(users).await?;
        for user in users {
            let current = version(rooms.get(user).map_or(&[], Vec::as_slice));
            for socket in node.registry.of_user(user) {
                let known = socket.memberships.load(Ordering::Relaxed);
                if known != 0 && known != current {
                    socket.push_event(Arc::clone(&news));
                }
            }
        }
    }
    Ok(())
}
