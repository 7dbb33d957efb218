//! The loops: who is due, and one dispatcher for each provider.

use std::{sync::Arc, time::Duration};

use super::{
    Shared, bounded,
    circuit::{CLIENT_REFUSED, REFUSED},
    exchange::Exchanged,
    following::{self, FOLLOWED},
    join::Seat,
    lane::{InFlight, Lane, Queued},
    load, news,
    slot::{Slot, Urgency},
    timers::boot_moment,
};
use crate::{
    clock::Now,
    config::Kind,
    lifecycle::warm,
    model::{Credential, FailingReason, Secret, State},
    provider::Exchange,
    task,
    vault::OnDuty,
};

/// Due slots that are taken from the timers at once.
const BATCH: usize = 1000;
/// A change of wall time against the boot-time clock by more than this is a jump.
const JUMP: Duration = Duration::from_secs(5);
/// A grant fetched within this time has its turn before the idle ones.
pub(super) const FETCHED_LATELY: Duration = Duration::from_hours(1);

/// Starts every loop.
pub(super) fn start(shared: &Arc<Shared>) {
    let loader = Arc::clone(shared);
    task::spawn_on(&shared.tasks, load::load(loader));
    if shared.is_bounded() {
        supervise(shared, bounded::keep_room);
        for number in 0..shared.lanes.len() {
            supervise(shared, move |shared| bounded::follow_due(shared, number));
        }
    } else {
        supervise(shared, due_loop);
    }
    supervise(shared, following::follow);
    supervise(shared, news::follow);
    for number in 0..shared.lanes.len() {
        supervise(shared, move |shared| dispatch(shared, number));
    }
}

/// Runs a loop until the keeper stops; should it ever panic, it begins anew and the log says so.
fn supervise<F>(shared: &Arc<Shared>, make: impl Fn(Arc<Shared>) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    supervise_boxed(shared, Box::new(move |shared| task::boxed(make(shared))));
}

/// The same, once for all loops.
fn supervise_boxed(shared: &Arc<Shared>, make: Box<dyn Fn(Arc<Shared>) -> task::Boxed<()> + Send>) {
    const REST: Duration = Duration::from_secs(1);
    let shared = Arc::clone(shared);
    task::spawn_on(&shared.clone().tasks, async move {
        loop {
            let mut running = tokio::spawn(make(Arc::clone(&shared)));
            tokio::select! {
                biased;
                ended = &mut running => {
                    if ended.is_ok() {
                        return;
                    }
                    tracing::error!("a loop of the keeper died and is begun anew");
                }
                () = shared.stopping.cancelled() => {
                    running.abort();
                    // Until it has really ended it may still start an exchange, and whoever drains must know of that.
                    let _ = running.await;
                    return;
                }
            }
            tokio::time::sleep(REST).await;
        }
    });
}

async fn due_loop(shared: Arc<Shared>) {
    let mut before = shared.now();
    loop {
        let now = shared.now();
        if jumped(before, now) {
            tracing::warn!("the wall clock was changed; every due time is worked out anew");
            shared.reschedule_all();
        }
        before = now;
        let due = shared.timers.take_due(now, BATCH);
        if due.is_empty() {
            shared.timers.sleep(now).await;
            continue;
        }
        for slot in due {
            shared.fell_due(&slot);
        }
        tokio::task::yield_now().await;
    }
}

/// Whether wall time moved against the boot-time clock between two looks.
fn jumped(before: Now, now: Now) -> bool {
    let boot = i128::from(u64::try_from(now.boot.saturating_sub(before.boot).as_millis()).unwrap_or(u64::MAX));
    let wall = i128::from(now.wall.as_millis()) - i128::from(before.wall.as_millis());
    (wall - boot).unsigned_abs() > JUMP.as_millis()
}

