//! Counts over a fleet that is not in memory: the database makes them; what a caller may see in part is counted by reading through it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    super::{
        Scope, Shared,
        census::ends_attention,
        forecast::{Ending, Forecast, week_of, week_of_day},
        slot::Brief,
    },
    Bounded,
    sweeping::AT_ONCE,
};
use crate::{
    config::KeepWarm,
    metrics::{Census, ExpiringSeries, ProviderCensus},
    model::{GrantId, OrganizationId, State, Timestamp},
    vault::{
        VaultError,
        postgres::{Ends, LaneCount, LaneId},
    },
};

impl Shared {
    /// How the whole stands, and what ends when, counted over what `scope` allows.
    pub(in crate::keeper) async fn survey(&self, scope: Option<Scope<'_>>) -> (Arc<Census>, Forecast) {
        match (&self.bounded, scope) {
            (None, None) => (self.census(), self.forecast(None)),
            (None, Some(_)) => (Arc::new(self.count(scope)), self.forecast(scope)),
            (Some(bounded), None) => (self.counted(bounded).await, self.forecast_of_all(bounded).await),
            (Some(bounded), Some(scope)) => {
                let _alone = bounded.reading_through.lock().await;
                let read = self.read_through(bounded, scope).await;
                let (census, forecast) = read.unwrap_or_else(|error| {
                    self.vault_failed(&error);
                    (self.empty_census(), Forecast::default())
                });
                (Arc::new(census), forecast)
            }
        }
    }

    /// Counts over everything; remembered for some seconds, and for as long as the database is away.
    pub(in crate::keeper) async fn counted(&self, bounded: &Bounded) -> Arc<Census> {
        let boot = || self.now().boot;
        bounded.counted.get(boot, self.ask_census(bounded), || self.empty_census()).await
    }

    async fn ask_census(&self, bounded: &Bounded) -> Result<Census, VaultError> {
        let warm: Vec<(LaneId, Duration)> = match self.refresh.keep_warm {
            KeepWarm::Always => Vec::new(),
            KeepWarm::FetchedWithin(within) => {
                self.lanes.iter().map(|lane| (bounded.store.lane(&lane.name), within)).collect()
            }
        };
        let found = bounded.store.census(&self.warn_before, &warm).await?;
        let mut counts: Vec<ProviderCensus> = self.lanes.iter().map(|lane| self.empty_count(lane)).collect();
        let mut attention = 0;
        for (lane, count) in self.lanes.iter().zip(&mut counts) {
            let id = bounded.store.lane(&lane.name);
            if let Some(found) = found.iter().find(|found| found.lane == id) {
                attention += found.attention;
                lane.grants.store(usize::try_from(found.grants).unwrap_or(usize::MAX), Ordering::Relaxed);
                take_over(count, found);
            }
        }
        self.count_awaiting(bounded, None, &mut counts).await?;
        let expiring = self.soonest(bounded).await?;
        Ok(self.census_of(counts, attention, expiring))
    }

    fn census_of(&self, counts: Vec<ProviderCensus>, attention: u64, expiring: Vec<ExpiringSeries>) -> Census {
        let shown = u64::try_from(expiring.len()).unwrap_or(u64::MAX);
        Census {
            providers: self.lanes.iter().map(|lane| lane.name.clone()).zip(counts).collect(),
            expiring_dropped: attention.saturating_sub(shown),
            expiring,
        }
    }

    fn empty_census(&self) -> Census {
        self.census_of(self.lanes.iter().map(|lane| self.empty_count(lane)).collect(), 0, Vec::new())
    }

    /// Consents that an operator has to confirm.
    async fn count_awaiting(
        &self,
        bounded: &Bounded,
        scope: Option<Scope<'_>>,
        counts: &mut [ProviderCensus],
    ) -> Result<(), VaultError> {
        let ids = self.grants_to_be_confirmed(scope);
        for stored in bounded.store.grants(&ids).await?.into_iter().flatten() {
            if let Some(provider) = self.lane_of.get(&stored.value.provider) {
                counts[usize::from(*provider)].awaiting += 1;
            }
        }
        Ok(())
    }

