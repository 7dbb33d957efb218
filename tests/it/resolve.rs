//! What an operator decides about grants in doubt or lost, and what may be lost at all.

use std::time::Duration;

use consentry::{
    model::Usage,
    sandbox::{Fault, FaultKind},
};
use serde_json::{Value, json};

use crate::harness::{
    eventually,
    http::{Headers, Response},
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

const JSON: Headers<'static> = &[("content-type", "application/json")];
const REFRESH: &str = "/v1/organizations/481001/token/refresh";

/// An organization with a one-time token that was sent and never answered.
fn in_doubt(kind: FaultKind) -> (Stand, Worker) {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    enrol(&stand, &worker, "481001", "birgit", Usage::OneTime);
    stand.fault(Fault::once(kind));
    assert_problem(&worker.post(REFRESH, &[]), 409, "in_doubt");
    (stand, worker)
}

fn enrol(stand: &Stand, worker: &Worker, organization: &str, user: &str, usage: Usage) {
    let body = json!({ "provider": CONSENTS, "refresh_token": stand.consent(user, usage, &[organization]) });
    assert_eq!(worker.enrol(organization, &body).status, 201);
}

fn resolve(worker: &Worker, action: &str) -> Response {
    let body = json!({ "action": action }).to_string();
    worker.request("POST", "/v1/organizations/481001/resolve", JSON, &body)
}

fn shown(worker: &Worker, organization: &str) -> Value {
    worker.get(&format!("/v1/organizations/{organization}")).json()
}

#[track_caller]
fn assert_problem(answer: &Response, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{answer:?}");
}

/// Asks again for as long as a forced exchange has to wait for the one before.
fn when_it_may(ask: impl Fn() -> Response) -> Response {
    eventually("another exchange may be forced", || Some(ask()).filter(|answer| answer.status != 429))
}

#[test]
fn a_doubt_that_was_none_is_over_after_a_retry_and_the_audit_log_says_whose_it_was() {
    let (stand, worker) = in_doubt(FaultKind::DropBefore);
    when_it_may(|| worker.post(REFRESH, &[]));
    let output = eventually("it may be tried", || {
        Some(worker.command(&["org", "resolve", "481001", "--retry"])).filter(|output| output.status.code() != Some(5))
    });
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(told.contains("active"), "{told}");
    assert!(stand.takes(&worker.fetch("481001")));
    assert_eq!(stand.issuer().replays(), 0);
    let log = worker.log();
    let audit = |outcome: &str| {
        log.lines().any(|line| line.contains("audit") && line.contains("resolve") && line.contains(outcome))
    };
    assert!(audit("retried"), "{log}");
}

#[test]
fn a_spent_token_that_is_retried_is_a_replay_and_giving_it_up_is_final() {
    let (stand, worker) = in_doubt(FaultKind::DropAfter);
    assert_eq!(worker.get("/v1/organizations/481001/token").json()["degraded"], "no_answer");
    let retried = when_it_may(|| resolve(&worker, "retry"));
    assert_problem(&retried, 409, "in_doubt");
    assert_eq!(stand.issuer().replays(), 1, "the risk that the operator took");
    assert_eq!(shown(&worker, "481001")["state"], "in_doubt");

    let given_up = resolve(&worker, "abandon");
    assert_eq!((given_up.status, &given_up.json()["state"]), (200, &json!("lost")), "{given_up:?}");
    let lost = worker.get("/v1/organizations/481001/token");
    assert_problem(&lost, 409, "consent_lost");
    assert_eq!(worker.command(&["token", "481001"]).status.code(), Some(4));
    let exchanges = stand.issuer().exchanges();
    let worker = worker.restart();
    assert_problem(&worker.post(REFRESH, &[]), 409, "consent_lost");
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (exchanges, 1));
    assert!(worker.log().contains("consent.lost") || shown(&worker, "481001")["state"] == "lost");
}

