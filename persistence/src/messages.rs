//! Reading streams: the chat of a room, the notifications of an inbox.

use std::collections::HashMap;

use sea_orm::{
    ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    After, Head, Held, Message, Page, Range, Store, StoreError, Stream, heads,
    kind::Kind,
    row::{Beside, Row},
    values::{MAX_LIST, distinct, is_valid_name, padded, signed, unsigned},
};

#[derive(FromQueryResult)]
pub(crate) struct Epoch {
    pub(crate) epoch: i64,
}

#[derive(FromQueryResult)]
struct Counted {
    name: String,
    source: Option<String>,
    count: i64,
}

#[derive(FromQueryResult)]
struct Found {
    #[allow(dead_code, reason = "that there is one is the answer")]
    seq: i64,
}

#[derive(FromQueryResult)]
struct Place {
    display_name: Option<String>,
    epoch: i64,
    last_seq: i64,
    last_id: Option<Uuid>,
}

impl Store {
    /// Up to `limit` messages of a room, ascending; none when there is no such room. When the first
    /// of `After(n)` is not n + 1, older messages have been deleted.
    pub async fn messages(&self, room: &str, range: Range, limit: u64) -> Result<Vec<Message>, StoreError> {
        Ok(self.page(&Stream::Room(room.to_owned()), Page::new(range, limit)).await?.0)
    }

    /// Up to `limit` notifications of a user, ascending; none for an unknown user. When the first of
    /// `After(n)` is not n + 1 (and all were asked for), older notifications have been deleted.
    pub async fn notifications(
        &self,
        user: &str,
        range: Range,
        unseen_only: bool,
        limit: u64,
    ) -> Result<Vec<Message>, StoreError> {
        let page = Page { unseen_only, ..Page::new(range, limit) };
        Ok(self.page(&Stream::Inbox(user.to_owned()), page).await?.0)
    }

    /// A part of a stream, ascending; nothing of one that does not exist. Tells whether the bytes asked for left out any.
    pub async fn page(&self, stream: &Stream, page: Page) -> Result<(Vec<Message>, bool), StoreError> {
        if !is_valid_name(stream.name()) {
            return Ok((Vec::new(), false));
        }
        let select = page_of(stream, page);
        let (rows, cut) = self.db.select_within(&select, page.bytes, |Beside::<Epoch>(_, row)| row.bytes()).await?;
        let mut messages: Vec<_> =
            rows.into_iter().filter_map(|Beside(stream, row)| row.message(stream.epoch)).collect();
        // They were read from the near end.
        if !page.range.is_forward() {
            messages.reverse();
        }
        Ok((messages, cut))
    }

    /// The head of a stream with up to `limit` of its messages after `seq` that were not imported, ascending, in one
    /// statement; `None` when there is no such stream. Not many more than so many bytes of text; two messages at least,
    /// if there are. Where a place is missing, its message was imported, or has been deleted: one more statement tells
    /// whether any was imported.
    pub async fn after(
        &self,
        stream: &Stream,
        seq: u64,
        limit: u64,
        bytes: usize,
    ) -> Result<Option<After>, StoreError> {
        if !is_valid_name(stream.name()) {
            return Ok(None);
        }
        let tables = stream.kind().tables();
        let mut select = Query::select();
        select
            .columns(["epoch", "last_seq", "last_id"].map(|column| (tables.heads, column)))
            .expr_as(heads::display_name(stream.kind()), "display_name")
            .from(tables.heads)
            .left_join(
                tables.rows,
                Expr::col((tables.rows, tables.stream))
                    .equals((tables.heads, "id"))
                    .and(Expr::col((tables.rows, "seq")).gt(signed(seq)))
                    .and(Expr::col((tables.rows, "imported")).is_null()),
            );
        add_rows(&mut select, stream)
            .order_by((tables.rows, "seq"), Order::Asc)
            // At least one row, or there would be no head.
            .limit(signed(Ord::max(limit, 1)).unsigned_abs());
        let (rows, cut) = self.db.select_within(&select, bytes, |Beside::<Place>(_, row)| row.bytes()).await?;
        let Some(Beside(place, _)) = rows.first() else { return Ok(None) };
        let head = Head { epoch: place.epoch, last_seq: unsigned(place.last_seq), last_id: place.last_id };
        let display_name = place.display_name.clone();
        let messages: Vec<_> = rows.into_iter().filter_map(|Beside(place, row)| row.message(place.epoch)).collect();
        let is_part = cut || messages.len() as u64 == limit;
        let end = messages.last().filter(|_| is_part).map_or(head.last_seq, |last| last.seq);
        let whole = end.saturating_sub(seq) == messages.len() as u64;
        let imported = !whole && self.was_imported(stream, seq, end).await?;
        Ok(Some(After { head, display_name, messages, imported, cut }))
    }

