//! The inserts and updates of an append.

use sea_orm::{
    ConnectionTrait, ExprTrait,
    sea_query::{
        Expr, InsertStatement, OnConflict, Query, SelectStatement,
        extension::mysql::{IndexHintScope, MySqlSelectStatementExt},
    },
};

use crate::{
    Append, Stream,
    append::plan::{NewMessage, Plan},
    db::Transaction,
    entity::{inboxes, messages, notifications, rooms},
    error::Fault,
    inboxes as inbox_rows, rooms as room_rows,
    values::{MAX_BINDS, MAX_INSERT_BYTES, MAX_LIST, builder, signed},
};

/// Makes MySQL walk this index, also when the table is so small that it would rather read it all:
/// rows are locked in the order of the walk, and it must be the same for everybody.
pub(super) fn force_index<'a>(select: &'a mut SelectStatement, index: &'static str) -> &'a mut SelectStatement {
    select.force_index(index, IndexHintScope::All)
}

pub(super) async fn messages(transaction: &Transaction<'_>, plan: &Plan<'_>) -> Result<(), Fault> {
    let new: Vec<_> = plan
        .new_messages()
        .filter_map(|new| match &new.append.stream {
            Stream::Room(name) => Some((plan.heads.rooms.get(name)?.id, new)),
            Stream::Inbox(_) => None,
        })
        .collect();
    for new in slices(&new) {
        let mut insert = Query::insert();
        insert.into_table(messages::Entity).columns([
            messages::Column::RoomId,
            messages::Column::Seq,
            messages::Column::Id,
            messages::Column::FromUser,
            messages::Column::Message,
            messages::Column::Date,
            messages::Column::Source,
            messages::Column::EventId,
        ]);
        add_rows(&mut insert, new, plan.date)?;
        transaction.inner.execute(&insert).await?;
    }
    Ok(())
}

pub(super) async fn notifications(transaction: &Transaction<'_>, plan: &Plan<'_>) -> Result<(), Fault> {
    let new: Vec<_> = plan
        .new_messages()
        .filter_map(|new| match &new.append.stream {
            Stream::Inbox(user) => Some((plan.heads.inboxes.get(user)?.id, new)),
            Stream::Room(_) => None,
        })
        .collect();
    for new in slices(&new) {
        let mut insert = Query::insert();
        insert.into_table(notifications::Entity).columns([
            notifications::Column::InboxId,
            notifications::Column::Seq,
            notifications::Column::Id,
            notifications::Column::FromUser,
            notifications::Column::Message,
            notifications::Column::Date,
            notifications::Column::Source,
            notifications::Column::EventId,
        ]);
        add_rows(&mut insert, new, plan.date)?;
        transaction.inner.execute(&insert).await?;
    }
    Ok(())
}

type Row<'a> = (uuid::Uuid, NewMessage<'a>);

fn add_rows(insert: &mut InsertStatement, new: &[Row<'_>], date: i64) -> Result<(), Fault> {
    for (stream, NewMessage { append, id, seq }) in new {
        let Append { from_user, message, origin, .. } = append;
        let (source, event_id) = origin.as_ref().map_or((None, None), |(source, id)| (Some(&**source), Some(&**id)));
        insert
            .values([
                (*stream).into(),
                signed(*seq).into(),
                (*id).into(),
                (&**from_user).into(),
                (&**message).into(),
                date.into(),
                source.into(),
                event_id.into(),
            ])
            .map_err(builder)?;
    }
    Ok(())
}

/// Cuts rows into inserts that no database finds too large.
fn slices<'s, 'a>(new: &'s [Row<'a>]) -> impl Iterator<Item = &'s [Row<'a>]> {
    let mut rest = new;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest
            .iter()
            .take(MAX_BINDS / 8)
            .take_while(|(_, new)| {
                bytes += new.append.message.len();
                bytes <= MAX_INSERT_BYTES
            })
            .count();
        let (slice, left) = rest.split_at(fits.max(1).min(rest.len()));
        rest = left;
        (!slice.is_empty()).then_some(slice)
    })
}

pub(super) async fn room_heads(transaction: &Transaction<'_>, plan: &Plan<'_>) -> Result<(), Fault> {
    let heads = plan.new_heads();
    let mut changed: Vec<_> = heads
        .iter()
        .filter_map(|(stream, (seq, id))| match stream {
            Stream::Room(name) => Some((plan.heads.rooms.get(name)?, *seq, *id)),
            Stream::Inbox(_) => None,
        })
        .collect();
    if let [(room, seq, id)] = &changed[..] {
        let update = Query::update()
            .table(rooms::Entity)
            .value(rooms::Column::LastSeq, signed(*seq))
            .value(rooms::Column::LastId, *id)
            .and_where(Expr::col(rooms::Column::Id).eq(room.id))
            .to_owned();
        transaction.inner.execute(&update).await?;
        return Ok(());
    }
    changed.sort_unstable_by_key(|(room, ..)| room.id);
    for changed in changed.chunks(MAX_LIST) {
        // An upsert of rows known to exist: unlike CASE it stays linear, and unlike UPDATE … FROM
        // all three databases have it.
        let mut upsert = Query::insert();
        upsert.into_table(rooms::Entity).columns(room_rows::COLUMNS);
        for (room, seq, id) in changed {
            upsert
                .values([
                    room.id.into(),
                    (&*room.name).into(),
                    (&*room.display_name).into(),
                    room.epoch.into(),
                    signed(*seq).into(),
                    Some(*id).into(),
                    room.created_at.into(),
                ])
                .map_err(builder)?;
        }
        upsert.on_conflict(
            OnConflict::column(rooms::Column::Id)
                .update_columns([rooms::Column::LastSeq, rooms::Column::LastId])
                .to_owned(),
        );
        transaction.inner.execute(&upsert).await?;
    }
    Ok(())
}

pub(super) async fn inbox_heads(transaction: &Transaction<'_>, plan: &Plan<'_>) -> Result<(), Fault> {
    let heads = plan.new_heads();
    let mut changed: Vec<_> = heads
        .iter()
        .filter_map(|(stream, (seq, id))| match stream {
            Stream::Inbox(user) => Some((plan.heads.inboxes.get(user)?, *seq, *id)),
            Stream::Room(_) => None,
        })
        .collect();
    if let [(inbox, seq, id)] = &changed[..] {
        let update = Query::update()
            .table(inboxes::Entity)
            .value(inboxes::Column::LastSeq, signed(*seq))
            .value(inboxes::Column::LastId, *id)
            .and_where(Expr::col(inboxes::Column::Id).eq(inbox.id))
            .to_owned();
        transaction.inner.execute(&update).await?;
        return Ok(());
    }
    changed.sort_unstable_by_key(|(inbox, ..)| inbox.id);
    for changed in changed.chunks(MAX_LIST) {
        let mut upsert = Query::insert();
        upsert.into_table(inboxes::Entity).columns(inbox_rows::COLUMNS);
        for (inbox, seq, id) in changed {
            upsert
                .values([
                    inbox.id.into(),
                    (&*inbox.user_name).into(),
                    inbox.epoch.into(),
                    signed(*seq).into(),
                    Some(*id).into(),
                    inbox.created_at.into(),
                ])
                .map_err(builder)?;
        }
        upsert.on_conflict(
            OnConflict::column(inboxes::Column::Id)
                .update_columns([inboxes::Column::LastSeq, inboxes::Column::LastId])
                .to_owned(),
        );
        transaction.inner.execute(&upsert).await?;
    }
    Ok(())
}
