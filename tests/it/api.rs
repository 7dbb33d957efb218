//! What each call answers. The harness besides holds every answer against `docs/openapi.yaml`.

use std::time::Duration;

use consentry::{
    model::{Secret, Usage},
    sandbox::{Fault, FaultKind},
};
use serde_json::{Value, json};

use crate::harness::{
    eventually,
    http::{Headers, Response},
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const JSON: Headers<'static> = &[("content-type", "application/json")];

fn pair(access_token_seconds: u64) -> (Stand, Worker) {
    let stand = Stand::start(access_token_seconds);
    let worker = Setup::default().sandbox(&stand).start();
    (stand, worker)
}

fn consent(token: &str) -> Value {
    json!({ "provider": CONSENTS, "refresh_token": token })
}

fn key(key: &str) -> Value {
    json!({ "provider": KEYS, "api_key": key })
}

/// Fails unless this is the problem with this status and code.
#[track_caller]
fn assert_problem(answer: &Response, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{answer:?}");
}

#[track_caller]
fn assert_enrolled(answer: &Response, status: u16, changed: &str) {
    assert_eq!((answer.status, answer.header("consentry-changed")), (status, Some(changed)), "{answer:?}");
}

#[test]
fn a_token_comes_with_all_that_its_user_needs() {
    let (stand, worker) = pair(3600);
    let token = stand.consent("birgit", Usage::Reuse, &["481001"]);
    assert_enrolled(&worker.enrol("481001", &consent(&token)), 201, "true");
    let api_key = stand.api_key("499001");
    assert_enrolled(&worker.enrol("499001", &key(&api_key)), 201, "true");

    let first = worker.get("/v1/organizations/481001/token");
    let body = first.json();
    assert_eq!(first.status, 200);
    assert_eq!((&body["organization"], &body["provider"]), (&json!("481001"), &json!(CONSENTS)));
    assert_eq!((&body["token_type"], &body["degraded"]), (&json!("Bearer"), &Value::Null));
    assert!(body["scope"].as_str().expect("the sandbox says it").contains("dineropublicapi:read"));
    assert!((3500..=3600).contains(&body["expires_in"].as_u64().expect("seconds")), "{body}");
    assert!(body["consent_expires_at"].is_string(), "{body}");
    assert!(stand.takes(body["access_token"].as_str().expect("text")));
    assert!(!first.header("etag").expect("an entity tag").contains(body["access_token"].as_str().expect("text")));

    let keyed = worker.get("/v1/organizations/499001/token").json();
    assert_eq!(keyed["consent_expires_at"], Value::Null);
    assert!(stand.takes(keyed["access_token"].as_str().expect("text")));

    // Nothing is exchanged for a fetch, and a token that stays has a tag that stays.
    let exchanges = stand.issuer().exchanges();
    assert_eq!(worker.get("/v1/organizations/481001/token").header("etag"), first.header("etag"));
    assert_eq!(stand.issuer().exchanges(), exchanges);
    assert_problem(&worker.get("/v1/organizations/481002/token"), 404, "unknown_organization");
}

#[test]
fn a_fetch_is_answered_alike_whether_or_not_it_takes_the_way_past_the_router() {
    let (stand, worker) = pair(3600);
    worker.enrol("481001", &consent(&stand.consent("birgit", Usage::Reuse, &["481001"])));
    let counted = || worker.metric("consentry_fetch_requests_total", &["outcome=\"ok\""]);
    for query in ["", "?min_ttl=60"] {
        let before = counted();
        // An id with an escape in it is left to the router.
        let ask = |id: &str| worker.get(&format!("/v1/organizations/{id}/token{query}"));
        let (past, through) = (ask("481001"), ask("48%31001"));
        assert_eq!((past.status, through.status), (200, 200));
        // In whatever order they come.
        let named = |answer: &Response| {
            let mut names: Vec<_> = answer.header_names().map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(named(&past), named(&through));
        for name in past.header_names().filter(|name| !matches!(*name, "date" | "content-length")) {
            assert_eq!(past.header(name), through.header(name));
        }
        let (mut past, mut through) = (past.json(), through.json());
        let left = |body: &mut Value| body["expires_in"].take().as_u64().expect("seconds");
        assert!(left(&mut past).abs_diff(left(&mut through)) <= 1);
        assert_eq!(past, through);
        assert!((counted() - before - 2.0).abs() < 0.5, "each is counted once");
    }
    // What is not such a fetch is none of its business.
    assert_problem(&worker.request("DELETE", "/v1/organizations/481001/token", &[], ""), 405, "method_not_allowed");
    assert_problem(&worker.get("/v1/organizations/481001/x/token"), 404, "not_found");
}

#[test]
fn half_of_a_tokens_life_can_be_asked_for_and_no_more() {
    let (stand, worker) = pair(3600);
    worker.enrol("481001", &consent(&stand.consent("birgit", Usage::Reuse, &["481001"])));
    let ask = |min_ttl: &str| worker.get(&format!("/v1/organizations/481001/token?min_ttl={min_ttl}"));
    for good in ["0", "1", "1800"] {
        let answer = ask(good);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for long in ["1801", "3600", "18446744073709551616"] {
        assert_problem(&ask(long), 400, "min_ttl_too_long");
    }
    for wrong in ["", "-1", "1.5", "5m", "%00"] {
        assert_problem(&ask(wrong), 400, "bad_request");
    }
}

#[test]
fn a_rejected_token_is_exchanged_once_however_many_callers_had_it() {
    let (stand, worker) = pair(3600);
    worker.enrol("481001", &consent(&stand.consent("birgit", Usage::OneTime, &["481001"])));
    let path = "/v1/organizations/481001/token/refresh";
    let rejected = worker.get("/v1/organizations/481001/token");
    let old = rejected.header("etag").expect("an entity tag").to_owned();
    let exchanges = stand.issuer().exchanges();

    let refreshed = worker.post(path, &[("if-match", &old)]);
    assert_eq!(refreshed.status, 200, "{refreshed:?}");
    assert_ne!(refreshed.header("etag"), Some(&*old));
    assert_ne!(refreshed.json()["access_token"], rejected.json()["access_token"]);
    assert_eq!(stand.issuer().exchanges(), exchanges + 1);

    // The next caller had the old token too: the newer one is there already.
    for tag in [old.clone(), format!("W/{old}")] {
        let late = worker.post(path, &[("if-match", &tag)]);
        assert_eq!((late.status, late.header("etag")), (200, refreshed.header("etag")), "{late:?}");
    }
    assert_eq!(stand.issuer().exchanges(), exchanges + 1);

    // Whoever does not say, or had the newest, would force a second exchange at once.
    let newest = refreshed.header("etag").expect("an entity tag");
    for headers in [&[][..], &[("if-match", "*")], &[("if-match", newest)]] {
        let answer = worker.post(path, headers);
        assert_problem(&answer, 429, "too_many_requests");
        let wait: u64 = answer.header("retry-after").expect("when").parse().expect("seconds");
        assert!((1..=300).contains(&wait), "{answer:?}");
    }
    for wrong in ["abc", "\"a\", \"b\"", "\""] {
        assert_problem(&worker.post(path, &[("if-match", wrong)]), 400, "bad_request");
    }
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (exchanges + 1, 0));
    assert_problem(&worker.post("/v1/organizations/9/token/refresh", &[]), 404, "unknown_organization");
}

#[test]
fn while_the_issuer_is_down_the_living_token_is_given_and_then_the_truth() {
    let (stand, worker) = pair(8);
    worker.enrol("499001", &key(&stand.api_key("499001")));
    let path = "/v1/organizations/499001/token";
    stand.fault(Fault { retry_after_seconds: Some(1), ..Fault::always(FaultKind::Outage) });

    let degraded = eventually("the worker notices the outage", || {
        Some(worker.get(path)).filter(|answer| answer.status != 200 || !answer.json()["degraded"].is_null())
    });
    assert_eq!(degraded.status, 200, "the token lives, so it is given: {degraded:?}");
    assert_eq!(degraded.json()["degraded"], "provider_unavailable");
    assert!(stand.takes(degraded.json()["access_token"].as_str().expect("text")));

    let lapsed = eventually("the token lapses", || Some(worker.get(path)).filter(|answer| answer.status != 200));
    assert_problem(&lapsed, 503, "provider_unavailable");
    let shown = worker.get("/v1/organizations/499001").json();
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("failing"), &json!("provider_unavailable")), "{shown}");

    stand.issuer().clear_faults();
    let well = eventually("the worker recovers", || Some(worker.get(path)).filter(|answer| answer.status == 200));
    assert_eq!(well.json()["degraded"], Value::Null);
    let shown = worker.get("/v1/organizations/499001").json();
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("active"), &Value::Null), "{shown}");
}

