use proptest::prelude::*;
use rstest::rstest;

use super::{START, client, issuer, personal, seconds};
use crate::{
    clock::ManualClock,
    model::{Secret, Timestamp, Usage},
    sandbox::{
        Approval, Denied, Entry, Fault, FaultKind, Granted, Issuer, Outcome, Refusal, Request, SandboxConfig, Scopes,
        Standing,
    },
};

fn refused(why: Refusal) -> Denied {
    Denied::InvalidGrant(why)
}

fn refresh_token(granted: Result<Granted, Denied>) -> Secret {
    granted.expect("granted").refresh_token.expect("a refresh token")
}

fn last(issuer: &Issuer) -> Entry {
    issuer.record().pop().expect("an entry")
}

fn with_grace(grace: u64) -> SandboxConfig {
    SandboxConfig { grace: seconds(grace), ..SandboxConfig::default() }
}

#[rstest]
#[case::at_once_without_a_grace(0, 0, Err(Refusal::Replay))]
#[case::at_once_with_a_grace(5, 0, Ok(()))]
#[case::just_within_the_grace(5, 4_999, Ok(()))]
#[case::at_the_end_of_the_grace(5, 5_000, Err(Refusal::Replay))]
#[case::long_after(60, 600_000, Err(Refusal::Replay))]
fn a_spent_token_works_within_its_grace_only(
    #[case] grace: u64,
    #[case] later_ms: u64,
    #[case] expected: Result<(), Refusal>,
) {
    let issuer = issuer(&with_grace(grace));
    let first = issuer.new_consent("birgit", Usage::OneTime, &[]);
    let second = refresh_token(issuer.exchange_refresh(START, &client(), &first));
    assert!(!second.same_as(&first));
    let later = START + std::time::Duration::from_millis(later_ms);
    let again = issuer.exchange_refresh(later, &client(), &first).map(|_| ());
    assert_eq!(again, expected.map_err(refused));
    assert_eq!(issuer.is_alive(later, &second), expected.is_ok());
    assert_eq!(issuer.replays(), u64::from(expected.is_err()));
}

#[test]
fn the_grace_counts_from_the_first_exchange() {
    let issuer = issuer(&with_grace(10));
    let token = issuer.new_consent("birgit", Usage::OneTime, &[]);
    for after in [0, 6] {
        refresh_token(issuer.exchange_refresh(START + seconds(after), &client(), &token));
    }
    assert!(last(&issuer).in_grace);
    let result = issuer.exchange_refresh(START + seconds(12), &client(), &token);
    assert_eq!(result.expect_err("a replay"), refused(Refusal::Replay));
}

#[test]
fn a_replay_ends_every_consent_and_access_token_of_that_user_and_nobody_elses() {
    let issuer = issuer(&with_grace(0));
    let spent = issuer.new_consent("anders", Usage::OneTime, &[]);
    let reusable = issuer.new_consent("anders", Usage::Reuse, &[]);
    let others = issuer.new_consent("birgit", Usage::OneTime, &[]);
    let granted = issuer.exchange_refresh(START, &client(), &spent).expect("granted");
    let fresh = granted.refresh_token.clone().expect("a refresh token");
    assert!(issuer.reach(START, &granted.access_token).is_some());

    let replay = issuer.exchange_refresh(START + seconds(1), &client(), &spent);

    assert_eq!(replay.expect_err("refused"), refused(Refusal::Replay));
    let entry = last(&issuer);
    assert!(entry.replay);
    assert_eq!((entry.user.as_deref(), entry.killed, entry.token), (Some("anders"), vec![0, 1], Some(0)));
    let now = START + seconds(2);
    assert_eq!(issuer.standing(now, &fresh), Standing::Dead(Refusal::Ended));
    assert_eq!(issuer.standing(now, &reusable), Standing::Dead(Refusal::Ended));
    assert_eq!(issuer.reach(now, &granted.access_token), None);
    assert!(issuer.is_alive(now, &others));
    let anew = issuer.new_consent("anders", Usage::OneTime, &[]);
    let granted = issuer.exchange_refresh(now, &client(), &anew).expect("a consent given afterwards works");
    assert!(issuer.reach(now, &granted.access_token).is_some());
}

