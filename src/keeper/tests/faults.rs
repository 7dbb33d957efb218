//! What must hold when something dies, comes late, or happens twice.

use super::*;
use crate::model::{FailingReason, State};

const IDLE: KeepWarm = KeepWarm::FetchedWithin(Duration::from_secs(1));

impl World {
    /// How often the issuer was sent this secret.
    fn sent(&self, secret: &str) -> usize {
        self.issuer.sent.lock().expect("whole").iter().filter(|sent| *sent == secret).count()
    }
}

#[tokio::test]
async fn a_token_whose_exchange_died_after_it_was_sent_is_in_doubt_and_not_sent_again() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    world.issuer.panics.store(true, Ordering::SeqCst);
    assert_eq!(code(world.fetch("a").await), Code::ProviderUnavailable);
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    assert_eq!(world.state("a").await, "in_doubt/crashed");
    world.keeper.sweep();
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::InDoubt);
    assert_eq!(world.sent("one-1-one-a"), 1);
}

#[tokio::test]
async fn an_enrolment_whose_exchange_died_keeps_the_doubt_about_its_token() {
    let world = World::new().await;
    world.issuer.panics.store(true, Ordering::SeqCst);
    assert_eq!(code(world.enrol("a", "one-a").await), Code::ProviderUnavailable);
    assert_eq!(code(world.enrol("a", "one-a").await), Code::InDoubt);
    let world = world.restarted().await;
    assert_eq!(code(world.enrol("a", "one-a").await), Code::InDoubt);
    assert_eq!(world.sent("one-a"), 1);
}

impl World {
    /// Whether a grant that was exchanged is failing, as far as the slots know.
    fn failing(&self) -> bool {
        let tried = |state| matches!(state, State::Failing(reason) if reason != FailingReason::Unverified);
        self.keeper.shared.index.slots().iter().any(|slot| tried(slot.brief().state))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bringing_grants_back_after_an_outage_never_undoes_what_was_stored_meanwhile() {
    let world = World::new().await;
    world.issuer.next_is(ExchangeOutcome::Unavailable { retry_after: None });
    let gate = world.issuer.closes();
    gate.add_permits(1);
    world.keeper.enrol(org("a"), unverified("key-a")).await.expect("stored");
    world.until(World::failing).await;
    let (stop, keeper) = (Arc::new(AtomicBool::new(false)), world.keeper.clone());
    let stopped = Arc::clone(&stop);
    let recovering = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            keeper.shared.bring_back(0);
        }
    });
    let mut results = Vec::new();
    for round in 0..200 {
        results.push(world.keeper.set_paused(&org("a"), round % 2 == 0).await.map(|_| ()));
    }
    stop.store(true, Ordering::Relaxed);
    recovering.join().expect("whole");
    for result in results {
        result.expect("the slot names the newest record");
    }
}

#[tokio::test]
async fn a_doubtful_consent_that_is_replaced_leaves_no_intent_behind() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::InDoubt);
    world.enrol("a", "one-new").await.expect("replaced");
    assert_eq!(world.kept(), 3, "a grant, an organization and the memory of a spent token");
    world.issuer.next_is(silence());
    world.advance(Duration::from_mins(1));
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::InDoubt);
    world.keeper.enrol(org("a"), unverified("key-a")).await.expect("replaced");
    assert_eq!(world.kept(), 4);
    assert_eq!(
        world.vault.for_each_intent(&mut |_| Err(VaultError::Closed)).at_once().err().map(|_| ()),
        None,
        "no intent"
    );
}

