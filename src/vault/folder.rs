//! The vault's folder: what its files are called, who holds it, and writing to it durably.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use ring::digest;
use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};
use serde::{Deserialize, Serialize};

use super::{
    error::VaultError,
    moving::{self, Leaving},
};

/// The number of the layout that this version writes and knows.
pub(super) const FORMAT: u64 = 1;
/// The number of a vault that is being moved, or was: versions that know no moves must not open it.
const LEAVING: u64 = 2;
/// The largest of the small files that is read, in bytes.
const MAX_SMALL_FILE_BYTES: u64 = 1024 * 1024;
/// How the names of folders begin in which copies of the engine's files are tried out.
const TRIAL: &str = "db.trial-";
/// What is added to a file's name while its successor is being written.
const SUCCESSOR: &str = ".new";
/// How much is written to see whether a disk takes writes.
const PROBE_BYTES: usize = 64 * 1024;
/// So much has to be free before the engine is given anything, in bytes: several of its segments and write buffers.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// How deep the engine nests its folders.
const MAX_DEPTH: usize = 4;
/// What the lock's file is called.
pub(super) const LOCK_NAME: &str = "LOCK";

/// Where the parts of one vault are.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// What the `format` file says.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(super) struct Plate {
    /// The number of the layout.
    pub(super) format: u64,
    /// The vault's id in hexadecimal digits; also in the keyring, which is authenticated.
    pub(super) vault: String,
    /// Where it is being moved to, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) leaving: Option<Leaving>,
    /// The id of the move that made it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) arrived: Option<String>,
}

impl Plate {
    pub(super) fn new(vault: String, arrived: Option<String>) -> Self {
        Self { format: FORMAT, vault, leaving: None, arrived }
    }

    /// Its text in the file.
    pub(super) fn text(&self) -> Vec<u8> {
        let format = if self.leaving.is_some() { LEAVING } else { FORMAT };
        let mut text = serde_json::to_vec(&Self { format, ..self.clone() }).expect("plain fields");
        text.push(b'\n');
        text
    }
}

/// The lock on a vault; it ends with this value, or with the process.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    /// The folder that it locks.
    pub(super) folder: Folder,
    /// Removes what an earlier process left.
    tidying: Mutex<Option<JoinHandle<()>>>,
}

impl Lock {
    fn new(file: File, folder: &Folder) -> Self {
        Self { file, folder: folder.clone(), tidying: Mutex::default() }
    }

    /// Writes this process's id into the lock's file, once the vault is open: until then not a byte of it changes. The id
    /// only helps people; what holds the vault is the lock, and a full disk is no reason not to open.
    pub(super) fn tell_holder(&self) {
        let pid = format!("{}\n", std::process::id());
        let _ = self.file.set_len(0).and_then(|()| self.file.write_all_at(pid.as_bytes(), 0));
    }

