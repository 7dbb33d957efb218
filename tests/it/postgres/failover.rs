//! The primary dies, with everything that it alone knew, and a standby takes its place.
//!
//! `CONSENTRY_FAILOVERS` says how often, `CONSENTRY_SEED` repeats a run's choices.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use consentry::vault::postgres::{Batch, Name, Postgres, PostgresError, Seen};
use fastrand::Rng;

use super::{
    BRIEF, LONG, UNSEEN, Worker,
    bouncer::Bouncer,
    claim,
    cluster::{Cluster, is_installed},
    grant, waiting, write,
};
use crate::harness::{
    chance::{Seed, number, tell},
    eventually,
};

/// How often the primary is killed, unless `CONSENTRY_FAILOVERS` says otherwise.
const FAILOVERS: usize = 20;
/// How long commits go on at most before it is killed.
const LONGEST_LIFE: Duration = Duration::from_millis(300);
/// How many write a record of their own, and how many share one; half of each through PgBouncer.
const OWNERS: u8 = 2;
const RIVALS: u8 = 2;
/// The record that they share.
const SHARED: u8 = 100;

#[test]
fn nothing_that_was_confirmed_is_lost_and_nothing_else_appears_when_primaries_are_killed() {
    if !is_installed() {
        return;
    }
    let (failovers, seed) = (number("CONSENTRY_FAILOVERS", FAILOVERS), Seed::new("failovers"));
    let mut rng = Rng::with_seed(seed.0);
    let mut cluster = Cluster::start();
    let bouncer = Bouncer::start(&cluster);
    let workers = [Worker::open(&cluster.url(), "failover"), Worker::open(&bouncer.url(), "failover")];
    let shared = workers[0].write(grant(SHARED), 0, b"").expect("it is stored");
    let (ended, confirmed, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut took = Took::default();
    let counts = Counts { ended: &ended, confirmed: &confirmed, refused: &refused };

    let written = thread::scope(|scope| {
        let worker = |id: u8| &workers[usize::from(id % 2)];
        let owners: Vec<_> =
            (0..OWNERS).map(|id| scope.spawn(move || write_own(worker(id), grant(id), counts))).collect();
        let rivals: Vec<_> =
            (0..RIVALS).map(|id| scope.spawn(move || write_shared(worker(id), grant(SHARED), counts))).collect();
        for _ in 0..failovers {
            let before = confirmed.load(Ordering::SeqCst);
            took.going_on += timed(|| {
                eventually("commits are confirmed", || (confirmed.load(Ordering::SeqCst) > before + 20).then_some(()));
            });
            thread::sleep(LONGEST_LIFE.mul_f64(rng.f64()));
            cluster.kill_primary();
            took.promotion += timed(|| cluster.promote());
            bouncer.follow(&cluster);
            took.rejoining += timed(|| cluster.rejoin());
        }
        let before = confirmed.load(Ordering::SeqCst);
        eventually("commits are confirmed again", || (confirmed.load(Ordering::SeqCst) > before + 20).then_some(()));
        ended.store(true, Ordering::SeqCst);
        let last: Vec<u64> = owners.into_iter().map(|owner| owner.join().expect("an owner")).collect();
        for (id, version) in (0..).zip(last) {
            let found = workers[0].read(grant(id)).expect("its record");
            assert_eq!(found, (version, version.to_le_bytes().to_vec()), "the last that was confirmed, and no other");
        }
        rivals.into_iter().map(|rival| rival.join().expect("a rival")).sum::<u64>()
    });
    let (version, _) = workers[0].read(grant(SHARED)).expect("the shared record");
    assert_eq!(version - shared, written, "as many versions as commits were confirmed");
    let (confirmed, refused) = (confirmed.into_inner(), refused.into_inner());
    tell(&format!(
        "{failovers} failovers: {confirmed} commits confirmed, {refused} found not to have been made; {took:?}"
    ));
}

#[test]
fn a_standby_that_is_promoted_has_what_was_confirmed_and_begins_a_timeline() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start();
    cluster.on_primary("CREATE TABLE kept (number int)");
    cluster.on_primary("INSERT INTO kept VALUES (1)");
    let before = cluster.timeline();
    cluster.kill_primary();
    cluster.promote();
    cluster.on_primary("INSERT INTO kept VALUES (2)");
    assert_eq!(cluster.on_primary("SELECT string_agg(number::text, ',' ORDER BY number) FROM kept"), "1,2");
    assert_eq!(cluster.timeline(), before + 1);
}

/// How long all failovers together took, by what was waited for.
#[derive(Default, Debug)]
struct Took {
    promotion: Duration,
    rejoining: Duration,
    going_on: Duration,
}

fn timed(step: impl FnOnce()) -> Duration {
    let began = Instant::now();
    step();
    began.elapsed()
}

/// What all who write have in common.
#[derive(Clone, Copy)]
struct Counts<'a> {
    ended: &'a AtomicBool,
    confirmed: &'a AtomicU64,
    refused: &'a AtomicU64,
}

