use std::time::Duration;

use super::{Policy, refresh_moment, surely_over};
use crate::{
    clock::Now,
    config::{InDoubtPolicy, KeepWarm},
    model::{AccessToken, DoubtReason, FailingReason, Grant, Intent, State, Timestamp},
};

/// How often a refused credential is tried again until it is lost or comes back: seldom, because integrations that
/// keep sending requests which fail are contacted by the issuer and may lose access.
pub const REFUSED_INTERVAL: Duration = Duration::from_mins(15);

/// Taken off the grace on top of the time limit of an exchange, for the way to the issuer and its clock.
const GRACE_MARGIN: Duration = Duration::from_secs(2);
/// How far the refresh moment is moved at random, as a share of itself.
const JITTER: f64 = 0.1;
/// Share of an idle limit after which an idle grant is exchanged to keep it from ending.
const IDLE_AT: f64 = 0.75;

/// What a rule about one grant must know of the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fleet {
    /// Another living grant of the provider has the same subject, or this one's subject is unknown.
    pub shares_subject: bool,
}

/// A grant, and all else that decides when it is exchanged.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The grant as it is stored.
    pub grant: &'a Grant,
    /// The open intent of a grant in doubt.
    pub intent: Option<&'a Intent>,
    /// What the configuration says.
    pub policy: &'a Policy,
    /// What is known of other grants.
    pub fleet: Fleet,
    /// By both clocks.
    pub now: Now,
    /// Which boot of the machine the boot-time clock counts from; 0: not known.
    pub boot_id: u128,
}

/// When the grant is to be exchanged next by itself; `None`: not at all until something happens to it.
///
/// `chance` is uniform in `[0, 1)`. A moment in the past means at once.
pub fn due(situation: Situation<'_>, chance: f64) -> Option<Timestamp> {
    let Situation { grant, intent, policy, fleet, now, boot_id } = situation;
    if grant.paused || grant.organizations.is_empty() {
        return None;
    }
    let not_before = |moment: Timestamp| Some(grant.retry_at.map_or(moment, |retry| retry.max(moment)));
    match grant.state {
        State::Lost => None,
        State::InDoubt(_) if never_by_itself(grant) => None,
        State::InDoubt(_) => {
            if intent.is_some_and(|intent| retry_in_grace(grant, intent, policy, now, boot_id)) {
                return not_before(now.wall);
            }
            if !is_harmless(policy, fleet) {
                return None;
            }
            not_before(grant.access.as_ref().map_or(now.wall, |access| surely_over(access, now, boot_id)))
        }
        State::Failing(FailingReason::Unverified) => not_before(now.wall),
        State::Failing(_) => Some(grant.retry_at.unwrap_or(now.wall)),
        State::Active => match &grant.access {
            None => Some(now.wall),
            Some(access) => not_before(refresh_moment(access, refresh_after(access, policy, chance), now, boot_id)),
        },
    }
}

/// How long after it was given an access token is to be refreshed: the configured share of its life, moved by up
/// to a tenth of that either way, and before its end in any case.
pub fn refresh_after(access: &AccessToken, policy: &Policy, chance: f64) -> Duration {
    let share = policy.refresh_at * (1.0 + JITTER * (2.0 * chance.clamp(0.0, 1.0) - 1.0));
    access.lifetime().mul_f64(share.clamp(0.01, 0.98))
}

/// Whether a grant in doubt may be exchanged now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtfulTry {
    /// No: it waits for its access token to lapse, or for an operator.
    No,
    /// Within the grace: the request has to leave before this moment of the boot-time clock.
    Before(Duration),
    /// Since that can harm nobody.
    Harmless,
}

/// Whether a grant in doubt may be exchanged now, whatever its timer says. How long it was to wait is not asked: the timers have seen to that on a clock that does not jump.
pub fn may_try(situation: Situation<'_>) -> DoubtfulTry {
    let Situation { grant, intent, policy, fleet, now, boot_id } = situation;
    if never_by_itself(grant) {
        return DoubtfulTry::No;
    }
    let lapsed = grant.access.as_ref().is_none_or(|access| surely_over(access, now, boot_id) <= now.wall);
    let grace_ends = intent.and_then(|intent| grace_ends(grant, intent, policy, boot_id));
    match grace_ends.filter(|end| now.boot < *end) {
        Some(end) => DoubtfulTry::Before(end),
        None if lapsed && is_harmless(policy, fleet) => DoubtfulTry::Harmless,
        None => DoubtfulTry::No,
    }
}

/// A token of an earlier time, or one that is known to be spent: only an operator may have it tried.
fn never_by_itself(grant: &Grant) -> bool {
    let of_earlier_time = matches!(grant.state, State::InDoubt(DoubtReason::Restored | DoubtReason::RolledBack));
    of_earlier_time || grant.spent.contains(&grant.fingerprint)
}

