//! Several workers as processes of their own, one vault on real PostgreSQL, and an issuer whose refresh tokens can be used once and
//! whose access tokens live for seconds. It is the judge: a token that is sent twice is a replay, and there is none, whatever is
//! killed, stopped or promoted.
//!
//! One of three workers reaches the primary by itself, and two through PgBouncer in transaction mode. What holds of workers that have
//! all grants in memory holds of such that have fewer than there are.
//!
//! `CONSENTRY_REPLICA_FAULTS` says how many faults each test brings about (`make replicas N=…`), `CONSENTRY_SEED` repeats the choices
//! of a run that failed. Which point of an exchange a fault meets is up to the machine, but where a test waits for one.

mod answers;
mod bounded;
mod door;
mod fleet;
mod ledger;
mod load;

use std::{collections::BTreeMap, thread, time::Duration};

use fastrand::Rng;
use rstest::rstest;
use rustix::process::Signal;

use self::{
    door::Stage,
    fleet::{Fleet, LEASE, issuer},
    ledger::Ledger,
    load::Load,
};
use crate::{
    harness::chance::{Seed, number, tell},
    postgres::{
        bouncer::Bouncer,
        cluster::{Cluster, is_installed},
    },
};

/// How many faults there are of each kind, unless `CONSENTRY_REPLICA_FAULTS` says otherwise.
const FAULTS: usize = 3;
/// How often the primary is killed under workers, unless `CONSENTRY_FAILOVERS` says otherwise.
const FAILOVERS: usize = 2;
/// How long the workers run undisturbed at most between two faults.
const LONGEST_PEACE: Duration = Duration::from_millis(1200);
/// How long after a moment of an exchange a worker is stopped at most: the commit of its end takes about as long.
const AROUND: Duration = Duration::from_millis(15);
/// How many workers there are.
const WORKERS: usize = 3;
/// How many organizations.
const ORGANIZATIONS: usize = 12;
/// How many grants each worker keeps in memory, where it does not keep all: the fewest that may be configured.
const RESIDENT: usize = 10;

#[test]
fn three_workers_make_each_exchange_once_and_serve_what_any_of_them_made() {
    if !is_installed() {
        return;
    }
    let (cluster, stand) = (Cluster::shared(), issuer());
    let bouncer = Bouncer::start(&cluster);
    let fleet = Fleet::start(&stand, &urls(&cluster, &bouncer), "undisturbed", ORGANIZATIONS);
    let load = Load::new(&stand, &fleet);
    let counts = load.judge_undisturbed(&fleet.workers);
    let arrived = Ledger::of(&fleet.workers[0]).accounts_for_all(&fleet);
    tell(&format!("undisturbed: {counts:?}, {arrived} answers kept"));
}

#[rstest]
#[case::all_in_memory("killed", 0)]
#[case::some_in_memory("killed_bounded", RESIDENT)]
fn a_worker_that_is_killed_in_an_exchange_leaves_no_token_that_another_spends_again(
    #[case] schema: &str,
    #[case] resident: usize,
) {
    if !is_installed() {
        return;
    }
    let (cluster, stand, seed) = (Cluster::shared(), issuer(), Seed::new("killed replicas"));
    let (faults, mut rng) = (number("CONSENTRY_REPLICA_FAULTS", FAULTS), Rng::with_seed(seed.0));
    let bouncer = Bouncer::start(&cluster);
    let mut fleet = Fleet::start_with(&stand, &urls(&cluster, &bouncer), schema, ORGANIZATIONS, resident);
    let load = Load::new(&stand, &fleet);
    load.during(|| {
        for _ in 0..faults {
            thread::sleep(LONGEST_PEACE.mul_f64(rng.f64()));
            let chosen = rng.usize(..WORKERS);
            if rng.bool() {
                // In the middle of an exchange; else at any moment.
                fleet.doors[chosen].wait_for_next(Stage::Asked);
            }
            let worker = &mut fleet.workers[chosen];
            worker.kill9();
            // Sometimes its claims hold still when it is back.
            thread::sleep(LEASE.mul_f64(1.5 * rng.f64()));
            worker.launch();
            assert_eq!(worker.ready(), None, "{}", worker.log());
            load.mend(worker);
        }
    });
    let counts = load.judge(&fleet.workers);
    tell(&format!("{schema}: {faults} replicas killed: {counts:?}"));
}

