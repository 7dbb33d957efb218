//! What is told of grants, and that it is told once.

use super::*;
use crate::model::{Event, EventKind};

const DAY: Duration = Duration::from_hours(24);

/// A consent that ends so many days after the clock began.
fn ending(secret: &str, days: u32) -> Enrolment {
    let end = Timestamp::from_millis(1_800_000_000_000) + DAY * days;
    let labels: Labels = [("name".to_owned(), "Bager Hansen".to_owned())].into();
    Enrolment { expires_at: Some(end), labels: Some(labels), ..enrolment(secret) }
}

impl World {
    fn told(&self) -> Vec<Arc<Event>> {
        self.keeper.outbox().after(None)
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.told().iter().map(|event| event.kind).collect()
    }

    async fn warned(&self) {
        let on_duty = self.keeper.shared.sweeping.begin().await.expect("it is alone");
        self.keeper.shared.warn(&on_duty).await;
    }
}

#[tokio::test]
async fn a_consent_is_warned_of_at_each_step_once_across_restarts_and_a_long_downtime() {
    let mut world = World::new().await;
    world.keeper.enrol(org("a"), ending("reuse-a", 100)).await.expect("enrolled");
    world.keeper.enrol(org("b"), enrolment("reuse-a")).await.expect("shares the grant");
    world.warned().await;
    assert_eq!(world.kinds(), []);
    world.advance(DAY * 70);
    world.warned().await;
    world.warned().await;
    world = world.restarted().await;
    world.warned().await;
    let told = world.told();
    let who: Vec<_> = told.iter().filter_map(|event| event.organization.as_ref().map(OrganizationId::as_str)).collect();
    assert_eq!(who, ["a", "b"], "one event for each organization of the grant");
    let first = &told[0];
    assert_eq!((first.kind, first.within, first.days_left), (EventKind::ConsentExpiring, Some(DAY * 30), Some(30)));
    assert_eq!(first.labels.get("name").map(String::as_str), Some("Bager Hansen"));
    assert_eq!(first.state.as_deref(), Some("active"));
    assert_ne!(told[0].id, told[1].id);
    assert_eq!(world.keeper.show(&org("a")).await.expect("there").consent.expect("one").warned, ["30d"]);
    // Down from before the last step until after the end.
    world.keeper.drain().await;
    world.clock.advance(DAY * 35);
    world = world.restarted().await;
    let ended = |world: &World| world.kinds().into_iter().filter(|kind| *kind == EventKind::ConsentExpired).count();
    world.until(|world| ended(world) == 2).await;
    world.warned().await;
    // Of the steps that were missed the end is the nearest. What was told a month ago is not kept any more.
    let told = world.told();
    let last: Vec<_> = told.iter().rev().take(2).map(|event| (event.kind, event.days_left)).collect();
    assert_eq!(last, [(EventKind::ConsentExpired, Some(-5)); 2]);
    assert_eq!(ended(&world), 2);
    assert_eq!(world.state("a").await, "active/-", "passing the end changes no state");
}

#[tokio::test]
async fn a_consent_that_is_replaced_is_warned_of_anew() {
    let world = World::new().await;
    world.keeper.enrol(org("a"), ending("reuse-a", 20)).await.expect("enrolled");
    world.warned().await;
    world.keeper.enrol(org("a"), ending("reuse-b", 25)).await.expect("replaced");
    world.warned().await;
    let ids: std::collections::BTreeSet<_> = world.told().iter().map(|event| event.id).collect();
    let warnings = world.kinds().into_iter().filter(|kind| *kind == EventKind::ConsentExpiring).count();
    assert_eq!((warnings, ids.len()), (2, world.told().len()));
}