#[test]
fn a_pause_holds_for_every_organization_of_the_grant_and_is_lifted_for_all() {
    let (stand, worker) = pair(3600);
    let token = stand.consent("anders", Usage::Reuse, &["482001", "482002"]);
    worker.enrol("482001", &consent(&token));
    worker.enrol("482002", &consent(&token));
    let paused = worker.post("/v1/organizations/482001/pause", &[]);
    assert_eq!((paused.status, &paused.json()["paused"]), (200, &json!(true)), "{paused:?}");
    assert_eq!(paused.json()["state"], "active", "a pause lies over the state and keeps it");
    for organization in ["482001", "482002"] {
        assert_problem(&worker.get(&format!("/v1/organizations/{organization}/token")), 409, "paused");
        assert_problem(&worker.post(&format!("/v1/organizations/{organization}/token/refresh"), &[]), 409, "paused");
    }
    let listed = worker.get("/v1/organizations?state=paused").json();
    assert_eq!(listed["organizations"].as_array().map(Vec::len), Some(2));
    assert_eq!(worker.get("/v1/status").json()["organizations"]["paused"], 2);
    assert_eq!(worker.post("/v1/organizations/482001/pause", &[]).status, 200, "again is no error");
    assert_eq!(worker.post("/v1/organizations/482002/resume", &[]).json()["paused"], false);
    worker.fetch("482001");
    for action in ["pause", "resume"] {
        let answer = worker.post(&format!("/v1/organizations/none/{action}"), &[]);
        assert_problem(&answer, 404, "unknown_organization");
    }
}

