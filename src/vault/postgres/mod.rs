//! The vault's records in PostgreSQL, for workers that share them. `docs/replicas-design.md` says why everything here is as it
//! is.
//!
//! A record is what sled keeps: a keyed name and sealed bytes, opened by nobody here. It has a version that goes up with
//! every write, and a commit ([`Postgres::commit`]) says on which versions it is based: what another has changed meanwhile makes it a
//! [`Conflict`](PostgresError::Conflict). A commit is done when the server says so *and* its standbys have it; where nobody can tell
//! whether it was done, that is settled before anything else is committed in its place.
//!
//! [`Postgres::claim_one`] says who may work on a grant for a while, [`Postgres::lease`] who does what one does for all;
//! [`Postgres::reserve`] shares a provider's budget, and [`Postgres::news`] tells what others have written. [`Store`] is the vault on top
//! of it: it seals, opens, and holds claims.
//!
//! What is deliberately absent: a session's state (locks, prepared statements, settings), so that PgBouncer may stand in between, but for
//! one connection that listens for hints where it is configured;
//! a clock, since leases are the server's and their holders count for themselves; and a decision about a grant.

mod changes;
mod claims;
mod commit;
mod connection;
mod error;
mod hints;
mod keys;
mod lanes;
mod leases;
mod migrate;
mod moving;
mod news;
mod questions;
mod store;
mod work;

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use deadpool::{Runtime, managed};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

pub use super::name::{Kind, Name};

pub use self::store::{
    DatabaseInspection, DateBy, EndingDay, Ends, Feed, Gone, Hold, InspectedVault, InvalidPlace, Item, LaneCount,
    MOST_DUE, Place, Polled, Store, Told,
};
pub use self::{
    claims::{Claim, Claimed, Due, LONGEST_LEASE, Lease, Seen},
    commit::{Batch, Expected, Fence, MAX_BYTES, MAX_WRITES, Write, next_version},
    connection::Settings,
    error::PostgresError,
    lanes::{BudgetId, LaneId, LaneState, Pace, RESERVED_AHEAD, Reserved},
    news::{Cursor, Fresh, News},
    work::{Dates, Facts, Person, Standing, Work},
};
use self::{
    commit::Place as CommitPlace,
    connection::{Maker, Pool, take},
    hints::Hints,
    questions::Questions,
};
pub(in crate::vault) use self::{moving::Moving, store::read_keyring};

/// How many records are asked for at once, at most.
pub const MAX_READS: usize = 1024;

/// The oldest server that has what is asked of it, as `server_version_num`.
const OLDEST_SERVER: i32 = 130_000;

/// How many connections are there for reading alone.
const READING: usize = 1;

/// The id of one process among those that share a vault: random, and never used again.
pub type ReplicaId = [u8; 16];

/// What a statement is given: its parameters, each with the type that it has in SQL.
type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: Name,
    /// Its version; also of one that was deleted, which goes on from there when it is made again.
    pub version: u64,
    /// Its sealed bytes; `None` if it was deleted.
    pub sealed: Option<Vec<u8>>,
    /// Of one that was deleted: its sealed id.
    pub tombstone: Option<Vec<u8>>,
}

/// The database, as one process sees it. Cheap to clone.
#[derive(Clone)]
pub struct Postgres(Arc<Shared>);

struct Shared {
    pool: Pool,
    replica: ReplicaId,
    /// How many places it has for commits.
    size: u16,
    statement_timeout: Duration,
    allow_asynchronous: bool,
    sql: Sql,
    /// Places in which no commit is under way; each is as good as another.
    places: Mutex<Vec<CommitPlace>>,
    /// As many as there are free places.
    free: Semaphore,
    claiming: Semaphore,
    hints: Hints,
    /// Why nothing is committed any more: the database forgot this process, or what it confirmed to it.
    over: OnceLock<PostgresError>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

impl Postgres {
    /// Connects, brings the schema up to date, and takes places for this process's commits. Refused where the database would not
    /// keep what it confirms.
    pub async fn open(settings: &Settings) -> Result<Self, PostgresError> {
        let postgres = Self::connect(settings).await?;
        postgres.enlist().await?;
        Ok(postgres)
    }

