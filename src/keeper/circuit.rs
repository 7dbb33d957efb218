mod standing;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub(super) use self::standing::Standing;
use crate::model::{ExchangeOutcome, GrantId};

/// So many answers in a row that tell nothing freeze a provider.
const SILENT_IN_ROW: u32 = 3;
/// Refusals of more distinct subjects than this, or than one grant in a hundred, within [`REFUSAL_WINDOW`] freeze it.
const MANY_REFUSALS: usize = 3;
const REFUSAL_WINDOW: Duration = Duration::from_hours(1);
/// Refusals that are remembered at most.
const MAX_REFUSALS: usize = 100_000;
const FIRST_PROBE: Duration = Duration::from_secs(2);
const LAST_PROBE: Duration = Duration::from_secs(30);
/// How long mass refusals freeze a provider at least where nothing harmless can show that they are over, and how long an
/// outage does that came back although a probe was answered; doubled each time, up to the longest.
const FIRST_REST: Duration = Duration::from_secs(30);
const LAST_REST: Duration = Duration::from_mins(5);

/// Why a provider is frozen, in the contract's words.
pub(super) const REFUSED: &str = "refused";
pub(super) const CLIENT_REFUSED: &str = "client_refused";
const UNAVAILABLE: &str = "provider_unavailable";

/// Whether one cause fails all grants of a provider at once (rule 9 of the design): then nothing more is declared,
/// one alarm is raised, and single probes find out when it is over.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    state: Mutex<CircuitState>,
}

#[derive(Debug, Default)]
struct CircuitState {
    open: Option<Open>,
    silent: u32,
    refused: VecDeque<(Duration, u64)>,
    /// It was frozen for this, and only a probe has shown that it is over: the next of its kind freezes it again.
    on_trial: Option<&'static str>,
    /// How often in a row it was given a trial.
    relapses: u32,
    /// The last good exchanges of two different grants, the newest first.
    good: [Option<(Duration, GrantId)>; 2],
}

#[derive(Debug, Clone, Copy)]
struct Open {
    reason: &'static str,
    since: Duration,
    next_probe: Duration,
    probes: u32,
}

/// What an outcome changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The provider is frozen from now on.
    Opened(&'static str),
    /// All is well again.
    Closed,
}

/// One exchange as the circuit sees it.
#[derive(Debug)]
pub(super) struct Observation<'a> {
    pub(super) outcome: &'a ExchangeOutcome,
    pub(super) grant: GrantId,
    /// Whose grant it is: a hash of the subject, or of the grant where that is unknown.
    pub(super) subject: u64,
    /// It has client credentials of its own, so that their refusal says nothing of the provider's.
    pub(super) own_client: bool,
    /// A refusal of it says nothing of the provider: it is only being enrolled, was in doubt, or known to be dead.
    pub(super) doubtful: bool,
    /// How many grants the provider has.
    pub(super) grants: usize,
    /// The boot-time clock.
    pub(super) boot: Duration,
}

impl Circuit {
    /// Takes note of an outcome.
    pub(super) fn observe(&self, seen: &Observation<'_>) -> Option<Change> {
        let mut state = self.lock();
        // With another client, an answer tells nothing of the one that is refused.
        let tells = !(seen.own_client && state.is_open_for(CLIENT_REFUSED));
        match seen.outcome {
            ExchangeOutcome::Granted(_) => {
                state.note_good(seen.boot, seen.grant);
                if tells { state.close() } else { None }
            }
            ExchangeOutcome::Refused { .. } => {
                state.silent = 0;
                state.on_trial = state.on_trial.filter(|reason| *reason == REFUSED);
                // The issuer is there and knows us: a probe that is refused is as good as one that is granted.
                let closed = if tells && !state.is_open_for(REFUSED) { state.close() } else { None };
                let many = !seen.doubtful && state.note_refusal(seen);
                if many { state.open(REFUSED, seen.boot).or(closed) } else { closed }
            }
            ExchangeOutcome::ClientRefused { .. } if seen.own_client => {
                state.silent = 0;
                None
            }
            ExchangeOutcome::ClientRefused { .. } => state.open(CLIENT_REFUSED, seen.boot),
            ExchangeOutcome::RateLimited { .. } => None,
            ExchangeOutcome::Unavailable { .. } | ExchangeOutcome::NotSent { .. } | ExchangeOutcome::Unknown { .. } => {
                state.silent = state.silent.saturating_add(1);
                let relapsed = state.on_trial.is_some_and(|reason| reason == UNAVAILABLE);
                if relapsed || state.silent >= SILENT_IN_ROW { state.open(UNAVAILABLE, seen.boot) } else { None }
            }
        }
    }

    /// Takes note of a probe with a made-up credential, which a provider that is well refuses as such.
    ///
    /// That our client is refused shows at least that the provider answers. Neither mass refusals nor an outage that only
    /// real credentials meet are shown to be over by that: after a rest the provider is given a trial, which ends badly
    /// with the next refusal or silence, and well with the next good answer.
    pub(super) fn probed(&self, outcome: &ExchangeOutcome, boot: Duration) -> Option<Change> {
        let mut state = self.lock();
        let open = state.open?;
        match (open.reason, outcome) {
            (REFUSED | UNAVAILABLE, ExchangeOutcome::Refused { .. })
            | (UNAVAILABLE, ExchangeOutcome::ClientRefused { .. }) => state.give_trial(open, boot),
            (_, ExchangeOutcome::Refused { .. } | ExchangeOutcome::Granted(_)) => state.close(),
            _ => None,
        }
    }

