//! One-time tokens: doubts and their resolution, strays, spent tokens, and what lost takes.

use super::*;
use crate::{clock::Clock, config::InDoubtPolicy, model::Grant, wire::Resolution};

const IDLE: KeepWarm = KeepWarm::FetchedWithin(Duration::from_secs(1));

fn refused() -> ExchangeOutcome {
    ExchangeOutcome::Refused { detail: "invalid_grant".into() }
}

fn granted(refresh_token: &str, access_token: &str, subject: Option<&str>) -> ExchangeOutcome {
    ExchangeOutcome::Granted(Box::new(Answer {
        access_token: Secret::new(access_token),
        token_type: "Bearer".into(),
        expires_in: Some(HOUR),
        scope: None,
        refresh_token: Some(Secret::new(refresh_token)),
        subject: subject.map(Into::into),
        client_id: None,
    }))
}

impl World {
    async fn resolve(&self, organization: &str, resolution: Resolution) -> Result<wire::Organization, KeeperError> {
        self.keeper.resolve(&org(organization), resolution).await
    }

    fn times_sent(&self, secret: &str) -> usize {
        self.issuer.sent.lock().expect("whole").iter().filter(|sent| *sent == secret).count()
    }

    /// An organization whose one-time token was sent without an answer. Its access token lives for 50 minutes yet.
    async fn in_doubt(organization: &str) -> Self {
        let world = Self::with(IDLE).await;
        world.enrol(organization, &format!("one-{organization}")).await.expect("enrolled");
        world.clock.advance(Duration::from_mins(10));
        world.issuer.next_is(silence());
        assert_eq!(code(world.keeper.refresh(&org(organization), None).await), Code::InDoubt);
        world.clock.advance(Duration::from_mins(1));
        world
    }

    /// As if the vault had come back from a backup.
    async fn from_a_backup(organization: &str) -> Self {
        let world = Self::with(KeepWarm::Always).await;
        // A person who has given nothing else: whatever keeps it from being tried, it is not that.
        world.issuer.subjects.lock().expect("whole").insert(format!("one-{organization}"), "alice".into());
        world.enrol(organization, &format!("one-{organization}")).await.expect("enrolled");
        world.store_state(organization, crate::model::State::InDoubt(crate::model::DoubtReason::Restored)).await;
        world.restarted().await
    }

    async fn store_state(&self, organization: &str, state: crate::model::State) {
        let slot = Arc::clone(&self.keeper.shared.find(&org(organization)).await.expect("there").slot);
        let mut grant = self.vault.grant(slot.id).at_once().expect("read").expect("there").value;
        grant.state = state;
        let commit = self.vault.commit(vec![crate::vault::Change::PutGrant(Box::new(grant))]).await;
        commit.expect("stored");
    }

    /// What the vault holds of the organization's grant.
    async fn stored(&self, organization: &str) -> Grant {
        let slot = Arc::clone(&self.keeper.shared.find(&org(organization)).await.expect("there").slot);
        self.vault.grant(slot.id).at_once().expect("read").expect("there").value
    }
}

#[tokio::test]
async fn a_doubt_that_is_retried_at_an_operators_risk_is_over_when_the_issuer_answers() {
    let world = World::in_doubt("a").await;
    let shown = world.resolve("a", Resolution::Retry).await.expect("it was not spent after all");
    assert_eq!((shown.state.as_ref(), world.times_sent("one-1-one-a")), ("active", 2));
    assert_eq!(world.fetch("a").await.expect("served").token.degraded, None);
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    assert_eq!(world.vault.intent(slot.id).at_once().expect("read"), None);
}

#[tokio::test]
async fn a_retry_that_is_refused_keeps_the_doubt_and_is_not_repeated_by_itself() {
    let world = World::in_doubt("a").await;
    world.issuer.next_is(refused());
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::InDoubt);
    assert_eq!(world.state("a").await, "in_doubt/no_answer");
    world.advance(HOUR * 2);
    world.keeper.sweep();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.times_sent("one-1-one-a"), 2, "the operator's was the last");
}