#[test]
fn enrolling_says_whether_anything_changed() {
    let (stand, worker) = pair(3600);
    let token = stand.consent("birgit", Usage::OneTime, &["481001"]);
    let mut body = json!({
        "provider": CONSENTS, "refresh_token": token, "usage": "one-time", "granted_at": "2026-01-31T13:00:00+01:00",
        "expires_at": "2099-01-01T00:00:00Z", "grace": "30s", "labels": { "team": "a" },
    });
    let made = worker.enrol("481001", &body);
    assert_enrolled(&made, 201, "true");
    let made = made.json();
    assert_eq!((&made["kind"], &made["state"], &made["reason"]), (&json!("consent"), &json!("active"), &Value::Null));
    assert_eq!(made["labels"], json!({ "team": "a" }));
    let consent = &made["consent"];
    assert_eq!((&consent["granted_at"], &consent["assumed"]), (&json!("2026-01-31T12:00:00Z"), &json!(false)));
    assert_eq!((&consent["expires_at"], &consent["grace_seconds"]), (&json!("2099-01-01T00:00:00Z"), &json!(30)));
    assert_eq!(consent["usage"], "one-time");

    // The token that came in has been spent; enrolling it again is no exchange and no harm.
    let exchanges = stand.issuer().exchanges();
    assert_enrolled(&worker.enrol("481001", &body), 200, "false");
    body["labels"] = json!({ "team": "b" });
    assert_enrolled(&worker.enrol("481001", &body), 200, "true");
    assert_eq!(worker.get("/v1/organizations/481001").json()["labels"], json!({ "team": "b" }));
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (exchanges, 0));

    // A new consent replaces the old; what is not said of labels stays.
    let newer = json!({ "provider": CONSENTS, "refresh_token": stand.consent("birgit", Usage::Reuse, &["481001"]) });
    let replaced = worker.enrol("481001", &newer);
    assert_enrolled(&replaced, 200, "true");
    assert_eq!(replaced.json()["labels"], json!({ "team": "b" }));
    assert_eq!(replaced.json()["consent"]["assumed"], true);

    // And an API key that.
    let keyed = worker.enrol("481001", &key(&stand.api_key("481001")));
    assert_enrolled(&keyed, 200, "true");
    assert_eq!((&keyed.json()["kind"], &keyed.json()["consent"]), (&json!("api-key"), &Value::Null));
    assert!(stand.takes(&worker.fetch("481001")));
}

