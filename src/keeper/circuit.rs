use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::model::{ExchangeOutcome, GrantId};

/// So many answers in a row that tell nothing freeze a provider.
const SILENT_IN_ROW: u32 = 3;
/// Refusals of more distinct subjects than this, or than one grant in a hundred, within [`REFUSAL_WINDOW`] freeze it.
const MANY_REFUSALS: usize = 3;
const REFUSAL_WINDOW: Duration = Duration::from_hours(1);
/// Refusals that are remembered at most.
const MAX_REFUSALS: usize = 100_000;
/// A provider "answers others well around that time" if it did so within this long.
const RECENTLY: Duration = Duration::from_mins(5);
const FIRST_PROBE: Duration = Duration::from_secs(2);
const LAST_PROBE: Duration = Duration::from_secs(30);

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
    /// The last good exchanges of two different grants, the newest first.
    good: [Option<(Duration, GrantId)>; 2],
}

#[derive(Debug, Clone, Copy)]
struct Open {
    reason: &'static str,
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
    /// How many grants the provider has.
    pub(super) grants: usize,
    /// The boot-time clock.
    pub(super) boot: Duration,
}

impl Circuit {
    /// Takes note of an outcome.
    pub(super) fn observe(&self, seen: &Observation<'_>) -> Option<Change> {
        let mut state = self.lock();
        match seen.outcome {
            ExchangeOutcome::Granted(_) => {
                state.note_good(seen.boot, seen.grant);
                state.close()
            }
            ExchangeOutcome::Refused { .. } => {
                // The issuer is there and knows us: a probe that is refused is as good as one that is granted.
                let only_refusals = state.open.is_none_or(|open| open.reason != "refused");
                let closed = if only_refusals { state.close() } else { None };
                if state.note_refusal(seen) { state.open("refused", seen.boot).or(closed) } else { closed }
            }
            ExchangeOutcome::ClientRefused { .. } if seen.own_client => None,
            ExchangeOutcome::ClientRefused { .. } => state.open("client_refused", seen.boot),
            ExchangeOutcome::RateLimited { .. } => None,
            ExchangeOutcome::Unavailable { .. } | ExchangeOutcome::NotSent { .. } | ExchangeOutcome::Unknown { .. } => {
                state.silent = state.silent.saturating_add(1);
                if state.silent >= SILENT_IN_ROW { state.open("provider_unavailable", seen.boot) } else { None }
            }
        }
    }

    /// A probe that was no exchange of a grant: whether the provider is well.
    pub(super) fn probed(&self, well: bool) -> Option<Change> {
        if well { self.lock().close() } else { None }
    }

    /// Why the provider is frozen; `None` while all is well.
    pub(super) fn frozen(&self) -> Option<&'static str> {
        self.lock().open.map(|open| open.reason)
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

    /// Whether the provider has lately answered a grant other than this one well.
    pub(super) fn answers_others(&self, grant: GrantId, boot: Duration) -> bool {
        let state = self.lock();
        state.good.iter().flatten().any(|(at, other)| *other != grant && boot.saturating_sub(*at) <= RECENTLY)
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
        self.open = Some(Open { reason, next_probe: boot + FIRST_PROBE, probes: 0 });
        Some(Change::Opened(reason))
    }

    fn close(&mut self) -> Option<Change> {
        self.silent = 0;
        let open = self.open.take()?;
        if open.reason == "refused" {
            // What was refused before the freeze was its cause; it is not held against the provider again.
            self.refused.clear();
        }
        Some(Change::Closed)
    }

    fn note_good(&mut self, boot: Duration, grant: GrantId) {
        if self.good[0].is_some_and(|(_, last)| last != grant) {
            self.good[1] = self.good[0];
        }
        self.good[0] = Some((boot, grant));
    }

