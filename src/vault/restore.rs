//! Bringing a vault back: from a backup, or as it is after an older copy of its files was put back.
//!
//! Either way its contents went back in time, and what was given out since is not in it: a one-time token in it may
//! have been spent. So the vault gets a new epoch in the same write, and whoever loads it puts every one-time grant of
//! an earlier epoch in doubt before anything is exchanged. And the numbers of commits jump ahead, so that none is given
//! out a second time.
//!
//! A backup is brought back in a folder beside the vault's, named like it with `.restoring` at the end, which is renamed
//! when all of it is durable: until then there is no vault, and the next try starts over.

use std::{
    collections::HashMap,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Identity, Vault, VaultError,
    backup::{self, Header, Input, Part},
    cipher::Cipher,
    codec::{Encoder, Meta, Record},
    engine::{self, Engine, Mark},
    folder::{self, Folder, Lock},
    journal::{Batch, Journal},
    keyring::Keyring,
    name::{Kind, Name, Namer},
    open::{self, Ends, META_ID, TRIAL_CACHE_BYTES, as_damage},
    sled::SledEngine,
};
use crate::{
    config::VaultConfig,
    model::{DoubtReason, Timestamp},
};

/// How far the numbers of commits jump at least, and by chance up to twice as far: more commits than a vault could have
/// made since any copy of it, and few enough for millions of jumps.
const JUMP: u64 = 1 << 40;
/// How many records are written to the engine in one go.
const RECORDS_AT_ONCE: usize = 256;
/// How many commits are brought into the engine in one go.
const COMMITS_AT_ONCE: usize = 64;

/// What a backup brought back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// When the backup was begun.
    pub begun_at: Timestamp,
    /// Records in the vault.
    pub records: u64,
    /// Grants among them.
    pub grants: u64,
    /// Organizations among them.
    pub organizations: u64,
}

/// What was accepted as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// What is missing, as far as the vault itself can tell.
    pub gap: Gap,
    /// Records in the vault.
    pub records: u64,
    /// Grants among them.
    pub grants: u64,
}

/// Which commits a vault has lost that went back in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    /// Its files are of one time. What came after that time is in none of them, and nobody can tell how much it was.
    Unknown,
    /// These, the first and the last of them included.
    Commits(u64, u64),
    /// Perhaps some after this one: the journal, which would tell, is older than the database.
    After(u64),
}

impl Vault {
    /// Brings a backup back as the vault of the configuration, where none is yet: all of it durably, or nothing. It is
    /// opened by `identity`, by whom the backup says, and by the configured recipients. `read` is told of every byte that
    /// was read. Blocks.
    pub fn restore(
        config: &VaultConfig,
        identity: &Identity,
        input: impl Read,
        read: &mut dyn FnMut(u64),
    ) -> Result<Restored, VaultError> {
        let target = Folder::at(&config.path);
        vacant(&target)?;
        let staging = Staging::begin(&target)?;
        let (input, header) = Input::open(identity, backup::Counted { input, read })?;
        let restored = unpack(&staging.folder, config, identity, input, header)?;
        staging.put_in_place(&target)?;
        Ok(restored)
    }

    /// Accepts a vault as it is after an older copy of it, or of a part of it, was put back. A damaged one is refused and
    /// left as it is, and so is one that a worker has open. Blocks.
    pub fn accept(config: &VaultConfig, identity: &Identity) -> Result<Accepted, VaultError> {
        let folder = Folder::at(&config.path);
        let mut plate = folder.plate_as_it_is()?;
        let lock = folder.lock()?;
        let keyring = open::read_keyring(&folder, &plate, identity)?;
        lock.tidy()?;
        lock.wait_until_tidy();
        let mut journal = Journal::open(&folder.journal(), keyring.vault, true)?;
        let batches = journal.batches()?;
        let ends = Ends::of(&journal, &batches);

        let db = folder.db();
        if !db.join("db").is_file() {
            let detail = format!("{} is missing, so that there is nothing to accept", db.display());
            return Err(VaultError::Damaged { what: "its database", detail });
        }
        {
            // On a copy first, so that a damaged database stays as it is.
            let trial = folder.trial()?;
            let copy = trial.path().join("db");
            folder::copy_tree(&db, &copy)?;
            let engine = SledEngine::open(&copy, TRIAL_CACHE_BYTES).map_err(as_damage)?;
            let (_, mark) = accept_engine(&engine, &keyring, &ends, &batches).map_err(as_damage)?;
            let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
            let mut check = |name: &Name, sealed| open::check_record(&cipher, name, sealed);
            engine::verify(&engine, &mark, &mut check).map_err(as_damage)?;
        }
        let engine = SledEngine::open(&db, TRIAL_CACHE_BYTES)?;
        engine.write_through();
        let (gap, mark) = accept_engine(&engine, &keyring, &ends, &batches)?;
        engine.sync()?;
        drop(engine);
        // A death before this leaves a database that is ahead of its journal: refused, and accepted anew.
        // One that was moved goes on here: what the other spent since is in doubt.
        if plate.leaving.take().is_some() {
            folder.put_plate(&plate)?;
        }
        let files = folder::sync_tree(&db).and_then(|()| folder::fingerprint(&db));
        journal.start_over(mark.applied, Some(files.map_err(|error| VaultError::io(&db, &error))?))?;
        Ok(Accepted { gap, records: mark.records(), grants: mark.count(Kind::Grant) })
    }
}

