//! Many enrolments in one request: each line comes to what it would come to by itself.

use std::fs;

use consentry::model::Usage;
use serde_json::{Value, json};

use crate::harness::{
    caller::{self, Caller},
    http::{Headers, Response},
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const LINES: Headers<'static> = &[("content-type", "application/x-ndjson")];
const NOBODY: u32 = 20_000;

fn line(organization: &str, key: &str) -> Value {
    json!({ "organization": organization, "provider": KEYS, "api_key": key, "verify": false })
}

fn send(worker: &Worker, lines: &[String]) -> Response {
    worker.request("POST", "/v1/organizations", LINES, &lines.join("\n"))
}

fn results(worker: &Worker, lines: &[String]) -> Vec<Value> {
    let answer = send(worker, lines);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["results"].as_array().expect("results").clone()
}

/// Number, status, and whether anything changed or why nothing did.
fn short(result: &Value) -> (u64, u64, Value) {
    let said = if result["problem"].is_null() { &result["changed"] } else { &result["problem"]["code"] };
    (result["line"].as_u64().expect("a number"), result["status"].as_u64().expect("a status"), said.clone())
}

#[test]
fn many_are_enrolled_in_one_request_and_a_bad_line_harms_no_other() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    let token = stand.consent("birgit", Usage::OneTime, &["481001", "481002"]);
    worker.plant(&token);
    let consent = |organization: &str| {
        json!({ "organization": organization, "provider": CONSENTS, "refresh_token": token, "verify": false })
            .to_string()
    };
    let exchanges = stand.issuer().exchanges();
    let lines = [
        consent("481001"),
        String::new(),
        "{\"organization\":\"481009\",\"refresh_token\":\"hush-broken-line\"".to_owned(),
        line("499001", &stand.api_key("499001")).to_string(),
        // The same consent serves another, and the same line again changes nothing.
        consent("481002"),
        consent("481001"),
        line("no/id", "hush-no-id").to_string(),
        json!({ "organization": "499002", "provider": "none", "api_key": "hush-no-provider", "verify": false })
            .to_string(),
        // Whoever wants it proven first asks for it alone.
        json!({ "organization": "499003", "provider": KEYS, "api_key": "hush-unproven" }).to_string(),
    ];
    let results = results(&worker, &lines);
    let expected = [
        (1, 201, json!(true)),
        (3, 400, json!("bad_request")),
        (4, 201, json!(true)),
        (5, 201, json!(true)),
        (6, 200, json!(false)),
        (7, 400, json!("bad_request")),
        (8, 400, json!("bad_request")),
        (9, 400, json!("bad_request")),
    ];
    assert_eq!(results.iter().map(short).collect::<Vec<_>>(), expected, "{results:?}");
    assert!(!format!("{results:?}").contains("hush-"), "{results:?}");
    assert!(results[1].get("organization").is_none());
    assert!(results[7]["problem"]["detail"].as_str().expect("text").contains("verify"), "{results:?}");

    let shared = worker.get("/v1/organizations/481002").json();
    assert_eq!(shared["shares_grant_with"], json!(["481001"]));
    for organization in ["481009", "499002", "499003"] {
        assert_eq!(worker.get(&format!("/v1/organizations/{organization}")).status, 404);
    }
    // Nothing was lost and nothing was sent twice: what was stored is exchanged in its turn.
    assert!(stand.takes(&worker.fetch("481001")) && stand.takes(&worker.fetch("499001")));
    assert_eq!((stand.issuer().exchanges() - exchanges, stand.issuer().replays()), (2, 0));
    // The audit log tells of each as if it had come alone.
    let log = worker.log();
    let told = |organization: &str, outcome: &str| {
        let parts = ["consentry::audit", "enrol", organization, outcome];
        log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    };
    assert_eq!((told("481001", "created"), told("481001", "unchanged"), told("481002", "created")), (1, 1, 1), "{log}");
    assert_eq!((told("499001", "created"), told("499002", "bad_request")), (1, 1), "{log}");
}

#[test]
fn too_many_lines_or_bytes_are_refused_and_nothing_is_enrolled() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    let lines: Vec<String> =
        (0..257).map(|number| line(&format!("org-{number}"), &format!("key-{number}")).to_string()).collect();
    let refused = |answer: &Response| assert_eq!((answer.status, &answer.json()["code"]), (413, &json!("too_large")));
    refused(&send(&worker, &lines));
    let long = |bytes: usize| vec![line("org-x", &"x".repeat(bytes)).to_string()];
    refused(&send(&worker, &long(512 * 1024)));
    // One line that is too long is that line's own trouble.
    let mixed = [long(64 * 1024), lines[..1].to_vec()].concat();
    let results: Vec<_> = results(&worker, &mixed).iter().map(short).collect();
    assert_eq!(results, [(1, 413, json!("too_large")), (2, 201, json!(true))]);
    assert_eq!(send(&worker, &lines[1..]).status, 200);
    assert_eq!(worker.get("/v1/organizations?limit=1000").json()["organizations"].as_array().map(Vec::len), Some(257));
}