#[tokio::test]
async fn a_removal_that_meets_a_replacement_leaves_nothing_dangling() {
    let world = World::new().await;
    world.enrol("a", "reuse-ab").await.expect("enrolled");
    world.enrol("b", "reuse-ab").await.expect("joined");
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    let record = slot.record().await;
    let (replacing, removing) = (world.keeper.clone(), world.keeper.clone());
    let replaced = tokio::spawn(async move { replacing.enrol(org("a"), unverified("key-a")).await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let removed = tokio::spawn(async move { removing.remove(&org("a"), false).await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(record);
    replaced.await.expect("whole").expect("replaced");
    removed.await.expect("whole").expect("removed");
    assert_eq!(code(world.fetch("a").await), Code::UnknownOrganization);
    assert_eq!(world.kept(), 2, "b and its grant");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_drained_keeper_runs_any_more() {
    for _ in 0..20 {
        let world = World::new().await;
        world.keeper.drain().await;
        assert_eq!(Arc::strong_count(&world.keeper.shared), 1, "a loop that still runs could send a token");
    }
}

#[tokio::test]
async fn a_doubtful_grant_of_a_provider_that_is_gone_does_not_keep_the_others_from_being_loaded() {
    let other = ProviderConfig { name: "other".parse().expect("valid"), ..provider_config() };
    let mut world = World::of(KeepWarm::Always, vec![provider_config(), other]).await;
    world.enrol("a", "key-a").await.expect("enrolled");
    let body = Enrolment { provider: "other".parse().expect("valid"), ..enrolment("one-b") };
    world.keeper.enrol(org("b"), body).await.expect("enrolled");
    let _gate = world.issuer.closes();
    world.advance(HOUR * 2);
    world.until(|world| world.issuer.count() == 4).await;
    *world.issuer.gate.lock().expect("whole") = None;
    world.providers.pop();
    let world = world.restarted().await;
    assert!(world.fetch("a").await.is_ok());
    assert_eq!(code(world.fetch("b").await), Code::UnknownOrganization);
}

#[tokio::test]
async fn doubtful_grants_of_one_subject_see_each_other_while_they_are_loaded() {
    let world = World::new().await;
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        world.issuer.subjects.lock().expect("whole").insert(format!("one-{name}"), "alice".into());
        world.enrol(name, &format!("one-{name}")).await.expect("enrolled");
    }
    let gate = world.issuer.closes();
    world.advance(HOUR * 2);
    world.until(|world| world.issuer.count() == 12).await;
    *world.issuer.gate.lock().expect("whole") = None;
    let world = world.restarted().await;
    for name in names {
        assert_eq!(code(world.fetch(name).await), Code::InDoubt);
    }
    drop(gate);
    world.advance(HOUR);
    world.keeper.sweep();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.issuer.count(), 12, "a replay could end what the others have");
}

#[tokio::test]
async fn a_doubt_that_has_become_harmful_is_not_due_any_more_until_it_is_harmless_again() {
    let world = World::new().await;
    for secret in ["one-a", "one-1-one-a", "key-b"] {
        world.issuer.subjects.lock().expect("whole").insert(secret.into(), "alice".into());
    }
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.count() == 2).await;
    world.enrol("b", "key-b").await.expect("enrolled");
    world.advance(HOUR);
    world.until(|world| world.sent("key-b") == 2).await;
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    world.until(|_| slot.lock().flight().is_none() && slot.lock().timer().is_none()).await;
    assert_eq!(world.keeper.sweep(), 0, "it waits for an operator, and nothing was forgotten");
    assert_eq!(world.sent("one-1-one-a"), 1);
    world.keeper.remove(&org("b"), false).await.expect("removed");
    world.keeper.sweep();
    world.until(|world| world.sent("one-1-one-a") == 2).await;
}

#[tokio::test]
async fn refused_candidates_do_not_freeze_a_provider_for_those_who_come_after() {
    let world = World::new().await;
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(code(world.enrol(name, &format!("dead-{name}")).await), Code::Refused);
    }
    assert!(world.enrol("g", "key-g").await.is_ok());
}

#[tokio::test]
async fn a_frozen_provider_is_probed_though_nobody_waits_for_it() {
    let world = World::new().await;
    world.issuer.next_is(ExchangeOutcome::ClientRefused { detail: "invalid_client".into() });
    assert_eq!(code(world.enrol("a", "key-a").await), Code::ProviderUnavailable);
    world
        .until(|world| {
            world.clock.advance(Duration::from_millis(100));
            world.keeper.shared.lanes[0].circuit.frozen().is_none()
        })
        .await;
    assert!(world.enrol("a", "key-a").await.is_ok());
}

#[tokio::test]
async fn how_many_refusals_are_many_depends_on_the_providers_own_grants() {
    let small = ProviderConfig { name: "small".parse().expect("valid"), ..provider_config() };
    let world = World::of(KeepWarm::Always, vec![provider_config(), small]).await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    let body = Enrolment { provider: "small".parse().expect("valid"), ..enrolment("key-c") };
    world.keeper.enrol(org("c"), body).await.expect("enrolled");
    let grants = |lane: usize| world.keeper.shared.lanes[lane].grants.load(Ordering::Relaxed);
    assert_eq!((grants(0), grants(1)), (2, 1));
    world.keeper.remove(&org("a"), false).await.expect("removed");
    assert_eq!((grants(0), grants(1)), (1, 1));
}

#[tokio::test]
async fn a_grant_with_a_client_of_its_own_goes_on_while_the_providers_is_refused() {
    let world = World::new().await;
    let own = |secret: &str| Enrolment {
        client_id: Some("own".into()),
        client_secret: Some(Secret::new("secret")),
        ..enrolment(secret)
    };
    world.keeper.enrol(org("a"), own("key-a")).await.expect("enrolled");
    world.enrol("b", "one-b").await.expect("enrolled");
    world.issuer.next_is(ExchangeOutcome::ClientRefused { detail: "invalid_client".into() });
    assert_eq!(code(world.keeper.refresh(&org("b"), None).await), Code::ProviderUnavailable);
    assert!(world.keeper.refresh(&org("a"), None).await.is_ok());
    assert_eq!(world.keeper.shared.lanes[0].circuit.frozen(), Some("client_refused"));
    assert!(world.keeper.enrol(org("c"), own("key-c")).await.is_ok());
}

#[tokio::test]
async fn a_cached_token_is_never_served_with_the_times_of_another() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.clock.advance(Duration::from_secs(3599));
    // As between the moment when a new exchange's times are published and the one when its token is.
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    let now = world.keeper.shared.now();
    {
        let mut state = slot.lock();
        let mut brief = state.brief();
        let access = brief.access.as_mut().expect("has one");
        access.issued_at = now.wall;
        access.expires_at = now.wall + HOUR;
        access.expires_boot = now.boot + HOUR;
        state.set_brief(&brief);
    }
    let served = world.fetch("a").await.expect("lives");
    assert_eq!((served.token.access_token.as_str(), served.token.expires_in), ("at-1", 1));
}

