//! Long enough for many refreshes: whoever fetches gets a living token, whatever the clock says.

use std::{
    collections::BTreeMap,
    env,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use consentry::{
    daemon,
    model::Usage,
    sandbox::{Entry, GrantType, Outcome},
};
use serde_json::json;
use tokio::runtime;

use crate::harness::{
    eventually,
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

/// How long a sandbox token lives.
const TOKEN_SECONDS: u64 = 8;
/// How long an exchange takes at the sandbox; in its middle it is noted.
const EXCHANGE: Duration = Duration::from_millis(200);
/// For how long there are fetches, unless `CONSENTRY_ALIVE_SECONDS` says otherwise.
const RUN_SECONDS: u64 = 40;
const FETCHERS: usize = 3;

#[test]
fn a_token_that_lives_is_given_while_everything_else_waits_for_its_turn() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).prepare();
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let running = runtime.block_on(daemon::start(worker.parsed())).expect("it starts");
    eventually("the worker is ready", || running.is_ready().then_some(()));
    let body = json!({ "provider": CONSENTS, "refresh_token": stand.consent("alice", Usage::Reuse, &["org-a"]) });
    assert_eq!(worker.enrol("org-a", &body).status, 201);

    let (is_taken, taken) = mpsc::channel();
    let (let_go, held) = mpsc::channel::<()>();
    runtime.spawn(async move {
        is_taken.send(()).expect("awaited");
        let _ = held.recv();
    });
    taken.recv().expect("the only thread is taken");
    assert!(stand.takes(&worker.fetch("org-a")));

    drop(let_go);
    assert_eq!(worker.get("/v1/status").status, 200);
    runtime.block_on(running.stop()).expect("it stops");
}

#[test]
fn every_fetch_gives_a_living_token_while_tokens_come_and_go() {
    let run = env::var("CONSENTRY_ALIVE_SECONDS").map_or(RUN_SECONDS, |text| text.parse().expect("seconds"));
    let stand = Stand::start_with(TOKEN_SECONDS, |config| config.latency = EXCHANGE);
    let worker = Setup::default().sandbox(&stand).start();
    let organizations = enrol(&stand, &worker);

    let end = Instant::now() + Duration::from_secs(run);
    let fetches: usize = thread::scope(|scope| {
        let fetchers: Vec<_> = (0..FETCHERS)
            .map(|first| {
                let (stand, worker, organizations) = (&stand, &worker, &organizations);
                scope.spawn(move || {
                    let mut count = 0;
                    // Everybody begins elsewhere, so that they meet now and then.
                    for organization in organizations.iter().cycle().skip(first * 5) {
                        if Instant::now() >= end {
                            break;
                        }
                        let token = worker.fetch(organization);
                        assert!(stand.takes(&token), "a dead token for {organization}");
                        count += 1;
                        thread::sleep(Duration::from_millis(20));
                    }
                    count
                })
            })
            .collect();
        fetchers.into_iter().map(|fetcher| fetcher.join().expect("all its tokens lived")).sum()
    });

    assert!(fetches >= organizations.len(), "{fetches}");
    assert_eq!(stand.issuer().replays(), 0);
    let counted = worker.metric("consentry_fetch_requests_total", &["outcome=\"ok\""]);
    assert_eq!(counted.to_bits(), count(fetches).to_bits(), "{counted} were counted of {fetches}");
    let exchanges = exchanges_by_grant(&stand);
    assert_eq!(exchanges.len(), organizations.len() - 1, "two organizations share a grant");
    for (grant, entries) in &exchanges {
        assert!(entries.iter().all(|entry| entry.result == Outcome::Granted), "{grant}: {entries:?}");
        // In a run of the usual length each has to be refreshed several times, and never much more often.
        let expected = usize::try_from(run / TOKEN_SECONDS).expect("few");
        assert!((expected..=expected * 3 + 3).contains(&entries.len()), "{grant}: {} exchanges", entries.len());
        for pair in entries.windows(2) {
            let apart = pair[1].at.since(pair[0].at);
            // Half an exchange after the middle of the first and half before that of the second, less the rounding.
            assert!(apart + Duration::from_millis(5) >= EXCHANGE, "{grant}: two exchanges at once, {apart:?} apart");
        }
    }
}

/// Three organizations of each kind, and one more that shares a grant.
fn enrol(stand: &Stand, worker: &Worker) -> Vec<String> {
    let mut organizations = Vec::new();
    let mut enrol = |organization: String, body: serde_json::Value| {
        let answer = worker.enrol(&organization, &body);
        assert_eq!(answer.status, 201, "{answer:?}");
        organizations.push(organization);
    };
    for number in 0..3 {
        for (kind, usage) in [("reuse", Usage::Reuse), ("one-time", Usage::OneTime)] {
            let (organization, second) = (format!("{kind}-{number}"), format!("{kind}-{number}-too"));
            let token = stand.consent(&organization, usage, &[&organization, &second]);
            let body = json!({ "provider": CONSENTS, "refresh_token": token, "usage": kind });
            enrol(organization, body.clone());
            if (number, usage) == (0, Usage::OneTime) {
                enrol(second, body);
            }
        }
        let organization = format!("key-{number}");
        let body = json!({ "provider": KEYS, "api_key": stand.api_key(&organization) });
        enrol(organization, body);
    }
    organizations
}

fn exchanges_by_grant(stand: &Stand) -> BTreeMap<String, Vec<Entry>> {
    let mut grants: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in stand.issuer().record() {
        assert!(matches!(entry.grant_type, GrantType::RefreshToken | GrantType::Password), "{entry:?}");
        grants.entry(entry.user.clone().expect("every credential is the sandbox's")).or_default().push(entry);
    }
    grants
}

#[expect(clippy::cast_precision_loss, reason = "there are few")]
const fn count(number: usize) -> f64 {
    number as f64
}
