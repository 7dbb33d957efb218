//! Making, opening and looking at a vault. Whatever does not add up is an error before any file is changed.

use std::path::Path;

use super::{
    Identity, Vault, VaultError,
    cipher::Cipher,
    codec::{Encoder, Meta, Record},
    engine::{self, Engine, Mark},
    folder::{self, Folder, Plate},
    journal::{self, Batch, Entry, Journal},
    keyring::Keyring,
    moving,
    name::{Kind, Name, Namer},
    recipients::{self, Recipient},
    shared::{Judgement, Opened, Shared},
    sled::{SledEngine, outline},
    writer::Writer,
};
use crate::{
    config::VaultConfig,
    metrics::Metrics,
    model::{Awaiting, Grant, Intent, Organization, OutboxRow, RevokedLinks},
    vault::Stray,
};

/// The commit that makes a vault.
const FIRST_SEQUENCE: u64 = 1;
/// What the vault keeps about itself goes by this name.
pub(super) const META_ID: &[u8] = b"vault";
/// The cache of an engine that is opened only to be looked at, in bytes.
pub(super) const TRIAL_CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// What [`Vault::inspect`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// Records in it; each was opened and read.
    pub records: u64,
    /// Bytes on disk, journal included.
    pub bytes: u64,
    /// Who can open it.
    pub recipients: Vec<Recipient>,
    /// How many data keys it has: more than one while records are still to be sealed anew.
    pub data_keys: usize,
    /// The number of its layout.
    pub format: u64,
}

impl Vault {
    /// Makes a vault that `identity` and the configured recipients open. One that is there is an error, and left as it is.
    pub fn create(config: &VaultConfig, identity: &Identity) -> Result<(), VaultError> {
        Self::create_with_journal(config, identity, journal::DEFAULT_CAPACITY)
    }

    /// As [`create`](Self::create), with room for `journal_bytes` of commits between two checkpoints, from 4 KiB to 1 GiB:
    /// a commit may take an eighth of it, and 1 MiB from 4 MiB on. A small one brings the engine to the disk often. One of
    /// 4 MiB, the default, grows with the vault, others never.
    pub fn create_with_journal(
        config: &VaultConfig,
        identity: &Identity,
        journal_bytes: u64,
    ) -> Result<(), VaultError> {
        create(config, identity, journal_bytes)
    }

    /// Whether a vault is in the folder `path`.
    pub fn exists(path: &Path) -> bool {
        Folder::at(path).format().exists()
    }

    /// Opens the vault and holds it until it is closed or the process ends. Blocks: for less than a second as a rule, and
    /// for as long as a copy of the database takes where somebody touched its files.
    ///
    /// After a crash records can be read before it is known that none is missing or older than it should be:
    /// [`judged`](Self::judged) tells. Commits wait for that.
    pub fn open(config: &VaultConfig, identity: &Identity, metrics: Metrics) -> Result<Self, VaultError> {
        let folder = Folder::at(&config.path);
        let plate = folder.plate()?;
        let lock = folder.lock()?;
        let keyring = read_keyring(&folder, &plate, identity)?;
        lock.tidy()?;
        let mut journal = Journal::open(&folder.journal(), keyring.vault, true)?;
        let batches = journal.batches()?;
        let ends = Ends::of(&journal, &batches);

        let db = folder.db();
        let untouched = journal.clean().is_some_and(|clean| folder::fingerprint(&db).is_ok_and(|now| now == clean));
        // After a kill the engine's files are as it left them, unless something else has happened to them. Where it can be told
        // that nothing has happened to what it goes by, it finds what it had; that all of it is there is judged later.
        let as_left = journal.clean().is_none() && outline::is_as_kept(&db, ends.checkpoint..=ends.last);
        if !untouched && !as_left {
            lock.wait_until_tidy();
            try_somewhere(&folder, &ends, &batches)?;
        }
        if folder.check_room(journal.bytes()).is_err() {
            lock.wait_until_tidy();
            folder.check_room(journal.bytes())?;
        }
        let open = || {
            let engine = SledEngine::open(&db, config.cache_bytes)?;
            engine.write_through();
            let (meta, mark) = recover(&engine, &mut journal, &keyring, batches, untouched)?;
            Ok((engine, meta, mark))
        };
        let opened = if as_left { open().map_err(as_damage) } else { open() };
        let (engine, meta, mark) = opened.inspect_err(|error| {
            if as_left && error.is_damaged() {
                outline::forget(&db);
            }
        })?;
        lock.tell_holder();
        let opened = Opened { engine: Box::new(engine), lock: Some(lock) };
        keyring.tell_recipients(&folder);
        let mut shared = Shared::new(opened, keyring, meta, &mark, journal.bytes(), metrics);
        shared.own = identity.recipients().map(|own| own.to_string()).collect();
        if as_left {
            shared.judgement.send_replace(Judgement::Pending);
        }
        Writer::start(shared, folder, journal, mark)
    }

