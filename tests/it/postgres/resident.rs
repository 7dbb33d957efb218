//! Keepers that have less of the fleet in memory than there is.

use std::{sync::atomic::Ordering, time::Duration};

use consentry::{
    config::KeepWarm,
    keeper::{KeeperError, NewConsent},
    links::{Binding, Invitation},
    model::Secret,
};

use super::{
    cluster::{Cluster, is_installed},
    keepers::{Fleet, LIFE, LONG_LIFE, ORGANIZATIONS, enrolment, organization, provider},
};
use crate::harness::eventually;

#[test]
fn new_consents_take_the_place_of_those_of_organizations_that_a_keeper_does_not_have_in_memory() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), "renewing_bounded_keepers", 2, KeepWarm::Always, LONG_LIFE, Some(10));
    let names = ["linked", "put"];
    for name in &names {
        fleet.enrol(0, name);
    }
    let (old, before) = (
        names.map(|name| fleet.grant_of(1, name)),
        names.map(|name| fleet.fetch(0, name).expect("a token").etag().to_owned()),
    );
    assert_eq!(fleet.keepers[1].resident(), 0, "nobody has asked it for anything");

    let invitation = Invitation {
        organization: organization("linked"),
        provider: provider().name,
        also: Vec::new(),
        binding: Binding { grant: Some(old[0]), generation: 1 },
    };
    let consent = NewConsent {
        invitation,
        code: Secret::new("linked"),
        verifier: None,
        redirect_uri: "https://connect.example/callback/test".into(),
    };
    let consented = fleet.runtimes[1].block_on(fleet.keepers[1].consent(consent)).expect("it is connected");
    assert_eq!((consented.connected, consented.renewed), (vec![organization("linked")], true));
    let putting = fleet.keepers[1].enrol(organization("put"), enrolment("put-renewed"));
    assert!(!fleet.runtimes[1].block_on(putting).expect("enrolled").created, "it was there before");

    for ((name, old), before) in names.iter().zip(old).zip(before) {
        let new = fleet.fetch(1, name).expect("a token").etag().to_owned();
        assert_ne!(new, before);
        eventually("the other serves the new one", || {
            (fleet.fetch(0, name).expect("a token").etag() == new).then_some(())
        });
        assert!(!fleet.has(0, old), "the old grant is gone with its last organization");
    }
    fleet.issuer.judge();
    fleet.stop();
}

#[test]
fn more_than_fit_in_memory_are_enrolled_at_once_and_leave_it_when_they_are_not_in_use_any_more() {
    const MOST: usize = 4;
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), "enrolling_bounded_keepers", 1, KeepWarm::Always, LONG_LIFE, Some(MOST));
    let (keeper, _gate) = (&fleet.keepers[0], fleet.issuer.closes());
    let names: Vec<String> = (0..ORGANIZATIONS).map(|number| format!("org-{number}")).collect();
    let enrolling: Vec<_> = names
        .iter()
        .map(|name| {
            let (keeper, name) = (keeper.clone(), name.clone());
            fleet.runtimes[0].spawn(async move { keeper.enrol(organization(&name), enrolment(&name)).await })
        })
        .collect();
    // Two organizations may share a lock, so that one of them comes after the other.
    let exchanged = || usize::try_from(fleet.issuer.count()).expect("few");
    eventually("many are exchanged at once", || (exchanged() >= 2 * MOST).then_some(()));
    assert!(keeper.resident() >= 2 * MOST, "none of them leaves in the middle of its exchange");
    fleet.issuer.opens();
    for enrolling in enrolling {
        assert!(fleet.runtimes[0].block_on(enrolling).expect("it did not panic").expect("enrolled").created);
    }
    // Nothing is added any more.
    eventually("they leave", || (keeper.resident() <= MOST).then_some(()));
    for name in &names {
        fleet.fetch(0, name).expect("each is served");
    }
    assert!(keeper.resident() <= MOST, "{}", keeper.resident());
    fleet.issuer.judge();
    fleet.stop();
}

#[test]
fn what_is_due_and_needed_by_nobody_is_put_off_without_being_brought_into_memory() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let warm = KeepWarm::FetchedWithin(Duration::from_millis(1));
    let fleet = Fleet::start(&cluster.url(), "idle_bounded_keepers", 2, warm, LIFE, Some(10));
    let names = ["one", "two", "three"];
    for name in &names {
        fleet.enrol(0, name);
    }
    // What is due from here on is the other's.
    fleet.runtimes[0].block_on(fleet.keepers[0].drain());
    let store = fleet.vaults[1].sharing().expect("it is shared");
    let lapsed = || -> u64 {
        let census = fleet.runtimes[1].block_on(store.census(&[], &[])).expect("an answer");
        census.iter().map(|count| count.access_expired).sum()
    };
    eventually("their tokens lapse", || (lapsed() == 3).then_some(()));
    eventually("they are not due by themselves any more", || {
        let claimed = fleet.runtimes[1].block_on(store.claim_due(&provider().name, 10)).expect("an answer");
        claimed.is_empty().then_some(())
    });
    assert_eq!(fleet.keepers[1].resident(), 0);
    let before = fleet.issuer.count();
    for name in &names {
        fleet.fetch(1, name).expect("each is refreshed when it is fetched");
    }
    assert_eq!(fleet.issuer.count(), before + 3);
    fleet.issuer.judge();
    fleet.stop();
}

#[test]
fn what_was_due_while_the_provider_refused_the_client_is_refreshed_when_it_does_not_any_more() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), "frozen_bounded_keepers", 2, KeepWarm::Always, LIFE, Some(4));
    let names: Vec<String> = (0..ORGANIZATIONS).map(|number| format!("org-{number}")).collect();
    for name in &names {
        fleet.enrol(0, name);
    }
    fleet.issuer.refuses.store(true, Ordering::SeqCst);
    for keeper in 0..2 {
        eventually("each knows that the provider is frozen", || {
            let fetched = fleet.fetch(keeper, "org-0");
            matches!(fetched, Err(KeeperError::ProviderUnavailable { reason: "client_refused", .. })).then_some(())
        });
    }
    let rounds = || fleet.issuer.families().values().map(|family| family.rounds).min();
    let before = rounds().expect("there are some");
    fleet.issuer.refuses.store(false, Ordering::SeqCst);
    eventually("all are refreshed, and nobody asks for them", || (rounds() > Some(before)).then_some(()));
    fleet.issuer.judge();
    fleet.stop();
}
