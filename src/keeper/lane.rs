use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
};

use tokio::sync::{Notify, Semaphore};

use super::{
    KeeperError,
    budget::Budget,
    circuit::Circuit,
    slot::{Flight, FlightEnd, Place, Slot, Urgency},
    timers::boot_millis,
};
use crate::{config::ProviderConfig, lifecycle::Policy, model::ProviderName, provider::TokenEndpoint};

/// One provider in the keeper: its endpoint, its rules, and the queue of grants that want an exchange there.
pub(super) struct Lane {
    pub(super) name: ProviderName,
    pub(super) config: ProviderConfig,
    pub(super) policy: Policy,
    pub(super) endpoint: Arc<dyn TokenEndpoint>,
    pub(super) budget: Budget,
    pub(super) circuit: Circuit,
    pub(super) permits: Arc<Semaphore>,
    /// How many grants it has.
    pub(super) grants: AtomicUsize,
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
}

impl InFlight {
    /// Tells those who wait, while the flight goes on: nobody starts another.
    pub(super) fn tell(&self, result: Result<(), KeeperError>) {
        if let Some(end) = &self.end {
            end.send_if_modified(|told| {
                told.is_none() && {
                    *told = Some(result);
                    true
                }
            });
        }
    }

    /// Ends the flight, then tells those who wait.
    pub(super) fn end(mut self, result: Result<(), KeeperError>) {
        self.slot.lock().flight = None;
        self.tell(result);
        self.end = None;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.end.take().is_some() {
            self.slot.lock().flight = None;
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
        concurrency: usize,
    ) -> Self {
        Self {
            name: config.name.clone(),
            config,
            policy,
            endpoint,
            budget,
            circuit: Circuit::default(),
            permits: Arc::new(Semaphore::new(concurrency)),
            grants: AtomicUsize::new(0),
            queue: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    /// Queues an exchange of the grant unless one is queued or under way, and gives the flight to wait for. A more
    /// urgent call moves a queued one forward.
    pub(super) fn enqueue(&self, slot: &Arc<Slot>, urgency: Urgency) -> Flight {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = slot.lock();
        if let Some(flight) = state.flight.clone() {
            if let Some(place) = state.queued
                && urgency < place.urgency
                && let Some(queued) = queue.remove(&place)
            {
                let sooner = Place { urgency, ..place };
                state.queued = Some(sooner);
                queue.insert(sooner, queued);
            }
            return flight;
        }
        let (end, flight) = Flight::new();
        let lapses = state.brief.access.map_or(0, |access| boot_millis(access.expires_boot));
        let place = Place { urgency, lapses, grant: slot.id };
        state.flight = Some(flight.clone());
        state.queued = Some(place);
        let in_flight = InFlight { slot: Arc::clone(slot), end: Some(end) };
        queue.insert(place, Queued { slot: Arc::clone(slot), in_flight });
        self.arrived.notify_one();
        flight
    }

    /// The most urgent grant for which `fits` holds, among the first thousand.
    pub(super) fn take(&self, fits: impl Fn(&Slot) -> bool) -> Option<Queued> {
        const LOOK_AT: usize = 1000;
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let place = *queue.iter().take(LOOK_AT).find(|(_, queued)| fits(&queued.slot))?.0;
        let queued = queue.remove(&place)?;
        queued.slot.lock().queued = None;
        Some(queued)
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until somebody waits.
    pub(super) async fn somebody_waits(&self) {
        while self.waiting() == 0 {
            self.arrived.notified().await;
        }
    }
}