#[tokio::test]
async fn what_becomes_of_a_grant_is_told_in_the_commit_that_stores_it() {
    let mut world = World::new().await;
    world.issuer.subjects.lock().expect("whole").insert("one-a".into(), "alice".into());
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    world.advance(HOUR);
    world.until_state("a", "in_doubt/no_answer").await;
    // What the next process finds is what was durable with the state.
    world = world.restarted().await;
    assert_eq!(world.kinds().first(), Some(&EventKind::ConsentInDoubt));
    assert_eq!(world.told()[0].reason.as_deref(), Some("no_answer"));
    world.advance(HOUR * 2);
    world.until_state("a", "active/-").await;
    world.until(|world| world.kinds().contains(&EventKind::ConsentRecovered)).await;
    let doubts = world.kinds().into_iter().filter(|kind| *kind == EventKind::ConsentInDoubt).count();
    assert_eq!(doubts, 1, "a restart tells nothing twice");
}

#[tokio::test]
async fn a_provider_that_fails_and_recovers_is_told_of_although_no_commit_waits_for_it() {
    let world = World::new().await;
    for organization in ["a", "b", "c", "d"] {
        world.enrol(organization, &format!("key-{organization}")).await.expect("enrolled");
    }
    *world.issuer.outage.lock().expect("whole") = Some(ExchangeOutcome::Unavailable { retry_after: None });
    world.advance(HOUR);
    world.until(|world| world.kinds().contains(&EventKind::ProviderFailing)).await;
    let failing = world.told().into_iter().find(|event| event.kind == EventKind::ProviderFailing).expect("there");
    assert_eq!(failing.provider.as_ref().map(ProviderName::as_str), Some("test"));
    assert_eq!((failing.reason.as_deref(), &failing.organization), (Some("provider_unavailable"), &None));
    *world.issuer.outage.lock().expect("whole") = None;
    world.advance(HOUR);
    world.until(|world| world.kinds().contains(&EventKind::ProviderRecovered)).await;
}

#[tokio::test]
async fn who_listens_is_told_of_refreshed_tokens_and_nobody_else() {
    let world = World::new().await;
    let mut follower = world.keeper.outbox().follow(None);
    world.enrol("a", "reuse-a").await.expect("enrolled");
    world.advance(HOUR);
    let event = follower.next().await.expect("in time");
    assert_eq!((event.kind, event.organization.as_ref()), (EventKind::TokenRefreshed, Some(&org("a"))));
    assert_eq!(world.kinds(), []);
}

#[tokio::test]
async fn a_vault_that_takes_nothing_is_told_of_from_memory_once() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.vault.poison_for_test();
    world.keeper.sweep();
    world.keeper.sweep();
    assert_eq!(world.kinds(), [EventKind::VaultFailing]);
}

#[tokio::test]
async fn a_new_secret_in_the_place_of_an_old_one_is_told_as_a_renewal_once_it_is_proven() {
    let world = World::new().await;
    let renewed = |world: &World| -> Vec<String> {
        let told = world.told();
        let renewed = told.iter().filter(|event| event.kind == EventKind::ConsentRenewed);
        renewed.filter_map(|event| event.labels.get("name").cloned()).collect()
    };
    world.keeper.enrol(org("a"), ending("reuse-1", 100)).await.expect("enrolled");
    world.enrol("b", "key-1").await.expect("enrolled");
    world.enrol("b", "key-2").await.expect("replaced");
    assert!(world.kinds().is_empty(), "neither a first consent nor a key is a renewal");
    world.keeper.enrol(org("a"), ending("reuse-2", 200)).await.expect("replaced");
    assert_eq!(renewed(&world), ["Bager Hansen"]);
    world.enrol("a", "reuse-2").await.expect("unchanged");
    world.keeper.enrol(org("a"), unverified("reuse-3")).await.expect("stored");
    assert!(world.enrol("a", "dead-1").await.is_err());
    assert_eq!(renewed(&world).len(), 1, "what is there already, unproven or refused is none");
    // Nobody knows whether it works until its first answer comes, however many organizations use it.
    let gate = world.issuer.closes();
    world.keeper.enrol(org("c"), unverified("reuse-4")).await.expect("stored");
    world.keeper.enrol(org("b"), unverified("reuse-4")).await.expect("joined");
    assert_eq!((world.state("b").await.as_str(), renewed(&world).len()), ("failing/unverified", 1));
    gate.add_permits(1);
}
