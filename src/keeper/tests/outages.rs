//! A provider, a clock or a disk that fails: what is frozen, what is sent, and how it all comes back.

use super::*;
use crate::clock::Clock;

const IDLE: KeepWarm = KeepWarm::FetchedWithin(Duration::from_secs(1));

fn unavailable() -> ExchangeOutcome {
    ExchangeOutcome::Unavailable { retry_after: None }
}

impl World {
    fn frozen(&self) -> Option<&'static str> {
        self.keeper.shared.lanes[0].circuit.frozen()
    }

    fn exchanges_of(&self, start: &str) -> usize {
        self.issuer.sent.lock().expect("whole").iter().filter(|sent| sent.starts_with(start)).count()
    }
}

#[tokio::test]
async fn a_mass_refusal_makes_nothing_lost_and_all_is_well_when_it_is_over() {
    let world = World::new().await;
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        world.enrol(name, &format!("one-{name}")).await.expect("enrolled");
    }
    *world.issuer.outage.lock().expect("whole") = Some(ExchangeOutcome::Refused { detail: "invalid_grant".into() });
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.frozen() == Some("refused")).await;
    for _ in 0..30 {
        world.advance(Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for name in names {
        let state = world.state(name).await;
        assert!(state == "active/-" || state == "failing/refused", "{name}: {state}");
    }
    *world.issuer.outage.lock().expect("whole") = None;
    for _ in 0..200 {
        world.advance(Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for name in names {
        world.until_state(name, "active/-").await;
    }
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn when_a_provider_thaws_tokens_are_tried_one_at_a_time_until_one_is_answered() {
    let world = World::new().await;
    for number in 0..20 {
        world.enrol(&format!("o{number}"), &format!("one-{number}")).await.expect("enrolled");
    }
    world.issuer.next_is(unavailable());
    world.issuer.next_is(unavailable());
    world.issuer.next_is(unavailable());
    for name in ["o0", "o1", "o2"] {
        assert_eq!(code(world.keeper.refresh(&org(name), None).await), Code::ProviderUnavailable);
    }
    assert_eq!(world.frozen(), Some("provider_unavailable"));
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.keeper.shared.lanes[0].waiting() >= 17).await;
    // A made-up credential is answered; whatever is really exchanged is not.
    let gate = world.issuer.closes();
    gate.add_permits(1);
    let sent = world.exchanges_of("one-");
    world
        .until(|world| {
            world.clock.advance(Duration::from_secs(1));
            world.exchanges_of("one-") > sent
        })
        .await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(world.exchanges_of("one-"), sent + 1, "one token is at risk and not twenty");
    gate.add_permits(1000);
    world.until(|world| world.exchanges_of("one-") >= sent + 20).await;
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_backlog_of_an_outage_drains_within_the_budget() {
    let config = ProviderConfig { max_per_minute: 600, ..provider_config() };
    let world = World::of(KeepWarm::Always, vec![config]).await;
    for number in 0..50 {
        world.keeper.enrol(org(&format!("o{number}")), unverified(&format!("key-{number}"))).await.expect("stored");
    }
    let mut most = 0;
    let mut before = 0;
    for _ in 0..100 {
        // A second at ten exchanges a second, and what a quiet time may have saved.
        world.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = world.issuer.count();
        most = most.max(now - before);
        before = now;
        if now >= 50 {
            break;
        }
    }
    world.until(|world| world.issuer.count() >= 50).await;
    assert!(most <= 30, "{most} at once");
}

#[tokio::test]
async fn a_wall_clock_that_goes_back_neither_stops_refreshing_nor_starts_a_storm() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.enrol("b", "one-b").await.expect("enrolled");
    world.clock.set_wall(world.clock.now().wall - HOUR * 24 * 365);
    world.keeper.shared.timers.wake();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.issuer.count(), 2, "nothing is due for that");
    for round in 2..=4 {
        world.advance(HOUR.mul_f64(0.85));
        world.until(|world| world.issuer.count() == 2 * round).await;
        world.until(|world| world.issuer.at_once.load(Ordering::SeqCst) == 0).await;
    }
    for name in ["a", "b"] {
        assert_eq!(world.fetch(name).await.expect("served").token.degraded, None);
    }
}

#[tokio::test]
async fn a_wall_clock_that_goes_back_does_not_keep_a_harmless_doubt_waiting() {
    let world = World::new().await;
    for token in ["one-a", "one-1-one-a"] {
        world.issuer.subjects.lock().expect("whole").insert(token.into(), "alice".into());
    }
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    world.advance(HOUR.mul_f64(0.85));
    world.until_state("a", "in_doubt/no_answer").await;
    world.clock.set_wall(world.clock.now().wall - HOUR * 24 * 365);
    world.advance(HOUR);
    world.until_state("a", "active/-").await;
}

#[tokio::test]
async fn a_wall_clock_that_goes_forward_refreshes_once() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.clock.set_wall(world.clock.now().wall + HOUR * 24);
    world.keeper.shared.timers.wake();
    world.until(|world| world.issuer.count() == 2).await;
    assert_eq!(world.fetch("a").await.expect("served").token.expires_in, 3600);
    world.keeper.shared.timers.wake();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.issuer.count(), 2);
}

