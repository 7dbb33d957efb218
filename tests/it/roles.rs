//! Who may do what: every call, by every kind of caller. The kernel says who calls, so that only root can test it.

use consentry::model::Usage;
use serde_json::{Value, json};

use crate::harness::{
    caller::{self, Caller},
    http::{Headers, Response},
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const JSON: Headers<'static> = &[("content-type", "application/json")];
const NOBODY: u32 = 20_000;
/// The kernel's number for a user or group that it cannot name; no rule may ever be for it.
const OVERFLOW: u32 = 65_534;

/// Somebody's public key.
const OTHER_RECIPIENT: &str = "/v1/vault/recipients/age1pyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq8r66x";

/// What a call needs, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    None,
    Fetch,
    Operate,
    Admin,
}

/// Every call of the API, and the role that it needs; in an order in which none spoils the next.
fn calls(api_key: &str) -> Vec<(&'static str, &'static str, String, Role)> {
    let call = |method, path, role| (method, path, String::new(), role);
    let enrolment = json!({ "provider": KEYS, "api_key": api_key }).to_string();
    vec![
        call("GET", "/healthz", Role::None),
        call("GET", "/readyz", Role::None),
        call("GET", "/v1/organizations/481001/token", Role::Fetch),
        call("GET", "/v1/organizations/481001/token?min_ttl=60", Role::Fetch),
        call("POST", "/v1/organizations/481001/token/refresh", Role::Fetch),
        call("GET", "/v1/organizations", Role::Operate),
        call("GET", "/v1/organizations?state=active&limit=5", Role::Operate),
        call("GET", "/v1/organizations/481001", Role::Operate),
        ("PUT", "/v1/organizations/481001", enrolment, Role::Operate),
        // Without a line; of each line permission is asked by itself.
        call("POST", "/v1/organizations", Role::Operate),
        call("POST", "/v1/organizations/481001/pause", Role::Operate),
        call("POST", "/v1/organizations/481001/resume", Role::Operate),
        // It is neither in doubt nor lost, which only they are told who may decide about it.
        ("POST", "/v1/organizations/481001/resolve", json!({ "action": "abandon" }).to_string(), Role::Operate),
        // Nothing waits to be confirmed, which only they are told who may decide about it.
        ("POST", "/v1/organizations/481001/confirm", json!({ "action": "decline" }).to_string(), Role::Operate),
        // There are no pages here to lead to, which only they are told who may make links.
        call("POST", "/v1/organizations/481001/consent-link", Role::Operate),
        call("DELETE", "/v1/organizations/481001/consent-link", Role::Operate),
        call("GET", "/v1/status", Role::Operate),
        call("GET", "/v1/events?follow=false", Role::Operate),
        call("GET", "/v1/vault/backup", Role::Admin),
        call("DELETE", "/v1/organizations/no-such-one", Role::Admin),
        call("GET", "/v1/vault/recipients", Role::Admin),
        call("PUT", OTHER_RECIPIENT, Role::Admin),
        call("DELETE", OTHER_RECIPIENT, Role::Admin),
        call("POST", "/v1/vault/keys", Role::Admin),
        call("DELETE", "/v1/organizations/no-such-one?revoke=true", Role::Admin),
    ]
}

fn enrolled(setup: Setup, stand: &Stand) -> (Worker, String) {
    let worker = setup.sandbox(stand).reachable_for_all().start();
    let key = stand.api_key("481001");
    assert_eq!(worker.enrol("481001", &json!({ "provider": KEYS, "api_key": key })).status, 201);
    (worker, key)
}

fn ask(worker: &Worker, caller: &Caller, method: &str, path: &str, body: &str) -> Response {
    let headers = if body.is_empty() { &[] } else { JSON };
    worker.request_as(caller, method, path, headers, body)
}

fn assert_forbidden(answer: &Response, what: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (403, &json!("forbidden")), "{what}: {answer:?}");
}

