//! A commit, whose outcome is known in the end: done, or not done and never to be.
//!
//! Each is made in a *place*, a row of this process that counts its commits. A place makes one commit at a time, and the next
//! only when the fate of the last is known. Where the answer of a commit was lost, its place is asked: `settle_1` either finds that the
//! commit counted there, or counts in its stead, so that it never can.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{
    Parameters, Postgres, Shared, cell,
    claims::Lease,
    connection::{Connection, take},
    error::{PostgresError, proves_not_done, words},
    work::{Columns, Work},
};
use crate::{model::Fingerprint, task, vault::name::Name};

/// How many records one commit may write.
pub const MAX_WRITES: usize = 1024;
/// How many sealed bytes one commit may write.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How often the fate of a commit is asked for while the database is away: at first, and after a while.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// In which range the versions of new records begin: far from each other, so that one that is made again long after its deletion was
/// forgotten is not taken for the old one.
const FIRST_VERSIONS: std::ops::Range<u64> = 1..1 << 40;

/// What is written, all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Records, each name once; at most [`MAX_WRITES`].
    pub writes: Vec<Write>,
    /// What is to be done about grants.
    pub work: Vec<Work>,
    /// Claims that must be held; what becomes of them is written with the rest.
    pub fences: Vec<Fence>,
    /// The long-lived secrets that the grants of `work` remember, all of them.
    pub fingerprints: Vec<(Fingerprint, Name)>,
    /// Which of them no other grant may remember: [`PostgresError::Conflict`] if one does.
    pub new: Vec<Fingerprint>,
    /// The version of the keys that it was sealed under, which must still be the newest; 0: that does not matter.
    pub keyring: u64,
}

/// A record that is written.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its name.
    pub name: Name,
    /// What has to be there.
    pub expected: Expected,
    /// What its version is from then on: [`next_version`] of the expected one, or a later one. It is bound into the seal.
    pub version: u64,
    /// Its sealed bytes; `None` deletes it.
    pub sealed: Option<Vec<u8>>,
    /// Of one that is deleted: what tells those who follow which it was, sealed.
    pub tombstone: Option<Vec<u8>>,
}

/// What a write finds; anything else is a [`PostgresError::Conflict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing of that name was ever there.
    Never,
    /// Nothing of that name is there.
    Nothing,
    /// It has that version.
    Version(u64),
    /// Whatever is there, or nothing: for who holds the claim that it belongs to, or where the last who writes is right. If its
    /// version is not below the one that is written, that is [`PostgresError::Behind`]. Deleting what is not there is nothing.
    Anything,
}

impl Expected {
    /// For the server.
    fn number(self) -> Result<i64, PostgresError> {
        match self {
            Self::Never => Ok(0),
            Self::Version(version) => signed(version),
            Self::Nothing => Ok(-1),
            Self::Anything => Ok(-2),
        }
    }

    /// The version, if there is one.
    pub(super) const fn version(self) -> u64 {
        match self {
            Self::Version(version) => version,
            _ => 0,
        }
    }
}

/// A claim that must be held for a commit to be made.
#[derive(Clone, Copy, Debug)]
pub struct Fence {
    /// The grant's record.
    pub name: Name,
    /// The claim's number.
    pub number: u64,
    /// What becomes of the claim.
    pub then: Lease,
}

/// The version of a record that follows `expected`.
pub fn next_version(expected: u64) -> u64 {
    if expected == 0 { fastrand::u64(FIRST_VERSIONS) } else { expected + 1 }
}

/// Where one commit after another is made.
#[derive(Debug)]
pub(super) struct Place {
    number: i16,
    /// The number of its last commit whose fate is known.
    last: i64,
}

impl Place {
    pub(super) fn new(number: u16) -> Self {
        Self { number: i16::try_from(number).unwrap_or(i16::MAX), last: 0 }
    }
}

/// What the answer to a statement that commits tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    NotDone(PostgresError),
    /// For this reason.
    Unknown(String),
}

impl Postgres {
    /// Makes a commit and waits until it is known to be done; an error says that it was not, and never will be.
    ///
    /// There is no time limit: the wait for standbys must not be cut short, since that would commit without them. Whoever does not
    /// want to wait may drop the future; the commit goes on by itself. While the outcome of commits cannot be found out, their
    /// places stay taken, so that no more than `pool_size` are ever under way.
    pub async fn commit(&self, batch: Batch) -> Result<(), PostgresError> {
        let batch = Arguments::of(batch)?;
        let shared = Arc::clone(&self.0);
        let task = task::spawn(async move { shared.commit(&batch).await });
        task.await.unwrap_or_else(|error| Err(PostgresError::Failed(format!("a commit died: {error}"))))
    }
}