fn is_harmless(policy: &Policy, fleet: Fleet) -> bool {
    policy.in_doubt == InDoubtPolicy::RetryWhenHarmless && !fleet.shares_subject
}

/// Whether a grant in doubt may be exchanged again at once, since its issuer still takes a spent token.
pub fn retry_in_grace(grant: &Grant, intent: &Intent, policy: &Policy, now: Now, boot_id: u128) -> bool {
    grace_ends(grant, intent, policy, boot_id).is_some_and(|end| now.boot < end)
}

/// The moment of the boot-time clock before which a spent token may be sent again, if there is one.
///
/// The grace counts from the first attempt, on the boot-time clock, and across a restart of the process only
/// within the same boot of the machine (rule 6 of the design). 0 names no boot. An issuer that has refused the token
/// gives no grace.
fn grace_ends(grant: &Grant, intent: &Intent, policy: &Policy, boot_id: u128) -> Option<Duration> {
    let usable = grant.consent.as_ref()?.grace.saturating_sub(policy.timeout).saturating_sub(GRACE_MARGIN);
    let holds = intent.boot_id == boot_id
        && boot_id != 0
        && intent.fingerprint == grant.fingerprint
        && grant.refusals.is_none()
        && !usable.is_zero();
    holds.then(|| intent.first_boot + usable)
}