    /// Removes what a process left that died while it tried a copy or wrote files anew: by a thread, since that may be gigabytes. What
    /// cannot be removed only takes room, and the next opening tries again.
    pub(super) fn tidy(&self) -> Result<(), VaultError> {
        let remnants = self.folder.remnants()?;
        if remnants.is_empty() {
            return Ok(());
        }
        let remove = move || {
            for path in remnants {
                if let Err(error) = fs::remove_dir_all(&path) {
                    let path = path.display();
                    tracing::warn!(%error, "{path} is of no use any more and cannot be removed");
                }
            }
        };
        let thread = thread::Builder::new().name("vault tidying".to_owned()).spawn(remove);
        let thread = thread.map_err(|error| VaultError::io(self.folder.path(), &error))?;
        *self.tidying.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Whether nothing is being removed any more, so that the room on the disk is what it seems.
    pub(super) fn is_tidy(&self) -> bool {
        let tidying = self.tidying.lock().unwrap_or_else(PoisonError::into_inner);
        tidying.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until nothing is being removed any more.
    pub(super) fn wait_until_tidy(&self) {
        let tidying = self.tidying.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = tidying {
            let _ = thread.join();
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.wait_until_tidy();
        // A process that is just being started from this one has the file open as well until it becomes another program: closing it here
        // alone would leave it locked for that moment.
        let _ = self.file.unlock();
    }
}

impl Folder {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn format(&self) -> PathBuf {
        self.path.join("format")
    }

    pub(super) fn keyring(&self) -> PathBuf {
        self.path.join("keyring.age")
    }

    pub(super) fn recipients(&self) -> PathBuf {
        self.path.join("recipients.txt")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    pub(super) fn db(&self) -> PathBuf {
        self.path.join("db")
    }

    /// A new folder in which a copy of the engine's files is tried out, removed when it is dropped: in the vault's folder,
    /// or among the temporary files where that cannot be written.
    pub(super) fn trial(&self) -> Result<tempfile::TempDir, VaultError> {
        let here = tempfile::Builder::new().prefix(TRIAL).tempdir_in(&self.path);
        here.or_else(|_| tempfile::tempdir()).map_err(|error| VaultError::io(&self.path, &error))
    }

    /// A new folder in the vault's, in which a successor of the engine's files is written, removed when it is dropped.
    pub(super) fn beside(&self) -> Result<tempfile::TempDir, VaultError> {
        let place = tempfile::Builder::new().prefix(TRIAL).tempdir_in(&self.path);
        place.map_err(|error| VaultError::io(&self.path, &error))
    }

    /// Refuses to go on where less than [`RESERVE_BYTES`] and `more` are free: a database that runs out of disk in the middle
    /// of a write may be torn so that it does not open any more. Whatever the file system does not tell is no hindrance.
    pub(super) fn check_room(&self, more: u64) -> Result<(), VaultError> {
        const MEGABYTE: u64 = 1_000_000;
        let (free, needed) = (self.free().unwrap_or(u64::MAX), RESERVE_BYTES.saturating_add(more));
        if free >= needed {
            return Ok(());
        }
        let (free, needed) = (free / MEGABYTE, needed.div_ceil(MEGABYTE));
        Err(VaultError::Scarce { path: self.path.clone(), free, needed })
    }

    /// What may still be written to its file system, in bytes.
    fn free(&self) -> Option<u64> {
        statvfs(&self.path).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Whether a vault that is opened here would find a disk that takes writes, with room for the copy that an unclean end
    /// asks for. Writes a little, syncs it, and removes it again.
    pub(super) fn takes_writes(&self) -> bool {
        let write = || {
            let place = tempfile::Builder::new().prefix(TRIAL).tempdir_in(&self.path)?;
            let mut file = File::create(place.path().join("probe"))?;
            file.write_all(&vec![0; PROBE_BYTES])?;
            file.sync_all()
        };
        self.check_room(bytes_below(&self.path, None)).is_ok() && write().is_ok()
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join(LOCK_NAME)
    }

    /// One of the files that only a vault has, if any is there.
    pub(super) fn remains(&self) -> Option<&'static str> {
        ["keyring.age", "recipients.txt", "journal", "db"].into_iter().find(|name| self.path.join(name).exists())
    }

    /// Makes the folder, for its owner only, unless it is there.
    pub(super) fn make(&self) -> Result<(), VaultError> {
        let parent = parent(&self.path);
        fs::create_dir_all(parent).map_err(|error| VaultError::io(parent, &error))?;
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.path.is_dir() => Ok(()),
            made => made.and_then(|()| sync_folder(parent)).map_err(|error| VaultError::io(&self.path, &error)),
        }
    }

    /// Reads the `format` file: which layout this is, before anything else is looked at. A vault that is being moved, or was, is an
    /// error.
    pub(super) fn plate(&self) -> Result<Plate, VaultError> {
        let plate = self.plate_as_it_is()?;
        match plate.leaving {
            None => Ok(plate),
            Some(Leaving { to, gone, .. }) => {
                Err(VaultError::Moved { place: self.path.display().to_string(), to, gone })
            }
        }
    }

    /// Puts this plate in the place of the one that is there, durably.
    pub(super) fn put_plate(&self, plate: &Plate) -> Result<(), VaultError> {
        replace(&self.format(), &plate.text())?;
        sync_folder(&self.path).map_err(|error| VaultError::io(&self.path, &error))
    }

    /// As [`plate`](Self::plate), also of a vault that is being moved, or was.
    pub(super) fn plate_as_it_is(&self) -> Result<Plate, VaultError> {
        /// What every layout, older or newer, has in common.
        #[derive(Deserialize)]
        struct Number {
            format: u64,
        }
        let bytes = match read_small(&self.format()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(match self.remains() {
                    Some(found) => VaultError::Unfinished { path: self.path.clone(), found },
                    None => match moving::beside(&self.path) {
                        Ok(path) if path.is_dir() => VaultError::Arriving { path, of_another: false },
                        _ => VaultError::Missing { path: self.path.clone() },
                    },
                });
            }
            Err(error) => return Err(VaultError::io(&self.format(), &error)),
        };
        let damaged = |why: &str| VaultError::Damaged { what: "its format file", detail: why.to_owned() };
        let number: Number = serde_json::from_slice(&bytes).map_err(|_| damaged("it names no format"))?;
        if number.format > LEAVING {
            return Err(VaultError::NewerFormat { path: self.path.clone(), found: number.format, known: FORMAT });
        }
        if number.format < FORMAT {
            return Err(damaged("it names a format that never was"));
        }
        serde_json::from_slice(&bytes).map_err(|_| damaged("it does not name the vault"))
    }

    /// Takes the lock, or says who holds it.
    pub(super) fn lock(&self) -> Result<Lock, VaultError> {
        let path = self.lock_file();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| VaultError::io(&path, &error))?;
        self.take(&file, &path)?;
        Ok(Lock::new(file, self))
    }

    /// Takes the lock without writing anything; `None` if there is no lock file, so that nobody can hold it.
    pub(super) fn lock_quietly(&self) -> Result<Option<Lock>, VaultError> {
        let path = self.lock_file();
        match File::open(&path) {
            Ok(file) => self.take(&file, &path).map(|()| Some(Lock::new(file, self))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VaultError::io(&path, &error)),
        }
    }

    fn take(&self, file: &File, path: &Path) -> Result<(), VaultError> {
        match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                let pid = read_small(path).ok().and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok());
                // While a vault is being opened the file still tells of an earlier process.
                let pid = pid.filter(|pid: &u32| Path::new("/proc").join(pid.to_string()).exists());
                Err(VaultError::InUse { path: self.path.clone(), pid })
            }
            Err(TryLockError::Error(error)) => Err(VaultError::io(path, &error)),
        }
    }

    /// The folders that a process left that died while it tried a copy or wrote files anew. Removes what it left of a file that it
    /// was replacing. To be called with the lock held.
    fn remnants(&self) -> Result<Vec<PathBuf>, VaultError> {
        let look = || {
            let mut remnants = Vec::new();
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                let name = entry.file_name();
                if name.as_encoded_bytes().starts_with(TRIAL.as_bytes()) {
                    remnants.push(entry.path());
                } else if name.as_encoded_bytes().ends_with(SUCCESSOR.as_bytes()) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(remnants)
        };
        look().map_err(|error: io::Error| VaultError::io(&self.path, &error))
    }
}

