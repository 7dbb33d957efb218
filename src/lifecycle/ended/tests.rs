use rstest::rstest;

use super::*;
use crate::{
    config::{InDoubtPolicy, KeepWarm},
    lifecycle::{Fleet, Situation, due},
    model::{Consent, GrantId, NoAnswer, Secret},
};

pub(crate) fn now() -> Now {
    Now { wall: Timestamp::from_millis(1_800_000_000_000), boot: Duration::from_secs(100_000) }
}

pub(crate) fn policy() -> Policy {
    Policy {
        refresh_at: 0.75,
        keep_warm: KeepWarm::Always,
        timeout: Duration::from_secs(10),
        idle_lifetime: None,
        in_doubt: InDoubtPolicy::RetryWhenHarmless,
    }
}

pub(crate) fn key_grant() -> Grant {
    let now = now().wall;
    Grant {
        id: GrantId::from_bytes([7; 16]),
        provider: "dinero-personal".parse().expect("valid"),
        credential: Credential::ApiKey(Secret::new("key")),
        fingerprint: Fingerprint([1; 16]),
        spent: vec![],
        client: None,
        access: Some(AccessToken {
            token: Secret::new("at-0"),
            token_type: "Bearer".into(),
            scope: None,
            issued_at: now,
            expires_at: now + Duration::from_hours(1),
            issued_boot: None,
        }),
        state: State::Active,
        since: now,
        paused: false,
        subject: None,
        consent: None,
        refreshed_at: Some(now),
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: vec!["org".parse().expect("valid")],
        epoch: 1,
    }
}

pub(in crate::lifecycle) fn consent_grant() -> Grant {
    let mut grant = key_grant();
    grant.credential = Credential::RefreshToken(Secret::new("rt-0"));
    grant.subject = Some("alice".into());
    grant.consent = Some(Consent {
        granted_at: now().wall,
        expires_at: None,
        assumed: true,
        expected: Usage::Reuse,
        shown: None,
        grace: Duration::ZERO,
        warned: vec![],
    });
    grant
}

pub(in crate::lifecycle) fn answer(refresh_token: Option<&str>) -> ExchangeOutcome {
    ExchangeOutcome::Granted(Box::new(Answer {
        access_token: Secret::new("at-1"),
        token_type: "Bearer".into(),
        expires_in: Some(Duration::from_mins(10)),
        scope: None,
        refresh_token: refresh_token.map(Secret::new),
        subject: Some("alice".into()),
        client_id: Some("isv_x".into()),
    }))
}

pub(in crate::lifecycle) fn ended(outcome: &ExchangeOutcome, given: Option<u8>) -> Ended<'_> {
    Ended {
        asked: now(),
        outcome,
        sent: Fingerprint([1; 16]),
        one_time: true,
        given: given.map(|byte| Fingerprint([byte; 16])),
        client_id: "isv_x",
        others_answered: None,
        since_refusal: Duration::ZERO,
        frozen: false,
        epoch: 1,
        intent: None,
        open: None,
        boot_id: 1,
        chance: 0.5,
    }
}

fn detail() -> String {
    "as it was".into()
}

#[test]
fn a_changed_refresh_token_takes_the_old_ones_place_and_makes_the_grant_one_time_for_good() {
    let mut grant = consent_grant();
    let verdict = exchange_ended(&mut grant, &ended(&answer(Some("rt-1")), Some(2)), &policy(), now());
    assert_eq!(verdict, Verdict { notice: None, stray: None, close_intent: true });
    assert_eq!(grant.credential.secret().expose(), "rt-1");
    assert_eq!((grant.fingerprint, grant.spent.as_slice()), (Fingerprint([2; 16]), [Fingerprint([1; 16])].as_slice()));
    let same = answer(Some("rt-1"));
    let again = Ended { sent: Fingerprint([2; 16]), ..ended(&same, Some(2)) };
    exchange_ended(&mut grant, &again, &policy(), now());
    assert!(grant.is_one_time(), "an issuer that has rotated once may do so again");
}

#[test]
fn the_same_refresh_token_given_back_shows_that_it_can_be_used_again() {
    let mut grant = consent_grant();
    assert!(grant.is_one_time(), "one-time until shown otherwise, whatever was expected");
    exchange_ended(&mut grant, &ended(&answer(Some("rt-0")), Some(1)), &policy(), now());
    assert!(!grant.is_one_time());
}