impl Shared {
    async fn commit(&self, batch: &Arguments) -> Result<(), PostgresError> {
        let _permit = self.free.acquire().await.map_err(|_| PostgresError::Forgotten)?;
        if let Some(over) = self.over.get() {
            return Err(over.clone());
        }
        let taken = self.places.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut place = taken.ok_or(PostgresError::Forgotten)?;
        let result = self.commit_in(&mut place, batch).await;
        if let Err(over @ (PostgresError::Forgotten | PostgresError::WentBack)) = &result {
            // Nothing can be known of any place any more. Who comes later is told the same.
            let _ = self.over.set(over.clone());
        }
        self.places.lock().unwrap_or_else(PoisonError::into_inner).push(place);
        result
    }

    /// Makes the next commit of that place, and settles it if need be.
    async fn commit_in(&self, place: &mut Place, batch: &Arguments) -> Result<(), PostgresError> {
        let number = place.last + 1;
        let connection = take(&self.pool).await?;
        let replica = self.replica_bytes();
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&replica, Type::BYTEA),
            (&place.number, Type::INT2),
            (&number, Type::INT8),
            (&self.allow_asynchronous, Type::BOOL),
            (&batch.keyring, Type::INT8),
            (&batch.claims, Type::BYTEA_ARRAY),
            (&batch.fences, Type::INT8_ARRAY),
            (&batch.leases, Type::INT8_ARRAY),
            (&batch.names, Type::BYTEA_ARRAY),
            (&batch.expected, Type::INT8_ARRAY),
            (&batch.versions, Type::INT8_ARRAY),
            (&batch.sealed, Type::BYTEA_ARRAY),
            (&batch.tombstones, Type::BYTEA_ARRAY),
        ];
        parameters.extend(batch.work.parameters());
        parameters.extend([
            (&batch.fingerprints as &(dyn ToSql + Sync), Type::BYTEA_ARRAY),
            (&batch.fingerprints_of, Type::BYTEA_ARRAY),
            (&batch.new, Type::BYTEA_ARRAY),
        ]);
        let (fate, _) = ask(&connection, &self.sql.commit, &parameters).await;
        // Settling takes a connection of its own.
        drop(connection);
        match fate {
            Fate::Done => {}
            Fate::NotDone(error) => return Err(error),
            Fate::Unknown(why) => {
                tracing::warn!(reason = why, "the outcome of a commit is unknown; it is being settled");
                let void = self.settle(place.number, number).await?;
                tracing::info!(done = !void, "the outcome of a commit is known");
                if void {
                    place.last = number;
                    return Err(PostgresError::Away(why));
                }
            }
        }
        place.last = number;
        Ok(())
    }

    /// Settles that commit, however long that takes: true if it was not made, and then it never will be.
    async fn settle(&self, place: i16, number: i64) -> Result<bool, PostgresError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.settle_once(place, number).await {
                Ok(void) => return Ok(void),
                Err(error @ (PostgresError::Forgotten | PostgresError::WentBack)) => return Err(error),
                Err(error) => tracing::warn!(%error, "the outcome of a commit cannot be found out yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn settle_once(&self, place: i16, number: i64) -> Result<bool, PostgresError> {
        let connection = take(&self.pool).await?;
        let replica = self.replica_bytes();
        let parameters: Parameters<'_> = &[
            (&replica, Type::BYTEA),
            (&place, Type::INT2),
            (&number, Type::INT8),
            (&self.allow_asynchronous, Type::BOOL),
        ];
        let (fate, rows) = ask(&connection, &self.sql.settle, parameters).await;
        match fate {
            Fate::Done => rows.first().map_or(Err(PostgresError::Slow), |row| cell(row, 0)),
            Fate::NotDone(error) => Err(error),
            Fate::Unknown(why) => Err(PostgresError::Away(why)),
        }
    }
}

/// Runs a statement that commits, and says what became of it. The row that it gives came before its end, and proves nothing; its end
/// without a warning does.
pub(super) async fn ask(connection: &Connection, sql: &str, parameters: Parameters<'_>) -> (Fate, Vec<Row>) {
    let before = connection.warnings();
    let answer = Box::pin(connection.client.query_typed(sql, parameters)).await;
    let warned = connection.warnings() != before;
    match answer {
        Ok(_) if warned => (Fate::Unknown("the server warned while it committed".to_owned()), Vec::new()),
        Ok(rows) => (Fate::Done, rows),
        Err(error) => {
            let proof = error.as_db_error().is_some_and(proves_not_done);
            let fate = if proof { Fate::NotDone(PostgresError::of(&error)) } else { Fate::Unknown(words(&error)) };
            (fate, Vec::new())
        }
    }
}