#[test]
fn what_is_neither_in_doubt_nor_lost_is_not_touched_and_nonsense_is_refused() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    enrol(&stand, &worker, "481001", "birgit", Usage::OneTime);
    let exchanges = stand.issuer().exchanges();
    for action in ["retry", "abandon", "", "hush"] {
        assert_problem(&resolve(&worker, action), 400, "bad_request");
    }
    for body in ["", "{}", "[]", "{\"action\":\"retry\",\"more\":1}", "\"retry\""] {
        let answer = worker.request("POST", "/v1/organizations/481001/resolve", JSON, body);
        assert_problem(&answer, 400, "bad_request");
    }
    let unknown = worker.request("POST", "/v1/organizations/none/resolve", JSON, "{\"action\":\"retry\"}");
    assert_problem(&unknown, 404, "unknown_organization");
    let command = worker.command(&["org", "resolve", "481001", "--retry"]);
    assert!(String::from_utf8_lossy(&command.stderr).contains("active"), "it says why: {command:?}");
    assert_eq!((stand.issuer().exchanges(), &shown(&worker, "481001")["state"]), (exchanges, &json!("active")));
}

#[test]
fn a_paused_grant_is_not_retried() {
    let (stand, worker) = in_doubt(FaultKind::DropBefore);
    assert_eq!(worker.post("/v1/organizations/481001/pause", &[]).status, 200);
    let exchanges = stand.issuer().exchanges();
    assert_problem(&resolve(&worker, "retry"), 409, "paused");
    assert_eq!(stand.issuer().exchanges(), exchanges);
}

#[test]
fn the_command_wants_a_decision_and_its_help_says_what_a_replay_does() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    for arguments in [&["org", "resolve", "1"][..], &["org", "resolve", "1", "--retry", "--abandon"]] {
        assert_eq!(worker.command(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let help = worker.command(&["org", "resolve", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for part in ["replay", "every access", "other grants of the same person", "nothing is sent"] {
        assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains(part), "{part} is not in {help}");
    }
}

#[test]
fn a_withdrawn_consent_is_lost_only_after_a_second_refusal_with_others_answered_in_between() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    enrol(&stand, &worker, "482001", "anders", Usage::Reuse);
    enrol(&stand, &worker, "481001", "birgit", Usage::Reuse);
    assert!(stand.issuer().withdraw(stand.now(), "anders"));
    assert_problem(&worker.post("/v1/organizations/482001/token/refresh", &[]), 503, "provider_unavailable");
    let failing = shown(&worker, "482001");
    assert_eq!((&failing["state"], &failing["reason"]), (&json!("failing"), &json!("refused")));
    assert_eq!(when_it_may(|| worker.post(REFRESH, &[])).status, 200);
    assert_eq!(shown(&worker, "482001")["state"], "failing", "one refusal is no proof, whoever else is answered");
    // The second try comes a minute after the first one.
    std::thread::sleep(Duration::from_secs(30));
    eventually("it is lost", || (shown(&worker, "482001")["state"] == "lost").then_some(()));
    assert_problem(&worker.get("/v1/organizations/482001/token"), 409, "consent_lost");
    assert!(worker.log().contains("consent.refused") && worker.log().contains("consent.lost"));
}

#[test]
fn a_spent_token_of_an_organization_that_was_removed_is_not_taken_for_a_new_one() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    let body = json!({ "provider": CONSENTS, "refresh_token": stand.consent("birgit", Usage::OneTime, &["481001"]) });
    assert_eq!(worker.enrol("481001", &body).status, 201);
    assert_eq!(worker.request("DELETE", "/v1/organizations/481001", &[], "").status, 204);
    assert_problem(&worker.enrol("481001", &body), 409, "already_spent");
    let worker = worker.restart();
    eventually("the vault is loaded", || (worker.get("/readyz").status == 200).then_some(()));
    assert_problem(&worker.enrol("481001", &body), 409, "already_spent");
    assert_eq!(stand.issuer().replays(), 0);
}
