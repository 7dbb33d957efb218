//! The deliveries of one receiver: its own queue and its own few places, so that nobody waits for another's receiver.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::Client;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Parts,
    gate::Gate,
    post::{Outcome, post},
    receiver::Receiver,
    schedule::{Next, after_failure, pause},
};
use crate::{
    clock::Now,
    model::{EventId, OrganizationId, Timestamp},
    outbox::Delivery,
    task,
};

/// How many deliveries a receiver is sent at once. Few, since the order of events is lost between them.
const PLACES: usize = 4;
/// No sleep is longer, so that a suspended machine or a changed clock is noticed.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// What waits for a receiver, the oldest event first. It holds what the outbox says is due, which has a bound of its own.
pub(super) type Queue = BTreeMap<(Timestamp, EventId), Delivery>;

/// One receiver and what is on its way to it.
#[derive(Debug)]
pub(super) struct Lane {
    receiver: Receiver,
    client: Client,
    parts: Parts,
    gate: Gate,
    state: Mutex<State>,
    /// There may be something to begin.
    work: Notify,
    attempts: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    /// What is being sent, and whose it is.
    under_way: HashMap<EventId, Option<OrganizationId>>,
    /// How many attempts in a row have failed, of whatever events.
    failures: u32,
    /// Until then the receiver is left alone, on the boot-time clock.
    resume_at: Duration,
    /// It has said that it wants nothing more (status 410); until the worker is started anew or reads its configuration again.
    gone: bool,
}

impl State {
    /// The oldest delivery that may be begun; where another worker delivers, only of what this one alone knows. Of one organization nothing is begun while something else is under way, so that
    /// its events arrive in their order unless an attempt fails.
    fn next(&mut self, is_open: bool) -> Option<Delivery> {
        let waits = |delivery: &Delivery| {
            if !is_open && !delivery.is_own {
                return true;
            }
            let organization = &delivery.event.organization;
            let is_alone = organization.is_none() || self.under_way.values().all(|other| other != organization);
            !is_alone || self.under_way.contains_key(&delivery.event.id)
        };
        let key = self.queue.iter().find(|(_, delivery)| !waits(delivery)).map(|(key, _)| *key)?;
        self.queue.remove(&key)
    }
}

impl Lane {
    /// A lane to `receiver`, with what waited in an earlier lane to it.
    pub(super) fn new(receiver: Receiver, client: Client, parts: Parts, gate: Gate, queue: Queue) -> Arc<Self> {
        let state = Mutex::new(State { queue, ..State::default() });
        Arc::new(Self { receiver, client, parts, gate, state, work: Notify::new(), attempts: TaskTracker::new() })
    }

    /// Takes in a delivery that is due. What waits already is not taken twice, and what is under way waits for its end: it may
    /// have failed and be due again before that is noted.
    pub(super) fn add(&self, delivery: Delivery) {
        self.lock().queue.insert((delivery.event.at, delivery.event.id), delivery);
        self.work.notify_one();
    }

    /// The gate has opened: what waited may be begun.
    pub(super) fn look(&self) {
        self.work.notify_one();
    }

