//! A relay's handle.

use std::sync::Arc;

use async_trait::async_trait;

use super::layer::Inner;
use crate::{ChannelName, GroupName, LayerError, RelayBackend};

pub(super) struct CoreRelay {
    pub(super) inner: Arc<Inner>,
    pub(super) id: u64,
    /// The layer's state holds the weak end of it.
    pub(super) alive: Option<Arc<()>>,
}

#[async_trait]
impl RelayBackend for CoreRelay {
    fn new_channel(&self) -> ChannelName {
        self.inner.shared.relay_channel(self.id)
    }

    async fn join(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        groups.iter().try_for_each(GroupName::check_strict)?;
        let shared = &self.inner.shared;
        let members: Vec<_> = groups.iter().map(|group| (group, shared.relay_member(group))).collect();
        let before: Vec<&GroupName> = {
            let state = shared.state.lock();
            groups.iter().filter(|group| state.relay_is_in(self.id, group)).collect()
        };
        let joined = shared
            .join(|state| {
                // All of them, also those other relays of this process are in: when this has returned they
                // must be in Redis, whoever put them there.
                let note = |(group, (member, tag)): &(&GroupName, (ChannelName, String))| {
                    state.relay_join(self.id, group, member, tag);
                    ((*group).clone(), member.clone())
                };
                members.iter().map(note).collect()
            })
            .await;
        if joined.is_err() {
            let back: Vec<GroupName> = groups.iter().filter(|group| !before.contains(group)).cloned().collect();
            // What Redis does not hear is remembered as stale.
            let _ = self.leave(&back).await;
        }
        joined
    }

    async fn leave(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        let shared = &self.inner.shared;
        let members: Vec<_> = groups.iter().map(|group| (group, shared.relay_member(group))).collect();
        shared
            .leave(|state| {
                let leaves =
                    members.iter().filter(|(group, (member, tag))| state.relay_leave(self.id, group, member, tag));
                leaves.map(|(group, (member, _))| ((*group).clone(), member.clone())).collect()
            })
            .await
    }
}

impl Drop for CoreRelay {
    fn drop(&mut self) {
        self.alive = None;
        self.inner.shared.relay_gone.notify_one();
    }
}