    /// Looks at a vault that no process holds, and changes none of its files: the engine is tried on a copy, which lies in
    /// the vault's folder meanwhile, or among the temporary files where that cannot be written. Every record is opened.
    pub fn inspect(config: &VaultConfig, identity: &Identity) -> Result<Inspection, VaultError> {
        let folder = Folder::at(&config.path);
        let plate = folder.plate()?;
        let _lock = folder.lock_quietly()?;
        let keyring = read_keyring(&folder, &plate, identity)?;
        let journal = Journal::open(&folder.journal(), keyring.vault, false)?;
        let batches = journal.batches()?;

        let Trial { engine, found, place } = try_somewhere(&folder, &Ends::of(&journal, &batches), &batches)?;
        let newer: Vec<_> = batches.into_iter().filter(|batch| batch.sequence > found.applied).collect();
        let mark = engine::apply(&engine, found, &newer).map_err(as_damage)?;
        let own: Vec<_> = identity.recipients().map(|own| own.to_string()).collect();
        let (recipients, data_keys) = (recipients::of(&keyring, &own), keyring.data_keys.len());
        let cipher = Cipher::new(keyring.vault, keyring.data_keys, keyring.current);
        engine::verify(&engine, &mark, &mut |name, sealed| check_record(&cipher, name, sealed)).map_err(as_damage)?;
        drop(engine);
        Ok(Inspection {
            records: mark.records(),
            bytes: folder::bytes_below(folder.path(), Some(place.path())),
            recipients,
            data_keys,
            format: plate.format,
        })
    }
}

/// Brings the engine to where the journal ends, makes that durable, and lets the journal start over. Gives the vault's
/// own record and the engine's mark. `untouched`: nobody has written to the engine since the vault was closed cleanly.
pub(super) fn recover(
    engine: &dyn Engine,
    journal: &mut Journal,
    keyring: &Keyring,
    batches: Vec<Batch>,
    untouched: bool,
) -> Result<(Meta, Mark), VaultError> {
    let found = Ends::of(journal, &batches).judge(engine.mark()?)?;
    if !untouched {
        engine::rewrite(engine, &found, &batches)?;
    }
    let newer: Vec<_> = batches.into_iter().filter(|batch| batch.sequence > found.applied).collect();
    let mark = engine::apply(engine, found, &newer)?;
    engine.sync()?;
    if !untouched {
        tracing::info!(vault.replayed = newer.len(), "the vault was not closed cleanly; its journal was replayed");
    }
    let namer = Namer::new(&keyring.name_key);
    let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
    let meta = read_meta(engine, &namer, &cipher)?;
    journal.start_over(mark.applied, None)?;
    Ok((meta, mark))
}

