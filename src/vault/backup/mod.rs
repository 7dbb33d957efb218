//! A copy of the vault, taken while it is used: exactly its state after one commit, encrypted by age to the vault's
//! recipients.
//!
//! Reading every record takes long, and commits go on meanwhile. So the writer notes where it stands, and from then on
//! also hands every commit to a [`Tee`]; every record is read, in whatever state it is by then; at the end the writer
//! says once more where it stands. Whoever applies to the records all commits in between, in their order, has the state
//! after the last of them: a commit holds whole records, so that it does not matter whether one that was read was
//! older or newer.
//!
//! A vault in a database has no one who knows the order of all commits. There the records are read page by page, and then what was written
//! meanwhile, once more and once more until it is read in one go (`postgres/store/backup`). The file is the same.
//!
//! The file is an age file in the binary form (`age-encryption.org/v1`, X25519 recipients): what follows is inside of
//! it, so that a file that was altered or cut short is noticed. All numbers are little endian.
//!
//! ```text
//! offset  bytes  what
//!      0      8  "cnstryBK"
//!      8      4  format, 1
//!     12      8  when it was begun, in milliseconds since the Unix epoch
//!     20      8  the last commit before it was begun; of a vault in a database a number above those of all its commits
//!     28      8  how many records there were then
//!     36         parts
//! ```
//!
//! A **part** is its kind (1 byte), a length n (4 bytes) and n bytes. Parts come in this order:
//!
//! | kind | how many | its bytes |
//! | --- | --- | --- |
//! | 1 | any number | a record: its name (17 bytes), and the sealed record (`cipher`). Names rise from part to part |
//! | 2 | any number | a commit: its sequence number (8 bytes), one above the last, and a frame's payload (`journal`) |
//! | 3 | one | the keyring: what age encrypts in `keyring.age` (`keyring`), with every data key as of the end |
//! | 4 | one, the last | the mark (`engine`) that the vault has with those records after those commits |

mod format;
mod scheduled;
mod tee;

use std::{
    io::{Read, Write},
    sync::{Arc, PoisonError},
};

pub use self::scheduled::ScheduledBackups;
use self::tee::MAX_TEE_BYTES;
pub(super) use self::{
    format::{Header, Input, Output, Part},
    tee::Tee,
};
use super::{
    Vault, VaultError,
    engine::Mark,
    keyring::{self, Keyring},
    name::Kind,
    writer::Writer,
};
use crate::model::Timestamp;

/// A backup that was written to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackedUp {
    /// Records in it.
    pub records: u64,
    /// The commit whose state it is.
    pub sequence: u64,
}

impl Vault {
    /// Writes a backup to `output`, and returns when the last byte was taken. Blocks for as long as that takes, and holds
    /// up no commit. After an error what was written is worth nothing.
    ///
    /// One can be made at a time. One that takes so long that more is committed meanwhile than is kept for it fails.
    pub fn backup(&self, begun_at: Timestamp, output: impl Write) -> Result<BackedUp, VaultError> {
        if let Some(store) = self.store() {
            return store.backup(begun_at, output);
        }
        self.backup_within(MAX_TEE_BYTES, begun_at, output)
    }

    /// With room for `tee_bytes` of commits.
    pub(super) fn backup_within(
        &self,
        tee_bytes: usize,
        begun_at: Timestamp,
        output: impl Write,
    ) -> Result<BackedUp, VaultError> {
        let tee = Arc::new(Tee::new(tee_bytes));
        let teed = Arc::clone(&tee);
        let (start, recipients) = self.ask(move |writer| writer.begin_backup(&teed))?;
        let header = Header { begun_at, sequence: start.applied, records: start.counts.iter().sum() };
        let mut output = Output::begin(&keyring::parse_own(&recipients)?, header, output)?;
        self.copy_records(&tee, &mut output)?;

        let teed = Arc::clone(&tee);
        let (end, keys) = self.ask(move |writer| writer.end_backup(&teed))?;
        for batch in tee.finish(&end)? {
            output.commit(&batch)?;
        }
        output.keyring(&keys)?;
        output.end(&end)?;
        Ok(BackedUp { records: end.records(), sequence: end.applied })
    }

    fn copy_records(&self, tee: &Tee, output: &mut Output<impl Write>) -> Result<(), VaultError> {
        // Held no longer than the scan takes: closing waits for it.
        let opened = self.shared()?.opened.load_full().ok_or(VaultError::Closed)?;
        for kind in Kind::ALL {
            opened.engine.scan(kind, &mut |name, sealed| {
                tee.seen(name, &sealed)?;
                output.record(name, &sealed)
            })?;
        }
        Ok(())
    }
}

impl Writer {
    /// From now on every commit goes to `tee` too, for as long as somebody has it. Gives the mark before the first of
    /// them, and who is to be able to open the backup.
    fn begin_backup(&mut self, tee: &Arc<Tee>) -> Result<(Mark, Vec<String>), VaultError> {
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        if self.tee.strong_count() > 0 {
            return Err(VaultError::BackupUnderWay);
        }
        // What is read of the engine from now on is as it is at this commit, or as the tee has it.
        self.bring_up()?;
        self.tee = Arc::downgrade(tee);
        let keyring = self.shared.keyring.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((self.mark, keyring.recipients.clone()))
    }

    /// Ends what [`begin_backup`](Self::begin_backup) began, between two commits: the mark after the last that the tee
    /// has, and the keys of that moment.
    fn end_backup(&mut self, tee: &Arc<Tee>) -> Result<(Mark, zeroize::Zeroizing<Vec<u8>>), VaultError> {
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        debug_assert!(self.tee.ptr_eq(&Arc::downgrade(tee)), "one backup is made at a time");
        self.tee = std::sync::Weak::new();
        let keyring = self.shared.keyring.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((self.mark, keyring.encode()?))
    }
}

/// The keyring in a backup's third kind of part.
pub(super) fn keyring_of(plaintext: &[u8]) -> Result<Keyring, VaultError> {
    let read = Keyring::decode(plaintext).and_then(|keyring| keyring::parse_own(&keyring.recipients).map(|_| keyring));
    read.map_err(|error| VaultError::BackupUnusable { detail: error.to_string() })
}

/// Reads from `input` and tells how much.
pub(super) struct Counted<'a, R> {
    /// Where bytes come from.
    pub(super) input: R,
    /// Is told of each number of bytes that were read.
    pub(super) read: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        (self.read)(count as u64);
        Ok(count)
    }
}
