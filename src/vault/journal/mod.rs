//! The journal: the latest commits, synced in groups. The sync of a frame is the commit it holds.
//!
//! The file has a fixed size and is written out once when it is made, so that a commit needs no space and no change to
//! the file system's own records. All numbers are little endian; every checksum is CRC-32C (RFC 3720 appendix B.4).
//!
//! ```text
//! offset     bytes  what
//!      0      4096  header, even generations
//!   4096      4096  header, odd generations
//!   8192  capacity  frames, each on a multiple of 8 bytes from here
//! ```
//!
//! A **header** is written when the engine has been brought to the disk (a checkpoint), and when the vault is opened or
//! closed. Each has a generation one above the last and goes to the other place, so that a torn one leaves its
//! predecessor; the valid one with the higher generation counts. Frames then start over from offset 8192.
//!
//! ```text
//! offset  bytes  what
//!      0      8  "cnstryJH"
//!      8      4  format, 1
//!     12      4  zero
//!     16     16  vault id
//!     32      8  generation
//!     40      8  checkpoint: the engine on the disk holds every commit up to this sequence number
//!     48      8  capacity
//!     56      8  1 if the vault was closed cleanly, else 0
//!     64     16  if it was: the hash over the engine's files (`folder::fingerprint`), else zero
//!     80      4  checksum of bytes 0 to 79
//! ```
//!
//! A **frame** holds one commit. Sequence numbers go up by one from frame to frame; the first is checkpoint + 1.
//!
//! ```text
//! offset  bytes  what
//!      0      8  "cnstryJF"
//!      8      8  generation
//!     16      8  sequence number
//!     24      8  durable through: the highest sequence number known to be synced when this was written
//!     32      4  length n of the payload
//!     36      4  checksum of bytes 0 to 35 and the payload
//!     40      n  payload
//!   40+n    0-7  zeros, up to the next multiple of 8
//! ```
//!
//! Its payload is a count (4 bytes) and then, that often, a name (17 bytes), a length (4 bytes) and so many bytes of a
//! sealed record; the length `ffffffff` stands for a record that was removed.
//!
//! A **note** is a frame with the magic "cnstryJN", the sequence number of the last commit and no payload. It is written
//! after the last frame when nothing waits, is not synced itself, and is written over by the next frame.
//!
//! Reading ends at the first place where no valid next frame stands. That is where writing stopped, unless a frame or note
//! further on (of this generation, durable through the missing number or beyond; or of a later generation) proves that
//! something synced is missing: then the journal is damaged. Only an unsynced tail can be missing without such proof, or a
//! last commit after which the process died at once.

mod frame;
mod header;
mod storage;
mod window;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate};

pub(super) use self::{
    frame::{Batch, Entry},
    storage::Storage,
};
use self::{
    frame::{FRAME_HEADER_BYTES, Magic, Standing},
    header::{HEADER_BYTES, Header},
    window::Window,
};
use super::{
    error::VaultError,
    folder::{parent, sync_folder},
};

/// The size of a new journal, in bytes: enough for some thousand commits between checkpoints.
pub(super) const DEFAULT_CAPACITY: u64 = 8 * 1024 * 1024;
/// The largest journal that is read, in bytes.
const MAX_CAPACITY: u64 = 1024 * 1024 * 1024;
/// The smallest that is made, in bytes.
const MIN_CAPACITY: u64 = 4096;
/// Where frames start.
const FRAMES_AT: u64 = 2 * HEADER_BYTES as u64;
/// How much of the capacity one commit, or what is added before a group is full, may take: an eighth.
const SHARE: u64 = 8;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: Box<dyn Storage>,
    path: PathBuf,
    header: Header,
    /// Where the next frame goes, counted from `FRAMES_AT`.
    position: u64,
    /// The highest sequence number that is synced.
    durable: u64,
    /// The group being put together.
    group: Vec<u8>,
    /// Whether a write or a sync has failed.
    failed: bool,
}