    /// Whether that is too many refusals to be so many customers' own doing.
    fn note_refusal(&mut self, seen: &Observation<'_>) -> bool {
        self.silent = 0;
        while self.refused.front().is_some_and(|(at, _)| seen.boot.saturating_sub(*at) > REFUSAL_WINDOW) {
            self.refused.pop_front();
        }
        if self.refused.len() < MAX_REFUSALS {
            self.refused.push_back((seen.boot, seen.subject));
        }
        let limit = MANY_REFUSALS.max(seen.grants / 100);
        if self.refused.len() <= limit {
            return false;
        }
        self.refused.iter().map(|(_, subject)| subject).collect::<HashSet<_>>().len() > limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NoAnswer;

    fn observe(circuit: &Circuit, outcome: &ExchangeOutcome, grant: u8, at: u64) -> Option<Change> {
        circuit.observe(&Observation {
            outcome,
            grant: GrantId::from_bytes([grant; 16]),
            subject: grant.into(),
            own_client: false,
            grants: 10,
            boot: Duration::from_secs(at),
        })
    }

    fn granted() -> ExchangeOutcome {
        ExchangeOutcome::Granted(Box::new(crate::model::Answer {
            access_token: crate::model::Secret::new("at"),
            token_type: "Bearer".into(),
            expires_in: None,
            scope: None,
            refresh_token: None,
            subject: None,
            client_id: None,
        }))
    }

    fn silence() -> ExchangeOutcome {
        ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: String::new() }
    }

    fn refused() -> ExchangeOutcome {
        ExchangeOutcome::Refused { detail: String::new() }
    }

    #[test]
    fn three_silences_in_a_row_freeze_and_an_answer_thaws() {
        let circuit = Circuit::default();
        assert_eq!(observe(&circuit, &silence(), 1, 0), None);
        assert_eq!(observe(&circuit, &granted(), 2, 1), None);
        assert_eq!(observe(&circuit, &silence(), 1, 2), None);
        assert_eq!(observe(&circuit, &silence(), 1, 3), None);
        assert_eq!(observe(&circuit, &silence(), 1, 4), Some(Change::Opened("provider_unavailable")));
        assert_eq!(observe(&circuit, &silence(), 1, 5), None, "one alarm for one cause");
        assert_eq!(circuit.frozen(), Some("provider_unavailable"));
        assert_eq!(observe(&circuit, &granted(), 1, 6), Some(Change::Closed));
        assert_eq!(circuit.frozen(), None);
    }

    #[test]
    fn a_refused_client_freezes_at_once_but_not_for_a_grants_own_client() {
        let circuit = Circuit::default();
        let outcome = ExchangeOutcome::ClientRefused { detail: String::new() };
        let own = Observation {
            outcome: &outcome,
            grant: GrantId::from_bytes([1; 16]),
            subject: 1,
            own_client: true,
            grants: 1,
            boot: Duration::ZERO,
        };
        assert_eq!(circuit.observe(&own), None);
        assert_eq!(observe(&circuit, &outcome, 1, 0), Some(Change::Opened("client_refused")));
    }

    #[test]
    fn refusals_of_many_subjects_within_an_hour_freeze() {
        let circuit = Circuit::default();
        for at in 0..10 {
            assert_eq!(observe(&circuit, &refused(), 1, at), None, "one subject, however often");
        }
        assert_eq!(observe(&circuit, &refused(), 2, 20), None);
        assert_eq!(observe(&circuit, &refused(), 3, 21), None);
        assert_eq!(observe(&circuit, &refused(), 4, 22), Some(Change::Opened("refused")));
        let spread = Circuit::default();
        for grant in 1..20 {
            assert_eq!(observe(&spread, &refused(), grant, u64::from(grant) * 1300), None);
        }
    }

    #[test]
    fn another_grants_success_is_proof_and_ones_own_is_not() {
        let circuit = Circuit::default();
        let [one, two] = [1, 2].map(|byte| GrantId::from_bytes([byte; 16]));
        observe(&circuit, &granted(), 1, 100);
        assert!(!circuit.answers_others(one, Duration::from_secs(101)));
        assert!(circuit.answers_others(two, Duration::from_secs(101)));
        observe(&circuit, &granted(), 2, 110);
        observe(&circuit, &granted(), 2, 120);
        assert!(circuit.answers_others(two, Duration::from_secs(130)));
        assert!(!circuit.answers_others(two, Duration::from_secs(500)));
    }

    #[test]
    fn probes_are_single_and_spread() {
        let circuit = Circuit::default();
        observe(&circuit, &ExchangeOutcome::ClientRefused { detail: String::new() }, 1, 100);
        let at = Duration::from_secs;
        assert_eq!(circuit.until_probe(at(100)), at(2));
        assert_eq!(circuit.until_probe(at(102)), Duration::ZERO);
        assert_eq!(circuit.until_probe(at(102)), at(4));
        for _ in 0..10 {
            let wait = circuit.until_probe(at(5000));
            assert!(wait <= LAST_PROBE);
        }
        assert_eq!(circuit.probed(false), None);
        assert_eq!(circuit.probed(true), Some(Change::Closed));
    }
}