/// Lines of few organizations with few keys, so that they replace, join and leave each other; some make no sense.
fn entangled(keys: &[String; 8], count: u64, mut seed: u64) -> Vec<String> {
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut lines = Vec::new();
    for _ in 0..count {
        let organization = format!("org-{}", next(12));
        let mut line = line(&organization, &keys[usize::try_from(next(8)).expect("few")]);
        match next(10) {
            0 => line["provider"] = "none".into(),
            1 => line["colour"] = "red".into(),
            2 => line["labels"] = json!({ "n": next(3).to_string() }),
            _ => {}
        }
        lines.push(line.to_string());
    }
    lines
}

/// Everything about the organizations that does not depend on when something was done.
fn standing(worker: &Worker) -> Vec<Value> {
    let page = worker.get("/v1/organizations?limit=1000").json();
    let settled = |one: &Value| {
        let members = ["organization", "provider", "kind", "paused", "shares_grant_with", "consent", "labels"];
        members.iter().map(|name| one[*name].clone()).collect::<Value>()
    };
    page["organizations"].as_array().expect("a list").iter().map(settled).collect()
}

#[test]
fn lines_in_one_request_come_to_what_they_come_to_one_by_one() {
    let stand = Stand::start(3600);
    let (one_by_one, together) = (Setup::default().sandbox(&stand).start(), Setup::default().sandbox(&stand).start());
    // Good keys, so that no exchange of them holds up a grant that goes.
    let keys = std::array::from_fn(|number| stand.api_key(&format!("org-{number}")));
    for seed in 1..=4 {
        let lines = entangled(&keys, 60, seed);
        let alone: Vec<_> = lines
            .iter()
            .map(|line| {
                let mut body: Value = serde_json::from_str(line).expect("JSON");
                let organization = body["organization"].take().as_str().expect("text").to_owned();
                body.as_object_mut().expect("an object").remove("organization");
                let answer = one_by_one.enrol(&organization, &body);
                let said = answer.header("consentry-changed").map(|changed| json!(changed == "true"));
                (u64::from(answer.status), said.unwrap_or_else(|| answer.json()["code"].clone()))
            })
            .collect();
        let in_one: Vec<_> =
            results(&together, &lines).iter().map(short).map(|(_, status, said)| (status, said)).collect();
        assert_eq!(in_one, alone, "{lines:#?}");
        assert_eq!(standing(&together), standing(&one_by_one), "{lines:#?}");
    }
}

#[test]
fn permission_is_asked_for_each_line() {
    if !caller::may_become_others() {
        return;
    }
    let stand = Stand::start(3600);
    let rule = format!("uid = {NOBODY}\nrole = \"operate\"\norganizations = [\"mine-*\"]");
    let worker = Setup::default().access(&rule).sandbox(&stand).reachable_for_all().start();
    let lines = [line("mine-1", "key-of-mine-1"), line("yours-1", "key-of-yours"), line("mine-2", "key-of-mine-2")];
    let body = lines.map(|line| line.to_string()).join("\n");
    let answer = worker.request_as(&Caller::user(NOBODY), "POST", "/v1/organizations", LINES, &body);
    let results: Vec<_> = answer.json()["results"].as_array().expect("results").iter().map(short).collect();
    assert_eq!(results, [(1, 201, json!(true)), (2, 403, json!("forbidden")), (3, 201, json!(true))]);
    assert_eq!(worker.get("/v1/organizations/yours-1").status, 404);
    let log = worker.log();
    assert!(log.lines().any(|line| line.contains("yours-1") && line.contains("denied")), "{log}");
}

#[test]
fn an_import_keeps_the_order_of_the_lines_of_an_organization() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    let lines: Vec<String> = (0..100)
        .map(|number| {
            let mut line = line("499001", "one-key-for-all-lines");
            line["labels"] = json!({ "n": number.to_string() });
            line.to_string()
        })
        .collect();
    let file = worker.file("ordered.jsonl");
    fs::write(&file, lines.join("\n")).expect("the folder is ours");
    let imported = worker.command(&["import", "--json", &file.display().to_string()]);
    let counts: Value = serde_json::from_slice(&imported.stdout).expect("counts");
    assert_eq!(counts, json!({ "enrolled": 1, "replaced": 99, "unchanged": 0, "failed": 0 }));
    assert_eq!(worker.get("/v1/organizations/499001").json()["labels"]["n"], "99");
}
