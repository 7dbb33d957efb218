//! The keeper with a real vault and an issuer in memory, on a clock that is moved by hand.

mod doubts;
mod epoch;
mod faults;
mod harness;
mod judged;
mod news;
mod outages;
mod renewals;
mod telling;
mod time;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::Semaphore;

use self::harness::{Fetched, Issuer, World, code, enrolment, keeper, links, org, silence, unverified, vault_config};
pub(super) use self::harness::{grant_of_key, new_slot, provider_config};
use super::*;
use crate::{
    clock::ManualClock,
    config::KeepWarm,
    model::{Answer, Credential, ExchangeOutcome, Labels, OrganizationId, Secret, Timestamp, Usage},
    tests::AtOnce as _,
    vault::Identity,
    wire::{self, Code, Enrolment},
};

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn an_enrolled_organization_is_proven_and_its_token_is_served() {
    let world = World::new().await;
    let enrolled = world.enrol("a", "key-a").await.expect("enrolled");
    assert!(enrolled.created && enrolled.changed);
    assert_eq!(enrolled.organization.state, "active");
    let served = world.fetch("a").await.expect("served");
    assert_eq!((served.token.access_token.as_str(), served.token.expires_in), ("at-1", 3600));
    assert!(served.etag.starts_with('"') && !served.etag.contains("at-1"));
    assert_eq!(code(world.fetch("b").await), Code::UnknownOrganization);
    assert_eq!(world.issuer.count(), 1);
}

#[tokio::test]
async fn timers_refresh_ahead_of_the_end_and_one_time_tokens_are_never_replayed() {
    let world = World::new().await;
    for (id, secret) in [("a", "key-a"), ("b", "one-b"), ("c", "reuse-c")] {
        world.enrol(id, secret).await.expect("enrolled");
    }
    for round in 1..=10_u32 {
        world.advance(HOUR.mul_f64(0.83));
        world.until(|world| world.issuer.count() >= 3 * (round + 1)).await;
        for id in ["a", "b", "c"] {
            let served = world.fetch(id).await.expect("served");
            assert_eq!(served.token.degraded, None);
            assert!(served.token.expires_in > 0);
        }
    }
    world.until(|world| world.issuer.at_once.load(Ordering::SeqCst) == 0).await;
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_of_a_lapsed_token_share_one_exchange() {
    let world = World::with(KeepWarm::FetchedWithin(Duration::from_secs(1))).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    *world.issuer.delay.lock().expect("whole") = Duration::from_millis(50);
    let before = world.issuer.count();
    let fetches = (0..200).map(|_| {
        let keeper = world.keeper.clone();
        tokio::spawn(async move { keeper.token(&org("a"), Duration::ZERO).await.expect("served").read().access_token })
    });
    let mut tokens = Vec::new();
    for fetch in fetches.collect::<Vec<_>>() {
        tokens.push(fetch.await.expect("whole"));
    }
    tokens.dedup();
    assert_eq!((world.issuer.count() - before, tokens.len()), (1, 1));
}

#[tokio::test]
async fn a_caller_who_goes_away_does_not_cancel_the_exchange() {
    let world = World::with(KeepWarm::FetchedWithin(Duration::from_secs(1))).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    *world.issuer.delay.lock().expect("whole") = Duration::from_millis(100);
    let impatient = tokio::time::timeout(Duration::from_millis(20), world.fetch("a")).await;
    assert!(impatient.is_err(), "gone before the answer");
    world.until(|world| world.issuer.at_once.load(Ordering::SeqCst) == 0 && world.issuer.count() == 2).await;
    assert_eq!(world.fetch("a").await.expect("served").token.access_token, "at-2");
    assert_eq!((world.issuer.count(), world.issuer.replays.load(Ordering::SeqCst)), (2, 0));
}

#[tokio::test]
async fn silence_after_a_one_time_token_is_doubt_and_its_living_token_is_served() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.count() == 2).await;
    world.until_state("a", "in_doubt/no_answer").await;
    let served = world.fetch("a").await.expect("it still lives");
    assert_eq!(served.token.degraded.as_deref(), Some("no_answer"));
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::InDoubt);
    world.advance(HOUR);
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    assert_eq!(world.issuer.count(), 2, "an unknown subject counts as shared: nothing is tried by itself");
}