#[tokio::test]
async fn a_grant_from_a_backup_is_never_tried_by_itself_and_once_when_an_operator_says_so() {
    let world = World::from_a_backup("a").await;
    world.advance(HOUR * 3);
    world.keeper.sweep();
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    assert_eq!(world.times_sent("one-1-one-a"), 0);
    let shown = world.resolve("a", Resolution::Retry).await.expect("nothing had been spent since");
    assert_eq!((shown.state.as_ref(), world.times_sent("one-1-one-a")), ("active", 1));
}

#[tokio::test]
async fn what_is_given_up_is_lost_at_once_and_never_sent_again() {
    let world = World::in_doubt("a").await;
    let exchanges = world.issuer.count();
    let shown = world.resolve("a", Resolution::Abandon).await.expect("given up");
    assert_eq!((shown.state.as_ref(), shown.next_refresh_at), ("lost", None));
    assert_eq!(code(world.fetch("a").await), Code::ConsentLost);
    let world = world.restarted().await;
    world.advance(HOUR * 5);
    world.keeper.sweep();
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ConsentLost);
    assert_eq!(world.issuer.count(), exchanges);
    assert_eq!(world.state("a").await, "lost/refused");
    let again = world.resolve("a", Resolution::Abandon).await.expect("nothing to do");
    assert_eq!(again.state, "lost");
}

#[tokio::test]
async fn a_lost_grant_keeps_its_secret_and_is_tried_once_when_an_operator_says_so() {
    let world = World::in_doubt("a").await;
    world.resolve("a", Resolution::Abandon).await.expect("given up");
    world.issuer.next_is(refused());
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::ConsentLost);
    world.clock.advance(HOUR);
    world.issuer.next_is(silence());
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::ProviderUnavailable);
    assert_eq!(world.state("a").await, "lost/refused", "an answer that never came brings nothing back");
    world.clock.advance(HOUR);
    assert_eq!(world.resolve("a", Resolution::Retry).await.expect("it lives").state, "active");
    assert_eq!(world.times_sent("one-1-one-a"), 4);
}

#[tokio::test]
async fn only_a_grant_in_doubt_or_lost_can_be_resolved_and_not_while_it_is_paused() {
    let world = World::in_doubt("a").await;
    world.enrol("b", "key-b").await.expect("enrolled");
    for resolution in [Resolution::Retry, Resolution::Abandon] {
        assert_eq!(code(world.resolve("b", resolution).await), Code::BadRequest);
        assert_eq!(code(world.resolve("c", resolution).await), Code::UnknownOrganization);
    }
    assert_eq!(world.state("b").await, "active/-");
    world.keeper.set_paused(&org("a"), true).await.expect("paused");
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::Paused);
    assert_eq!(world.times_sent("one-1-one-a"), 1);
}

#[tokio::test]
async fn retries_that_are_forced_again_and_again_are_held_back() {
    let world = World::in_doubt("a").await;
    world.issuer.next_is(silence());
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::InDoubt);
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::TooManyRequests);
    assert_eq!(world.times_sent("one-1-one-a"), 2);
}

#[tokio::test]
async fn a_resolution_holds_for_every_organization_of_the_grant_and_names_them() {
    let world = World::in_doubt("a").await;
    world.keeper.enrol(org("b"), unverified("one-a")).await.expect("joined");
    let shown = world.resolve("a", Resolution::Abandon).await.expect("given up");
    assert_eq!(shown.shares_grant_with, [org("b")]);
    assert_eq!(world.state("b").await, "lost/refused");
}

#[tokio::test]
async fn a_retry_of_a_frozen_provider_is_refused_and_sends_nothing() {
    let world = World::in_doubt("a").await;
    world.enrol("b", "key-b").await.expect("enrolled");
    world.issuer.next_is(ExchangeOutcome::ClientRefused { detail: "invalid_client".into() });
    assert_eq!(code(world.keeper.refresh(&org("b"), None).await), Code::ProviderUnavailable);
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::ProviderUnavailable);
    assert_eq!(world.times_sent("one-1-one-a"), 1);
}

