use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore};

use super::{
    KeeperError,
    budget::Budget,
    circuit::Circuit,
    following::Heard,
    slot::{Brief, Flight, FlightEnd, Outcome, Place, Slot, Urgency},
    timers::boot_millis,
};
use crate::{
    config::ProviderConfig,
    lifecycle::Policy,
    model::{GrantId, ProviderName},
    provider::TokenEndpoint,
    vault::{Duty, postgres::Hold},
};

/// How many of those who wait are looked at to find one that fits.
const LOOK_AT: usize = 1000;
/// What lapses within so many milliseconds, a quarter of a minute, is taken in each process's own order where several share the vault: in
/// one order all of them would reach for the same grants at once, and all but one in vain.
const ABOUT_THE_SAME: u64 = 1 << 14;

/// One provider in the keeper: its endpoint, its rules, and the queue of grants that want an exchange there.
pub(super) struct Lane {
    pub(super) name: ProviderName,
    pub(super) config: ProviderConfig,
    pub(super) policy: Policy,
    pub(super) endpoint: Arc<dyn TokenEndpoint>,
    pub(super) budget: Budget,
    pub(super) circuit: Circuit,
    /// How other workers say that it is.
    pub(super) heard: Heard,
    /// Probing it while it is frozen, and trying it while it is on trial: one worker does that.
    pub(super) probing: Duty,
    pub(super) permits: Arc<Semaphore>,
    /// How many slots it has.
    pub(super) grants: AtomicUsize,
    /// This worker is the one that probes and tries it.
    alone: AtomicBool,
    /// It was told of as failing, and has not been told of as well since.
    pub(super) told_failing: AtomicBool,
    /// What this process's order of grants is made of; `None` where it has the vault for itself.
    order: Option<u64>,
    queue: Mutex<BTreeMap<Place, Queued>>,
    arrived: Notify,
}

/// A grant that waits for its exchange, with the end that tells those who wait for it.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) slot: Arc<Slot>,
    pub(super) in_flight: InFlight,
}

/// Ends a slot's flight exactly once, also when the exchange's task dies.
#[derive(Debug)]
pub(super) struct InFlight {
    slot: Arc<Slot>,
    end: Option<FlightEnd>,
    /// Until this moment of the boot-time clock an operator takes the risk of a replay.
    risk_until: Option<Duration>,
    /// Where it was claimed before it was asked for: the claim, kept until it has ended.
    claim: Option<Hold>,
    /// What the last exchange had left behind when this one was asked for, and the commit that the slot knew of then.
    seen: (u64, Outcome),
}

impl InFlight {
    /// Whether an exchange has ended and was stored since this one was asked for.
    pub(super) fn is_over(&self, brief: &Brief) -> bool {
        let (sequence, outcome) = self.seen;
        brief.sequence != sequence && brief.outcome() != outcome
    }

    /// Whether an operator takes the risk of a replay, so that a doubtful or lost grant may be exchanged.
    pub(super) fn is_at_risk(&self, boot: Duration) -> bool {
        self.risk_until.is_some_and(|until| boot < until)
    }

    /// Tells those who wait, while the flight goes on: nobody starts another.
    pub(super) fn tell(&self, result: Result<(), KeeperError>) {
        if let Some(end) = &self.end {
            end.tell(result);
        }
    }

