//! A backup of a vault that several workers share: everything as it was at one moment, while all of them are at work.
//!
//! The file is that of `vault/backup`: the records as they were read, page by page; then, as commits, what was written meanwhile
//! (`changes`), until one statement has given all that was left; then the keys. Of what was read of a record the latest counts. The numbers
//! of these commits are above those of all commits that there were, so that whoever goes on with the restored vault goes on above them.

use std::{
    collections::{BTreeSet, HashMap},
    io::Write,
    sync::{PoisonError, atomic::Ordering},
};

use tokio::runtime::Handle as Runtime;
use tokio_postgres::types::Type;

use super::{
    super::{
        Parameters, cell,
        changes::{Changes, Since},
    },
    Inner, PAGE, Store,
    founding::FIRST_NUMBERS,
};
use crate::{
    model::Timestamp,
    task,
    vault::{
        BackedUp, VaultError,
        backup::{Header, Output},
        cipher,
        engine::{self, Mark},
        journal::{Batch, Entry},
        keyring::{self, Keyring},
        name::{NAME_BYTES, Name},
    },
};

/// Behind every name.
const END: [u8; 1] = [u8::MAX];
/// How far above the highest number of any commit those of the file begin: more than are made while it is.
const ABOVE: u64 = 1 << 32;

/// Above which the numbers of the file's commits are, where `highest` is the highest of any record. A worker that begins to write meanwhile
/// may begin above all that are there.
fn numbers_begin(highest: u64) -> u64 {
    highest.max(FIRST_NUMBERS.end) + ABOVE
}
/// How often what was written meanwhile is read, at most; each time there is less of it, unless more is written than can be read.
const MOST_ROUNDS: usize = 1000;

impl Store {
    /// Writes a backup to `output`. One is made at a time by a process. Blocks; `output` is written to outside of the runtime, so that it
    /// may block, too.
    pub(in crate::vault) fn backup(&self, begun_at: Timestamp, output: impl Write) -> Result<BackedUp, VaultError> {
        let (inner, here) = (&*self.0, Runtime::current());
        let _one = inner.backing_up.try_lock().map_err(|_| VaultError::BackupUnderWay)?;
        task::block_on(&here, inner.read_keys_again())?;
        // Before anything is read.
        let from = Since { cursor: task::block_on(&here, inner.postgres.news())?.cursor(), name: Vec::new() };
        let extent = task::block_on(&here, inner.postgres.extent())?;
        let header = Header { begun_at, sequence: numbers_begin(extent.highest), records: extent.records };
        let keys = inner.keyring();
        let mut copy = Writing {
            output: Output::begin(&keyring::parse_own(&keys.recipients)?, header, output)?,
            mark: Mark { applied: header.sequence, ..Mark::default() },
            read: Vec::new(),
            written: HashMap::new(),
            numbers: BTreeSet::new(),
            newest: 0,
            keys,
            here,
        };
        copy.read_all(inner)?;
        copy.catch_up(inner, from)?;
        copy.end(inner)
    }
}

/// Which backups are noted in the database, so that every worker knows of them.
#[derive(Clone, Copy)]
enum Noted {
    /// Those that are made by a schedule.
    Scheduled,
    /// All of them.
    Any,
}

impl Noted {
    const fn word(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Any => "any",
        }
    }
}

impl Store {
    /// When the last backup was completed, by whichever worker; of another's it is known within a minute.
    pub fn last_backup_at(&self) -> Option<Timestamp> {
        let at = self.0.last_backup.load(Ordering::Relaxed);
        (at != 0).then_some(Timestamp::from_millis(at))
    }

    /// A backup was completed; an earlier one than is known changes nothing. The other workers are told in the background.
    pub fn backed_up(&self, at: Timestamp) {
        self.0.last_backup.fetch_max(at.as_millis(), Ordering::Relaxed);
        if let Ok(here) = Runtime::try_current() {
            let store = self.clone();
            here.spawn(task::boxed(async move {
                if let Err(error) = store.0.note_backup(Noted::Any, at).await {
                    tracing::warn!(%error, "other workers do not know of a backup that was made");
                }
            }));
        }
    }

    /// When the newest backup was begun that any worker has made by its schedule.
    pub(in crate::vault) async fn last_scheduled_backup(&self) -> Result<Option<Timestamp>, VaultError> {
        self.0.noted_backup(Noted::Scheduled).await
    }

    /// Notes that this worker has made a backup by its schedule, so that no other makes it, too.
    pub(in crate::vault) async fn made_scheduled_backup(&self, at: Timestamp) -> Result<(), VaultError> {
        self.0.note_backup(Noted::Scheduled, at).await
    }
}

impl Inner {
    async fn noted_backup(&self, which: Noted) -> Result<Option<Timestamp>, VaultError> {
        let shared = &self.postgres.0;
        let rows = shared.query(&shared.sql.noted_backup, &[(&which.word(), Type::TEXT)]).await?;
        let at: Option<i64> = rows.first().map_or(Ok(None), |row| cell(row, 0))?;
        Ok(at.map(Timestamp::from_millis))
    }

    async fn note_backup(&self, which: Noted, at: Timestamp) -> Result<(), VaultError> {
        let shared = &self.postgres.0;
        let parameters: Parameters<'_> = &[(&which.word(), Type::TEXT), (&at.as_millis(), Type::INT8)];
        shared.query(&shared.sql.note_backup, parameters).await?;
        Ok(())
    }

    /// Takes note of backups that other workers have made.
    pub(super) async fn look_for_backups(&self) -> Result<(), VaultError> {
        if let Some(at) = self.noted_backup(Noted::Any).await?
            && self.last_backup.fetch_max(at.as_millis(), Ordering::Relaxed) < at.as_millis()
        {
            self.metrics.backed_up(at);
        }
        Ok(())
    }

