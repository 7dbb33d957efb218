//! Disks that are full, turn read-only or break under a running worker: what the issuer answered is kept, what lives is
//! served, the trouble is told, and once it is over everything goes on with nothing lost and nothing sent twice.

use std::{thread, time::Duration};

use consentry::{model::Usage, sandbox::Outcome};
use serde_json::json;

use crate::harness::{
    disk::Disk,
    eventually,
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

const ORGANIZATIONS: usize = 24;
/// Short, so that there is a lot to write.
const TOKEN_SECONDS: u64 = 4;
const EXCHANGE: Duration = Duration::from_millis(50);
const JOURNAL_BYTES: u64 = 128 * 1024;
/// Room for a vault, its trial copy and what its database must be sure of.
const SMALL: u32 = 12;

#[test]
fn a_full_disk_costs_no_answer_and_no_living_token_and_is_over_with_a_restart() {
    let Some(disk) = Disk::in_memory(SMALL) else { return };
    let (stand, worker) = fleet(&disk);
    disk.fill();
    suffers(&stand, &worker);
    assert!(worker.log().contains("no space left for"), "{}", worker.log());
    assert_eq!(worker.inside("/healthz").status, 200, "a worker that started now could not open the vault");

    disk.free();
    wants_a_restart(&worker);
    let mut worker = worker;
    // It cannot close the vault cleanly any more.
    worker.stop();
    worker.launch();
    assert_eq!(worker.ready(), None, "{}", worker.log());
    assert_eq!(worker.inside("/healthz").status, 200);
    recovers(&stand, &worker, 0);
}

#[test]
fn starting_on_a_full_disk_harms_no_vault_however_it_was_left() {
    let Some(disk) = Disk::in_memory(SMALL) else { return };
    let (stand, mut worker) = fleet(&disk);
    for is_closed in [true, false] {
        if is_closed {
            assert!(worker.stop().success());
        } else {
            worker.kill9();
        }
        disk.fill();
        for _ in 0..2 {
            worker.clear_log();
            worker.launch();
            let status = worker.ready().expect("it cannot be sure of its database");
            assert_eq!((status.code(), worker.log().lines().count()), (Some(1), 1), "{}", worker.log());
            assert!(worker.log().contains("free some and try again"), "{}", worker.log());
        }
        let checked = worker.command(&["check"]);
        assert!(checked.status.success(), "there is room for a copy elsewhere: {checked:?}");
        let full = disk.path().to_str().expect("a plain name");
        let checked = worker.command_with(&["check"], &[("TMPDIR", full)]);
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.code() == Some(1) && said.contains("no space left for one"), "{said}");
        disk.free();
        worker.launch();
        assert_eq!(worker.ready(), None, "{}", worker.log());
    }
    recovers(&stand, &worker, ORGANIZATIONS);
}

#[test]
fn a_disk_that_turns_read_only_ends_all_exchanges_and_no_living_token() {
    let Some(disk) = Disk::ext4(64, 64) else { return };
    let (stand, mut worker) = fleet(&disk);
    if !disk.turn_read_only() {
        return;
    }
    suffers(&stand, &worker);
    assert_eq!(worker.inside("/healthz").status, 200, "a worker that started now could not open the vault");
    worker.kill9();
    worker.clear_log();
    worker.launch();
    let status = worker.ready().expect("it cannot open the vault");
    assert_eq!(status.code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains("must belong to the worker's user and be writable"), "{}", worker.log());

    disk.mount_again();
    worker.launch();
    assert_eq!(worker.ready(), None, "{}", worker.log());
    recovers(&stand, &worker, ORGANIZATIONS);
}

#[test]
fn a_disk_that_breaks_ends_all_exchanges_and_no_living_token() {
    let Some(disk) = Disk::ext4(64, 24) else { return };
    let (stand, mut worker) = fleet(&disk);
    disk.below().fill();
    suffers(&stand, &worker);
    worker.kill9();

    disk.below().free();
    disk.mount_again();
    worker.launch();
    assert_eq!(worker.ready(), None, "{}", worker.log());
    recovers(&stand, &worker, ORGANIZATIONS);
}

