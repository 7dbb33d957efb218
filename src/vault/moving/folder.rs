//! The ends of a move that are folders.
//!
//! The vault that is left is read from a copy of its database, which is tried and counted as at any look at a vault at rest, so
//! that nothing of it changes but its plate. The one that is made lies beside its place (`PATH.moving`) until it is whole, with a
//! file `move` that says of which move it is and up to which name its records are on the disk; renaming it is the last step.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{End, Leaving, MoveId, account, hexadecimal};
use crate::config::VaultConfig;
use crate::vault::{
    VaultError,
    cipher::Cipher,
    engine::{self, Engine, Mark},
    folder::{self, Folder, Lock, Plate},
    journal::{self, Journal},
    keyring::Keyring,
    name::{NAME_BYTES, Name},
    open::{self, Ends, Trial, as_damage},
    restore,
    sled::SledEngine,
};

/// After how many records the copy is brought to the disk, and what it got to is noted.
const SYNC_EVERY: u64 = 4096;
/// The file that says of which move a folder is that is being made.
const NOTE: &str = "move";

/// The folder that is left.
pub(in crate::vault) struct Here {
    folder: Folder,
    plate: Plate,
    keyring: Keyring,
    trial: Trial,
    mark: Mark,
    _lock: Lock,
}

impl Here {
    /// Holds the vault, also one that is marked, and reads a copy of it that is whole.
    pub(in crate::vault) fn open(end: End<'_>) -> Result<Self, VaultError> {
        let folder = Folder::at(&end.config.path);
        folder.plate_as_it_is()?;
        let lock = folder.lock()?;
        // Again, now that nobody else can be marking it.
        let plate = folder.plate_as_it_is()?;
        let keyring = open::read_keyring(&folder, &plate, end.identity)?;
        let journal = Journal::open(&folder.journal(), keyring.vault, false)?;
        let batches = journal.batches()?;
        let trial = open::try_somewhere(&folder, &Ends::of(&journal, &batches), &batches)?;
        let newer: Vec<_> = batches.into_iter().filter(|batch| batch.sequence > trial.found.applied).collect();
        let mark = engine::apply(&trial.engine, trial.found, &newer).map_err(as_damage)?;
        Ok(Self { folder, plate, keyring, trial, mark, _lock: lock })
    }

    pub(super) fn place(&self) -> String {
        absolute(self.folder.path())
    }

    pub(super) const fn leaving(&self) -> Option<&Leaving> {
        self.plate.leaving.as_ref()
    }

    pub(super) const fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    pub(super) const fn mark(&self) -> &Mark {
        &self.mark
    }

    pub(in crate::vault) fn next(&self, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        self.trial.engine.next(after, most)
    }

    /// Marks it, durably.
    pub(super) fn leave(&mut self, leaving: &Leaving) -> Result<(), VaultError> {
        self.plate.leaving = Some(leaving.clone());
        self.folder.put_plate(&self.plate)
    }

    /// Takes the mark off, durably.
    pub(super) fn remain(&mut self) -> Result<(), VaultError> {
        self.plate.leaving = None;
        self.folder.put_plate(&self.plate)
    }
}

/// What is noted in a folder that is being made.
#[derive(Serialize, Deserialize, Debug)]
struct Note {
    /// The move's id.
    id: String,
    /// The last name whose record is on the disk, with all before it, in hexadecimal digits; empty: none is.
    after: String,
}

/// The folder that is being made.
pub(super) struct There {
    folder: Folder,
    note: Note,
    after: Option<Name>,
    engine: SledEngine,
    mark: Mark,
    unsynced: u64,
    _lock: Lock,
}

impl There {
    /// Whether a vault can be made there: nothing is, not even half a vault.
    pub(super) fn is_free(end: End<'_>) -> Result<(), VaultError> {
        restore::vacant(&Folder::at(&end.config.path))?;
        let path = beside(&end.config.path)?;
        if path.exists() { Err(VaultError::Arriving { path, of_another: true }) } else { Ok(()) }
    }

    /// Whether that move has begun something there.
    pub(super) fn is_begun(end: End<'_>, id: MoveId) -> Result<bool, VaultError> {
        Ok(read_note(&beside(&end.config.path)?)?.is_some_and(|note| note.id == hexadecimal(id)))
    }

    /// Begins one where nothing is, or goes on with what an earlier try of this very move left.
    pub(super) fn begin(end: End<'_>, id: MoveId) -> Result<Self, VaultError> {
        let target = Folder::at(&end.config.path);
        restore::vacant(&target)?;
        let path = beside(target.path())?;
        let folder = Folder::at(&path);
        folder.make()?;
        let lock = folder.lock()?;
        let mut note = match read_note(&path)? {
            Some(note) if note.id == hexadecimal(id) => note,
            None if folder.remains().is_none() => {
                let note = Note { id: hexadecimal(id), after: String::new() };
                put_note(&path, &note)?;
                note
            }
            _ => return Err(VaultError::Arriving { path, of_another: true }),
        };
        let open = || {
            let engine = SledEngine::open(&folder.db(), end.config.cache_bytes)?;
            let mark = engine.mark()?.unwrap_or_default();
            Ok((engine, mark))
        };
        let (engine, mark) = match open() {
            // Torn by a power cut: all of it is in the other vault still.
            Err(error @ VaultError::Damaged { .. }) if folder.db().exists() => {
                tracing::warn!(%error, "what an earlier try has written cannot be read; it is written anew");
                note.after.clear();
                put_note(&path, &note)?;
                fs::remove_dir_all(folder.db()).map_err(|error| VaultError::io(&path, &error))?;
                open()?
            }
            opened => opened?,
        };
        let after = read_name(&note.after);
        Ok(Self { folder, note, after, engine, mark, unsynced: 0, _lock: lock })
    }