    /// How many messages these streams hold, by source; one statement for up to 1,000 rooms, and one for inboxes. Those
    /// that hold none are left out.
    pub async fn held(&self, streams: &[Stream]) -> Result<HashMap<Stream, Held>, StoreError> {
        let mut held: HashMap<Stream, Held> = HashMap::new();
        for kind in Kind::ALL {
            let tables = kind.tables();
            let of_kind = streams.iter().filter(|stream| stream.kind() == kind);
            for names in distinct(of_kind.map(Stream::name)).chunks(MAX_LIST) {
                let select = Query::select()
                    .expr_as(Expr::col((tables.heads, tables.name)), "name")
                    .expr_as(Expr::col((tables.rows, "source")), "source")
                    .expr_as(Expr::col((tables.rows, "seq")).count(), "count")
                    .from(tables.heads)
                    .inner_join(tables.rows, Expr::col((tables.rows, tables.stream)).equals((tables.heads, "id")))
                    .and_where(Expr::col((tables.heads, tables.name)).is_in(padded(names)))
                    .add_group_by([Expr::col((tables.heads, tables.name)), Expr::col((tables.rows, "source"))])
                    .to_owned();
                for Counted { name, source, count } in self.db.select::<Counted>(&select).await? {
                    let held = held.entry(kind.stream(name)).or_default();
                    match source {
                        Some(source) => *held.of.entry(source).or_default() += unsigned(count),
                        None => held.without += unsigned(count),
                    }
                }
            }
        }
        Ok(held)
    }

    /// Whether any message of a stream after `start`, up to `end`, was imported.
    async fn was_imported(&self, stream: &Stream, start: u64, end: u64) -> Result<bool, StoreError> {
        let tables = stream.kind().tables();
        let select = Query::select()
            .column((tables.rows, "seq"))
            .from(tables.heads)
            .inner_join(tables.rows, Expr::col((tables.rows, tables.stream)).equals((tables.heads, "id")))
            .and_where(Expr::col((tables.heads, tables.name)).eq(stream.name()))
            .and_where(Expr::col((tables.rows, "seq")).gt(signed(start)))
            .and_where(Expr::col((tables.rows, "seq")).lte(signed(end)))
            .and_where(Expr::col((tables.rows, "imported")).is_not_null())
            .limit(1)
            .to_owned();
        Ok(!self.db.select::<Found>(&select).await?.is_empty())
    }
}

/// The query for a part of a stream, from its near end.
pub(crate) fn page_of(stream: &Stream, page: Page) -> SelectStatement {
    let tables = stream.kind().tables();
    let mut select = Query::select();
    select
        .column((tables.heads, "epoch"))
        .from(tables.heads)
        .inner_join(tables.rows, Expr::col((tables.rows, tables.stream)).equals((tables.heads, "id")));
    add_rows(&mut select, stream);
    if let (true, Some(seen_at)) = (page.unseen_only, tables.seen_at) {
        select.and_where(Expr::col((tables.rows, seen_at)).is_null());
    }
    let seq = (tables.rows, "seq");
    match page.range {
        Range::Latest => select.order_by(seq, Order::Desc),
        Range::Before(end) => select.and_where(Expr::col(seq).lt(signed(end))).order_by(seq, Order::Desc),
        Range::After(start) => select.and_where(Expr::col(seq).gt(signed(start))).order_by(seq, Order::Asc),
        Range::Between(start, end) => select
            .and_where(Expr::col(seq).gt(signed(start)))
            .and_where(Expr::col(seq).lt(signed(end)))
            .order_by(seq, Order::Asc),
    }
    .limit(signed(page.limit).unsigned_abs());
    select
}

/// Reads the columns of a stream's messages.
fn add_rows<'s>(select: &'s mut SelectStatement, stream: &Stream) -> &'s mut SelectStatement {
    let tables = stream.kind().tables();
    select.columns(Row::columns(tables).map(|column| (tables.rows, column)));
    if tables.seen_at.is_none() {
        select.expr_as(Expr::cust("NULL"), "seen_at");
    }
    if tables.redacted_at.is_none() {
        select.expr_as(Expr::cust("NULL"), "redacted_at");
    }
    select.and_where(Expr::col((tables.heads, tables.name)).eq(stream.name()))
}