/// Makes a vault whose journal has room for `journal_bytes` of frames.
pub(super) fn create(config: &VaultConfig, identity: &Identity, journal_bytes: u64) -> Result<(), VaultError> {
    let folder = Folder::at(&config.path);
    let vacant = || match folder.remains() {
        _ if moving::beside(folder.path()).is_ok_and(|path| path.is_dir()) => {
            Err(VaultError::Arriving { path: moving::beside(folder.path())?, of_another: false })
        }
        _ if folder.format().exists() => Err(VaultError::AlreadyThere { path: folder.path().to_owned() }),
        Some(found) => Err(VaultError::Unfinished { path: folder.path().to_owned(), found }),
        None => Ok(()),
    };
    vacant()?;
    folder.make()?;
    let _lock = folder.lock()?;
    // Again, now that nobody else can be making one.
    vacant()?;
    let made = fill(&folder, config, identity, journal_bytes);
    if made.is_err() {
        // All of this is of this call's making, and without the format file it is no vault.
        for file in [folder.keyring(), folder.recipients(), folder.journal(), folder.format()] {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir_all(folder.db());
    }
    made
}

/// Makes the files of a vault; `format` comes last, since it says that the others are whole.
fn fill(folder: &Folder, config: &VaultConfig, identity: &Identity, journal_bytes: u64) -> Result<(), VaultError> {
    let mut keyring = Keyring::generate()?;
    keyring.write_new(folder, identity, &config.recipients)?;

    let name = Namer::new(&keyring.name_key).name(Kind::Meta, META_ID);
    let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
    let seal = |plaintext: &[u8]| cipher.seal(&name, FIRST_SEQUENCE, plaintext);
    let sealed = Encoder::new().encode(&Meta::NEW, seal)?;
    let first = Batch { sequence: FIRST_SEQUENCE, entries: vec![Entry { name, sealed: Some(sealed) }] };

    let engine = SledEngine::open(&folder.db(), TRIAL_CACHE_BYTES)?;
    engine::apply(&engine, Mark::default(), &[first])?;
    engine.sync()?;
    drop(engine);
    complete(folder, &keyring, FIRST_SEQUENCE, journal_bytes)
}

/// Makes what is still missing of a vault whose engine has been brought to the disk with every commit up to `checkpoint`.
pub(super) fn complete(
    folder: &Folder,
    keyring: &Keyring,
    checkpoint: u64,
    journal_bytes: u64,
) -> Result<(), VaultError> {
    complete_arrived(folder, keyring, checkpoint, journal_bytes, None)
}

/// As [`complete`], of a vault that a move has brought.
pub(super) fn complete_arrived(
    folder: &Folder,
    keyring: &Keyring,
    checkpoint: u64,
    journal_bytes: u64,
    arrived: Option<String>,
) -> Result<(), VaultError> {
    let db = folder.db();
    let files = folder::sync_tree(&db).and_then(|()| folder::fingerprint(&db));
    let files = files.map_err(|error| VaultError::io(&db, &error))?;
    Journal::create(&folder.journal(), keyring.vault, checkpoint, files, journal_bytes)?;

    let plate = Plate::new(hexadecimal(keyring.vault), arrived);
    folder::write_new(&folder.format(), &plate.text())
}

pub(super) fn read_keyring(folder: &Folder, plate: &Plate, identity: &Identity) -> Result<Keyring, VaultError> {
    let keyring = Keyring::read(folder, identity)?;
    if plate.vault != hexadecimal(keyring.vault) {
        let detail = "it belongs to another vault than the format file".to_owned();
        return Err(VaultError::Damaged { what: "its keyring", detail });
    }
    Ok(keyring)
}

fn read_meta(engine: &dyn Engine, namer: &Namer, cipher: &Cipher) -> Result<Meta, VaultError> {
    let name = namer.name(Kind::Meta, META_ID);
    let sealed = engine
        .get(&name)?
        .ok_or_else(|| VaultError::Damaged { what: Kind::Meta.word(), detail: "it is missing".to_owned() })?;
    Meta::read(&cipher.open(&name, sealed)?.plaintext)
}

/// Between which commits the engine must end, by what the journal says.
pub(super) struct Ends {
    /// The last commit that it was brought to the disk with.
    pub(super) checkpoint: u64,
    /// The last commit of all.
    pub(super) last: u64,
}

impl Ends {
    pub(super) fn of(journal: &Journal, batches: &[Batch]) -> Self {
        let checkpoint = journal.checkpoint();
        Self { checkpoint, last: batches.last().map_or(checkpoint, |batch| batch.sequence) }
    }

    fn judge(&self, mark: Option<Mark>) -> Result<Mark, VaultError> {
        let Self { checkpoint, last } = self;
        let behind = |detail: String| Err(VaultError::Behind { detail });
        match mark {
            None => behind(format!("the database is empty, and held every commit up to {checkpoint}")),
            Some(Mark { applied, .. }) if applied < *checkpoint => behind(format!(
                "the database ends with commit {applied}, and held every commit up to {checkpoint}: it was cut short or \
                 replaced by an older copy"
            )),
            Some(Mark { applied, .. }) if applied > *last => behind(format!(
                "the journal ends with commit {last}, and the database holds commit {applied}: the journal was replaced \
                 by an older copy, or its last commits are damaged"
            )),
            Some(mark) => Ok(mark),
        }
    }
}

/// A copy of the engine that was found to be whole.
pub(super) struct Trial {
    pub(super) engine: SledEngine,
    pub(super) found: Mark,
    /// Where it is, until this is dropped: after the engine.
    place: tempfile::TempDir,
}

/// Tries a copy of the engine in the vault's folder, or among the temporary files where there is no room for one.
pub(super) fn try_somewhere(folder: &Folder, ends: &Ends, batches: &[Batch]) -> Result<Trial, VaultError> {
    let try_in = |place: tempfile::TempDir| -> Result<Trial, VaultError> {
        let (engine, found) = try_copy(&folder.db(), &place.path().join("db"), ends, batches)?;
        Ok(Trial { engine, found, place })
    };
    match try_in(folder.trial()?) {
        Err(error) if error.is_full() => {}
        tried => return tried,
    }
    let no_room = || VaultError::NoRoom {
        path: folder.path().to_owned(),
        elsewhere: std::env::temp_dir(),
        bytes: folder::bytes_below(&folder.db(), None),
    };
    match tempfile::tempdir().map_err(|_| no_room()).and_then(try_in) {
        Err(error) if error.is_full() => Err(no_room()),
        tried => tried,
    }
}

/// Opens a copy of the engine's files, so that whatever the engine does to damaged ones happens to the copy; judges where
/// it ends, and walks through every record in it.
fn try_copy(db: &Path, copy: &Path, ends: &Ends, batches: &[Batch]) -> Result<(SledEngine, Mark), VaultError> {
    if !db.join("db").is_file() {
        return Err(VaultError::Behind { detail: format!("the database {} is missing", db.display()) });
    }
    folder::copy_tree(db, copy)?;
    let engine = SledEngine::open(copy, TRIAL_CACHE_BYTES).map_err(as_damage)?;
    let mark = ends.judge(engine.mark().map_err(as_damage)?)?;
    engine::rewrite(&engine, &mark, batches)
        .and_then(|()| engine::verify(&engine, &mark, &mut |_, _| Ok(())))
        .map_err(as_damage)?;
    Ok((engine, mark))
}

pub(super) fn check_record(cipher: &Cipher, name: &Name, sealed: Vec<u8>) -> Result<(), VaultError> {
    let bytes = cipher.open(name, sealed)?.plaintext;
    match name.kind() {
        Kind::Grant => Grant::read(&bytes).map(drop),
        Kind::Organization => Organization::read(&bytes).map(drop),
        Kind::Intent => Intent::read(&bytes).map(drop),
        Kind::Stray => Stray::read(&bytes).map(drop),
        Kind::Meta => Meta::read(&bytes).map(drop),
        Kind::Event => OutboxRow::read(&bytes).map(drop),
        Kind::Awaiting => Awaiting::read(&bytes).map(drop),
        Kind::RevokedLinks => RevokedLinks::read(&bytes).map(drop),
    }
}

/// On a copy that nobody else uses, what the engine fails at is the fault of the files.
pub(super) fn as_damage(error: VaultError) -> VaultError {
    match error {
        VaultError::Engine { detail } => VaultError::Damaged { what: "its database", detail },
        other => other,
    }
}

fn hexadecimal(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}