#[test]
fn an_answer_without_a_refresh_token_keeps_the_one_that_is_there() {
    let mut grant = consent_grant();
    exchange_ended(&mut grant, &ended(&answer(None), None), &policy(), now());
    assert_eq!(grant.credential.secret().expose(), "rt-0");
    assert!(grant.is_one_time(), "nothing was shown");
    assert_eq!(grant.state, State::Active);
}

#[test]
fn a_second_attempt_within_a_grace_that_gives_no_refresh_token_leaves_the_doubt_of_the_first() {
    let mut grant = consent_grant();
    grant.consent.as_mut().expect("consent").grace = Duration::from_mins(1);
    grant.state = State::InDoubt(DoubtReason::NoAnswer);
    let attempt = |attempt| Intent {
        grant: grant.id,
        fingerprint: grant.fingerprint,
        attempt,
        first_at: now().wall,
        first_boot: now().boot,
        boot_id: 1,
    };
    let (first, second) = (attempt(1), attempt(2));
    let outcome = answer(None);
    let mut doubtful = grant.clone();
    let of_second = Ended { intent: Some(&second), ..ended(&outcome, None) };
    let verdict = exchange_ended(&mut doubtful, &of_second, &policy(), now());
    assert_eq!((verdict, doubtful.state), (Verdict::quiet(false), grant.state));
    assert_eq!(doubtful.access.expect("served").token.expose(), "at-1");
    assert_eq!(doubtful.retry_at, Some(now().wall + Duration::from_mins(1)));
    // Without a grace, an issuer that takes the token says that it was not spent; and so does a first attempt.
    let mut without_grace = grant.clone();
    without_grace.consent.as_mut().expect("consent").grace = Duration::ZERO;
    exchange_ended(&mut without_grace, &of_second, &policy(), now());
    assert_eq!(without_grace.state, State::Active);
    let of_first = Ended { intent: Some(&first), ..ended(&outcome, None) };
    exchange_ended(&mut grant, &of_first, &policy(), now());
    assert_eq!(grant.state, State::Active);
}

#[test]
fn a_doubt_goes_that_was_raised_by_the_intent_of_an_exchange_which_sent_nothing() {
    let grant = consent_grant();
    let first = Intent {
        grant: grant.id,
        fingerprint: grant.fingerprint,
        attempt: 1,
        first_at: now().wall,
        first_boot: now().boot,
        boot_id: 1,
    };
    let second = Intent { attempt: 2, ..first.clone() };
    let another = Intent { boot_id: 2, ..first.clone() };
    let (crashed, silent) = (DoubtReason::Crashed, DoubtReason::NoAnswer);
    let not_sent = ExchangeOutcome::NotSent { detail: detail() };
    let failing = State::Failing(FailingReason::ProviderUnavailable);
    let (goes, stays) = ((Some(Notice::Recovered), true), (None, false));
    for (doubt, own, open, verdict, state) in [
        (crashed, &first, Some(&first), goes, failing),
        (silent, &first, Some(&first), stays, State::InDoubt(silent)),
        (crashed, &second, Some(&second), stays, State::InDoubt(crashed)),
        (crashed, &first, Some(&second), stays, State::InDoubt(crashed)),
        (crashed, &first, Some(&another), stays, State::InDoubt(crashed)),
        (crashed, &first, None, stays, State::InDoubt(crashed)),
    ] {
        let mut doubtful = Grant { state: State::InDoubt(doubt), ..grant.clone() };
        let facts = Ended { intent: Some(own), open, ..ended(&not_sent, None) };
        let Verdict { notice, stray, close_intent } = exchange_ended(&mut doubtful, &facts, &policy(), now());
        assert_eq!(((notice, close_intent), stray, doubtful.state), (verdict, None, state), "{own:?} {open:?}");
        assert!(doubtful.retry_at.is_some());
    }
}

#[test]
fn the_enrolled_token_is_remembered_longest() {
    let mut spent = vec![];
    for byte in 1..=9 {
        remember_spent(&mut spent, Fingerprint([byte; 16]));
    }
    assert_eq!(spent, [1, 7, 8, 9].map(|byte| Fingerprint([byte; 16])));
}

#[rstest]
#[case::another_subject(Some("bob"), Some("isv_x"))]
#[case::another_client(Some("alice"), Some("isv_y"))]
fn an_answer_that_is_anothers_is_kept_aside(#[case] subject: Option<&str>, #[case] client: Option<&str>) {
    let ExchangeOutcome::Granted(mut given) = answer(Some("rt-1")) else { unreachable!() };
    given.subject = subject.map(Into::into);
    given.client_id = client.map(Into::into);
    let mut grant = consent_grant();
    let verdict = exchange_ended(&mut grant, &ended(&ExchangeOutcome::Granted(given), Some(2)), &policy(), now());
    assert!(verdict.stray.is_some());
    assert_eq!(grant.access.expect("kept").token.expose(), "at-0");
    assert_eq!(grant.state, State::InDoubt(DoubtReason::NoAnswer));
}