#[test]
fn each_call_takes_its_role_and_no_less() {
    if !caller::may_become_others() {
        return;
    }
    let stand = Stand::start(3600);
    let setup = Setup::default()
        .access("uid = 20001\nrole = \"fetch\"")
        .access("uid = 20002\nrole = \"operate\"")
        .access("uid = 20003\nrole = \"admin\"");
    let (worker, key) = enrolled(setup, &stand);
    let callers = [
        (Caller::user(NOBODY), Role::None),
        (Caller::user(20_001), Role::Fetch),
        (Caller::user(20_002), Role::Operate),
        (Caller::user(20_003), Role::Admin),
        (Caller::user(0), Role::Admin),
    ];
    for (caller, role) in callers {
        for (method, path, body, needed) in calls(&key) {
            let answer = ask(&worker, &caller, method, path, &body);
            let what = format!("{role:?}: {method} {path}");
            if role < needed {
                assert_forbidden(&answer, &what);
                continue;
            }
            let expected: &[u16] = match (method, path) {
                ("DELETE", OTHER_RECIPIENT) => &[200],
                ("DELETE", path) if path.ends_with("/consent-link") => &[204],
                ("DELETE", _) => &[404],
                ("PUT", OTHER_RECIPIENT) => &[201],
                // The key before may still be on its way out.
                ("POST", "/v1/vault/keys") => &[202, 409],
                ("POST", path) if ["/resolve", "/confirm", "/consent-link"].iter().any(|end| path.ends_with(end)) => {
                    &[400]
                }
                // The first caller who may has forced an exchange; another one must wait.
                ("POST", path) if path.ends_with("/refresh") => &[200, 429],
                _ => &[200],
            };
            assert!(expected.contains(&answer.status), "{what}: {answer:?}");
        }
    }
}

#[test]
fn a_rule_is_for_a_user_or_for_a_group_and_a_supplementary_group_counts() {
    if !caller::may_become_others() {
        return;
    }
    let stand = Stand::start(3600);
    let setup = Setup::default()
        .access("uid = 20001\nrole = \"fetch\"")
        .access("gid = 30000\nrole = \"fetch\"")
        .access("uid = 20009\ngid = 30009\nrole = \"fetch\"");
    let (worker, _) = enrolled(setup, &stand);
    let caller = |uid, gid, groups: &[u32]| Caller { uid, gid, groups: groups.to_vec() };
    for (who, may) in [
        (caller(20_001, 1, &[]), true),
        (caller(20_005, 30_000, &[]), true),
        (caller(20_005, 1, &[7, 30_000, 8]), true),
        (caller(20_005, 1, &(100..1100).chain([30_000]).collect::<Vec<_>>()), true),
        (caller(20_005, 1, &[7, 8]), false),
        (caller(20_009, 30_009, &[]), true),
        (caller(20_009, 1, &[30_009]), true),
        (caller(20_009, 1, &[]), false),
        (caller(20_005, 30_009, &[]), false),
        // A group's number is nobody's user number, and the other way round.
        (caller(30_000, 1, &[]), false),
        (caller(20_005, 20_001, &[]), false),
    ] {
        let answer = ask(&worker, &who, "GET", "/v1/organizations/481001/token", "");
        assert_eq!(answer.status, if may { 200 } else { 403 }, "{who:?}: {answer:?}");
    }
}

#[test]
fn whom_the_kernel_cannot_name_gets_in_by_no_rule() {
    if !caller::may_become_others() {
        return;
    }
    let stand = Stand::start(3600);
    let (worker, key) = enrolled(Setup::default().access("gid = 30000\nrole = \"admin\""), &stand);
    for who in [
        Caller { uid: OVERFLOW, gid: 30_000, groups: vec![30_000] },
        Caller { uid: 20_001, gid: OVERFLOW, groups: vec![30_000] },
    ] {
        for (method, path, body, needed) in calls(&key) {
            let answer = ask(&worker, &who, method, path, &body);
            match needed {
                Role::None => assert_eq!(answer.status, 200, "{answer:?}"),
                _ => assert_forbidden(&answer, &format!("{who:?}: {method} {path}")),
            }
        }
    }
}

