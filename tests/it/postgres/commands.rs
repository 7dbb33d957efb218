//! The commands of a worker whose vault is in a database: what they make, what they say of it, and what they refuse.

use std::{fs, process::Output, sync::Arc};

use consentry::{
    clock::SystemClock,
    metrics::Metrics,
    vault::{Identity, postgres::Store},
};
use tokio::runtime::Runtime;

use super::{
    cluster::{Cluster, is_installed},
    settings,
};
use crate::harness::worker::{Setup, Worker};

/// A worker's configuration that names a database, and further keys.
fn prepared(cluster: &Cluster, schema: &str, lines: &str) -> Worker {
    let worker = Setup::default().prepare();
    let file = worker.file("database.url");
    fs::write(&file, cluster.url()).expect("the folder is ours");
    let section = format!("\n[vault.postgres]\nurl_file = \"{}\"\nschema = \"{schema}\"\n{lines}\n", file.display());
    worker.reconfigure(|text| text.replace("[vault]\n", "[vault]\nengine = \"postgres\"\n") + &section);
    worker
}

/// What a command said, and whether it went well.
fn said(output: &Output) -> (bool, String) {
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_vault_in_a_database_is_made_checked_and_served_from() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let worker = prepared(&cluster, "commands", "poll = \"50ms\"");
    let (_, check) = said(&worker.command(&["check"]));
    assert!(check.contains("PostgreSQL's schema commands: it is not there yet"), "{check}");
    assert_eq!(cluster.on_primary("SELECT to_regnamespace('commands') IS NULL"), "t", "looking at it makes nothing");

    let (made, init) = said(&worker.command(&["init"]));
    assert!(made && init.contains("made vault  PostgreSQL's schema commands"), "{init}");
    let (kept, init) = said(&worker.command(&["init"]));
    assert!(kept && init.contains("kept vault  PostgreSQL's schema commands"), "{init}");
    let (well, check) = said(&worker.command(&["check"]));
    assert!(well && check.contains("opens, and all of its records: 0 records"), "{check}");
    assert!(check.contains("PostgreSQL 15") && check.contains("connected: 2"), "{check}");

    let mut worker = worker.started();
    assert!(worker.metric("consentry_vault_asynchronous", &[]) < 0.5);
    assert!(worker.metric("consentry_vault_news_age_seconds", &[]) < 30.0);
    let (well, check) = said(&worker.command(&["check"]));
    assert!(well && check.contains("is up, version") && check.contains("the vault in PostgreSQL's schema"), "{check}");
    assert!(worker.stop().success());

    // An older copy of the database was brought back.
    let (accepted, restore) = said(&worker.command(&["restore", "--in-place"]));
    assert!(accepted && restore.contains("accepted PostgreSQL's schema commands as it is: 0 grants"), "{restore}");
    let worker = worker.started();
    let identity = Identity::read(&worker.file("identity.txt")).expect("init made it");
    let (clock, metrics) = (Arc::new(SystemClock::new()), Metrics::new(&[]));
    let settings = settings(&cluster.url(), "commands");
    let store = Runtime::new().unwrap().block_on(Store::open(&settings, &identity, &[], clock, metrics));
    assert_eq!(store.expect("the worker's own").epoch(), 2, "what is in it may have been spent since");
    assert!(!worker.log().contains(&cluster.url()), "where the database is may hold a password");
}

/// A worker does not start on a database that confirms commits alone, unless that is allowed.
pub(super) fn a_database_that_confirms_alone_is_refused_and_allowed_only_in_words(cluster: &Cluster) {
    let worker = prepared(cluster, "alone", "");
    for command in ["run", "check", "init"] {
        let (well, text) = said(&worker.command(&[command]));
        assert!(!well && text.contains("synchronous_standby_names") && text.contains("allow_asynchronous"), "{text}");
    }
    drop(worker);
    let mut worker = prepared(cluster, "alone", "allow_asynchronous = true").started();
    assert!(worker.metric("consentry_vault_asynchronous", &[]) > 0.5);
    assert!(worker.log().contains("vault.asynchronous"), "{}", worker.log());
    let (well, check) = said(&worker.command(&["check"]));
    assert!(well && check.contains("that is allowed"), "{check}");
    assert!(worker.stop().success());
}
