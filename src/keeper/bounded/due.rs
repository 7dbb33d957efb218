//! What is due, where the fleet is not in memory: it is claimed from the database, as much as can be sent within about a second.
//!
//! A claim comes with its grant, and waits with it in the lane's queue. By the time of its turn an exchange looks at the grant anew, as
//! ever; here it is decided whether it gets a turn at all. What is not to be exchanged now is put off: its dates are written, and its
//! claim is given up.

use std::{sync::Arc, time::Duration};

use super::{
    super::{
        Shared,
        index::Before,
        lane::Lane,
        run::FETCHED_LATELY,
        slot::{Brief, Slot, Urgency},
    },
    Bounded,
};
use crate::{
    lifecycle::{DoubtfulTry, Fleet, Situation, due, may_try, warm},
    model::{DoubtReason, FailingReason, Grant, State, Timestamp},
    task,
    vault::{
        Stored,
        postgres::{Dates, Hold, MOST_DUE},
    },
};

/// How many exchanges a second one place makes, at best.
const A_PLACE_MAKES: usize = 4;
/// How many are claimed at once, at most.
const MOST_CLAIMED: usize = MOST_DUE as usize;
/// How many are claimed by the worker that tries one at a time, so that there is one among them which can be tried.
const ON_TRIAL: usize = 20;
/// And by each other, which does not try as long as that one is there: as few as make it ask whether it is.
const ON_ANOTHERS_TRIAL: usize = 1;
/// How soon it is looked for room, and for more that is due, where there was more than there was room for.
const SOON: Duration = Duration::from_millis(20);
/// A grant in doubt that another of the same person may share is looked at again so much later: the other may have gone.
const LOOKED_AT_AGAIN: Duration = Duration::from_mins(10);
/// What is due while its provider is frozen for most of its grants is put off by half as long as that has lasted, between these, and up to twice
/// that: it is not brought forward when the provider is well again, and must not be claimed again and again until then.
const WHILE_FROZEN: [Duration; 2] = [Duration::from_secs(5), Duration::from_mins(2)];

/// What becomes of a grant that was claimed because it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It waits for its exchange.
    Now(Urgency),
    /// It is due then; `None`: not by itself.
    Later(Option<Timestamp>),
}

/// Claims what is due at one provider, until the keeper stops.
pub(in crate::keeper) async fn follow_due(shared: Arc<Shared>, number: usize) {
    let (Some(bounded), Some(interval)) = (&shared.bounded, shared.vault.news_interval()) else { return };
    let lane = &shared.lanes[number];
    loop {
        let is_soon = shared.is_loaded() && shared.claim_due(bounded, lane).await;
        tokio::time::sleep(if is_soon { SOON.min(interval) } else { interval }).await;
    }
}

/// How many may be claimed: what can be sent within about a second, less those that wait already.
fn room(per_minute: u32, places: usize, waiting: usize) -> usize {
    let per_second = usize::try_from(per_minute.div_ceil(60)).unwrap_or(usize::MAX).max(1);
    per_second.min(places.saturating_mul(A_PLACE_MAKES)).min(MOST_CLAIMED).saturating_sub(waiting)
}

/// How many may wait while a provider is on trial, at a worker that is the one to try it or is not.
const fn on_trial_of(is_alone: bool) -> usize {
    if is_alone { ON_TRIAL } else { ON_ANOTHERS_TRIAL }
}

/// Whether something here has changed, or is about to change, a grant since it was read. That writes its dates, under the same claim, and
/// they are not to be written over with older ones.
fn is_at_work_on(slot: &Slot, stored: &Stored<Grant>) -> bool {
    let state = slot.lock();
    state.flight().is_some() || state.brief().sequence > stored.sequence
}

/// By how much a grant is put off whose provider has been frozen for so long.
fn while_frozen(frozen: Duration, chance: f64) -> Duration {
    let [least, most] = WHILE_FROZEN;
    (frozen / 2).clamp(least, most).mul_f64(1.0 + chance)
}

