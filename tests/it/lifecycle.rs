//! How a worker starts, changes and ends; and what it shows inside.

use std::{fs, os::unix::net::UnixStream, thread};

use consentry::{
    model::Usage,
    sandbox::{Fault, FaultKind},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    caller::{self, Caller},
    eventually,
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const RELOADED: &str = "configuration and secrets were read again";
const NOT_RELOADED: &str = "the old one stays in force";

/// Every metric of the contract.
const METRICS: [&str; 26] = [
    "consentry_build_info",
    "consentry_organizations",
    "consentry_consents_expiring",
    "consentry_consents_expired",
    "consentry_consents_end_assumed",
    "consentry_consent_expiration_timestamp_seconds",
    "consentry_organization_series_dropped",
    "consentry_token_refresh_total",
    "consentry_token_refresh_duration_seconds",
    "consentry_token_refresh_overdue",
    "consentry_access_tokens_expired",
    "consentry_fetch_requests_total",
    "consentry_fetch_duration_seconds",
    "consentry_consent_warnings_total",
    "consentry_webhook_deliveries_total",
    "consentry_webhook_pending",
    "consentry_provider_circuit_open",
    "consentry_provider_budget_per_minute",
    "consentry_provider_needed_per_minute",
    "consentry_vault_write_duration_seconds",
    "consentry_vault_errors_total",
    "consentry_vault_size_bytes",
    "consentry_vault_records",
    "consentry_vault_strays",
    "consentry_vault_rekey_progress",
    "consentry_backup_last_success_timestamp_seconds",
];

fn pair() -> (Stand, Worker) {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    (stand, worker)
}

fn key(stand: &Stand, organization: &str) -> Value {
    json!({ "provider": KEYS, "api_key": stand.api_key(organization) })
}

#[track_caller]
fn assert_holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_request_under_way_is_answered_before_the_worker_ends() {
    let (stand, mut worker) = pair();
    stand.fault(Fault { delay_ms: Some(2000), ..Fault::once(FaultKind::Slow) });
    let body = json!({ "provider": CONSENTS, "refresh_token": stand.consent("birgit", Usage::OneTime, &["481001"]) });
    let socket = worker.socket().to_owned();
    let idle = UnixStream::connect(&socket).expect("it listens");
    thread::scope(|scope| {
        let caller = scope.spawn(|| worker.enrol("481001", &body));
        eventually("the exchange is at the issuer", || (stand.issuer().exchanges() == 1).then_some(()));
        worker.signal(Signal::TERM);
        eventually("the socket is gone", || (!socket.exists()).then_some(()));
        let answer = caller.join().expect("answered");
        assert_eq!(answer.status, 201, "{answer:?}");
    });
    let status = worker.wait();
    assert_eq!(status.code(), Some(0), "{}", worker.log());
    assert!(!socket.exists());
    drop(idle);

    // And what it said is so.
    let worker = worker.restart();
    assert!(stand.takes(&worker.fetch("481001")));
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (1, 0));
}

#[test]
fn a_caller_who_never_finishes_a_request_does_not_hold_the_end_up() {
    use std::io::Write as _;

    let (_stand, mut worker) = pair();
    let mut stream = UnixStream::connect(worker.socket()).expect("it listens");
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: loc").expect("it reads");
    assert_eq!(worker.stop().code(), Some(0), "{}", worker.log());
}

#[test]
fn sighup_puts_other_access_rules_and_providers_in_force() {
    if !caller::may_become_others() {
        return;
    }
    let stand = Stand::start(3600);
    let setup = Setup::default().access("uid = 20001\nrole = \"fetch\"");
    let worker = setup.sandbox(&stand).reachable_for_all().start();
    worker.enrol("499001", &key(&stand, "499001"));
    let before = worker.fetch("499001");
    let fetched = |uid| worker.request_as(&Caller::user(uid), "GET", "/v1/organizations/499001/token", &[], "").status;
    assert_eq!((fetched(20_001), fetched(20_002)), (200, 403));

    worker.reconfigure(|text| {
        let provider =
            format!("[providers.later]\nkind = \"oauth2\"\nclient_id = \"x\"\nissuer = \"{}\"\n", stand.url());
        text.replace("uid = 20001", "uid = 20002") + &provider
    });
    reload(&worker, RELOADED, 1);
    assert_eq!((fetched(20_001), fetched(20_002)), (403, 200));
    let status = worker.get("/v1/status").json();
    let names: Vec<&str> =
        status["providers"].as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.contains(&"later"), "{status}");
    assert!(worker.metric("consentry_provider_budget_per_minute", &["provider=\"later\""]) > 0.0);
    // What was there is as it was: nothing was exchanged for this.
    assert_eq!((worker.fetch("499001"), stand.issuer().exchanges()), (before, 1));
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing_and_is_told() {
    let (stand, worker) = pair();
    worker.enrol("499001", &key(&stand, "499001"));
    for (number, wrong) in
        ["\n[socket", "\n[metricks]\n", "\n[providers.broken]\nkind = \"oauth2\"\n"].into_iter().enumerate()
    {
        let mut good = String::new();
        worker.reconfigure(|text| {
            good.clone_from(&text);
            text + wrong
        });
        reload(&worker, NOT_RELOADED, number + 1);
        worker.fetch("499001");
        assert_eq!(worker.get("/readyz").status, 200);
        worker.reconfigure(|_| good);
    }
    assert_holds(&worker.log(), &["metricks", "broken"]);
    reload(&worker, RELOADED, 1);
    worker.fetch("499001");
}