#[test]
fn a_secret_that_is_known_joins_its_grant() {
    let (stand, worker) = pair(3600);
    let token = stand.consent("anders", Usage::OneTime, &["482001", "482002"]);
    assert_enrolled(&worker.enrol("482001", &consent(&token)), 201, "true");
    let exchanges = stand.issuer().exchanges();
    let joined = worker.enrol("482002", &consent(&token));
    assert_enrolled(&joined, 201, "true");
    assert_eq!(joined.json()["shares_grant_with"], json!(["482001"]));
    assert_eq!(worker.fetch("482001"), worker.fetch("482002"));
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (exchanges, 0));

    // It does not reach this one, whoever asks.
    assert_problem(&worker.enrol("483001", &consent(&token)), 422, "wrong_organization");
    assert_problem(&worker.get("/v1/organizations/483001"), 404, "unknown_organization");
}

#[test]
fn without_proof_it_is_stored_unverified_and_then_proven_by_the_queue() {
    let (stand, worker) = pair(3600);
    stand.fault(Fault::always(FaultKind::DropBefore));
    let mut body = key(&stand.api_key("499001"));
    body["verify"] = json!(false);
    let stored = worker.enrol("499001", &body);
    assert_enrolled(&stored, 201, "true");
    assert_eq!((&stored.json()["state"], &stored.json()["reason"]), (&json!("failing"), &json!("unverified")));
    stand.issuer().clear_faults();
    eventually("the queue proves it", || {
        Some(worker.get("/v1/organizations/499001")).filter(|answer| answer.json()["state"] == "active")
    });
}

#[test]
fn what_the_issuer_refuses_is_not_enrolled_and_replaces_nothing() {
    let (stand, worker) = pair(3600);
    worker.enrol("481001", &consent(&stand.consent("birgit", Usage::Reuse, &["481001"])));
    let before = worker.fetch("481001");
    let unknown = "0123456789abcdef".repeat(4);
    assert_problem(&worker.enrol("481001", &consent(&unknown)), 422, "refused");
    assert_problem(&worker.enrol("481001", &key(&unknown)), 422, "refused");
    let elsewhere = stand.consent("camilla", Usage::OneTime, &["483001"]);
    assert_problem(&worker.enrol("481001", &consent(&elsewhere)), 422, "wrong_organization");
    assert_problem(&worker.enrol("481009", &key(&unknown)), 422, "refused");
    assert_problem(&worker.get("/v1/organizations/481009"), 404, "unknown_organization");
    assert_eq!(worker.fetch("481001"), before);
    assert_eq!(worker.get("/v1/organizations/481001").json()["state"], "active");

    // Its one-time token was spent to find that out, but not lost: where it belongs, it is as good as before.
    assert_enrolled(&worker.enrol("483001", &consent(&elsewhere)), 201, "true");
    assert!(stand.takes(&worker.fetch("483001")));
    assert_eq!(stand.issuer().replays(), 0);
}

#[test]
fn an_issuer_that_is_down_refuses_nothing() {
    let (stand, worker) = pair(3600);
    stand.fault(Fault { retry_after_seconds: Some(7), ..Fault::always(FaultKind::Outage) });
    let token = stand.consent("birgit", Usage::Reuse, &["481001"]);
    assert_problem(&worker.enrol("481001", &consent(&token)), 503, "provider_unavailable");
    assert_problem(&worker.get("/v1/organizations/481001"), 404, "unknown_organization");
    stand.issuer().clear_faults();
    let enrolled = eventually("it can be enrolled later", || {
        Some(worker.enrol("481001", &consent(&token))).filter(|answer| answer.status != 503)
    });
    assert_enrolled(&enrolled, 201, "true");
}

