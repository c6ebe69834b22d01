//! The inserts and updates of an append.

use sea_orm::{
    ConnectionTrait, ExprTrait,
    sea_query::{
        Expr, OnConflict, Query, SelectStatement,
        extension::mysql::{IndexHintScope, MySqlSelectStatementExt},
    },
};

use crate::{
    append::plan::{NewMessage, Plan},
    db::Transaction,
    error::Fault,
    heads::{HeadRow, columns},
    kind::Kind,
    row,
    values::{MAX_BINDS, MAX_INSERT_BYTES, MAX_LIST, builder, signed},
};

/// Makes MySQL walk this index, also when the table is so small that it would rather read it all:
/// rows are locked in the order of the walk, and it must be the same for everybody.
pub(super) fn force_index<'a>(select: &'a mut SelectStatement, index: &'static str) -> &'a mut SelectStatement {
    select.force_index(index, IndexHintScope::All)
}

type Row<'a> = (uuid::Uuid, NewMessage<'a>);

/// Inserts what is new in streams of a kind.
pub(super) async fn messages(transaction: &Transaction<'_>, kind: Kind, plan: &Plan<'_>) -> Result<(), Fault> {
    let tables = kind.tables();
    let of_kind = plan.new_messages().filter(|new| new.append.stream.kind() == kind);
    let new: Vec<Row<'_>> = of_kind.filter_map(|new| Some((plan.heads.of(&new.append.stream)?.id, new))).collect();
    for new in slices(&new) {
        let mut insert = Query::insert();
        let own = [tables.stream, "seq", "id", "date"];
        insert.into_table(tables.rows).columns(own.into_iter().chain(row::COLUMNS.iter().map(|column| column.name)));
        for (stream, NewMessage { append, id, seq }) in new {
            let own = [(*stream).into(), signed(*seq).into(), (*id).into(), plan.date.into()];
            let rest = row::COLUMNS.iter().map(|column| (column.of)(append).into());
            insert.values(own.into_iter().chain(rest)).map_err(builder)?;
        }
        transaction.inner.execute(&insert).await?;
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
            .take(MAX_BINDS / (4 + row::COLUMNS.len()))
            .take_while(|(_, new)| {
                bytes += row::bytes(new.append);
                bytes <= MAX_INSERT_BYTES
            })
            .count();
        let (slice, left) = rest.split_at(fits.max(1).min(rest.len()));
        rest = left;
        (!slice.is_empty()).then_some(slice)
    })
}

/// Moves the heads of streams of a kind.
pub(super) async fn heads(transaction: &Transaction<'_>, kind: Kind, plan: &Plan<'_>) -> Result<(), Fault> {
    let heads = plan.new_heads();
    let of_kind = heads.iter().filter(|(stream, _)| stream.kind() == kind);
    let changed = of_kind.filter_map(|(stream, (seq, id))| Some((plan.heads.of(stream)?, signed(*seq), *id)));
    move_heads(transaction, kind, changed.collect()).await
}

/// Moves these heads to a `seq` and the id at it.
pub(super) async fn move_heads(
    transaction: &Transaction<'_>,
    kind: Kind,
    mut changed: Vec<(&HeadRow, i64, uuid::Uuid)>,
) -> Result<(), Fault> {
    let tables = kind.tables();
    if let [(head, seq, id)] = &changed[..] {
        let update = Query::update()
            .table(tables.heads)
            .value("last_seq", *seq)
            .value("last_id", *id)
            .and_where(Expr::col("id").eq(head.id))
            .to_owned();
        transaction.inner.execute(&update).await?;
        return Ok(());
    }
    changed.sort_unstable_by_key(|(head, ..)| head.id);
    for changed in changed.chunks(MAX_LIST) {
        // An upsert of rows known to exist: unlike CASE it stays linear, and unlike UPDATE … FROM
        // all three databases have it.
        let mut upsert = Query::insert();
        upsert.into_table(tables.heads).columns(columns(kind));
        for (head, seq, id) in changed {
            let mut values = vec![head.id.into(), (&*head.name).into()];
            values.extend(head.display_name.as_deref().map(Into::into));
            values.extend([head.epoch.into(), (*seq).into(), Some(*id).into(), head.created_at.into()]);
            upsert.values(values).map_err(builder)?;
        }
        upsert.on_conflict(OnConflict::column("id").update_columns(["last_seq", "last_id"]).to_owned());
        transaction.inner.execute(&upsert).await?;
    }
    Ok(())
}