impl Shared {
    /// A timer has fired: queue the grant, or leave an idle one alone until its idle limit nears.
    fn fell_due(&self, slot: &Arc<Slot>) {
        let now = self.now();
        let brief = slot.brief();
        let Some(_) = brief.due else { return };
        let policy = &self.lane(slot).policy;
        match warm(policy, brief.refreshed_at, slot.last_fetched(), now.wall) {
            Ok(()) => {
                let lately = slot.last_fetched().is_some_and(|at| now.wall.since(at) <= FETCHED_LATELY);
                let urgency = if lately { Urgency::Fetched } else { Urgency::Idle };
                self.lane(slot).enqueue(slot, urgency, None);
            }
            // Unless an exchange that a caller asked for has ended meanwhile: then that one's due moment counts.
            Err(later) => self.timers.set(slot, |state| {
                let moment = if state.brief().due == brief.due { later } else { state.brief().due };
                moment.map(|moment| boot_moment(moment, now))
            }),
        }
    }

    /// After a change of wall time: what is due by the new wall time is brought forward; nothing is put off, since
    /// an access token has lapsed when either clock says so.
    fn reschedule_all(&self) {
        let now = self.now();
        for slot in self.index.slots() {
            let brief = slot.brief();
            let Some(due) = brief.due else { continue };
            let by_wall = boot_moment(due, now);
            self.timers.set(&slot, |state| state.timer().map(|timer| timer.get().min(by_wall)));
        }
    }

    /// The net below the timers: whatever should have a timer, a place in a queue or a flight and has none gets
    /// one. Gives back how many that were.
    pub(super) fn sweep(&self) -> usize {
        if self.is_bounded() {
            // There are no timers to fall through.
            return 0;
        }
        let now = self.now();
        let mut found = 0;
        for slot in self.index.slots() {
            let (brief, timer, flying) = {
                let mut state = slot.lock();
                state.calm_down(now.boot);
                (state.brief(), state.timer(), state.flight().is_some())
            };
            let idle = warm(&self.lane(&slot).policy, brief.refreshed_at, slot.last_fetched(), now.wall).is_err();
            if timer.is_none() && !flying && !idle && brief.due.is_some() {
                found += 1;
                self.set_timer(&slot, now);
            }
        }
        found
    }
}

/// Gives one provider's budget to those who wait, the most urgent first.
async fn dispatch(shared: Arc<Shared>, number: usize) {
    let lane = &shared.lanes[number];
    let provider = u16::try_from(number).unwrap_or(u16::MAX);
    let thawed = |slot: &Slot| lane.circuit.frozen_for(slot.brief().own_client).is_none();
    if shared.vault.judged().await.is_err() {
        // A token may be older than one that was sent since: none is sent, and the worker ends.
        return;
    }
    // Who finds out how a provider is that fails: this worker while it has this, and no other.
    let mut alone: Option<OnDuty> = None;
    loop {
        lane.something_to_do().await;
        alone = alone.filter(|alone| alone.is_good() && lane.circuit.is_doubtful());
        if alone.is_none() && lane.circuit.is_doubtful() {
            alone = lane.probing.begin().await;
        }
        lane.set_alone(alone.is_some());
        if lane.circuit.frozen().is_some() {
            let wait = if alone.is_some() { lane.circuit.until_probe(shared.now().boot) } else { FOLLOWED };
            if wait.is_zero() {
                probe(&shared, lane, provider).await;
                continue;
            }
            if !lane.has(thawed) {
                tokio::time::sleep(wait).await;
                continue;
            }
        }
        if alone.is_none() && lane.circuit.is_on_trial() {
            tokio::time::sleep(FOLLOWED).await;
            continue;
        }
        if let Err(wait) = lane.budget.take(lane.waiting()).await {
            tokio::time::sleep(wait.min(super::timers::LONGEST_SLEEP)).await;
            continue;
        }
        let taken = shared.now().boot;
        let Ok(permit) = Arc::clone(&lane.permits).acquire_owned().await else { return };
        let on_trial = lane.circuit.is_on_trial();
        // The freeze may have come while this waited for its turn. On trial, what cannot be harmed goes first, and what was
        // refused before goes last: most likely it is dead, and a provider that refuses it again is none the worse for it.
        let first = on_trial.then(|| {
            let harmless = lane.take(|slot| thawed(slot) && harmless(slot) && !was_refused(slot));
            harmless.or_else(|| lane.take(|slot| thawed(slot) && !was_refused(slot)))
        });
        let first = first.flatten();
        let Some(Queued { slot, in_flight }) = first.or_else(|| lane.take(thawed)) else { continue };
        let exchanging = {
            let (shared, seat) = (Arc::clone(&shared), Seat::new(&lane.permits, Some(permit)));
            Box::pin(async move {
                if Arc::clone(&shared).exchange(slot, in_flight, seat).await == Exchanged::Elsewhere {
                    // Each replica takes a turn for what is due; one of them uses it.
                    shared.lanes[number].budget.give_back(taken);
                }
            })
        };
        let exchanging = shared.tasks.spawn(exchanging);
        if on_trial {
            // Should the outage go on, one token is in doubt and not as many as may be exchanged at once.
            // Bounded, since an answer that the vault does not take is kept for as long as that lasts.
            let _ = tokio::time::timeout(shared.exchange_limit(), exchanging).await;
        }
    }
}