#[test]
fn a_token_spent_a_thousand_exchanges_ago_is_still_known_as_spent() {
    let issuer = issuer(&with_grace(0));
    let first = issuer.new_consent("birgit", Usage::OneTime, &[]);
    let mut token = first.clone();
    for hour in 0..1000 {
        token = refresh_token(issuer.exchange_refresh(START + seconds(hour * 3600), &client(), &token));
    }
    let now = START + seconds(1000 * 3600);
    assert!(issuer.is_alive(now, &token));
    assert_eq!(issuer.standing(now, &first), Standing::Spent);
}

#[test]
fn a_reuse_token_comes_back_until_its_consent_ends() {
    let issuer = issuer(&SandboxConfig::default());
    let token = issuer.new_consent("birgit", Usage::Reuse, &[]);
    let day = 24 * 3600;
    for after in [0, 1, 179 * day] {
        let back = refresh_token(issuer.exchange_refresh(START + seconds(after), &client(), &token));
        assert!(back.same_as(&token));
    }
    let end = issuer.exchange_refresh(START + seconds(180 * day), &client(), &token);
    assert_eq!(end.expect_err("refused"), refused(Refusal::Expired));
    assert_eq!(issuer.replays(), 0);
}

#[test]
fn an_idle_limit_counts_from_the_last_exchange() {
    let config = SandboxConfig { idle_lifetime: Some(seconds(100)), ..with_grace(0) };
    for usage in [Usage::OneTime, Usage::Reuse] {
        let issuer = issuer(&config);
        let token = issuer.new_consent("birgit", usage, &[]);
        let token = refresh_token(issuer.exchange_refresh(START + seconds(99), &client(), &token));
        let token = refresh_token(issuer.exchange_refresh(START + seconds(198), &client(), &token));
        let late = issuer.exchange_refresh(START + seconds(298), &client(), &token);
        assert_eq!(late.expect_err("refused"), refused(Refusal::Idle));
    }
}

#[test]
fn a_wrong_secret_spends_nothing_and_any_of_two_secrets_is_right() {
    let issuer = issuer(&with_grace(0));
    let token = issuer.new_consent("birgit", Usage::OneTime, &[]);
    issuer.set_client_secrets(vec![Secret::new("old"), Secret::new("new")]);
    let wrong = issuer.exchange_refresh(START, &client(), &token);
    assert_eq!(wrong.expect_err("refused"), Denied::InvalidClient);
    assert_eq!(last(&issuer).result, Outcome::Denied(Denied::InvalidClient));
    let mut token = token;
    for secret in ["old", "new"] {
        let client = crate::model::ClientCredentials { secret: Secret::new(secret), ..client() };
        token = refresh_token(issuer.exchange_refresh(START, &client, &token));
    }
    assert_eq!(issuer.exchanges(), 3);
}

#[test]
fn revoking_ends_one_consent_and_leaves_access_tokens_to_live_out_their_time() {
    let issuer = issuer(&SandboxConfig::default());
    let token = issuer.new_consent("anders", Usage::Reuse, &[]);
    let other = issuer.new_consent("anders", Usage::Reuse, &[]);
    let granted = issuer.exchange_refresh(START, &client(), &token).expect("granted");
    assert_eq!(issuer.revoke(START, &client(), &token), Ok(()));
    assert_eq!(issuer.standing(START, &token), Standing::Dead(Refusal::Revoked));
    assert!(issuer.is_alive(START, &other));
    assert!(issuer.reach(START + seconds(3599), &granted.access_token).is_some());
    assert_eq!(issuer.reach(START + seconds(3600), &granted.access_token), None);
    assert_eq!(issuer.revoke(START, &client(), &Secret::new("unknown")), Ok(()));
    assert_eq!(issuer.revoke(START, &personal(), &other), Err(Denied::InvalidClient));
}

#[test]
fn withdrawing_ends_access_at_once() {
    let issuer = issuer(&SandboxConfig::default());
    let token = issuer.new_consent("anders", Usage::Reuse, &[]);
    let granted = issuer.exchange_refresh(START, &client(), &token).expect("granted");
    assert!(issuer.withdraw(START, "anders"));
    assert!(!issuer.withdraw(START, "nobody"));
    assert_eq!(issuer.standing(START, &token), Standing::Dead(Refusal::Withdrawn));
    assert_eq!(issuer.reach(START, &granted.access_token), None);
}

