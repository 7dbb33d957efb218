//! The main job against an authorization server that nobody here wrote: consents by the authorization code flow with
//! PKCE, one-time and re-usable refresh tokens, API keys by the password grant. The server's own judge counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Mutex,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{
    eventually,
    http::Response,
    oidc::{Client, ONE_TIME, PERSONAL, Peer, REUSE},
    worker::{Setup, Worker},
};

/// Access tokens that the timers refresh every second and a half.
const SHORT: u32 = 2;
/// Access tokens that lapse while a test waits for it, and no sooner.
const LAPSING: u32 = 4;
/// Access tokens that outlive the test.
const LONG: u32 = 3600;

/// What each consent client's provider says besides.
const ONE_TIME_LINES: &str = "client_auth = \"post\"\nusage = \"one-time\"";
const REUSE_LINES: &str = "client_auth = \"post\"\nusage = \"reuse\"";

#[test]
fn the_peer_rotates_and_punishes_a_replay() {
    let peer = Peer::start(LONG);
    let first = peer.consent(ONE_TIME, "alice");

    let answer = peer.exchange(ONE_TIME, &first);
    assert_eq!(answer.status, 200, "{answer:?}");
    let second = text(&answer, "refresh_token");
    assert_ne!(first, second);
    assert!(peer.is_alive(&text(&answer, "access_token")));
    assert_eq!((peer.judge().replays, peer.judge().revoked_grants), (0, 0));

    assert_eq!(text(&peer.exchange(ONE_TIME, &first), "error"), "invalid_grant");
    assert_eq!(text(&peer.exchange(ONE_TIME, &second), "error"), "invalid_grant", "the whole grant is dead");

    let judge = peer.judge();
    assert_eq!((judge.replays, judge.revoked_grants), (1, 1));
    assert_eq!((judge.granted("refresh_token"), judge.refused("refresh_token")), (1, 2));
    assert!(peer.consent(ONE_TIME, "alice") != first, "a new consent begins anew");
}

#[test]
fn the_peer_lets_a_reusable_token_be_exchanged_again() {
    let peer = Peer::start(LONG);
    let token = peer.consent(REUSE, "alice");
    for _ in 0..3 {
        assert_eq!(text(&peer.exchange(REUSE, &token), "refresh_token"), token);
    }
    assert_eq!((peer.judge().replays, peer.judge().granted("refresh_token")), (0, 3));
}

#[test]
fn a_one_time_consent_is_kept_warm_through_ten_rotations() {
    ten_refreshes(ONE_TIME, ONE_TIME_LINES);
}

#[test]
fn a_reusable_consent_is_kept_warm_through_ten_refreshes() {
    ten_refreshes(REUSE, REUSE_LINES);
}

/// Enrols a consent and fetches all the time while the timers refresh it ten times: every token handed out lives, and
/// every exchange was for a token that was handed out.
fn ten_refreshes(client: Client, lines: &str) {
    let peer = Peer::start(SHORT);
    let worker = Setup::default().peer("connect", &peer, client, lines).start();
    let refresh_token = peer.consent(client, "alice");
    let enrolled = worker.enrol("org-a", &json!({ "provider": "connect", "refresh_token": refresh_token }));
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    assert_eq!(peer.judge().granted("refresh_token"), 1, "the first exchange proves the token");

    let mut seen = BTreeSet::new();
    let exchanges = eventually("ten refreshes by the timers", || {
        let token = worker.fetch("org-a");
        assert!(peer.is_alive(&token), "a dead token was handed out");
        seen.insert(token);
        let exchanges = peer.judge().granted("refresh_token");
        (exchanges > 10).then_some(exchanges)
    });

    let seen = u64::try_from(seen.len()).expect("a few");
    assert!(seen == exchanges || seen + 1 == exchanges, "{exchanges} exchanges for {seen} tokens");
    let judge = peer.judge();
    assert_eq!((judge.replays, judge.revoked_grants, judge.refused("refresh_token")), (0, 0, 0), "{judge:?}");
    assert_eq!(judge.most_at_once, 1, "one exchange of a grant at a time");

    let shown = worker.get("/v1/organizations/org-a").json();
    assert_eq!((&shown["state"], &shown["failures"]), (&json!("active"), &json!(0)), "{shown}");
    assert_eq!(shown["subject"], "alice", "{shown}");
    assert!(worker.metrics().contains("consentry_token_refresh_total{"), "refreshes are counted");
}

