//! Compaction: the engine's files are written anew when they have grown far past what is in them.
//!
//! The engine gives space back slowly, and after most of a large import was removed hardly ever. So the writer looks, at
//! every checkpoint, how large the files are beside what they hold, and where that is too much:
//!
//! 1. It makes a second database, its *successor*, in a folder beside the first, and copies a few records after the other
//!    into it between commits, in the order of their names. Every commit goes to both.
//! 2. When all names were gone through, the successor holds the same records: its mark has to be the same, counts, sum and
//!    last commit. It is synced and closed.
//! 3. Both folders change places in one rename, which is made durable; the first database is removed. Reads wait from the
//!    moment the one is closed until the other is open.
//!
//! | the process dies | what the next start finds |
//! | --- | --- |
//! | before the rename of 3 | the first database in its place, and a folder of a name that it removes |
//! | after it | the successor in its place, with every commit that the journal has not; the same for the first database |
//!
//! Whoever reads the whole vault, as a worker that starts, puts it off meanwhile ([`Undisturbed`]).
//!
//! Until the rename the first database alone counts: whatever fails before costs what was copied, and no more. A file system
//! that cannot exchange two folders keeps its large files, and the log says so.

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender};

use super::{
    VaultError,
    engine::{self, Engine, Mark},
    folder,
    journal::Batch,
    name::{Kind, Name},
    open::TRIAL_CACHE_BYTES,
    shared::Shared,
    sled::SledEngine,
    writer::{Request, Writer},
};

/// How many times as large as what is in them the engine's files may become, in tenths. Left to itself, the engine keeps them at
/// three to four times while everything in them is written again and again.
const GROWN_TENTHS: u64 = 30;
/// The same where there is little in them: the journal counts there, and to write them anew takes a fraction of a second.
const SMALL_GROWN_TENTHS: u64 = 25;
/// So much is little, in bytes.
pub(super) const SMALL_BYTES: u64 = 64 * 1024 * 1024;
/// Below this, in bytes, files are left as they are, whatever is in them: of so few segments one or two more are much.
const MIN_BYTES: u64 = 8 * 1024 * 1024;
/// After so many bytes the successor is brought to the disk while it is written, so that there is little left to do, and
/// little for its engine to read, when it takes its place. Commits wait that long.
const SYNC_EVERY: u64 = 16 * 1024 * 1024;
/// How much of the disk copying leaves free: it is nothing to run a disk full for.
const KEEP_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// How many records are copied in one go: commits wait that long.
const CHUNK: usize = 64;
/// The same where there is little to copy, in bytes of [`SMALL_BYTES`]: all of it takes a fraction of a second, and the sooner it is over,
/// the less is written to both meanwhile.
const SMALL_CHUNK: usize = 256;
/// After how many requests in a row a chunk is copied although more of them wait. One takes with it all commits that wait, and
/// what they write makes the files grow the more the longer this takes.
const PATIENCE: u32 = 1;
/// How many records of each kind are looked at to tell how large they are. Their names are hashes, so that the first are
/// as good as any.
const SAMPLE: usize = 128;

/// What the writer has to do about files that have grown.
#[derive(Default)]
pub(super) struct Compaction {
    pub(super) rewrite: Option<Rewrite>,
    /// Requests served since the last chunk.
    requests: u32,
    /// Nothing is begun before the files have this size: the last time it failed, or gained little.
    not_before: u64,
}

/// While one of these is there the vault's files are not written anew: whoever reads all of them has the cores and the disk for himself.
/// Meant for moments; the files grow meanwhile. It keeps no vault open.
#[must_use = "it ends when it is dropped"]
pub struct Undisturbed(Option<(Arc<AtomicUsize>, WeakUnboundedSender<Request>)>);

impl Undisturbed {
    /// For a vault without files.
    pub(super) const fn of_none() -> Self {
        Self(None)
    }

    pub(super) fn begin(shared: &Shared, requests: &UnboundedSender<Request>) -> Self {
        shared.undisturbed.fetch_add(1, Ordering::Relaxed);
        Self(Some((Arc::clone(&shared.undisturbed), requests.downgrade())))
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some((undisturbed, requests)) = &self.0
            && undisturbed.fetch_sub(1, Ordering::Relaxed) == 1
            && let Some(requests) = requests.upgrade()
        {
            // Also lets a writer that sleeps go on with what it had begun.
            let _ = requests.send(Request::Run(Box::new(Writer::compact_if_grown)));
        }
    }
}

impl fmt::Debug for Undisturbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undisturbed").finish_non_exhaustive()
    }
}