    /// The last record that is there for sure.
    pub(super) const fn after(&self) -> Option<Name> {
        self.after
    }

    pub(super) const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Writes the next records in order of their names, over what an earlier try wrote of them.
    pub(super) fn put(&mut self, records: &[(Name, Vec<u8>)]) -> Result<(), VaultError> {
        account(&mut self.mark, records, |name| self.engine.tag(name))?;
        let writes: HashMap<_, _> = records.iter().map(|(name, sealed)| (*name, Some(sealed.as_slice()))).collect();
        self.engine.write(&writes, &self.mark)?;
        self.after = records.last().map(|(name, _)| *name).or(self.after);
        self.unsynced += records.len() as u64;
        if self.unsynced >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Brings what was written to the disk, and notes that it is there.
    fn sync(&mut self) -> Result<(), VaultError> {
        self.engine.sync()?;
        self.note.after = self.after.map(|name| hexadecimal_name(&name)).unwrap_or_default();
        self.unsynced = 0;
        put_note(self.folder.path(), &self.note)
    }

    /// Sees whether it holds what the other does, each record one that opens.
    pub(super) fn compare(&mut self, of: &Mark, keyring: &Keyring) -> Result<(), VaultError> {
        self.mark.applied = of.applied;
        self.engine.write(&HashMap::new(), &self.mark)?;
        self.sync()?;
        let cipher = Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current);
        engine::verify(&self.engine, of, &mut |name, sealed| open::check_record(&cipher, name, sealed))
    }

    /// Makes it a vault, and gives it its name.
    pub(super) fn complete(self, end: End<'_>, keyring: &Keyring) -> Result<(), VaultError> {
        let Self { folder, note, engine, mark, _lock, .. } = self;
        drop(engine);
        for file in [folder.keyring(), folder.recipients(), folder.journal(), folder.format()] {
            remove(&file)?;
        }
        let mut keyring = keyring.clone();
        let mut recipients = std::mem::take(&mut keyring.recipients);
        recipients.extend(end.config.recipients.iter().cloned());
        keyring.write_new(&folder, end.identity, &recipients)?;
        open::complete_arrived(&folder, &keyring, mark.applied, journal::DEFAULT_CAPACITY, Some(note.id))?;
        restore::rename_into_place(&folder, &Folder::at(&end.config.path))?;
        // Of no use from now on, and of no harm either.
        let _ = remove(&end.config.path.join(NOTE));
        Ok(())
    }

    /// Whether that move has been completed there.
    pub(super) fn is_whole(end: End<'_>, id: MoveId) -> Result<bool, VaultError> {
        let folder = Folder::at(&end.config.path);
        if !folder.format().exists() {
            return Ok(false);
        }
        Ok(folder.plate_as_it_is()?.arrived.is_some_and(|arrived| arrived == hexadecimal(id)))
    }

    /// Removes what that move has made, if anything.
    pub(super) fn take_away(end: End<'_>, id: MoveId) -> Result<(), VaultError> {
        let path = beside(&end.config.path)?;
        match read_note(&path)? {
            Some(note) if note.id == hexadecimal(id) => {
                let folder = Folder::at(&path);
                let _lock = folder.lock()?;
                let removed = fs::remove_dir_all(&path).and_then(|()| folder::sync_folder(folder::parent(&path)));
                removed.map_err(|error| VaultError::io(&path, &error))
            }
            _ => Ok(()),
        }
    }
}

/// Where the vault of that configuration is, or is to be: the same for the same folder, whatever it is called from.
pub(super) fn place(config: &VaultConfig) -> String {
    absolute(&config.path)
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// The name of the folder in which the vault in `path` is made.
pub(in crate::vault) fn beside(path: &Path) -> Result<PathBuf, VaultError> {
    restore::beside(path, ".moving")
}

fn read_note(path: &Path) -> Result<Option<Note>, VaultError> {
    let file = path.join(NOTE);
    match folder::read_small(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| VaultError::Damaged { what: "the note of its move", detail: "it makes no sense".to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(VaultError::io(&file, &error)),
    }
}

fn put_note(path: &Path, note: &Note) -> Result<(), VaultError> {
    let text = serde_json::to_vec(note).expect("two plain fields");
    folder::replace(&path.join(NOTE), &text)?;
    folder::sync_folder(path).map_err(|error| VaultError::io(path, &error))
}

fn remove(file: &Path) -> Result<(), VaultError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VaultError::io(file, &error)),
        _ => Ok(()),
    }
}

fn hexadecimal_name(name: &Name) -> String {
    name.as_bytes().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn read_name(text: &str) -> Option<Name> {
    let mut bytes = [0; NAME_BYTES];
    if text.len() != 2 * NAME_BYTES {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Name::parse(&bytes)
}
