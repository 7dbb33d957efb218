//! Before a consent ends: looks who is to be warned, and tells it with what remembers it.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{KeeperError, Shared, slot::Slot};
use crate::{
    lifecycle, task,
    vault::{Change, OnDuty},
};

/// How many consents are told of in one pass, at most; the rest in the next one. A fleet that ends all at once is told of
/// within hours, and neither the vault nor a receiver of webhooks is flooded.
pub(super) const MOST_A_PASS: usize = 5000;
/// How many of their commits may wait at once: they share syncs of the journal.
const AT_ONCE: usize = 64;

impl Shared {
    /// Tells of every consent whose next warning is due, the soonest to end first. A pass that finds another at work leaves
    /// it alone.
    pub(super) async fn warn(self: &Arc<Self>, on_duty: &OnDuty) {
        let Ok(_pass) = self.warning.try_lock() else { return };
        if let Some(bounded) = &self.bounded {
            return self.warn_in_turns(bounded, on_duty).await;
        }
        let now = self.now().wall;
        let slots = self.index.slots().into_iter().filter_map(|slot| {
            let brief = slot.brief();
            brief.warns_at.filter(|at| *at <= now).map(|_| (brief.consent_ends, slot.id, slot))
        });
        let mut due: Vec<_> = slots.collect();
        due.sort_unstable_by_key(|(ends, id, _)| (*ends, *id));
        if due.len() > MOST_A_PASS {
            tracing::warn!(now = MOST_A_PASS, all = due.len(), "many consents end: some are told of later");
            due.truncate(MOST_A_PASS);
        }
        self.warn_all(due.into_iter().map(|(_, _, slot)| slot).collect(), on_duty).await;
    }

    /// Tells of each of these.
    pub(super) async fn warn_all(self: &Arc<Self>, due: Vec<Arc<Slot>>, on_duty: &OnDuty) {
        let mut telling = JoinSet::new();
        for slot in due {
            if self.stopping.is_cancelled() || self.vault.poisoned().is_some() || !on_duty.is_good() {
                break;
            }
            if telling.len() >= AT_ONCE {
                telling.join_next().await;
            }
            let shared = Arc::clone(self);
            telling.spawn(task::boxed(async move { shared.warn_of(&slot).await }));
        }
        // What fails has been logged, and is told in the next pass.
        while telling.join_next().await.is_some() {}
    }

    async fn warn_of(&self, slot: &Arc<Slot>) -> Result<(), KeeperError> {
        let held = self.hold(slot).await?;
        if slot.lock().is_removed() {
            return Ok(());
        }
        let mut grant = self.read(slot).await?.value;
        let Some(warning) = lifecycle::warn(&mut grant, &self.warn_before, self.now().wall) else { return Ok(()) };
        let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
        let events = self.warning_events(&grant, warning).await;
        let commit =
            self.outbox.commit_held(&[&held.hold], vec![Change::PutGrant(Box::new(grant.clone()))], events).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        self.publish(slot, &grant, sequence, intent.as_ref(), &[]);
        self.tell_warning(&grant, warning);
        Ok(())
    }
}
