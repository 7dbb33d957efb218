//! A renewal that the worker's death by SIGKILL interrupts, wherever it stands.

use std::{thread, time::Duration};

use consentry::{
    model::Usage,
    sandbox::{GrantType, Outcome},
};
use fastrand::Rng;

use super::{Stage, a_second_later, word};
use crate::harness::{
    chance::{Seed, number, tell},
    eventually,
    ports::free_port,
    sandbox::Stand,
};

/// How many kills there are, unless `CONSENTRY_KILLS` says otherwise: one here for so many under load.
const KILLS: usize = 50;
const SHARE: usize = 8;
/// How long each call takes at the issuer; in its middle it is noted.
const LATENCY: Duration = Duration::from_millis(80);
/// A renewal is two of these, and a commit after each.
const RENEWAL: Duration = Duration::from_millis(240);
const ORGANIZATION: &str = "481001";
const USER: &str = "birgit";

#[test]
fn a_renewal_that_is_killed_at_any_moment_leaves_the_old_consent_or_the_new_one_and_sends_no_code_twice() {
    let (kills, seed) = (number("CONSENTRY_KILLS", KILLS).div_ceil(SHARE), Seed::new("kills in renewals"));
    let mut rng = Rng::with_seed(seed.0);
    let stand = Stand::start_with(3600, |config| {
        config.latency = LATENCY;
        config.usage = Usage::OneTime;
    });
    let port = free_port();
    let mut stage = Stage::of(stand, &format!("http://127.0.0.1:{port}"), port, "", "usage = \"one-time\"");
    stage.enrolled_with(ORGANIZATION, USER, Usage::OneTime);
    let (mut renewed, mut sent) = (0, 0);
    for _ in 0..kills {
        let before = stage.granted_at(ORGANIZATION);
        a_second_later();
        let link = stage.link(ORGANIZATION, "");
        let mut person = stage.person();
        let callback = person.approve(&link, USER).callback;
        let under_way = person.ask(&callback);
        thread::sleep(RENEWAL.mul_f64(rng.f64()));
        stage.worker.kill9();
        drop(under_way);
        stage.worker.launch();
        assert_eq!(stage.worker.ready(), None, "it ended before it was ready");

        eventually("what was begun is done or forgotten", || {
            stage.worker.get("/v1/status").json()["awaiting"].as_array().is_some_and(Vec::is_empty).then_some(())
        });
        // An exchange proves the refresh token, whichever it is.
        let path = format!("/v1/organizations/{ORGANIZATION}/token/refresh");
        let served = stage.worker.post(&path, &[]);
        assert_eq!(served.status, 200, "neither the old consent nor the new one works: {served:?}");
        assert!(stage.stand.takes(served.json()["access_token"].as_str().expect("a token")));
        let took_its_place = stage.granted_at(ORGANIZATION) != before;
        renewed += usize::from(took_its_place);
        let expected = if took_its_place { "used-link" } else { "invitation" };
        assert_eq!(word(&stage.person().get(&link)), expected, "the link is good as long as the old consent is there");
        let codes = codes(&stage);
        assert!(codes - sent <= 1, "a code was sent {} times", codes - sent);
        sent = codes;
    }

    let record = stage.stand.issuer().record();
    assert!(record.iter().all(|entry| !entry.replay), "a spent token was sent: {record:?}");
    let events = stage.worker.get("/v1/events?follow=false").events();
    let told = events.iter().filter(|event| event["type"] == "consent.renewed").count();
    assert_eq!(told, renewed, "{events:?}");
    tell(&format!("{kills} renewals killed: {sent} codes had been sent, {renewed} consents took their place"));
}

/// How many authorization codes the issuer was sent; it took each.
fn codes(stage: &Stage) -> usize {
    let record = stage.stand.issuer().record();
    let codes = record.iter().filter(|entry| entry.grant_type == GrantType::AuthorizationCode);
    codes.inspect(|entry| assert_eq!(entry.result, Outcome::Granted, "{entry:?}")).count()
}
