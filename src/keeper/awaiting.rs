//! Consents that have not taken their place: finished where that needs nobody, confirmed or declined by an operator, and
//! forgotten in the end.

use std::sync::Arc;

use super::{
    ConsentError, Keeper, KeeperError, Scope, Shared, enrol::gone, resolve::under_way, slot::Slot, swap::Unsettled,
};
use crate::{
    config::MAX_LINK_LIFETIME,
    lifecycle::AWAITING_KEPT,
    model::{AwaitReason, Awaiting, GrantId, OrganizationId, Timestamp},
    vault::{Change, VaultError},
    wire,
};

/// How many consents may wait at once: each came by a link that an operator made, and goes within [`AWAITING_KEPT`].
pub(super) const MAX_AWAITING: usize = 10_000;
/// How many of them a status names.
const MAX_NAMED: usize = 100;

impl Keeper {
    /// An operator confirms that the consent which waits for the organization is its own: it is swapped in. The newest
    /// where several wait; the others go by themselves then.
    pub async fn confirm(&self, organization: &OrganizationId) -> Result<wire::Organization, KeeperError> {
        let shared = &self.shared;
        let _admitted = shared.admit()?;
        let awaiting = shared.newest_awaiting(organization)?;
        let _organizations = shared.changing_all(&organizations_of(&awaiting)).await;
        // Somebody may have confirmed or declined it while this waited.
        let awaiting = shared.newest_awaiting(organization)?;
        let _here = shared.present_all(&organizations_of(&awaiting)).await?;
        shared.confirm(&awaiting, organization).await?;
        shared.view(organization).await
    }

    /// An operator says that the consent which waits for the organization is not its own: it is forgotten, for every
    /// organization that it waits for.
    pub async fn decline(&self, organization: &OrganizationId) -> Result<(), KeeperError> {
        let shared = &self.shared;
        let _admitted = shared.admit()?;
        let awaiting = shared.newest_awaiting(organization)?;
        let _organizations = shared.changing_all(&organizations_of(&awaiting)).await;
        let awaiting = shared.newest_awaiting(organization)?;
        let slot = shared.slot_of(awaiting.grant).await?.ok_or(KeeperError::Starting)?;
        shared.withdraw(&slot, &awaiting).await
    }
}

impl Shared {
    fn newest_awaiting(&self, organization: &OrganizationId) -> Result<Awaiting, KeeperError> {
        let awaiting = self.awaiting();
        let names_it = |awaiting: &&Awaiting| awaiting.places.iter().any(|place| place.organization == *organization);
        let newest = awaiting.values().filter(names_it).max_by_key(|awaiting| awaiting.since).cloned();
        newest.ok_or_else(|| {
            KeeperError::BadRequest("no consent waits for this organization; nothing was changed".into())
        })
    }

    async fn confirm(&self, awaiting: &Awaiting, organization: &OrganizationId) -> Result<(), KeeperError> {
        if awaiting.reason == AwaitReason::Unfinished {
            // It may be that nothing but an answer of the provider is missing, and that says more than an operator can.
            let settled = self.settle(awaiting.grant, None).await.map_err(for_operator)?;
            if settled.connected.contains(organization) {
                return Ok(());
            }
        }
        let place = awaiting.places.iter().find(|place| place.organization == *organization);
        let has = self.index.find(organization).map(|entry| entry.slot.id);
        if place.is_none_or(|place| place.replaces != has) {
            let why =
                "this organization has got another consent since; that one stays, and the one that waited is forgotten";
            return Err(KeeperError::BadRequest(why.into()));
        }
        let slot = self.slot_of(awaiting.grant).await?.ok_or(KeeperError::Starting)?;
        // What serves now must not be replaced by what does not.
        match self.living_token(&slot).await {
            Ok(_) => {}
            Err(Unsettled::Later) => return Err(KeeperError::Starting),
            Err(Unsettled::Failed(error)) => return Err(error),
            Err(Unsettled::Never(error)) => {
                self.withdraw(&slot, awaiting).await?;
                return Err(for_operator(error));
            }
        }
        self.settle(awaiting.grant, Some(organization)).await.map(|_| ()).map_err(for_operator)
    }

