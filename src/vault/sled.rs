//! The embedded engine: sled 0.34, with what is missing in it made up for.
//!
//! - Its `flush` ends in `sync_file_range`, which does not reach the disk: [`SledEngine::sync`] syncs every file after
//!   it, and holds the main file open from the start, so that a failed write-back that sled's own thread swallowed is
//!   still reported here.
//! - Between checkpoints its writes may reach the disk in any order, which it does not survive:
//!   [`SledEngine::write_through`] makes them synchronous where the file system can.
//! - It lets go of what it read too late: [`uses`] sees to it.
//! - Damaged files make it panic: every call is caught.
//! - Its files keep their lock for a moment after it is dropped: opening waits that long.
//! - It finds its files by their path, so that they cannot be exchanged under it: it is closed and opened anew
//!   meanwhile ([`SledEngine::replace`]), and nobody holds it for longer than a few records take.
//! - It makes damage worse while it opens: [`outline`] tells beforehand whether what it goes by is whole.
//! - It writes its table of pages only when it is opened, and then reads all that is younger: [`table`] writes it before that.

mod log;
pub(super) mod outline;
mod table;
mod uses;

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::Duration,
};

use ::sled::{Batch, Db, Mode};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use self::{outline::Outline, uses::Uses};
use super::{
    engine::{self, Each, Engine, Mark},
    error::VaultError,
    folder,
    name::{Kind, Name, Part},
    panics::caught,
};

/// Where the mark is kept; no name has this length.
const MARK_KEY: [u8; 1] = [0];
/// How often its own thread writes out what waits and collects garbage. Durability does not hang on it.
const FLUSH_EVERY_MS: u64 = 1000;
/// How often, and at what distance, a lock that an earlier handle of this process still holds is tried again.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How many records of a scan are read in one go.
const SCAN_CHUNK: usize = 64;
/// How many segments the engine may have to read when it is opened next before its table of pages is written: 64 MB, some
/// tenth of a second.
const MOST_UNREAD: usize = 128;

/// The engine in one folder.
pub(super) struct SledEngine {
    path: PathBuf,
    cache_bytes: u64,
    /// `None` while it is dropped, and where its files could not be opened any more after they were exchanged.
    files: RwLock<Option<Files>>,
}

/// The database, and its main file.
struct Files {
    db: Db,
    main: File,
    /// Who writes the table of pages.
    table: Mutex<Option<JoinHandle<()>>>,
    uses: Uses,
}

impl SledEngine {
    /// Opens the database in `path`, or makes one. To be called only with the vault's lock held, or on a copy. A
    /// database that sled refuses or panics at is [`VaultError::Damaged`].
    pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Self, VaultError> {
        let files = Files::open(path, cache_bytes)?;
        Ok(Self { path: path.to_owned(), cache_bytes, files: RwLock::new(Some(files)) })
    }

    /// Asks the file system to finish each write to the main file before it returns (`chattr +S`). sled orders its writes
    /// with `sync_file_range`, which orders nothing on the disk; so, a power cut leaves what a kill would. Not every file
    /// system can; there, a power cut between checkpoints may leave a database that is refused.
    pub(super) fn write_through(&self) {
        if let Some(files) = &*self.files.read().unwrap_or_else(PoisonError::into_inner) {
            files.write_through();
        }
    }

    fn call<T>(&self, f: impl FnOnce(&Db) -> ::sled::Result<T>) -> Result<T, VaultError> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let Files { db, .. } = files.as_ref().ok_or(VaultError::Closed)?;
        match caught(|| f(db)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(::sled::Error::Io(error))) => Err(VaultError::io(&self.path, &error)),
            Ok(Err(error)) => Err(VaultError::Engine { detail: words(&error) }),
            Err(panic) => Err(VaultError::Engine { detail: panic }),
        }
    }
}

