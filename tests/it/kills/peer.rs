//! The same against an authorization server that nobody here wrote, whose rotation revokes the whole grant when a spent
//! token comes back. It keeps no grace, and its own judge counts.

use std::{collections::BTreeSet, sync::Mutex, thread, time::Duration};

use fastrand::Rng;
use serde_json::json;

use super::{LONGEST_LIFE, start, up_to};
use crate::harness::{
    chance::{Seed, number, tell},
    eventually, http,
    oidc::{ONE_TIME, Peer},
    worker::{Setup, Worker},
};

/// One kill here for so many at the sandbox.
const SHARE: usize = 5;
const ORGANIZATIONS: usize = 8;
const TOKEN_SECONDS: u32 = 3;
/// How long the server holds back each finished answer: long enough for a kill to fall into.
const DELAY: Duration = Duration::from_millis(150);

#[test]
fn a_killed_worker_replays_nothing_at_an_issuer_that_revokes_the_grant_for_it() {
    let (kills, seed) = (number("CONSENTRY_KILLS", super::KILLS).div_ceil(SHARE), Seed::new("kills at a peer"));
    let mut rng = Rng::with_seed(seed.0);
    let peer = Peer::start(TOKEN_SECONDS);
    peer.delay_answers(DELAY);
    let lines = "client_auth = \"post\"\nusage = \"one-time\"\nin_doubt = \"hold\"";
    let mut worker = Setup::default().log("level = \"info\"").peer("connect", &peer, ONE_TIME, lines).start();
    for number in 0..ORGANIZATIONS {
        enrol(&worker, &peer, number);
    }

    let (stop, doubted) = (Mutex::new(false), Mutex::new(0));
    let socket = worker.socket().to_owned();
    thread::scope(|scope| {
        let _ends = Ends(&stop);
        let mut calls = rng.fork();
        let (stop, socket) = (&stop, &socket);
        scope.spawn(move || {
            while !*stop.lock().expect("nobody panicked") {
                let path = format!("/v1/organizations/org-{}/token", calls.usize(..ORGANIZATIONS));
                if let Ok(answer) = http::over_unix(socket, "GET", &path, &[], "") {
                    assert!(matches!(answer.status, 200 | 409 | 503), "{answer:?}");
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        for _ in 0..kills {
            thread::sleep(up_to(LONGEST_LIFE, &mut rng));
            worker.kill9();
            start(&mut worker);
            *doubted.lock().expect("nobody panicked") += renew_what_is_in_doubt(&worker, &peer);
        }
    });

    let mut worker = worker.restart();
    let granted = eventually("every grant is exchanged again", || {
        renew_what_is_in_doubt(&worker, &peer);
        let tokens: BTreeSet<String> = (0..ORGANIZATIONS).filter_map(|number| living(&worker, &peer, number)).collect();
        (tokens.len() == ORGANIZATIONS).then(|| peer.judge().granted("refresh_token"))
    });
    eventually("every grant is exchanged once more", || {
        renew_what_is_in_doubt(&worker, &peer);
        let more = peer.judge().granted("refresh_token") - granted;
        (more >= 2 * ORGANIZATIONS as u64).then_some(())
    });
    let judge = peer.judge();
    assert_eq!((judge.replays, judge.revoked_grants, judge.refused("refresh_token")), (0, 0, 0), "{judge:?}");
    assert!(worker.stop().success());
    let doubted = doubted.into_inner().expect("nobody panicked");
    tell(&format!("{kills} kills at oidc-provider; {granted} exchanges, 0 replays, {doubted} in doubt"));
}

/// Ends the caller, also where something failed.
struct Ends<'a>(&'a Mutex<bool>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        *self.0.lock().expect("nobody panicked") = true;
    }
}

fn enrol(worker: &Worker, peer: &Peer, number: usize) {
    let body = json!({ "provider": "connect", "refresh_token": peer.consent(ONE_TIME, &format!("user-{number}")) });
    let answer = worker.enrol(&format!("org-{number}"), &body);
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
}

/// Asks for a new consent where an exchange was cut off, and finds nothing worse.
fn renew_what_is_in_doubt(worker: &Worker, peer: &Peer) -> usize {
    let mut count = 0;
    for number in 0..ORGANIZATIONS {
        let shown = worker.get(&format!("/v1/organizations/org-{number}")).json();
        match shown["state"].as_str() {
            Some("active") => {}
            Some("in_doubt") => {
                enrol(worker, peer, number);
                count += 1;
            }
            _ => panic!("what was enrolled is neither there nor in doubt: {shown}"),
        }
    }
    count
}

fn living(worker: &Worker, peer: &Peer, number: usize) -> Option<String> {
    let answer = worker.get(&format!("/v1/organizations/org-{number}/token"));
    let token = answer.json()["access_token"].as_str()?.to_owned();
    peer.is_alive(&token).then_some(token)
}