    /// The organizations whose consents want attention soonest.
    async fn soonest(&self, bounded: &Bounded) -> Result<Vec<ExpiringSeries>, VaultError> {
        if self.organization_series == 0 {
            return Ok(Vec::new());
        }
        let longest = self.warn_before.iter().max().copied().unwrap_or_default();
        let grants = bounded.store.soonest_to_end(longest, self.organization_series).await?;
        let mut expiring = Vec::new();
        for stored in grants {
            let grant = stored.value;
            let ends = grant.consent.as_ref().and_then(|consent| consent.expires_at);
            let Some(expires_at) = ends.filter(|_| self.lane_of.contains_key(&grant.provider)) else { continue };
            expiring.extend(grant.organizations.into_iter().map(|organization| ExpiringSeries {
                provider: grant.provider.clone(),
                organization,
                expires_at,
            }));
        }
        sort(&mut expiring);
        expiring.truncate(self.organization_series);
        Ok(expiring)
    }

    async fn forecast_of_all(&self, bounded: &Bounded) -> Forecast {
        let boot = || self.now().boot;
        let ends = bounded.ends.get(boot, bounded.store.ends(), Ends::default).await;
        let provider_of: BTreeMap<LaneId, u16> =
            (0..).zip(&self.lanes).map(|(provider, lane)| (bounded.store.lane(&lane.name), provider)).collect();
        let mut weeks: BTreeMap<(i64, u16), Ending> = BTreeMap::new();
        for day in &ends.days {
            if let Some(provider) = provider_of.get(&day.lane) {
                weeks.entry((week_of_day(day.day), *provider)).or_default().add(day.consents, day.assumed);
            }
        }
        self.forecast_from(ends.ended, weeks)
    }

    /// Reads all that `scope` allows, a page at a time, and counts it.
    async fn read_through(&self, bounded: &Bounded, scope: Scope<'_>) -> Result<(Census, Forecast), VaultError> {
        let mut counts: Vec<ProviderCensus> = self.lanes.iter().map(|lane| self.empty_count(lane)).collect();
        let mut through = Through::default();
        let mut after = None;
        loop {
            let (organizations, next) = bounded.store.organizations_after(after, AT_ONCE).await?;
            let mut seen: Vec<(OrganizationId, GrantId)> = Vec::new();
            for stored in organizations {
                if scope(&stored.value.id) {
                    seen.push((stored.value.id, stored.value.grant));
                }
            }
            let ids: Vec<GrantId> = seen.iter().map(|(_, grant)| *grant).collect();
            for ((organization, _), stored) in seen.into_iter().zip(bounded.store.grants(&ids).await?) {
                let Some(stored) = stored else { continue };
                let Some(provider) = self.lane_of.get(&stored.value.provider).copied() else { continue };
                let now = self.now();
                let brief = self.brief(provider, &stored.value, stored.sequence, None, now);
                let count = &mut counts[usize::from(provider)];
                let word = if brief.paused { "paused" } else { brief.state.word() };
                *count.states.entry(word).or_default() += 1;
                through.note_end(self, organization, provider, &brief, now.wall);
                if brief.organizations <= 1 || through.several.insert(stored.value.id) {
                    self.count_grant(count, provider, brief, stored.value.last_fetched_at);
                    *through.needed.entry(provider).or_default() +=
                        self.needed_per_minute(provider, brief, stored.value.last_fetched_at);
                    through.note_consent(provider, &brief, now.wall);
                }
            }
            match next {
                Some(next) if !self.stopping.is_cancelled() => after = Some(next),
                _ => break,
            }
        }
        self.count_awaiting(bounded, Some(scope), &mut counts).await?;
        for (provider, needed) in &through.needed {
            counts[usize::from(*provider)].needed_per_minute = whole(*needed);
        }
        through.keep_soonest(self.organization_series);
        let forecast = self.forecast_from(through.ended, through.weeks);
        Ok((self.census_of(counts, through.attention, through.expiring), forecast))
    }
}

