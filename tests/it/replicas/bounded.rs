//! Workers that keep less of the fleet in memory than there is: whatever is asked of them, they look it up.

use std::{collections::BTreeSet, fs, time::Duration};

use consentry::model::Usage;
use serde_json::{Value, json};

use super::{
    RESIDENT, WORKERS,
    fleet::{Fleet, PROVIDER, issuer},
    load::Load,
};
use crate::{
    harness::{chance::tell, eventually, sandbox::Stand, worker::Worker},
    postgres::cluster::{Cluster, is_installed},
};

/// How many organizations there are.
const ORGANIZATIONS: usize = 22;

fn start(stand: &Stand, cluster: &Cluster, schema: &str) -> Fleet {
    Fleet::start_with(stand, &vec![cluster.url(); WORKERS], schema, ORGANIZATIONS, RESIDENT)
}

#[test]
fn workers_that_keep_less_than_the_fleet_in_memory_make_each_exchange_once_and_serve_all_of_it() {
    if !is_installed() {
        return;
    }
    let (cluster, stand) = (Cluster::shared(), issuer());
    let fleet = start(&stand, &cluster, "bounded");
    let load = Load::new(&stand, &fleet);
    let counts = load.judge_undisturbed(&fleet.workers);
    for worker in &fleet.workers {
        // When nobody asks for anything, no more than that is in use.
        eventually("what nobody uses leaves", || {
            let resident = worker.metric("consentry_grants_resident", &[]);
            (resident > 0.0 && resident <= f64::from(u8::try_from(RESIDENT).expect("small"))).then_some(())
        });
        all_are_listed_and_counted(worker, &fleet);
    }
    what_one_worker_does_another_shows(&fleet);
    tell(&format!("bounded: {counts:?}"));
}

/// Every organization is on some page of the list, once, whatever is filtered by; and the status counts them all.
fn all_are_listed_and_counted(worker: &Worker, fleet: &Fleet) {
    let all: BTreeSet<String> = fleet.organizations.iter().cloned().collect();
    for query in ["limit=7", "limit=7&state=active", "limit=1000"] {
        eventually("every organization is listed once", || {
            let listed = worker.listed(query);
            let once: BTreeSet<String> = listed.iter().cloned().collect();
            assert_eq!(once.len(), listed.len(), "some are listed twice: {listed:?}");
            (once == all).then_some(())
        });
    }
    assert_eq!(worker.listed("limit=7&state=lost"), Vec::<String>::new());
    eventually("all are counted", || {
        let status = worker.get("/v1/status").json();
        (status["organizations"]["active"] == all.len()).then_some(())
    });
    let counted = ["active", "failing", "in_doubt", "lost", "paused"]
        .map(|state| whole(worker.metric("consentry_organizations", &[&format!("state=\"{state}\"")])));
    assert_eq!(counted.iter().sum::<usize>(), all.len());
}

/// A pause, a warning and a removal at one worker are so at all, of organizations that most do not have in memory.
fn what_one_worker_does_another_shows(fleet: &Fleet) {
    let [one, two, three] = &fleet.workers[..] else { panic!("three workers") };
    let [first, second, ..] = &fleet.organizations[..] else { panic!("two organizations") };
    let path = |organization: &str, rest: &str| format!("/v1/organizations/{organization}{rest}");
    assert_eq!(one.post(&path(first, "/pause"), &[]).status, 200);
    eventually("the others know of the pause", || {
        (two.get(&path(first, "")).json()["paused"] == true && three.get(&path(first, "/token")).status == 409)
            .then_some(())
    });
    assert_eq!(three.post(&path(first, "/resume"), &[]).status, 200);
    eventually("it is refreshed again", || (one.get(&path(first, "/token")).status == 200).then_some(()));
    assert_eq!(two.request("DELETE", &path(second, ""), &[], "").status, 204);
    for worker in &fleet.workers {
        eventually("the removal is known", || (worker.get(&path(second, "/token")).status == 404).then_some(()));
        assert!(!worker.listed("limit=7").contains(second));
    }
}

/// Consents whose end nears, given anew for all of a fleet at a worker that has none of it in memory.
#[test]
fn an_import_that_is_larger_than_memory_replaces_what_is_there_and_a_warning_of_each_is_told_once() {
    if !is_installed() {
        return;
    }
    let (cluster, stand) = (Cluster::shared(), issuer());
    let mut fleet = start(&stand, &cluster, "bounded_warned");
    fleet.workers[0].kill9();
    fleet.workers[0].launch();
    assert_eq!(fleet.workers[0].ready(), None, "{}", fleet.workers[0].log());
    let ends = (stand.now() + Duration::from_hours(24 * 5)).to_string();
    let line = |organization: &String| {
        let token = stand.consent(organization, Usage::OneTime, &[organization]);
        json!({ "organization": organization, "provider": PROVIDER, "refresh_token": token, "expires_at": ends })
            .to_string()
    };
    let (folder, lines) = (tempfile::tempdir().expect("a folder"), fleet.organizations.iter().map(line));
    let file = folder.path().join("consents.jsonl");
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("written");
    let imported = fleet.workers[0].command(&["import", "--verify", "--json", file.to_str().expect("a plain name")]);
    assert!(imported.status.success(), "{imported:?}");
    let counts: Value = serde_json::from_slice(&imported.stdout).expect("JSON");
    assert_eq!(counts["replaced"], ORGANIZATIONS, "{counts}");
    let told = || -> usize {
        let of = |worker: &Worker| whole(worker.metric("consentry_consent_warnings_total", &["within=\"7d\""]));
        fleet.workers.iter().map(of).sum()
    };
    eventually("all are warned", || (told() >= ORGANIZATIONS).then_some(()));
    let load = Load::new(&stand, &fleet);
    load.wait_for_exchanges(ORGANIZATIONS);
    assert_eq!(told(), ORGANIZATIONS, "each of them once");
    let status = fleet.workers[0].get("/v1/status").json();
    let forecast: u64 = status["forecast"]
        .as_array()
        .expect("weeks")
        .iter()
        .map(|week| week["consents"].as_u64().expect("a number"))
        .sum();
    assert_eq!(forecast, u64::try_from(ORGANIZATIONS).expect("few"), "{status}");
}

/// A count, as metrics write it.
fn whole(number: f64) -> usize {
    number.to_string().parse().expect("a whole number")
}