#[tokio::test]
async fn a_doubt_that_can_harm_nobody_is_tried_again_when_the_token_has_lapsed() {
    let world = World::new().await;
    for token in ["one-a", "one-1-one-a"] {
        world.issuer.subjects.lock().expect("whole").insert(token.into(), "alice".into());
    }
    world.enrol("a", "one-a").await.expect("enrolled");
    world.issuer.next_is(silence());
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.count() == 2).await;
    world.advance(HOUR);
    world.until(|world| world.issuer.count() == 3).await;
    world.until_state("a", "active/-").await;
}

#[tokio::test]
async fn a_process_that_dies_in_an_exchange_leaves_doubt_and_no_replay() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.enrol("b", "key-b").await.expect("enrolled");
    *world.issuer.delay.lock().expect("whole") = Duration::from_hours(1);
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.at_once.load(Ordering::SeqCst) == 2).await;
    *world.issuer.delay.lock().expect("whole") = Duration::ZERO;
    let world = world.restarted().await;
    assert_eq!(world.state("a").await, "in_doubt/crashed");
    assert_eq!(world.state("b").await, "active/-");
    assert_eq!(world.fetch("a").await.expect("lives").token.degraded.as_deref(), Some("crashed"));
    world.advance(HOUR);
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    let replayed = world.issuer.sent.lock().expect("whole").iter().filter(|sent| *sent == "one-1-one-a").count();
    assert_eq!(replayed, 1, "sent once, before the crash");
}

#[tokio::test]
async fn what_was_refreshed_survives_a_restart() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    let before = world.fetch("a").await.expect("served");
    let world = world.restarted().await;
    let after = world.fetch("a").await.expect("served");
    assert_eq!((before.token.access_token, before.etag), (after.token.access_token, after.etag));
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.count() == 2).await;
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_same_secret_joins_the_grant_that_holds_it() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    let joined = world.enrol("b", "one-a").await.expect("the enrolled token, spent since, names the grant");
    assert!(joined.created);
    assert_eq!(joined.organization.shares_grant_with, [org("a")]);
    let again = world.enrol("a", "one-a").await.expect("nothing to do");
    assert!(!again.created && !again.changed);
    assert_eq!((world.issuer.count(), world.issuer.replays.load(Ordering::SeqCst)), (1, 0));
    world.keeper.remove(&org("a"), true).await.expect("removed");
    assert!(world.issuer.revoked.lock().expect("whole").is_empty(), "the grant still serves b");
    assert_eq!(world.fetch("b").await.expect("served").token.access_token, "at-1");
    world.keeper.remove(&org("b"), true).await.expect("removed");
    assert_eq!(world.issuer.revoked.lock().expect("whole").len(), 1);
    assert_eq!(world.kept(), 1, "nothing is left behind but that its tokens are spent");
}

#[tokio::test]
async fn a_credential_for_another_organization_is_refused_and_changes_nothing() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    let records = world.kept();
    *world.issuer.reach.lock().expect("whole") = Some(vec!["b".into()]);
    assert_eq!(code(world.enrol("a", "key-b").await), Code::WrongOrganization);
    assert_eq!(world.kept(), records);
    assert_eq!(world.fetch("a").await.expect("served").token.access_token, "at-1");
    assert!(world.enrol("b", "key-b").await.is_ok());
}

#[tokio::test]
async fn a_one_time_token_enrolled_under_the_wrong_name_is_not_lost() {
    let world = World::new().await;
    *world.issuer.reach.lock().expect("whole") = Some(vec!["b".into()]);
    assert_eq!(code(world.enrol("a", "one-b").await), Code::WrongOrganization);
    assert_eq!(code(world.keeper.show(&org("a")).await), Code::UnknownOrganization);
    let world = world.restarted().await;
    let enrolled = world.enrol("b", "one-b").await.expect("joins what was kept");
    assert_eq!(enrolled.organization.state, "active");
    assert_eq!((world.issuer.count(), world.issuer.replays.load(Ordering::SeqCst)), (1, 0));
    assert!(world.fetch("b").await.is_ok());
}

#[tokio::test]
async fn a_refused_credential_is_not_enrolled_and_the_old_one_stays() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    assert_eq!(code(world.enrol("a", "dead-key").await), Code::Refused);
    assert_eq!(world.state("a").await, "active/-");
    let replaced = world.enrol("a", "key-new").await.expect("replaced");
    assert!(!replaced.created && replaced.changed);
    assert_eq!(world.kept(), 2, "one grant, one organization");
}

