//! What a commit comes to: done, refused, or lost on the way and settled.

use std::{thread, time::Duration};

use consentry::vault::postgres::{Batch, Expected, Fence, Lease, Name, Postgres, PostgresError, Write, next_version};
use tokio::runtime::Runtime;

use super::{
    BRIEF, LONG, UNSEEN, Worker,
    bouncer::Bouncer,
    bytea, claim,
    cluster::{Cluster, is_installed},
    commands, deletion, due, found, grant, settings, waiting,
    wire::{Loss, Wire},
    write,
};
use crate::harness::eventually;

#[test]
fn what_was_committed_is_read_back_directly_and_through_a_pooler() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster);
    for (url, schema) in [(cluster.url(), "directly"), (bouncer.url(), "pooled")] {
        let worker = Worker::open(&url, schema);
        let (one, two) = (grant(1), grant(2));
        let version = worker.write(one, 0, b"first").expect("nothing was there");
        assert_eq!(worker.read(one), Some((version, b"first".to_vec())));

        // Of several, all or none are written.
        let stale = Batch { writes: vec![write(two, 0, b"new"), write(one, version + 1, b"late")], ..Batch::default() };
        assert_eq!(worker.commit(stale), Err(PostgresError::Conflict), "{schema}");
        assert_eq!((worker.read(one), worker.read(two)), (Some((version, b"first".to_vec())), None));
        assert_eq!(worker.write(one, 0, b"anew"), Err(PostgresError::Conflict), "{schema}: it is there already");
        let both = Batch { writes: vec![write(two, 0, b"new"), write(one, version, b"second")], ..Batch::default() };
        assert_eq!(worker.commit(both), Ok(()));
        assert_eq!(worker.read(one), Some((version + 1, b"second".to_vec())));

        // A deleted record is gone, and its version is not.
        let gone = deletion(one, version + 1);
        assert_eq!(worker.commit(Batch { writes: vec![gone], ..Batch::default() }), Ok(()));
        assert_eq!(worker.read(one), None);
        assert_eq!(worker.write(one, 0, b"anew"), Err(PostgresError::Conflict), "{schema}: it was there");
        assert_eq!(worker.write(one, version + 2, b"anew"), Ok(version + 3));
    }
}

/// What becomes of all of them when each writes that record as it should find it, at the same time; and who of them was told that it is
/// done.
fn rivals(workers: &[Worker], record: Name, expected: Expected, version: u64) -> Vec<u8> {
    let results: Vec<_> = thread::scope(|scope| {
        let rivals = workers.iter().enumerate().map(|(rival, worker)| {
            let sealed = Some(vec![u8::try_from(rival).expect("few rivals")]);
            let writes = vec![Write { name: record, expected, version, sealed, tombstone: None }];
            scope.spawn(move || worker.commit(Batch { writes, ..Batch::default() }))
        });
        let rivals: Vec<_> = rivals.collect();
        rivals.into_iter().map(|rival| rival.join().expect("a rival")).collect()
    });
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(PostgresError::Conflict))), "{results:?}");
    (0u8..).zip(&results).filter(|(_, result)| result.is_ok()).map(|(rival, _)| rival).collect()
}

#[test]
fn of_many_who_write_one_version_one_succeeds() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster);
    let workers = [cluster.url(), bouncer.url(), bouncer.url()].map(|url| Worker::open(&url, "rivals"));
    let mut expected = 0;
    for _ in 0..5 {
        let version = next_version(expected);
        let won = rivals(&workers, grant(1), found(expected), version);
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(workers[0].read(grant(1)), Some((version, won)));
        expected = version;
    }
    // Nothing is there that could be locked.
    for id in 2..=200 {
        let version = next_version(0);
        let won = rivals(&workers, grant(id), found(0), version);
        assert_eq!(won.len(), 1, "of record {id}: {won:?}");
        assert_eq!(workers[0].read(grant(id)), Some((version, won)));
    }
}

#[test]
fn a_commit_is_made_once_whatever_of_it_is_lost_on_the_way() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let wire = Wire::start(&cluster);
    let worker = Worker::open(&wire.url(), "lossy");
    let version = worker.write(grant(1), 0, b"first").expect("nothing is lost yet");

    wire.lose(Loss::Answer);
    assert_eq!(worker.write(grant(1), version, b"second"), Ok(version + 1), "it was done, and nobody had heard of it");

    wire.lose(Loss::Request);
    let lost = worker.write(grant(1), version + 1, b"third");
    assert!(matches!(lost, Err(PostgresError::Away(_))), "{lost:?}");
    assert_eq!(worker.read(grant(1)), Some((version + 1, b"second".to_vec())), "it was not done");
    assert_eq!(worker.write(grant(1), version + 1, b"third"), Ok(version + 2), "and the place is good for another");
}

#[test]
fn a_commit_that_was_settled_as_not_made_cannot_be_made_later() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let worker = Worker::open(&cluster.url(), "settled");
    // As one whose request arrives after it was settled.
    let replica = bytea(&worker.postgres.replica());
    cluster.on_primary(&format!("SELECT settled.settle_1({replica}, 0::smallint, 1, false)"));
    assert_eq!(worker.write(grant(1), 0, b"late"), Err(PostgresError::Forgotten), "that place has gone on");
    assert_eq!(worker.read(grant(1)), None);
    assert_eq!(worker.write(grant(1), 0, b"more"), Err(PostgresError::Forgotten), "and nothing is known of the others");
}