#[tokio::test]
async fn a_caller_who_decided_before_an_exchange_ended_does_not_start_another() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    let shared = &world.keeper.shared;
    let slot = Arc::clone(&shared.find(&org("a")).await.expect("there").slot);
    let seen = slot.brief().outcome();
    world.clock.advance(HOUR * 2);
    assert_eq!(world.fetch("a").await.expect("refreshed").token.access_token, "at-2");
    shared.exchange_and_wait(&slot, Some(seen)).await.expect("nothing to do");
    assert_eq!(world.issuer.count(), 2);
}

#[tokio::test]
async fn an_idle_organization_that_is_fetched_again_is_refreshed_before_its_token_lapses() {
    let config = ProviderConfig { idle_lifetime: Some(HOUR * 240), ..provider_config() };
    let world = World::of(KeepWarm::FetchedWithin(HOUR / 2), vec![config]).await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.advance(HOUR.mul_f64(0.85));
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    let now = world.keeper.shared.now().boot;
    world.until(|_| slot.lock().timer().is_some_and(|timer| u128::from(timer.get()) > (now + HOUR).as_millis())).await;
    assert_eq!(world.fetch("a").await.expect("lives").token.access_token, "at-1");
    world.until(|world| world.issuer.count() == 2).await;
}

#[tokio::test]
async fn a_caller_who_forces_an_exchange_of_a_frozen_provider_is_told_at_once() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    world.issuer.next_is(ExchangeOutcome::ClientRefused { detail: "invalid_client".into() });
    assert_eq!(code(world.keeper.refresh(&org("b"), None).await), Code::ProviderUnavailable);
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    assert!(slot.lock().flight().is_none(), "nothing waits for the provider's recovery in the caller's name");
}

