//! What start and the sweep look through the fleet for, found by the database.

use std::{collections::HashSet, sync::Arc};

use super::{
    super::{KeeperError, Shared, load::FIRST_EPOCH, warnings::MOST_A_PASS},
    Bounded,
};
use crate::{
    model::{GrantId, ProviderName, Timestamp},
    vault::{OnDuty, Stored},
};

/// How many records are read at once.
pub(super) const AT_ONCE: usize = 500;
/// How many graves one sweep clears away, at most.
const MOST_GRAVES: usize = 1000;

impl Shared {
    /// What has to be known before anything is done, where the fleet stays in the database: which exchanges are under way, and which
    /// consents wait. Gives zero: nobody has counted the organizations yet.
    pub(in crate::keeper) async fn begin_bounded(self: &Arc<Self>) -> Result<usize, String> {
        let now = self.now();
        let read = self
            .vault
            .for_each_intent(&mut |stored| {
                self.news.opened(stored.value.grant, now);
                Ok(())
            })
            .await;
        read.map_err(|error| error.to_string())?;
        self.list_the_unlisted_in_pages().await.map_err(|error| error.to_string())?;
        self.load_awaiting().await.map_err(|error| error.to_string())?;
        let most = self.bounded.as_ref().map(|bounded| bounded.most);
        tracing::info!(most, "what is asked for is read; so many grants stay in memory");
        Ok(0)
    }

    /// After a vault went back in time: as where all are in memory, but a page at a time.
    async fn list_the_unlisted_in_pages(&self) -> Result<(), KeeperError> {
        let Some(bounded) = self.bounded.as_ref().filter(|_| self.vault.epoch() > FIRST_EPOCH) else { return Ok(()) };
        let mut after = None;
        loop {
            let page = bounded.store.organizations_after(after, AT_ONCE).await;
            let (organizations, next) = page.map_err(|error| self.vault_failed(&error))?;
            let ids: Vec<GrantId> = organizations.iter().map(|stored| stored.value.grant).collect();
            let grants = bounded.store.grants(&ids).await.map_err(|error| self.vault_failed(&error))?;
            for (organization, grant) in organizations.into_iter().zip(grants) {
                let id = &organization.value.id;
                let lists_it = |stored: Stored<crate::model::Grant>| stored.value.organizations.contains(id);
                if !grant.is_none_or(lists_it)
                    && let Some(entry) = self.present(id).await?
                {
                    self.list_again(&entry).await?;
                }
            }
            match next {
                Some(next) if !self.stopping.is_cancelled() => after = Some(next),
                _ => return Ok(()),
            }
        }
    }

    /// As where all are in memory, but that none is named: the list names them.
    pub(in crate::keeper) async fn tell_doubts_counted(&self, bounded: &Bounded) {
        let census = self.counted(bounded).await;
        let doubts: u64 = census.providers.values().filter_map(|counts| counts.states.get("in_doubt")).sum();
        if doubts > 0 {
            tracing::warn!(
                doubts,
                "organizations have grants in doubt; `consentry org list --state in_doubt` names them"
            );
        }
    }

    /// Tells of every consent whose next warning is due, some at a time, until none is or a pass has told of as many as it may.
    pub(in crate::keeper) async fn warn_in_turns(self: &Arc<Self>, bounded: &Bounded, on_duty: &OnDuty) {
        let (mut told, mut seen) = (0, HashSet::new());
        // Nobody would tell of the others, and they would come first for ever.
        let providers: Vec<&ProviderName> = self.lanes.iter().map(|lane| &lane.name).collect();
        while told < MOST_A_PASS && on_duty.is_good() && !self.stopping.is_cancelled() {
            let before = self.index.before();
            let due = match bounded.store.warnings_due(&providers, AT_ONCE.min(MOST_A_PASS - told)).await {
                Ok(due) => due,
                Err(error) => return tracing::warn!(%error, "nobody can tell whom to warn; the next sweep looks again"),
            };
            let mut slots = Vec::with_capacity(due.len());
            for stored in &due {
                // One that could not be told of would come again and again.
                if seen.insert(stored.value.id) {
                    slots.extend(self.take_in(stored, &before).await.ok().flatten());
                }
            }
            if slots.is_empty() {
                return;
            }
            told += slots.len();
            self.warn_all(slots, on_duty).await;
        }
    }

    /// Forgets enrolments that were not finished.
    pub(in crate::keeper) async fn clear_unfinished_of(&self, bounded: &Bounded) {
        let mut after = None;
        loop {
            let before = self.index.before();
            let Ok((unfinished, next)) = bounded.store.unfinished(after, AT_ONCE).await else { return };
            for stored in &unfinished {
                if self.stopping.is_cancelled() {
                    return;
                }
                if let Ok(Some(slot)) = self.take_in(stored, &before).await {
                    self.clear_if_unfinished(&slot).await;
                }
            }
            match next {
                Some(next) => after = Some(next),
                None => return,
            }
        }
    }

    /// Some of the graves that were made before that moment.
    pub(in crate::keeper) async fn graves_before(&self, bounded: &Bounded, moment: Timestamp) -> HashSet<GrantId> {
        let graves = bounded.store.graves_before(moment, MOST_GRAVES).await.unwrap_or_default();
        graves.into_iter().map(|stored| stored.value.id).collect()
    }
}