/// While a provider is frozen: one probe at a time with what cannot be harmed. An API key or a re-use token that
/// waits anyway; else a made-up credential, which a provider that is well refuses as such. Never a one-time token.
async fn probe(shared: &Arc<Shared>, lane: &Lane, provider: u16) {
    let Some(reason) = lane.circuit.frozen() else { return };
    if let Some(Queued { slot, in_flight }) = lane.take(|slot| harmless(slot) && tells_of(reason, slot)) {
        run_probe(shared, slot, in_flight).await;
        return;
    }
    if lane.config.client_secret_file.is_none() && lane.config.kind != Kind::Oauth2 {
        // Each of its grants has a client of its own: there is none to ask as, but whether it can be reached can be told.
        let reached = lane.endpoint.reachable().await.is_ok();
        shared.circuit_changed(provider, lane.circuit.reached(reached, shared.now().boot));
        return;
    }
    let made_up = Secret::new("consentry-probe");
    let made_up = match lane.config.kind {
        Kind::DineroPersonal => Credential::ApiKey(made_up),
        Kind::VismaConnect | Kind::Oauth2 => Credential::RefreshToken(made_up),
    };
    let exchange = Exchange { credential: &made_up, client: None, fresh_connection: true, not_after: None };
    let outcome = lane.endpoint.exchange(exchange).await;
    shared.circuit_changed(provider, lane.circuit.probed(&outcome, shared.now().boot));
}

/// The probe is a task of its own like every exchange, so that nothing cancels it half-way.
async fn run_probe(shared: &Arc<Shared>, slot: Arc<Slot>, in_flight: InFlight) {
    let seat = Seat::new(&shared.lane(&slot).permits, None);
    let task = task::spawn_on(&shared.tasks, Arc::clone(shared).exchange(slot, in_flight, seat));
    if matches!(tokio::time::timeout(shared.exchange_limit(), task).await, Ok(Err(_))) {
        tracing::error!("a probing exchange died");
    }
}

fn harmless(slot: &Slot) -> bool {
    let brief = slot.brief();
    !brief.one_time && !brief.paused && brief.state != State::Lost
}

fn was_refused(slot: &Slot) -> bool {
    slot.brief().state == State::Failing(FailingReason::Refused)
}

/// Whether its exchange says something about what froze the provider: one with a client of its own says nothing about
/// a refused client, and is not frozen by it; one that was refused itself says nothing about mass refusals, and would be
/// sent again and again.
fn tells_of(reason: &str, slot: &Slot) -> bool {
    match reason {
        CLIENT_REFUSED => !slot.brief().own_client,
        REFUSED => !was_refused(slot),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn a_jump_is_a_difference_between_the_clocks_and_not_their_common_way() {
        let at =
            |wall: i64, boot: u64| Now { wall: Timestamp::from_millis(wall * 1000), boot: Duration::from_secs(boot) };
        assert!(!jumped(at(1000, 10), at(90_000, 89_010)), "a suspended machine");
        assert!(!jumped(at(1000, 10), at(1033, 40)));
        assert!(jumped(at(1000, 10), at(4630, 40)));
        assert!(jumped(at(10_000, 10), at(6430, 40)));
    }
}
