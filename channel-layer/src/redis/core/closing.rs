//! Leaving on purpose, so that nobody has to find out.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::{
    keys,
    layer::Inner,
    scripts,
    shared::{Shared, answer_of},
};
use crate::{ChannelName, GroupName, LayerError, redis::commander::Failure};

/// How long Redis may take.
const LIMIT: Duration = Duration::from_secs(2);
/// How long readers of plain channels may take to give back what they have.
const READERS: Duration = Duration::from_secs(4);
/// How many members one command removes, and how many commands are under way at once.
const MEMBERS: usize = 1_000;
const WINDOW: usize = 2_000;

impl Inner {
    /// Ends everything that would bring us back, leaves all groups and gives back what has been taken out
    /// of plain channels. Does as much as it can; the first failure counts.
    pub(super) async fn close(&self) -> Result<(), LayerError> {
        let shared = &*self.shared;
        self.keepers.lock().abort_all();
        let plain: Vec<_> = self.plain.lock().drain().map(|(_, channel)| channel).collect();
        plain.iter().for_each(|channel| channel.retire());
        let left: Vec<_> = {
            let mut state = shared.state.lock();
            let left = state.memberships().map(|(group, member)| (group.clone(), member.clone())).collect();
            state.flush();
            left
        };
        let left = leave(shared, left).await;
        let gone = forget(shared).await;
        let ended = join_all(plain.iter().map(|channel| channel.ended()));
        let returned = timeout(READERS, ended).await.map_err(|_late| LayerError::Timeout);
        left?;
        gone?;
        returned.map(drop)
    }
}

async fn leave(shared: &Shared, left: Vec<(GroupName, ChannelName)>) -> Result<(), Failure> {
    let mut by_group: HashMap<GroupName, Vec<ChannelName>> = HashMap::new();
    for (group, member) in left {
        by_group.entry(group).or_default().push(member);
    }
    let all: Vec<_> =
        by_group.iter().flat_map(|(group, all)| all.chunks(MEMBERS).map(move |some| (group, some))).collect();
    let mut result = Ok(());
    for window in all.chunks(WINDOW) {
        let start = |(group, members): &(&GroupName, &[ChannelName])| {
            let members: Vec<&[u8]> = members.iter().map(|member| member.as_str().as_bytes()).collect();
            let key = shared.group_key(group);
            shared.commands.start(shared.shard_of(group.as_str()), &key, scripts::leave(&key, &members))
        };
        let started: Vec<_> = window.iter().map(start).collect();
        let deadline = Instant::now() + LIMIT;
        for pending in started {
            result = result.and(answer_of(pending, deadline).await.map(drop));
        }
    }
    result
}

/// Takes our client ids out of those that must be alive.
async fn forget(shared: &Shared) -> Result<(), Failure> {
    let clients = keys::clients(&shared.settings.namespace, &shared.prefix);
    let ids: Vec<&[u8]> = shared.clients.iter().map(String::as_bytes).collect();
    let mut result = Ok(());
    for shard in 0..shared.commands.shards() {
        let gone = shared.commands.call(shard, &clients, scripts::leave(&clients, &ids), LIMIT).await;
        result = result.and(gone.map(drop));
    }
    result
}
