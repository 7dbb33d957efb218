//! The vault's engine on real PostgreSQL: three servers, of which one has to confirm every commit of the primary.
//!
//! Nothing here looks at a clock: what has to happen first is waited for, and what must not have happened is looked at when
//! something else shows that it could have.

mod backups;
pub(crate) mod bouncer;
pub(crate) mod cluster;
mod commands;
mod commits;
mod due;
mod failover;
mod fleet;
mod hints;
mod keepers;
mod keys;
mod leases;
mod moving;
mod resident;
mod sharing;
mod store;
mod wire;

use std::{fmt::Write as _, time::Duration};

use consentry::{
    model::Secret,
    vault::postgres::{
        Batch, Claim, Claimed, Dates, Expected, Facts, Kind, Name, Person, Postgres, PostgresError, Seen, Settings,
        Standing, Work, Write, next_version,
    },
};
use tokio::runtime::Runtime;

use self::cluster::Cluster;

/// A lease that lasts longer than any test.
const LONG: Duration = Duration::from_mins(2);
/// One that is over as soon as it was given.
const BRIEF: Duration = Duration::from_millis(1);

/// The settings that a test uses: a schema of its own on whatever the URL leads to.
fn settings(url: &str, schema: &str) -> Settings {
    Settings {
        url: Secret::new(url),
        url_file: None,
        ca_file: None,
        pool_size: 4,
        statement_timeout: Duration::from_secs(20),
        schema: schema.to_owned(),
        allow_asynchronous: false,
        lease: LONG,
        poll: Duration::from_millis(50),
        listen_url: None,
    }
}

/// A worker's view of the database, and what its tasks run on.
struct Worker {
    postgres: Postgres,
    runtime: Runtime,
}

impl Worker {
    fn open(url: &str, schema: &str) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let postgres = runtime.block_on(Postgres::open(&settings(url, schema))).expect("the database is taken");
        Self { postgres, runtime }
    }

    /// Writes a record, and gives its version.
    fn write(&self, name: Name, expected: u64, sealed: &[u8]) -> Result<u64, PostgresError> {
        let write = write(name, expected, sealed);
        let version = write.version;
        self.commit(Batch { writes: vec![write], ..Batch::default() }).map(|()| version)
    }

    fn commit(&self, batch: Batch) -> Result<(), PostgresError> {
        self.runtime.block_on(self.postgres.commit(batch))
    }

    /// The version and the bytes of a record; `None` where it never was or is no more.
    fn read(&self, name: Name) -> Option<(u64, Vec<u8>)> {
        let mut found = self.runtime.block_on(self.postgres.read(&[name])).expect("the database answers");
        found.pop().and_then(|found| Some((found.version, found.sealed?)))
    }

    /// Makes grants that are due.
    fn put_due(&self, names: &[Name], lane: [u8; 16]) {
        let work = names.iter().map(|name| due(*name, lane)).collect();
        self.commit(Batch { work, ..Batch::default() }).expect("it is stored");
    }
}

fn write(name: Name, expected: u64, sealed: &[u8]) -> Write {
    let (version, sealed) = (next_version(expected), Some(sealed.to_vec()));
    Write { name, expected: found(expected), version, sealed, tombstone: None }
}

/// A record of that version; 0: one that was never there.
fn found(version: u64) -> Expected {
    if version == 0 { Expected::Never } else { Expected::Version(version) }
}

/// A write that deletes.
fn deletion(name: Name, version: u64) -> Write {
    Write { name, expected: found(version), version: version + 1, sealed: None, tombstone: None }
}

/// Whoever has seen no primary yet.
const UNSEEN: Seen = Seen { timeline: 0, time: Duration::ZERO };

/// Claims a grant; none where another has it.
fn claim(worker: &Worker, name: Name, lease: Duration, seen: Seen) -> Option<Claim> {
    match worker.runtime.block_on(worker.postgres.claim_one(name, 0, lease, seen)).expect("an answer") {
        Claimed::Won(claim) => Some(claim),
        Claimed::Held => None,
        Claimed::Unknown => panic!("there is no such grant"),
    }
}

/// An active grant of which nobody worked dates out.
fn facts(name: Name, lane: [u8; 16]) -> Facts {
    Facts {
        name,
        lane,
        standing: Standing::Active,
        ends: None,
        person: Person::Unknown,
        organizations: 1,
        paused: false,
        end_assumed: false,
        fetched: None,
        dates: None,
    }
}

fn due(name: Name, lane: [u8; 16]) -> Work {
    let long_ago = consentry::model::Timestamp::from_millis(1_000);
    let dates = Dates { due: Some(long_ago), ..Dates::default() };
    Work::Put(Facts { dates: Some(dates), ..facts(name, lane) })
}

/// The name of some grant's record.
fn grant(id: u8) -> Name {
    let mut bytes = [id; 17];
    bytes[0] = Kind::Grant.byte();
    Name::parse(&bytes).expect("a grant's name")
}

/// Bytes as they stand in SQL.
fn bytea(bytes: &[u8]) -> String {
    format!("'\\x{}'::bytea", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// How many server processes wait for standbys to confirm what `function` commits.
fn waiting(cluster: &Cluster, function: &str) -> usize {
    let count =
        format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%{function}(%'");
    cluster.on_primary(&count).parse().expect("a number")
}