#[tokio::test]
async fn a_vault_that_takes_nothing_does_not_make_the_worker_call_the_issuer_more_often() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    world.vault.poison_for_test();
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.count() == 4).await;
    world.until(|world| world.failing() && world.issuer.at_once.load(Ordering::SeqCst) == 0).await;
    let served = world.fetch("a").await.expect("an answer that rotated nothing may be served");
    assert_eq!((served.token.expires_in, served.token.degraded.as_deref()), (3600, Some("vault_unavailable")));
    for _ in 0..30 {
        world.advance(Duration::from_mins(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.issuer.count(), 4, "their tokens live for another half an hour");
    world.advance(Duration::from_mins(20));
    world.until(|world| world.issuer.count() == 6).await;
}

#[tokio::test]
async fn no_refresh_token_is_sent_whose_successor_could_not_be_stored() {
    let world = World::with(IDLE).await;
    world.enrol("a", "reuse-a").await.expect("enrolled");
    world.vault.poison_for_test();
    world.clock.advance(HOUR * 2);
    assert_eq!(code(world.fetch("a").await), Code::VaultUnavailable);
    assert_eq!(world.issuer.count(), 1);
}

#[tokio::test]
async fn a_grant_takes_no_more_organizations_than_leave_room_for_its_tokens() {
    let world = World::new().await;
    let id = |number: usize| org(&format!("{number:0>128}"));
    let mut taken = 0;
    while world.keeper.enrol(id(taken), unverified("key-a")).await.is_ok() {
        taken += 1;
    }
    assert!((200..300).contains(&taken), "{taken}");
    assert_eq!(code(world.keeper.enrol(id(taken), unverified("key-a")).await), Code::BadRequest);
    assert_eq!(code(world.keeper.token(&id(taken), Duration::ZERO).await), Code::UnknownOrganization);
    world.clock.advance(HOUR * 2);
    assert!(world.keeper.token(&id(0), Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn an_organization_that_is_removed_while_its_labels_change_does_not_come_back() {
    let world = World::new().await;
    world.enrol("a", "key-ab").await.expect("enrolled");
    world.enrol("b", "key-ab").await.expect("joined");
    let labels = Labels::from([("team".into(), "north".into())]);
    let relabelled = Enrolment { labels: Some(labels), ..unverified("key-ab") };
    let organization = org("a");
    let (removed, _) =
        tokio::join!(world.keeper.remove(&organization, false), world.keeper.enrol(org("a"), relabelled));
    removed.expect("removed");
    let stored = world.vault.organization(&org("a")).at_once().expect("read").is_some();
    assert_eq!(stored, world.keeper.show(&org("a")).await.is_ok(), "what is stored is what is served");
}

#[tokio::test]
async fn a_rotated_token_that_could_not_be_stored_is_not_served() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(Duration::from_mins(30));
    let gate = world.issuer.closes();
    let keeper = world.keeper.clone();
    let refreshing = tokio::spawn(async move { keeper.refresh(&org("a"), None).await });
    world.until(|world| world.issuer.count() == 2).await;
    world.vault.poison_for_test();
    gate.add_permits(1);
    assert_eq!(code(refreshing.await.expect("whole")), Code::VaultUnavailable);
    let served = world.fetch("a").await.expect("the one before lives");
    assert_eq!(
        (served.token.access_token.as_str(), served.token.degraded.as_deref()),
        ("at-1", Some("vault_unavailable"))
    );
}

#[tokio::test]
async fn what_is_about_to_be_sent_is_in_the_vault_before_it_is_sent_and_on_a_connection_of_its_own() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    assert!(!world.issuer.fresh.load(Ordering::SeqCst), "a key is not spent");
    world.clock.advance(HOUR * 2);
    let gate = world.issuer.closes();
    let keeper = world.keeper.clone();
    let fetching = tokio::spawn(async move { keeper.token(&org("a"), Duration::ZERO).await });
    world.until(|world| world.issuer.count() == 3).await;
    let slot = Arc::clone(&world.keeper.shared.find(&org("a")).await.expect("there").slot);
    let intent = world.vault.intent(slot.id).at_once().expect("read").expect("written");
    assert_eq!(intent.fingerprint, world.vault.fingerprint(&Secret::new("one-1-one-a")));
    assert!(world.issuer.fresh.load(Ordering::SeqCst));
    gate.add_permits(1);
    fetching.await.expect("whole").expect("served");
    assert_eq!(world.vault.intent(slot.id).at_once().expect("read"), None);
}

#[tokio::test]
async fn what_was_changed_during_an_exchange_is_kept_with_its_answer() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    let gate = world.issuer.closes();
    let keeper = world.keeper.clone();
    let fetching = tokio::spawn(async move { keeper.token(&org("a"), Duration::ZERO).await });
    world.until(|world| world.issuer.count() == 2).await;
    world.keeper.enrol(org("b"), unverified("one-a")).await.expect("joined");
    world.keeper.set_paused(&org("a"), true).await.expect("paused");
    gate.add_permits(1);
    assert_eq!(code(fetching.await.expect("whole")), Code::Paused);
    let shown = world.keeper.set_paused(&org("a"), false).await.expect("resumed");
    assert_eq!((shown.state.as_ref(), shown.shares_grant_with), ("active", vec![org("b")]));
    assert_eq!(world.fetch("b").await.expect("served").token.access_token, "at-2");
    assert_eq!(world.vault.stats().strays, 0);
}

#[tokio::test]
async fn whoever_changes_an_organization_that_is_given_another_grant_meanwhile_changes_that_one() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    let old = Arc::clone(&world.keeper.shared.index.find(&org("a")).expect("there").slot);
    let held = old.record().await;
    let others_go_on = async || {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    // Both wait for the old grant's record, the one who replaces it first.
    let keeper = world.keeper.clone();
    let replacing = tokio::spawn(async move { keeper.enrol(org("a"), unverified("key-a")).await });
    others_go_on().await;
    let keeper = world.keeper.clone();
    let pausing = tokio::spawn(async move { keeper.set_paused(&org("a"), true).await });
    others_go_on().await;
    drop(held);
    replacing.await.expect("whole").expect("replaced");
    let shown = pausing.await.expect("whole").expect("it has a grant all the time");
    assert!(shown.paused && old.lock().is_removed());
}

#[tokio::test]
async fn what_callers_force_gets_a_fifth_of_the_budget() {
    // Sixty a minute are twelve that callers may force: one in five seconds.
    let config = ProviderConfig { max_per_minute: 60, ..provider_config() };
    let world = World::of(IDLE, vec![config]).await;
    world.keeper.enrol(org("a"), unverified("key-a")).await.expect("enrolled");
    world.keeper.enrol(org("b"), unverified("key-b")).await.expect("enrolled");
    world
        .until(|world| {
            world.clock.advance(Duration::from_millis(100));
            world.issuer.count() == 2
        })
        .await;
    world.until_state("b", "active/-").await;
    world.clock.advance(Duration::from_secs(2));
    world.keeper.refresh(&org("a"), None).await.expect("the first");
    assert_eq!(code(world.keeper.refresh(&org("b"), None).await), Code::TooManyRequests);
}

#[tokio::test]
async fn who_waits_for_a_grant_that_is_replaced_meanwhile_gets_the_new_ones_token() {
    let world = World::with(IDLE).await;
    world.enrol("a", "reuse-a").await.expect("enrolled");
    let old = world.fetch("a").await.expect("served").etag;
    world.clock.advance(HOUR * 2);
    let gate = world.issuer.closes();
    let (fetching, refreshing) = (world.keeper.clone(), world.keeper.clone());
    let fetched = tokio::spawn(async move { fetching.token(&org("a"), Duration::ZERO).await });
    let refreshed = tokio::spawn(async move { refreshing.refresh(&org("a"), Some(&old)).await });
    world.until(|world| world.issuer.at_once.load(Ordering::SeqCst) == 1).await;
    // The old grant's exchange is given its whole time limit to end.
    world.keeper.enrol(org("a"), unverified("reuse-b")).await.expect("stored");
    gate.add_permits(10);
    for waiting in [fetched, refreshed] {
        let served = waiting.await.expect("no panic").expect("the new grant's token");
        assert_eq!(Fetched::from(served).etag, world.fetch("a").await.expect("served").etag);
    }
    assert_eq!(world.sent("reuse-b"), 1);
}