    fn keyring(&self) -> Keyring {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).keyring.clone()
    }
}

/// A backup that is being written.
struct Writing<W: Write> {
    output: Output<W>,
    /// Of what is in it.
    mark: Mark,
    /// The tags of the records as they were read, in order of their names; 33 bytes for each.
    read: Vec<([u8; NAME_BYTES], [u8; 16])>,
    /// The tags of those that were written meanwhile; `None`: deleted.
    written: HashMap<Name, Option<u128>>,
    /// Under which data keys any of it is sealed.
    numbers: BTreeSet<u32>,
    /// The highest number of any record in it.
    newest: u64,
    /// The keys, with every data key that there was since it was begun.
    keys: Keyring,
    /// Asks the database.
    here: Runtime,
}

impl<W: Write> Writing<W> {
    fn read_all(&mut self, inner: &Inner) -> Result<(), VaultError> {
        let mut after = Vec::new();
        loop {
            let page = task::block_on(&self.here, inner.postgres.scan(&after, &END, PAGE))?;
            let is_last = page.len() < PAGE;
            for found in page {
                after = found.name.as_bytes().to_vec();
                let Some(sealed) = found.sealed else { continue };
                self.note(&sealed);
                let tag = engine::tag(&sealed);
                self.mark.replace(found.name.kind(), None, Some(tag));
                self.read.push((*found.name.as_bytes(), tag.to_le_bytes()));
                self.output.record(&found.name, &sealed)?;
            }
            self.keep_keys(inner)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Brings in what was written from there on, until one statement has given all of it.
    fn catch_up(&mut self, inner: &Inner, mut from: Since) -> Result<(), VaultError> {
        for _ in 0..MOST_ROUNDS {
            let first = task::block_on(&self.here, inner.postgres.changes(&from))?;
            let (settled, records, mut next) = (first.settled, first.records, first.next.clone());
            self.take(first)?;
            if next.is_none() {
                self.keep_keys(inner)?;
                return self.judge(records);
            }
            while let Some(from) = next {
                let more = task::block_on(&self.here, inner.postgres.changes(&from))?;
                let after = more.next.clone();
                self.take(more)?;
                next = after;
            }
            self.keep_keys(inner)?;
            from = Since { cursor: settled, name: Vec::new() };
        }
        Err(VaultError::BackupOutrun { limit: MOST_ROUNDS * 1000 })
    }

    fn take(&mut self, changes: Changes) -> Result<(), VaultError> {
        let mut entries = Vec::new();
        for (name, sealed) in changes.written {
            let (before, after) = (self.tag(&name), sealed.as_deref().map(engine::tag));
            if before == after {
                continue;
            }
            if let Some(sealed) = &sealed {
                self.note(sealed);
            }
            self.mark.replace(name.kind(), before, after);
            self.written.insert(name, after);
            entries.push(Entry { name, sealed });
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.mark.applied += 1;
        self.output.commit(&Batch { sequence: self.mark.applied, entries })
    }

    /// The tag of what is in the file under that name.
    fn tag(&self, name: &Name) -> Option<u128> {
        self.written.get(name).copied().unwrap_or_else(|| {
            let found = self.read.binary_search_by(|(read, _)| read.cmp(name.as_bytes()));
            found.ok().map(|place| u128::from_le_bytes(self.read[place].1))
        })
    }

    fn note(&mut self, sealed: &[u8]) {
        self.numbers.extend(cipher::key_number(sealed));
        self.newest = self.newest.max(cipher::sequence(sealed).unwrap_or(0));
    }

    /// Keeps every data key under which anything in the file is sealed: it may go before the file is complete.
    fn keep_keys(&mut self, inner: &Inner) -> Result<(), VaultError> {
        let missing =
            |keys: &Keyring, numbers: &BTreeSet<u32>| numbers.iter().any(|number| !keys.data_keys.contains_key(number));
        if !missing(&self.keys, &self.numbers) {
            return Ok(());
        }
        task::block_on(&self.here, inner.read_keys_again())?;
        let now = inner.keyring();
        self.keys.data_keys.extend(now.data_keys);
        (self.keys.current, self.keys.recipients) = (now.current, now.recipients);
        if missing(&self.keys, &self.numbers) {
            let detail = "a record that a backup read names a data key that is not there".to_owned();
            return Err(VaultError::Damaged { what: "its database", detail });
        }
        Ok(())
    }

    /// Sees whether it holds as many records as there were.
    fn judge(&self, records: u64) -> Result<(), VaultError> {
        if self.mark.all() == records && self.newest <= self.mark.applied {
            return Ok(());
        }
        let detail = format!("a backup read {} of {records} records", self.mark.all());
        Err(VaultError::Damaged { what: "its database", detail })
    }

    fn end(mut self, inner: &Inner) -> Result<BackedUp, VaultError> {
        let now = inner.keyring();
        for (number, key) in now.data_keys {
            self.keys.data_keys.entry(number).or_insert(key);
        }
        self.keys.current = now.current;
        self.output.keyring(&self.keys.encode()?)?;
        self.output.end(&self.mark)?;
        Ok(BackedUp { records: self.mark.records(), sequence: self.mark.applied })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_backup_are_above_those_of_a_worker_that_begins_to_write_meanwhile() {
        let newcomer = FIRST_NUMBERS.end - 1;
        for highest in [0, 7, newcomer, newcomer * 9] {
            assert!(numbers_begin(highest) > highest.max(newcomer) + ABOVE / 2, "{highest}");
        }
    }
}