#[test]
fn a_consent_that_was_given_up_is_lost_and_its_spent_token_is_not_sent_again() {
    let (stand, worker) = pair(3600);
    let token = stand.consent("anders", Usage::OneTime, &["482001", "482002"]);
    worker.enrol("482001", &consent(&token));
    stand.fault(Fault::once(FaultKind::DropAfter));
    assert_problem(&worker.post("/v1/organizations/482001/token/refresh", &[]), 409, "in_doubt");
    let give_up = "{\"action\":\"abandon\"}";
    assert_eq!(worker.request("POST", "/v1/organizations/482001/resolve", JSON, give_up).status, 200);

    let lost = worker.post("/v1/organizations/482001/token/refresh", &[]);
    assert_problem(&lost, 409, "consent_lost");
    assert!(lost.json()["reason"].is_string() && lost.json()["since"].is_string(), "{lost:?}");
    assert_problem(&worker.get("/v1/organizations/482001/token"), 409, "consent_lost");
    let shown = worker.get("/v1/organizations/482001").json();
    assert_eq!(shown["state"], "lost", "{shown}");
    let exchanges = stand.issuer().exchanges();
    assert_problem(&worker.enrol("482002", &consent(&token)), 409, "already_spent");
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (exchanges, 0));

    let again = stand.consent("anders", Usage::OneTime, &["482001"]);
    assert_enrolled(&worker.enrol("482001", &consent(&again)), 200, "true");
    assert!(stand.takes(&worker.fetch("482001")));
}

#[test]
fn a_grant_goes_with_its_last_organization_and_is_only_then_revoked() {
    let (stand, worker) = pair(3600);
    let token = stand.consent("anders", Usage::Reuse, &["482001", "482002"]);
    let alive = || stand.issuer().is_alive(stand.now(), &Secret::new(&*token));
    worker.enrol("482001", &consent(&token));
    worker.enrol("482002", &consent(&token));
    let delete = |path: &str| worker.request("DELETE", &format!("/v1/organizations/{path}"), &[], "");

    assert_eq!(delete("482001?revoke=true").status, 204);
    assert!(alive(), "another organization still needs it");
    assert_problem(&worker.get("/v1/organizations/482001/token"), 404, "unknown_organization");
    worker.fetch("482002");
    assert_eq!(worker.get("/v1/organizations/482002").json()["shares_grant_with"], json!([]));
    for wrong in ["482002?revoke=1", "482002?revoke=true&revoke=true", "482002?force=true"] {
        assert_problem(&delete(wrong), 400, "bad_request");
    }
    assert_eq!(delete("482002?revoke=true").status, 204);
    assert!(!alive());
    assert_problem(&delete("482002"), 404, "unknown_organization");

    let api_key = stand.api_key("499001");
    worker.enrol("499001", &key(&api_key));
    assert_eq!(delete("499001").status, 204);
    assert!(stand.issuer().key_is_alive(&Secret::new(api_key)), "it was not asked to be revoked");
    assert_eq!(worker.get("/v1/organizations").json()["organizations"], json!([]));
}