    /// Forgets a consent that takes no place, or only what it still waits for where it serves somebody already.
    pub(super) async fn withdraw(&self, slot: &Arc<Slot>, awaiting: &Awaiting) -> Result<(), KeeperError> {
        // The answer of an exchange under way would have nowhere to go.
        if let Some(flight) = under_way(slot) {
            let _ = tokio::time::timeout(self.exchange_limit(), flight.ended()).await;
        }
        let held = self.hold(slot).await?;
        let grant = self.read(slot).await?.value;
        let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
        let goes = grant.organizations.is_empty();
        let grave = if goes { self.grave(&grant, intent.is_some()) } else { None };
        let mut changes = if goes { gone(grant.id, grave.as_ref()) } else { Vec::new() };
        changes.push(Change::DeleteAwaiting(awaiting.grant));
        self.vault.commit_held(&[&held.hold], changes).await.map_err(|error| self.vault_failed(&error))?;
        self.awaiting().remove(&awaiting.grant);
        if goes {
            self.revoke_behind(slot, &grant);
            self.forget(slot, &grant, grave.as_ref());
        }
        tracing::warn!(
            event = "consent.withdrawn",
            organization = super::swap::first_of(awaiting),
            provider = grant.provider.as_str(),
            "a consent that had not taken its place is forgotten"
        );
        Ok(())
    }

    /// Reads which consents wait, at start. One whose grant is gone waits for nothing.
    pub(super) async fn load_awaiting(&self) -> Result<(), VaultError> {
        self.vault
            .for_each_awaiting(&mut |stored| {
                let awaiting = stored.value;
                if self.is_bounded() || self.index.slot(awaiting.grant).is_some() {
                    self.awaiting().insert(awaiting.grant, awaiting);
                }
                Ok(())
            })
            .await
    }

    /// Finishes what a death, or a provider that could not be asked, left unfinished; a person has approved it.
    pub(super) async fn settle_unfinished(&self) {
        let unfinished: Vec<Awaiting> = {
            let awaiting = self.awaiting();
            awaiting.values().filter(|awaiting| awaiting.reason == AwaitReason::Unfinished).cloned().collect()
        };
        for awaiting in unfinished {
            if self.stopping.is_cancelled() {
                return;
            }
            let _organizations = self.changing_all(&organizations_of(&awaiting)).await;
            match self.settle(awaiting.grant, None).await {
                // It was settled while this waited.
                Ok(_) | Err(ConsentError::Used) => {}
                Err(error) => tracing::warn!(
                    organization = super::swap::first_of(&awaiting),
                    error = %error,
                    "a consent that was given earlier has not taken its place"
                ),
            }
        }
    }

    /// Forgets consents that have waited too long, or that came too late, and revocations of links that have ended since.
    pub(super) async fn clear_awaiting(&self) {
        let all: Vec<Awaiting> = self.awaiting().values().cloned().collect();
        let now = self.now().wall;
        for awaiting in all {
            if self.stopping.is_cancelled() {
                return;
            }
            let Ok(_here) = self.present_all(&organizations_of(&awaiting)).await else { return };
            if !self.is_over(&awaiting, now) {
                continue;
            }
            let _organizations = self.changing_all(&organizations_of(&awaiting)).await;
            let Ok(Some(slot)) = self.slot_of(awaiting.grant).await else { continue };
            let is_still_there = self.awaiting().get(&awaiting.grant) == Some(&awaiting);
            // What fails is tried again by the next sweep.
            if is_still_there && self.is_over(&awaiting, now) {
                let _ = self.withdraw(&slot, &awaiting).await;
            }
        }
        self.clear_revoked_links(now).await;
    }