impl Journal {
    /// Makes the journal of a new vault, closed cleanly at `checkpoint`, with room for `capacity` bytes of frames.
    pub(super) fn create(
        path: &Path,
        vault: [u8; 16],
        checkpoint: u64,
        clean: [u8; 16],
        capacity: u64,
    ) -> Result<(), VaultError> {
        let capacity = capacity.clamp(MIN_CAPACITY, MAX_CAPACITY).next_multiple_of(8);
        let make = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            preallocate(&file, FRAMES_AT + capacity)?;
            write_first_header(&file, vault, checkpoint, Some(clean), capacity)?;
            file.sync_all()?;
            sync_folder(parent(path))
        };
        make().map_err(|error| VaultError::io(path, &error))
    }

    /// Opens the journal and reads its header; changes nothing. `writable` is false where it is only looked at.
    pub(super) fn open(path: &Path, vault: [u8; 16], writable: bool) -> Result<Self, VaultError> {
        let file = OpenOptions::new().read(true).write(writable).open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged("it is missing".to_owned()),
            _ => VaultError::io(path, &error),
        })?;
        Self::over(Box::new(file), path, vault)
    }

    /// Reads the header of the journal in `file`; `path` is what errors call it.
    pub(super) fn over(file: Box<dyn Storage>, path: &Path, vault: [u8; 16]) -> Result<Self, VaultError> {
        let failed = |error: io::Error| VaultError::io(path, &error);
        let mut pages = vec![0; 2 * HEADER_BYTES];
        match file.read_exact_at(&mut pages, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged("it is shorter than its header".to_owned()));
            }
            read => read.map_err(failed)?,
        }
        let header = Header::newest(&pages).map_err(damaged)?;
        if header.vault != vault {
            return Err(damaged("it belongs to another vault".to_owned()));
        }
        if !(MIN_CAPACITY..=MAX_CAPACITY).contains(&header.capacity) {
            return Err(damaged("its capacity makes no sense".to_owned()));
        }
        let (length, made) = (file.length().map_err(failed)?, FRAMES_AT + header.capacity);
        if length < made {
            return Err(damaged(format!("it was cut short from {made} to {length} bytes")));
        }
        let durable = header.checkpoint;
        Ok(Self { file, path: path.to_owned(), header, position: 0, durable, group: Vec::new(), failed: false })
    }

    /// The engine on the disk holds every commit up to this one.
    pub(super) const fn checkpoint(&self) -> u64 {
        self.header.checkpoint
    }

    /// The hash over the engine's files, if the vault was closed cleanly.
    pub(super) const fn clean(&self) -> Option<[u8; 16]> {
        self.header.clean
    }

    /// Bytes on disk.
    pub(super) const fn bytes(&self) -> u64 {
        FRAMES_AT + self.header.capacity
    }

    /// The largest frame, and how much is put into a group before it is synced, in bytes.
    pub(super) const fn limit(&self) -> usize {
        // It fits: the capacity is below MAX_CAPACITY.
        (self.header.capacity / SHARE) as usize
    }

    /// The commits after the checkpoint, in order; an error if one of them is known to be missing.
    pub(super) fn batches(&self) -> Result<Vec<Batch>, VaultError> {
        let length = usize::try_from(self.header.capacity).expect("below MAX_CAPACITY");
        let failed = |error: io::Error| VaultError::io(&self.path, &error);
        let mut window = Window::new(self.file.as_ref(), length, self.limit().next_multiple_of(8));
        let mut batches = Vec::new();
        let (mut position, mut expected) = (0, self.header.checkpoint + 1);
        while let Some(frame) = window.frame(position).map_err(failed)?.filter(|frame| {
            frame.is_commit() && frame.generation == self.header.generation && frame.sequence == expected
        }) {
            let batch = Batch::decode(expected, frame.payload)
                .ok_or_else(|| damaged(format!("commit {expected} in it makes no sense")))?;
            batches.push(batch);
            position += frame.length();
            expected += 1;
        }
        let generation = self.header.generation;
        for at in (position..length).step_by(8) {
            let Some(frame) = window.frame(at).map_err(failed)? else { continue };
            if frame.generation > generation {
                return Err(damaged(format!("its newest header, of generation {}, is missing", frame.generation)));
            }
            if frame.generation == generation && frame.durable_through >= expected {
                return Err(damaged(format!(
                    "commit {expected} is missing from it, and commits up to {} were written",
                    frame.durable_through
                )));
            }
        }
        Ok(batches)
    }

    /// Starts over: the engine on the disk holds every commit up to `checkpoint`. `clean` is the hash over the engine's
    /// files if nothing will be written any more.
    pub(super) fn start_over(&mut self, checkpoint: u64, clean: Option<[u8; 16]>) -> Result<(), VaultError> {
        debug_assert!(!self.failed, "after a failure nothing is written");
        debug_assert!(self.group.is_empty(), "a group is synced before the engine is");
        let header = Header { generation: self.header.generation + 1, checkpoint, clean, ..self.header };
        self.file
            .write_all_at(&header.encode(), header.place())
            .and_then(|()| self.file.sync_data())
            .map_err(|error| self.fail(&error))?;
        self.header = header;
        self.position = 0;
        self.durable = checkpoint;
        Ok(())
    }

    /// Adds a commit to the group. A commit that is too large is refused, and nothing is changed.
    pub(super) fn add(&mut self, batch: &Batch) -> Result<(), VaultError> {
        let bytes = FRAME_HEADER_BYTES + batch.payload_bytes();
        if bytes > self.limit() {
            return Err(VaultError::TooLarge { what: "a commit", bytes, limit: self.limit() });
        }
        let standing = self.standing(Magic::Commit, batch.sequence);
        frame::write(&mut self.group, standing, batch);
        Ok(())
    }

    /// Whether the group should be synced before more is added.
    pub(super) const fn group_is_full(&self) -> bool {
        self.group.len() >= self.limit()
    }

    /// Whether the journal must start over before another group is begun: there is room for a group as large as it may
    /// get, which is just short of full and then one frame more.
    pub(super) const fn wants_checkpoint(&self) -> bool {
        self.header.capacity - self.position < 2 * (self.header.capacity / SHARE) + 8
    }

    /// Writes the group and syncs it: when this returns, its commits, the last of which is `last`, are durable. After an
    /// error nobody knows, and the journal must not be written any more.
    pub(super) fn sync(&mut self, last: u64) -> Result<(), VaultError> {
        self.file
            .write_all_at(&self.group, FRAMES_AT + self.position)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| self.fail(&error))?;
        self.position += self.group.len() as u64;
        self.durable = last;
        self.group.clear();
        Ok(())
    }

    /// Leaves a note of what is durable behind the last frame, not synced.
    pub(super) fn note(&mut self) -> Result<(), VaultError> {
        let mut note = Vec::with_capacity(FRAME_HEADER_BYTES);
        frame::write_note(&mut note, self.standing(Magic::Note, self.durable));
        if self.header.capacity - self.position < note.len() as u64 {
            return Ok(());
        }
        self.file.write_all_at(&note, FRAMES_AT + self.position).map_err(|error| self.fail(&error))
    }

    /// Whether no write has failed: after one nobody knows what is on the disk.
    pub(super) const fn is_sound(&self) -> bool {
        !self.failed
    }

    fn fail(&mut self, error: &io::Error) -> VaultError {
        self.failed = true;
        VaultError::io(&self.path, error)
    }

    const fn standing(&self, magic: Magic, sequence: u64) -> Standing {
        Standing { magic, generation: self.header.generation, sequence, durable_through: self.durable }
    }

    /// Takes the right to write from the journal, so that its next write fails.
    #[cfg(test)]
    pub(super) fn break_for_test(&mut self) {
        self.file = Box::new(File::open(&self.path).unwrap());
    }
}

