//! A new data key for a vault in a database: under those who write meanwhile, past a transaction that ends late, and when the worker dies
//! that does it.

use std::sync::Arc;

use consentry::{
    clock::{SharedClock, SystemClock},
    model::OrganizationId,
    vault::{
        Change, VaultError,
        postgres::{Gone, Item, Store},
    },
};

use super::{
    bytea,
    cluster::{Cluster, is_installed},
    settings,
    store::{Pair, Replica, grant, grant_id, put, put_organization},
};
use crate::harness::eventually;

const GRANTS: u8 = 60;

/// How many records and tombstones of that schema are under another data key than this one.
fn older(cluster: &Cluster, schema: &str, current: u32) -> String {
    let current = bytea(&current.to_le_bytes());
    cluster.on_primary(&format!(
        "SELECT count(*) FROM {schema}.records WHERE substring(coalesce(sealed, tombstone) FROM 2 FOR 4) <> {current}"
    ))
}

fn is_over(replica: &Replica) -> Option<()> {
    replica.store.rekeying().is_none().then_some(())
}

fn rotate(replica: &Replica) -> Result<u32, VaultError> {
    replica.runtime.block_on(replica.store.rotate_data_key())
}

/// A transaction that has its number and goes on until it is told to end.
struct Transaction {
    client: tokio_postgres::Client,
}

impl Transaction {
    fn begin(replica: &Replica, cluster: &Cluster) -> Self {
        replica.runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&cluster.url(), tokio_postgres::NoTls).await.expect("it connects");
            tokio::spawn(connection);
            client.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.expect("it begins");
            Self { client }
        })
    }

    fn run(&self, replica: &Replica, sql: &str) {
        replica.runtime.block_on(self.client.batch_execute(sql)).expect("it runs");
    }
}

#[test]
fn every_record_goes_under_a_new_key_and_the_old_key_goes_when_nothing_can_need_it_any_more() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("rekeyed");
    let (one, other, cluster) = (&pair.one, &pair.other, &pair.cluster);
    for id in 1..=GRANTS {
        one.commit(vec![put(grant(id)), put_organization(&format!("org-{id}"), id)]).unwrap();
    }
    let mut feed = other.store.news();
    other.poll(&mut feed);
    let gone: OrganizationId = "org-1".parse().unwrap();
    one.commit(vec![Change::DeleteOrganization(gone.clone())]).unwrap();
    let lane = one.store.lane(&"visma-connect".parse().unwrap());
    assert_eq!(one.runtime.block_on(one.store.tell(lane, 0, b"frozen")).unwrap(), Some(1));
    let before: Vec<u64> = (1..=GRANTS).map(|id| one.grant(id).unwrap().sequence).collect();

    // As a commit that was begun before there was a new key, and brings a record under the old one when all others are sealed anew.
    cluster.on_primary("CREATE TABLE rekeyed.kept AS SELECT name, sealed FROM rekeyed.records");
    cluster.on_primary("ALTER TABLE rekeyed.kept OWNER TO keeper");
    let unfinished = Transaction::begin(one, cluster);
    assert_eq!(rotate(one).unwrap(), 2);
    assert!(matches!(rotate(one), Err(VaultError::Rekeying { data_key: 2, .. })));
    eventually("all are sealed anew", || (older(cluster, "rekeyed", 2) == "0").then_some(()));
    unfinished.run(
        one,
        "UPDATE rekeyed.records AS r SET sealed = k.sealed FROM rekeyed.kept AS k WHERE r.name = k.name AND r.sealed IS NOT NULL",
    );
    other.commit(vec![put(grant(99))]).expect("whoever has the old keys reads them again");
    assert!(matches!(rotate(other), Err(VaultError::Rekeying { .. })), "both keys are there");
    assert!(one.store.rekeying().is_some());
    unfinished.run(one, "COMMIT");
    for replica in [one, other] {
        eventually("the old key goes", || is_over(replica));
    }
    assert_eq!(older(cluster, "rekeyed", 2), "0");
    assert_eq!(cluster.on_primary("SELECT count(*) FROM rekeyed.rekeying"), "0");

    // Nobody noticed but by the key: versions are what they were, and nothing is news.
    for replica in [one, other] {
        let after: Vec<u64> = (1..=GRANTS).map(|id| replica.grant(id).expect("it opens").sequence).collect();
        assert_eq!(after, before);
        assert_eq!(replica.store.stats().data_key, 2);
        let told = replica.runtime.block_on(replica.store.told()).expect("it opens");
        assert_eq!((told.len(), &told[0].words[..]), (1, &b"frozen"[..]));
    }
    let heard = one.poll(&mut one.store.news());
    assert!(
        heard.iter().all(|item| matches!(item, Item::Grant(stored) if stored.value.id == grant_id(99))),
        "{heard:?}"
    );
    let heard = other.poll(&mut feed);
    let [Item::Gone(what, _)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!(*what, Gone::Organization(gone), "what is known of a deleted record was sealed anew, too");
    other.change(7, |grant| grant.paused = true).expect("it is written as ever");
    let (settings, clock): (_, SharedClock) = (settings(&cluster.url(), "rekeyed"), Arc::new(SystemClock::new()));
    let inspected = Store::inspect(&settings, &pair.identity, &clock, true);
    let vault = one.runtime.block_on(inspected).expect("all of it opens").vault.expect("it is there");
    assert_eq!(vault.data_keys, 1);
}

