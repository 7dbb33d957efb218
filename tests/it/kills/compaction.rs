//! The worker is killed while it writes its database anew, and once more at the moment it has put that in its place.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use consentry::{
    clock::{Clock as _, SystemClock},
    metrics::Metrics,
    model::{AccessToken, Consent, Credential, Grant, Labels, Organization, Secret, State, Timestamp, Usage},
    vault::{Change, Vault},
};

use super::check_at_rest;
use crate::harness::{
    PATIENCE, eventually, http,
    worker::{Setup, Worker},
};

/// How many organizations there are, with so much to copy that it takes longer than to kill somebody.
const ORGANIZATIONS: usize = 1200;
/// How many large records are written and removed again, and how large they are, so that the files are far too large.
const REMOVED: usize = 200;
const REMOVED_BYTES: usize = 60_000;
/// Changes in one commit.
const AT_ONCE: usize = 10;
/// How long it goes on writing before it is killed, in milliseconds. One that is done by then is given as much to do again.
const LIVES: [u64; 4] = [0, 0, 10, 40];
/// How often it must have been killed in the middle of it, and in how many lives at most that has to come about.
const UNFINISHED: usize = 2;
const MOST_LIVES: usize = 12;
/// How often it is looked whether it has begun.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// How many are paused in all: each is looked at in the end.
const MOST_PAUSED: usize = ORGANIZATIONS / 6;

const BEGUN: &str = "the vault's database is written anew";
const DONE: &str = "the vault's database was written anew";

#[test]
fn a_worker_that_is_killed_while_it_writes_its_database_anew_has_lost_nothing() {
    let lines = "kind = \"oauth2\"\ntoken_url = \"http://127.0.0.1:9/token\"\nclient_id = \"nobody\"";
    let setup = Setup::default().log("level = \"info\"").provider("nobody", "a secret of nobody", lines);
    let mut worker = setup.prepare();
    fill(&worker);
    write_and_remove(&worker);

    let (paused, mut left_unfinished) = (AtomicUsize::new(0), 0);
    for (number, life) in LIVES.iter().cycle().take(MOST_LIVES).enumerate() {
        live(&mut worker, &paused, |worker| {
            said(worker, BEGUN);
            thread::sleep(Duration::from_millis(*life));
        });
        let is_unfinished = is_unfinished(&worker);
        left_unfinished += usize::from(is_unfinished);
        check_at_rest(&worker);
        if !is_unfinished {
            write_and_remove(&worker);
        }
        if left_unfinished >= UNFINISHED && number + 1 >= LIVES.len() {
            break;
        }
    }
    assert!(left_unfinished >= UNFINISHED, "{left_unfinished}: it was written anew in no time: {}", worker.log());
    live(&mut worker, &paused, |worker| {
        eventually("an organization is paused", || (paused.load(Ordering::Relaxed) > 0).then_some(()));
        said(worker, DONE);
    });
    check_at_rest(&worker);

    let (worker, paused) = (worker.started(), paused.into_inner());
    assert!(!is_unfinished(&worker));
    let status = worker.get("/v1/status").json();
    assert_eq!(status["providers"][0]["organizations"], ORGANIZATIONS, "{status}");
    for number in 0..paused {
        let shown = worker.get(&format!("/v1/organizations/{}", organization(number))).json();
        assert_eq!(shown["paused"], true, "{shown}");
    }
    worker.fetch(&organization(ORGANIZATIONS - 1));
}

/// One life of the worker, until `enough` has happened. Meanwhile one organization after the other is paused; `paused` is the number of
/// the first of which it was not acknowledged.
fn live(worker: &mut Worker, paused: &AtomicUsize, enough: impl FnOnce(&Worker)) {
    worker.clear_log();
    worker.launch();
    let (socket, is_dead) = (&worker.socket().to_owned(), &AtomicBool::new(false));
    thread::scope(|scope| {
        let end = Instant::now() + 2 * PATIENCE;
        scope.spawn(move || {
            let goes_on = || !is_dead.load(Ordering::Relaxed) && Instant::now() < end;
            while goes_on() && paused.load(Ordering::Relaxed) < MOST_PAUSED {
                let path = format!("/v1/organizations/{}/pause", organization(paused.load(Ordering::Relaxed)));
                match http::over_unix(socket, "POST", &path, &[], "") {
                    Ok(answer) if answer.status == 200 => {
                        paused.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        enough(worker);
        worker.kill9();
        is_dead.store(true, Ordering::Relaxed);
    });
}

/// Waits until the log has these words, and looks often, so that little happens between them and what follows.
fn said(worker: &Worker, words: &str) {
    let end = Instant::now() + PATIENCE;
    while !worker.log().contains(words) {
        assert!(Instant::now() < end, "waited in vain: {words}\n{}", worker.log());
        thread::sleep(LOOK_EVERY);
    }
}

/// Whether there is a successor of the database beside it.
fn is_unfinished(worker: &Worker) -> bool {
    let mut entries = fs::read_dir(worker.vault()).expect("it is there");
    entries.any(|entry| entry.expect("the folder is ours").file_name().to_string_lossy().starts_with("db.trial-"))
}

fn organization(number: usize) -> String {
    (10_000_000 + number).to_string()
}

/// Fills the vault with what stays.
fn fill(worker: &Worker) {
    in_vault(worker, |vault, now| {
        let both = |number| {
            let grant = grant(vault, number, now);
            let id = grant.organizations[0].clone();
            let organization = Organization { id, grant: grant.id, labels: Labels::new(), added_at: now };
            [Change::PutGrant(Box::new(grant)), Change::PutOrganization(Box::new(organization))]
        };
        vec![(0..ORGANIZATIONS).flat_map(both).collect()]
    });
}

/// Makes its files several times as large as what stays in them.
fn write_and_remove(worker: &Worker) {
    in_vault(worker, |vault, now| {
        let large = |_| Grant {
            credential: Credential::ApiKey(Secret::new("x".repeat(REMOVED_BYTES))),
            organizations: Vec::new(),
            ..grant(vault, ORGANIZATIONS, now)
        };
        let large: Vec<Grant> = (0..REMOVED).map(large).collect();
        let gone = large.iter().map(|grant| Change::DeleteGrant(grant.id)).collect();
        vec![large.into_iter().map(|grant| Change::PutGrant(Box::new(grant))).collect(), gone]
    });
}

/// Commits what `changes` says while no worker has the vault, one list after the other.
fn in_vault(worker: &Worker, changes: impl FnOnce(&Vault, Timestamp) -> Vec<Vec<Change>>) {
    let (config, identity) = worker.vault_config();
    let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("whoever had it is dead");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for changes in changes(&vault, SystemClock::new().now().wall) {
        let mut changes = changes.into_iter();
        loop {
            let some: Vec<_> = changes.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            runtime.block_on(vault.commit(some)).expect("there is room");
        }
    }
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