#[test]
fn an_api_key_reaches_its_one_organization_until_it_is_deleted() {
    let issuer = issuer(&SandboxConfig::default());
    let key = issuer.new_api_key("499001");
    let granted = issuer.exchange_password(START, &personal(), &key).expect("granted");
    assert!(granted.refresh_token.is_none());
    let reached = issuer.reach(START, &granted.access_token).expect("alive");
    assert_eq!(reached.iter().map(|id| &**id).collect::<Vec<_>>(), ["499001"]);
    assert_eq!(issuer.exchange_password(START, &client(), &key).expect_err("refused"), Denied::InvalidClient);
    assert_eq!(issuer.delete_api_keys(START, "499001"), 1);
    let deleted = issuer.exchange_password(START, &personal(), &key);
    assert_eq!(deleted.expect_err("refused"), refused(Refusal::Withdrawn));
    assert_eq!(issuer.reach(START, &granted.access_token), None);
}

#[rstest]
#[case::right("https://app.example/cb", Some("verifier"), 0, None)]
#[case::another_redirect("https://evil.example/cb", Some("verifier"), 0, Some(Refusal::WrongRedirect))]
#[case::no_verifier("https://app.example/cb", None, 0, Some(Refusal::WrongVerifier))]
#[case::another_verifier("https://app.example/cb", Some("other"), 0, Some(Refusal::WrongVerifier))]
#[case::too_late("https://app.example/cb", Some("verifier"), 300, Some(Refusal::OldCode))]
fn a_code_is_bound_to_its_redirect_its_verifier_and_its_time(
    #[case] redirect_uri: &str,
    #[case] verifier: Option<&str>,
    #[case] later: u64,
    #[case] refusal: Option<Refusal>,
) {
    let issuer = issuer(&SandboxConfig::default());
    let approval = Approval {
        user: "birgit".to_owned(),
        redirect_uri: "https://app.example/cb".to_owned(),
        challenge: Some(crate::sandbox::mint::challenge_of("verifier")),
        scopes: Scopes::ALL,
    };
    let code = issuer.new_code(START, approval);
    let now = START + seconds(later);
    let result = issuer.exchange_code(now, &client(), &code, redirect_uri, verifier);
    assert_eq!(result.err(), refusal.map(refused));
    let again = issuer.exchange_code(now, &client(), &code, "https://app.example/cb", Some("verifier"));
    assert_eq!(again.expect_err("a code works once"), refused(Refusal::UsedCode));
}

#[test]
fn without_offline_access_there_is_no_refresh_token_and_a_verifier_needs_a_challenge() {
    let issuer = issuer(&SandboxConfig::default());
    let approval = Approval {
        user: "birgit".to_owned(),
        redirect_uri: "https://app.example/cb".to_owned(),
        challenge: None,
        scopes: Scopes::parse("dineropublicapi:read").expect("offered"),
    };
    let code = issuer.new_code(START, approval.clone());
    let granted = issuer.exchange_code(START, &client(), &code, &approval.redirect_uri, None).expect("granted");
    assert!(granted.refresh_token.is_none());
    assert_eq!(granted.scope, "dineropublicapi:read");
    let code = issuer.new_code(START, approval.clone());
    let downgraded = issuer.exchange_code(START, &client(), &code, &approval.redirect_uri, Some("verifier"));
    assert_eq!(downgraded.expect_err("refused"), refused(Refusal::WrongVerifier));
}

#[test]
fn an_answer_that_omits_the_refresh_token_has_not_spent_it() {
    let issuer = issuer(&with_grace(0));
    let token = issuer.new_consent("birgit", Usage::OneTime, &[]);
    let fault = Fault::once(FaultKind::OmitRefreshToken);
    let granted = issuer.exchange(START, &client(), &Request::Refresh(&token), Some(&fault)).expect("granted");
    assert!(granted.refresh_token.is_none());
    assert_eq!(issuer.standing(START, &token), Standing::Live);
}

