//! What operators do: list, show, remove, pause, status.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    Keeper, KeeperError, Shared,
    blocking::blocking,
    slot::{Brief, Slot},
};
use crate::{
    lifecycle,
    model::{Credential, Grant, Labels, OrganizationId, ProviderName, State, Timestamp},
    provider::ProviderError,
    task,
    vault::Change,
    wire,
};

/// What an enrolment did.
#[derive(Debug)]
pub struct Enrolled {
    /// Whether the organization was not there before.
    pub created: bool,
    /// Whether anything was changed at all; false where the same secret was enrolled again.
    pub changed: bool,
    /// The organization as it is now.
    pub organization: wire::Organization,
}

/// Which organizations a list is about; every field that is set must fit.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// `active`, `failing`, `in_doubt`, `lost` or `paused`.
    pub state: Option<String>,
    /// The provider.
    pub provider: Option<ProviderName>,
    /// The consent ends within this time, or has ended.
    pub expires_within: Option<Duration>,
    /// No token of it was fetched for this long, or never.
    pub unused_for: Option<Duration>,
    /// Labels it carries.
    pub labels: Labels,
    /// How many at most: 1 to 1000.
    pub limit: usize,
    /// Only those after what the page before gave as its `next_cursor`: the id of an organization; or, where not all are in memory, a
    /// place that looks like one.
    pub after: Option<OrganizationId>,
}

/// The longest page of a list.
const MAX_PAGE: usize = 1000;

/// Which organizations a caller may see.
pub type Scope<'a> = &'a (dyn Fn(&OrganizationId) -> bool + Send + Sync);

impl Keeper {
    /// One organization as operators see it.
    pub async fn show(&self, organization: &OrganizationId) -> Result<wire::Organization, KeeperError> {
        self.shared.view(organization).await
    }

    /// Organizations a page at a time: in order of their ids, or in an order of the vault's own where not all are in memory.
    pub async fn list(&self, filter: Filter, scope: Scope<'_>) -> Result<wire::OrganizationPage, KeeperError> {
        let shared = &self.shared;
        if !shared.is_loaded() {
            return Err(KeeperError::Starting);
        }
        let limit = filter.limit.clamp(1, MAX_PAGE);
        if let Some(bounded) = &shared.bounded {
            return Box::pin(shared.list_read(bounded, &filter, limit, scope)).await;
        }
        let sorter = Arc::clone(shared);
        let entries = blocking(move || sorter.index.sorted()).await;
        let entries = entries.map_err(|_| KeeperError::Starting)?;
        let start = filter.after.as_ref().map_or(0, |after| entries.partition_point(|entry| entry.id <= *after));
        let mut organizations = Vec::new();
        let mut looked_at = 0_usize;
        for entry in &entries[start..] {
            looked_at += 1;
            if looked_at.is_multiple_of(1000) {
                tokio::task::yield_now().await;
            }
            let (brief, last_fetched) = (entry.slot.brief(), entry.last_fetched());
            if !scope(&entry.id) || !shared.fits(entry.slot.provider, &brief, last_fetched, &filter) {
                continue;
            }
            let found = match shared.view_of(entry).await {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(_) => shared.unreadable(entry),
            };
            if !has_labels(&found.labels, &filter) {
                continue;
            }
            organizations.push(found);
            if organizations.len() > limit {
                break;
            }
        }
        let more = organizations.len() > limit;
        organizations.truncate(limit);
        let next_cursor = organizations.last().filter(|_| more).map(|last| last.organization.to_string());
        Ok(wire::OrganizationPage { organizations, next_cursor })
    }

    /// Forgets an organization, and its grant with the last one; `revoke` then revokes the refresh token first,
    /// unless another living grant of the same subject would be harmed by that.
    pub async fn remove(&self, organization: &OrganizationId, revoke: bool) -> Result<(), KeeperError> {
        let shared = &self.shared;
        let _admitted = shared.admit()?;
        let _organization = shared.changing(organization).await;
        let _here = shared.present(organization).await?;
        let left = shared.leave(organization, None).await?.ok_or(KeeperError::UnknownOrganization)?;
        let last = left.grant.organizations.is_empty();
        if revoke && last {
            shared.revoke(&left.slot, &left.grant).await?;
        }
        let (_, expect) = shared.organization_to_change(organization).await?;
        let mut changes = left.changes();
        changes.extend([Change::DeleteOrganization(organization.clone()), expect]);
        if shared.links.is_some() {
            // Who was invited before it was removed is not invited any more.
            changes.push(shared.links_revoked(organization).await?);
        }
        let commit = shared.vault.commit_held(&[left.hold()], changes).await;
        let sequence = commit.map_err(|error| shared.vault_failed(&error))?;
        shared.note_organization(organization);
        shared.index.remove(organization);
        if last {
            shared.forget(&left.slot, &left.grant, left.grave.as_ref());
        } else {
            shared.publish(&left.slot, &left.grant, sequence, left.intent.as_ref(), &[]);
        }
        Ok(())
    }

    /// Pauses or resumes the organization's grant, for every organization that it serves.
    pub async fn set_paused(
        &self,
        organization: &OrganizationId,
        paused: bool,
    ) -> Result<wire::Organization, KeeperError> {
        let shared = &self.shared;
        let _admitted = shared.admit()?;
        let entry = shared.find(organization).await?;
        let done = shared.set_paused(&entry.slot, paused).await;
        match shared.successor(&entry, &done).await {
            Some(entry) => shared.set_paused(&entry.slot, paused).await?,
            None => done?,
        }
        shared.view(organization).await
    }

