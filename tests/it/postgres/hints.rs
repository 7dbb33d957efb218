//! Hints that something was written: heard past the poll, and not needed.

use std::time::{Duration, Instant};

use consentry::{
    model::Secret,
    vault::postgres::{Feed, Settings},
};
use serde_json::json;

use super::{
    cluster::{Cluster, is_installed},
    settings,
    store::{Pair, Replica, grant, put},
};
use crate::harness::{
    eventually,
    sandbox::{KEYS, Stand},
    worker::Setup,
};

/// The longest poll that there is.
const POLL: Duration = Duration::from_secs(10);
/// How many changes are heard of one after the other: each would be a poll.
const CHANGES: u32 = 4;
/// How long a hint is waited for at most that must come.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits for a hint.
fn hinted(replica: &Replica, feed: &Feed) {
    let waited = replica.runtime.block_on(async { tokio::time::timeout(PATIENCE, feed.hinted()).await });
    waited.expect("a hint comes");
}

#[test]
fn a_replica_is_given_a_hint_of_what_others_write_and_again_after_its_connection_was_cut() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("hinted");
    let listening = |url: &str| {
        let listen_url = Some(Secret::new(pair.cluster.url()));
        Replica::open(&Settings { listen_url, ..settings(url, "hinted") }, &pair.identity).expect("it opens")
    };
    // The one that writes may do so through a pooler.
    let (writing, replica) = (listening(&pair.bouncer.url()), listening(&pair.cluster.url()));
    let mut feed = replica.store.news();
    let backends = "SELECT coalesce(string_agg(pid::text, ',' ORDER BY pid), '') FROM pg_stat_activity \
        WHERE application_name = 'consentry listener' AND query LIKE 'LISTEN \"hinted\"%'";
    let listeners = |count: usize| {
        eventually("all listen", || {
            let pids = pair.cluster.on_primary(backends);
            (pids.split(',').filter(|pid| !pid.is_empty()).count() == count).then_some(pids)
        })
    };
    let first = listeners(2);
    hinted(&replica, &feed);
    writing.commit(vec![put(grant(1))]).unwrap();
    hinted(&replica, &feed);
    assert_eq!(replica.poll(&mut feed).len(), 1);

    pair.cluster.on_primary(&format!("SELECT pg_terminate_backend(pid) FROM unnest('{{{first}}}'::int[]) AS pid"));
    let second = eventually("both listen again", || {
        let pids = listeners(2);
        pids.split(',').all(|pid| !first.split(',').any(|gone| gone == pid)).then_some(pids)
    });
    assert_ne!(first, second);
    // What was written meanwhile may not have been heard: so that is looked for.
    hinted(&replica, &feed);
    writing.commit(vec![put(grant(2))]).unwrap();
    hinted(&replica, &feed);
    assert_eq!(replica.poll(&mut feed).len(), 1);
    // Whoever listens to nobody hears by polling.
    pair.other.commit(vec![put(grant(3))]).unwrap();
    assert_eq!(replica.poll(&mut feed).len(), 1);
}

#[test]
fn workers_that_listen_know_what_another_did_long_before_the_next_poll() {
    if !is_installed() {
        return;
    }
    let (cluster, stand) = (Cluster::shared(), Stand::start(3600));
    let setup = |listen: &str| {
        let lines =
            format!("url = \"{}\"\nschema = \"listening\"\npoll = \"10s\"\nlisten_url = \"{listen}\"", cluster.url());
        Setup::default().sandbox(&stand).database(&lines)
    };
    let one = setup(&cluster.url()).start();
    let two = setup(&cluster.url()).identity_of(&one).start();
    assert_eq!(one.enrol("1", &json!({ "provider": KEYS, "api_key": stand.api_key("1") })).status, 201);
    let status = || two.get("/v1/organizations/1/token").status;
    let asked = Instant::now();
    eventually("it is known", || (status() == 200).then_some(()));
    for change in 1..CHANGES {
        let (what, expected) = if change % 2 == 1 { ("pause", 409) } else { ("resume", 200) };
        let changed = one.post(&format!("/v1/organizations/1/{what}"), &[]);
        assert!(changed.status < 300, "{changed:?}");
        eventually("it is known", || (status() == expected).then_some(()));
    }
    assert!(asked.elapsed() < POLL * (CHANGES - 1), "{:?}", asked.elapsed());
}