#[rstest]
#[case::all_in_memory("stopped", 0)]
#[case::some_in_memory("stopped_bounded", RESIDENT)]
fn a_worker_that_is_stopped_until_its_lease_is_over_sends_nothing_that_another_sends_and_keeps_what_it_was_given(
    #[case] schema: &str,
    #[case] resident: usize,
) {
    if !is_installed() {
        return;
    }
    let (cluster, stand, seed) = (Cluster::shared(), issuer(), Seed::new("stopped replicas"));
    let (faults, mut rng) = (number("CONSENTRY_REPLICA_FAULTS", FAULTS), Rng::with_seed(seed.0));
    let bouncer = Bouncer::start(&cluster);
    let fleet = Fleet::start_with(&stand, &urls(&cluster, &bouncer), schema, ORGANIZATIONS, resident);
    let load = Load::new(&stand, &fleet);
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    load.during(|| {
        for _ in 0..faults {
            thread::sleep(LONGEST_PEACE.mul_f64(rng.f64()));
            let chosen = rng.usize(..WORKERS);
            let (worker, door) = (&fleet.workers[chosen], &fleet.doors[chosen]);
            // At any moment, right after a request, right before its answer, or around the commit of what it gave.
            if let Some(stage) =
                rng.choice([None, Some(Stage::Asked), Some(Stage::Answered), Some(Stage::Arrived)]).flatten()
            {
                door.wait_for_next(stage);
                thread::sleep(AROUND.mul_f64(rng.f64()));
            }
            worker.signal(Signal::STOP);
            *met.entry(door.under_way()).or_default() += 1;
            // Sometimes it is back before its lease is over, mostly later.
            thread::sleep(LEASE.mul_f64(0.5 + 1.5 * rng.f64()));
            worker.signal(Signal::CONT);
            load.mend(worker);
        }
    });
    let counts = load.judge(&fleet.workers);
    let arrived = Ledger::of(&fleet.workers[0]).accounts_for_all(&fleet);
    tell(&format!("{schema}: {faults} replicas stopped, {met:?}: {counts:?}, {arrived} answers kept"));
}

#[test]
fn workers_go_on_by_themselves_when_the_primary_is_killed_directly_and_through_pgbouncer() {
    if !is_installed() {
        return;
    }
    let (mut cluster, stand, seed) = (Cluster::start(), issuer(), Seed::new("failovers under workers"));
    let (failovers, mut rng) = (number("CONSENTRY_FAILOVERS", FAILOVERS), Rng::with_seed(seed.0));
    let bouncer = Bouncer::start(&cluster);
    let fleet = Fleet::start(&stand, &urls(&cluster, &bouncer), "failovers", ORGANIZATIONS);
    let load = Load::new(&stand, &fleet);
    load.during(|| {
        for _ in 0..failovers {
            load.wait_for_exchanges(ORGANIZATIONS);
            thread::sleep(LONGEST_PEACE.mul_f64(rng.f64()));
            cluster.kill_primary();
            cluster.promote();
            bouncer.follow(&cluster);
            cluster.rejoin();
            load.wait_for_exchanges(1);
            load.mend(&fleet.workers[0]);
        }
    });
    let counts = load.judge(&fleet.workers);
    let arrived = Ledger::of(&fleet.workers[0]).accounts_for_all(&fleet);
    tell(&format!("{failovers} failovers under workers: {counts:?}, {arrived} answers kept"));
}

/// One worker's way to the primary for each.
fn urls(cluster: &Cluster, bouncer: &Bouncer) -> [String; WORKERS] {
    [cluster.url(), bouncer.url(), bouncer.url()]
}