#[test]
fn an_answer_to_a_replaced_credential_is_kept_aside_and_changes_nothing() {
    let mut grant = consent_grant();
    grant.fingerprint = Fingerprint([9; 16]);
    let before = format!("{grant:?}");
    let verdict = exchange_ended(&mut grant, &ended(&answer(Some("rt-1")), Some(2)), &policy(), now());
    assert!(verdict.stray.is_some());
    assert_eq!(format!("{grant:?}"), before);
}

#[rstest]
#[case(ExchangeOutcome::ClientRefused { detail: detail() }, FailingReason::ClientRefused)]
#[case(ExchangeOutcome::RateLimited { retry_after: None }, FailingReason::RateLimited)]
#[case(ExchangeOutcome::Unavailable { retry_after: None }, FailingReason::ProviderUnavailable)]
#[case(ExchangeOutcome::NotSent { detail: detail() }, FailingReason::ProviderUnavailable)]
fn what_does_not_spend_a_one_time_token_leaves_no_doubt(
    #[case] outcome: ExchangeOutcome,
    #[case] reason: FailingReason,
) {
    let mut grant = consent_grant();
    let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(grant.state, State::Failing(reason));
    assert!(verdict.close_intent);
    assert!(grant.retry_at.is_some());
    assert_eq!(grant.credential.secret().expose(), "rt-0");
}

#[rstest]
#[case(ExchangeOutcome::ClientRefused { detail: detail() })]
#[case(ExchangeOutcome::RateLimited { retry_after: None })]
#[case(ExchangeOutcome::NotSent { detail: detail() })]
fn a_doubt_survives_failures_that_tell_nothing_about_it(#[case] outcome: ExchangeOutcome) {
    let mut grant = consent_grant();
    grant.state = State::InDoubt(DoubtReason::Crashed);
    let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(grant.state, State::InDoubt(DoubtReason::Crashed));
    assert!(!verdict.close_intent);
}

#[test]
fn silence_after_a_one_time_token_is_doubt_and_after_a_key_is_not() {
    let outcome = ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: detail() };
    let mut grant = consent_grant();
    let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(verdict, Verdict { notice: Some(Notice::InDoubt), stray: None, close_intent: false });
    assert_eq!(grant.state, State::InDoubt(DoubtReason::NoAnswer));
    let mut key = key_grant();
    exchange_ended(&mut key, &Ended { one_time: false, ..ended(&outcome, None) }, &policy(), now());
    assert_eq!(key.state, State::Failing(FailingReason::ProviderUnavailable));
}

#[test]
fn within_the_grace_the_first_silence_is_followed_up_at_once_and_the_next_ones_ever_later() {
    let outcome = ExchangeOutcome::Unknown { why: NoAnswer::ServerError, detail: detail() };
    let mut grant = consent_grant();
    grant.consent.as_mut().expect("consent").grace = Duration::from_mins(1);
    let waits = [1, 2, 3].map(|attempt| {
        let intent = Intent {
            grant: grant.id,
            fingerprint: grant.fingerprint,
            attempt,
            first_at: now().wall,
            first_boot: now().boot,
            boot_id: 1,
        };
        let silent = Ended { intent: Some(&intent), chance: 1.0, ..ended(&outcome, None) };
        exchange_ended(&mut grant, &silent, &policy(), now());
        grant.retry_at.map(|at| at.since(now().wall).as_secs())
    });
    assert_eq!(waits, [None, Some(4), Some(8)]);
}

/// Refuses the grant at each of these moments (in seconds), `others` having been answered well at those.
fn refuse_at(grant: &mut Grant, moments: &[u64], others: &[u64], frozen: bool) -> Vec<Option<Notice>> {
    let outcome = ExchangeOutcome::Refused { detail: detail() };
    let tell = |moment: &u64| {
        let at = Now { wall: now().wall + Duration::from_secs(*moment), ..now() };
        let others_answered = others.iter().filter(|other| *other <= moment).max();
        let facts = Ended {
            others_answered: others_answered.map(|other| Duration::from_secs(moment - other)),
            since_refusal: grant.refusals.map(|refusals| at.wall.since(refusals.first_at)).unwrap_or_default(),
            frozen,
            ..ended(&outcome, None)
        };
        exchange_ended(grant, &facts, &policy(), at).notice
    };
    moments.iter().map(tell).collect()
}