    /// Delivers until `stopping`; attempts under way then finish within their time limit. Gives back what still waits.
    pub(super) async fn run(self: Arc<Self>, stopping: CancellationToken) -> Queue {
        while !stopping.is_cancelled() {
            let wait = self.begin_what_may();
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                () = self.work.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.attempts.close();
        self.attempts.wait().await;
        std::mem::take(&mut self.lock().queue)
    }

    /// Begins as much as may be begun now, and says when to look again.
    fn begin_what_may(self: &Arc<Self>) -> Duration {
        let is_open = self.gate.is_open();
        let now = self.parts.clock.now();
        let mut state = self.lock();
        if state.gone {
            let unwanted = std::mem::take(&mut state.queue);
            drop(state);
            if !unwanted.is_empty() {
                let lane = Arc::clone(self);
                self.attempts.spawn(task::boxed(async move { lane.give_all_up(unwanted).await }));
            }
            return LONGEST_SLEEP;
        }
        let rest = state.resume_at.saturating_sub(now.boot);
        if !rest.is_zero() && !state.queue.is_empty() {
            return rest.min(LONGEST_SLEEP);
        }
        let places = if state.failures == 0 { PLACES } else { 1 };
        while state.under_way.len() < places
            && let Some(delivery) = state.next(is_open)
        {
            let id = delivery.event.id;
            // Another worker may have made it while it was the one that delivers.
            if !self.parts.outbox.is_open(&id, self.receiver.id) {
                continue;
            }
            state.under_way.insert(id, delivery.event.organization.clone());
            let place = Place { lane: Arc::clone(self), at: delivery.event.at, id, attempts: delivery.attempts };
            self.attempts.spawn(task::boxed(async move { place.lane.attempt(&delivery).await }));
        }
        LONGEST_SLEEP
    }

    async fn give_all_up(&self, unwanted: Queue) {
        for delivery in unwanted.into_values() {
            self.parts.outbox.give_up(&delivery.event.id, self.receiver.id).await;
        }
    }

    /// Sends once and does what follows from the answer.
    async fn attempt(&self, delivery: &Delivery) {
        let began = self.parts.clock.now().boot;
        let outcome = post(&self.client, &self.parts.clock, &self.receiver, &delivery.event).await;
        let now = self.parts.clock.now();
        self.parts.metrics.webhook_attempted(outcome == Outcome::Delivered);
        let took = now.boot.saturating_sub(began);
        let (event, id) = (&delivery.event.id, self.receiver.id);
        match outcome {
            Outcome::Delivered => {
                self.succeeded(delivery, took);
                self.parts.outbox.delivered(event, id).await;
            }
            Outcome::Gone => {
                self.is_gone();
                self.parts.outbox.give_up(event, id).await;
            }
            Outcome::Failed { status, detail, retry_after } => {
                self.failed(now, status, &detail, retry_after);
                let attempts = delivery.attempts.saturating_add(1);
                match after_failure(attempts, retry_after, now.wall, fastrand::f64()) {
                    Next::At(until) => {
                        tracing::debug!(
                            receiver = self.receiver.name,
                            event.id = %event,
                            attempt = attempts,
                            http.status = status,
                            error = detail,
                            until = %until,
                            "a webhook was not delivered and is tried again"
                        );
                        self.parts.outbox.put_off(event, id, until).await;
                    }
                    Next::Never => {
                        self.tell_of_dead_letter(delivery, attempts);
                        self.parts.outbox.give_up(event, id).await;
                    }
                }
            }
        }
    }

    fn succeeded(&self, delivery: &Delivery, took: Duration) {
        let failures = {
            let mut state = self.lock();
            state.resume_at = Duration::ZERO;
            std::mem::take(&mut state.failures)
        };
        if failures > 0 {
            tracing::info!(receiver = self.receiver.name, failures, "a webhook's receiver takes deliveries again");
        }
        tracing::debug!(
            receiver = self.receiver.name,
            event.id = %delivery.event.id,
            event.kind = delivery.event.kind.word(),
            attempt = delivery.attempts.saturating_add(1),
            took.ms = took.as_millis(),
            "a webhook was delivered"
        );
    }

    /// Leaves the receiver alone for a while; the first failure of several is said.
    fn failed(&self, now: Now, status: Option<u16>, detail: &str, retry_after: Option<Duration>) {
        let is_first = {
            let mut state = self.lock();
            state.failures = state.failures.saturating_add(1);
            state.resume_at = state.resume_at.max(now.boot + pause(state.failures, retry_after));
            state.failures == 1
        };
        if is_first {
            tracing::warn!(
                receiver = self.receiver.name,
                http.status = status,
                error = detail,
                retry_after.s = retry_after.map(|wait| wait.as_secs()),
                "a webhook's receiver does not take what it is sent; each delivery is tried again over three days"
            );
        }
    }

    fn is_gone(&self) {
        if !std::mem::replace(&mut self.lock().gone, true) {
            tracing::error!(
                receiver = self.receiver.name,
                "a webhook's receiver answers 410 Gone: nothing more is sent to it before the worker is started anew or reads \
                 its configuration again; take it out of the configuration, or mend it"
            );
        }
    }

    fn tell_of_dead_letter(&self, delivery: &Delivery, attempts: u32) {
        tracing::error!(
            receiver = self.receiver.name,
            event.id = %delivery.event.id,
            event.kind = delivery.event.kind.word(),
            organization = delivery.event.organization.as_ref().map(OrganizationId::as_str),
            attempts,
            "a webhook could not be delivered and is given up"
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of an attempt; free again also where the attempt panics.
struct Place {
    lane: Arc<Lane>,
    at: Timestamp,
    id: EventId,
    attempts: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.lane.lock();
            state.under_way.remove(&self.id);
            // The outbox hands out anew what it has not heard of for long; this attempt has just answered that.
            let key = (self.at, self.id);
            if state.queue.get(&key).is_some_and(|waiting| waiting.attempts <= self.attempts) {
                state.queue.remove(&key);
            }
        }
        self.lane.work.notify_one();
    }
}