    /// Ends the flight, then tells those who wait.
    pub(super) fn end(mut self, result: Result<(), KeeperError>) {
        self.slot.lock().land();
        self.tell(result);
        self.end = None;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.end.take().is_some() {
            self.slot.lock().land();
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Lane {
    pub(super) fn new(
        config: ProviderConfig,
        policy: Policy,
        endpoint: Arc<dyn TokenEndpoint>,
        budget: Budget,
        probing: Duty,
        concurrency: usize,
        order: Option<u64>,
    ) -> Self {
        Self {
            name: config.name.clone(),
            config,
            policy,
            endpoint,
            budget,
            circuit: Circuit::default(),
            heard: Heard::default(),
            probing,
            permits: Arc::new(Semaphore::new(concurrency)),
            grants: AtomicUsize::new(0),
            alone: AtomicBool::new(false),
            told_failing: AtomicBool::new(false),
            order,
            queue: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    /// Queues an exchange of the grant unless one is queued or under way, and gives the flight to wait for. A more
    /// urgent call moves a queued one forward. Where `seen` is given and an exchange has ended since that was so, there
    /// is nothing to wait for: whoever asked looks again.
    pub(super) fn enqueue(&self, slot: &Arc<Slot>, urgency: Urgency, seen: Option<Outcome>) -> Option<Flight> {
        self.enqueue_with(slot, urgency, seen, None, None)
    }

    /// Queues an exchange for which an operator takes the risk, until that moment of the boot-time clock, or takes the
    /// one that is queued already for it.
    pub(super) fn enqueue_at_risk(&self, slot: &Arc<Slot>, until: Duration) -> Option<Flight> {
        self.enqueue_with(slot, Urgency::Awaited, None, Some(until), None)
    }

    /// Whether this worker is the one that probes and tries a provider that fails.
    pub(super) fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }

    pub(super) fn set_alone(&self, alone: bool) {
        self.alone.store(alone, Ordering::Relaxed);
    }

    /// Queues an exchange of a grant that is due and was claimed for that. One that is queued already gets this claim; one that is under way
    /// goes on without it.
    pub(super) fn enqueue_claimed(&self, slot: &Arc<Slot>, urgency: Urgency, claim: Hold) {
        let _ = self.enqueue_with(slot, urgency, None, None, Some(claim));
    }

    /// What was claimed and has not had its turn: it is given up, since it will have none here.
    pub(super) fn let_go(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).values_mut().for_each(|queued| {
            queued.in_flight.claim = None;
        });
    }

    fn enqueue_with(
        &self,
        slot: &Arc<Slot>,
        urgency: Urgency,
        seen: Option<Outcome>,
        risk_until: Option<Duration>,
        claim: Option<Hold>,
    ) -> Option<Flight> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = slot.lock();
        if let Some(flight) = state.flight().cloned() {
            if let (Some(place), Some(claim)) = (state.queued(), claim)
                && let Some(queued) = queue.get_mut(&place)
            {
                queued.in_flight.claim = Some(claim);
            }
            if let Some(place) = state.queued()
                && (urgency < place.urgency || risk_until.is_some())
                && let Some(mut queued) = queue.remove(&place)
            {
                queued.in_flight.risk_until = risk_until.or(queued.in_flight.risk_until);
                let sooner = Place { urgency: urgency.min(place.urgency), ..place };
                state.move_to(Some(sooner));
                queue.insert(sooner, queued);
            }
            return Some(flight);
        }
        if seen.is_some_and(|seen| seen != state.brief().outcome()) {
            return None;
        }
        let (end, flight) = Flight::new();
        let lapses = state.brief().access.map_or(0, |access| boot_millis(access.expires_boot));
        let place = place(self.order, urgency, lapses, slot.id);
        state.queue(flight.clone(), place);
        let brief = state.brief();
        let seen = (brief.sequence, brief.outcome());
        let in_flight = InFlight { slot: Arc::clone(slot), end: Some(end), risk_until, claim, seen };
        queue.insert(place, Queued { slot: Arc::clone(slot), in_flight });
        self.arrived.notify_one();
        Some(flight)
    }

    /// The most urgent grant for which `fits` holds, among the first thousand.
    pub(super) fn take(&self, fits: impl Fn(&Slot) -> bool) -> Option<Queued> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let place = *queue.iter().take(LOOK_AT).find(|(_, queued)| fits(&queued.slot))?.0;
        let queued = queue.remove(&place)?;
        queued.slot.lock().move_to(None);
        Some(queued)
    }

    /// Whether [`take`](Self::take) would find one.
    pub(super) fn has(&self, fits: impl Fn(&Slot) -> bool) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.values().take(LOOK_AT).any(|queued| fits(&queued.slot))
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until there is something to do: somebody waits, or the provider is frozen and has to be probed.
    pub(super) async fn something_to_do(&self) {
        while self.waiting() == 0 && self.circuit.frozen().is_none() {
            self.arrived.notified().await;
        }
    }

    /// The circuit has opened: [`something_to_do`](Self::something_to_do) looks again.
    pub(super) fn froze(&self) {
        self.arrived.notify_one();
    }
}

fn place(order: Option<u64>, urgency: Urgency, lapses: u64, grant: GrantId) -> Place {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let Some(order) = order else { return Place { urgency, lapses, turn: 0, grant } };
    let id = grant.as_bytes();
    let mixed =
        (u64::from_be_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]]) ^ order).wrapping_mul(ODD);
    Place { urgency, lapses: lapses / ABOUT_THE_SAME * ABOUT_THE_SAME, turn: mixed ^ (mixed >> 32), grant }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places of grants that lapse one after the other within a quarter of a minute, and of two that lapse later, in order.
    fn in_order(order: Option<u64>) -> Vec<u8> {
        let lapses = |grant: u8| ABOUT_THE_SAME * if grant < 100 { 7 } else { 8 } + u64::from(grant);
        let grants = (0..102).map(|grant| (grant, GrantId::from_bytes([grant; 16])));
        let mut places: Vec<Place> = grants.map(|(grant, id)| place(order, Urgency::Idle, lapses(grant), id)).collect();
        places.sort_unstable();
        places.into_iter().map(|place| place.grant.as_bytes()[0]).collect()
    }

    #[test]
    fn processes_that_share_a_vault_begin_with_different_grants_of_those_that_lapse_at_about_the_same_time() {
        let orders = [11, 12, 13].map(|order| in_order(Some(order)));
        for (one, other) in [(0, 1), (1, 2), (0, 2)] {
            let at_once = orders[one][..10].iter().filter(|grant| orders[other][..10].contains(grant)).count();
            assert!(at_once <= 4, "{orders:?}");
        }
        assert!(orders.iter().all(|order| order[100..].iter().all(|grant| *grant >= 100)), "who lapses later waits");
    }

    #[test]
    fn a_process_that_has_its_vault_for_itself_takes_first_what_lapses_first() {
        assert!(in_order(None).is_sorted());
    }
}
