//! The right to change a grant: in this process by its record's lock, and among all that share the vault by a claim.

use std::{sync::Arc, time::Duration};

use super::{
    KeeperError, Shared,
    slot::{Record, Slot},
};
use crate::{
    model::{Grant, GrantId, Organization, OrganizationId},
    vault::{Change, Expectation, Hold, Stored, VaultError},
};

/// How long a change waits for what another process, or another change here, does with the grant: an exchange is over by then, as
/// a rule. Whoever waited is told to come back.
const PATIENCE: Duration = Duration::from_secs(10);

/// The right to change a stored grant; ends when this is dropped. Whoever has it reads the grant, decides, commits under the hold, and
/// publishes.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) hold: Hold,
    _record: Record,
}

impl Held {
    pub(super) const fn new(hold: Hold, record: Record) -> Self {
        Self { hold, _record: record }
    }
}

impl Shared {
    /// Takes the right to change a grant. It is waited for without end where this process alone has the vault, since whoever has it
    /// lets go of it soon.
    pub(super) async fn hold(&self, slot: &Arc<Slot>) -> Result<Held, KeeperError> {
        let record = self.record(slot).await?;
        let hold = self.vault.hold(slot.id, PATIENCE).await.map_err(|error| self.vault_failed(&error))?;
        Ok(Held::new(hold, record))
    }

    /// The record's lock alone. Where the vault is shared, whoever has it may have to wait for a database that is away.
    pub(super) async fn record(&self, slot: &Arc<Slot>) -> Result<Record, KeeperError> {
        if !self.vault.is_shared() {
            return Ok(slot.record().await);
        }
        let waited = tokio::time::timeout(PATIENCE, slot.record()).await;
        waited.map_err(|_| KeeperError::VaultUnavailable(VaultError::Held.to_string()))
    }

    /// The claim of a grant that has no slot, or whose record is locked already.
    pub(super) async fn claim(&self, id: GrantId) -> Result<Hold, KeeperError> {
        self.vault.hold(id, PATIENCE).await.map_err(|error| self.vault_failed(&error))
    }

    /// The stored grant behind a slot, of which `slot` learns what another process has made of it. Where this process alone has the vault,
    /// another version than the one written last is an error of the engine, and never used.
    pub(super) async fn read(&self, slot: &Arc<Slot>) -> Result<Stored<Grant>, KeeperError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let stored = self.vault.grant(slot.id).await.map_err(|error| self.vault_failed(&error))?;
            let is_shared = self.vault.is_shared();
            let Some(stored) = stored else {
                if is_shared {
                    self.forget_slots(&[Arc::clone(slot)]);
                }
                return Err(KeeperError::UnknownOrganization);
            };
            let expected = slot.brief().sequence;
            if stored.sequence == expected {
                return Ok(stored);
            }
            if is_shared && stored.sequence > expected {
                Box::pin(self.learn(slot, &stored)).await;
                return Ok(stored);
            }
            // What another process has written may have come as news since this was read.
            if is_shared && tries == 1 {
                continue;
            }
            self.metrics.vault_failed();
            tracing::error!(
                vault.sequence = stored.sequence,
                vault.expected = expected,
                "the vault gave back another version of a record than the one written last; it is not used"
            );
            return Err(KeeperError::VaultUnavailable("it gave back an outdated record".into()));
        }
    }

    /// The organization's record, and what has to hold of it when it is written anew: that nobody else has changed it since. Where another
    /// process has given it another grant than is known here, that is learned, and the change is to be tried again.
    pub(super) async fn organization_to_change(
        &self,
        id: &OrganizationId,
    ) -> Result<(Option<Organization>, Change), KeeperError> {
        let stored = self.vault.organization(id).await.map_err(|error| self.vault_failed(&error))?;
        let sequence = stored.as_ref().map(|stored| stored.sequence);
        let expect = Change::Expect(Expectation::Organization(id.clone(), sequence));
        let stored = stored.map(|stored| stored.value);
        if self.vault.is_shared() {
            // Whoever asks keeps it in memory, if it was there when that was looked at.
            let known = self.index.find(id).map(|entry| entry.slot.id);
            if known != stored.as_ref().map(|stored| stored.grant) {
                Box::pin(self.learn_organization(id, stored.as_ref())).await;
                return Err(self.vault_failed(&VaultError::Conflict));
            }
        }
        Ok((stored, expect))
    }
}
