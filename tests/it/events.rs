//! What happens, as whoever follows the socket sees it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use consentry::{
    clock::{Clock as _, SystemClock},
    model::Usage,
};
use serde_json::{Value, json};

use crate::harness::{
    PATIENCE, eventually,
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

/// The sweep comes every second, and warnings are seconds apart.
const STEPS: &str = "[consent]\nwarn_before = [\"6s\", \"3s\"]\n[schedule]\nsweep = \"* * * * * *\"\n";

fn worker(stand: &Stand) -> Worker {
    let worker = Setup::default().sandbox(stand).prepare();
    worker.reconfigure(|text| format!("{text}\n{STEPS}"));
    worker.started()
}

/// Enrols an organization whose consent ends so many seconds from now.
fn enrol(worker: &Worker, stand: &Stand, organization: &str, seconds: u64) {
    let token = stand.consent(&format!("user-{organization}"), Usage::Reuse, &[organization]);
    let end = (SystemClock::new().now().wall + Duration::from_secs(seconds)).to_string();
    let body = json!({ "provider": CONSENTS, "refresh_token": token, "expires_at": end, "labels": { "name": "Ø" } });
    assert_eq!(worker.enrol(organization, &body).status, 201);
}

fn told(worker: &Worker, after: &str) -> Vec<Value> {
    let answer = worker.request("GET", "/v1/events?follow=false", &[("last-event-id", after)], "");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    answer.events()
}

fn words(events: &[Value]) -> Vec<String> {
    let word = |event: &Value| {
        let within = event["data"]["within"].as_str().map(|within| format!(" {within}"));
        format!("{}{}", event["type"].as_str().unwrap_or_default(), within.unwrap_or_default())
    };
    events.iter().map(word).collect()
}

#[test]
fn a_consent_is_warned_of_at_each_step_once_although_the_worker_is_killed_in_between() {
    let stand = Stand::start(3600);
    let mut worker = worker(&stand);
    enrol(&worker, &stand, "481001", 15);
    let first = eventually("the first warning", || told(&worker, "all").first().cloned());
    assert!(words(std::slice::from_ref(&first))[0].starts_with("consent.expiring"), "{first}");
    assert_eq!((&first["data"]["organization"], &first["data"]["labels"]["name"]), (&json!("481001"), &json!("Ø")));
    worker.kill9();
    let worker = worker.started();
    let all = eventually("the end is told", || {
        let all = told(&worker, "all");
        words(&all).contains(&"consent.expired".to_owned()).then_some(all)
    });
    assert_eq!(all[0], first, "what was told before the kill is kept, with its id");
    // A slow machine, or one that was killed over its moment, may miss a step for a nearer one; none comes twice.
    let mut steps = ["consent.expiring 6s", "consent.expiring 3s", "consent.expired"].iter();
    assert!(words(&all).iter().all(|word| steps.any(|step| step == word)), "{:?}", words(&all));
    // Whoever comes back gets what came after the last that it has seen, and all that is kept where nobody knows its id.
    let id = |event: &Value| event["id"].as_str().expect("an id").to_owned();
    assert_eq!(told(&worker, &id(&first)), all[1..]);
    assert_eq!(told(&worker, &id(all.last().expect("some"))), [Value::Null; 0]);
    assert_eq!(told(&worker, "evt_00000000000000000000000000000009").len(), all.len());
    let shown = worker.get("/v1/organizations/481001").json();
    let warned = shown["consent"]["warned"].as_array().expect("a list").len();
    assert_eq!(warned, all.len(), "{shown}");
    let listed = worker.command(&["watch", "--since", "all", "--once", "--json"]);
    let lines = String::from_utf8(listed.stdout).expect("text");
    assert_eq!(lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>(), all);
}

#[test]
fn a_stream_tells_what_happens_and_does_not_keep_the_worker_from_stopping() {
    let stand = Stand::start(3600);
    let mut worker = worker(&stand);
    let mut stream = UnixStream::connect(worker.socket()).expect("the worker listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    // Takes nothing of what it is sent.
    let mut stalled = UnixStream::connect(worker.socket()).expect("the worker listens");
    stalled.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("the stream goes on"));
    assert!(lines.next().expect("a status").contains("200"));
    assert!(lines.by_ref().any(|line| line == ": following"));
    enrol(&worker, &stand, "481002", 5);
    let mut kinds = lines.filter_map(|line| line.strip_prefix("event: ").map(str::to_owned));
    // The first exchange, then the nearest of the steps; the end comes later.
    let seen: Vec<String> = kinds.by_ref().filter(|kind| kind.starts_with("consent.")).take(2).collect();
    assert!(seen[0] == "consent.expiring" && seen[1].starts_with("consent.exp"), "{seen:?}");
    let status = worker.stop();
    assert!(status.success(), "{status:?}");
}