/// A worker with its vault on this disk, and one-time consents that wait for an operator where they are in doubt.
fn fleet(disk: &Disk) -> (Stand, Worker) {
    let stand = Stand::start_with(TOKEN_SECONDS, |config| config.latency = EXCHANGE);
    let (url, (id, secret)) = (stand.url(), stand.client());
    let lines = format!(
        "kind = \"visma-connect\"\nissuer = \"{url}\"\nclient_id = \"{id}\"\nmax_per_minute = 6000\n\
         organizations_url = \"{url}/v1/organizations\"\nusage = \"one-time\"\nin_doubt = \"hold\""
    );
    let worker = Setup::default()
        .log("level = \"info\"")
        .journal(JOURNAL_BYTES)
        .vault_at(disk.path().join("vault"))
        .provider(CONSENTS, secret, &lines)
        .start();
    for organization in organizations() {
        let token = stand.consent(&organization, Usage::OneTime, &[&organization]);
        let answer = worker.enrol(&organization, &json!({ "provider": CONSENTS, "refresh_token": token }));
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    (stand, worker)
}

fn organizations() -> impl Iterator<Item = String> {
    (0..ORGANIZATIONS).map(|number| format!("org-{number}"))
}

/// While the disk takes nothing: whatever is served lives, and sooner or later the worker says that it is not ready, and
/// sends no one-time token any more.
fn suffers(stand: &Stand, worker: &Worker) {
    let mut served = 0;
    eventually("the vault fails", || {
        for organization in organizations() {
            let answer = worker.get(&format!("/v1/organizations/{organization}/token"));
            match answer.status {
                200 => {
                    let token = answer.json()["access_token"].as_str().expect("a token has an access token").to_owned();
                    assert!(stand.takes(&token), "{organization} was given a dead token");
                    served += 1;
                }
                503 => {}
                _ => panic!("{answer:?}"),
            }
        }
        (worker.inside("/readyz").status == 503).then_some(())
    });
    assert!(served > 0, "nothing was served");
    assert!(worker.metric("consentry_vault_errors_total", &[]) > 0.0);
    assert!(worker.log().contains("the vault takes no more writes until the worker is restarted"), "{}", worker.log());
    // What was under way ends; then nothing more is sent.
    thread::sleep(EXCHANGE * 10);
    let sent = stand.issuer().exchanges();
    thread::sleep(Duration::from_secs(TOKEN_SECONDS));
    assert_eq!(stand.issuer().exchanges(), sent, "a one-time token was sent that nothing could be noted of");
}

fn wants_a_restart(worker: &Worker) {
    let probed = worker.command(&["health", "--live"]);
    assert_eq!(probed.status.code(), Some(5), "{}", String::from_utf8_lossy(&probed.stderr));
    assert_eq!(worker.get("/healthz").status, 503);
    let inside = worker.inside("/healthz");
    assert!(inside.status == 503 && inside.body.contains("restart the worker"), "{inside:?}");
}

/// Every grant is exchanged anew, but for those in doubt, which are `doubtful` at most; no spent token was ever sent.
fn recovers(stand: &Stand, worker: &Worker, doubtful: usize) {
    let from = stand.now();
    let mut in_doubt = 0;
    for organization in organizations() {
        let shown = worker.get(&format!("/v1/organizations/{organization}")).json();
        if shown["state"] == "in_doubt" {
            in_doubt += 1;
            continue;
        }
        eventually("every grant is exchanged again", || {
            let entries = stand.issuer().record();
            let mut later = entries.iter().filter(|entry| entry.at > from && entry.result == Outcome::Granted);
            later.any(|entry| entry.user.as_deref() == Some(organization.as_str())).then_some(())
        });
        assert!(stand.takes(&worker.fetch(&organization)), "{organization} was given a dead token");
    }
    assert!(in_doubt <= doubtful, "{in_doubt} in doubt");
    assert!(in_doubt < ORGANIZATIONS, "all of them are in doubt");
    assert_eq!(stand.issuer().replays(), 0);
}
