//! Taking a vault as it is after its database went back in time, or after the one that it was moved to was lost.

use super::{
    super::{Postgres, Settings, cell},
    Store,
    founding::{read_keyring, tools},
};
use crate::{
    model::DoubtReason,
    vault::{
        Accepted, Gap, Identity, VaultError,
        codec::{Encoder, Meta, Record},
        name::Kind,
        open::META_ID,
    },
};

impl Store {
    /// Begins a new epoch, in which every one-time grant is in doubt, and takes off the mark of a move to elsewhere. No worker may run:
    /// one that does commits no more.
    pub async fn accept(settings: &Settings, identity: &Identity) -> Result<Accepted, VaultError> {
        let postgres = Postgres::connect(settings).await?;
        let keyring = read_keyring(&postgres, settings, identity).await?;
        let (namer, cipher) = tools(&keyring);
        let name = namer.name(Kind::Meta, META_ID);
        let missing = || VaultError::Damaged { what: Kind::Meta.word(), detail: "it is missing".to_owned() };
        let found = postgres.read(&[name]).await?.pop().ok_or_else(missing)?;
        let before = Meta::read(&cipher.open(&name, found.sealed.ok_or_else(missing)?)?.plaintext)?;
        let (version, meta) =
            (found.version + 1, Meta { epoch: before.epoch.saturating_add(1), reason: DoubtReason::Restored });
        let sealed = Encoder::new().encode(&meta, |plaintext| cipher.seal(&name, version, plaintext))?;
        postgres.accept(&name, version, &sealed).await?;
        let rows = postgres.0.query(&postgres.0.sql.counts, &[]).await?;
        let row = rows.first().ok_or_else(missing)?;
        let (records, grants): (i64, i64) = (cell(row, 0)?, cell(row, 1)?);
        Ok(Accepted { gap: Gap::Unknown, records: records.unsigned_abs(), grants: grants.unsigned_abs() })
    }
}