/// Brings what the journal still has into the engine and gives the vault a new epoch, in one write: a death before it
/// changes nothing that counts, and after it every one-time grant is in doubt.
pub(super) fn accept_engine(
    engine: &dyn Engine,
    keyring: &Keyring,
    ends: &Ends,
    batches: &[Batch],
) -> Result<(Gap, Mark), VaultError> {
    let nothing = || VaultError::Damaged {
        what: "its database",
        detail: "it is empty, so that there is nothing to accept".to_owned(),
    };
    let found = engine.mark()?.ok_or_else(nothing)?;
    let (gap, reason, newer) = if found.applied < ends.checkpoint {
        // What the journal has came after the gap. Each of its records is whole, and newer than what is in the database.
        (Gap::Commits(found.applied + 1, ends.checkpoint), DoubtReason::RolledBack, batches)
    } else if found.applied > ends.last {
        // What the journal has is older than what is in the database.
        (Gap::After(found.applied), DoubtReason::RolledBack, &[][..])
    } else {
        engine::rewrite(engine, &found, batches)?;
        let held = batches.partition_point(|batch| batch.sequence <= found.applied);
        (Gap::Unknown, DoubtReason::Restored, &batches[held..])
    };
    engine::verify(engine, &found, &mut |_, _| Ok(()))?;
    let highest = found.applied.max(ends.last);
    Ok((gap, begin_epoch(engine, keyring, found, newer, highest, reason)?))
}

/// Begins a new epoch, and brings `newer` commits in with the same write. `highest` is the highest number that is known of any commit.
fn begin_epoch(
    engine: &dyn Engine,
    keyring: &Keyring,
    mut mark: Mark,
    newer: &[Batch],
    highest: u64,
    reason: DoubtReason,
) -> Result<Mark, VaultError> {
    let name = Namer::new(&keyring.name_key).name(Kind::Meta, META_ID);
    let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
    let entries = newer.iter().flat_map(|batch| &batch.entries);
    let mut writes: HashMap<_, _> = entries.map(|entry| (entry.name, entry.sealed.as_deref())).collect();
    let before = match writes.get(&name) {
        Some(sealed) => sealed.map(<[u8]>::to_vec),
        None => engine.get(&name)?,
    };
    let missing = || VaultError::Damaged { what: Kind::Meta.word(), detail: "it is missing".to_owned() };
    let before = Meta::read(&cipher.open(&name, before.ok_or_else(missing)?)?.plaintext)?;

    mark.applied = ahead_of(highest)?;
    let meta = Meta { epoch: before.epoch.saturating_add(1), reason };
    let sealed = Encoder::new().encode(&meta, |plaintext| cipher.seal(&name, mark.applied, plaintext))?;
    writes.insert(name, Some(&sealed));
    for (name, sealed) in &writes {
        mark.replace(name.kind(), engine.tag(name)?, sealed.map(engine::tag));
    }
    engine.write(&writes, &mark)?;
    Ok(mark)
}

/// A number far above `highest`; by chance, so that two vaults that come from the same copy do not go on alike.
fn ahead_of(highest: u64) -> Result<u64, VaultError> {
    let mut chance = [0; 8];
    SystemRandom::new()
        .fill(&mut chance)
        .map_err(|_| VaultError::Engine { detail: "the system has no randomness".to_owned() })?;
    let detail = || "the number of its last commit makes no sense".to_owned();
    let next = highest.checked_add(JUMP + u64::from_le_bytes(chance) % JUMP);
    next.ok_or_else(|| VaultError::Damaged { what: "its database", detail: detail() })
}

/// Makes the files of a vault from a backup; `format` comes last.
fn unpack(
    folder: &Folder,
    config: &VaultConfig,
    identity: &Identity,
    mut input: Input<impl Read>,
    header: Header,
) -> Result<Restored, VaultError> {
    let engine = SledEngine::open(&folder.db(), config.cache_bytes)?;
    let (mut keyring, mark) = fill(&engine, &mut input, header)?;
    let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
    let mut check = |name: &Name, sealed| open::check_record(&cipher, name, sealed);
    engine::verify(&engine, &mark, &mut check).map_err(|error| unusable(&error.to_string()))?;
    let restored = Restored {
        begun_at: header.begun_at,
        records: mark.records(),
        grants: mark.count(Kind::Grant),
        organizations: mark.count(Kind::Organization),
    };
    let mark = begin_epoch(&engine, &keyring, mark, &[], mark.applied, DoubtReason::Restored)?;
    engine.sync()?;
    drop(engine);
    let mut recipients = std::mem::take(&mut keyring.recipients);
    recipients.extend(config.recipients.iter().cloned());
    keyring.write_new(folder, identity, &recipients)?;
    open::complete(folder, &keyring, mark.applied, super::journal::DEFAULT_CAPACITY)?;
    Ok(restored)
}

