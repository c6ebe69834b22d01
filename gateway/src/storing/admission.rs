//! What a connect needs of the database, for many sockets in a few statements.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use persistence::{Membership, Room, Store, StoreError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::storing::batch::{BatchError, Batcher};

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
    /// Nobody by name: hears the room of the path if it exists, and leaves no trace.
    pub(crate) anonymous: bool,
}

/// What a user may hear.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// The oldest, as many as one may hear.
    pub(crate) rooms: Vec<Room>,
    /// Rooms that are the user's beyond that.
    pub(crate) unheard: Vec<String>,
    /// Version of the stored memberships, heard or not.
    pub(crate) version: u64,
    /// Entering has made the user a member: the user's other sockets do not know it yet.
    pub(crate) joined: bool,
}

/// Why a user is not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdmitted {
    /// Entering would join one room more than a user may hear. Nothing was stored.
    #[error("the user is in as many rooms as limits.rooms_per_user allows")]
    TooManyRooms,
    /// The database is away, or the node is stopping.
    #[error("memberships could not be loaded")]
    Unavailable(#[from] BatchError<StoreError>),
}

/// Loads memberships, batched.
#[derive(Debug)]
pub(crate) struct Admissions {
    batcher: Batcher<Ask, Option<Admitted>, StoreError>,
    most: Arc<AtomicUsize>,
    known: Arc<Mutex<Known>>,
}

impl Admissions {
    /// `most` is how many rooms a user may hear; 0 is any number.
    pub(crate) fn start(
        store: &Store,
        most: usize,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let most = Arc::new(AtomicUsize::new(most));
        let known = Arc::default();
        let admitter = Arc::new(Admitter { store: store.clone(), most: Arc::clone(&most), known: Arc::clone(&known) });
        let metrics = Arc::clone(metrics);
        let batcher = Batcher::spawn(tasks, stop, BATCH, move |asks| {
            let (admitter, metrics) = (Arc::clone(&admitter), Arc::clone(&metrics));
            async move { metrics.time_store("admit", admitter.admit(asks)).await }
        });
        Self { batcher, most, known }
    }

    /// A user was taken out of the database, and is somebody new when they come back.
    pub(crate) fn forget(&self, user: &str) {
        self.known.lock().remove(user);
    }

    /// From now on a user may hear so many rooms; 0 is any number.
    pub(crate) fn set_rooms_per_user(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    pub(crate) async fn admit(&self, ask: Ask) -> Result<Admitted, NotAdmitted> {
        self.batcher.load(ask).await?.ok_or(NotAdmitted::TooManyRooms)
    }
}

struct Admitter {
    store: Store,
    most: Arc<AtomicUsize>,
    known: Arc<Mutex<Known>>,
}

/// Users who have been seen.
#[derive(Debug, Default)]
struct Known {
    users: HashSet<Arc<str>>,
    bytes: usize,
}

impl Known {
    fn remove(&mut self, user: &str) {
        if self.users.remove(user) {
            self.bytes -= USER_COST + user.len();
        }
    }

    fn add(&mut self, users: Vec<Arc<str>>) {
        let bytes: usize = users.iter().map(|user| USER_COST + user.len()).sum();
        if self.users.len() + users.len() > REMEMBERED || self.bytes + bytes > REMEMBERED_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.users.extend(users);
    }
}

/// Rooms of the path that users are to become members of, by user.
type Joining = HashMap<Arc<str>, HashSet<String>>;

impl Admitter {
    fn most(&self) -> usize {
        match self.most.load(Ordering::Relaxed) {
            0 => usize::MAX,
            most => most,
        }
    }