/// The folder that `path` is in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes new and removed names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Lets two folders change places, durably and at once: whenever the process dies, each is in the one place or the other.
/// Not every file system can.
pub(super) fn exchange(one: &Path, other: &Path) -> Result<(), VaultError> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(io::Error::from)
        .and_then(|()| sync_folder(parent(one)))
        .and_then(|()| sync_folder(parent(other)))
        .map_err(|error| VaultError::io(one, &error))
}

/// Writes a new file for its owner only, and durably; one that is there is an error.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| VaultError::io(path, &error))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder(parent(path)))
        .map_err(|error| VaultError::io(path, &error))
}

/// Puts a new file, for its owner only, in the place of `path`, whole or not at all: after an error the old one is still
/// there. It stays replaced through a power cut only once [`sync_folder`] was called.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let mut new = path.as_os_str().to_owned();
    new.push(SUCCESSOR);
    let new = PathBuf::from(new);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        VaultError::io(path, &error)
    })
}

/// Reads a file that is known to be small.
pub(super) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SMALL_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Every file below `path`, in order of their names, and every folder, `path` itself included.
pub(super) fn walk(path: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    let mut open = vec![(path.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                files.push(entry.path());
            } else if depth < MAX_DEPTH {
                open.push((entry.path(), depth + 1));
            }
        }
        folders.push(folder);
    }
    files.sort();
    Ok((files, folders))
}