/// What is found on the way through the fleet.
#[derive(Default)]
struct Through {
    /// Organizations whose consents want attention.
    attention: u64,
    /// Of those at least as many as are named, the soonest to end among them.
    expiring: Vec<ExpiringSeries>,
    needed: BTreeMap<u16, f64>,
    weeks: BTreeMap<(i64, u16), Ending>,
    ended: u64,
    /// Grants that serve several organizations and were counted.
    several: HashSet<GrantId>,
}

impl Through {
    fn note_end(
        &mut self,
        shared: &Shared,
        organization: OrganizationId,
        provider: u16,
        brief: &Brief,
        now: Timestamp,
    ) {
        let longest = shared.warn_before.iter().max().copied().unwrap_or_default();
        if let Some(expires_at) = ends_attention(brief, now + longest) {
            let provider = shared.lanes[usize::from(provider)].name.clone();
            self.attention += 1;
            self.expiring.push(ExpiringSeries { provider, organization, expires_at });
            if self.expiring.len() >= shared.organization_series + AT_ONCE {
                self.keep_soonest(shared.organization_series);
            }
        }
    }

    fn keep_soonest(&mut self, most: usize) {
        sort(&mut self.expiring);
        self.expiring.truncate(most);
    }

    fn note_consent(&mut self, provider: u16, brief: &Brief, now: Timestamp) {
        match brief.consent_ends.filter(|_| brief.state != State::Lost) {
            Some(end) if end <= now => self.ended += 1,
            Some(end) => {
                self.weeks.entry((week_of(end), provider)).or_default().add(1, u64::from(brief.end_assumed));
            }
            None => {}
        }
    }
}

/// A provider's counts as the database made them.
fn take_over(count: &mut ProviderCensus, found: &LaneCount) {
    for (word, number) in [
        (State::Active.word(), found.active),
        ("failing", found.failing),
        ("in_doubt", found.in_doubt),
        (State::Lost.word(), found.lost),
        ("paused", found.paused),
    ] {
        count.states.insert(word, number);
    }
    for ((_, within), found) in count.expiring_within.iter_mut().zip(&found.expiring_within) {
        *within = *found;
    }
    count.expired = found.expired;
    count.end_assumed = found.end_assumed;
    count.access_expired = found.access_expired;
    count.overdue = found.overdue;
    count.needed_per_minute = whole(found.needed_per_minute);
}

/// Rounded up.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped, and never negative")]
pub(in crate::keeper) fn whole(number: f64) -> u32 {
    number.ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}

fn sort(expiring: &mut [ExpiringSeries]) {
    expiring.sort_unstable_by(|a, b| (a.expires_at, &a.organization).cmp(&(b.expires_at, &b.organization)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_counted_is_told_in_the_words_of_the_metrics() {
        let mut count = ProviderCensus {
            states: crate::metrics::STATES.iter().map(|state| (*state, 0)).collect(),
            expiring_within: vec![(Duration::from_hours(720), 0), (Duration::from_hours(24), 0)],
            ..ProviderCensus::default()
        };
        let found = LaneCount {
            active: 1,
            failing: 2,
            in_doubt: 3,
            lost: 4,
            paused: 5,
            expiring_within: vec![6, 7],
            needed_per_minute: 7.2,
            ..LaneCount::default()
        };
        let words = count.states.len();
        take_over(&mut count, &found);
        assert_eq!(count.states.len(), words, "no other words");
        let told: Vec<u64> = ["active", "failing", "in_doubt", "lost", "paused"].map(|word| count.states[word]).into();
        assert_eq!(told, [1, 2, 3, 4, 5]);
        assert_eq!(count.expiring_within.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(count.needed_per_minute, 8);
    }
}
