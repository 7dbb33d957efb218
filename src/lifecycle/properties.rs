//! Laws that hold for any sequence of events.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    Situation,
    ended::tests::{consent_grant, ended, key_grant, now, policy},
    *,
};
use crate::{
    clock::Now,
    model::{Answer, ExchangeOutcome, Fingerprint, Grant, Intent, NoAnswer, Secret, State, Usage},
};

#[derive(Clone, Debug)]
enum Step {
    Wait(u32),
    Pause(bool),
    Exchange(u8, bool, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u32..7200).prop_map(Step::Wait),
        any::<bool>().prop_map(Step::Pause),
        (0u8..8, any::<bool>(), any::<bool>()).prop_map(|(kind, others, frozen)| Step::Exchange(kind, others, frozen)),
    ]
}

fn outcome(kind: u8, next: u8) -> (ExchangeOutcome, Option<Fingerprint>) {
    let granted = |token: Option<String>| {
        ExchangeOutcome::Granted(Box::new(Answer {
            access_token: Secret::new("at"),
            token_type: "Bearer".into(),
            expires_in: Some(Duration::from_hours(1)),
            scope: None,
            refresh_token: token.map(Secret::new),
            subject: None,
            client_id: None,
        }))
    };
    let detail = String::new();
    match kind {
        0 => (granted(None), None),
        1 => (granted(Some(format!("rt-{next}"))), Some(Fingerprint([next; 16]))),
        2 => (ExchangeOutcome::Refused { detail }, None),
        3 => (ExchangeOutcome::ClientRefused { detail }, None),
        4 => (ExchangeOutcome::RateLimited { retry_after: Some(Duration::from_secs(100_000)) }, None),
        5 => (ExchangeOutcome::Unavailable { retry_after: None }, None),
        6 => (ExchangeOutcome::NotSent { detail }, None),
        _ => (ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail }, None),
    }
}

fn run(mut grant: Grant, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut at, mut next, mut intent): (Now, u8, Option<Intent>) = (now(), 10, None);
    let policy = policy();
    for step in steps {
        match step {
            Step::Wait(seconds) => {
                at.wall = at.wall + Duration::from_secs(seconds.into());
                at.boot += Duration::from_secs(seconds.into());
            }
            Step::Pause(pause) => {
                let state = grant.state;
                paused(&mut grant, pause);
                prop_assert_eq!(grant.state, state, "a pause keeps the state");
            }
            Step::Exchange(kind, others, frozen) => {
                let (intent_now, fleet) = (intent.as_ref(), Fleet::default());
                let situation =
                    Situation { grant: &grant, intent: intent_now, policy: &policy, fleet, now: at, boot_id: 1 };
                let due = due(situation, 0.5);
                prop_assert!(!(grant.state == State::Lost && due.is_some()), "a lost grant is never exchanged");
                prop_assert!(!(grant.paused && due.is_some()), "a paused grant is never exchanged");
                if due.is_none_or(|due| due > at.wall) {
                    continue;
                }
                let one_time = grant.is_one_time();
                let was_for_good = grant.consent.as_ref().is_some_and(|consent| consent.shown == Some(Usage::OneTime));
                if one_time && intent.is_none() {
                    intent = Some(Intent {
                        grant: grant.id,
                        fingerprint: grant.fingerprint,
                        attempt: 1,
                        first_at: at.wall,
                        first_boot: at.boot,
                        boot_id: 1,
                    });
                }
                next = next.wrapping_add(1).max(10);
                let (outcome, given) = outcome(kind, next);
                let sent = grant.fingerprint;
                let facts = Ended {
                    asked: at,
                    sent,
                    one_time,
                    given,
                    others_answered: others.then_some(Duration::ZERO),
                    since_refusal: grant.refusals.map(|refusals| at.wall.since(refusals.first_at)).unwrap_or_default(),
                    frozen,
                    intent: intent.as_ref(),
                    open: intent.as_ref(),
                    ..ended(&outcome, None)
                };
                let verdict = exchange_ended(&mut grant, &facts, &policy, at);
                if verdict.close_intent {
                    intent = None;
                }
                if grant.state == State::Lost {
                    let refusals = grant.refusals.expect("nothing else makes a grant lost");
                    let since = at.wall.since(refusals.first_at);
                    prop_assert!(!frozen && refusals.count >= 2, "lost needs proof");
                    prop_assert!(others || (refusals.count >= LOST_REFUSALS && since >= LOST_AFTER), "of either kind");
                }
                if one_time && matches!(outcome, ExchangeOutcome::Unknown { .. }) {
                    prop_assert!(matches!(grant.state, State::InDoubt(_)) && intent.is_some(), "silence is doubt");
                }
                if let Some(retry) = grant.retry_at {
                    prop_assert!(retry > at.wall, "time never runs back");
                    let bound = if kind == 4 { MAX_RETRY_AFTER } else { MAX_BACKOFF };
                    prop_assert!(retry.since(at.wall) <= bound, "a wait never exceeds its bound");
                }
                prop_assert!(!was_for_good || grant.is_one_time(), "one-time is for good");
                prop_assert!(grant.since <= at.wall);
                prop_assert!(grant.spent.len() <= crate::model::MAX_SPENT);
                prop_assert!(!grant.spent.contains(&grant.fingerprint), "a spent token is never the current one");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_laws_hold_for_a_consent(steps in prop::collection::vec(step(), 1..200)) {
        run(consent_grant(), steps)?;
    }

    #[test]
    fn the_laws_hold_for_a_key(steps in prop::collection::vec(step(), 1..200)) {
        run(key_grant(), steps)?;
    }

    #[test]
    fn a_backoff_is_bounded(failures in any::<u32>(), chance in 0.0f64..1.0) {
        let wait = backoff(failures, chance);
        prop_assert!(wait <= MAX_BACKOFF && wait >= Duration::from_millis(500));
    }
}
