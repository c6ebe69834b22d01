//! Reading streams: the chat of a room, the notifications of an inbox.

use sea_orm::{
    ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    After, Head, Message, Page, Range, Store, StoreError, Stream, heads,
    row::{Beside, Row},
    values::{is_valid_name, signed, unsigned},
};

#[derive(FromQueryResult)]
struct Epoch {
    epoch: i64,
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
        let (rows, cut) = self.db.select_within(&select, page.bytes, |Beside::<Epoch>(_, row)| row.bytes()).await?;
        let mut messages: Vec<_> =
            rows.into_iter().filter_map(|Beside(stream, row)| row.message(stream.epoch)).collect();
        // They were read from the near end.
        if !page.range.is_forward() {
            messages.reverse();
        }
        Ok((messages, cut))
    }

    /// The head of a stream with up to `limit` of its messages after `seq`, ascending, in one statement; `None` when there
    /// is no such stream. Not many more than so many bytes of text; two messages at least, if there are. When the first
    /// one is not `seq` + 1, older messages have been deleted.
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
                    .and(Expr::col((tables.rows, "seq")).gt(signed(seq))),
            );
        add_rows(&mut select, stream)
            .order_by((tables.rows, "seq"), Order::Asc)
            // At least one row, or there would be no head.
            .limit(signed(Ord::max(limit, 1)).unsigned_abs());
        let (rows, cut) = self.db.select_within(&select, bytes, |Beside::<Place>(_, row)| row.bytes()).await?;
        let Some(Beside(place, _)) = rows.first() else { return Ok(None) };
        let head = Head { epoch: place.epoch, last_seq: unsigned(place.last_seq), last_id: place.last_id };
        let display_name = place.display_name.clone();
        let messages = rows.into_iter().filter_map(|Beside(place, row)| row.message(place.epoch)).collect();
        Ok(Some(After { head, display_name, messages, cut }))
    }
}

/// Reads the columns of a stream's messages.
fn add_rows<'s>(select: &'s mut SelectStatement, stream: &Stream) -> &'s mut SelectStatement {
    let tables = stream.kind().tables();
    select.columns(Row::columns(tables).map(|column| (tables.rows, column)));
    if tables.seen_at.is_none() {
        select.expr_as(Expr::cust("NULL"), "seen_at");
    }
    select.and_where(Expr::col((tables.heads, tables.name)).eq(stream.name()))
}
