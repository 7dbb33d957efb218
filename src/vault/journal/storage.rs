//! Where the journal's bytes are: a file, or in a simulation a disk that forgets what was not synced.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

/// A file of a fixed length that can be read and written anywhere, and brought to the disk.
pub(in crate::vault) trait Storage: fmt::Debug + Send {
    /// Fills `bytes` from `offset` on, or fails.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` from `offset` on.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when everything that was written is on the disk. After an error nobody knows what is.
    fn sync_data(&self) -> io::Result<()>;

    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
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
}