/// A batch as the parameters of its statement, column by column.
#[derive(Debug, Default)]
struct Arguments {
    keyring: i64,
    claims: Vec<Vec<u8>>,
    fences: Vec<i64>,
    leases: Vec<i64>,
    names: Vec<Vec<u8>>,
    /// Empty where each record is written over whatever is there.
    expected: Vec<i64>,
    versions: Vec<i64>,
    sealed: Vec<Option<Vec<u8>>>,
    tombstones: Vec<Option<Vec<u8>>>,
    work: Columns,
    fingerprints: Vec<Vec<u8>>,
    fingerprints_of: Vec<Vec<u8>>,
    new: Vec<Vec<u8>>,
}

impl Arguments {
    fn of(mut batch: Batch) -> Result<Self, PostgresError> {
        if batch.writes.len().max(batch.work.len()).max(batch.fences.len()) > MAX_WRITES {
            return Err(PostgresError::Batch("it has more records than one commit takes"));
        }
        if batch.writes.iter().filter_map(|write| write.sealed.as_ref()).map(Vec::len).sum::<usize>() > MAX_BYTES {
            return Err(PostgresError::Batch("it has more bytes than one commit takes"));
        }
        let names: HashSet<Name> = batch.writes.iter().map(|write| write.name).collect();
        if names.len() != batch.writes.len() {
            return Err(PostgresError::Batch("it writes one record twice"));
        }
        let mut arguments = Self { keyring: signed(batch.keyring)?, ..Self::default() };
        let is_expected = batch.writes.iter().any(|write| write.expected != Expected::Anything);
        for Fence { name, number, then } in batch.fences {
            arguments.claims.push(name.as_bytes().to_vec());
            arguments.fences.push(signed(number)?);
            arguments.leases.push(then.millis());
        }
        // The server takes their rows in this order.
        batch.writes.sort_unstable_by_key(|write| write.name);
        for write in batch.writes {
            if write.version <= write.expected.version() {
                return Err(PostgresError::Batch("a record's version must go up"));
            }
            arguments.names.push(write.name.as_bytes().to_vec());
            if is_expected {
                arguments.expected.push(write.expected.number()?);
            }
            arguments.versions.push(signed(write.version)?);
            arguments.sealed.push(write.sealed);
            arguments.tombstones.push(write.tombstone);
        }
        for (fingerprint, of) in batch.fingerprints {
            arguments.fingerprints.push(fingerprint.0.to_vec());
            arguments.fingerprints_of.push(of.as_bytes().to_vec());
        }
        arguments.new = batch.new.iter().map(|fingerprint| fingerprint.0.to_vec()).collect();
        for work in &batch.work {
            arguments.work.add(work);
        }
        Ok(arguments)
    }
}

fn signed(number: u64) -> Result<i64, PostgresError> {
    i64::try_from(number).map_err(|_| PostgresError::Batch("a version is larger than there can be"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::name::{Kind, Namer};

    fn write(id: u8, expected: u64, version: u64) -> Write {
        let name = Namer::new(&[0; 32]).name(Kind::Grant, &[id]);
        Write { name, expected: Expected::Version(expected), version, sealed: None, tombstone: None }
    }

    fn refused(writes: Vec<Write>) -> bool {
        matches!(Arguments::of(Batch { writes, ..Batch::default() }), Err(PostgresError::Batch(_)))
    }

    #[test]
    fn a_batch_that_makes_no_sense_is_refused_before_it_is_sent() {
        assert!(refused(vec![write(1, 1, 2), write(1, 2, 3)]), "one record twice");
        assert!(refused(vec![write(1, 5, 5)]), "a version that stays");
        assert!(refused(vec![write(1, 1, u64::MAX)]));
        assert!(refused((0..=MAX_WRITES).map(|_| write(1, 1, 2)).collect()));
        assert!(refused(vec![Write { sealed: Some(vec![0; MAX_BYTES + 1]), ..write(1, 1, 2) }]));
        assert!(!refused(vec![write(1, 1, 2), write(2, 0, 9)]));
    }

    #[test]
    fn versions_go_up_and_begin_anywhere() {
        assert_eq!(next_version(41), 42);
        let first: HashSet<u64> = (0..20).map(|_| next_version(0)).collect();
        assert_eq!(first.len(), 20);
        assert!(first.iter().all(|version| FIRST_VERSIONS.contains(version)));
    }
}
