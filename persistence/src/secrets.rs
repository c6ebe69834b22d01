//! The secrets of a deployment: random bytes that only who has the database knows, so that nodes can tell
//! each other's words from those of a stranger.

use std::time::Duration;

use rand::RngExt;
use sea_orm::{
    ExprTrait, FromQueryResult,
    sea_query::{Expr, Query},
};

use crate::{
    Store, StoreError,
    entity::deployment::{Column, Entity},
    leases::seconds,
};

/// 32 random bytes. Shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// The bytes, to make keys of.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn read(bytes: Vec<u8>) -> Result<Self, StoreError> {
        let bytes =
            bytes.try_into().map_err(|_| StoreError::Other("the deployment's secret has not 32 bytes".into()))?;
        Ok(Self(bytes))
    }
}

impl From<[u8; 32]> for Secret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The secrets of a deployment, and the moment at which they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The newest.
    pub current: Secret,
    /// The one before it, if there has been one.
    pub previous: Option<Secret>,
    /// How old the newest is, by the database's clock.
    pub age: Duration,
    /// The database's clock, in seconds since 1970.
    pub now: i64,
}

#[derive(FromQueryResult)]
struct Row {
    secret: Option<Vec<u8>>,
    previous_secret: Option<Vec<u8>>,
    secret_made_at: i64,
    now: i64,
}

impl Store {
    /// The deployment's secrets. Whoever finds the newest `lifetime` old or older makes a new one, of many at
    /// once only one. One statement, three when a secret is made.
    pub async fn secrets(&self, lifetime: Duration) -> Result<Secrets, StoreError> {
        let mut row = self.read_secrets().await?;
        if row.secret.is_none() || row.now.saturating_sub(row.secret_made_at) >= seconds(lifetime) {
            self.make_secret(lifetime).await?;
            row = self.read_secrets().await?;
        }
        let current = row.secret.ok_or_else(|| StoreError::Other("the deployment's secret has vanished".into()))?;
        Ok(Secrets {
            current: Secret::read(current)?,
            previous: row.previous_secret.map(Secret::read).transpose()?,
            age: Duration::from_secs(u64::try_from(row.now.saturating_sub(row.secret_made_at)).unwrap_or(0)),
            now: row.now,
        })
    }

    async fn read_secrets(&self) -> Result<Row, StoreError> {
        let select = Query::select()
            // With the table's name: SQLite takes a lone name in quotes that it does not know for text, and a connection
            // does not know columns that another one has just made.
            .columns([Column::Secret, Column::PreviousSecret, Column::SecretMadeAt].map(|column| (Entity, column)))
            .expr_as(self.now(), "now")
            .from(Entity)
            .to_owned();
        if let Some(row) = self.db.select::<Row>(&select).await?.into_iter().next() {
            return Ok(row);
        }
        // Makes the row.
        self.deployment_id().await?;
        let made = self.db.select::<Row>(&select).await?.into_iter().next();
        made.ok_or_else(|| StoreError::Other("the deployment has vanished".into()))
    }

    async fn make_secret(&self, lifetime: Duration) -> Result<(), StoreError> {
        let mut secret = [0_u8; 32];
        rand::rng().fill(&mut secret);
        let update = Query::update()
            .table(Entity)
            // In this order: MySQL takes the later ones' values of what the earlier ones have set.
            .value(Column::PreviousSecret, Expr::col(Column::Secret))
            .value(Column::Secret, secret.to_vec())
            .value(Column::SecretMadeAt, self.now())
            .and_where(
                Expr::col(Column::Secret)
                    .is_null()
                    .or(Expr::col(Column::SecretMadeAt).lte(self.now().sub(seconds(lifetime)))),
            )
            .to_owned();
        // None is changed when another node was faster.
        self.changes_a_row(&update).await?;
        Ok(())
    }
}
