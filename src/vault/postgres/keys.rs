//! What the database does for a new data key: it says what is sealed under older ones, takes what was sealed anew, and lets the older
//! ones go once nothing needs them.
//!
//! A commit that began before the new key was there may still be under way, and would bring a record under the old one. Each has its
//! transaction's number before it looks at the version of the keys. So whoever wants to retire a key takes a number itself
//! ([`Postgres::barrier`]) after the new key was there, and waits until every transaction below has ended ([`Postgres::has_passed`]).

use std::sync::Arc;

use tokio_postgres::types::Type;

use super::{
    Parameters, Postgres, cell,
    claims::waited_for,
    commit::{Fate, ask},
    connection::take,
    error::PostgresError,
    lanes::LaneId,
    name, version,
};
use crate::{task, vault::name::Name};

/// How many records are looked at by one statement.
const LOOKED_AT: i64 = 2000;

/// The statements, with the schema's name in them.
pub(super) struct Sql {
    outdated: String,
    barrier: String,
    passed: String,
    reseal: String,
    reseal_lane: String,
    retire: String,
    rekeying: String,
    tell_rekeying: String,
    rows: String,
}

impl Sql {
    pub(super) fn of(schema: &str) -> Self {
        Self {
            outdated: format!(
                "SELECT name, version, CASE WHEN is_older THEN sealed END, CASE WHEN is_older THEN tombstone END FROM ( \
                    SELECT name, version, sealed, tombstone, substring(coalesce(sealed, tombstone) FROM 2 FOR 4) <> $2 AS is_older \
                    FROM {schema}.records WHERE name > $1 ORDER BY name LIMIT $3) AS page ORDER BY name"
            ),
            barrier: format!("SELECT {schema}.timeline_1(), pg_current_xact_id()::text::bigint"),
            passed: format!("SELECT {schema}.timeline_1(), pg_snapshot_xmin(pg_current_snapshot())::text::bigint"),
            reseal: format!("SELECT {schema}.reseal_5($1, $2, $3, $4, $5)"),
            reseal_lane: format!("SELECT {schema}.reseal_lane_5($1, $2, $3, $4)"),
            retire: format!("SELECT {schema}.retire_5($1, $2, $3, $4, $5, $6, $7)"),
            rekeying: format!("SELECT done, total, problem FROM {schema}.rekeying"),
            tell_rekeying: format!("SELECT {schema}.rekeying_5($1, $2, $3)"),
            rows: format!("SELECT count(*) FROM {schema}.records"),
        }
    }
}

/// Some of the records, in order of their names.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// How many were looked at; none: there are no more.
    pub(super) seen: u64,
    /// The last of them.
    pub(super) last: Option<Name>,
    /// Those that are sealed under another data key.
    pub(super) older: Vec<Older>,
}

/// What is sealed under another data key than it should be: a record, or the tombstone of one.
#[derive(Debug)]
pub(super) struct Older {
    pub(super) name: Name,
    pub(super) version: u64,
    pub(super) sealed: Option<Vec<u8>>,
    pub(super) tombstone: Option<Vec<u8>>,
}

/// A number above that of every transaction that had one when it was taken, and on which timeline that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Barrier {
    timeline: i32,
    transaction: i64,
}

/// How far the sealing under a new data key is, as it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToldRekeying {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) problem: Option<String>,
}

/// The keys that are to be those of the vault, sealed, and who says so.
pub(super) struct Retirement {
    /// The number of the lease under which this is done.
    pub(super) fence: u64,
    /// The version of the keys that are there.
    pub(super) version: u64,
    /// The number of the one data key that stays.
    pub(super) current: u32,
    pub(super) keyring: Vec<u8>,
    pub(super) recipients: String,
}

impl Postgres {
    /// Looks at the records after that one, in order of their names.
    pub(super) async fn outdated(&self, after: Option<&Name>, current: u32) -> Result<Looked, PostgresError> {
        let (after, current) = (after.map_or(&[][..], |name| &name.as_bytes()[..]), current.to_le_bytes());
        let parameters: Parameters<'_> =
            &[(&after, Type::BYTEA), (&&current[..], Type::BYTEA), (&LOOKED_AT, Type::INT8)];
        let rows = self.0.query(&self.0.sql.keys_anew.outdated, parameters).await?;
        let mut looked = Looked { seen: rows.len() as u64, ..Looked::default() };
        for row in &rows {
            let name = name(row, 0)?;
            looked.last = Some(name);
            let (sealed, tombstone): (Option<Vec<u8>>, Option<Vec<u8>>) = (cell(row, 2)?, cell(row, 3)?);
            if sealed.is_some() || tombstone.is_some() {
                looked.older.push(Older { name, version: version(cell(row, 1)?)?, sealed, tombstone });
            }
        }
        Ok(looked)
    }