#[test]
fn a_fault_strikes_whom_it_concerns_as_often_as_it_says() {
    let issuer = issuer(&SandboxConfig::default());
    let (birgit, anders) =
        (issuer.new_consent("birgit", Usage::Reuse, &[]), issuer.new_consent("anders", Usage::Reuse, &[]));
    issuer.set_fault(Fault { times: Some(2), user: Some("birgit".to_owned()), ..Fault::always(FaultKind::Outage) });
    let struck = |token| issuer.next_fault(Some(&Request::Refresh(token))).is_some();
    assert_eq!([struck(&anders), struck(&birgit), struck(&birgit), struck(&birgit)], [false, true, true, false]);
    assert!(issuer.faults().is_empty());
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_the_same_luck() {
    let run = |seed| {
        let issuer = Issuer::seeded(&SandboxConfig::default(), ManualClock::at(START), seed);
        let token = issuer.new_consent("birgit", Usage::OneTime, &[]);
        issuer.set_fault(Fault { probability: 0.5, ..Fault::always(FaultKind::Hang) });
        let luck: Vec<bool> = (0..64).map(|_| issuer.next_fault(None).is_some()).collect();
        let granted = issuer.exchange_refresh(START, &client(), &token).expect("granted");
        (granted.access_token.expose().to_owned(), refresh_token(Ok(granted)).expose().to_owned(), luck)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
    let struck = run(7).2.iter().filter(|struck| **struck).count();
    assert!((10..55).contains(&struck), "{struck} of 64");
}

/// What a client can do to one user's consent.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    /// Exchanges one of the refresh tokens that were given so far.
    Exchange(prop::sample::Index),
    ExchangeNewest,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u64..20_000).prop_map(Step::Wait),
        any::<prop::sample::Index>().prop_map(Step::Exchange),
        Just(Step::ExchangeNewest),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn a_spent_token_outside_its_grace_always_ends_everything_and_inside_never(
        steps in steps(),
        grace_ms in prop_oneof![Just(0), 1_u64..30_000],
    ) {
        let grace = std::time::Duration::from_millis(grace_ms);
        let issuer = issuer(&SandboxConfig { grace, ..SandboxConfig::default() });
        let bystander = issuer.new_consent("birgit", Usage::OneTime, &[]);
        let mut tokens: Vec<(Secret, Option<Timestamp>)> = vec![(issuer.new_consent("anders", Usage::OneTime, &[]), None)];
        let (mut now, mut ended, mut replays) = (START, false, 0);
        for step in steps {
            let at = match step {
                Step::Wait(ms) => {
                    now = now + std::time::Duration::from_millis(ms);
                    None
                }
                Step::Exchange(which) => Some(which.index(tokens.len())),
                Step::ExchangeNewest => Some(tokens.len() - 1),
            };
            if let Some(at) = at {
                let (token, spent_at) = tokens[at].clone();
                let replay = spent_at.is_some_and(|spent| now.since(spent) >= grace);
                let result = issuer.exchange_refresh(now, &client(), &token);
                if replay {
                    prop_assert_eq!(result.err(), Some(refused(Refusal::Replay)));
                    replays += 1;
                    ended = true;
                } else if ended {
                    prop_assert_eq!(result.err(), Some(refused(Refusal::Ended)));
                } else {
                    let fresh = refresh_token(result);
                    prop_assert!(tokens.iter().all(|(known, _)| !known.same_as(&fresh)));
                    tokens[at].1.get_or_insert(now);
                    tokens.push((fresh, None));
                }
            }
            prop_assert_eq!(issuer.replays(), replays);
            for (token, spent_at) in &tokens {
                let usable = !ended && spent_at.is_none_or(|spent| now.since(spent) < grace);
                prop_assert_eq!(issuer.is_alive(now, token), usable);
            }
        }
        prop_assert!(issuer.is_alive(now, &bystander));
        prop_assert_eq!(issuer.record().iter().filter(|entry| entry.replay).count() as u64, replays);
    }

    #[test]
    fn a_reuse_token_never_replays(waits in prop::collection::vec(0_u64..100_000, 0..60)) {
        let issuer = issuer(&with_grace(0));
        let token = issuer.new_consent("anders", Usage::Reuse, &[]);
        let mut now = START;
        for wait in waits {
            now = now + std::time::Duration::from_millis(wait);
            let back = refresh_token(issuer.exchange_refresh(now, &client(), &token));
            prop_assert!(back.same_as(&token));
        }
        prop_assert_eq!(issuer.replays(), 0);
    }
}
