//! The worker is killed while it writes its database anew, and once more at the moment it has put that in its place.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use consentry::{
    clock::{Clock as _, SystemClock},
    metrics::Metrics,
    model::{AccessToken, Consent, Credential, Grant, Labels, Organization, Secret, State, Timestamp, Usage},
    vault::{Change, Vault},
};

use super::check_at_rest;
use crate::harness::{
    eventually, http,
    worker::{Setup, Worker},
};

/// How many organizations there are: to write so many anew takes longer than to kill somebody.
const ORGANIZATIONS: usize = 1200;
/// How many large records are written and removed again, and how large they are, so that the files are far too large.
const REMOVED: usize = 200;
const REMOVED_BYTES: usize = 60_000;
/// Changes in one commit.
const AT_ONCE: usize = 10;
/// How long it goes on writing in each of its lives but the last, in milliseconds.
const LIVES: [u64; 5] = [0, 5, 20, 60, 150];

const BEGUN: &str = "the vault's database is written anew";
const DONE: &str = "the vault's database was written anew";

#[test]
fn a_worker_that_is_killed_while_it_writes_its_database_anew_has_lost_nothing() {
    let lines = "kind = \"oauth2\"\ntoken_url = \"http://127.0.0.1:9/token\"\nclient_id = \"nobody\"";
    let setup = Setup::default().log("level = \"info\"").provider("nobody", "a secret of nobody", lines);
    let mut worker = setup.prepare();
    fill_and_remove(&worker);

    let (mut paused, mut left_unfinished) = (0, 0);
    for life in LIVES {
        paused = live(&mut worker, paused, |worker| {
            said(worker, BEGUN);
            thread::sleep(Duration::from_millis(life));
        });
        left_unfinished += u32::from(is_unfinished(&worker));
        check_at_rest(&worker);
    }
    assert!(left_unfinished > 0, "it was written anew in no time: {}", worker.log());
    paused = live(&mut worker, paused, |worker| said(worker, DONE));
    check_at_rest(&worker);

    let worker = worker.started();
    assert!(paused > 0 && !is_unfinished(&worker), "{paused}");
    let status = worker.get("/v1/status").json();
    assert_eq!(status["providers"][0]["organizations"], ORGANIZATIONS, "{status}");
    for number in 0..paused {
        let shown = worker.get(&format!("/v1/organizations/{}", organization(number))).json();
        assert_eq!(shown["paused"], true, "{shown}");
    }
    worker.fetch(&organization(ORGANIZATIONS - 1));
}

/// One life of the worker, until `enough` has happened. Meanwhile one organization after the other is paused, from number
/// `paused` on; gives the number of the first of which it was not acknowledged.
fn live(worker: &mut Worker, paused: usize, enough: impl FnOnce(&Worker)) -> usize {
    worker.clear_log();
    worker.launch();
    let (socket, is_dead) = (worker.socket().to_owned(), AtomicBool::new(false));
    thread::scope(|scope| {
        let pausing = scope.spawn(|| {
            let mut next = paused;
            while !is_dead.load(Ordering::Relaxed) && next < ORGANIZATIONS / 2 {
                let path = format!("/v1/organizations/{}/pause", organization(next));
                match http::over_unix(&socket, "POST", &path, &[], "") {
                    Ok(answer) if answer.status == 200 => next += 1,
                    _ => thread::sleep(Duration::from_millis(1)),
                }
            }
            next
        });
        enough(worker);
        worker.kill9();
        is_dead.store(true, Ordering::Relaxed);
        pausing.join().expect("it asserts nothing")
    })
}

fn said(worker: &Worker, words: &str) {
    eventually(words, || worker.log().contains(words).then_some(()));
}

/// Whether there is a successor of the database beside it.
fn is_unfinished(worker: &Worker) -> bool {
    let mut entries = fs::read_dir(worker.vault()).expect("it is there");
    entries.any(|entry| entry.expect("the folder is ours").file_name().to_string_lossy().starts_with("db.trial-"))
}

fn organization(number: usize) -> String {
    (10_000_000 + number).to_string()
}

/// Fills the vault so that its files are several times as large as what stays in them.
fn fill_and_remove(worker: &Worker) {
    let (config, identity) = worker.vault_config();
    let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("it was made just now");
    let now = SystemClock::new().now().wall;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let commit = |changes: Vec<Change>| {
        let mut changes = changes.into_iter();
        loop {
            let some: Vec<_> = changes.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            runtime.block_on(vault.commit(some)).expect("there is room");
        }
    };
    let large = |_| Grant {
        credential: Credential::ApiKey(Secret::new("x".repeat(REMOVED_BYTES))),
        organizations: Vec::new(),
        ..grant(&vault, ORGANIZATIONS, now)
    };
    let large: Vec<Grant> = (0..REMOVED).map(large).collect();
    let gone = large.iter().map(|grant| Change::DeleteGrant(grant.id)).collect();
    commit(large.into_iter().map(|grant| Change::PutGrant(Box::new(grant))).collect());
    // Only now, so that these lie behind it in the file.
    let both = |number| {
        let grant = grant(&vault, number, now);
        let id = grant.organizations[0].clone();
        let organization = Organization { id, grant: grant.id, labels: Labels::new(), added_at: now };
        [Change::PutGrant(Box::new(grant)), Change::PutOrganization(Box::new(organization))]
    };
    commit((0..ORGANIZATIONS).flat_map(both).collect());
    commit(gone);
    vault.close().expect("nobody else has it");
}

/// A grant that has nothing to do for two days.
fn grant(vault: &Vault, number: usize, now: Timestamp) -> Grant {
    let token = Secret::new(format!("refresh-token-{number:010}"));
    Grant {
        id: vault.random_grant_id(),
        provider: "nobody".parse().expect("lower case"),
        fingerprint: vault.fingerprint(&token),
        credential: Credential::RefreshToken(token),
        spent: Vec::new(),
        client: None,
        access: Some(AccessToken {
            token: Secret::new(format!("access-token-{number:0>1000}")),
            token_type: "Bearer".to_owned(),
            scope: None,
            issued_at: now,
            expires_at: now + Duration::from_hours(48),
            issued_boot: None,
        }),
        state: State::Active,
        since: now,
        paused: false,
        subject: Some(format!("user-{number}")),
        consent: Some(Consent {
            granted_at: now,
            expires_at: None,
            assumed: false,
            expected: Usage::Reuse,
            shown: Some(Usage::Reuse),
            grace: Duration::ZERO,
            warned: Vec::new(),
        }),
        refreshed_at: Some(now),
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: vec![organization(number).parse().expect("digits")],
        epoch: vault.epoch(),
    }
}