/// Whether a due grant is to be refreshed ahead of time; where not, the moment from which it must be exchanged all
/// the same, so that no idle limit ends it.
pub fn warm(
    policy: &Policy,
    refreshed_at: Option<Timestamp>,
    last_fetched: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), Option<Timestamp>> {
    let KeepWarm::FetchedWithin(within) = policy.keep_warm else { return Ok(()) };
    if last_fetched.is_some_and(|at| now.since(at) <= within) {
        return Ok(());
    }
    // Never exchanged: its credential has yet to be proven, however idle it is.
    let Some(refreshed_at) = refreshed_at else { return Ok(()) };
    match policy.idle_lifetime.map(|idle| refreshed_at + idle.mul_f64(IDLE_AT)) {
        Some(moment) if moment <= now => Ok(()),
        later => Err(later),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::ended::tests::{consent_grant, key_grant, now, policy};

    const HOUR: Duration = Duration::from_hours(1);

    fn due_in(grant: &Grant, intent: Option<&Intent>, policy: &Policy, fleet: Fleet) -> Option<Duration> {
        let situation = Situation { grant, intent, policy, fleet, now: now(), boot_id: 1 };
        due(situation, 0.5).map(|at| at.since(now().wall))
    }

    fn intent_of(grant: &Grant, age: Duration) -> Intent {
        Intent {
            grant: grant.id,
            fingerprint: grant.fingerprint,
            attempt: 1,
            first_at: now().wall - age,
            first_boot: now().boot.checked_sub(age).unwrap(),
            boot_id: 1,
        }
    }

    #[test]
    fn an_active_grant_is_due_after_the_configured_share_of_its_tokens_life() {
        let grant = key_grant();
        assert_eq!(due_in(&grant, None, &policy(), Fleet::default()), Some(HOUR.mul_f64(0.75)));
    }

    #[test]
    fn a_consent_past_its_end_is_refreshed_like_any_other() {
        let mut grant = consent_grant();
        grant.consent.as_mut().expect("consent").expires_at = Some(now().wall - HOUR * 24 * 30);
        assert_eq!(due_in(&grant, None, &policy(), Fleet::default()), Some(HOUR.mul_f64(0.75)));
        assert_eq!(grant.state, State::Active);
    }

    #[test]
    fn jitter_stays_within_a_tenth_and_before_the_end() {
        let access = key_grant().access.expect("has one");
        assert_eq!(refresh_after(&access, &policy(), 0.0), HOUR.mul_f64(0.675));
        assert_eq!(refresh_after(&access, &policy(), 1.0), HOUR.mul_f64(0.825));
        let late = Policy { refresh_at: 0.95, ..policy() };
        assert!(refresh_after(&access, &late, 1.0) < HOUR);
    }

    #[test]
    fn lost_paused_restored_and_unused_grants_are_never_due() {
        let mut lost = key_grant();
        lost.state = State::Lost;
        let mut paused = key_grant();
        paused.paused = true;
        let mut restored = consent_grant();
        restored.state = State::InDoubt(DoubtReason::Restored);
        restored.access = None;
        let mut unused = key_grant();
        unused.organizations.clear();
        for grant in [lost, paused, restored, unused] {
            assert_eq!(due_in(&grant, None, &policy(), Fleet::default()), None, "{grant:?}");
        }
    }

    #[test]
    fn a_grant_in_doubt_is_tried_again_within_the_usable_grace_only() {
        let mut grant = consent_grant();
        grant.state = State::InDoubt(DoubtReason::NoAnswer);
        grant.consent.as_mut().expect("consent").grace = Duration::from_secs(30);
        // 30 s grace − 10 s time limit − 2 s = 18 s.
        let fleet = Fleet { shares_subject: true };
        assert_eq!(
            due_in(&grant, Some(&intent_of(&grant, Duration::from_secs(17))), &policy(), fleet),
            Some(Duration::ZERO)
        );
        assert_eq!(due_in(&grant, Some(&intent_of(&grant, Duration::from_secs(18))), &policy(), fleet), None);
        let other_boot = Intent { boot_id: 2, ..intent_of(&grant, Duration::from_secs(1)) };
        assert_eq!(due_in(&grant, Some(&other_boot), &policy(), fleet), None);
    }

    #[test]
    fn outside_the_grace_it_waits_for_its_access_token_and_only_where_nobody_can_be_harmed() {
        let mut grant = consent_grant();
        grant.state = State::InDoubt(DoubtReason::NoAnswer);
        let intent = intent_of(&grant, HOUR);
        assert_eq!(due_in(&grant, Some(&intent), &policy(), Fleet::default()), Some(HOUR));
        assert_eq!(due_in(&grant, Some(&intent), &policy(), Fleet { shares_subject: true }), None);
        let hold = Policy { in_doubt: InDoubtPolicy::Hold, ..policy() };
        assert_eq!(due_in(&grant, Some(&intent), &hold, Fleet::default()), None);
    }

    #[test]
    fn a_grace_counts_from_the_first_attempt_and_ends_with_a_refusal() {
        let mut grant = consent_grant();
        grant.state = State::InDoubt(DoubtReason::NoAnswer);
        grant.consent.as_mut().expect("consent").grace = Duration::from_secs(30);
        let shared = Fleet { shares_subject: true };
        let third = Intent { attempt: 3, ..intent_of(&grant, Duration::from_secs(17)) };
        let may_by = |grant: &Grant, intent: &Intent, boot_id| {
            let (policy, intent) = (policy(), Some(intent));
            may_try(Situation { grant, intent, policy: &policy, fleet: shared, now: now(), boot_id })
        };
        let may = |grant: &Grant| may_by(grant, &third, 1);
        assert_eq!(may(&grant), DoubtfulTry::Before(now().boot + Duration::from_secs(1)));
        let other_boot = Intent { boot_id: 2, ..third.clone() };
        assert_eq!(may_by(&grant, &other_boot, 1), DoubtfulTry::No);
        let no_boot = Intent { boot_id: 0, ..third.clone() };
        assert_eq!(may_by(&grant, &no_boot, 0), DoubtfulTry::No);
        grant.refusals = Some(crate::model::Refusals { count: 1, first_at: now().wall });
        assert_eq!(may(&grant), DoubtfulTry::No);
    }

    #[test]
    fn outside_the_grace_a_try_is_harmless_only_after_the_access_token_and_unshared() {
        let mut grant = consent_grant();
        grant.state = State::InDoubt(DoubtReason::Crashed);
        let may = |grant: &Grant, policy: &Policy, shares_subject, lapsed: bool| {
            let now = Now { wall: now().wall + if lapsed { HOUR } else { HOUR / 2 }, ..now() };
            may_try(Situation { grant, intent: None, policy, fleet: Fleet { shares_subject }, now, boot_id: 1 })
        };
        let hold = Policy { in_doubt: InDoubtPolicy::Hold, ..policy() };
        assert_eq!(may(&grant, &policy(), false, true), DoubtfulTry::Harmless);
        assert_eq!(may(&grant, &policy(), true, true), DoubtfulTry::No);
        assert_eq!(may(&grant, &policy(), false, false), DoubtfulTry::No);
        assert_eq!(may(&grant, &hold, false, true), DoubtfulTry::No);
        for reason in [DoubtReason::Restored, DoubtReason::RolledBack] {
            grant.state = State::InDoubt(reason);
            assert_eq!(may(&grant, &policy(), false, true), DoubtfulTry::No);
        }
    }

    #[test]
    fn an_idle_grant_is_left_alone_until_its_idle_limit_nears() {
        let policy = Policy {
            keep_warm: KeepWarm::FetchedWithin(HOUR),
            idle_lifetime: Some(Duration::from_hours(24)),
            ..policy()
        };
        let now = now().wall;
        assert_eq!(warm(&policy, Some(now), Some(now - HOUR), now), Ok(()));
        assert_eq!(warm(&policy, Some(now), None, now), Err(Some(now + Duration::from_hours(18))));
        assert_eq!(warm(&policy, Some(now - Duration::from_hours(18)), None, now), Ok(()));
        assert_eq!(warm(&policy, None, None, now), Ok(()));
        let never_idle = Policy { idle_lifetime: None, ..policy };
        assert_eq!(warm(&never_idle, Some(now), None, now), Err(None));
    }
}