#[tokio::test]
async fn a_machine_that_was_suspended_refreshes_what_lapsed_meanwhile() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.advance(HOUR * 9);
    assert_eq!(world.fetch("a").await.expect("refreshed").token.access_token, "at-2");
    assert_eq!((world.issuer.count(), world.issuer.replays.load(Ordering::SeqCst)), (2, 0));
}

#[tokio::test]
async fn a_token_is_not_handed_out_beyond_its_life_though_wall_time_went_back_during_its_exchange() {
    let world = World::with(IDLE).await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    let gate = world.issuer.closes();
    let keeper = world.keeper.clone();
    let fetching = tokio::spawn(async move { keeper.token(&org("a"), Duration::ZERO).await });
    world.until(|world| world.issuer.count() == 2).await;
    world.clock.advance(Duration::from_secs(8));
    world.clock.set_wall(world.clock.now().wall - HOUR);
    gate.add_permits(1);
    let served = fetching.await.expect("whole").expect("served");
    assert_eq!(served.read().expires_in, 3592, "counted from when it was asked for");
}

#[tokio::test]
async fn one_damaged_record_does_not_hide_the_others() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.enrol(name, &format!("key-{name}")).await.expect("enrolled");
    }
    let entry = world.keeper.shared.find(&org("b")).await.expect("there");
    let shown = world.keeper.shared.unreadable(&entry);
    assert!(shown.unreadable && shown.organization == org("b") && shown.state == "active");
    world.vault.damage_for_test(&org("b"));
    let page = world.keeper.list(Filter { limit: 9, ..Filter::default() }, &|_| true).await.expect("listed");
    let listed: Vec<_> = page.organizations.iter().map(|one| (one.organization.as_str(), one.unreadable)).collect();
    assert_eq!(listed, [("a", false), ("b", true), ("c", false)]);
    assert!(world.keeper.show(&org("b")).await.expect("shown").unreadable);
    assert!(world.fetch("b").await.is_ok(), "its token is in memory");
}

#[tokio::test]
async fn an_exchange_that_never_ends_is_ended() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    let gate = world.issuer.closes();
    tokio::time::pause();
    assert_eq!(code(world.fetch("a").await), Code::ProviderUnavailable, "whoever waits is told first");
    tokio::time::sleep(Duration::from_secs(10)).await;
    tokio::time::resume();
    world.until_state("a", "in_doubt/no_answer").await;
    drop(gate);
}

#[tokio::test]
async fn a_fetched_organization_is_moved_forward_in_a_backlog() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.enrol(name, &format!("one-{name}")).await.expect("enrolled");
    }
    world.enrol("k", "key-k").await.expect("enrolled");
    world.issuer.next_is(ExchangeOutcome::ClientRefused { detail: "invalid_client".into() });
    *world.issuer.outage.lock().expect("whole") = Some(ExchangeOutcome::ClientRefused { detail: "still".into() });
    assert_eq!(code(world.keeper.refresh(&org("k"), None).await), Code::ProviderUnavailable);
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.keeper.shared.lanes[0].waiting() >= 3).await;
    assert!(world.fetch("c").await.is_ok());
    let sent = world.exchanges_of("one-");
    *world.issuer.outage.lock().expect("whole") = None;
    world
        .until(|world| {
            world.clock.advance(Duration::from_secs(1));
            world.exchanges_of("one-") >= sent + 3
        })
        .await;
    let order = world.issuer.sent.lock().expect("whole").clone();
    let first = order.iter().filter(|secret| secret.starts_with("one-")).nth(sent).cloned();
    assert!(first.as_deref().is_some_and(|secret| secret.ends_with("one-c")), "{order:?}");
}