/// Whether a grant that the database says is due gets its turn, and else when. It is due then whatever its record says of when to try it
/// again: an outage that it waited for may be over. `known`: what is in memory of it, if it is there.
fn turn(situation: Situation<'_>, known: Option<&Brief>, last_fetched: Option<Timestamp>) -> Turn {
    let Situation { grant, policy, now, .. } = situation;
    let held_back = known.filter(|known| known.state == State::Failing(FailingReason::VaultUnavailable));
    if let Some(until) = held_back.and_then(|known| known.due).filter(|until| *until > now.wall) {
        // What became of it could not be stored, so that the database does not know.
        return Turn::Later(Some(until));
    }
    if due(situation, 0.0).is_none() {
        return Turn::Later(None);
    }
    match warm(policy, grant.refreshed_at, last_fetched, now.wall) {
        Ok(()) => {
            let lately = last_fetched.is_some_and(|at| now.wall.since(at) <= FETCHED_LATELY);
            Turn::Now(if lately { Urgency::Fetched } else { Urgency::Idle })
        }
        Err(later) => Turn::Later(later),
    }
}

impl Shared {
    /// Claims as many as there is room for. Gives whether there may be more.
    async fn claim_due(&self, bounded: &Bounded, lane: &Lane) -> bool {
        let on_trial = lane.circuit.is_on_trial();
        // What is frozen would be claimed in vain, and kept from whoever may probe with it.
        if lane.circuit.frozen_for(true).is_some() {
            lane.let_go();
            return false;
        }
        if self.vault.poisoned().is_some() {
            return false;
        }
        let most = room(lane.config.max_per_minute, self.refresh.concurrency, lane.waiting());
        if most == 0 {
            return true;
        }
        let most = if on_trial { most.min(on_trial_of(lane.is_alone()).saturating_sub(lane.waiting())) } else { most };
        if most == 0 {
            return false;
        }
        let asked = u16::try_from(most).unwrap_or(u16::MAX);
        let before = self.index.before();
        let claimed = match bounded.store.claim_due(&lane.name, asked).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::debug!(%error, provider = lane.name.as_str(), "what is due cannot be claimed");
                return false;
            }
        };
        let is_all = claimed.len() < most;
        let mut later = Vec::new();
        for (stored, hold) in claimed {
            if let Some(dates) = self.give_turn(bounded, lane, &stored, &hold, &before).await
                && self.index.slot(stored.value.id).is_none_or(|slot| !is_at_work_on(&slot, &stored))
            {
                later.push((hold, dates));
            }
        }
        if !later.is_empty()
            && let Err(error) = bounded.store.put_off(later).await
        {
            tracing::debug!(%error, provider = lane.name.as_str(), "what was not due after all is claimed again");
            return false;
        }
        !is_all && !on_trial
    }

    /// Queues a claimed grant with its claim; or gives the dates with which it is to be put off.
    async fn give_turn(
        &self,
        bounded: &Bounded,
        lane: &Lane,
        stored: &Stored<Grant>,
        hold: &Hold,
        before: &Before,
    ) -> Option<Dates> {
        let grant = &stored.value;
        let in_doubt = matches!(grant.state, State::InDoubt(DoubtReason::NoAnswer | DoubtReason::Crashed));
        let intent = if in_doubt {
            match self.vault.intent(grant.id).await {
                Ok(intent) => intent,
                // The claim runs out, or is given up; it is claimed again.
                Err(_) => return None,
            }
        } else {
            None
        };
        let now = self.now();
        let put_off = |due| Some(Dates { due, ..bounded.dating.dates(grant, intent.as_ref()) });
        if lane.circuit.frozen_for(grant.client.is_some()).is_some() {
            return put_off(Some(now.wall + while_frozen(lane.circuit.frozen_since(now.boot), self.chance())));
        }
        // One that is put off need not be in memory for that.
        let resident = self.index.slot(grant.id);
        let (policy, boot_id) = (&lane.policy, self.clock.boot_id());
        let fleet = Fleet { shares_subject: false };
        let alone = Situation { grant, intent: intent.as_ref(), policy, fleet, now, boot_id };
        // What the record does not know: it is written in batches, and here.
        let last_fetched = resident.as_ref().and_then(|slot| slot.last_fetched()).max(grant.last_fetched_at);
        match turn(alone, resident.map(|slot| slot.brief()).as_ref(), last_fetched) {
            Turn::Later(moment) => put_off(moment),
            Turn::Now(urgency) => {
                let may_harm = in_doubt && !matches!(may_try(alone), DoubtfulTry::Before(_));
                let provider = self.lane_of.get(&grant.provider).copied()?;
                if may_harm && self.fleet_now(provider, grant).await.shares_subject {
                    return put_off(Some(now.wall + LOOKED_AT_AGAIN));
                }
                // Else it is gone; or it cannot be read now, and is claimed again.
                if let Ok(Some(slot)) = self.take_in(stored, before).await {
                    lane.enqueue_claimed(&slot, urgency, hold.clone());
                }
                None
            }
        }
    }

    /// What the rules must know of the other grants, also where they are not in memory. Where that cannot be told, another may be the
    /// same person's.
    pub(in crate::keeper) async fn fleet_now(&self, provider: u16, grant: &Grant) -> Fleet {
        let Some(bounded) = &self.bounded else { return self.fleet(provider, grant) };
        let Some(subject) = grant.subject.as_deref().filter(|_| self.is_loaded()) else {
            return Fleet { shares_subject: true };
        };
        let asked = Box::pin(bounded.store.may_be_shared(&grant.provider, Some(subject), grant.id)).await;
        Fleet { shares_subject: asked.unwrap_or(true) }
    }

    /// Whether another living grant is, or may be, the same person's, so that this one must not be revoked. Where all are in memory
    /// that is looked at before this returns, and the grant is counted as living itself.
    pub(in crate::keeper) fn is_someones_else(
        &self,
        slot: &Slot,
        grant: &Grant,
    ) -> impl Future<Output = bool> + Send + use<> {
        let subjects = &self.index.subjects;
        let known = !self.is_bounded() && subjects.may_be_shared(slot.provider, slot.brief().living_subject);
        let asking = self
            .bounded
            .as_ref()
            .map(|bounded| (bounded.store.clone(), grant.provider.clone(), grant.subject.clone(), grant.id));
        async move {
            let Some((store, provider, subject, id)) = asking else { return known };
            Box::pin(store.may_be_shared(&provider, subject.as_deref(), id)).await.unwrap_or(true)
        }
    }

    /// A provider is well again: what waited for that is due within `spread`, also of what is not in memory.
    pub(in crate::keeper) fn bring_forward(&self, provider: u16, spread: Duration) {
        let Some(bounded) = &self.bounded else { return };
        let (store, name) = (bounded.store.clone(), self.lanes[usize::from(provider)].name.clone());
        task::spawn_on(&self.tasks, async move {
            // Else each is due when its own back-off is over.
            if let Err(error) = store.bring_forward(&name, spread).await {
                tracing::warn!(%error, provider = name.as_str(), "what waited for the provider could not be brought forward");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Now,
        config::KeepWarm,
        keeper::slot::{Flight, Place},
        lifecycle::{
            Policy,
            fixtures::{key_grant, now, policy},
        },
    };

    const HOUR: Duration = Duration::from_hours(1);

    fn known(grant: &Grant) -> Brief {
        Brief::of(grant, 1, None, Duration::ZERO, now(), 1)
    }

    fn turn_at(grant: &Grant, policy: &Policy, now: Now, last_fetched: Option<Timestamp>) -> Turn {
        let situation =
            Situation { grant, intent: None, policy, fleet: Fleet { shares_subject: false }, now, boot_id: 1 };
        turn(situation, Some(&known(grant)), last_fetched)
    }

    fn later(by: Duration) -> Now {
        Now { wall: now().wall + by, boot: now().boot + by }
    }

    #[test]
    fn no_more_is_claimed_than_can_be_sent_within_a_second() {
        assert_eq!(room(6000, 64, 0), 100, "the budget's part of a second");
        assert_eq!(room(6000, 8, 0), 32, "what its places can make");
        assert_eq!(room(6000, 64, 30), 70, "some wait already");
        assert_eq!(room(6000, 64, 300), 0);
        assert_eq!(room(1, 64, 0), 1);
        assert_eq!(room(10_000_000, 100_000, 0), MOST_CLAIMED);
    }

    #[test]
    fn dates_are_not_written_over_by_who_read_the_grant_before_it_was_changed_or_while_it_is_exchanged() {
        let grant = key_grant();
        let slot = Slot::new(grant.id, 0, Brief { sequence: 7, ..known(&grant) }, None);
        let read = |sequence| Stored { value: grant.clone(), sequence };
        assert!(is_at_work_on(&slot, &read(6)));
        assert!(!is_at_work_on(&slot, &read(7)));
        assert!(!is_at_work_on(&slot, &read(8)), "what another process wrote is heard of later");
        let (_end, flight) = Flight::new();
        slot.lock().queue(flight, Place { urgency: Urgency::Idle, lapses: 0, turn: 0, grant: grant.id });
        assert!(is_at_work_on(&slot, &read(8)));
    }

    #[test]
    fn on_anothers_trial_no_more_waits_than_makes_this_worker_ask_whether_it_is_the_one_to_try() {
        assert!(on_trial_of(false) == 1 && on_trial_of(true) > 1);
    }

    #[test]
    fn what_is_frozen_is_put_off_for_no_longer_than_it_has_been_so() {
        let seconds = Duration::from_secs;
        assert_eq!(while_frozen(seconds(60), 0.0), seconds(30));
        assert_eq!(while_frozen(seconds(60), 1.0), seconds(60));
        assert_eq!(while_frozen(seconds(0), 0.0), seconds(5));
        assert_eq!(while_frozen(seconds(86_400), 1.0), seconds(240));
    }

    #[test]
    fn whoever_was_fetched_lately_goes_before_the_idle() {
        let at = later(HOUR);
        assert_eq!(turn_at(&key_grant(), &policy(), at, Some(now().wall)), Turn::Now(Urgency::Fetched));
    }

    #[test]
    fn an_idle_grant_is_put_off_until_its_idle_limit_nears_and_one_without_a_limit_until_it_is_fetched() {
        let grant = Grant { refreshed_at: Some(now().wall), ..key_grant() };
        let policy = Policy { keep_warm: KeepWarm::FetchedWithin(HOUR), idle_lifetime: None, ..policy() };
        assert_eq!(turn_at(&grant, &policy, later(HOUR), None), Turn::Later(None));
        assert_eq!(turn_at(&grant, &policy, later(HOUR), Some(now().wall)), Turn::Now(Urgency::Fetched));
        let policy = Policy { idle_lifetime: Some(HOUR * 8), ..policy };
        assert_eq!(turn_at(&grant, &policy, later(HOUR), None), Turn::Later(Some(now().wall + HOUR * 6)));
        assert_eq!(turn_at(&grant, &policy, later(HOUR * 6), None), Turn::Now(Urgency::Idle));
    }

    #[test]
    fn what_the_vault_did_not_take_is_remembered_where_the_database_does_not_know() {
        let grant = key_grant();
        let until = now().wall + HOUR * 2;
        let held_back =
            Brief { state: State::Failing(FailingReason::VaultUnavailable), due: Some(until), ..known(&grant) };
        let policy = policy();
        let fleet = Fleet { shares_subject: false };
        let situation = Situation { grant: &grant, intent: None, policy: &policy, fleet, now: later(HOUR), boot_id: 1 };
        assert_eq!(turn(situation, Some(&held_back), None), Turn::Later(Some(until)));
        assert_eq!(
            turn(situation, None, None),
            Turn::Now(Urgency::Idle),
            "of what is not in memory the database knows all"
        );
        let situation = Situation { now: later(HOUR * 2), ..situation };
        assert_eq!(turn(situation, Some(&held_back), None), Turn::Now(Urgency::Idle));
    }

    #[test]
    fn what_the_database_says_is_due_gets_its_turn_unless_it_is_never_due() {
        // It was brought forward.
        let retry_at = Some(now().wall + HOUR);
        let outage = Grant { state: State::Failing(FailingReason::ProviderUnavailable), retry_at, ..key_grant() };
        assert_eq!(turn_at(&outage, &policy(), now(), None), Turn::Now(Urgency::Idle));
        let paused = Grant { paused: true, ..outage.clone() };
        let lost = Grant { state: State::Lost, ..outage };
        for grant in [paused, lost] {
            assert_eq!(turn_at(&grant, &policy(), now(), None), Turn::Later(None));
        }
    }
}
