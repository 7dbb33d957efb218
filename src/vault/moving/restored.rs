//! A backup that comes back into a database: unpacked into a folder among the temporary files, where all of it is opened and counted, and
//! from there on like a vault that is moved.

use std::io::Read;

use super::{End, RECORDS_AT_ONCE, database, folder, new_id};
use crate::{
    config::VaultConfig,
    vault::{Restored, Vault, VaultError, postgres::Settings},
};

/// Where it comes from, and by which command.
const FROM: (&str, &str) = ("a backup", "consentry restore");

impl Vault {
    /// Brings a backup back as the vault of a database in which none is yet: all of it durably, or one that nobody can use. What an earlier
    /// try has left is removed. `read` is told of every byte that was read. Blocks in parts.
    pub async fn restore_into_database(
        to: End<'_>,
        input: impl Read,
        read: &mut dyn FnMut(u64),
    ) -> Result<Restored, VaultError> {
        let postgres = to.config.postgres.as_ref().ok_or_else(|| VaultError::Missing { path: to.config.place() })?;
        let mut site = database::Site::open(&Settings::of(postgres)?).await?;
        if let Some(id) = site.coming(FROM.0) {
            site.take_away(id).await?;
        }
        // Before anything is read.
        site.is_free().await?;
        let unpacked = tempfile::tempdir().map_err(|error| VaultError::io(&std::env::temp_dir(), &error))?;
        let config = VaultConfig { path: unpacked.path().join("vault"), postgres: None, ..to.config.clone() };
        let restored = Self::restore(&config, to.identity, input, read)?;
        let here = folder::Here::open(End { config: &config, identity: to.identity })?;

        let id = new_id()?;
        site.announce(id, FROM.0).await?;
        let mut there = database::There::begin(site, to, id, FROM, here.keyring()).await?;
        let mut after = None;
        loop {
            let records = here.next(after.as_ref(), RECORDS_AT_ONCE)?;
            let Some((last, _)) = records.last() else { break };
            after = Some(*last);
            there.put(&records).await?;
        }
        there.compare(here.mark()).await?;
        there.complete().await?;
        Ok(restored)
    }
}