/// A successor that is being written.
pub(super) struct Rewrite {
    /// Dropped before the folder that it is in.
    successor: SledEngine,
    place: tempfile::TempDir,
    /// What is in it.
    mark: Mark,
    /// The last name that was copied.
    cursor: Option<Name>,
    /// How many records are copied in one go.
    chunk: usize,
    /// How many bytes were copied since it was last brought to the disk.
    unsynced: u64,
    /// The size of the first database's files when this began.
    before: u64,
}

impl Compaction {
    /// A group is durable: it goes to the successor as well.
    pub(super) fn follow(&mut self, batches: &[Batch]) {
        let Some(rewrite) = &mut self.rewrite else { return };
        match engine::apply(&rewrite.successor, rewrite.mark, batches) {
            Ok(mark) => rewrite.mark = mark,
            Err(error) => self.give_up(&error),
        }
    }

    /// Removes a successor that is not finished. The first database is as it was.
    pub(super) fn abandon(&mut self) {
        self.rewrite = None;
    }

    fn give_up(&mut self, error: &VaultError) {
        if let Some(rewrite) = self.rewrite.take() {
            self.wait_for_growth(rewrite.before);
        }
        tracing::warn!(error = %error, "the vault's database was not written anew and keeps its size");
    }

    /// Tries again only when the files have grown by a quarter.
    const fn wait_for_growth(&mut self, bytes: u64) {
        self.not_before = bytes.saturating_add(bytes / 4);
    }
}

impl Writer {
    /// Begins to write the engine's files anew if they have grown too far past what is in them. To be called at
    /// checkpoints; looks at some hundred records at most.
    pub(super) fn compact_if_grown(&mut self) {
        if self.compaction.rewrite.is_some() || self.shared.poisoned().is_some() || self.is_put_off() {
            return;
        }
        let Some(opened) = self.shared.opened.load_full() else { return };
        if opened.lock.as_ref().is_some_and(|lock| !lock.is_tidy()) {
            return;
        }
        let bytes = opened.engine.bytes();
        if bytes < self.compaction.not_before || !has_grown(bytes, 0) {
            return;
        }
        match live_bytes(&*opened.engine, &self.mark) {
            Ok(live) if has_grown(bytes, live) => self.begin_compaction(live),
            Ok(_) => {}
            Err(error) => self.shared.poison(&error),
        }
    }

    fn is_put_off(&self) -> bool {
        self.shared.undisturbed.load(Ordering::Relaxed) > 0
    }

    /// Begins to write the engine's files anew, with about `live` bytes of records to copy.
    pub(super) fn begin_compaction(&mut self, live: u64) {
        let before = self.shared.opened.load().as_ref().map_or(0, |opened| opened.engine.bytes());
        let begin = || {
            self.folder.check_room(live.saturating_mul(GROWN_TENTHS / 10).saturating_add(KEEP_FREE_BYTES))?;
            let place = self.folder.beside()?;
            let successor = SledEngine::open(&place.path().join("db"), TRIAL_CACHE_BYTES)?;
            let mark = Mark { applied: self.mark.applied, ..Mark::default() };
            let chunk = if live < SMALL_BYTES { SMALL_CHUNK } else { CHUNK };
            Ok(Rewrite { successor, place, mark, cursor: None, chunk, unsynced: 0, before })
        };
        match begin() {
            Ok(rewrite) => {
                tracing::info!(vault.bytes = before, vault.live = live, "the vault's database is written anew");
                self.compaction.rewrite = Some(rewrite);
            }
            Err(error) => {
                self.compaction.wait_for_growth(before);
                self.compaction.give_up(&error);
            }
        }
    }

    /// A request was served, and another one may wait.
    pub(super) fn compact_between_requests(&mut self) {
        self.compaction.requests += 1;
        if self.compaction.requests >= PATIENCE {
            self.compact_some();
        }
    }

    /// Copies a few more records, or ends the compaction when all are copied; gives whether there is more to do at once.
    pub(super) fn compact_some(&mut self) -> bool {
        self.compaction.requests = 0;
        if self.compaction.rewrite.is_none() || self.is_put_off() {
            return false;
        }
        let done = self.shared.poisoned().map_or_else(|| self.copy_chunk(), Err);
        match done {
            Ok(false) => return true,
            Ok(true) => self.end_compaction(),
            Err(error) => self.compaction.give_up(&error),
        }
        false
    }

    /// Copies the next chunk; gives whether all are copied. The engine has every commit then, and so nothing that is copied
    /// is older than what the successor has of it.
    fn copy_chunk(&mut self) -> Result<bool, VaultError> {
        self.bring_up()?;
        let Some(rewrite) = &mut self.compaction.rewrite else { return Ok(false) };
        self.folder.check_room(KEEP_FREE_BYTES)?;
        let opened = self.shared.opened.load_full().ok_or(VaultError::Closed)?;
        let records = opened.engine.next(rewrite.cursor.as_ref(), rewrite.chunk);
        let records = records.inspect_err(|error| self.shared.poison(error))?;
        if records.is_empty() {
            return Ok(true);
        }
        rewrite.copy(&records)?;
        Ok(false)
    }

