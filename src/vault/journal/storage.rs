//! Where the journal's bytes are: a file, or in a simulation a disk that forgets what was not synced.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

use rustix::fs::{FallocateFlags, fallocate};

/// A file of a length that seldom changes, which can be read and written anywhere, and brought to the disk.
pub(in crate::vault) trait Storage: fmt::Debug + Send {
    /// Fills `bytes` from `offset` on, or fails.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` from `offset` on.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when everything that was written is on the disk. After an error nobody knows what is.
    fn sync_data(&self) -> io::Result<()>;

    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Makes it `length` bytes long, zeros from `from` on, and brings that to the disk.
    fn extend(&self, _from: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Storage for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn extend(&self, from: u64, length: u64) -> io::Result<()> {
        preallocate(self, from, length)?;
        self.sync_all()
    }
}

/// Takes the space and writes it once: later writes then change neither the file's length nor its extents, and a
/// full disk cannot stop them.
pub(super) fn preallocate(file: &File, from: u64, length: u64) -> io::Result<()> {
    const BLOCK: usize = 64 * 1024;
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        // Not every file system can; writing takes the space there.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; BLOCK];
    let mut at = from;
    while at < length {
        let part = usize::try_from(length - at).map_or(BLOCK, |left| left.min(BLOCK));
        FileExt::write_all_at(file, &zeros[..part], at)?;
        at += part as u64;
    }
    Ok(())
}
