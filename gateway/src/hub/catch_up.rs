//! Clients that come back: what they missed, from memory, and read into memory once for all of them.

use std::hash::BuildHasher;

use channel_layer::GroupName;
use persistence::{Page, Range, StoreError, Stream};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Hub;
use crate::events;
use crate::handlers::SharedHandler;
use crate::hub::position::{ClientPosition, Recall};
use crate::hub::recent::Recent;
use crate::websocket::WireFrame;

/// Streams read into memory at the same time, at most.
pub(super) const READERS: usize = 64;

/// Bytes of text read at a time for clients, about: of long messages there are fewer.
pub(crate) const PAGE_BYTES: usize = 256 * 1024;

/// Rows read into memory at a time. Clients come back from nearby places, so it is a whole chunk however
/// few of them the first one needs.
const CHUNK: u64 = 64;

/// `(seq, id, frame)` ascending, and whether there are no older ones.
type Rows = (Vec<(u64, Uuid, WireFrame)>, bool);

/// How the events of a stream are shown.
pub(crate) fn renderer(stream: &Stream) -> SharedHandler {
    match stream {
        Stream::Room(_) => events::chat_message,
        Stream::Inbox(_) => events::notification_message,
    }
}

impl Hub {
    /// An empty memory for a stream.
    pub(super) fn recent(&self, stream: &Stream) -> Recent {
        match (stream, self.recent_per_room) {
            (Stream::Room(_), None) => Recent::shared(&self.room_memory),
            (Stream::Room(_), Some(most)) => Recent::shared(&self.room_memory).at_most(most),
            (Stream::Inbox(_), _) => Recent::private(&self.inbox_memory),
        }
    }

    /// What a client at `place` has missed, with the `seq` it then stands at: from memory, where rows of
    /// the database are put first if they are worth it. `None`: the client has to read them by itself,
    /// or its place is not of this history.
    pub(crate) async fn recall(
        &self,
        name: &GroupName,
        stream: &Stream,
        place: ClientPosition,
        most: u64,
        permits: &Semaphore,
    ) -> Result<Option<(Vec<WireFrame>, u64)>, StoreError> {
        match self.recall_now(name, stream, place, most) {
            Recall::Missed(frames, last) => return Ok(Some((frames, last))),
            Recall::Unknown => return Ok(None),
            Recall::Before { .. } => {}
        }
        let _reading = self.reading[self.hasher.hash_one(name) as usize % self.reading.len()].lock().await;
        loop {
            // Whoever was here before may have read it.
            let (epoch, to, generation) = match self.recall_now(name, stream, place, most) {
                Recall::Missed(frames, last) => return Ok(Some((frames, last))),
                Recall::Unknown => return Ok(None),
                Recall::Before { epoch, to, generation } => (epoch, to, generation),
            };
            let _permit = permits.acquire().await;
            let rows = self.metrics.time_store("recall", self.rows_before(stream, epoch, to)).await?;
            // Nothing that belongs there: the database has other rows, or none any more.
            let Some((rows, complete)) = rows else { return Ok(None) };
            let fitted = self.group(name).and_then(|group| {
                group.with_position(|_, position| position.remember((epoch, to, generation), rows, complete))
            });
            if fitted != Some(true) {
                return Ok(None);
            }
        }
    }

    fn recall_now(&self, name: &GroupName, stream: &Stream, place: ClientPosition, most: u64) -> Recall {
        let recalled = self
            .group(name)
            .and_then(|group| group.with_position(|_, position| position.recall(place, most, renderer(stream))));
        recalled.unwrap_or(Recall::Unknown)
    }

    /// A room's rows that end with `to`, ascending, and whether there are no older ones. `None`: they are
    /// of another epoch, or `to` is not there, or one of them cannot be shown.
    async fn rows_before(&self, stream: &Stream, epoch: i64, to: u64) -> Result<Option<Rows>, StoreError> {
        let Stream::Room(room) = stream else { return Ok(None) };
        let Some(head) = self.store.room(room).await? else { return Ok(None) };
        let page = Page::new(Range::Before(to + 1), CHUNK).within(PAGE_BYTES);
        let (rows, cut) = self.store.page(stream, page).await?;
        let complete = !cut && (rows.len() as u64) < CHUNK;
        if rows.last().is_some_and(|row| row.seq != to) || rows.iter().any(|row| row.epoch != epoch) {
            return Ok(None);
        }
        let frame = |row| events::chat_message(&events::chat_event(room, &head.display_name, row));
        let rows: Option<_> = rows.iter().map(|row| Some((row.seq, row.id, frame(row)?.frame))).collect();
        Ok(rows.map(|rows| (rows, complete)))
    }
}