#[test]
fn a_client_secret_that_was_renewed_is_read_again() {
    let (stand, worker) = pair();
    worker.enrol(
        "481001",
        &json!({ "provider": CONSENTS, "refresh_token": stand.consent("birgit", Usage::Reuse, &["481001"]) }),
    );
    let renewed = "hush-renewed-client-secret";
    worker.plant(renewed);
    stand.issuer().set_client_secrets(vec![consentry::model::Secret::new(renewed)]);
    fs::write(worker.file(&format!("{CONSENTS}.secret")), renewed).expect("the folder is ours");
    eventually("the new secret is used", || {
        let answer = worker.post("/v1/organizations/481001/token/refresh", &[]);
        (answer.status == 200).then_some(())
    });
}

#[test]
fn a_second_worker_is_refused_whether_it_wants_the_socket_or_the_vault() {
    let (stand, worker) = pair();
    worker.enrol("499001", &key(&stand, "499001"));
    let inside = ("CONSENTRY__HTTP__LISTEN", "127.0.0.1:0");
    let same = worker.command_with(&["run"], &[inside]);
    let told = String::from_utf8_lossy(&same.stderr).into_owned();
    assert_eq!(same.status.code(), Some(1), "{told}");
    assert_holds(&told, &["another worker listens on", &worker.socket().display().to_string()]);

    let other = worker.file("other.sock").display().to_string();
    let socket = ("CONSENTRY__SOCKET__PATH", &*other);
    let vault = worker.command_with(&["run"], &[inside, socket]);
    let told = String::from_utf8_lossy(&vault.stderr).into_owned();
    assert_eq!(vault.status.code(), Some(1), "{told}");
    assert_holds(&told, &["vault", &worker.pid().to_string()]);
    assert!(!worker.file("other.sock").exists(), "it cleans up behind itself");

    // The first one did not notice.
    worker.fetch("499001");
}

#[test]
fn a_worker_that_was_killed_leaves_a_socket_that_the_next_one_replaces() {
    let (stand, mut worker) = pair();
    worker.enrol("499001", &key(&stand, "499001"));
    let before = worker.fetch("499001");
    worker.kill9();
    assert!(worker.socket().exists(), "nobody was there to remove it");
    let client = worker.command(&["token", "499001"]);
    assert_eq!(client.status.code(), Some(5), "{client:?}");
    let health = worker.command(&["health"]);
    assert_eq!(health.status.code(), Some(5), "{health:?}");

    let worker = worker.restart();
    assert_eq!(worker.fetch("499001"), before, "its access token is kept");
    assert_eq!(stand.issuer().exchanges(), 1);
    let client = worker.command(&["token", "499001"]);
    assert_eq!((client.status.code(), client.stdout), (Some(0), format!("{before}\n").into_bytes()));
}