#[tokio::test]
async fn a_grant_is_lost_after_a_second_refusal_with_anothers_success_in_between() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    world.issuer.next_is(refused());
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    assert_eq!(world.state("a").await, "failing/refused", "b was answered a moment before");
    assert_eq!(world.fetch("a").await.expect("lives").token.degraded.as_deref(), Some("refused"));
    world.clock.advance(Duration::from_secs(20));
    world.keeper.refresh(&org("b"), None).await.expect("answered well");
    world.issuer.next_is(refused());
    world.advance(Duration::from_secs(40));
    world.until_state("a", "lost/refused").await;
}

#[tokio::test]
async fn a_single_organization_is_lost_after_an_hour_of_refusals_and_not_before() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    for _ in 0..6 {
        world.issuer.next_is(refused());
    }
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    let mut minutes = 0;
    while world.state("a").await == "failing/refused" {
        let before = world.issuer.count();
        let due = world.keeper.show(&org("a")).await.expect("there").next_refresh_at.expect("it is tried again");
        let wait = due.since(world.clock.now().wall);
        minutes += wait.as_secs() / 60;
        world.advance(wait);
        world.until(|world| world.issuer.count() > before).await;
        world.until(|world| world.issuer.at_once.load(Ordering::SeqCst) == 0).await;
        // Until its end is stored, and the slot knows.
        let is_stored = |shown: &wire::Organization| {
            u64::from(shown.failures) + 1 >= world.issuer.count().into()
                && shown.next_refresh_at.is_none_or(|at| at > world.clock.now().wall)
        };
        while !is_stored(&world.keeper.show(&org("a")).await.expect("there")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(minutes, 61, "after one minute, then each quarter of an hour");
    assert_eq!(world.state("a").await, "lost/refused");
}

#[tokio::test]
async fn refusals_are_remembered_across_a_restart() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    world.issuer.next_is(refused());
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    let world = world.restarted().await;
    world.keeper.refresh(&org("b"), None).await.expect("answered well");
    world.issuer.next_is(refused());
    world.advance(Duration::from_mins(1));
    world.until_state("a", "lost/refused").await;
}

#[tokio::test]
async fn a_jump_of_the_wall_clock_between_two_refusals_proves_nothing() {
    let world = World::with(IDLE).await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    world.issuer.next_is(refused());
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    world.clock.advance(Duration::from_secs(1));
    world.keeper.refresh(&org("b"), None).await.expect("answered well");
    world.clock.advance(Duration::from_secs(12));
    world.clock.set_wall(world.clock.now().wall + HOUR * 2);
    world.issuer.next_is(refused());
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    assert_eq!(world.state("a").await, "failing/refused");
}

#[tokio::test]
async fn an_answer_to_a_credential_that_was_replaced_meanwhile_is_kept_and_named_and_not_served() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.enrol("b", "one-a").await.expect("joined");
    let mut grant = world.stored("a").await;
    world.clock.advance(HOUR * 2);
    let gate = world.issuer.closes();
    let fetching = world.keeper.clone();
    let fetched = tokio::spawn(async move { fetching.token(&org("a"), Duration::ZERO).await });
    world.until(|world| world.issuer.count() == 2).await;
    // Somebody puts another credential in its place.
    grant.credential = Credential::RefreshToken(Secret::new("one-other"));
    grant.fingerprint = world.vault.fingerprint(&Secret::new("one-other"));
    let commit = world.vault.commit(vec![crate::vault::Change::PutGrant(Box::new(grant))]).await;
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    let sequence = commit.expect("stored");
    world.keeper.shared.amend_brief(&slot, world.keeper.shared.now(), |brief| brief.sequence = sequence);
    gate.add_permits(2);
    let _ = fetched.await.expect("whole");
    world.until(|world| world.vault.stats().strays == 1).await;
    assert_eq!(world.stored("a").await.credential.secret().expose(), "one-other");
    let world = world.restarted().await;
    assert_eq!(world.vault.stats().strays, 1, "counted at start");
    let status = world.keeper.status(None).at_once();
    assert_eq!((status.vault.strays, status.strays[0].organization.clone()), (1, Some(org("a"))));
    let scoped = world.keeper.status(Some(&|id: &OrganizationId| id.as_str() == "b")).at_once();
    assert!(scoped.strays.is_empty(), "for those who may see the organization");
}

