//! The sockets of this node: by channel name for direct sends, by user for limits and for `add_clients`.
//!
//! This is the link between users and sockets. It is kept where the socket is and nowhere else: a
//! connect costs no statement and no Redis command, and a crashed node leaves nothing to clean up.
//! Who wants to know it of all nodes asks them (`peers.rs`).

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use channel_layer::ChannelName;
use parking_lot::Mutex;

use crate::config::Limits;
use crate::socket::Socket;
use crate::socket::addresses::{Addresses, Visitor};

const SHARDS: usize = 16;

/// The sockets of each user.
type Users = HashMap<Arc<str>, Vec<Arc<Socket>>>;

/// All sockets of a node.
pub struct Registry {
    by_channel: [Mutex<HashSet<OfChannel>>; SHARDS],
    by_user: [Mutex<Users>; SHARDS],
    pub(crate) addresses: Arc<Addresses>,
    count: AtomicUsize,
    hasher: RandomState,
}

/// A socket, as the one of its channel name. A map would keep the name beside each once more.
struct OfChannel(Arc<Socket>);

impl Borrow<str> for OfChannel {
    fn borrow(&self) -> &str {
        self.0.channel_name.as_str()
    }
}

impl Hash for OfChannel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.channel_name.as_str().hash(state);
    }
}

impl PartialEq for OfChannel {
    fn eq(&self, other: &Self) -> bool {
        self.0.channel_name == other.0.channel_name
    }
}

impl Eq for OfChannel {}

/// A limit that a new socket would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitReached {
    Connections,
    PerUser,
    PerAddress,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            by_channel: std::array::from_fn(|_| Mutex::default()),
            by_user: std::array::from_fn(|_| Mutex::default()),
            addresses: Arc::default(),
            count: AtomicUsize::new(0),
            hasher: RandomState::new(),
        }
    }

    /// Links a user to a socket, if the limits allow; a limit of 0 is none. The visitor is who becomes the socket. One
    /// whose user only its application knows has no name here, and is nobody's.
    pub(crate) fn add(
        &self,
        socket: &Arc<Socket>,
        limits: &Limits,
        visitor: Option<&Visitor>,
    ) -> Result<(), LimitReached> {
        self.count_in(socket, limits, visitor)?;
        if !socket.user.is_empty() {
            self.link(socket, limits, visitor)?;
        }
        let shard = self.shard(socket.channel_name.as_str());
        self.by_channel[shard].lock().insert(OfChannel(Arc::clone(socket)));
        Ok(())
    }

    fn link(&self, socket: &Arc<Socket>, limits: &Limits, visitor: Option<&Visitor>) -> Result<(), LimitReached> {
        let mut users = self.by_user[self.shard(&socket.user)].lock();
        let sockets = users.entry(Arc::clone(&socket.user)).or_default();
        if limits.connections_per_user > 0 && sockets.len() >= limits.connections_per_user {
            drop(users);
            self.count_out(socket);
            visitor.inspect(|visitor| visitor.stays());
            return Err(LimitReached::PerUser);
        }
        sockets.reserve_exact(1);
        sockets.push(Arc::clone(socket));
        Ok(())
    }

    fn count_in(&self, socket: &Socket, limits: &Limits, visitor: Option<&Visitor>) -> Result<(), LimitReached> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= limits.connections && limits.connections > 0 {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(LimitReached::Connections);
        }
        let Some(address) = socket.counted_address else { return Ok(()) };
        if !self.addresses.seat(address, limits.connections_per_address, visitor) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(LimitReached::PerAddress);
        }
        Ok(())
    }

    fn count_out(&self, socket: &Socket) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = socket.counted_address {
            self.addresses.leave(address);
        }
    }

    /// Ends the link. Only this socket's: the user's other sockets stay.
    pub(crate) fn remove(&self, socket: &Socket) {
        let shard = self.shard(socket.channel_name.as_str());
        if !self.by_channel[shard].lock().remove(socket.channel_name.as_str()) {
            return;
        }
        self.count_out(socket);
        let mut users = self.by_user[self.shard(&socket.user)].lock();
        if let Some(sockets) = users.get_mut(&*socket.user) {
            sockets.retain(|other| other.channel_name != socket.channel_name);
            if sockets.is_empty() {
                users.remove(&*socket.user);
            }
        }
    }

    pub(crate) fn by_channel(&self, name: &ChannelName) -> Option<Arc<Socket>> {
        self.by_channel[self.shard(name.as_str())].lock().get(name.as_str()).map(|of| Arc::clone(&of.0))
    }

    /// The user's sockets on this node.
    pub fn of_user(&self, username: &str) -> Vec<Arc<Socket>> {
        self.by_user[self.shard(username)].lock().get(username).cloned().unwrap_or_default()
    }

    /// All users who have a socket on this node.
    pub(crate) fn users(&self) -> Vec<String> {
        let names = |shard: &Mutex<Users>| shard.lock().keys().map(|user| user.to_string()).collect::<Vec<_>>();
        self.by_user.iter().flat_map(names).collect()
    }

    /// How many they are.
    pub(crate) fn user_count(&self) -> usize {
        self.by_user.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether the user has a socket on this node.
    pub fn is_online(&self, username: &str) -> bool {
        self.by_user[self.shard(username)].lock().contains_key(username)
    }

    /// How many sockets are open.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether no socket is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All sockets, collected shard by shard.
    pub(crate) fn all(&self) -> Vec<Arc<Socket>> {
        self.by_channel
            .iter()
            .flat_map(|shard| shard.lock().iter().map(|of| Arc::clone(&of.0)).collect::<Vec<_>>())
            .collect()
    }

    fn shard(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("sockets", &self.len()).finish()
    }
}