#[test]
fn something_else_in_the_sockets_place_is_left_alone() {
    let (_stand, mut worker) = pair();
    worker.stop();
    let socket = worker.socket().to_owned();
    fs::write(&socket, "somebody's notes").expect("the folder is ours");
    let refused = worker.command(&["run"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_holds(&String::from_utf8_lossy(&refused.stderr), &["not a socket"]);
    assert_eq!(fs::read_to_string(&socket).expect("left alone"), "somebody's notes");
}

#[test]
fn health_is_told_on_both_listeners_and_by_the_command() {
    let (_stand, mut worker) = pair();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(worker.get(path).status, 200);
        let inside = worker.inside(path);
        assert_eq!(inside.status, 200, "{inside:?}");
        assert_eq!(inside.header("cache-control"), Some("no-store"));
    }
    for arguments in [&["health"][..], &["health", "--live"]] {
        let output = worker.command(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    // Inside is for figures alone.
    for path in ["/", "/v1/status", "/v1/organizations", "/v1/organizations/1/token"] {
        assert_eq!(worker.inside(path).status, 404, "{path}");
    }
    worker.stop();
    assert_eq!(worker.command(&["health"]).status.code(), Some(5));
}

#[test]
fn every_metric_is_there_from_the_start_and_moves_with_what_happens() {
    let (stand, worker) = pair();
    let text = worker.metrics();
    for name in METRICS {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} is not among\n{text}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not explained");
    }
    // Series that are known are there at zero, so that a rate can be told from the first one on.
    let mut series = vec![
        "consentry_vault_errors_total 0".to_owned(),
        "consentry_fetch_duration_seconds_count 0".to_owned(),
        "consentry_webhook_pending 0".to_owned(),
        "consentry_organization_series_dropped 0".to_owned(),
        "consentry_backup_last_success_timestamp_seconds 0".to_owned(),
    ];
    let outcomes = [
        "ok",
        "degraded",
        "bad_request",
        "min_ttl_too_long",
        "forbidden",
        "unknown_organization",
        "consent_lost",
        "in_doubt",
        "paused",
        "too_many_requests",
        "provider_unavailable",
        "starting",
        "vault_unavailable",
    ];
    series.extend(outcomes.map(|outcome| format!("consentry_fetch_requests_total{{outcome=\"{outcome}\"}} 0")));
    for provider in [CONSENTS, KEYS] {
        let of = |name: &str, more: &str| format!("{name}{{provider=\"{provider}\"{more}}} 0");
        let states = ["active", "failing", "in_doubt", "lost", "paused"];
        series.extend(states.map(|state| of("consentry_organizations", &format!(",state=\"{state}\""))));
        for within in ["30d", "14d", "7d", "3d", "1d"] {
            let within = format!(",within=\"{within}\"");
            series.extend(
                ["consents_expiring", "consent_warnings_total"].map(|name| of(&format!("consentry_{name}"), &within)),
            );
        }
        for name in [
            "consents_expired",
            "consents_end_assumed",
            "token_refresh_overdue",
            "access_tokens_expired",
            "provider_circuit_open",
            "token_refresh_duration_seconds_count",
        ] {
            series.push(of(&format!("consentry_{name}"), ""));
        }
        series.push(of("consentry_token_refresh_total", ",result=\"ok\",reason=\"none\""));
        for reason in ["refused", "client_refused", "rate_limited", "provider_unavailable"] {
            series.push(of("consentry_token_refresh_total", &format!(",result=\"error\",reason=\"{reason}\"")));
        }
    }
    let missing: Vec<&String> = series.iter().filter(|line| !text.lines().any(|found| found == **line)).collect();
    assert!(missing.is_empty(), "{missing:#?} are not among\n{text}");

    let consent = json!({
        "provider": CONSENTS, "refresh_token": stand.consent("birgit", Usage::Reuse, &["481001"]),
    });
    worker.enrol("481001", &consent);
    worker.enrol("499001", &key(&stand, "499001"));
    worker.fetch("481001");
    worker.get("/v1/organizations/none/token");
    worker.post("/v1/organizations/481001/token/refresh", &[]);
    worker.post("/v1/organizations/481001/token/refresh", &[]);
    worker.post("/v1/organizations/499001/pause", &[]);
    let fetches = |outcome: &str| worker.metric("consentry_fetch_requests_total", &[&format!("outcome=\"{outcome}\"")]);
    let found = [fetches("ok"), fetches("unknown_organization"), fetches("too_many_requests"), fetches("forbidden")];
    assert_eq!(found.map(f64::to_bits), [2.0, 1.0, 1.0, 0.0].map(f64::to_bits), "{found:?}");
    let figure = |name: &str, labels: &[&str]| worker.metric(name, labels);
    let consents = format!("provider=\"{CONSENTS}\"");
    for (name, labels, expected) in [
        ("consentry_fetch_duration_seconds_count", &[][..], 4.0_f64),
        ("consentry_token_refresh_total", &[&*consents, "result=\"ok\""], 2.0),
        ("consentry_token_refresh_total", &["result=\"error\""], 0.0),
        ("consentry_token_refresh_duration_seconds_count", &[], 3.0),
        ("consentry_organizations", &["state=\"active\""], 1.0),
        ("consentry_organizations", &["state=\"paused\""], 1.0),
        ("consentry_consents_end_assumed", &[&*consents], 1.0),
        ("consentry_vault_errors_total", &[], 0.0),
        ("consentry_provider_budget_per_minute", &[], 12_000.0),
    ] {
        eventually(&format!("{name} {labels:?} is {expected}"), || {
            (figure(name, labels).to_bits() == expected.to_bits()).then_some(())
        });
    }
    assert!(figure("consentry_vault_write_duration_seconds_count", &[]) > 0.0);
    assert!(figure("consentry_vault_records", &[]) >= 4.0);
    assert!(figure("consentry_vault_size_bytes", &[]) > 0.0);
}

/// SIGHUP, and waits until the log says `what` for the `times`-th time.
fn reload(worker: &Worker, what: &str, times: usize) {
    worker.signal(Signal::HUP);
    eventually("the worker says what became of it", || (worker.log().matches(what).count() == times).then_some(()));
    eventually("the worker is ready again", || (worker.get("/readyz").status == 200).then_some(()));
}
