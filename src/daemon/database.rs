//! Opening a vault that is in a database.

use std::time::Duration;

use crate::{
    clock::SharedClock,
    config::PostgresConfig,
    metrics::Metrics,
    vault::{
        Identity, Vault, VaultError,
        postgres::{Settings, Store},
    },
};

/// How often a database that does not answer is tried, and how long is waited in between: as long as a failover may take. Whoever
/// supervises the worker then starts it again.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(2);

/// Opens it, and makes it where there is none yet. A database that is away for a moment is waited for.
pub(super) async fn open(
    config: &PostgresConfig,
    recipients: &[String],
    identity: &Identity,
    metrics: &Metrics,
    clock: &SharedClock,
) -> Result<Vault, VaultError> {
    if config.allow_asynchronous {
        tracing::warn!(
            event = "vault.asynchronous",
            "a database is taken that may lose what it confirmed: vault.postgres.allow_asynchronous is true"
        );
    }
    let mut tried = 0;
    loop {
        tried += 1;
        // Each time anew: the file that says where the database is may have come, or changed.
        let settings = Settings::of(config)?;
        match Store::open(&settings, identity, recipients, clock.clone(), metrics.clone()).await {
            Err(error @ VaultError::Away { .. }) if tried < TRIES => {
                tracing::warn!(%error, "the vault's database is waited for");
                tokio::time::sleep(PAUSE).await;
            }
            opened => return opened.map(Vault::from),
        }
    }
}