#[test]
fn when_the_worker_dies_that_seals_anew_another_goes_on_while_all_write() {
    if !is_installed() {
        return;
    }
    let Pair { one, other, cluster, bouncer: _bouncer, folder: _folder, .. } = Pair::open("rekeyed_by_another");
    for id in 1..=GRANTS {
        one.commit(vec![put(grant(id))]).unwrap();
    }
    let unfinished = Transaction::begin(&other, &cluster);
    assert_eq!(rotate(&one).unwrap(), 2);
    eventually("it is at work", || (older(&cluster, "rekeyed_by_another", 2) == "0").then_some(()));
    let Replica { store, runtime } = one;
    runtime.shutdown_background();
    drop(store);
    // What time does to a lease whose holder is gone.
    cluster.on_primary("UPDATE rekeyed_by_another.leases SET until = clock_timestamp() - interval '1 s'");
    for id in 1..=GRANTS {
        other.change(id, |grant| grant.failures = 7).expect("it is written under the new keys");
    }
    unfinished.run(&other, "COMMIT");
    eventually("another ends it", || is_over(&other).filter(|()| other.store.stats().data_key == 2));
    assert_eq!(older(&cluster, "rekeyed_by_another", 2), "0");
    assert!((1..=GRANTS).all(|id| other.grant(id).expect("it opens").value.failures == 7));
}

#[test]
fn a_record_that_does_not_open_keeps_the_old_key_and_stops_nothing_else() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("rekeyed_but_one");
    let (one, cluster) = (&pair.one, &pair.cluster);
    one.commit((1..=9).map(|id| put(grant(id))).collect()).unwrap();
    cluster.on_primary("CREATE TABLE rekeyed_but_one.kept AS SELECT name, sealed FROM rekeyed_but_one.records");
    let damaged = "UPDATE rekeyed_but_one.records SET sealed = set_byte(sealed, 40, 255 - get_byte(sealed, 40)) \
        WHERE name = (SELECT min(name::text)::bytea FROM rekeyed_but_one.work)";
    cluster.on_primary(damaged);
    assert_eq!(rotate(one).unwrap(), 2);
    let problem = eventually("it says so", || one.store.rekeying().and_then(|rekeying| rekeying.problem));
    assert!(problem.contains("records that do not open: 1"), "{problem}");
    assert_eq!(older(cluster, "rekeyed_but_one", 2), "1", "all others are sealed anew");
    let elsewhere = Replica::open(&settings(&cluster.url(), "rekeyed_but_one"), &pair.identity).expect("it opens");
    eventually("every worker says so", || elsewhere.store.rekeying().and_then(|rekeying| rekeying.problem));

    // Once it is mended, another new key brings it to its end.
    cluster.on_primary(
        "UPDATE rekeyed_but_one.records AS r SET sealed = k.sealed FROM rekeyed_but_one.kept AS k \
         WHERE r.name = k.name AND substring(r.sealed FROM 2 FOR 4) <> '\\x02000000'::bytea",
    );
    assert_eq!(eventually("no worker is just trying", || rotate(one).ok()), 3);
    eventually("the old keys go", || is_over(one));
    assert_eq!(older(cluster, "rekeyed_but_one", 3), "0");
    assert!((1..=9).all(|id| elsewhere.grant(id).is_some()));
}