    fn is_over(&self, awaiting: &Awaiting, now: Timestamp) -> bool {
        let is_late = |place: &crate::model::Place| {
            self.index.find(&place.organization).map(|entry| entry.slot.id) != place.replaces
        };
        now.since(awaiting.since) >= AWAITING_KEPT || awaiting.places.iter().all(is_late)
    }

    /// Once every link that a revocation is about has ended by itself, the revocation says nothing any more.
    async fn clear_revoked_links(&self, now: Timestamp) {
        let over = |until: u32| Timestamp::from_millis(i64::from(until) * 1000) + MAX_LINK_LIFETIME < now;
        let mut old = Vec::new();
        let read = self
            .vault
            .for_each_revoked_links(&mut |stored| {
                if over(stored.value.until) {
                    old.push(stored.value.organization);
                }
                Ok(())
            })
            .await;
        if let Err(error) = read {
            tracing::error!(error = %error, "not every revocation of links can be read");
        }
        for organization in old {
            let _organization = self.changing(&organization).await;
            let again = self.vault.revoked_links(&organization).await.ok().flatten();
            if self.stopping.is_cancelled() || !again.is_some_and(|revoked| over(revoked.until)) {
                continue;
            }
            if self.vault.commit(vec![Change::DeleteRevokedLinks(organization)]).await.is_err() {
                return;
            }
        }
    }

    /// The consents that wait, for operators: the first hundred by age where `scope` allows.
    pub(super) async fn named_awaiting(&self, scope: Option<Scope<'_>>) -> Vec<wire::Awaiting> {
        let mut all: Vec<Awaiting> = self.awaiting().values().cloned().collect();
        all.sort_by_key(|awaiting| awaiting.since);
        let mut named = Vec::new();
        for awaiting in all {
            if named.len() >= MAX_NAMED {
                break;
            }
            let mut places = awaiting.places.clone();
            places.retain(|place| scope.is_none_or(|scope| scope(&place.organization)));
            if places.is_empty() {
                continue;
            }
            let Ok(Some(slot)) = self.slot_of(awaiting.grant).await else { continue };
            let provider = self.lane(&slot).name.clone();
            for place in &places {
                if named.len() < MAX_NAMED {
                    named.push(wire::Awaiting {
                        organization: place.organization.clone(),
                        provider: provider.clone(),
                        subject: self.subject_of(awaiting.grant).await,
                        since: awaiting.since,
                        reason: awaiting.reason.word().into(),
                    });
                }
            }
        }
        named
    }

    /// The provider of each consent that an operator has to confirm, for an organization which `scope` allows.
    pub(super) fn to_be_confirmed(&self, scope: Option<Scope<'_>>) -> Vec<u16> {
        let grants = self.grants_to_be_confirmed(scope);
        grants.into_iter().filter_map(|grant| self.index.slot(grant)).map(|slot| slot.provider).collect()
    }

    /// The consents that an operator has to confirm, for an organization which `scope` allows.
    pub(super) fn grants_to_be_confirmed(&self, scope: Option<Scope<'_>>) -> Vec<GrantId> {
        let waits = |awaiting: &&Awaiting| {
            let mut places = awaiting.places.iter();
            awaiting.reason != AwaitReason::Unfinished
                && scope.is_none_or(|scope| places.any(|place| scope(&place.organization)))
        };
        self.awaiting().values().filter(waits).map(|awaiting| awaiting.grant).collect()
    }

    async fn subject_of(&self, grant: GrantId) -> Option<String> {
        self.vault.grant(grant).await.ok().flatten().and_then(|stored| stored.value.subject)
    }
}

fn organizations_of(awaiting: &Awaiting) -> Vec<&OrganizationId> {
    awaiting.places.iter().map(|place| &place.organization).collect()
}

/// What an operator is told who wanted to confirm.
fn for_operator(error: ConsentError) -> KeeperError {
    match error {
        ConsentError::Keeper(error) => error,
        ConsentError::WrongOrganization { reach, .. } => KeeperError::WrongOrganization(reach),
        ConsentError::Refused(why) => KeeperError::Refused(why),
        other => KeeperError::BadRequest(other.to_string().into()),
    }
}
