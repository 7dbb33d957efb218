//! After a commit: the grant's slot, timers, counts and cached token follow what was stored.

use std::sync::Arc;

use super::{
    Shared,
    slot::{Brief, Slot},
    timers::boot_moment,
};
use crate::{
    clock::Now,
    lifecycle::{Fleet, Situation, due, refresh_after, warns_at},
    model::{DoubtReason, Fingerprint, Grant, Intent, State},
};

impl Shared {
    /// Makes what commit `sequence` stored visible. `before`: the fingerprints remembered until now.
    pub(super) fn publish(
        &self,
        slot: &Arc<Slot>,
        grant: &Grant,
        sequence: u64,
        intent: Option<&Intent>,
        before: &[Fingerprint],
    ) {
        let now = self.now();
        let brief = self.brief(slot.provider, grant, sequence, intent, now);
        let token = grant.access.as_ref().map(|access| Arc::new(self.cacheable(slot, access, brief.consent_ends)));
        if !self.set_brief(slot, brief, now) {
            // What another process stored after this is known here already.
            return;
        }
        if let Some(token) = token {
            self.cache.put(slot, token, |state| state.brief().sequence == sequence);
        } else {
            let mut state = slot.lock();
            if state.brief().sequence == sequence {
                self.cache.forget(&mut state);
            }
        }
        for old in before {
            if *old != grant.fingerprint && !grant.spent.contains(old) {
                self.index.fingerprints.forget_one(grant.id, *old);
            }
        }
        self.know_fingerprints(grant);
    }

    /// Remembers whose secrets these are; a database that is shared remembers it by itself.
    pub(super) fn know_fingerprints(&self, grant: &Grant) {
        if !self.vault.is_shared() {
            self.index.fingerprints.know(grant);
        }
    }

    /// What a slot is to remember of a grant.
    pub(super) fn brief(
        &self,
        provider: u16,
        grant: &Grant,
        sequence: u64,
        intent: Option<&Intent>,
        now: Now,
    ) -> Brief {
        let lane = &self.lanes[usize::from(provider)];
        let chance = self.chance();
        let fleet = self.fleet(provider, grant);
        let boot_id = self.clock.boot_id();
        let due = due(Situation { grant, intent, policy: &lane.policy, fleet, now, boot_id }, chance);
        let refresh_after = grant.access.as_ref().map(|access| refresh_after(access, &lane.policy, chance));
        let brief = Brief::of(grant, sequence, due, refresh_after.unwrap_or_default(), now, boot_id);
        Brief { warns_at: warns_at(grant, &self.warn_before), ..brief }
    }

    /// What the rules must know of the other grants. While the vault is still being loaded nobody knows who shares a
    /// subject, and the answer is the one that lets nothing be tried; nor is it known here where only some are in memory
    /// ([`fleet_now`](Self::fleet_now)).
    pub(super) fn fleet(&self, provider: u16, grant: &Grant) -> Fleet {
        let is_known = self.is_loaded() && !self.is_bounded();
        let Some(subject) = grant.subject.as_deref().filter(|_| is_known) else {
            return Fleet { shares_subject: true };
        };
        Fleet { shares_subject: self.index.subjects.may_be_shared(provider, super::slot::text_hash(subject)) }
    }

    /// Works out anew when doubtful grants are due that wait for an operator: the other grants of their subject may
    /// have gone, or the loading that hid them has ended.
    pub(super) async fn reconsider_doubts(&self) {
        if self.is_bounded() {
            // They are claimed every now and then, and looked at then.
            return;
        }
        for slot in self.index.slots() {
            let brief = slot.brief();
            let may_be_tried = matches!(brief.state, State::InDoubt(DoubtReason::NoAnswer | DoubtReason::Crashed));
            if !may_be_tried || brief.due.is_some() || brief.paused || brief.organizations == 0 {
                continue;
            }
            let _record = slot.record().await;
            if self.stopping.is_cancelled() || slot.lock().is_removed() {
                continue;
            }
            if let (Ok(stored), Ok(intent)) = (self.read(&slot).await, self.vault.intent(slot.id).await) {
                let now = self.now();
                let brief = self.brief(slot.provider, &stored.value, stored.sequence, intent.as_ref(), now);
                self.set_brief(&slot, brief, now);
            }
        }
    }

    /// Puts a brief in a slot and sets its timer; nothing where the slot has one of a later commit.
    pub(super) fn set_brief(&self, slot: &Arc<Slot>, mut brief: Brief, now: Now) -> bool {
        let before = {
            let mut state = slot.lock();
            let before = state.brief();
            if before.sequence > brief.sequence || state.is_removed() {
                return false;
            }
            // The same access token keeps the end and the refresh moment that it was given on the boot-time clock.
            if let (Some(new), Some(old)) = (&mut brief.access, &before.access)
                && new.issued_at == old.issued_at
                && new.expires_at == old.expires_at
            {
                new.expires_boot = old.expires_boot;
                new.refresh_after = old.refresh_after;
                if brief.state == State::Active && before.state == State::Active && brief.due.is_some() {
                    brief.due = before.due.or(brief.due);
                }
            }
            if let (Some(new), Some(old)) = (&mut brief.first_refusal, before.first_refusal)
                && new.at == old.at
            {
                *new = old;
            }
            state.set_brief(&brief);
            before
        };
        self.recount_subject(slot.provider, Some(before), Some(brief));
        self.set_timer(slot, now);
        true
    }

    /// Changes what a slot remembers where nothing was stored, without its record: under the slot's lock, so that
    /// what a commit publishes meanwhile is not undone.
    pub(super) fn amend_brief(&self, slot: &Arc<Slot>, now: Now, change: impl FnOnce(&mut Brief)) {
        {
            let mut state = slot.lock();
            let mut brief = state.brief();
            change(&mut brief);
            state.set_brief(&brief);
        }
        self.set_timer(slot, now);
    }

    /// Sets the slot's timer to its due moment: moved over to the boot-time clock, so that a change of wall time
    /// afterwards neither hastens nor delays it.
    pub(super) fn set_timer(&self, slot: &Arc<Slot>, now: Now) {
        if self.is_bounded() {
            // The database knows what is due, and gives it to whoever asks.
            return;
        }
        self.timers.set(slot, |state| state.brief().due.map(|due| boot_moment(due, now)));
    }

    /// Keeps the count of living grants by subject.
    pub(super) fn recount_subject(&self, provider: u16, before: Option<Brief>, after: Option<Brief>) {
        let (before, after) = [before, after].map(|brief| brief.map_or(0, |brief| brief.living_subject)).into();
        if before != after {
            self.count_subject(provider, before, false);
            self.count_subject(provider, after, true);
        }
    }

    /// Counts a living grant of a subject in or out, where all of them are in memory.
    pub(super) fn count_subject(&self, provider: u16, subject: u64, living: bool) {
        if !self.is_bounded() {
            self.index.subjects.count(provider, subject, living);
        }
    }
}
