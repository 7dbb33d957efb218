use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::{
    Keeper, Scope, Shared,
    bounded::{UNKNOWN_LIFE, whole},
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
    /// Counts over everything, for the metrics; remembered for a second, or a little longer where a database is asked. Where all is in memory it
    /// looks at all of it before it waits for anything, so it is to be called where that may block.
    pub async fn census(&self) -> Arc<Census> {
        match &self.shared.bounded {
            None => self.shared.census(),
            Some(bounded) => self.shared.counted(bounded).await,
        }
    }
}

impl Shared {
    /// Counts over everything in memory.
    pub(super) fn census(&self) -> Arc<Census> {
        let boot = self.now().boot;
        let mut remembered = self.census.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, census)) = &*remembered
            && boot.saturating_sub(*at) < FRESH
        {
            return Arc::clone(census);
        }
        let census = Arc::new(self.count(None));
        *remembered = Some((boot, Arc::clone(&census)));
        census
    }

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
            if let Some(end) = ends_attention(&brief, now.wall + longest) {
                attention.push((end, Arc::clone(entry)));
            }
        });
        self.for_each_grant_once(scope, &mut |_, slot| {
            let brief = slot.brief();
            let provider = usize::from(slot.provider);
            let last_fetched = slot.last_fetched();
            self.count_grant(&mut counts[provider], slot.provider, brief, last_fetched);
            needed[provider] += self.needed_per_minute(slot.provider, brief, last_fetched);
        });
        for provider in self.to_be_confirmed(scope) {
            counts[usize::from(provider)].awaiting += 1;
        }
        for (count, needed) in counts.iter_mut().zip(needed) {
            count.needed_per_minute = whole(needed);
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

    pub(super) fn empty_count(&self, lane: &super::lane::Lane) -> ProviderCensus {
        ProviderCensus {
            states: STATES.iter().map(|state| (*state, 0)).collect(),
            expiring_within: self.warn_before.iter().map(|before| (*before, 0)).collect(),
            circuit_open: lane.circuit.frozen().is_some(),
            budget_per_minute: lane.config.max_per_minute,
            ..ProviderCensus::default()
        }
    }

    pub(super) fn count_grant(
        &self,
        count: &mut ProviderCensus,
        provider: u16,
        brief: Brief,
        last_fetched: Option<Timestamp>,
    ) {
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
        if brief.paused || brief.state == State::Lost || !self.is_warm(provider, brief, last_fetched) {
            return;
        }
        let left = brief.access.map(|access| access.left(now)).unwrap_or_default();
        count.access_expired += u64::from(left.is_zero());
        let patient = crate::clock::Now { wall: now.wall - PATIENCE, boot: now.boot.saturating_sub(PATIENCE) };
        count.overdue += u64::from(brief.access.is_none_or(|access| access.is_overdue(patient)));
    }

    fn is_warm(&self, provider: u16, brief: Brief, last_fetched: Option<Timestamp>) -> bool {
        let policy = &self.lanes[usize::from(provider)].policy;
        warm(policy, brief.refreshed_at, last_fetched, self.now().wall).is_ok()
    }

    /// Exchanges a minute that keep this grant warm.
    pub(super) fn needed_per_minute(&self, provider: u16, brief: Brief, last_fetched: Option<Timestamp>) -> f64 {
        let policy = &self.lanes[usize::from(provider)].policy;
        let idle =
            matches!(policy.keep_warm, KeepWarm::FetchedWithin(_)) && !self.is_warm(provider, brief, last_fetched);
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

/// When the consent ends, where that is by `until`, or the grant is not well.
pub(super) fn ends_attention(brief: &Brief, until: Timestamp) -> Option<Timestamp> {
    brief.consent_ends.filter(|end| *end <= until || brief.state != State::Active)
}