impl Counts<'_> {
    fn count(self, result: &Result<u64, PostgresError>) {
        match result {
            Ok(_) => self.confirmed.fetch_add(1, Ordering::SeqCst),
            Err(_) => self.refused.fetch_add(1, Ordering::SeqCst),
        };
        if matches!(result, Err(PostgresError::Away(_) | PostgresError::NotPrimary)) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Writes one version after another of a record that nobody else writes; gives the last that was confirmed.
fn write_own(worker: &Worker, name: Name, counts: Counts<'_>) -> u64 {
    let mut last = 0;
    while !counts.ended.load(Ordering::SeqCst) {
        let mut next = write(name, last, b"");
        next.sealed = Some(next.version.to_le_bytes().to_vec());
        let version = next.version;
        let result = worker.commit(Batch { writes: vec![next], ..Batch::default() }).map(|()| version);
        counts.count(&result);
        match result {
            Ok(version) => last = version,
            // Nobody else writes it, so this would be a commit of its own that was said not to have been made.
            Err(error) => assert!(error != PostgresError::Conflict, "after version {last}"),
        }
    }
    last
}

/// Writes the next version of a record that others write as well; gives how often that was confirmed.
fn write_shared(worker: &Worker, name: Name, counts: Counts<'_>) -> u64 {
    let mut written = 0;
    while !counts.ended.load(Ordering::SeqCst) {
        let read = worker.runtime.block_on(worker.postgres.read(&[name]));
        let Some(found) = read.ok().and_then(|mut found| found.pop()) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let result = worker.write(name, found.version, b"");
        if result != Err(PostgresError::Conflict) {
            counts.count(&result);
        }
        written += u64::from(result.is_ok());
    }
    written
}

#[test]
fn what_no_standby_had_is_settled_as_not_made_and_neither_claims_nor_news_are_taken_in() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start();
    let (worker, other) = (Worker::open(&cluster.url(), "alone"), Worker::open(&cluster.url(), "alone"));
    let version = worker.write(grant(1), 0, b"first").expect("it is stored");
    worker.put_due(&[grant(1)], [1; 16]);
    assert!(claim(&worker, grant(1), BRIEF, UNSEEN).is_some());
    // A claim waits for no standby; what is committed after it does.
    worker.write(grant(2), 0, b"after").expect("it is stored");
    let mut news = other.runtime.block_on(other.postgres.news()).expect("where it is");

    // Nothing reaches the standbys any more: neither a commit nor which transactions have begun.
    cluster.hold_standbys(true);
    let postgres: Postgres = worker.postgres.clone();
    let batch = Batch { writes: vec![write(grant(1), version, b"second")], ..Batch::default() };
    let commit = worker.runtime.spawn(async move { postgres.commit(batch).await });
    eventually("the commit waits for a standby", || (waiting(&cluster, "commit_2") == 1).then_some(()));
    let numbers = "DO $$ BEGIN FOR i IN 1..50 LOOP PERFORM pg_current_xact_id(); ROLLBACK; END LOOP; END $$";
    cluster.on_primary(numbers);
    let number_of = |cluster: &Cluster| -> u64 {
        cluster.on_primary("SELECT pg_snapshot_xmax(pg_current_snapshot())").parse().expect("a number")
    };
    let before = number_of(&cluster);
    // The wait is cancelled, so that everybody sees what the primary alone has.
    cluster.on_primary(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%commit_2(%'",
    );
    eventually("others see it", || (other.read(grant(1))?.1 == b"second").then_some(()));
    let (fresh, _) = other.runtime.block_on(news.poll()).expect("news");
    assert!(fresh.iter().any(|fresh| fresh.version == version + 1), "{fresh:?}");

    cluster.kill_primary();
    cluster.promote();
    let made = worker.runtime.block_on(commit).expect("the commit's task");
    assert!(matches!(made, Err(PostgresError::Away(_))), "{made:?}");
    assert_eq!(eventually_read(&other, grant(1)), (version, b"first".to_vec()));

    // Others get the numbers that were given out before, and are heard of all the same.
    assert!(number_of(&cluster) < before, "numbers are given out anew");
    assert_eq!(worker.write(grant(1), version, b"other"), Ok(version + 1));
    let heard = eventually("it is heard of", || {
        let (fresh, _) = other.runtime.block_on(news.poll()).ok()?;
        fresh.iter().any(|fresh| fresh.name == grant(1) && fresh.version == version + 1).then_some(fresh)
    });
    assert!(!heard.is_empty() && news.timeline() == 2);
    // The claim has run out by any clock, but its primary is gone: only who has waited may take it.
    let long_ago = Seen { timeline: 1, time: LONG };
    assert_eq!(claim(&other, grant(1), BRIEF, long_ago), None, "it has not seen that there is another primary");
    assert!(claim(&other, grant(1), BRIEF, Seen { timeline: 2, time: BRIEF }).is_some());
    eventually("it runs out on this timeline", || claim(&worker, grant(1), BRIEF, UNSEEN));
}

/// Reads a record as soon as the database can be reached again.
fn eventually_read(worker: &Worker, name: Name) -> (u64, Vec<u8>) {
    eventually("the database answers", || {
        worker
            .runtime
            .block_on(worker.postgres.read(&[name]))
            .ok()?
            .pop()
            .and_then(|found| Some((found.version, found.sealed?)))
    })
}