const REFUSED: State = State::Failing(FailingReason::Refused);

#[rstest]
#[case::once(&[0], &[], REFUSED)]
#[case::once_though_another_was_answered_a_moment_before(&[1], &[0], REFUSED)]
#[case::twice_with_nobody_else_answered(&[0, 60], &[], REFUSED)]
#[case::twice_with_another_answered_before_both(&[10, 70], &[9], REFUSED)]
#[case::twice_with_another_answered_in_between(&[10, 70], &[30], State::Lost)]
#[case::twice_in_a_moment(&[10, 40], &[30], REFUSED)]
#[case::thrice_within_an_hour(&[0, 60, 3599], &[], REFUSED)]
#[case::thrice_over_an_hour(&[0, 60, 3600], &[], State::Lost)]
#[case::twice_over_an_hour(&[0, 3600], &[], REFUSED)]
#[case::another_answered_after_the_second(&[0, 60, 960], &[100], State::Lost)]
fn a_refusal_is_proof_only_with_a_second_one_and_anothers_success_or_over_an_hour(
    #[case] moments: &[u64],
    #[case] others: &[u64],
    #[case] state: State,
) {
    let mut grant = key_grant();
    let notices = refuse_at(&mut grant, moments, others, false);
    assert_eq!(grant.state, state);
    assert_eq!(notices[0], Some(Notice::Refused), "told at once");
    let told = notices.iter().flatten().count();
    assert_eq!(told, if state == State::Lost { 2 } else { 1 }, "and once more when it is lost: {notices:?}");
    assert_eq!(grant.credential.secret().expose(), "key", "whatever it is, it keeps its secret");
}

#[test]
fn a_refused_grant_is_tried_again_after_a_minute_and_then_seldom() {
    let mut grant = key_grant();
    let mut waits = Vec::new();
    for moment in [0, 60, 960] {
        refuse_at(&mut grant, &[moment], &[], false);
        waits.push(grant.retry_at.map(|at| at.since(now().wall + Duration::from_secs(moment))));
    }
    assert_eq!(waits, [Some(REFUSED_AGAIN), Some(REFUSED_INTERVAL), Some(REFUSED_INTERVAL)]);
}

#[test]
fn refusals_seen_while_the_provider_fails_as_a_whole_prove_nothing_then_or_later() {
    let mut grant = key_grant();
    refuse_at(&mut grant, &[0, 60, 3600, 7200], &[30], true);
    assert_eq!((grant.state, grant.refusals.map(|refusals| refusals.count)), (REFUSED, Some(0)));
    refuse_at(&mut grant, &[7300], &[7290], false);
    assert_eq!(grant.state, REFUSED, "the first that counts");
    refuse_at(&mut grant, &[7360], &[7330], false);
    assert_eq!(grant.state, State::Lost);
}

#[test]
fn while_the_provider_is_frozen_a_refused_credential_is_not_tried_again_soon() {
    let mut grant = consent_grant();
    grant.refusals = Some(Refusals { count: 1, first_at: now().wall });
    let outcome = ExchangeOutcome::Refused { detail: detail() };
    exchange_ended(&mut grant, &Ended { frozen: true, ..ended(&outcome, None) }, &policy(), now());
    assert_eq!(grant.retry_at, Some(now().wall + REFUSED_INTERVAL));
}

#[test]
fn what_went_well_in_between_begins_the_count_anew() {
    let mut grant = consent_grant();
    refuse_at(&mut grant, &[0], &[], false);
    exchange_ended(&mut grant, &ended(&answer(None), None), &policy(), now());
    assert_eq!((grant.state, grant.refusals), (State::Active, None));
    refuse_at(&mut grant, &[60], &[30], false);
    assert_eq!(grant.state, REFUSED);
}

#[test]
fn a_doubtful_token_that_is_refused_stays_in_doubt_until_that_is_proof() {
    let mut grant = consent_grant();
    grant.state = State::InDoubt(DoubtReason::NoAnswer);
    let outcome = ExchangeOutcome::Refused { detail: detail() };
    let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(grant.state, State::InDoubt(DoubtReason::NoAnswer), "to send it again is a replay");
    assert_eq!(verdict, Verdict { notice: Some(Notice::Refused), stray: None, close_intent: false });
    assert_eq!(refuse_at(&mut grant, &[60], &[30], false), [Some(Notice::Lost)]);
    assert_eq!(grant.state, State::Lost);
}

