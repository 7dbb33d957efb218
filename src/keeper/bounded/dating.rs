//! The dates of a grant, which each commit of any worker writes beside it: by them another worker finds out what is due.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    clock::SharedClock,
    lifecycle::{Fleet, Policy, Situation, due, warns_at},
    model::{Grant, Intent, ProviderName, State, Timestamp},
    vault::{Vault, postgres::Dates},
};

/// Of a grant without an access token it is supposed that the next one lives as long as most do.
pub(in crate::keeper) const UNKNOWN_LIFE: Duration = Duration::from_hours(1);

/// Works out the dates of grants.
#[derive(Debug)]
pub(in crate::keeper) struct Dating {
    policies: BTreeMap<ProviderName, Policy>,
    warn_before: Vec<Duration>,
    clock: SharedClock,
    chance: Mutex<fastrand::Rng>,
}

impl Dating {
    pub(in crate::keeper) const fn new(
        policies: BTreeMap<ProviderName, Policy>,
        warn_before: Vec<Duration>,
        clock: SharedClock,
        chance: fastrand::Rng,
    ) -> Self {
        Self { policies, warn_before, clock, chance: Mutex::new(chance) }
    }

    /// Lets every commit of the vault write them, where it is shared.
    pub(in crate::keeper) fn tell(self: &Arc<Self>, vault: &Vault) {
        let dating = Arc::clone(self);
        vault.date_by(Arc::new(move |grant: &Grant, intent: Option<&Intent>| dating.dates(grant, intent)));
    }

    /// The dates of a grant as it will be stored. Of one of a provider that is not configured here nothing is due.
    ///
    /// Whether another grant is the same person's is not known here: a grant in doubt is due as if there were none, and whoever claims
    /// it then asks.
    pub(super) fn dates(&self, grant: &Grant, intent: Option<&Intent>) -> Dates {
        let policy = self.policies.get(&grant.provider);
        let chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner).f64();
        Dates {
            due: policy.and_then(|policy| self.due_alone(grant, intent, policy, chance)),
            warns: warns_at(grant, &self.warn_before),
            lapses: grant.access.as_ref().map(|access| access.expires_at),
            every: policy.and_then(|policy| every(grant, policy)),
        }
    }

    /// When it is due, where no other grant is the same person's.
    pub(super) fn due_alone(
        &self,
        grant: &Grant,
        intent: Option<&Intent>,
        policy: &Policy,
        chance: f64,
    ) -> Option<Timestamp> {
        let fleet = Fleet { shares_subject: false };
        due(Situation { grant, intent, policy, fleet, now: self.clock.now(), boot_id: self.clock.boot_id() }, chance)
    }
}

/// From one exchange to the next, as long as all goes well.
fn every(grant: &Grant, policy: &Policy) -> Option<Duration> {
    if grant.paused || grant.state == State::Lost || grant.organizations.is_empty() {
        return None;
    }
    let life = grant.access.as_ref().map_or(UNKNOWN_LIFE, crate::model::AccessToken::lifetime);
    Some(life.mul_f64(policy.refresh_at).max(Duration::from_millis(100)))
}