    /// Takes note of a probe that asked with no credential at all, which tells about an outage and nothing else; after
    /// mass refusals there is nothing better than a trial.
    pub(super) fn reached(&self, reached: bool, boot: Duration) -> Option<Change> {
        let mut state = self.lock();
        let open = state.open.filter(|_| reached)?;
        state.give_trial(open, boot)
    }

    /// Why the provider is frozen; `None` while all is well.
    pub(super) fn frozen(&self) -> Option<&'static str> {
        self.lock().open.map(|open| open.reason)
    }

    /// Why a grant's exchanges are frozen: not for what only concerns the provider's client where it has its own.
    pub(super) fn frozen_for(&self, own_client: bool) -> Option<&'static str> {
        self.frozen().filter(|reason| !(own_client && *reason == CLIENT_REFUSED))
    }

    /// For how long it has been frozen.
    pub(super) fn frozen_since(&self, boot: Duration) -> Duration {
        self.lock().open.map_or(Duration::ZERO, |open| boot.saturating_sub(open.since))
    }

    /// While frozen: how long until the next probe, which counts as made when this says zero.
    pub(super) fn until_probe(&self, boot: Duration) -> Duration {
        let mut state = self.lock();
        let Some(open) = &mut state.open else { return Duration::ZERO };
        let wait = open.next_probe.saturating_sub(boot);
        if wait.is_zero() {
            open.probes = open.probes.saturating_add(1);
            open.next_probe = boot + (FIRST_PROBE * (1 << open.probes.min(6))).min(LAST_PROBE);
        }
        wait
    }

    /// Whether it has thawed, and no grant's answer has confirmed yet that it should have: one exchange at a time.
    pub(super) fn is_on_trial(&self) -> bool {
        self.lock().on_trial.is_some()
    }

    /// Whether it is frozen or on trial.
    pub(super) fn is_doubtful(&self) -> bool {
        let state = self.lock();
        state.open.is_some() || state.on_trial.is_some()
    }

    /// What other workers are to know.
    pub(super) fn standing(&self) -> Standing {
        let state = self.lock();
        Standing { open: state.open.map(|open| open.reason), trial: state.on_trial, relapses: state.relapses }
    }

    /// Takes over what another worker has found out; what was observed here and speaks against it is forgotten.
    pub(super) fn follow(&self, standing: Standing, boot: Duration) -> Option<Change> {
        let mut state = self.lock();
        let change = match (standing.open, state.open) {
            (Some(reason), None) => state.open(reason, boot),
            (Some(reason), Some(open)) => {
                state.open = Some(Open { reason, ..open });
                None
            }
            (None, Some(_)) if standing.trial.is_some() => {
                state.open = None;
                Some(Change::Closed)
            }
            (None, _) => state.close(),
        };
        if standing.open.is_none() {
            state.silent = 0;
        }
        state.on_trial = standing.trial;
        state.relapses = standing.relapses;
        change
    }

    /// How long ago the provider last answered a grant other than this one well; `None` if it never did.
    pub(super) fn answered_others(&self, grant: GrantId, boot: Duration) -> Option<Duration> {
        let state = self.lock();
        let others = state.good.iter().flatten().filter(|(_, other)| *other != grant);
        others.map(|(at, _)| boot.saturating_sub(*at)).min()
    }

    fn lock(&self) -> MutexGuard<'_, CircuitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CircuitState {
    fn open(&mut self, reason: &'static str, boot: Duration) -> Option<Change> {
        if self.open.is_some() {
            return None;
        }
        self.open = Some(Open { reason, since: boot, next_probe: boot + FIRST_PROBE, probes: 0 });
        self.on_trial = None;
        Some(Change::Opened(reason))
    }

    fn is_open_for(&self, reason: &str) -> bool {
        self.open.is_some_and(|open| open.reason == reason)
    }

    /// Closes once the provider has rested, with what is remembered against it. After an outage the first trial is given
    /// at once.
    fn give_trial(&mut self, open: Open, boot: Duration) -> Option<Change> {
        let at_once = open.reason != REFUSED && self.relapses == 0;
        let rest = if at_once { Duration::ZERO } else { FIRST_REST * (1 << self.relapses.min(10)) };
        if boot.saturating_sub(open.since) < rest.min(LAST_REST) {
            return None;
        }
        self.open = None;
        self.silent = 0;
        self.on_trial = Some(open.reason);
        self.relapses = self.relapses.saturating_add(1);
        Some(Change::Closed)
    }

    fn close(&mut self) -> Option<Change> {
        self.silent = 0;
        let open = self.open.take()?;
        if open.reason == REFUSED {
            // What was refused before the freeze was its cause; it is not held against the provider again.
            self.refused.clear();
        }
        Some(Change::Closed)
    }

    fn note_good(&mut self, boot: Duration, grant: GrantId) {
        if self.on_trial.take() == Some(REFUSED) {
            self.refused.clear();
        }
        self.relapses = 0;
        if self.good[0].is_some_and(|(_, last)| last != grant) {
            self.good[1] = self.good[0];
        }
        self.good[0] = Some((boot, grant));
    }

    /// Whether that is too many refusals to be so many customers' own doing.
    fn note_refusal(&mut self, seen: &Observation<'_>) -> bool {
        while self.refused.front().is_some_and(|(at, _)| seen.boot.saturating_sub(*at) > REFUSAL_WINDOW) {
            self.refused.pop_front();
        }
        if self.refused.len() < MAX_REFUSALS {
            self.refused.push_back((seen.boot, seen.subject));
        }
        if self.on_trial.take() == Some(REFUSED) {
            return true;
        }
        let limit = MANY_REFUSALS.max(seen.grants / 100);
        if self.refused.len() <= limit {
            return false;
        }
        self.refused.iter().map(|(_, subject)| subject).collect::<HashSet<_>>().len() > limit
    }
}
