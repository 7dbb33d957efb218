//! The folder that backups go to by themselves. Their names tell when they were made, and nothing else is remembered.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::{civil::DateTime, tz::TimeZone};
use tokio::runtime::Handle as Runtime;

use super::{
    super::{Vault, VaultError, folder},
    BackedUp,
};
use crate::{model::Timestamp, task};

/// What is around the time in a backup's name: `consentry-20261122T023000Z.age`.
const PREFIX: &str = "consentry-";
const SUFFIX: &str = ".age";
/// How the time is written, in UTC.
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// A backup that is not complete yet; one that was left behind is replaced by the next.
const UNFINISHED: &str = ".consentry-backup.tmp";
/// How many names in the folder are looked at.
const MAX_LISTED: usize = 100_000;

/// The scheduled backups in one folder, which holds those of one vault alone.
#[derive(Clone, Debug)]
pub struct ScheduledBackups {
    folder: PathBuf,
    keep: usize,
}

impl Vault {
    /// When the newest scheduled backup was begun that any of the workers has made that share the vault, in whichever folder; `None` where
    /// there is none, or nobody else has the vault. Blocks.
    pub fn last_scheduled_backup(&self) -> Result<Option<Timestamp>, VaultError> {
        self.store().map_or(Ok(None), |store| task::block_on(&Runtime::current(), store.last_scheduled_backup()))
    }

    /// Lets the other workers know of a scheduled backup, so that none of them makes it, too. Blocks.
    pub fn made_scheduled_backup(&self, at: Timestamp) -> Result<(), VaultError> {
        self.store().map_or(Ok(()), |store| task::block_on(&Runtime::current(), store.made_scheduled_backup(at)))
    }
}

impl ScheduledBackups {
    /// The backups in `folder`, of which the newest `keep` stay.
    pub const fn new(folder: PathBuf, keep: usize) -> Self {
        Self { folder, keep }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// When the newest of them was begun; `None` where there is none yet. One from after `now` does not count: a clock
    /// that was wrong once must not keep backups from being made until that time.
    pub fn newest(&self, now: Timestamp) -> Result<Option<Timestamp>, VaultError> {
        Ok(self.list()?.into_iter().map(|(at, _)| at).filter(|at| *at <= now).max())
    }

    /// Writes a backup: complete and durable under its name, or not at all. Then removes those that are older than the newest ones.
    /// Given up as soon as `is_stopping` says so. Blocks.
    pub fn write(
        &self,
        vault: &Vault,
        now: Timestamp,
        is_stopping: &dyn Fn() -> bool,
    ) -> Result<(PathBuf, BackedUp), VaultError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| VaultError::io(&path, &error)
        };
        if let Err(error) = DirBuilder::new().mode(0o700).create(&self.folder)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(failed(&self.folder)(error));
        }
        let (unfinished, path) = (self.folder.join(UNFINISHED), self.folder.join(name(now)));
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&unfinished)(error)),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished);
        let file = file.map_err(failed(&unfinished))?;
        let written = vault.backup(now, Stoppable { file: &file, is_stopping }).and_then(|written| {
            file.sync_all()
                .and_then(|()| fs::rename(&unfinished, &path))
                .and_then(|()| folder::sync_folder(&self.folder))
                .map_err(failed(&path))?;
            Ok(written)
        });
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        let written = written?;
        if let Err(error) = self.remove_old() {
            tracing::warn!(%error, "older backups could not be removed");
        }
        Ok((path, written))
    }

    fn remove_old(&self) -> Result<(), VaultError> {
        let mut all = self.list()?;
        all.sort();
        let old = all.len().saturating_sub(self.keep);
        for (_, path) in all.into_iter().take(old) {
            fs::remove_file(&path).map_err(|error| VaultError::io(&path, &error))?;
        }
        Ok(())
    }

    /// Every complete backup in the folder; none where the folder is not there.
    fn list(&self) -> Result<Vec<(Timestamp, PathBuf)>, VaultError> {
        let failed = |error: io::Error| VaultError::io(&self.folder, &error);
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries.take(MAX_LISTED) {
            let entry = entry.map_err(failed)?;
            found.extend(entry.file_name().to_str().and_then(made_at).map(|at| (at, entry.path())));
        }
        Ok(found)
    }
}

/// A file that takes no more once the worker stops.
struct Stoppable<'a> {
    file: &'a File,
    is_stopping: &'a dyn Fn() -> bool,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.is_stopping)() {
            return Err(io::Error::other("the worker stops"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn name(at: Timestamp) -> String {
    let time = jiff::Timestamp::from_second(at.as_seconds()).unwrap_or_default().to_zoned(TimeZone::UTC);
    format!("{PREFIX}{}{SUFFIX}", time.strftime(TIME))
}

fn made_at(name: &str) -> Option<Timestamp> {
    let time = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let time = DateTime::strptime(TIME, time).ok()?.to_zoned(TimeZone::UTC).ok()?;
    let at = Timestamp::from_millis(time.timestamp().as_millisecond());
    (self::name(at) == name).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_time_and_other_names_tell_none() {
        let at: Timestamp = "2026-11-22T02:30:00Z".parse().unwrap();
        assert_eq!(name(at), "consentry-20261122T023000Z.age");
        assert_eq!(made_at(&name(at)), Some(at));
        for other in ["consentry-20261122T023000Z.age.tmp", "consentry-2026112T023000Z.age", "notes.age", UNFINISHED] {
            assert_eq!(made_at(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_counts_unless_it_is_from_the_future() {
        let temporary = tempfile::tempdir().unwrap();
        let backups = ScheduledBackups::new(temporary.path().join("none"), 2);
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        assert_eq!(backups.newest(now).unwrap(), None);
        let backups = ScheduledBackups::new(temporary.path().to_owned(), 2);
        for name in
            ["consentry-20261121T023000Z.age", "consentry-20261122T023000Z.age", "consentry-20991122T023000Z.age"]
        {
            fs::write(temporary.path().join(name), "").unwrap();
        }
        assert_eq!(backups.newest(now).unwrap(), Some("2026-11-22T02:30:00Z".parse().unwrap()));
    }
}