    /// As [`open`](Self::open), but that nothing can be committed before [`enlist`](Self::enlist).
    pub(in crate::vault) async fn connect(settings: &Settings) -> Result<Self, PostgresError> {
        let postgres = Self::reach(settings)?;
        postgres.trust().await?;
        migrate::migrate(&postgres.0, &quoted(&settings.schema)?).await?;
        Ok(postgres)
    }

    /// The version of the schema of that quoted name; `None` where there is none.
    pub(super) async fn schema_version(&self, schema: &str) -> Result<Option<i32>, PostgresError> {
        migrate::found(&self.0, schema).await
    }

    /// As it is configured: nothing is asked yet.
    pub(super) fn reach(settings: &Settings) -> Result<Self, PostgresError> {
        let schema = quoted(&settings.schema)?;
        let size = settings.pool_size;
        if size == 0 {
            return Err(PostgresError::Settings("pool_size must be 1 at least".to_owned()));
        }
        // More than there are commits and claims, so that reading goes on while all of them wait for their standbys.
        let pool = managed::Pool::builder(Maker::new(settings)?)
            .max_size(usize::from(size) + claims::CLAIMING + READING)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(settings.statement_timeout))
            .create_timeout(Some(settings.statement_timeout))
            .build()
            .map_err(|error| PostgresError::Settings(error.to_string()))?;
        let mut replica = ReplicaId::default();
        let random = SystemRandom::new().fill(&mut replica);
        random.map_err(|_| PostgresError::Failed("the system has no randomness".to_owned()))?;
        Ok(Self(Arc::new(Shared {
            pool,
            replica,
            size,
            statement_timeout: settings.statement_timeout,
            allow_asynchronous: settings.allow_asynchronous,
            sql: Sql::of(&schema),
            places: Mutex::new((0..size).rev().map(CommitPlace::new).collect()),
            free: Semaphore::new(usize::from(size)),
            claiming: Semaphore::new(claims::CLAIMING),
            hints: Hints::of(settings),
            over: OnceLock::new(),
        })))
    }

    /// Takes places for this process's commits. That is a commit itself, so that standbys have whatever was read before it.
    pub(super) async fn enlist(&self) -> Result<(), PostgresError> {
        let places = i32::from(self.0.size);
        let parameters: Parameters<'_> =
            &[(&self.0.replica_bytes(), Type::BYTEA), (&places, Type::INT4), (&self.0.allow_asynchronous, Type::BOOL)];
        self.0.query(&self.0.sql.enlist, parameters).await.map(drop)
    }

    /// Whether the database keeps what it confirms, as its settings say: an error says what is wrong. Each commit looks again at
    /// what may change while the server runs.
    pub async fn trust(&self) -> Result<(), PostgresError> {
        const SETTINGS: [&str; 3] = ["fsync", "full_page_writes", "synchronous_standby_names"];
        let select = "SELECT current_setting('fsync'), current_setting('full_page_writes'), \
            current_setting('synchronous_standby_names'), current_setting('server_version_num')::int";
        let rows = self.0.query(select, &[]).await?;
        let row = rows.first().ok_or_else(|| PostgresError::Failed("it told no settings".to_owned()))?;
        let version: i32 = cell(row, SETTINGS.len())?;
        if version < OLDEST_SERVER {
            let why = format!("the server has version {}, and needs 13 or later", version / 10_000);
            return Err(PostgresError::Settings(why));
        }
        let said: Vec<String> = (0..SETTINGS.len()).map(|column| cell(row, column)).collect::<Result<_, _>>()?;
        if self.0.allow_asynchronous {
            return Ok(());
        }
        if let Some((setting, value)) = SETTINGS.into_iter().zip(&said).find(|(_, value)| *value == "off") {
            return Err(PostgresError::Unsafe { setting, value: value.clone() });
        }
        if said[2].is_empty() { Err(PostgresError::Asynchronous) } else { Ok(()) }
    }

    /// The id of this process among those that share the database.
    pub fn replica(&self) -> ReplicaId {
        self.0.replica
    }

    /// The records of those names, as far as they are or were there, in no order. What is read may have been committed on the primary
    /// and be on its way to the standbys still: whatever is done because of it goes through a commit that expects this version.
    pub async fn read(&self, names: &[Name]) -> Result<Vec<Found>, PostgresError> {
        if names.len() > MAX_READS {
            return Err(PostgresError::Batch("too many records are asked for at once"));
        }
        let names: Vec<&[u8]> = names.iter().map(|name| &name.as_bytes()[..]).collect();
        let rows = self.0.query(&self.0.sql.read, &[(&names, Type::BYTEA_ARRAY)]).await?;
        rows.iter().map(found).collect()
    }

