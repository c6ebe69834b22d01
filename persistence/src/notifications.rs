//! Reading a user's notifications, and what of them has been seen.

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult,
    sea_query::{Expr, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Notification, Range, Seen, Store, StoreError, clock,
    entity::{inboxes, notifications},
    messages::{ascending, limit_to},
    values::{MAX_LIST, date, is_valid_name, padded, signed, unsigned},
};

/// What is read of a notification, beside the epoch of its inbox.
pub(crate) const COLUMNS: [notifications::Column; 8] = [
    notifications::Column::Id,
    notifications::Column::Seq,
    notifications::Column::FromUser,
    notifications::Column::Message,
    notifications::Column::Date,
    notifications::Column::SeenAt,
    notifications::Column::Source,
    notifications::Column::EventId,
];

#[derive(FromQueryResult)]
struct NotificationRow {
    id: Uuid,
    seq: i64,
    epoch: i64,
    from_user: String,
    message: String,
    date: i64,
    seen_at: Option<i64>,
    source: Option<String>,
    event_id: Option<String>,
}

#[derive(FromQueryResult)]
struct Count {
    unseen: i64,
}

/// The id of a user's inbox.
fn inbox_of(user: &str) -> SelectStatement {
    Query::select()
        .column(inboxes::Column::Id)
        .from(inboxes::Entity)
        .and_where(Expr::col(inboxes::Column::UserName).eq(user))
        .to_owned()
}

impl Store {
    /// Up to `limit` notifications of a user, ascending; none for an unknown user. When the first of
    /// `After(n)` is not n + 1 (and all were asked for), older notifications have been deleted.
    pub async fn notifications(
        &self,
        user: &str,
        range: Range,
        unseen_only: bool,
        limit: u64,
    ) -> Result<Vec<Notification>, StoreError> {
        Ok(self.notifications_within(user, range, unseen_only, limit, usize::MAX).await?.0)
    }

    /// The same, but not many more than so many bytes of text; two notifications at least, if there are. Tells
    /// whether that left out any.
    pub async fn notifications_within(
        &self,
        user: &str,
        range: Range,
        unseen_only: bool,
        limit: u64,
        bytes: usize,
    ) -> Result<(Vec<Notification>, bool), StoreError> {
        if !is_valid_name(user) {
            return Ok((Vec::new(), false));
        }
        let mut select = Query::select();
        select
            .columns(COLUMNS.map(|column| (notifications::Entity, column)))
            .column((inboxes::Entity, inboxes::Column::Epoch))
            .from(inboxes::Entity)
            .inner_join(
                notifications::Entity,
                Expr::col((notifications::Entity, notifications::Column::InboxId))
                    .equals((inboxes::Entity, inboxes::Column::Id)),
            )
            .and_where(Expr::col((inboxes::Entity, inboxes::Column::UserName)).eq(user));
        if unseen_only {
            select.and_where(Expr::col((notifications::Entity, notifications::Column::SeenAt)).is_null());
        }
        limit_to(&mut select, (notifications::Entity, notifications::Column::Seq), range, limit);
        let (rows, cut) = self.db.select_within::<NotificationRow>(&select, bytes, |row| row.message.len()).await?;
        let notifications = ascending(rows, range)
            .into_iter()
            .map(|row| Notification {
                id: row.id,
                seq: unsigned(row.seq),
                epoch: row.epoch,
                from_user: row.from_user,
                message: row.message,
                date: date(row.date),
                seen: row.seen_at.is_some(),
                source: row.source,
                event_id: row.event_id,
            })
            .collect();
        Ok((notifications, cut))
    }

    /// How many notifications a user has not seen.
    pub async fn unseen(&self, user: &str) -> Result<u64, StoreError> {
        if !is_valid_name(user) {
            return Ok(0);
        }
        let select = Query::select()
            .expr_as(Expr::col(notifications::Column::Seq).count(), "unseen")
            .from(notifications::Entity)
            .and_where(Expr::col(notifications::Column::InboxId).in_subquery(inbox_of(user)))
            .and_where(Expr::col(notifications::Column::SeenAt).is_null())
            .to_owned();
        Ok(self.db.select::<Count>(&select).await?.first().map_or(0, |count| unsigned(count.unseen)))
    }

    /// Marks notifications of a user as seen and returns how many are still unseen. Ids of other
    /// users' notifications, and what is seen already, are left alone.
    pub async fn mark_seen(&self, user: &str, which: Seen) -> Result<u64, StoreError> {
        if !is_valid_name(user) {
            return Ok(0);
        }
        let mut update = Query::update();
        update
            .table(notifications::Entity)
            .value(notifications::Column::SeenAt, clock::micros(self.backend()))
            .and_where(Expr::col(notifications::Column::InboxId).in_subquery(inbox_of(user)))
            .and_where(Expr::col(notifications::Column::SeenAt).is_null());
        let updates: Vec<_> = match which {
            Seen::UpTo(seq) => {
                vec![update.and_where(Expr::col(notifications::Column::Seq).lte(signed(seq))).to_owned()]
            }
            Seen::Ids(ids) => ids
                .chunks(MAX_LIST)
                .map(|ids| update.clone().and_where(Expr::col(notifications::Column::Id).is_in(padded(ids))).to_owned())
                .collect(),
        };
        for update in &updates {
            self.db.run(|| async { Ok(self.db.writes().execute(update).await?) }).await?;
        }
        self.unseen(user).await
    }
}