impl SledEngine {
    /// Uses records again that were used, `times` each, and notes every one of `step`. What fails here was done before it, and fails
    /// again where it matters.
    fn use_again<'a>(&self, names: impl ExactSizeIterator<Item = &'a Name> + Clone, times: usize, step: usize) {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Files { db, uses, .. }) = &*files else { return };
        for name in names.clone() {
            let _ = caught(|| (0..times).try_for_each(|_| db.contains_key(name.as_bytes()).map(drop)));
        }
        uses.note(db, names.step_by(step));
    }

    /// At most `most` records of one kind, of a part of the names and in order of them: those after `last`, or from the
    /// first on.
    fn of_kind(
        &self,
        kind: Kind,
        part: Part,
        last: Option<&Name>,
        most: usize,
    ) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        let (first, end) = part.bounds(kind);
        let after = last.map_or(Bound::Included(&first[..]), |name| Bound::Excluded(name.as_bytes()));
        let range = (after, Bound::Excluded(&end[..]));
        let found = self.call(|db| db.range::<&[u8], _>(range).take(most).collect::<::sled::Result<Vec<_>>>())?;
        found.into_iter().map(|(key, value)| Ok((name(&key, Some(kind))?, value.to_vec()))).collect()
    }
}

/// Opens a database, whose lock may be held for a moment by what has just closed it: a thread of sled's own, or a process that was being
/// started meanwhile and has the file until it becomes another program.
fn open_when_free(config: &::sled::Config) -> ::sled::Result<Db> {
    let mut tries = 0;
    loop {
        match config.open() {
            Err(error) if tries < LOCK_TRIES && error.to_string().contains("could not acquire lock") => {
                tries += 1;
                thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

impl Files {
    fn open(path: &Path, cache_bytes: u64) -> Result<Self, VaultError> {
        log::remove_unfinished_tables(path).map_err(|error| VaultError::io(path, &error))?;
        let config = ::sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            .segment_size(log::SEGMENT_BYTES)
            .mode(Mode::LowSpace)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let db = match caught(|| open_when_free(&config)) {
            Ok(Ok(db)) => db,
            Ok(Err(::sled::Error::Io(error))) => return Err(VaultError::io(path, &error)),
            Ok(Err(error)) => return Err(unreadable(&words(&error))),
            Err(panic) => return Err(unreadable(&panic)),
        };
        let main = path.join("db");
        let main = File::open(&main).map_err(|error| VaultError::io(&main, &error))?;
        Ok(Self { db, main, table: Mutex::default(), uses: Uses::default() })
    }

    fn write_through(&self) {
        let set = ioctl_getflags(&self.main).and_then(|flags| ioctl_setflags(&self.main, flags | IFlags::SYNC));
        if let Err(error) = set {
            tracing::debug!(error = %error, "the file system has no flag for synchronous writes");
        }
    }

    /// Has the table of pages written, if opening these files would take long without it: by a thread, for a second at most
    /// and while all goes on. What fails here costs the next opening time, and the next sync tries again.
    fn write_table(&self, folder: &Path, outline: Outline, most_unread: usize) -> io::Result<()> {
        let mut writing = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let is_under_way = writing.as_ref().is_some_and(|thread| !thread.is_finished());
        if is_under_way || outline.tail(log::table_end(folder)?).len() <= most_unread {
            return Ok(());
        }
        let (folder, main) = (folder.to_owned(), self.main.try_clone()?);
        let write = move || {
            if let Err(error) = table::advance(&folder, &main, &outline) {
                tracing::debug!(%error, "the database's table of pages was not written; the next start reads more");
            }
        };
        *writing = Some(thread::Builder::new().name("vault table".to_owned()).spawn(write)?);
        Ok(())
    }

    /// Waits until nobody writes the table of pages any more.
    fn finish_table(&self) {
        let writing = self.table.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = writing {
            let _ = thread.join();
        }
    }

    fn close(self) {
        self.finish_table();
        self.uses.end();
        // It flushes on its way out, and panics if it cannot. What matters was synced before.
        let _ = caught(|| drop(self.db));
    }
}

impl Engine for SledEngine {
    fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, VaultError> {
        let found = self.call(|db| Ok(db.get(name.as_bytes())?.map(|value| value.to_vec())))?;
        if found.is_some() {
            self.use_again([name].into_iter(), uses::AGAIN, 1);
        }
        Ok(found)
    }

    fn tag(&self, name: &Name) -> Result<Option<u128>, VaultError> {
        self.call(|db| Ok(db.get(name.as_bytes())?.map(|value| engine::tag(&value))))
    }

    fn scan(&self, kind: Kind, each: Each<'_>) -> Result<(), VaultError> {
        self.scan_part(kind, Part::ALL, each)
    }

    fn scan_part(&self, kind: Kind, part: Part, each: Each<'_>) -> Result<(), VaultError> {
        let mut last = None;
        loop {
            let records = self.of_kind(kind, part, last.as_ref(), SCAN_CHUNK)?;
            let Some((name, _)) = records.last() else { return Ok(()) };
            last = Some(*name);
            self.use_again(records.iter().map(|(name, _)| name), uses::AGAIN_IN_SCAN, uses::NOTED_IN_SCAN);
            for (name, value) in records {
                each(&name, value)?;
            }
        }
    }

    fn first(&self, kind: Kind, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        self.of_kind(kind, Part::ALL, None, most)
    }

    fn next(&self, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        // The mark's key comes before every name.
        let after = after.map_or(&MARK_KEY[..], |name| name.as_bytes());
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let found = self.call(|db| db.range::<&[u8], _>(range).take(most).collect::<::sled::Result<Vec<_>>>())?;
        found.into_iter().map(|(key, value)| Ok((name(&key, None)?, value.to_vec()))).collect()
    }

    fn write(&self, writes: &HashMap<Name, Option<&[u8]>>, mark: &Mark) -> Result<(), VaultError> {
        let mut batch = Batch::default();
        for (name, sealed) in writes {
            match sealed {
                Some(sealed) => batch.insert(name.as_bytes(), *sealed),
                None => batch.remove(name.as_bytes()),
            }
        }
        batch.insert(&MARK_KEY, &mark.encode()[..]);
        self.call(|db| db.apply_batch(batch))?;
        self.use_again(writes.keys(), uses::AGAIN, 1);
        Ok(())
    }

    fn mark(&self) -> Result<Option<Mark>, VaultError> {
        match self.call(|db| db.get(MARK_KEY))? {
            None => Ok(None),
            Some(bytes) => {
                Mark::decode(&bytes).map(Some).ok_or_else(|| unreadable("the mark of its last batch makes no sense"))
            }
        }
    }

    fn sync(&self) -> Result<(), VaultError> {
        let mark = self.mark()?;
        self.call(|db| db.flush().map(drop))?;
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let files = files.as_ref().ok_or(VaultError::Closed)?;
        let synced = files.main.sync_all().and_then(|()| folder::sync_tree(&self.path));
        synced.map_err(|error| VaultError::io(&self.path, &error))?;
        if let Some(mark) = mark {
            let kept = outline::keep(&self.path, &files.main, mark.applied);
            if let Err(error) = kept.and_then(|outline| files.write_table(&self.path, outline, MOST_UNREAD)) {
                tracing::debug!(%error, "the database's outline was not kept; after a kill a copy is tried");
            }
        }
        Ok(())
    }

    fn replace(&self, successor: &Path) -> Result<(), VaultError> {
        // While reads still go on.
        if let Some(files) = &*self.files.read().unwrap_or_else(PoisonError::into_inner) {
            files.finish_table();
        }
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = files.take() {
            files.close();
        }
        let exchanged = folder::exchange(&self.path, successor);
        // Whichever are in their place now are whole.
        let opened = Files::open(&self.path, self.cache_bytes)?;
        opened.write_through();
        *files = Some(opened);
        exchanged
    }

    fn bytes(&self) -> u64 {
        self.call(Db::size_on_disk).unwrap_or(0)
    }
}

impl Drop for SledEngine {
    fn drop(&mut self) {
        if let Some(files) = self.files.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            files.close();
        }
    }
}

/// The name that is a record's key; an error if it is none, or of another kind than it should be.
fn name(key: &[u8], kind: Option<Kind>) -> Result<Name, VaultError> {
    Name::parse(key)
        .filter(|name| kind.is_none_or(|kind| name.kind() == kind))
        .ok_or_else(|| unreadable("it holds a record under a name that is none"))
}

/// What sled says, without its empty backtraces and the forms of its own types.
fn words(error: &::sled::Error) -> String {
    match error {
        ::sled::Error::Corruption { .. } => "a part of it is not what was written".to_owned(),
        other => other.to_string(),
    }
}

fn unreadable(detail: &str) -> VaultError {
    VaultError::Damaged { what: "its database", detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::name::Namer;

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("db");
        let namer = Namer::new(&[0; 32]);
        let (grant, stray) = (namer.name(Kind::Grant, b"1"), namer.name(Kind::Stray, b"1"));
        let mark = Mark { applied: 3, ..Mark::default() };
        {
            let engine = SledEngine::open(&path, 1 << 20).unwrap();
            assert_eq!(engine.mark().unwrap(), None);
            let writes = HashMap::from([(grant, Some(&b"g"[..])), (stray, Some(&b"s"[..]))]);
            engine.write(&writes, &mark).unwrap();
            engine.write(&HashMap::from([(stray, None)]), &mark).unwrap();
            engine.sync().unwrap();
        }
        let engine = SledEngine::open(&path, 1 << 20).unwrap();
        assert_eq!(engine.mark().unwrap(), Some(mark));
        assert_eq!(engine.get(&grant).unwrap().as_deref(), Some(&b"g"[..]));
        assert!(engine.tag(&stray).unwrap().is_none());
        let mut seen = Vec::new();
        for kind in Kind::ALL {
            let mut each = |name: &Name, _| {
                seen.push(*name);
                Ok(())
            };
            engine.scan(kind, &mut each).unwrap();
        }
        assert_eq!(seen, [grant]);
        engine.write(&HashMap::from([(stray, Some(&b"s"[..]))]), &mark).unwrap();
        let next = |after, most| engine.next(after, most).unwrap();
        assert_eq!(next(None, 9), [(grant, b"g".to_vec()), (stray, b"s".to_vec())]);
        assert_eq!(
            (next(None, 1), next(Some(&grant), 1)),
            (vec![(grant, b"g".to_vec())], vec![(stray, b"s".to_vec())])
        );
        assert!(next(Some(&stray), 9).is_empty());
    }

    #[test]
    fn a_table_of_pages_that_was_being_written_when_the_process_died_keeps_nothing_from_being_opened() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("db");
        let name = Namer::new(&[0; 32]).name(Kind::Grant, b"1");
        let mark = Mark { applied: 1, ..Mark::default() };
        let engine = SledEngine::open(&path, 1 << 20).unwrap();
        engine.write(&HashMap::from([(name, Some(&b"kept"[..]))]), &mark).unwrap();
        engine.sync().unwrap();
        drop(engine);
        let half = path.join("snap.7FFFFFFFFFFFFFFF.generating");
        std::fs::write(&half, [0; 20]).unwrap();
        assert!(log::table_end(&path).is_ok());
        let engine = SledEngine::open(&path, 1 << 20).unwrap();
        assert_eq!(engine.get(&name).unwrap().as_deref(), Some(&b"kept"[..]));
        assert!(!half.exists());
    }

    #[test]
    fn once_much_was_written_the_table_of_pages_is_too_and_what_is_opened_by_it_holds_everything() {
        let temporary = tempfile::tempdir().unwrap();
        let (path, copy) = (temporary.path().join("db"), temporary.path().join("copy"));
        let namer = Namer::new(&[0; 32]);
        let engine = SledEngine::open(&path, 1 << 20).unwrap();
        let grants: Vec<_> = (0..400_u32).map(|number| namer.name(Kind::Grant, &number.to_le_bytes())).collect();
        let (mut written, mut tables) = (HashMap::new(), 0);
        for round in 0..12_u8 {
            let mark = Mark { applied: u64::from(round), ..Mark::default() };
            for (number, name) in grants.iter().enumerate().skip(usize::from(round) % 3).step_by(3) {
                let value = vec![round; 2000 + number];
                engine.write(&HashMap::from([(*name, Some(&value[..]))]), &mark).unwrap();
                written.insert(*name, value);
            }
            engine.sync().unwrap();
            {
                let files = engine.files.read().unwrap();
                let files = files.as_ref().unwrap();
                let before = log::table_end(&path).unwrap();
                files.write_table(&path, Outline::of(&files.main, 0).unwrap(), 2).unwrap();
                files.finish_table();
                tables += u32::from(log::table_end(&path).unwrap() > before);
            }
            // What a kill would leave now.
            folder::copy_tree(&path, &copy).unwrap();
            let copied = SledEngine::open(&copy, 1 << 20).unwrap();
            assert_eq!(copied.mark().unwrap(), Some(mark));
            for (name, value) in &written {
                assert_eq!(copied.get(name).unwrap().as_ref(), Some(value), "round {round}");
            }
            drop(copied);
            std::fs::remove_dir_all(&copy).unwrap();
        }
        assert!(tables > 2, "{tables}");
    }
}