#[test]
fn a_list_is_filtered_and_paged_in_the_order_of_ids() {
    let (stand, worker) = pair(3600);
    for (number, tier) in [("3", "gold"), ("1", "gold"), ("2", "tin"), ("10", "gold")] {
        let mut body = key(&stand.api_key(number));
        body["labels"] = json!({ "tier": tier, "team": "x" });
        assert_eq!(worker.enrol(number, &body).status, 201);
    }
    let mut body = consent(&stand.consent("birgit", Usage::Reuse, &["481001"]));
    body["granted_at"] = json!("2026-01-31T12:00:00Z");
    body["expires_at"] = json!("2026-07-30T12:00:00Z");
    assert_eq!(worker.enrol("481001", &body).status, 201);

    let list = |query: &str| worker.listed(query);
    let all = ["1", "10", "2", "3", "481001"];
    for limit in [1, 2, 5, 1000] {
        assert_eq!(list(&format!("limit={limit}")), all);
    }
    assert_eq!(list("state=active"), all);
    assert_eq!(list("state=lost"), [""; 0]);
    assert_eq!(list(&format!("provider={KEYS}&limit=3")), ["1", "10", "2", "3"]);
    assert_eq!(list("label=tier%3Dgold&label=team%3Dx&limit=1"), ["1", "10", "3"]);
    assert_eq!(list("label=tier%3Dlead"), [""; 0]);
    assert_eq!(list("expires_within=36500d"), ["481001"]);
    worker.fetch("2");
    assert_eq!(list("unused_for=36500d&limit=2"), ["1", "10", "3", "481001"], "the never fetched");
    assert_eq!(list("provider=no-such-one"), [""; 0]);
}

#[test]
fn a_request_that_makes_no_sense_is_told_so() {
    let worker = shared();
    for (status, code, requests) in [
        (
            400,
            "bad_request",
            &[
                ("GET", "/v1/organizations/1/token?ttl=5"),
                ("POST", "/v1/organizations/1/token/refresh?min_ttl=5"),
                ("GET", "/v1/organizations?page=2"),
                ("GET", "/v1/organizations/1?verbose"),
                ("PUT", "/v1/organizations/1?force=1"),
                ("POST", "/v1/organizations/1/pause?for=1h"),
                ("POST", "/v1/organizations/1/resume?x"),
                ("GET", "/v1/status?x=1"),
                ("GET", "/v1/organizations?state=well"),
                ("GET", "/v1/organizations?limit=0"),
                ("GET", "/v1/organizations?limit=1001"),
                ("GET", "/v1/organizations?expires_within=soon"),
                ("GET", "/v1/organizations?unused_for=soon"),
                ("GET", "/v1/organizations?label=x"),
                ("GET", "/v1/organizations?cursor=%FF"),
                ("GET", "/v1/organizations?limit=1&limit=2"),
                ("GET", "/v1/organizations//token"),
            ][..],
        ),
        (
            405,
            "method_not_allowed",
            &[
                ("POST", "/v1/organizations/1"),
                ("PATCH", "/v1/organizations/1"),
                ("GET", "/v1/organizations/1/pause"),
                ("PUT", "/v1/organizations/1/token"),
                ("GET", "/v1/organizations/1/token/refresh"),
                ("DELETE", "/v1/organizations"),
                ("POST", "/v1/status"),
                ("BREW", "/v1/status"),
            ][..],
        ),
        (
            404,
            "not_found",
            &[
                ("GET", "/"),
                ("GET", "/v1"),
                ("GET", "/v2/organizations"),
                ("GET", "/v1/organizations/"),
                ("GET", "/v1/organizations/1/"),
                ("GET", "/v1/organizations/1/token/"),
                ("GET", "/v1/organizations/a/b/token"),
                ("GET", "/v1/organizations/1/refresh_token"),
                ("GET", "/metrics"),
            ][..],
        ),
    ] {
        for (method, path) in requests {
            assert_problem(&worker.request(method, path, &[], ""), status, code);
        }
    }
}

#[test]
fn no_id_is_too_nasty_to_be_refused_in_order() {
    let worker = shared();
    let long = "a".repeat(129);
    let longer = "a".repeat(10_000);
    for id in [
        "%00",
        "a%00b",
        "a%2Fb",
        "%2e%2e%2f%2e%2e",
        "%C3%A6",
        "%FF",
        "%",
        "%zz",
        "a+b",
        "a%20b",
        "a%0Ab",
        "a%22b",
        "%F0%9F%92%A5",
        "a;b",
        "a*",
        "a%5Cb",
        &long,
        &longer,
    ] {
        for (method, rest) in [("GET", "/token"), ("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/pause")] {
            let answer = worker.request(method, &format!("/v1/organizations/{id}{rest}"), &[], "");
            assert_problem(&answer, 400, "bad_request");
            assert!(answer.body.len() < 1000, "{answer:?}");
        }
    }
    // And those that look odd but are ids, are.
    for id in ["a".repeat(128).as_str(), "..", ".", "-", "DK%3A1%40x", "a:b@c._-", "%61"] {
        let answer = worker.get(&format!("/v1/organizations/{id}/token"));
        assert_problem(&answer, 404, "unknown_organization");
    }
}