#[test]
fn a_database_that_lost_what_it_confirmed_is_written_to_no_more() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let worker = Worker::open(&cluster.url(), "back");
    let version = worker.write(grant(1), 0, b"kept").expect("it is stored");
    cluster.on_primary("UPDATE back.writers SET last = last - 1 WHERE last > 0");
    assert_eq!(worker.write(grant(1), version, b"more"), Err(PostgresError::WentBack));
    let mut news = worker.runtime.block_on(worker.postgres.news()).expect("where it is");
    worker.runtime.block_on(news.poll()).expect("no news");
    cluster.on_primary("DELETE FROM back.records");
    assert_eq!(worker.runtime.block_on(news.poll()).err(), Some(PostgresError::WentBack), "the newest record is gone");
}

#[test]
fn a_commit_needs_the_claim_that_it_names() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let (one, other) = (Worker::open(&cluster.url(), "fences"), Worker::open(&cluster.url(), "fences"));
    let (name, lane) = (grant(1), [7; 16]);
    one.put_due(&[name], lane);
    let fenced = |number, then, expected| Batch {
        writes: vec![write(name, expected, b"x")],
        fences: vec![Fence { name, number, then }],
        ..Batch::default()
    };
    let first = claim(&one, name, BRIEF, UNSEEN).expect("nobody has it");
    assert_eq!(one.commit(fenced(first.number, Lease::For(LONG), 0)), Ok(()), "over, but nobody else's");
    let (version, _) = one.read(name).expect("it is stored");
    assert_eq!(claim(&other, name, LONG, UNSEEN), None, "it was prolonged");

    // It runs out, and another takes over.
    assert_eq!(one.commit(fenced(first.number, Lease::For(BRIEF), version)), Ok(()));
    let taken = eventually("the claim runs out", || claim(&other, name, LONG, UNSEEN));
    assert!(taken.number > first.number);
    assert_eq!(one.commit(fenced(first.number, Lease::For(LONG), version + 1)), Err(PostgresError::Fenced));
    assert_eq!(other.commit(fenced(first.number, Lease::For(LONG), version + 1)), Err(PostgresError::Fenced));
    // Without the claim the version alone decides: a late answer is kept.
    assert_eq!(one.write(name, version + 1, b"late"), Ok(version + 2));
    assert_eq!(other.commit(fenced(taken.number, Lease::Ends, version + 2)), Ok(()));
    assert!(claim(&one, name, LONG, UNSEEN).is_some(), "it was given up");
}

#[test]
fn a_commit_waits_for_a_standby_and_nothing_takes_it_for_done_before() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start();
    let worker = Worker::open(&cluster.url(), "waits");
    let version = worker.write(grant(1), 0, b"first").expect("it is stored");

    // The wait is cancelled: the primary has it, and no standby.
    cluster.hold_standbys(true);
    let postgres = worker.postgres.clone();
    let batch = Batch { writes: vec![write(grant(1), version, b"second")], ..Batch::default() };
    let commit = worker.runtime.spawn(async move { postgres.commit(batch).await });
    eventually("the commit waits for a standby", || (waiting(&cluster, "commit_2") == 1).then_some(()));
    assert_eq!(worker.read(grant(1)), Some((version, b"first".to_vec())), "nobody sees it");
    cluster.on_primary(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%commit_2(%'",
    );
    eventually("it is asked for", || (waiting(&cluster, "settle_1") == 1).then_some(()));
    assert!(!commit.is_finished(), "the primary alone is no reason to call it done");
    cluster.hold_standbys(false);
    assert_eq!(worker.runtime.block_on(commit).unwrap(), Ok(()));
    assert_eq!(worker.read(grant(1)), Some((version + 1, b"second".to_vec())));

    // Whoever does not wait for it does not stop it.
    cluster.hold_standbys(true);
    let batch = Batch { writes: vec![write(grant(1), version + 1, b"third")], ..Batch::default() };
    let given_up = worker
        .runtime
        .block_on(async { tokio::time::timeout(Duration::from_millis(50), worker.postgres.commit(batch)).await });
    assert!(given_up.is_err(), "it cannot be done: {given_up:?}");
    cluster.hold_standbys(false);
    eventually("it is done all the same", || (worker.read(grant(1))?.1 == b"third").then_some(()));

    // The server goes on alone.
    cluster.set_synchronous_standbys(&[]);
    assert_eq!(worker.write(grant(1), version + 2, b"fourth"), Err(PostgresError::Asynchronous));
    let runtime = Runtime::new().expect("a runtime");
    let alone = settings(&cluster.url(), "waits");
    assert_eq!(runtime.block_on(Postgres::open(&alone)).err(), Some(PostgresError::Asynchronous));
    commands::a_database_that_confirms_alone_is_refused_and_allowed_only_in_words(&cluster);
    let allowed = consentry::vault::postgres::Settings { allow_asynchronous: true, ..alone };
    let allowed = runtime.block_on(Postgres::open(&allowed)).expect("it was allowed");
    let batch = Batch {
        writes: vec![write(grant(1), version + 2, b"fourth")],
        work: vec![due(grant(1), [0; 16])],
        ..Batch::default()
    };
    assert_eq!(runtime.block_on(allowed.commit(batch)), Ok(()));
}
