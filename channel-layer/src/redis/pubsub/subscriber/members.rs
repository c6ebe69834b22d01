//! Who hears a topic: groups with their members, and relays with what is on its way to them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use tokio::time::Instant;

use super::{Member, Reply, registry::Topic};
use crate::{
    ChannelName, Delivery, GroupName, RelaySink,
    redis::{hand_over::hand_over, inbox::Inbox},
};

pub(super) type JoinId = u64;

/// How many deliveries a sink gets at once, at most.
const BATCH: usize = 256;

pub(super) struct Group {
    pub(super) name: GroupName,
    /// Apart from the channels, because there are few and each message looks here.
    pub(super) relays: Vec<(u64, Standing)>,
    /// Boxed, because most groups have none.
    channels: Option<Box<Channels>>,
}

type Channels = HashMap<ChannelName, (Arc<Inbox>, Standing)>;

/// A membership counts if a join of it has succeeded or one is under way. A failed join takes back
/// only its own share.
#[derive(Default)]
pub(super) struct Standing {
    pub(super) confirmed: bool,
    pub(super) pending: Vec<JoinId>,
}

/// A member that was found to exist.
pub(super) enum Seat {
    Relay(u64),
    Channel(Arc<Inbox>),
}

pub(super) struct Relay {
    pub(super) sink: Arc<dyn RelaySink>,
    pub(super) prefix: String,
    pub(super) alive: Weak<()>,
    pub(super) groups: HashSet<Topic>,
    pub(super) batch: Vec<Delivery>,
    /// Since when it has been told `Disconnected`, if it was told that last.
    pub(super) down: Option<Instant>,
    /// The topics of its groups that were not subscribed for a while since then.
    pub(super) lost: HashSet<Topic>,
    /// Whoever opened it and waits for this many confirmations.
    pub(super) opened: Option<(Reply<u64>, usize)>,
}

impl Group {
    pub(super) fn new(name: GroupName) -> Self {
        Self { name, relays: Vec::new(), channels: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.relays.is_empty() && self.channels.is_none()
    }

    /// The inboxes of its channels.
    pub(super) fn inboxes(&self) -> impl Iterator<Item = &Arc<Inbox>> {
        self.channels.iter().flat_map(|channels| channels.values()).map(|(inbox, _)| inbox)
    }

    /// The member's standing, made if it is new.
    pub(super) fn standing(&mut self, seat: &Seat) -> &mut Standing {
        match seat {
            Seat::Channel(inbox) => {
                let slot = self.channels.get_or_insert_default().entry(inbox.name.clone());
                &mut slot.or_insert_with(|| (inbox.clone(), Standing::default())).1
            }
            Seat::Relay(id) => {
                let at = self.relays.iter().position(|(relay, _)| relay == id);
                let at = at.unwrap_or_else(|| {
                    // There is one, mostly, and a node has a group for each of its users.
                    self.relays.reserve_exact(1);
                    self.relays.push((*id, Standing::default()));
                    self.relays.len() - 1
                });
                &mut self.relays[at].1
            }
        }
    }

    pub(super) fn standings(&mut self) -> impl Iterator<Item = &mut Standing> {
        let relays = self.relays.iter_mut().map(|(_, standing)| standing);
        let channels = self.channels.iter_mut().flat_map(|channels| channels.values_mut());
        relays.chain(channels.map(|(_, standing)| standing))
    }

    pub(super) fn remove(&mut self, member: &Member) {
        match member {
            Member::Relay(id) => self.relays.retain(|(relay, _)| relay != id),
            Member::Channel(name) => {
                let Some(channels) = &mut self.channels else { return };
                channels.remove(name);
                if channels.is_empty() {
                    self.channels = None;
                }
            }
        }
    }

    /// Takes back a failed join; tells whether the membership is gone.
    pub(super) fn withdraw(&mut self, member: &Member, join: JoinId) -> bool {
        let standing = match member {
            Member::Relay(id) => self.relays.iter_mut().find(|(relay, _)| relay == id).map(|(_, it)| it),
            Member::Channel(name) => {
                self.channels.as_mut().and_then(|channels| channels.get_mut(name)).map(|(_, it)| it)
            }
        };
        let Some(standing) = standing else { return false };
        standing.pending.retain(|other| *other != join);
        let gone = !standing.confirmed && standing.pending.is_empty();
        if gone {
            self.remove(member);
        }
        gone
    }
}

impl Relay {
    pub(super) fn owns(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.batch.push(delivery);
        if self.batch.len() >= BATCH {
            self.deliver();
        }
    }

    pub(super) fn deliver(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.alive.strong_count() > 0 {
            hand_over(&*self.sink, &mut self.batch);
        }
        self.batch.clear();
    }
}
