use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::{
    Keeper, Scope, Shared,
    index::Entry,
    slot::{Brief, Slot},
};
use crate::{
    config::KeepWarm,
    lifecycle::warm,
    metrics::{Census, ExpiringSeries, ProviderCensus, STATES},
    model::{OrganizationId, State, Timestamp},
};

/// A census is remembered for so long, since it looks at every organization.
const FRESH: Duration = Duration::from_secs(1);
/// A grant counts as overdue only after this much patience, so that one whose turn is now is not reported.
const PATIENCE: Duration = Duration::from_secs(2);

impl Keeper {
    /// Counts over everything, for the metrics; remembered for a second.
    pub fn census(&self) -> Arc<Census> {
        let shared = &self.shared;
        let boot = shared.now().boot;
        let mut remembered = shared.census.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, census)) = &*remembered
            && boot.saturating_sub(*at) < FRESH
        {
            return Arc::clone(census);
        }
        let census = Arc::new(shared.count(None));
        *remembered = Some((boot, Arc::clone(&census)));
        census
    }
}

impl Shared {
    /// Counts over what `scope` allows.
    pub(super) fn count(&self, scope: Option<Scope<'_>>) -> Census {
        let mut counts: Vec<ProviderCensus> = self.lanes.iter().map(|lane| self.empty_count(lane)).collect();
        let mut needed = vec![0.0_f64; self.lanes.len()];
        let mut attention: Vec<(Timestamp, Arc<Entry>)> = Vec::new();
        let now = self.now();
        let longest = self.warn_before.iter().max().copied().unwrap_or_default();
        self.for_each_organization(scope, &mut |entry| {
            let brief = entry.slot.brief();
            let count = &mut counts[usize::from(entry.slot.provider)];
            let word = if brief.paused { "paused" } else { brief.state.word() };
            *count.states.entry(word).or_default() += 1;
            if let Some(end) = brief.consent_ends
                && (end <= now.wall + longest || brief.state != State::Active)
            {
                attention.push((end, Arc::clone(entry)));
            }
        });
        self.for_each_grant_once(scope, &mut |_, slot| {
            let brief = slot.brief();
            let provider = usize::from(slot.provider);
            self.count_grant(&mut counts[provider], slot, brief);
            needed[provider] += self.needed_per_minute(slot, brief);
        });
        for provider in self.to_be_confirmed(scope) {
            counts[usize::from(provider)].awaiting += 1;
        }
        for (count, needed) in counts.iter_mut().zip(needed) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped, and never negative")]
            let rounded = needed.ceil().clamp(0.0, f64::from(u32::MAX)) as u32;
            count.needed_per_minute = rounded;
        }
        attention.sort_unstable_by(|a, b| (a.0, &a.1.id).cmp(&(b.0, &b.1.id)));
        let dropped = attention.len().saturating_sub(self.organization_series);
        attention.truncate(self.organization_series);
        Census {
            providers: self.lanes.iter().map(|lane| lane.name.clone()).zip(counts).collect(),
            expiring: attention
                .into_iter()
                .map(|(expires_at, entry)| ExpiringSeries {
                    provider: self.lane(&entry.slot).name.clone(),
                    organization: entry.id.clone(),
                    expires_at,
                })
                .collect(),
            expiring_dropped: u64::try_from(dropped).unwrap_or(u64::MAX),
        }
    }

    fn empty_count(&self, lane: &super::lane::Lane) -> ProviderCensus {
        ProviderCensus {
            states: STATES.iter().map(|state| (*state, 0)).collect(),
            expiring_within: self.warn_before.iter().map(|before| (*before, 0)).collect(),
            circuit_open: lane.circuit.frozen().is_some(),
            budget_per_minute: lane.config.max_per_minute,
            ..ProviderCensus::default()
        }
    }

    fn count_grant(&self, count: &mut ProviderCensus, slot: &Slot, brief: Brief) {
        let now = self.now();
        match brief.consent_ends {
            Some(end) if end <= now.wall => count.expired += 1,
            Some(end) => {
                for (before, within) in &mut count.expiring_within {
                    *within += u64::from(end <= now.wall + *before);
                }
            }
            None => {}
        }
        count.end_assumed += u64::from(brief.end_assumed);
        if brief.paused || brief.state == State::Lost || !self.is_warm(slot, brief) {
            return;
        }
        let left = brief.access.map(|access| access.left(now)).unwrap_or_default();
        count.access_expired += u64::from(left.is_zero());
        let patient = crate::clock::Now { wall: now.wall - PATIENCE, boot: now.boot.saturating_sub(PATIENCE) };
        count.overdue += u64::from(brief.access.is_none_or(|access| access.is_overdue(patient)));
    }

    fn is_warm(&self, slot: &Slot, brief: Brief) -> bool {
        warm(&self.lane(slot).policy, brief.refreshed_at, slot.last_fetched(), self.now().wall).is_ok()
    }

    /// Exchanges a minute that keep this grant warm.
    fn needed_per_minute(&self, slot: &Slot, brief: Brief) -> f64 {
        const UNKNOWN_LIFE: Duration = Duration::from_hours(1);
        let policy = &self.lane(slot).policy;
        let idle = matches!(policy.keep_warm, KeepWarm::FetchedWithin(_)) && !self.is_warm(slot, brief);
        if brief.paused || brief.state == State::Lost || idle {
            return 0.0;
        }
        let life = brief.access.map_or(UNKNOWN_LIFE, |access| access.expires_at.since(access.issued_at));
        60.0 / (life.as_secs_f64() * policy.refresh_at).max(0.1)
    }

    /// Every organization that `scope` allows.
    pub(super) fn for_each_organization(&self, scope: Option<Scope<'_>>, f: &mut dyn FnMut(&Arc<Entry>)) {
        self.index.for_each(&mut |entry| {
            if scope.is_none_or(|scope| scope(&entry.id)) {
                f(entry);
            }
        });
    }

    /// Every grant that serves an organization which `scope` allows, once.
    pub(super) fn for_each_grant_once(&self, scope: Option<Scope<'_>>, f: &mut dyn FnMut(&OrganizationId, &Arc<Slot>)) {
        let mut shared_ones = HashSet::new();
        self.for_each_organization(scope, &mut |entry| {
            let once = entry.slot.brief().organizations <= 1 || shared_ones.insert(entry.slot.id);
            if once {
                f(&entry.id, &entry.slot);
            }
        });
    }
}