#[test]
fn two_hundred_fetches_of_a_lapsed_token_make_one_exchange() {
    const FETCHES: usize = 200;
    const THREADS: usize = 32;

    let peer = Peer::start(LAPSING);
    let worker = Setup::default()
        .refresh("keep_warm = \"fetched-within 1s\"")
        .peer("connect", &peer, ONE_TIME, ONE_TIME_LINES)
        .start();
    let refresh_token = peer.consent(ONE_TIME, "alice");
    let enrolled = worker.enrol("org-a", &json!({ "provider": "connect", "refresh_token": refresh_token }));
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    let lapsing = worker.fetch("org-a");
    eventually("the token lapses, since nobody fetches it", || (!peer.is_alive(&lapsing)).then_some(()));
    assert_eq!(peer.judge().granted("refresh_token"), 1, "an idle organization is not kept warm");

    // Long enough for every caller to arrive while the exchange is under way.
    peer.delay_answers(Duration::from_millis(300));
    let left = Mutex::new(FETCHES);
    let tokens = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while take_one(&left) {
                    let token = worker.fetch("org-a");
                    tokens.lock().expect("nobody panicked").push(token);
                }
            });
        }
    });

    let tokens = tokens.into_inner().expect("nobody panicked");
    assert_eq!(tokens.len(), FETCHES);
    assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), 1, "all were given the same token");
    assert_ne!(tokens[0], lapsing);
    let judge = peer.judge();
    assert_eq!((judge.granted("refresh_token"), judge.replays), (2, 0), "{judge:?}");
}