#[tokio::test]
async fn an_unverified_enrolment_is_stored_at_once_and_exchanged_by_the_queue() {
    let world = World::new().await;
    let enrolled = world.keeper.enrol(org("a"), unverified("one-a")).await.expect("stored");
    assert!(enrolled.created);
    world.until(|world| world.issuer.count() == 1).await;
    let again = world.keeper.enrol(org("a"), unverified("one-a")).await.expect("nothing to do");
    assert!(!again.changed);
    assert!(world.fetch("a").await.is_ok());
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_pause_holds_for_the_grant_and_keeps_its_state() {
    let world = World::new().await;
    world.enrol("a", "reuse-a").await.expect("enrolled");
    world.enrol("b", "reuse-a").await.expect("joined");
    let shown = world.keeper.set_paused(&org("a"), true).await.expect("paused");
    assert_eq!((shown.paused, shown.state.as_ref()), (true, "active"));
    assert_eq!(code(world.fetch("b").await), Code::Paused);
    world.advance(HOUR * 3);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.issuer.count(), 1, "a paused grant is not exchanged");
    world.keeper.set_paused(&org("b"), false).await.expect("resumed");
    assert!(world.fetch("a").await.is_ok());
}

#[tokio::test]
async fn a_pause_outlives_a_new_credential() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.keeper.set_paused(&org("a"), true).await.expect("paused");
    assert!(world.enrol("a", "key-b").await.expect("replaced").organization.paused);
    assert!(world.keeper.enrol(org("a"), unverified("key-c")).await.expect("replaced").organization.paused);
    assert_eq!(code(world.fetch("a").await), Code::Paused);
}

#[tokio::test]
async fn a_forced_refresh_names_the_rejected_token_and_is_bounded() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    let first = world.fetch("a").await.expect("served");
    let second: Fetched = world.keeper.refresh(&org("a"), Some(&first.etag)).await.expect("exchanged").into();
    assert_ne!(first.etag, second.etag);
    let again = world.keeper.refresh(&org("a"), Some(&first.etag)).await.expect("a newer one is there");
    assert_eq!(Fetched::from(again).etag, second.etag);
    assert_eq!(code(world.keeper.refresh(&org("a"), Some(&second.etag)).await), Code::TooManyRequests);
    assert_eq!(world.issuer.count(), 2);
    world.advance(Duration::from_secs(10));
    assert!(world.keeper.refresh(&org("a"), None).await.is_ok());
}

#[tokio::test]
async fn more_than_half_a_tokens_life_cannot_be_asked_for_and_less_is_refreshed_first() {
    let world = World::new().await;
    world.enrol("a", "key-a").await.expect("enrolled");
    let ask = |seconds| {
        let keeper = world.keeper.clone();
        async move { keeper.token(&org("a"), Duration::from_secs(seconds)).await }
    };
    assert!(matches!(ask(1801).await, Err(KeeperError::MinTtlTooLong { limit: 1800 })));
    world.clock.advance(Duration::from_secs(1900));
    assert_eq!(ask(1700).await.expect("enough left").read().access_token, "at-1");
    assert_eq!(ask(1800).await.expect("refreshed").read().access_token, "at-2");
}

#[tokio::test]
async fn an_idle_organization_is_refreshed_when_it_is_asked_for() {
    let world = World::with(KeepWarm::FetchedWithin(HOUR / 2)).await;
    world.enrol("a", "key-a").await.expect("enrolled");
    world.advance(HOUR * 5);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.issuer.count(), 1, "nobody fetched it");
    assert_eq!(world.keeper.shared.census().providers.values().next().expect("one").access_expired, 0);
    assert_eq!(world.fetch("a").await.expect("served").token.access_token, "at-2");
    world.advance(HOUR.mul_f64(0.84));
    world.fetch("a").await.expect("served, and refreshed behind the answer or by its timer");
    world.until(|world| world.issuer.count() >= 3).await;
}