#[test]
fn a_rule_for_one_organization_opens_just_that_one() {
    if !caller::may_become_others() {
        return;
    }
    let stand = Stand::start(3600);
    let setup = Setup::default().access("uid = 20001\nrole = \"admin\"\norganizations = [\"481001\", \"DK-*\"]");
    let (worker, key) = enrolled(setup, &stand);
    for organization in ["DK-1", "NO-1"] {
        let token = stand.consent(&format!("user-{organization}"), Usage::Reuse, &[organization]);
        let body = json!({ "provider": CONSENTS, "refresh_token": token });
        assert_eq!(worker.enrol(organization, &body).status, 201);
    }
    let who = Caller::user(20_001);

    for (method, path, body, _) in calls(&key) {
        if !path.contains("481001") {
            continue;
        }
        let status = ask(&worker, &who, method, path, &body).status;
        // There is nothing to resolve, which it is told.
        let nothing_to_do = ["/resolve", "/confirm", "/consent-link"].iter().any(|end| path.ends_with(end));
        assert!(status < 300 || (nothing_to_do && status == 400), "{method} {path}: {status}");
        // Outside of the rule nothing tells an organization that is there from one that is not.
        let [there, missing] = ["NO-1", "NO-2"].map(|other| {
            let answer = ask(&worker, &who, method, &path.replace("481001", other), &body);
            assert_forbidden(&answer, &format!("{method} {path} for {other}"));
            answer
        });
        assert_eq!(there.body, missing.body, "{method} {path}");
    }

    let ids = |answer: &Response| -> Vec<String> {
        let organizations = answer.json()["organizations"].as_array().expect("a list").clone();
        organizations.iter().map(|one| one["organization"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(&worker.get("/v1/organizations")), ["481001", "DK-1", "NO-1"]);
    assert_eq!(ids(&ask(&worker, &who, "GET", "/v1/organizations", "")), ["481001", "DK-1"]);
    assert_eq!(ids(&ask(&worker, &who, "GET", "/v1/organizations?limit=1", "")), ["481001"]);

    let status = ask(&worker, &who, "GET", "/v1/status", "").json();
    assert_eq!(status["organizations"]["active"], 2, "{status}");
    let of = |name: &str| -> Value {
        let providers = status["providers"].as_array().expect("a list");
        providers.iter().find(|one| one["name"] == name).expect("configured")["organizations"].clone()
    };
    assert_eq!((of(CONSENTS), of(KEYS)), (json!(1), json!(1)));

    assert_forbidden(&ask(&worker, &who, "DELETE", "/v1/organizations/NO-1", ""), "another's");
    // The vault is everybody's.
    for (method, path, body, _) in calls(&key) {
        if path.starts_with("/v1/vault/") {
            assert_forbidden(&ask(&worker, &who, method, path, &body), &format!("{method} {path}"));
        }
    }
    assert_eq!(ask(&worker, &who, "DELETE", "/v1/organizations/DK-1", "").status, 204);
    assert_eq!(ids(&worker.get("/v1/organizations")), ["481001", "NO-1"]);
}

#[test]
fn a_caller_without_a_rule_does_not_learn_what_is_wrong_with_a_request() {
    if !caller::may_become_others() {
        return;
    }
    let stand = Stand::start(3600);
    let (worker, _) = enrolled(Setup::default(), &stand);
    let nobody = Caller::user(NOBODY);
    for (method, path, body) in [
        ("GET", "/v1/organizations/481001/token?min_ttl=x", ""),
        ("GET", "/v1/organizations?limit=x", ""),
        ("PUT", "/v1/organizations/481001", "{"),
        ("PUT", "/v1/organizations/481001", "{\"provider\":\"no-such-one\",\"api_key\":\"x\"}"),
        ("DELETE", "/v1/organizations/481001?revoke=x", ""),
        ("GET", "/v1/status?x=y", ""),
        ("GET", "/v1/vault/backup?x=y", ""),
    ] {
        assert_forbidden(&ask(&worker, &nobody, method, path, body), path);
    }
}