    /// How many rows there are, of deleted records too.
    pub(super) async fn rows(&self) -> Result<u64, PostgresError> {
        let rows = self.0.query(&self.0.sql.keys_anew.rows, &[]).await?;
        version(rows.first().map_or(Ok(0), |row| cell(row, 0))?)
    }

    pub(super) async fn barrier(&self) -> Result<Barrier, PostgresError> {
        let rows = self.0.query(&self.0.sql.keys_anew.barrier, &[]).await?;
        let row = rows.first().ok_or_else(|| PostgresError::Failed("it gave no number".to_owned()))?;
        Ok(Barrier { timeline: cell(row, 0)?, transaction: cell(row, 1)? })
    }

    /// Whether every transaction has ended that had its number when the barrier was taken. One of another timeline is worth nothing: `None`.
    pub(super) async fn has_passed(&self, barrier: Barrier) -> Result<Option<bool>, PostgresError> {
        let rows = self.0.query(&self.0.sql.keys_anew.passed, &[]).await?;
        let row = rows.first().ok_or_else(|| PostgresError::Failed("it gave no number".to_owned()))?;
        let (timeline, oldest): (i32, i64) = (cell(row, 0)?, cell(row, 1)?);
        Ok((timeline == barrier.timeline).then_some(oldest >= barrier.transaction))
    }

    /// Puts records in their places that were sealed anew under the keys of that version: how many of them have not changed meanwhile.
    pub(super) async fn reseal(&self, keyring: u64, records: Vec<Older>) -> Result<u64, PostgresError> {
        let (mut names, mut versions, mut sealed, mut tombstones) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for record in records {
            names.push(record.name.as_bytes().to_vec());
            versions.push(signed(record.version));
            sealed.push(record.sealed);
            tombstones.push(record.tombstone);
        }
        let shared = Arc::clone(&self.0);
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&signed(keyring), Type::INT8),
                (&names, Type::BYTEA_ARRAY),
                (&versions, Type::INT8_ARRAY),
                (&sealed, Type::BYTEA_ARRAY),
                (&tombstones, Type::BYTEA_ARRAY),
            ];
            let rows = shared.claim(&shared.sql.keys_anew.reseal, parameters).await?;
            let resealed: i32 = rows.first().map_or(Ok(0), |row| cell(row, 0))?;
            Ok(u64::try_from(resealed).unwrap_or(0))
        }))
        .await
    }

    /// The same for how a provider is, of that version.
    pub(super) async fn reseal_lane(
        &self,
        keyring: u64,
        lane: LaneId,
        version: u64,
        sealed: Vec<u8>,
    ) -> Result<(), PostgresError> {
        let shared = Arc::clone(&self.0);
        waited_for(task::spawn(async move {
            let parameters: Parameters<'_> = &[
                (&signed(keyring), Type::INT8),
                (&&lane[..], Type::BYTEA),
                (&signed(version), Type::INT8),
                (&sealed, Type::BYTEA),
            ];
            shared.claim(&shared.sql.keys_anew.reseal_lane, parameters).await.map(drop)
        }))
        .await
    }

    /// Lets every data key go but one, if nothing is sealed under another: how much is.
    pub(super) async fn retire(&self, retirement: Retirement) -> Result<u64, PostgresError> {
        let Retirement { fence, version: expected, current, keyring, recipients } = retirement;
        let shared = Arc::clone(&self.0);
        waited_for(task::spawn(async move {
            let connection = take(&shared.pool).await?;
            let parameters: Parameters<'_> = &[
                (&shared.replica_bytes(), Type::BYTEA),
                (&signed(fence), Type::INT8),
                (&signed(expected), Type::INT8),
                (&&current.to_le_bytes()[..], Type::BYTEA),
                (&keyring, Type::BYTEA),
                (&recipients, Type::TEXT),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            match ask(&connection, &shared.sql.keys_anew.retire, parameters).await {
                (Fate::Done, rows) => version(rows.first().map_or(Ok(0), |row| cell(row, 0))?),
                (Fate::NotDone(error), _) => Err(error),
                // Whoever asked reads the keys again, and sees.
                (Fate::Unknown(why), _) => Err(PostgresError::Away(why)),
            }
        }))
        .await
    }

    /// How far the sealing under a new data key is, as whoever does it told last; `None`: nobody does.
    pub(super) async fn rekeying(&self) -> Result<Option<ToldRekeying>, PostgresError> {
        let rows = self.0.query(&self.0.sql.keys_anew.rekeying, &[]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(ToldRekeying { done: version(cell(row, 0)?)?, total: version(cell(row, 1)?)?, problem: cell(row, 2)? }))
    }

    pub(super) async fn tell_rekeying(&self, told: &ToldRekeying) -> Result<(), PostgresError> {
        let (done, total) = (signed(told.done), signed(told.total));
        let parameters: Parameters<'_> = &[(&done, Type::INT8), (&total, Type::INT8), (&told.problem, Type::TEXT)];
        self.0.query(&self.0.sql.keys_anew.tell_rekeying, parameters).await.map(drop)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