#[tokio::test]
async fn an_answer_for_somebody_else_is_kept_aside_and_its_token_never_sent_again_by_itself() {
    let world = World::with(IDLE).await;
    world.issuer.next_is(granted("one-second", "at-first", Some("alice")));
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    world.issuer.next_is(granted("one-bobs", "at-bobs", Some("bob")));
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    assert_eq!(world.vault.stats().strays, 1);
    world.advance(HOUR * 2);
    world.keeper.sweep();
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::AlreadySpent, "a replay for certain");
    assert_eq!(world.times_sent("one-second"), 1);
}

#[tokio::test]
async fn an_access_token_larger_than_a_record_costs_no_refresh_token_and_is_not_asked_for_all_the_time() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(Duration::from_mins(10));
    world.issuer.next_is(granted("one-second", &"a".repeat(100_000), None));
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    let stored = world.stored("a").await;
    assert_eq!(stored.credential.secret().expose(), "one-second");
    assert_eq!(world.fetch("a").await.expect("the one before lives").token.access_token, "at-1");
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    assert!(slot.lock().flight().is_none(), "it is not tried for ever");
    world.clock.advance(HOUR * 2);
    assert!(world.fetch("a").await.is_ok());
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_refresh_token_larger_than_a_record_is_told_and_its_predecessor_is_not_sent_again() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    world.issuer.next_is(granted(&"r".repeat(100_000), "at-second", None));
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    world.advance(HOUR);
    world.keeper.sweep();
    assert_eq!(code(world.resolve("a", Resolution::Retry).await), Code::AlreadySpent);
    assert_eq!(world.times_sent("one-1-one-a"), 1);
}

#[tokio::test]
async fn a_spent_token_of_a_grant_that_is_gone_is_refused_and_not_sent() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.keeper.remove(&org("a"), false).await.expect("removed");
    assert_eq!(code(world.enrol("a", "one-a").await), Code::AlreadySpent);
    assert_eq!(code(world.keeper.enrol(org("a"), unverified("one-a")).await), Code::AlreadySpent);
    let world = world.restarted().await;
    assert_eq!(code(world.enrol("b", "one-a").await), Code::AlreadySpent);
    assert_eq!((world.issuer.count(), world.issuer.replays.load(Ordering::SeqCst)), (1, 0));
    world.enrol("a", "one-new").await.expect("a new consent is another token");
    world.advance(Duration::from_hours(24 * 401));
    world.keeper.shared.clear_graves().await;
    assert_eq!(world.keeper.shared.index.grave_count(), 0, "not for ever");
}

#[tokio::test]
async fn a_reusable_token_and_a_key_can_be_enrolled_again_after_a_removal() {
    let world = World::new().await;
    for secret in ["reuse-a", "key-a"] {
        world.enrol("a", secret).await.expect("enrolled");
        world.keeper.remove(&org("a"), false).await.expect("removed");
        world.enrol("a", secret).await.expect("as good as before");
        world.keeper.remove(&org("a"), false).await.expect("removed");
    }
    assert_eq!(world.kept(), 0);
}

#[tokio::test]
async fn a_lost_grants_token_is_refused_as_spent() {
    let world = World::in_doubt("a").await;
    world.resolve("a", Resolution::Abandon).await.expect("given up");
    let exchanges = world.issuer.count();
    for secret in ["one-a", "one-1-one-a"] {
        assert_eq!(code(world.enrol("b", secret).await), Code::AlreadySpent);
    }
    assert_eq!(world.issuer.count(), exchanges);
}

