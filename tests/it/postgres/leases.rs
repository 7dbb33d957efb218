//! What one worker does for all, and what all share of a provider.

use std::{thread, time::Duration};

use consentry::{
    clock::ManualClock,
    model::Timestamp,
    vault::{
        Duty, Singular,
        postgres::{BudgetId, Lease, Pace, Reserved},
    },
};

use super::{
    BRIEF, LONG, Worker,
    bouncer::Bouncer,
    cluster::{Cluster, is_installed},
};
use crate::harness::eventually;

const HOUR: Duration = Duration::from_hours(1);

impl Worker {
    fn lease(&self, what: &str, length: Duration) -> Option<u64> {
        self.runtime.block_on(self.postgres.lease(what, length)).expect("an answer")
    }

    fn prolong(&self, what: &str, number: u64, then: Lease) -> bool {
        self.runtime.block_on(self.postgres.prolong(what, number, then)).expect("an answer")
    }

    fn reserve(&self, budget: BudgetId, most: u32) -> Reserved {
        let pace = Pace { interval: HOUR, burst: 5 * HOUR };
        self.runtime.block_on(self.postgres.reserve(budget, most, pace)).expect("an answer")
    }
}

#[test]
fn a_lease_is_one_workers_until_it_ends() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster);
    let [one, two] = [cluster.url(), bouncer.url()].map(|url| Worker::open(&url, "leases"));
    assert_eq!((one.lease("digest", LONG), two.lease("digest", LONG)), (Some(1), None));
    assert_eq!(two.lease("backup", LONG), Some(1), "each work has a lease of its own");
    assert!(one.prolong("digest", 1, Lease::For(LONG)));
    assert_eq!(one.lease("digest", LONG), Some(2), "whose answer was lost asks again");
    assert!(!one.prolong("digest", 1, Lease::Ends), "a statement that comes late changes nothing");
    assert!(!two.prolong("digest", 2, Lease::Ends), "nor does another worker's");
    assert_eq!(two.lease("digest", LONG), None);

    assert!(one.prolong("digest", 2, Lease::Ends));
    assert_eq!(two.lease("digest", BRIEF), Some(3), "what is given up is free at once");
    eventually("the lease runs out", || one.lease("digest", LONG));
    assert!(!two.prolong("digest", 3, Lease::For(LONG)), "who comes late has lost it");
}

#[test]
fn singular_work_is_one_workers_who_counts_for_itself() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let [one, two] = [(); 2].map(|()| Worker::open(&cluster.url(), "duties"));
    let clocks = [(); 2].map(|()| ManualClock::at(Timestamp::from_millis(0)));
    let duty =
        |worker: &Worker, clock: usize| Duty::leased(worker.postgres.clone(), Singular::Digest, clocks[clock].clone());
    let (first, second) = (duty(&one, 0), duty(&two, 1));
    let on_duty = one.runtime.block_on(first.begin()).expect("nobody has it");
    assert!(on_duty.is_good() && two.runtime.block_on(second.begin()).is_none());
    assert!(one.runtime.block_on(first.clone().begin()).is_none(), "nor is it begun twice in one process");
    clocks[0].advance(Duration::from_mins(1));
    assert!(!on_duty.is_good(), "a process that was stopped for so long does not go on");
    drop(on_duty);
    let taken = eventually("what is given up is taken over", || two.runtime.block_on(second.begin()));
    assert!(taken.is_good() && one.runtime.block_on(first.begin()).is_none());
}

#[test]
fn after_a_promotion_a_lease_runs_once_more_by_the_new_servers_clock() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let [one, two] = [(); 2].map(|()| Worker::open(&cluster.url(), "promoted"));
    let promoted = "UPDATE promoted.leases SET timeline = timeline - 1, until = until - interval '1 hour'";
    assert_eq!(one.lease("digest", LONG), Some(1));
    cluster.on_primary(promoted);
    assert_eq!((two.lease("digest", LONG), two.lease("digest", LONG)), (None, None), "its time may be the old clock's");
    assert!(one.prolong("digest", 1, Lease::For(LONG)), "the holder goes on");
    cluster.on_primary(promoted);
    assert!(one.prolong("digest", 1, Lease::For(BRIEF)));
    eventually("what the holder has prolonged since runs out as ever", || two.lease("digest", LONG));
    assert_eq!(one.lease("backup", BRIEF), Some(1));
    cluster.on_primary(promoted);
    eventually("whose holder is gone is free after its time", || two.lease("backup", LONG));
}

#[test]
fn a_budget_gives_each_turn_once_whoever_asks() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster);
    let workers = [cluster.url(), bouncer.url(), cluster.url()].map(|url| Worker::open(&url, "turns"));
    let budget = BudgetId { lane: [7; 16], forced: false };
    let waits = |worker: &Worker| match worker.reserve(budget, 1) {
        Reserved::NoneFor(wait) => wait,
        given @ Reserved::Turns { .. } => panic!("none is to be had: {given:?}"),
    };
    let taken: u32 = thread::scope(|scope| {
        let take = |worker: &Worker| {
            let mut taken = 0;
            while let Reserved::Turns { turns, .. } = worker.reserve(budget, 2) {
                assert!((1..=2).contains(&turns));
                taken += turns;
            }
            taken
        };
        let taking = workers.each_ref().map(|worker| scope.spawn(move || take(worker)));
        taking.into_iter().map(|taking| taking.join().expect("it takes")).sum()
    });
    assert_eq!(taken, 6, "a burst of five hours, and the one that is due, together");
    assert!(workers.iter().all(|worker| waits(worker) > HOUR / 2));
    let Reserved::Turns { turns, first, ago } = workers[1].reserve(BudgetId { forced: true, ..budget }, 4) else {
        panic!("what is forced has a budget of its own");
    };
    assert_eq!((turns, first, ago), (4, Duration::ZERO, 5 * HOUR), "the first that anybody forces can go at once");
    cluster.on_primary("UPDATE turns.turns SET next = next - interval '1 year' WHERE get_byte(budget, 0) = 0");
    let Reserved::Turns { turns, .. } = workers[0].reserve(budget, 100) else {
        panic!("nobody asked for a year");
    };
    assert_eq!(turns, 6, "no more is made up for than a burst");

    // A server's clock that goes back by a year keeps nobody waiting for a year.
    cluster.on_primary("UPDATE turns.turns SET next = next + interval '1 year'");
    assert!(waits(&workers[2]) <= HOUR);
    // What a crash does to it.
    cluster.on_primary("TRUNCATE turns.turns");
    assert!(matches!(workers[0].reserve(budget, 1), Reserved::Turns { turns: 1, first: Duration::ZERO, .. }));
}

#[test]
fn of_two_who_say_how_a_provider_is_one_is_heard() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let [one, two] = [(); 2].map(|()| Worker::open(&cluster.url(), "lanes"));
    let put = |worker: &Worker, expected, sealed: &[u8]| {
        worker
            .runtime
            .block_on(worker.postgres.put_lane_state([1; 16], expected, sealed.to_vec(), 0))
            .expect("an answer")
    };
    assert_eq!((put(&one, 0, b"frozen"), put(&two, 0, b"also frozen")), (Some(1), None));
    assert_eq!((put(&two, 1, b"well"), put(&one, 1, b"on trial")), (Some(2), None));
    let states = one.runtime.block_on(one.postgres.lane_states()).expect("an answer");
    assert_eq!((states.len(), states[0].version, &states[0].sealed[..]), (1, 2, &b"well"[..]));
}
