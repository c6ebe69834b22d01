//! Finding what the layer lost: holes that show themselves, and positions compared with the database.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use channel_layer::{Event, GroupName};
use persistence::{Head, Message, StoreError, Stream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::group::Cause;
use super::{Filled, Hub, Work};
use crate::events;

/// Nodes commit in order but may publish out of order: a hole is given this long to fill by itself.
const HOLD: Duration = Duration::from_millis(50);

/// Rows fetched at a time, and bytes of text, about.
const PAGE: u64 = 1000;
const PAGE_BYTES: usize = 1 << 20;

/// Holes that wait or are being filled, and those of them that ask the database at the same time.
const PENDING_FILLS: usize = 1024;
const CONCURRENT_FILLS: usize = 8;

/// How often positions are compared: while the layer works, and while it is away.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
const COMPARE_WHILE_DOWN: Duration = Duration::from_secs(1);

/// What the database has said.
struct Missing {
    head: Option<Head>,
    /// Rows as events, with epoch and seq.
    events: Vec<(i64, u64, Arc<Event>)>,
    /// Rows were left out because they were imported.
    imported: bool,
    /// Or for their size.
    cut: bool,
}

/// Serves requests for what is missing.
pub(super) async fn fill_holes(hub: Arc<Hub>, mut holes: mpsc::Receiver<GroupName>) {
    let (mut fills, asking) = (JoinSet::new(), Arc::new(Semaphore::new(CONCURRENT_FILLS)));
    while let Some(group) = holes.recv().await {
        while fills.len() >= PENDING_FILLS {
            fills.join_next().await;
        }
        while fills.try_join_next().is_some() {}
        let (hub, asking) = (Arc::clone(&hub), Arc::clone(&asking));
        fills.spawn(async move { hub.fill(group, &asking).await });
    }
}

/// Compares the positions of all streams with the database, in turns.
pub(super) async fn reconcile(hub: Arc<Hub>) {
    let mut failed = false;
    loop {
        let wait = if failed || hub.layer_down.load(Ordering::Relaxed) {
            COMPARE_WHILE_DOWN
        } else {
            COMPARE_EVERY.mul_f64(rand::random_range(0.8..1.2))
        };
        let _ = tokio::time::timeout(wait, hub.reconcile_now.notified()).await;
        let compared = hub.metrics.time_store("compare", hub.compare_positions()).await;
        // What made a comparison necessary is not over because the database was away too.
        failed = compared.is_err();
        hub.health.note("positions", &compared);
    }
}

impl Hub {
    async fn fill(&self, name: GroupName, asking: &Semaphore) {
        tokio::time::sleep(HOLD).await;
        let _permit = asking.acquire().await;
        let Some(group) = self.group(&name) else { return };
        // What was held has come meanwhile: nobody need be asked.
        if group.is_filled() {
            return;
        }
        let Some((stream, question)) = group.question() else { return group.end_fill() };
        let missing = self.metrics.time_store("fill", self.missing(&stream, question.after)).await;
        self.health.note("fills", &missing);
        match missing {
            Ok(Missing { head, events, imported, cut }) => {
                let shard = self.shard_of(&name);
                let more = cut || events.len() as u64 == PAGE;
                self.push(shard, Work::Filled(Filled { group: name, question, head, events, imported, more }));
                shard.ready.notify_one();
            }
            Err(_noted) => {
                // The next comparison, a second from now at the earliest, asks again.
                tokio::time::sleep(Duration::from_secs(1)).await;
                group.end_fill();
                self.reconcile_now.notify_one();
            }
        }
    }

    /// The stream's head, and its rows after `seq` as events: one statement for all members.
    async fn missing(&self, stream: &Stream, seq: u64) -> Result<Missing, StoreError> {
        let Some(read) = self.store.after(stream, seq, PAGE, PAGE_BYTES).await? else {
            return Ok(Missing { head: None, events: Vec::new(), imported: false, cut: false });
        };
        let event = |row: &Message| match stream {
            Stream::Room(name) => events::chat_event(name, read.display_name.as_deref().unwrap_or(name), row),
            Stream::Inbox(_) => events::notification_event(row),
        };
        let events = read.messages.iter().map(|row| (row.epoch, row.seq, Arc::new(event(row)))).collect();
        Ok(Missing { head: Some(read.head), events, imported: read.imported, cut: read.cut })
    }

    /// Finds streams that are behind the database, in one statement for all rooms and one for all inboxes.
    async fn compare_positions(&self) -> Result<(), StoreError> {
        let groups: Vec<_> =
            self.shards.iter().flat_map(|shard| shard.groups.lock().values().cloned().collect::<Vec<_>>()).collect();
        for groups in groups.chunks(PAGE as usize) {
            let standing: Vec<_> = groups.iter().filter_map(|group| Some((group, group.standing()?))).collect();
            let streams: Vec<_> =
                standing.iter().map(|(group, (stream, _, _))| (group.name.clone(), stream.clone())).collect();
            let heads = self.heads(&streams).await?;
            for (group, (_, epoch, _)) in standing {
                match heads.get(&group.name) {
                    Some(head) if group.is_behind(head) => self.request_fill(group, Cause::Behind),
                    // A room that was deleted.
                    None if epoch != 0 => group.doubt(),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