    /// Everything is copied: puts the successor in its place.
    fn end_compaction(&mut self) {
        let Some(rewrite) = self.compaction.rewrite.take() else { return };
        let before = rewrite.before;
        let after = rewrite.finish(&self.mark).and_then(|place| self.exchange(place.path()));
        match after {
            Ok(after) => {
                if after > before / 2 {
                    self.compaction.wait_for_growth(after);
                }
                tracing::info!(vault.bytes = after, vault.before = before, "the vault's database was written anew");
            }
            Err(error) => {
                self.compaction.wait_for_growth(before);
                self.compaction.give_up(&error);
            }
        }
    }

    /// Lets the engine go on with the files in `place`; gives their size. Should it not have come back with every commit,
    /// nothing more is written, and the next start judges what is there.
    pub(super) fn exchange(&mut self, place: &Path) -> Result<u64, VaultError> {
        self.bring_up()?;
        let opened = self.shared.opened.load_full().ok_or(VaultError::Closed)?;
        let replaced = opened.engine.replace(&place.join("db"));
        match opened.engine.mark() {
            Ok(Some(mark)) if mark == self.mark => {}
            Ok(_) => {
                self.shared.poison(&VaultError::Engine { detail: "it lost commits when it was opened".to_owned() });
            }
            Err(error) => self.shared.poison(&error),
        }
        replaced?;
        Ok(opened.engine.bytes())
    }
}

impl Rewrite {
    /// Whether anything was copied yet.
    #[cfg(test)]
    pub(super) const fn has_copied(&self) -> bool {
        self.cursor.is_some()
    }

    /// Takes records over, as they are now.
    fn copy(&mut self, records: &[(Name, Vec<u8>)]) -> Result<(), VaultError> {
        let mut mark = self.mark;
        let mut writes = HashMap::with_capacity(records.len());
        for (name, sealed) in records {
            // One that was committed since this began is there already.
            mark.replace(name.kind(), self.successor.tag(name)?, Some(engine::tag(sealed)));
            self.unsynced += sealed.len() as u64;
            writes.insert(*name, Some(&sealed[..]));
        }
        self.successor.write(&writes, &mark)?;
        self.mark = mark;
        self.cursor = records.last().map(|(name, _)| *name);
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.successor.sync()?;
        }
        Ok(())
    }

    /// Makes the successor durable and closes it, if it holds what it should; gives the folder that it is in.
    pub(super) fn finish(self, should: &Mark) -> Result<tempfile::TempDir, VaultError> {
        let Self { successor, place, mark, .. } = self;
        if mark != *should {
            let detail = format!(
                "{} of {} records can be found, or some are older than they should be",
                mark.all(),
                should.all()
            );
            return Err(VaultError::Damaged { what: "its database", detail });
        }
        successor.sync()?;
        drop(successor);
        folder::sync_tree(place.path()).map_err(|error| VaultError::io(place.path(), &error))?;
        Ok(place)
    }
}

/// Whether files of so many bytes are too large for what is in them.
const fn has_grown(bytes: u64, live: u64) -> bool {
    let tenths = if live < SMALL_BYTES { SMALL_GROWN_TENTHS } else { GROWN_TENTHS };
    bytes >= MIN_BYTES && bytes / tenths > live / 10
}

/// About how many bytes of names and records are in the engine: by the first few of each kind.
pub(super) fn live_bytes(engine: &dyn Engine, mark: &Mark) -> Result<u64, VaultError> {
    let mut live = 0;
    for kind in Kind::ALL {
        let first = engine.first(kind, SAMPLE)?;
        let bytes: usize = first.iter().map(|(name, sealed)| name.as_bytes().len() + sealed.len()).sum();
        live += mark.count(kind).saturating_mul(bytes as u64) / (first.len() as u64).max(1);
    }
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_grown_past_two_and_a_half_times_what_is_in_them_or_thrice_where_that_is_much_unless_they_are_small() {
        assert!(!has_grown(MIN_BYTES - 1, 0));
        assert!(has_grown(MIN_BYTES, 1000));
        assert!(!has_grown(25_000_000, 10_000_000));
        assert!(has_grown(25_000_025, 10_000_000));
        assert!(!has_grown(300_000_000, 100_000_000));
        assert!(has_grown(300_000_030, 100_000_000));
    }
}