    /// The net below the timers; gives back how many grants it had to catch. Has to be called within a Tokio runtime.
    pub fn sweep(&self) -> usize {
        if let Ok(token) = self.shared.admit() {
            let shared = Arc::clone(&self.shared);
            task::spawn(async move {
                shared.reconsider_doubts().await;
                shared.sweep_for_all().await;
                if let Some(bounded) = &shared.bounded {
                    // How many grants a provider has decides how many refusals are many.
                    let _ = shared.counted(bounded).await;
                }
                drop(token);
            });
        }
        if let Some(reason) = self.shared.vault.poisoned() {
            self.shared.outbox.vault_failing(&reason);
        }
        let caught = self.shared.sweep();
        if caught > 0 {
            tracing::warn!(caught, "the sweep found due grants without a timer");
        }
        caught
    }
}

impl Shared {
    /// Pauses or resumes a grant.
    async fn set_paused(&self, slot: &Arc<Slot>, paused: bool) -> Result<(), KeeperError> {
        let held = self.hold(slot).await?;
        let mut grant = self.read(slot).await?.value;
        if lifecycle::paused(&mut grant, paused) {
            let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
            let changes = vec![Change::PutGrant(Box::new(grant.clone()))];
            let commit = self.vault.commit_held(&[&held.hold], changes).await;
            let sequence = commit.map_err(|error| self.vault_failed(&error))?;
            self.publish(slot, &grant, sequence, intent.as_ref(), &[]);
        }
        Ok(())
    }

    /// Whether it fits by all but its labels.
    pub(super) fn fits(&self, provider: u16, brief: &Brief, last_fetched: Option<Timestamp>, filter: &Filter) -> bool {
        let state = if brief.paused { "paused" } else { brief.state.word() };
        let wall = self.now().wall;
        filter.state.as_deref().is_none_or(|wanted| wanted == state)
            && filter.provider.as_ref().is_none_or(|wanted| *wanted == self.lanes[usize::from(provider)].name)
            && filter.expires_within.is_none_or(|within| brief.consent_ends.is_some_and(|end| end <= wall + within))
            && filter.unused_for.is_none_or(|unused| last_fetched.is_none_or(|fetched| fetched + unused <= wall))
    }

    /// Revokes a consent that nothing else needs.
    async fn revoke(&self, slot: &Slot, grant: &Grant) -> Result<(), KeeperError> {
        if !matches!(grant.credential, Credential::RefreshToken(_)) || grant.state == State::Lost {
            return Ok(());
        }
        // It is counted as living itself, since it is not forgotten yet.
        if self.is_someones_else(slot, grant).await {
            tracing::warn!(
                provider = grant.provider.as_str(),
                "not revoked: another grant is, or may be, of the same person and would end with it"
            );
            return Ok(());
        }
        let endpoint = &self.lane(slot).endpoint;
        match endpoint.revoke(grant.credential.secret(), grant.client.as_ref()).await {
            Ok(()) => Ok(()),
            Err(ProviderError::NotOffered { provider, what }) => {
                Err(KeeperError::BadRequest(format!("provider {provider} has no {what}; remove without revoke").into()))
            }
            Err(error) => {
                tracing::warn!(provider = grant.provider.as_str(), error = %error, "a consent could not be revoked; nothing was removed");
                Err(KeeperError::ProviderUnavailable {
                    reason: "provider_unavailable",
                    retry_after: Duration::from_secs(5),
                })
            }
        }
    }

    /// Their grants are gone from the vault by what another process did: the slots follow.
    pub(super) fn forget_slots(&self, slots: &[Arc<Slot>]) {
        for slot in slots {
            let brief = slot.brief();
            {
                let mut state = slot.lock();
                if state.is_removed() {
                    continue;
                }
                state.remove();
                self.cache.forget(&mut state);
            }
            self.slot_is_gone(slot, brief);
        }
    }

    /// The grant is gone from the vault: its slot follows.
    pub(super) fn forget(&self, slot: &Arc<Slot>, grant: &Grant, grave: Option<&Grant>) {
        if let Some(grave) = grave {
            self.bury(grave);
        }
        let brief = slot.brief();
        {
            let mut state = slot.lock();
            state.remove();
            self.cache.forget(&mut state);
        }
        self.slot_is_gone(slot, brief);
        self.index.fingerprints.forget(grant);
    }

    fn slot_is_gone(&self, slot: &Arc<Slot>, brief: Brief) {
        self.note_grant(slot.id);
        self.timers.set(slot, |_| None);
        self.recount_subject(slot.provider, Some(brief), None);
        if !self.is_bounded() {
            self.lane(slot).grants.fetch_sub(1, Ordering::Relaxed);
        }
        self.index.remove_slot(slot);
    }

    /// Remembers the spent tokens of a grant that is gone, where the database does not do that.
    pub(super) fn bury(&self, grave: &Grant) {
        if !self.is_bounded() {
            self.index.bury(grave);
        }
    }
}

/// Whether it carries the labels that are asked for.
pub(super) fn has_labels(labels: &Labels, filter: &Filter) -> bool {
    filter.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
}