#[tokio::test]
async fn a_refused_client_freezes_the_provider_and_only_harmless_probes_are_sent() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.enrol("b", "one-b").await.expect("enrolled");
    world.issuer.next_is(ExchangeOutcome::ClientRefused { detail: "invalid_client".into() });
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::ProviderUnavailable);
    assert!(
        world.keeper.shared.census().providers.values().next().expect("one").circuit_open || {
            world.clock.advance(Duration::from_secs(2));
            world.keeper.shared.census().providers.values().next().expect("one").circuit_open
        }
    );
    let sent = world.issuer.sent.lock().expect("whole").len();
    world.issuer.next_is(ExchangeOutcome::ClientRefused { detail: "still".into() });
    world.advance(HOUR.mul_f64(0.84));
    world
        .until(|world| {
            world.clock.advance(Duration::from_millis(20));
            world.issuer.sent.lock().expect("whole").len() >= sent + 2
        })
        .await;
    let probes = world.issuer.sent.lock().expect("whole")[sent..sent + 2].to_vec();
    assert_eq!(probes, ["consentry-probe", "consentry-probe"], "never a one-time token");
    world.until(|world| world.issuer.sent.lock().expect("whole").len() >= sent + 4).await;
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn lists_are_paged_filtered_and_scoped() {
    let world = World::new().await;
    for id in ["a", "b", "c", "d"] {
        let labels = Labels::from([("team".into(), if id < "c" { "north".into() } else { "south".into() })]);
        let body = Enrolment { labels: Some(labels), ..enrolment(&format!("key-{id}")) };
        world.keeper.enrol(org(id), body).await.expect("enrolled");
    }
    let ids = |page: &wire::OrganizationPage| {
        page.organizations.iter().map(|o| o.organization.to_string()).collect::<Vec<_>>().join(",")
    };
    let list = |filter: Filter, hidden: &'static str| {
        let keeper = world.keeper.clone();
        async move { keeper.list(filter, &move |id: &OrganizationId| id.as_str() != hidden).await.expect("listed") }
    };
    let first = list(Filter { limit: 2, ..Filter::default() }, "").await;
    assert_eq!((ids(&first).as_str(), first.next_cursor.as_deref()), ("a,b", Some("b")));
    let rest = list(Filter { limit: 2, after: Some(org("b")), ..Filter::default() }, "").await;
    assert_eq!((ids(&rest).as_str(), rest.next_cursor), ("c,d", None));
    let north = Filter { limit: 9, labels: Labels::from([("team".into(), "north".into())]), ..Filter::default() };
    assert_eq!(ids(&list(north, "a").await), "b");
    world.keeper.set_paused(&org("c"), true).await.expect("paused");
    let paused = Filter { limit: 9, state: Some("paused".into()), ..Filter::default() };
    assert_eq!(ids(&list(paused, "").await), "c");
    world.keeper.token(&org("b"), Duration::ZERO).await.expect("served");
    world.clock.advance(Duration::from_mins(30));
    world.keeper.token(&org("a"), Duration::ZERO).await.expect("served");
    let unused = |time| Filter { limit: 9, unused_for: Some(time), ..Filter::default() };
    assert_eq!(ids(&list(unused(Duration::from_mins(29)), "").await), "b,c,d", "the never fetched are unused");
    assert_eq!(ids(&list(unused(Duration::from_mins(31)), "").await), "c,d");
    let status = world.keeper.status(Some(&|id: &OrganizationId| id.as_str() < "c")).at_once();
    assert_eq!((status.organizations["active"], status.organizations["paused"]), (2, 0));
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_is_sent() {
    let world = World::new().await;
    let with = |change: &dyn Fn(&mut Enrolment)| {
        let mut body = enrolment("key-a");
        change(&mut body);
        body
    };
    let bad = [
        with(&|body| body.api_key = None),
        with(&|body| body.refresh_token = Some(Secret::new("too"))),
        with(&|body| body.provider = "other".parse().expect("valid")),
        with(&|body| body.client_id = Some("alone".into())),
        with(&|body| body.grace = Some("soon".into())),
        with(&|body| body.labels = Some((0..17).map(|i| (i.to_string(), String::new())).collect())),
    ];
    for body in bad {
        assert_eq!(code(world.keeper.enrol(org("a"), body).await), Code::BadRequest);
    }
    assert_eq!((world.issuer.count(), world.kept()), (0, 0));
    drop(world.folder);
}

#[test]
fn a_credential_that_is_printed_shows_nothing() {
    let body = enrolment("key-hush");
    assert!(!format!("{body:?}").contains("hush"));
    assert!(!format!("{:?}", Credential::ApiKey(Secret::new("hush"))).contains("hush"));
}
