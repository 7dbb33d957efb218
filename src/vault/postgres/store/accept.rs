//! Accepting a database that went back to an earlier state: a new epoch begins, so that no one-time token in it is taken for the newest.

use super::{
    super::{Batch, Expected, Postgres, Settings, Write, next_version},
    Store,
    founding::{open_row, read_row, tools},
};
use crate::{
    model::DoubtReason,
    vault::{
        Accepted, Gap, Identity, VaultError,
        codec::{Encoder, Meta, Record},
        name::{Kind, Part},
        open::META_ID,
    },
};

/// How many records are counted at once.
const PAGE: usize = 1000;

impl Store {
    /// Takes the vault as it is after an older copy of its database was brought back, in one commit. Every other worker has to be stopped
    /// before, and started again.
    pub async fn accept(settings: &Settings, identity: &Identity) -> Result<Accepted, VaultError> {
        let missing = |what| VaultError::Damaged { what, detail: "it is missing".to_owned() };
        let postgres = Postgres::connect(settings).await?;
        let row = read_row(&postgres).await?.ok_or_else(|| missing("its keyring"))?;
        let keyring = open_row(&row, identity, settings)?;
        let (namer, cipher) = tools(&keyring);
        let name = namer.name(Kind::Meta, META_ID);
        let found = postgres.read(&[name]).await?.pop().ok_or_else(|| missing(Kind::Meta.word()))?;
        let sealed = found.sealed.ok_or_else(|| missing(Kind::Meta.word()))?;
        let before = Meta::read(&cipher.open(&name, sealed)?.plaintext)?;

        let meta = Meta { epoch: before.epoch.saturating_add(1), reason: DoubtReason::Restored };
        let version = next_version(found.version);
        let sealed = Encoder::new().encode(&meta, |plaintext| cipher.seal(&name, version, plaintext))?;
        let expected = Expected::Version(found.version);
        let write = Write { name, expected, version, sealed: Some(sealed), tombstone: None };
        postgres.enlist().await?;
        postgres.commit(Batch { writes: vec![write], keyring: row.version(), ..Batch::default() }).await?;
        let (records, grants) = (postgres.count().await?.0, count_grants(&postgres).await?);
        Ok(Accepted { gap: Gap::Unknown, records, grants })
    }
}

async fn count_grants(postgres: &Postgres) -> Result<u64, VaultError> {
    let (mut after, before) = Part::ALL.bounds(Kind::Grant);
    let mut grants = 0;
    loop {
        let page = postgres.scan(&after, &before, PAGE).await?;
        grants += page.len() as u64;
        match page.last() {
            Some(last) if page.len() == PAGE => after = last.name.as_bytes().to_vec(),
            _ => return Ok(grants),
        }
    }
}