#[test]
fn a_body_that_makes_no_sense_is_told_so() {
    let worker = shared();
    let put = |body: &str| worker.request("PUT", "/v1/organizations/1", JSON, body);
    let long = "x".repeat(300);
    let labels: serde_json::Map<String, Value> = (0..17).map(|number| (number.to_string(), json!("x"))).collect();
    for body in [
        String::new(),
        "{".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "\u{feff}{}".to_owned(),
        "{}".to_owned(),
        json!({ "provider": KEYS }).to_string(),
        json!({ "provider": KEYS, "api_key": "x".repeat(20), "colour": "red" }).to_string(),
        json!({ "provider": KEYS, "api_key": "x".repeat(20), "refresh_token": "y".repeat(20) }).to_string(),
        json!({ "provider": KEYS, "api_key": 5 }).to_string(),
        json!({ "provider": KEYS, "api_key": "" }).to_string(),
        json!({ "provider": KEYS, "api_key": "x".repeat(60_000) }).to_string(),
        json!({ "provider": "Not A Name", "api_key": "x".repeat(20) }).to_string(),
        json!({ "provider": "no-such-one", "api_key": "x".repeat(20) }).to_string(),
        json!({ "provider": KEYS, "api_key": "x".repeat(20), "client_id": "alone" }).to_string(),
        json!({ "provider": KEYS, "api_key": "x".repeat(20), "client_secret": "alone-secret" }).to_string(),
        json!({ "provider": CONSENTS, "refresh_token": "x".repeat(20), "granted_at": "yesterday" }).to_string(),
        json!({ "provider": CONSENTS, "refresh_token": "x".repeat(20), "grace": "a bit" }).to_string(),
        json!({ "provider": CONSENTS, "refresh_token": "x".repeat(20), "grace": "1year" }).to_string(),
        json!({ "provider": CONSENTS, "refresh_token": "x".repeat(20), "usage": "twice" }).to_string(),
        json!({ "provider": KEYS, "api_key": "x".repeat(20), "labels": { "a": long } }).to_string(),
        json!({ "provider": KEYS, "api_key": "x".repeat(20), "labels": labels }).to_string(),
        format!("{{\"provider\":\"{KEYS}\",\"api_key\":\"xxxxxxxx\",\"api_key\":\"yyyyyyyy\"}}"),
        "[".repeat(50_000),
    ] {
        assert_problem(&put(&body), 400, "bad_request");
    }
    for size in [64 * 1024 + 1, 200_000, 2_000_000] {
        let answer = put(&json!({ "provider": KEYS, "api_key": "x".repeat(size) }).to_string());
        assert_problem(&answer, 413, "too_large");
    }
    assert_problem(&worker.get("/v1/organizations/1"), 404, "unknown_organization");
}

#[test]
fn many_callers_at_once_share_one_exchange() {
    let stand = Stand::start_with(3600, |config| config.latency = Duration::from_millis(300));
    let worker = Setup::default().sandbox(&stand).start();
    let mut body = consent(&stand.consent("birgit", Usage::OneTime, &["481001"]));
    body["verify"] = json!(false);
    worker.enrol("481001", &body);
    let tokens: Vec<String> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(|| worker.fetch("481001"))).collect();
        callers.into_iter().map(|caller| caller.join().expect("served")).collect()
    });
    assert!(tokens.iter().all(|token| *token == tokens[0] && stand.takes(token)));
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (1, 0));
}

/// A worker for requests that change nothing: each of these tests would else start its own.
fn shared() -> Worker {
    Setup::default().sandbox(&Stand::start(3600)).start()
}
