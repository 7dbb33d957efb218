use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::{
    judge::Counts,
    year::{Report, Size, run},
};

/// How many seeds are run where nobody says otherwise.
const SEEDS: u64 = 20;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Every seed, on as many threads as there are cores; in the order in which they ended.
fn run_all(seeds: std::ops::Range<u64>, size: Size) -> Vec<Report> {
    let next = AtomicU64::new(seeds.start);
    let reports = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let report = run(seed, size);
            reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    reports.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn nothing_is_lost_or_replayed_in_400_days_of_every_fault() {
    let seeds = match number("CONSENTRY_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("CONSENTRY_SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    let reports = run_all(seeds, Size { organizations: 200, days: 400 });
    let wrong: Vec<_> = reports.iter().filter(|report| !report.wrongs.is_empty()).collect();
    assert!(
        wrong.is_empty(),
        "seeds {:?} went wrong; CONSENTRY_SIMULATION_SEED=N cargo test simulation replays one\n{wrong:#?}",
        wrong.iter().map(|report| report.seed).collect::<Vec<_>>(),
    );
    say(&reports);
}

/// What all runs together were put through, for whoever looks (`--nocapture`).
#[expect(clippy::print_stdout, reason = "it is what `make simulate` is run for")]
fn say(reports: &[Report]) {
    let sum = |count: fn(&Counts) -> u64| reports.iter().map(|report| count(&report.counts)).sum::<u64>();
    println!("{} seeds, each 400 days of 200 organizations, and nothing went wrong:", reports.len());
    println!("{:>10} exchanges, {} fetches", sum(|of| of.exchanges), sum(|of| of.fetches));
    println!("{:>10} deaths, {} of them with the power", sum(|of| of.deaths.into()), sum(|of| of.power_cuts.into()));
    println!("{:>10} steps back in time", sum(|of| of.steps_back.into()));
    println!("{:>10} doubts told, {} losses", sum(|of| of.doubts), sum(|of| of.losses));
    println!("{:>10} approvals by a link, {} swapped in at once", sum(|of| of.approvals), sum(|of| of.renewals));
    println!("{:>10} spent tokens sent where the rules or an operator allow it", sum(|of| of.replays));
}

#[test]
fn a_seed_replays_exactly() {
    let size = Size { organizations: 40, days: 40 };
    assert_eq!(run(7, size), run(7, size));
}