#[rstest]
#[case::refused(ExchangeOutcome::Refused { detail: detail() })]
#[case::silent(ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: detail() })]
#[case::limited(ExchangeOutcome::RateLimited { retry_after: None })]
fn a_lost_grant_that_an_operator_has_tried_again_in_vain_stays_lost(#[case] outcome: ExchangeOutcome) {
    let mut grant = consent_grant();
    grant.state = State::Lost;
    let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!((grant.state, grant.retry_at), (State::Lost, None));
    assert_eq!(verdict, Verdict { notice: None, stray: None, close_intent: true });
}

#[test]
fn a_lost_grant_that_is_answered_well_lives_again() {
    let mut grant = consent_grant();
    grant.state = State::Lost;
    let verdict = exchange_ended(&mut grant, &ended(&answer(Some("rt-1")), Some(2)), &policy(), now());
    assert_eq!((grant.state, verdict.notice), (State::Active, Some(Notice::Recovered)));
}

#[test]
fn a_grant_that_is_given_up_is_lost_at_once_and_told_once() {
    let mut grant = consent_grant();
    grant.state = State::InDoubt(DoubtReason::Restored);
    grant.retry_at = Some(now().wall);
    assert_eq!(abandoned(&mut grant, now().wall), Some(Notice::Lost));
    assert_eq!((grant.state, grant.retry_at), (State::Lost, None));
    assert_eq!(abandoned(&mut grant, now().wall), None);
}

#[test]
fn a_token_whose_successor_was_kept_aside_is_remembered_as_spent() {
    let ExchangeOutcome::Granted(mut given) = answer(Some("rt-1")) else { unreachable!() };
    given.subject = Some("bob".into());
    let mut grant = consent_grant();
    exchange_ended(&mut grant, &ended(&ExchangeOutcome::Granted(given), Some(2)), &policy(), now());
    assert!(grant.spent.contains(&grant.fingerprint));
    let (policy, fleet) = (policy(), Fleet { shares_subject: false });
    let situation = Situation { grant: &grant, intent: None, policy: &policy, fleet, now: now(), boot_id: 1 };
    assert_eq!(due(situation, 0.0), None, "never by itself");
}

#[test]
fn an_access_token_too_large_to_keep_does_not_cost_the_refresh_token() {
    let before = consent_grant();
    let mut grant = before.clone();
    exchange_ended(&mut grant, &ended(&answer(Some("rt-1")), Some(2)), &policy(), now());
    without_new_access(&mut grant, &before, 1.0, now().wall);
    assert_eq!(grant.credential.secret().expose(), "rt-1");
    assert_eq!(grant.access.as_ref().expect("the one before").token.expose(), "at-0");
    assert_eq!((grant.state, grant.failures), (State::Failing(FailingReason::ProviderUnavailable), 1));
    assert!(grant.retry_at.is_some_and(|at| at > now().wall), "an issuer that gives such a token is not hammered");
}

#[test]
fn retry_after_is_honoured_up_to_an_hour() {
    let mut grant = key_grant();
    let outcome = ExchangeOutcome::RateLimited { retry_after: Some(Duration::from_mins(2)) };
    exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(grant.retry_at, Some(now().wall + Duration::from_mins(2)));
    let outcome = ExchangeOutcome::RateLimited { retry_after: Some(Duration::from_hours(24)) };
    exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(grant.retry_at, Some(now().wall + MAX_RETRY_AFTER));
}

#[test]
fn an_answer_that_tells_no_lifetime_is_given_the_last_one_or_a_short_one() {
    let ExchangeOutcome::Granted(mut given) = answer(None) else { unreachable!() };
    given.expires_in = None;
    given.client_id = None;
    let outcome = ExchangeOutcome::Granted(given);
    let mut grant = consent_grant();
    exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(grant.access.as_ref().expect("granted").lifetime(), Duration::from_hours(1));
    grant.access = None;
    exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
    assert_eq!(grant.access.expect("granted").lifetime(), UNTOLD_LIFETIME);
}

#[test]
fn a_crash_during_an_exchange_is_doubt_unless_the_token_has_changed_since() {
    let mut grant = consent_grant();
    let mut intent = Intent {
        grant: grant.id,
        fingerprint: Fingerprint([9; 16]),
        attempt: 1,
        first_at: now().wall,
        first_boot: now().boot,
        boot_id: 1,
    };
    assert_eq!(crashed(&mut grant, &intent, now().wall), None);
    intent.fingerprint = grant.fingerprint;
    assert_eq!(crashed(&mut grant, &intent, now().wall), Some(Notice::InDoubt));
    assert_eq!(grant.state, State::InDoubt(DoubtReason::Crashed));
}
