//! What a connect needs of the database, for many sockets in a few statements.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use persistence::{Membership, Room, Store, StoreError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::{BatchError, Batcher};
use crate::memberships;
use crate::metrics::Metrics;

/// Sockets admitted with the same statements.
const BATCH: usize = 500;

/// Users remembered as known to the database, and bytes of that; over it the memory starts afresh.
const REMEMBERED: usize = 100_000;
const REMEMBERED_BYTES: usize = 8 << 20;

/// What one takes beside the name, about.
const USER_COST: usize = 48;

/// A user who connects.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) user: Arc<str>,
    /// The room of the path.
    pub(crate) enter: Option<String>,
    /// Rooms that the token names; made when missing.
    pub(crate) named: Vec<String>,
    /// Entering makes the room and joins it for good.
    pub(crate) open: bool,
}

/// What a user may hear.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) rooms: Vec<Room>,
    /// Version of the stored memberships among them.
    pub(crate) version: u64,
    /// Entering has made the user a member: the user's other sockets do not know it yet.
    pub(crate) joined: bool,
}

/// Loads memberships, batched.
#[derive(Debug)]
pub(crate) struct Admissions(Batcher<Ask, Admitted, StoreError>);

impl Admissions {
    pub(crate) fn start(store: &Store, metrics: &Arc<Metrics>, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let desk = Arc::new(Desk { store: store.clone(), known: Mutex::default() });
        let metrics = Arc::clone(metrics);
        Self(Batcher::spawn(tasks, stop, BATCH, move |asks| {
            let (desk, metrics) = (Arc::clone(&desk), Arc::clone(&metrics));
            async move { metrics.time_store("admit", desk.admit(asks)).await }
        }))
    }

    pub(crate) async fn admit(&self, ask: Ask) -> Result<Admitted, BatchError<StoreError>> {
        self.0.load(ask).await
    }
}

struct Desk {
    store: Store,
    known: Mutex<Known>,
}

/// Users who have been seen.
#[derive(Default)]
struct Known {
    users: HashSet<Arc<str>>,
    bytes: usize,
}

impl Known {
    fn add(&mut self, users: Vec<Arc<str>>) {
        let bytes: usize = users.iter().map(|user| USER_COST + user.len()).sum();
        if self.users.len() + users.len() > REMEMBERED || self.bytes + bytes > REMEMBERED_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.users.extend(users);
    }
}

impl Desk {
    async fn admit(&self, asks: Vec<Ask>) -> Result<Vec<Admitted>, StoreError> {
        self.see_users(&asks).await?;
        let users: Vec<String> = unique(asks.iter().map(|ask| ask.user.to_string()));
        let mut rooms_of = self.store.rooms_of(&users).await?;
        let is_member = |rooms_of: &HashMap<String, Vec<Room>>, user: &str, room: &str| {
            rooms_of.get(user).is_some_and(|rooms| rooms.iter().any(|known| known.name == room))
        };
        let joining: HashSet<(String, String)> = asks
            .iter()
            .filter(|ask| ask.open)
            .filter_map(|ask| Some((ask.enter.clone()?, ask.user.to_string())))
            .filter(|(room, user)| !is_member(&rooms_of, user, room))
            .collect();
        if !joining.is_empty() {
            let pairs: Vec<Membership> = joining
                .iter()
                .map(|(room, user)| Membership { room: room.clone(), user: user.clone(), create_room: true })
                .collect();
            self.store.add_members(&pairs).await?;
        }
        let named =
            unique(joining.iter().map(|(room, _)| room.clone()).chain(asks.iter().flat_map(|ask| ask.named.clone())));
        let mut heads = if named.is_empty() { HashMap::new() } else { self.store.room_heads(&named).await? };
        for room in asks.iter().flat_map(|ask| &ask.named) {
            if !heads.contains_key(room) {
                heads.insert(room.clone(), self.store.create_room(room, None).await?);
            }
        }
        for (room, user) in &joining {
            if let Some(head) = heads.get(room) {
                rooms_of.entry(user.clone()).or_default().push(head.clone());
            }
        }
        Ok(asks
            .iter()
            .map(|ask| {
                let mut rooms = rooms_of.get(&*ask.user).cloned().unwrap_or_default();
                let version = memberships::version(&rooms);
                for room in &ask.named {
                    if !rooms.iter().any(|known| known.name == *room) {
                        rooms.extend(heads.get(room).cloned());
                    }
                }
                let enters = |(room, user): &(String, String)| ask.enter.as_ref() == Some(room) && **user == *ask.user;
                Admitted { rooms, version, joined: joining.iter().any(enters) }
            })
            .collect())
    }

    /// Inserts users on first sight; who has been seen by this node costs nothing.
    async fn see_users(&self, asks: &[Ask]) -> Result<(), StoreError> {
        let new: Vec<Arc<str>> = {
            let known = self.known.lock();
            asks.iter().map(|ask| Arc::clone(&ask.user)).filter(|user| !known.users.contains(user)).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        self.store.see_users(&unique(new.iter().map(|user| user.to_string()))).await?;
        self.known.lock().add(new);
        Ok(())
    }
}

fn unique(names: impl Iterator<Item = String>) -> Vec<String> {
    names.collect::<HashSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_users_have_a_bound_in_number_and_in_bytes() {
        for (name_bytes, most) in [(8, REMEMBERED), (600, REMEMBERED_BYTES / 600)] {
            let mut known = Known::default();
            for batch in 0..500_u32 {
                let name = |n: u32| format!("{:0name_bytes$}", batch * 500 + n).into();
                known.add((0..500).map(name).collect());
                assert!(known.users.len() <= most && known.bytes <= REMEMBERED_BYTES);
            }
        }
    }
}