    /// `None` for who is refused.
    async fn admit(&self, asks: Vec<Ask>) -> Result<Vec<Option<Admitted>>, StoreError> {
        let users = unique(asks.iter().filter(|ask| !ask.anonymous).map(|ask| ask.user.to_string()));
        let mut rooms_of = if users.is_empty() { HashMap::new() } else { self.store.rooms_of(&users).await? };
        let mut joining = Joining::new();
        let admitted: Vec<bool> = asks.iter().map(|ask| self.has_room_for(ask, &rooms_of, &mut joining)).collect();
        let of_admitted = || asks.iter().zip(&admitted).filter(|(_, admitted)| **admitted).map(|(ask, _)| ask);
        self.see_users(of_admitted()).await?;
        let pairs: Vec<Membership> = joining
            .iter()
            .flat_map(|(user, rooms)| rooms.iter().map(move |room| (user, room)))
            .map(|(user, room)| Membership { room: room.clone(), user: user.to_string(), create_room: true })
            .collect();
        if !pairs.is_empty() {
            self.store.add_members(&pairs).await?;
        }
        let named = unique(
            pairs
                .iter()
                .map(|pair| pair.room.clone())
                .chain(of_admitted().flat_map(|ask| ask.named.iter().cloned()))
                .chain(asks.iter().filter(|ask| ask.anonymous).filter_map(|ask| ask.enter.clone())),
        );
        let mut heads = if named.is_empty() { HashMap::new() } else { self.store.room_heads(&named).await? };
        for pair in &pairs {
            if let Some(head) = heads.get(&pair.room) {
                rooms_of.entry(pair.user.clone()).or_default().push(head.clone());
            }
        }
        let mut answers = Vec::with_capacity(asks.len());
        for (ask, admitted) in asks.iter().zip(&admitted) {
            answers.push(match admitted {
                false => None,
                true if ask.anonymous => {
                    let rooms = ask.enter.as_ref().and_then(|room| heads.get(room)).cloned().into_iter().collect();
                    Some(Admitted { rooms, unheard: Vec::new(), version: 0, joined: false })
                }
                true => Some(self.admitted(ask, rooms_of.get(&*ask.user), &mut heads, &joining).await?),
            });
        }
        Ok(answers)
    }

    /// Whether the user may enter: the room is theirs already, or is not too much. Who enters for good is noted.
    fn has_room_for(&self, ask: &Ask, rooms_of: &HashMap<String, Vec<Room>>, joining: &mut Joining) -> bool {
        let Some(room) = ask.enter.as_ref().filter(|_| ask.open && !ask.anonymous) else { return true };
        let stored = rooms_of.get(&*ask.user).map_or(&[][..], Vec::as_slice);
        let joins = joining.get(&ask.user);
        let is_member = |room: &str| {
            stored.iter().any(|known| known.name == room) || joins.is_some_and(|joins| joins.contains(room))
        };
        if is_member(room) {
            return true;
        }
        let named = ask.named.iter().filter(|named| *named != room && !is_member(named)).collect::<HashSet<_>>().len();
        if stored.len() + joins.map_or(0, HashSet::len) + named >= self.most() {
            return false;
        }
        joining.entry(Arc::clone(&ask.user)).or_default().insert(room.clone());
        true
    }

    /// The stored memberships, the oldest first, then what the token names; of the latter, what is heard and missing
    /// is made.
    async fn admitted(
        &self,
        ask: &Ask,
        stored: Option<&Vec<Room>>,
        heads: &mut HashMap<String, Room>,
        joining: &Joining,
    ) -> Result<Admitted, StoreError> {
        let mut rooms = stored.cloned().unwrap_or_default();
        let version = version(&rooms);
        let mut unheard: Vec<String> = rooms.drain(self.most().min(rooms.len())..).map(|room| room.name).collect();
        let theirs = rooms.iter().map(|room| &room.name).chain(&unheard);
        let mut known: HashSet<String> = theirs.filter(|_| !ask.named.is_empty()).cloned().collect();
        for name in ask.named.iter().filter(|name| known.insert(name.to_string())) {
            if rooms.len() >= self.most() {
                unheard.push(name.clone());
                continue;
            }
            if !heads.contains_key(name) {
                heads.insert(name.clone(), self.store.create_room(name, None).await?);
            }
            rooms.extend(heads.get(name).cloned());
        }
        let joins = joining.get(&ask.user).zip(ask.enter.as_ref());
        let joined = joins.is_some_and(|(rooms, room)| rooms.contains(room));
        Ok(Admitted { rooms, unheard, version, joined })
    }

    /// Inserts users on first sight; who has been seen by this node costs nothing.
    async fn see_users(&self, asks: impl Iterator<Item = &Ask>) -> Result<(), StoreError> {
        let new: Vec<Arc<str>> = {
            let known = self.known.lock();
            asks.filter(|ask| !ask.anonymous)
                .map(|ask| Arc::clone(&ask.user))
                .filter(|user| !known.users.contains(user))
                .collect()
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

/// A number that changes with the stored memberships; never 0, which stands for "hears no rooms".
pub(crate) fn version(rooms: &[Room]) -> u64 {
    let mut names: Vec<(&str, i64)> = rooms.iter().map(|room| (room.name.as_str(), room.epoch)).collect();
    names.sort_unstable();
    let mut hasher = DefaultHasher::new();
    names.hash(&mut hasher);
    hasher.finish().max(1)
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