/// The size of all files below `path`, those below `except` left out, as far as they can be looked at.
pub(super) fn bytes_below(path: &Path, except: Option<&Path>) -> u64 {
    let files = walk(path).map(|(files, _)| files).unwrap_or_default();
    let counted = files.iter().filter(|file| except.is_none_or(|except| !file.starts_with(except)));
    counted.filter_map(|file| fs::metadata(file).ok()).map(|about| about.len()).sum()
}

/// Makes everything below `path` durable, and takes it from everybody but the owner.
pub(super) fn sync_tree(path: &Path) -> io::Result<()> {
    let (files, folders) = walk(path)?;
    for (path, mode) in files.iter().map(|file| (file, 0o600)).chain(folders.iter().map(|folder| (folder, 0o700))) {
        match File::open(path) {
            Ok(file) => {
                if file.metadata()?.permissions().mode() & 0o077 != 0 {
                    file.set_permissions(fs::Permissions::from_mode(mode))?;
                }
                file.sync_all()?;
            }
            // The engine removes files of its own accord.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies the folder `from` to the new folder `to`, for its owner only. The copies are not synced.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<(), VaultError> {
    let (files, mut folders) = walk(from).map_err(|error| VaultError::io(from, &error))?;
    folders.sort();
    let place = |path: &Path| path.strip_prefix(from).map_or_else(|_| to.to_owned(), |below| to.join(below));
    for folder in &folders {
        let made = DirBuilder::new().mode(0o700).create(place(folder));
        made.map_err(|error| VaultError::io(&place(folder), &error))?;
    }
    for file in &files {
        // Which of the two failed is told by trying to read.
        fs::copy(file, place(file)).map_err(|error| match File::open(file) {
            Ok(_) => VaultError::io(&place(file), &error),
            Err(_) => VaultError::Io { path: file.clone(), why: error.to_string() },
        })?;
        // A vault that is kept read-only has files that could not be opened as a database.
        fs::set_permissions(place(file), fs::Permissions::from_mode(0o600))
            .map_err(|error| VaultError::io(&place(file), &error))?;
    }
    Ok(())
}

/// A hash over names, lengths and times of change of all files below `path`: while it is the same, nobody has touched
/// them.
pub(super) fn fingerprint(path: &Path) -> io::Result<[u8; 16]> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for file in walk(path)?.0 {
        let name = file.strip_prefix(path).unwrap_or(&file).as_os_str().as_encoded_bytes();
        let about = fs::metadata(&file)?;
        hash.update(&name.len().to_le_bytes());
        hash.update(name);
        hash.update(&about.len().to_le_bytes());
        hash.update(&about.mtime().to_le_bytes());
        hash.update(&about.mtime_nsec().to_le_bytes());
    }
    let hash = hash.finish();
    Ok(hash.as_ref()[..16].try_into().expect("SHA-256 is longer"))
}
