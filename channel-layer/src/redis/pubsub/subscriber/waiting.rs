//! Joins that wait for Redis, and what becomes of them.

use std::collections::hash_map;

use tokio::time::Instant;

use super::{
    JOIN, Reply,
    members::JoinId,
    registry::{Changes, Join, Purpose, Registry, Topic, answer},
};
use crate::{BoxError, LayerError};

impl Registry {
    pub(super) fn wait(&mut self, id: JoinId, purpose: Purpose, topics: Vec<Topic>, reply: Reply<()>) {
        let (missing, deadline) = (topics.len(), Instant::now() + JOIN);
        self.joins.insert(id, Join { purpose, topics, missing, deadline, reply });
    }

    pub(super) fn one_less(&mut self, join: JoinId, changes: &mut Changes) {
        let hash_map::Entry::Occupied(mut found) = self.joins.entry(join) else { return };
        found.get_mut().missing -= 1;
        if found.get().missing > 0 {
            return;
        }
        let join = found.remove();
        let heard = join.reply.send(Ok(())).is_ok();
        // Whoever wanted the channel has gone without learning its name: nobody could ever end it.
        if !heard && let Purpose::Open { name, only: true } = join.purpose {
            self.end_channel(&name, changes);
        }
    }

    /// Redis has confirmed a topic.
    pub(super) fn confirmed(&mut self, topic: &Topic) -> Changes {
        let mut changes = Changes::default();
        let Some(entry) = self.topics.get_mut(topic) else { return changes };
        entry.confirmed = true;
        if let Some(inbox) = &entry.channel
            && let Some(channel) = self.channels.get_mut(&inbox.name)
        {
            channel.opened = true;
        }
        if let Some(group) = &mut entry.group {
            group.standings().filter(|standing| !standing.pending.is_empty()).for_each(|standing| {
                standing.confirmed = true;
                // Emptied it would keep room for more, in the group of each user.
                standing.pending = Vec::new();
            });
        }
        for join in std::mem::take(&mut entry.joins) {
            self.one_less(join, &mut changes);
        }
        changes
    }

    /// Redis has refused a topic: everybody who waits for it fails. Also tells whether somebody still
    /// wants it, who had joined before and would now be deaf without knowing.
    pub(super) fn refused(&mut self, topic: &[u8], why: &str) -> (bool, Changes) {
        let mut changes = Changes::default();
        let joins = match self.topics.get_mut(topic) {
            Some(entry) => std::mem::take(&mut entry.joins),
            None => Vec::new(),
        };
        for join in joins {
            self.fail(join, LayerError::Unavailable(why.into()), &mut changes);
        }
        (self.topics.contains_key(topic), changes)
    }

    /// Fails the joins whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Changes {
        let mut changes = Changes::default();
        let late: Vec<JoinId> = self.joins.iter().filter(|(_, join)| join.deadline <= now).map(|(id, _)| *id).collect();
        for join in late {
            let why: BoxError = "no subscription within 5 seconds".into();
            self.fail(join, LayerError::Unavailable(why), &mut changes);
        }
        changes
    }

    /// Fails a join and takes back what it alone has changed.
    fn fail(&mut self, id: JoinId, error: LayerError, changes: &mut Changes) {
        let Some(join) = self.joins.remove(&id) else { return };
        for topic in &join.topics {
            let Some(entry) = self.topics.get_mut(topic) else { continue };
            entry.joins.retain(|other| *other != id);
            match &join.purpose {
                Purpose::Join(member) => {
                    if let Some(group) = &mut entry.group
                        && group.withdraw(member, id)
                    {
                        if group.is_empty() {
                            entry.group = None;
                        }
                        self.groups_of(member).map(|groups| groups.remove(topic));
                    }
                    self.drop_if_unwanted(topic, changes);
                }
                Purpose::Open { name, .. } => {
                    let others = !entry.joins.is_empty();
                    if !others && self.channels.get(name).is_some_and(|it| !it.opened) {
                        self.end_channel(name, changes);
                    }
                }
            }
        }
        answer(join.reply, Err(error));
    }
}
