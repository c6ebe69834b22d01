//! A few messages in one statement: what all but a very busy node stores.
//!
//! The steps are those of a batch: head locked, numbered, inserted, key claimed. When a stream is missing or a
//! key was used before, nothing is stored, and the way of the batch finds out why.

use sea_orm::DbErr;
use uuid::Uuid;

use super::{postgres, sqlite};
use crate::{
    Append, AppendError, Appended, Backend, Store,
    error::Fault,
    receipts::Identity,
    values::{date, unsigned},
};

/// Messages of one statement, at most. With more, what the batch's statements cost apart is little.
pub(super) const MOST: usize = 32;

/// What is to be stored.
pub(super) struct New<'a> {
    pub(super) append: &'a Append,
    pub(super) identity: Option<&'a Identity>,
    pub(super) id: Uuid,
}

/// Where and when something was stored: id, seq, epoch, display name, date.
pub(super) type Place = (Uuid, i64, i64, Option<String>, i64);

impl Store {
    /// Stores what is not refused of a few messages, or nothing where that takes more than one statement.
    pub(super) async fn append_together(
        &self,
        batch: &[Append],
        checked: &[Result<Option<Identity>, AppendError>],
        all_or_nothing: bool,
    ) -> Result<Option<Vec<Result<Appended, AppendError>>>, Fault> {
        let good = checked.iter().filter(|check| check.is_ok()).count();
        if good == 0 || good > MOST || (all_or_nothing && good < batch.len()) {
            return Ok(None);
        }
        let mut new = Vec::with_capacity(good);
        for (append, check) in batch.iter().zip(checked) {
            if let Ok(identity) = check {
                new.push(New { append, identity: identity.as_ref(), id: Uuid::now_v7() });
            }
        }
        let places = match self.backend() {
            Backend::Sqlite => sqlite::insert(&self.db, &new).await?,
            Backend::Postgres => postgres::insert(&self.db, &new).await?,
            Backend::MySql => None,
        };
        let Some(mut places) = places else { return Ok(None) };
        let mut new = new.iter();
        let answers = checked.iter().map(|check| match check {
            Ok(_) => appended(new.next(), &mut places).map(Ok),
            Err(refused) => Ok(Err(refused.clone())),
        });
        Ok(Some(answers.collect::<Result<_, DbErr>>()?))
    }
}

/// The databases promise no order of the places.
fn appended(new: Option<&New<'_>>, places: &mut [Place]) -> Result<Appended, DbErr> {
    let place = new.and_then(|new| places.iter_mut().find(|place| place.0 == new.id));
    let missing = || DbErr::RecordNotFound("a message that was just stored".to_owned());
    let (id, seq, epoch, display_name, stored_at) = place.ok_or_else(missing)?;
    Ok(Appended {
        id: *id,
        seq: unsigned(*seq),
        epoch: *epoch,
        date: date(*stored_at),
        display_name: display_name.take(),
        repeated: false,
    })
}