/// Brings everything in a backup into an empty engine, and holds it against the mark at its end.
pub(super) fn fill(
    engine: &dyn Engine,
    input: &mut Input<impl Read>,
    header: Header,
) -> Result<(Keyring, Mark), VaultError> {
    let mut mark = Mark { applied: header.sequence, ..Mark::default() };
    let mut records: Vec<(Name, Vec<u8>)> = Vec::new();
    let (mut last, mut batches, mut keyring) = (None, Vec::new(), None);
    let (mut expected, mut ended_records) = (header.sequence + 1, false);
    loop {
        let part = input.next()?;
        if !matches!(part, Part::Record(..)) && !ended_records {
            put(engine, &mut mark, &mut records)?;
            ended_records = true;
        }
        match part {
            Part::Record(name, sealed) if !ended_records && last.is_none_or(|last| last < name) => {
                last = Some(name);
                records.push((name, sealed));
                if records.len() >= RECORDS_AT_ONCE {
                    put(engine, &mut mark, &mut records)?;
                }
            }
            Part::Commit(batch) if keyring.is_none() && batch.sequence == expected => {
                expected += 1;
                batches.push(batch);
                if batches.len() >= COMMITS_AT_ONCE {
                    mark = engine::apply(engine, mark, &batches)?;
                    batches.clear();
                }
            }
            Part::Keyring(plaintext) if keyring.is_none() => keyring = Some(backup::keyring_of(&plaintext)?),
            Part::End(end) => {
                mark = engine::apply(engine, mark, &batches)?;
                return match keyring {
                    Some(keyring) if mark == end => Ok((keyring, mark)),
                    _ => Err(unusable("what is in it is not all that should be")),
                };
            }
            _ => return Err(unusable("its parts are not in order")),
        }
    }
}

fn put(engine: &dyn Engine, mark: &mut Mark, records: &mut Vec<(Name, Vec<u8>)>) -> Result<(), VaultError> {
    for (name, sealed) in &*records {
        mark.replace(name.kind(), None, Some(engine::tag(sealed)));
    }
    let writes: HashMap<_, _> = records.iter().map(|(name, sealed)| (*name, Some(sealed.as_slice()))).collect();
    engine.write(&writes, mark)?;
    records.clear();
    Ok(())
}

/// The folder in which a vault is made before it is one.
struct Staging {
    folder: Folder,
    /// Keeps a second process from the same work. It goes with the folder and becomes the vault's own.
    _lock: Lock,
}

impl Staging {
    /// Makes it, or takes over what a try that died has left, and empties it.
    fn begin(target: &Folder) -> Result<Self, VaultError> {
        let path = beside(target.path(), ".restoring")?;
        let folder = Folder::at(&path);
        folder.make()?;
        let lock = folder.lock()?;
        let emptied = || {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else if entry.file_name() != folder::LOCK_NAME {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        emptied().map_err(|error: io::Error| VaultError::io(&path, &error))?;
        Ok(Self { folder, _lock: lock })
    }

    /// Gives it the vault's name. An empty folder of that name gives way.
    fn put_in_place(self, target: &Folder) -> Result<(), VaultError> {
        rename_into_place(&self.folder, target)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Once it is in its place there is nothing under this name any more.
        let _ = fs::remove_dir_all(self.folder.path());
    }
}

/// Gives a vault that was made in another folder its name, durably.
pub(super) fn rename_into_place(made: &Folder, target: &Folder) -> Result<(), VaultError> {
    let path = target.path();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => VaultError::Io {
            path: path.to_owned(),
            why: "it is a mount point, and a vault is put in its place as a whole; name a folder in it as vault.path"
                .to_owned(),
        },
        _ => VaultError::io(path, &error),
    };
    fs::rename(made.path(), path).map_err(failed)?;
    folder::sync_folder(folder::parent(path)).map_err(|error| VaultError::io(path, &error))
}

/// The name of a folder beside that of the vault in `path`, in which one is made.
pub(super) fn beside(path: &Path, ending: &str) -> Result<PathBuf, VaultError> {
    let why =
        || VaultError::Io { path: path.to_owned(), why: "a vault cannot be made there: it has no name".to_owned() };
    let mut name = path.file_name().ok_or_else(why)?.to_owned();
    name.push(ending);
    Ok(path.with_file_name(name))
}

/// Whether a vault can be put there: at most an empty folder is.
pub(super) fn vacant(target: &Folder) -> Result<(), VaultError> {
    let path = target.path();
    if target.format().exists() {
        return Err(VaultError::AlreadyThere { path: path.to_owned() });
    }
    if let Some(found) = target.remains() {
        return Err(VaultError::Unfinished { path: path.to_owned(), found });
    }
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(VaultError::Io { path: path.to_owned(), why: "the folder is not empty".to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(VaultError::io(path, &error)),
    }
}

fn unusable(detail: &str) -> VaultError {
    VaultError::BackupUnusable { detail: detail.to_owned() }
}