    /// The records whose names come after the first and before the second of these, in order: at most `most`.
    pub async fn scan(&self, after: &[u8], before: &[u8], most: usize) -> Result<Vec<Found>, PostgresError> {
        let most = i64::try_from(most.min(MAX_READS)).unwrap_or(i64::MAX);
        let parameters: Parameters<'_> = &[(&after, Type::BYTEA), (&before, Type::BYTEA), (&most, Type::INT8)];
        let rows = self.0.query(&self.0.sql.scan, parameters).await?;
        rows.iter().map(found).collect()
    }
}

impl Shared {
    /// Asks for something that changes nothing, or that may be done twice, within the time limit.
    async fn query(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, PostgresError> {
        let connection = take(&self.pool).await?;
        // In a box, as all that the client makes: it is large, and would make everything large that waits for it.
        let asked = Box::pin(connection.client.query_typed(sql, parameters));
        let Ok(rows) = tokio::time::timeout(self.statement_timeout, asked).await else {
            // Closed, and not given back: the server is busy with it still.
            drop(managed::Object::take(connection));
            return Err(PostgresError::Slow);
        };
        rows.map_err(|error| PostgresError::of(&error))
    }

    fn replica_bytes(&self) -> &[u8] {
        &self.replica
    }
}

/// Every statement, with the schema's name in it.
struct Sql {
    read: String,
    scan: String,
    keys: String,
    found: String,
    put_keys: String,
    count: String,
    forget: String,
    enlist: String,
    commit: String,
    settle: String,
    claim_due: String,
    put_off: String,
    fetched: String,
    bring_forward: String,
    claim_one: String,
    give_up: String,
    questions: Questions,
    lease: String,
    prolong: String,
    reserve: String,
    lanes: String,
    put_lane: String,
    keys_anew: keys::Sql,
    copying: changes::Sql,
    noted_backup: String,
    note_backup: String,
    hint: String,
    news: String,
    moving: String,
    vacant: String,
    last_name: String,
    leave: String,
    remain: String,
    announce: String,
    arrive: String,
    arrived: String,
    vacate: String,
    accept: String,
    counts: String,
}

impl Sql {
    fn of(schema: &str) -> Self {
        Self {
            read: format!("SELECT name, version, sealed, tombstone FROM {schema}.records WHERE name = ANY ($1)"),
            scan: format!(
                "SELECT name, version, sealed, tombstone FROM {schema}.records \
                 WHERE name > $1 AND name < $2 AND sealed IS NOT NULL ORDER BY name LIMIT $3"
            ),
            keys: format!("SELECT version, keyring, recipients, unusable FROM {schema}.vault"),
            found: format!("SELECT {schema}.found_5($1, $2, $3, $4, $5, $6)"),
            put_keys: format!("SELECT {schema}.put_keyring_1($1, $2, $3, $4)"),
            count: format!(
                "SELECT (SELECT count(*) FROM {schema}.records) \
                    - (SELECT count(*) FROM {schema}.records WHERE gone IS NOT NULL), \
                 (SELECT count(*) FROM {schema}.records WHERE name >= $1 AND name < $2), \
                 pg_total_relation_size('{schema}.records') + pg_total_relation_size('{schema}.work')"
            ),
            forget: format!("SELECT {schema}.forget_1($1, $2)"),
            enlist: format!("SELECT {schema}.enlist_1($1, $2, $3)"),
            commit: format!(
                "SELECT {schema}.commit_2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, \
                 $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30)"
            ),
            settle: format!("SELECT {schema}.settle_1($1, $2, $3, $4)"),
            claim_due: format!(
                "SELECT claimed, number, was_dated, due_ms, fetched_ms \
                 FROM {schema}.claim_due_4($1, $2, $3, $4, $5, $6, $7, $8)"
            ),
            put_off: format!(
                "SELECT {schema}.put_off_4($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
            ),
            fetched: format!("SELECT {schema}.fetched_4($1, $2, $3)"),
            bring_forward: format!("SELECT {schema}.bring_forward_4($1, $2, $3, $4)"),
            claim_one: format!("SELECT claimed, number FROM {schema}.claim_one_1($1, $2, $3, $4, $5, $6, $7)"),
            questions: Questions::of(schema),
            give_up: format!("SELECT {schema}.give_up_1($1, $2, $3, $4)"),
            lease: format!("SELECT {schema}.lease_1($1, $2, $3, $4)"),
            prolong: format!("SELECT {schema}.prolong_1($1, $2, $3, $4, $5)"),
            reserve: format!("SELECT turns, first_us FROM {schema}.reserve_1($1, $2, $3, $4, $5)"),
            lanes: format!("SELECT lane, version, sealed FROM {schema}.lanes"),
            put_lane: format!("SELECT {schema}.put_lane_5($1, $2, $3, $4, $5)"),
            keys_anew: keys::Sql::of(schema),
            copying: changes::Sql::of(schema),
            noted_backup: format!("SELECT max(begun_at) FROM {schema}.backups WHERE what = $1 OR $1 = 'any'"),
            note_backup: format!("SELECT {schema}.backed_up_5($1, $2)"),
            hint: "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)".to_owned(),
            news: news::sql(schema),
            moving: format!("SELECT id, leaving, place, ended FROM {schema}.moving"),
            vacant: format!(
                "SELECT NOT EXISTS (SELECT FROM {schema}.vault) AND NOT EXISTS (SELECT FROM {schema}.records)"
            ),
            last_name: format!("SELECT name FROM {schema}.records ORDER BY name DESC LIMIT 1"),
            leave: format!("SELECT {schema}.leave_3($1, $2, $3, $4, $5)"),
            remain: format!("SELECT {schema}.remain_3($1, $2)"),
            announce: format!("SELECT {schema}.announce_5($1, $2, $3)"),
            arrive: format!("SELECT {schema}.arrive_5($1, $2, $3, $4, $5, $6)"),
            arrived: format!("SELECT {schema}.arrived_3($1, $2)"),
            accept: format!("SELECT {schema}.accept_4($1, $2, $3, $4)"),
            counts: format!(
                "SELECT count(*) FILTER (WHERE get_byte(name, 0) <> {meta}), count(*) FILTER (WHERE get_byte(name, 0) = {grant}) \
                 FROM {schema}.records WHERE sealed IS NOT NULL",
                meta = Kind::Meta.byte(),
                grant = Kind::Grant.byte(),
            ),
            vacate: format!("SELECT {schema}.vacate_3($1, $2)"),
        }
    }
}

/// A schema's name as it stands in SQL.
fn quoted(schema: &str) -> Result<String, PostgresError> {
    /// What PostgreSQL cuts names to, less one.
    const LONGEST: usize = 63;
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if schema.is_empty() || schema.len() > LONGEST || !schema.bytes().all(fits) || schema.starts_with("pg_") {
        return Err(PostgresError::Settings(format!(
            "schema {schema:?} is no name for it: 1 to {LONGEST} of a-z, 0-9 and _, not beginning with pg_"
        )));
    }
    Ok(format!("\"{schema}\""))
}

/// A record in a row.
fn found(row: &Row) -> Result<Found, PostgresError> {
    let (name, version) = (name(row, 0)?, version(cell(row, 1)?)?);
    Ok(Found { name, version, sealed: cell(row, 2)?, tombstone: cell(row, 3)? })
}

/// A value of a row.
fn cell<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, PostgresError> {
    row.try_get(column).map_err(|error| PostgresError::Failed(error::words(&error)))
}

/// A name in a row.
fn name(row: &Row, column: usize) -> Result<Name, PostgresError> {
    Name::parse(cell(row, column)?)
        .ok_or_else(|| PostgresError::Failed("it holds a record under a name that is none".to_owned()))
}

/// A version as PostgreSQL gives it.
fn version(number: i64) -> Result<u64, PostgresError> {
    u64::try_from(number).map_err(|_| PostgresError::Failed("it holds a record of a version that is none".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_cannot_be_more_than_a_name() {
        assert_eq!(quoted("consentry_2").as_deref(), Ok("\"consentry_2\""));
        for wrong in ["", "a\"; DROP TABLE x; --", "Upper", "pg_mine", &"a".repeat(64)] {
            assert!(quoted(wrong).is_err(), "{wrong}");
        }
    }
}