#[cfg(test)]
impl Journal {
    /// Makes a journal on a simulated disk, as after a crash at `checkpoint`.
    pub(super) fn format(
        disk: &super::simulated::Disk,
        vault: [u8; 16],
        checkpoint: u64,
        capacity: u64,
    ) -> io::Result<()> {
        disk.lay_out(FRAMES_AT + capacity);
        write_first_header(disk, vault, checkpoint, None, capacity)?;
        disk.sync_data()
    }
}

/// The header that a journal is made with.
fn write_first_header(
    file: &dyn Storage,
    vault: [u8; 16],
    checkpoint: u64,
    clean: Option<[u8; 16]>,
    capacity: u64,
) -> io::Result<()> {
    let header = Header { vault, generation: 1, checkpoint, capacity, clean };
    file.write_all_at(&header.encode(), header.place())
}

/// Takes the space and writes it once: later writes then change neither the file's length nor its extents, and a
/// full disk cannot stop them.
fn preallocate(file: &File, length: u64) -> io::Result<()> {
    const BLOCK: usize = 64 * 1024;
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        // Not every file system can; writing takes the space there.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; BLOCK];
    let mut at = 0;
    while at < length {
        let part = usize::try_from(length - at).map_or(BLOCK, |left| left.min(BLOCK));
        std::os::unix::fs::FileExt::write_all_at(file, &zeros[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

fn damaged(detail: String) -> VaultError {
    VaultError::Damaged { what: "its journal", detail }
}

#[cfg(test)]
mod tests;