#[tokio::test]
async fn unfinished_enrolments_are_cleared_once_nobody_waits_for_them_and_their_tokens_stay_spent() {
    let world = World::new().await;
    *world.issuer.reach.lock().expect("whole") = Some(vec!["b".into()]);
    assert_eq!(code(world.enrol("a", "one-a").await), Code::WrongOrganization);
    world.clock.advance(Duration::from_hours(24 * 29));
    world.keeper.shared.clear_unfinished().await;
    assert_eq!(world.keeper.shared.index.slot_count(), 1, "its token cannot be had again");
    world.clock.advance(Duration::from_hours(24));
    world.keeper.shared.clear_unfinished().await;
    assert_eq!(world.keeper.shared.index.slot_count(), 0);
    assert_eq!(code(world.enrol("b", "one-a").await), Code::AlreadySpent);
    assert_eq!(world.issuer.count(), 1);
}

#[tokio::test]
async fn an_unfinished_enrolment_of_the_same_person_keeps_a_doubt_from_being_tried() {
    let world = World::new().await;
    for token in ["one-a", "one-1-one-a", "one-b"] {
        world.issuer.subjects.lock().expect("whole").insert(token.into(), "alice".into());
    }
    world.enrol("a", "one-a").await.expect("enrolled");
    *world.issuer.reach.lock().expect("whole") = Some(vec!["a".into()]);
    assert_eq!(code(world.enrol("b", "one-b").await), Code::WrongOrganization);
    world.issuer.next_is(silence());
    world.advance(HOUR.mul_f64(0.85));
    world.until_state("a", "in_doubt/no_answer").await;
    world.advance(HOUR);
    world.keeper.sweep();
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    assert_eq!(world.times_sent("one-1-one-a"), 1);
}

#[tokio::test]
async fn nothing_is_revoked_while_another_living_consent_may_be_the_same_persons() {
    let world = World::new().await;
    world.issuer.subjects.lock().expect("whole").insert("one-a".into(), "alice".into());
    world.enrol("a", "one-a").await.expect("enrolled");
    world.enrol("b", "one-b").await.expect("enrolled, and nobody knows by whom");
    world.keeper.remove(&org("a"), true).await.expect("removed");
    assert_eq!(world.issuer.revoked.lock().expect("whole").len(), 0);
    world.enrol("c", "key-c").await.expect("enrolled: no consent");
    world.keeper.remove(&org("b"), true).await.expect("removed");
    assert_eq!(world.issuer.revoked.lock().expect("whole").len(), 1, "the last consent is nobody else's");
}

#[tokio::test]
async fn within_the_grace_a_silence_is_followed_up_at_once() {
    let config = ProviderConfig { grace: Duration::from_mins(1), ..provider_config() };
    let world = World::of(KeepWarm::Always, vec![config]).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.count() == 3).await;
    world.until_state("a", "active/-").await;
    assert_eq!(world.times_sent("one-1-one-a"), 2);
}

#[tokio::test]
async fn a_request_of_the_grace_must_leave_before_it_ends() {
    let config = ProviderConfig { grace: Duration::from_mins(1), ..provider_config() };
    let world = World::of(IDLE, vec![config]).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    assert_eq!(*world.issuer.not_after.lock().expect("whole"), None, "the first attempt has no end");
    world.clock.advance(Duration::from_mins(10));
    let first = world.clock.now().boot;
    world.issuer.next_is(silence());
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::InDoubt);
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    world.clock.advance(Duration::from_secs(5));
    world.keeper.shared.exchange_and_wait(&slot, None).await.expect("within the grace");
    // 60 s grace − 10 s time limit − 2 s.
    assert_eq!(*world.issuer.not_after.lock().expect("whole"), Some(first + Duration::from_secs(48)));
}

#[tokio::test]
async fn hold_keeps_a_doubt_that_could_harm_nobody_for_an_operator() {
    let config = ProviderConfig { in_doubt: InDoubtPolicy::Hold, ..provider_config() };
    let world = World::of(KeepWarm::Always, vec![config]).await;
    for token in ["one-a", "one-1-one-a"] {
        world.issuer.subjects.lock().expect("whole").insert(token.into(), "alice".into());
    }
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    world.advance(HOUR.mul_f64(0.85));
    world.until_state("a", "in_doubt/no_answer").await;
    world.advance(HOUR * 2);
    world.keeper.sweep();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.times_sent("one-1-one-a"), 1);
}
