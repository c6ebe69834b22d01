//! Work that one node of a deployment does for all: a row says who, for how long, and when it was last
//! done. Times are the database's own, as nodes' clocks differ.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult,
    sea_query::{Expr, OnConflict, Query, SimpleExpr, UpdateStatement},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Store, StoreError, clock,
    entity::leases,
    values::{builder, date},
};

#[derive(FromQueryResult)]
struct Now {
    now: i64,
}

impl Store {
    /// Takes the lease `name` for `holder`: nobody holds it (its holder's time is over), and the work
    /// was not done within the last `every`. One statement, two the first time of all. A time that has not
    /// come yet is of a clock that was ahead, and counts for nothing.
    pub async fn take_lease(
        &self,
        name: &str,
        holder: Uuid,
        for_time: Duration,
        every: Duration,
    ) -> Result<bool, StoreError> {
        let update = Query::update()
            .table(leases::Entity)
            .value(leases::Column::Holder, holder)
            .value(leases::Column::ExpiresAt, self.now().add(seconds(for_time)))
            .and_where(Expr::col(leases::Column::Name).eq(name))
            .and_where(
                Expr::col(leases::Column::ExpiresAt)
                    .lte(self.now())
                    .or(Expr::col(leases::Column::ExpiresAt).gt(self.now().add(seconds(for_time)))),
            )
            .and_where(
                Expr::col(leases::Column::FinishedAt)
                    .lte(self.now().sub(seconds(every)))
                    .or(Expr::col(leases::Column::FinishedAt).gt(self.now())),
            )
            .to_owned();
        if self.changes_a_row(&update).await? {
            return Ok(true);
        }
        let mut insert = Query::insert();
        insert
            .into_table(leases::Entity)
            .columns([
                leases::Column::Name,
                leases::Column::Holder,
                leases::Column::ExpiresAt,
                leases::Column::FinishedAt,
            ])
            .values([name.into(), holder.into(), 0_i64.into(), 0_i64.into()])
            .map_err(builder)?
            .on_conflict(OnConflict::column(leases::Column::Name).do_nothing_on([leases::Column::Name]).to_owned());
        let known = Query::select()
            .expr_as(Expr::col(leases::Column::FinishedAt), "now")
            .from(leases::Entity)
            .and_where(Expr::col(leases::Column::Name).eq(name))
            .to_owned();
        if !self.db.select::<Now>(&known).await?.is_empty() {
            return Ok(false);
        }
        self.db.run(|| async { Ok(self.db.writes().execute(&insert).await?) }).await?;
        self.changes_a_row(&update).await
    }

    /// Keeps a lease for so much longer; `false` when another holder has it.
    pub async fn renew_lease(&self, name: &str, holder: Uuid, for_time: Duration) -> Result<bool, StoreError> {
        let mut update = of_holder(name, holder);
        update.value(leases::Column::ExpiresAt, self.now().add(seconds(for_time)));
        self.changes_a_row(&update).await
    }

    /// Gives a lease back, and notes whether its work was done to the end. Not the holder is fine.
    pub async fn end_lease(&self, name: &str, holder: Uuid, finished: bool) -> Result<(), StoreError> {
        let mut update = of_holder(name, holder);
        update.value(leases::Column::ExpiresAt, 0_i64);
        if finished {
            update.value(leases::Column::FinishedAt, self.now());
        }
        self.changes_a_row(&update).await?;
        Ok(())
    }

    /// The database's clock, with microseconds.
    pub async fn clock(&self) -> Result<OffsetDateTime, StoreError> {
        let select = Query::select().expr_as(clock::micros(self.backend()), "now").to_owned();
        let now = self.db.select::<Now>(&select).await?.first().map_or(0, |row| row.now);
        Ok(date(now))
    }

    pub(crate) async fn changes_a_row(&self, update: &UpdateStatement) -> Result<bool, StoreError> {
        let done = self.db.run(|| async { Ok(self.db.writes().execute(update).await?) }).await?;
        Ok(done.rows_affected() > 0)
    }

    /// Seconds since 1970, as the database counts them.
    pub(crate) fn now(&self) -> SimpleExpr {
        clock::seconds(self.backend())
    }
}

fn of_holder(name: &str, holder: Uuid) -> UpdateStatement {
    Query::update()
        .table(leases::Entity)
        .and_where(Expr::col(leases::Column::Name).eq(name))
        .and_where(Expr::col(leases::Column::Holder).eq(holder))
        .to_owned()
}

pub(crate) fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 4)
}
