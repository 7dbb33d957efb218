use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::year::{Report, Size, run};

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
    let size = Size { organizations: 200, days: 400 };
    let reports = run_all(seeds, size);
    for report in &reports {
        println!("{report:?}");
    }
    let wrong: Vec<_> = reports.iter().filter(|report| !report.wrongs.is_empty()).collect();
    assert!(
        wrong.is_empty(),
        "seeds {:?} went wrong; replay one with CONSENTRY_SIMULATION_SEED=N cargo test simulation -- --nocapture\n{}",
        wrong.iter().map(|report| report.seed).collect::<Vec<_>>(),
        wrong.iter().flat_map(|report| &report.wrongs).map(|wrong| format!("  {wrong}\n")).collect::<String>()
    );
}

#[test]
fn a_seed_replays_exactly() {
    let size = Size { organizations: 40, days: 40 };
    assert_eq!(run(7, size), run(7, size));
}
