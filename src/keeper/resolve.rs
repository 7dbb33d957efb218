//! What an operator decides about a grant in doubt or lost.

use std::sync::Arc;

use super::{
    Keeper, KeeperError, Shared,
    slot::{Flight, Slot},
};
use crate::{
    lifecycle::{self, FROZEN_RETRY},
    model::{OrganizationId, State},
    vault::Change,
    wire::{self, Resolution},
};

impl Keeper {
    /// Resolves a grant in doubt or lost, for every organization that it serves: those are in the answer's
    /// `shares_grant_with`.
    ///
    /// [`Resolution::Retry`] exchanges it now, whatever the rules say: the operator takes the risk that this is a replay.
    /// [`Resolution::Abandon`] makes it `lost` at once, without an exchange. A grant that is neither is an error, so that
    /// nobody spends a token, or gives one up, that is well.
    pub async fn resolve(
        &self,
        organization: &OrganizationId,
        resolution: Resolution,
    ) -> Result<wire::Organization, KeeperError> {
        let shared = &self.shared;
        let _admitted = shared.admit()?;
        let entry = shared.find(organization).await?;
        let done = shared.resolve(&entry.slot, resolution).await;
        match shared.successor(&entry, &done).await {
            Some(entry) => shared.resolve(&entry.slot, resolution).await?,
            None => done?,
        }
        shared.view(organization).await
    }
}

/// An exchange that has had its turn.
pub(super) fn under_way(slot: &Slot) -> Option<Flight> {
    let state = slot.lock();
    state.flight().cloned().filter(|_| state.queued().is_none())
}

const fn may_resolve(state: State) -> Result<(), KeeperError> {
    match state {
        State::InDoubt(_) | State::Lost => Ok(()),
        state => Err(KeeperError::NotInDoubt { state: state.word() }),
    }
}

impl Shared {
    async fn resolve(&self, slot: &Arc<Slot>, resolution: Resolution) -> Result<(), KeeperError> {
        // What is under way may settle it. It ends by itself, and in bounded time.
        if let Some(flight) = under_way(slot) {
            let _ = tokio::time::timeout(self.exchange_limit(), flight.ended()).await;
        }
        may_resolve(slot.brief().state)?;
        match resolution {
            Resolution::Retry => self.retry(slot).await,
            Resolution::Abandon => self.abandon(slot).await,
        }
    }

    async fn retry(&self, slot: &Arc<Slot>) -> Result<(), KeeperError> {
        let brief = slot.brief();
        if brief.paused {
            return Err(KeeperError::Paused);
        }
        let lane = self.lane(slot);
        if let Some(reason) = lane.circuit.frozen_for(brief.own_client) {
            return Err(KeeperError::ProviderUnavailable { reason, retry_after: FROZEN_RETRY });
        }
        let now = self.now();
        let too_often = |retry_after| KeeperError::TooManyRequests { retry_after };
        slot.lock().force(now.boot).map_err(too_often)?;
        lane.budget.take_forced().await.map_err(too_often)?;
        let Some(flight) = lane.enqueue_at_risk(slot, now.boot + self.patience()) else { return Ok(()) };
        self.wait_for(slot, flight).await
    }

    async fn abandon(&self, slot: &Arc<Slot>) -> Result<(), KeeperError> {
        let held = self.hold(slot).await?;
        let mut grant = self.read(slot).await?.value;
        if under_way(slot).is_some() {
            // It was sent in this very moment; what comes back may make all of this needless.
            return Err(KeeperError::ProviderUnavailable { reason: "no_answer", retry_after: FROZEN_RETRY });
        }
        may_resolve(grant.state)?;
        let notice = lifecycle::abandoned(&mut grant, self.now().wall);
        let changes = vec![Change::PutGrant(Box::new(grant.clone())), Change::DeleteIntent(grant.id)];
        let events = match notice {
            Some(notice) => self.notice_events(&grant, notice).await,
            None => Vec::new(),
        };
        let commit = self.outbox.commit_held(&[&held.hold], changes, events).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        self.publish(slot, &grant, sequence, None, &[]);
        if let Some(notice) = notice {
            self.tell(&grant, notice);
        }
        Ok(())
    }
}
