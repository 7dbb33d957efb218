//! Who has a secret: the database knows it by its keyed hash.

use tokio_postgres::types::Type;

use super::{
    super::{Parameters, found},
    Store,
};
use crate::{
    model::{Fingerprint, Grant},
    vault::{Stored, VaultError, codec::Record},
};

impl Store {
    /// A record by its id; `None` if there is none.
    pub(in crate::vault) async fn record<R: Record>(&self, id: &[u8]) -> Result<Option<Stored<R>>, VaultError> {
        self.0.record(id).await
    }

    /// The grant, or what is remembered of one that is gone, that has or had the secret of this fingerprint.
    pub async fn holder(&self, fingerprint: Fingerprint) -> Result<Option<Stored<Grant>>, VaultError> {
        let inner = &*self.0;
        let parameters: Parameters<'_> = &[(&&fingerprint.0[..], Type::BYTEA)];
        let rows = inner.postgres.0.query(&inner.postgres.0.sql.questions.holder, parameters).await;
        let rows = rows.map_err(|error| inner.failed(error))?;
        let Some(row) = rows.first() else { return Ok(None) };
        let found = found(row).map_err(|error| inner.failed(error))?;
        inner.open(found).await
    }
}