fn take_one(left: &Mutex<usize>) -> bool {
    let mut left = left.lock().expect("nobody panicked");
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

#[test]
fn an_api_key_is_exchanged_by_the_password_grant() {
    let peer = Peer::start(SHORT);
    let worker = personal(&peer);
    let enrolled = worker.enrol("org-c", &json!({ "provider": "personal", "api_key": "KEY-org-c" }));
    assert_eq!(enrolled.status, 201, "{enrolled:?}");

    let shown = worker.get("/v1/organizations/org-c").json();
    assert_eq!(
        (&shown["kind"], &shown["state"], &shown["consent"]),
        (&json!("api-key"), &json!("active"), &Value::Null)
    );
    eventually("the timers fetch new tokens with the key", || {
        assert!(peer.is_alive(&worker.fetch("org-c")), "a dead token was handed out");
        (peer.judge().granted("password") >= 4).then_some(())
    });
    assert_eq!(peer.judge().refused("password"), 0);
}

#[test]
fn a_key_of_another_organization_is_refused_and_not_stored() {
    let peer = Peer::start(LONG);
    let worker = personal(&peer);
    let refused = worker.enrol("org-x", &json!({ "provider": "personal", "api_key": "KEY-org-c" }));
    assert_eq!((refused.status, text(&refused, "code").as_str()), (422, "wrong_organization"), "{refused:?}");
    assert!(!refused.body.contains("KEY-org-c"), "an error does not repeat the secret");

    let unknown = worker.enrol("org-c", &json!({ "provider": "personal", "api_key": "KEY-nobody-has" }));
    assert_eq!((unknown.status, text(&unknown, "code").as_str()), (422, "refused"), "{unknown:?}");

    for organization in ["org-x", "org-c"] {
        let answer = worker.get(&format!("/v1/organizations/{organization}"));
        assert_eq!((answer.status, text(&answer, "code").as_str()), (404, "unknown_organization"));
    }
    assert_eq!(worker.get("/v1/organizations").json()["organizations"], json!([]));
}

#[test]
fn an_import_brings_organizations_in_and_can_be_run_again() {
    let peer = Peer::start(LONG);
    let worker = Setup::default()
        .peer("one-time", &peer, ONE_TIME, ONE_TIME_LINES)
        .peer("reuse", &peer, REUSE, REUSE_LINES)
        .peer("personal", &peer, PERSONAL, "client_auth = \"basic-plain\"")
        .start();
    // One consent of a person who owns two organizations: both lines carry the same one-time token.
    let (alice, bob) = (peer.consent(ONE_TIME, "alice"), peer.consent(REUSE, "bob"));
    let lines = [
        json!({ "organization": "org-a", "provider": "one-time", "refresh_token": alice, "labels": { "plan": "pro" } }),
        json!({ "organization": "org-b", "provider": "one-time", "refresh_token": alice }),
        json!({ "organization": "org-d", "provider": "reuse", "refresh_token": bob }),
        json!({ "organization": "org-c", "provider": "personal", "api_key": "KEY-org-c" }),
    ];
    for secret in [&alice, &bob, "KEY-org-c"] {
        worker.plant(secret);
    }
    let file = worker.file("import.jsonl");
    let path = file.to_str().expect("a temporary folder has a plain name");
    fs::write(&file, lines.each_ref().map(Value::to_string).join("\n")).expect("the folder is ours");

    let imported = worker.command(&["import", path, "--verify"]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let tokens: BTreeMap<&str, String> =
        ["org-a", "org-b", "org-c", "org-d"].into_iter().map(|id| (id, worker.fetch(id))).collect();
    assert!(tokens.values().all(|token| peer.is_alive(token)));
    assert_eq!(tokens["org-a"], tokens["org-b"], "one grant serves both");
    assert_eq!(worker.get("/v1/organizations/org-a").json()["shares_grant_with"], json!(["org-b"]));
    assert_eq!(worker.get("/v1/organizations/org-a").json()["labels"], json!({ "plan": "pro" }));

    // The one-time token in the file has been spent since.
    let again = worker.command(&["import", path]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    fs::write(&file, format!("{}\n{{\"organization\":\"org-e\"}}\n", lines[2])).expect("the folder is ours");
    let failed = worker.command(&["import", path]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr) + String::from_utf8_lossy(&failed.stdout);
    assert!(said.contains("line 2"), "a bad line is reported by number: {said}");
    assert!(!said.contains(&bob), "and without the secret");

    let judge = peer.judge();
    assert_eq!((judge.granted("refresh_token"), judge.granted("password")), (2, 1), "one exchange a grant: {judge:?}");
    assert_eq!((judge.replays, judge.revoked_grants, judge.refused("refresh_token")), (0, 0, 0), "{judge:?}");
}

#[test]
fn what_was_enrolled_outlives_a_restart_and_a_kill() {
    let peer = Peer::start(LONG);
    let worker = Setup::default().peer("connect", &peer, ONE_TIME, ONE_TIME_LINES).start();
    let refresh_token = peer.consent(ONE_TIME, "alice");
    let enrolled = worker.enrol("org-a", &json!({ "provider": "connect", "refresh_token": refresh_token }));
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    let token = worker.fetch("org-a");

    let mut worker = worker.restart();
    assert_eq!(worker.fetch("org-a"), token);
    worker.kill9();
    let worker = worker.restart();
    assert_eq!(worker.fetch("org-a"), token, "it was durable before it was handed out");
    assert_eq!(peer.judge().granted("refresh_token"), 1, "a token that lives is not refreshed for a restart");

    let renewed = worker.request("POST", "/v1/organizations/org-a/token/refresh", &[], "");
    assert_eq!(renewed.status, 200, "{renewed:?}");
    worker.plant(&text(&renewed, "access_token"));
    assert!(peer.is_alive(&text(&renewed, "access_token")));
    assert_eq!((peer.judge().granted("refresh_token"), peer.judge().replays), (2, 0));
}

/// A worker that knows the client that exchanges API keys.
fn personal(peer: &Peer) -> Worker {
    Setup::default().peer("personal", peer, PERSONAL, "client_auth = \"basic-plain\"").start()
}

/// A text field of a JSON answer.
fn text(answer: &Response, field: &str) -> String {
    answer.json()[field].as_str().unwrap_or_else(|| panic!("no {field} in {answer:?}")).to_owned()
}
