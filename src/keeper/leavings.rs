//! What is left behind in the vault and goes with time: enrolments that were not finished, and the memory of spent tokens
//! whose grants are gone.

use std::sync::Arc;

use super::{Shared, enrol::gone, slot::Slot};
use crate::{
    lifecycle::{self, GRAVE_KEPT, may_go},
    model::Grant,
    vault::Change,
};

/// How many spent tokens of grants that are gone are remembered at most: far more than the one-time consents of a large
/// fleet leave behind in a year, in about 10 MB.
const MAX_GRAVES: usize = 200_000;

impl Shared {
    /// What is to be remembered of a grant that goes now. `sent`: an intent is open.
    pub(super) fn grave(&self, grant: &Grant, sent: bool) -> Option<Grant> {
        let grave = lifecycle::grave(grant, sent, self.vault.random_grant_id(), self.now().wall)?;
        if self.index.grave_count() >= MAX_GRAVES {
            tracing::warn!(
                most = MAX_GRAVES,
                "no more spent tokens of removed grants can be remembered; enrol none anew"
            );
            return None;
        }
        Some(grave)
    }

    /// What one sweep tells and clears away for all workers that share the vault. It stops where another has taken over, which
    /// does it anew.
    pub(super) async fn sweep_for_all(self: &Arc<Self>) {
        let Some(on_duty) = self.sweeping.begin().await else { return };
        self.outbox.prune().await;
        self.clear_awaiting().await;
        self.clear_unfinished().await;
        self.clear_graves().await;
        self.warn(&on_duty).await;
        // Last, since a provider that is silent takes its time.
        if on_duty.is_good() {
            self.settle_unfinished().await;
        }
    }

    /// Forgets enrolments that were not finished, once nobody can be waiting for them any more.
    pub(super) async fn clear_unfinished(&self) {
        if let Some(bounded) = &self.bounded {
            return self.clear_unfinished_of(bounded).await;
        }
        for slot in self.index.slots() {
            if slot.brief().organizations > 0 {
                continue;
            }
            if self.stopping.is_cancelled() {
                return;
            }
            self.clear_if_unfinished(&slot).await;
        }
    }

    pub(super) async fn clear_if_unfinished(&self, slot: &Arc<Slot>) {
        let Ok(held) = self.hold(slot).await else { return };
        let (Ok(stored), Ok(intent)) = (self.read(slot).await, self.vault.intent(slot.id).await) else { return };
        let grant = stored.value;
        // It waits for somebody, and goes with that.
        if self.awaiting().contains_key(&slot.id) {
            return;
        }
        let busy = {
            let state = slot.lock();
            state.is_removed() || state.flight().is_some()
        };
        if busy || !may_go(&grant, intent.is_some(), self.now().wall) {
            return;
        }
        let grave = self.grave(&grant, intent.is_some());
        if self.vault.commit_held(&[&held.hold], gone(grant.id, grave.as_ref())).await.is_ok() {
            self.forget(slot, &grant, grave.as_ref());
            tracing::warn!(
                provider = grant.provider.as_str(),
                state = grant.state.word(),
                "the credential of an enrolment that was never finished is forgotten"
            );
        }
    }

    /// Forgets spent tokens that no issuer knows any more.
    pub(super) async fn clear_graves(&self) {
        let before = self.now().wall - GRAVE_KEPT;
        let old = match &self.bounded {
            Some(bounded) => self.graves_before(bounded, before).await,
            None => self.index.graves_before(before),
        };
        if old.is_empty() {
            return;
        }
        for id in &old {
            let Ok(hold) = self.claim(*id).await else { return };
            let forgotten = self.vault.commit_held(&[&hold], vec![Change::DeleteGrant(*id)]).await;
            if self.stopping.is_cancelled() || forgotten.is_err() {
                return;
            }
        }
        self.index.forget_graves(&old);
    }
}
