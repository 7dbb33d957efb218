//! Bringing in what is asked for.
//!
//! What is read is put in memory only after that, and what was written in between was told of one that was not there. So it is admitted
//! only where nothing was ([`Index::admit_slot`](super::super::index::Index::admit_slot)), and else read once more.

use std::sync::Arc;

use super::{
    super::{
        KeeperError, Shared,
        index::{Before, Entry},
        load::NoSlot,
        slot::Slot,
    },
    Bounded,
};
use crate::{
    lifecycle,
    model::{Grant, GrantId, Organization, OrganizationId},
    vault::{Stored, VaultError},
};

/// How often something is read that others change all the time.
const TRIES: usize = 8;

impl Shared {
    /// An organization in memory, for as long as what is given lives: whoever changes it, or decides by it, keeps that until it is
    /// done. `None` where there is no such organization; also where all are in memory, since nothing has to be kept there then.
    pub(in crate::keeper) async fn present(&self, id: &OrganizationId) -> Result<Option<Arc<Entry>>, KeeperError> {
        let Some(bounded) = &self.bounded else { return Ok(None) };
        match Box::pin(self.bring_in(bounded, id)).await {
            Ok(entry) => Ok(Some(entry)),
            Err(KeeperError::UnknownOrganization) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`present`](Self::present), for several.
    pub(in crate::keeper) async fn present_all(&self, ids: &[&OrganizationId]) -> Result<Vec<Arc<Entry>>, KeeperError> {
        let mut present = Vec::new();
        for id in ids {
            present.extend(self.present(id).await?);
        }
        Ok(present)
    }

    /// The grant's slot; `None` where there is none of that id.
    pub(in crate::keeper) async fn slot_of(&self, id: GrantId) -> Result<Option<Arc<Slot>>, KeeperError> {
        match (self.index.slot(id), &self.bounded) {
            (Some(slot), _) => Ok(Some(slot)),
            (None, None) => Ok(None),
            (None, Some(bounded)) => Box::pin(self.bring_in_grant(bounded, id)).await,
        }
    }

    /// The organization's entry, read if need be.
    pub(in crate::keeper) async fn bring_in(
        &self,
        bounded: &Bounded,
        id: &OrganizationId,
    ) -> Result<Arc<Entry>, KeeperError> {
        let mut is_grant_missing = false;
        for _ in 0..TRIES {
            if let Some(entry) = self.index.find(id) {
                return Ok(entry);
            }
            let before = self.index.before();
            let stored = self.vault.organization(id).await.map_err(|error| self.vault_failed(&error))?;
            let Some(Organization { grant, .. }) = stored.map(|stored| stored.value) else {
                return Err(KeeperError::UnknownOrganization);
            };
            let Some(slot) = Box::pin(self.slot_of(grant)).await? else {
                // It has got another grant in between, or is gone.
                is_grant_missing = true;
                continue;
            };
            is_grant_missing = false;
            self.make_room(bounded);
            if let Some(entry) = self.index.enter(id, &slot, slot.last_fetched(), &before) {
                return Ok(entry);
            }
        }
        Err(if is_grant_missing {
            KeeperError::VaultUnavailable("a grant is missing".into())
        } else {
            KeeperError::Starting
        })
    }

    async fn bring_in_grant(&self, bounded: &Bounded, id: GrantId) -> Result<Option<Arc<Slot>>, KeeperError> {
        let failed = |error: VaultError| self.vault_failed(&error);
        for _ in 0..TRIES {
            let before = self.index.before();
            let (stored, intent) = bounded.store.grant_and_intent(id).await.map_err(failed)?;
            let Some(Stored { value: grant, sequence }) = stored.filter(|stored| !lifecycle::is_grave(&stored.value))
            else {
                return Ok(None);
            };
            let slot = match self.add_as_of(&grant, sequence, intent.as_ref(), Some(&before)) {
                Ok(slot) => slot,
                Err(NoSlot::Outdated) => continue,
                Err(NoSlot::Unconfigured) => {
                    let why = format!("provider {} is not configured", grant.provider);
                    return Err(KeeperError::BadRequest(why.into()));
                }
            };
            if intent.is_some() {
                // Whoever makes that exchange may have died: then it is taken over.
                self.news.opened(id, self.now());
            }
            if let Some(access) = &grant.access {
                // Most likely it is what was asked for.
                let token = self.cacheable(&slot, access, slot.brief().consent_ends);
                self.cache.put(&slot, Arc::new(token), |state| state.brief().sequence == sequence);
            }
            return Ok(Some(slot));
        }
        Err(KeeperError::Starting)
    }

    /// The slot of a grant that was read, or written, since `before`; `None` where it is gone, or of a provider that is not configured.
    /// Where another may have changed it since, and not all are in memory, it is read anew.
    pub(in crate::keeper) async fn take_in(
        &self,
        stored: &Stored<Grant>,
        before: &Before,
    ) -> Result<Option<Arc<Slot>>, KeeperError> {
        let slot = match self.add_as_of(&stored.value, stored.sequence, None, Some(before)) {
            Ok(slot) => slot,
            Err(NoSlot::Unconfigured) => return Ok(None),
            Err(NoSlot::Outdated) => return Box::pin(self.slot_of(stored.value.id)).await,
        };
        if slot.brief().sequence < stored.sequence {
            self.learn(&slot, stored).await;
        }
        Ok(Some(slot))
    }

    /// A grant's record was changed, and its slot does not follow yet: whoever has read it and is about to make one reads it again.
    pub(in crate::keeper) fn note_grant(&self, id: GrantId) {
        if self.is_bounded() {
            self.index.note_grant(id);
        }
    }

    /// The same of an organization and its entry.
    pub(in crate::keeper) fn note_organization(&self, id: &OrganizationId) {
        if self.is_bounded() {
            self.index.note_organization(id);
        }
    }
}
