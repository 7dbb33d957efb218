//! What a worker costs that has nothing to do: every access token lives for long, and nobody asks for one.
//!
//! Absolute: the processor time of a minute without the sweep and of one with three, with 100,000 organizations, and with a
//! million where `CONSENTRY_BENCH_MILLION` is set (`only`: with nothing else). From both follows what the default schedule
//! costs.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use self::common::{
    process::Process,
    report::{Report, Series, table, thousands},
    site::{Fleet, Options, Site, organization},
    worker::Worker,
};

/// As the worker's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long a worker that is ready is left alone before it is measured.
const SETTLE: Duration = Duration::from_secs(5);
/// How long it is measured for.
const WATCHED: Duration = Duration::from_mins(1);
/// In so many parts, so that the spread can be told.
const PARTS: u32 = 3;
/// Sweeps that do not come while it is watched.
const NEVER: &str = "0 0 4 29 2 *";
/// A sweep in each part.
const OFTEN: &str = "*/20 * * * * *";
/// How far sweeps are apart unless they are configured.
const USUALLY: Duration = Duration::from_mins(5);

/// From so many organizations on a filled vault is kept for later runs.
const MANY: u64 = 1_000_000;

fn main() -> Result<()> {
    let mut report = Report::new("idle");
    let mut sizes = vec![100_000];
    if let Ok(million) = std::env::var("CONSENTRY_BENCH_MILLION") {
        sizes.retain(|_| million != "only");
        sizes.push(MANY);
    }
    report.note(&format!(
        "{} s in {PARTS} parts, {} s after readiness; every token lives, nobody asks; nothing is pinned",
        WATCHED.as_secs(),
        SETTLE.as_secs()
    ));
    let (mut rows, mut kept) = (Vec::new(), Vec::new());
    for size in sizes {
        let site = if size < MANY { Site::new(Options::default())? } else { Site::kept(size, Options::default())? };
        if size < MANY {
            site.fill(0, size, Fleet::Warm)?;
        }
        let config = fs::read_to_string(site.config_file())?;
        let measured = |sweep: &str| -> Result<(Series, Series)> {
            fs::write(site.config_file(), format!("{config}\n[schedule]\nsweep = \"{sweep}\"\n"))?;
            watch(&site, size)
        };
        let (still, still_wakes) = measured(NEVER)?;
        let (swept, swept_wakes) = measured(OFTEN)?;
        let one = (swept.median() - still.median()).max(0.0) * WATCHED.as_secs_f64() / f64::from(PARTS);
        let usual = still.median() + one / USUALLY.as_secs_f64();
        let percent = |share: &Series| share.scaled(100.0).shown(2);
        rows.push(vec![
            thousands(size as f64, 0),
            percent(&still),
            percent(&swept),
            thousands(one * 1000.0, 0),
            format!("{:.2} %", usual * 100.0),
            still_wakes.shown(0),
        ]);
        kept.push(json!({
            "organizations": size,
            "no_sweep": { "share_of_a_core": still.json(), "wakes_per_second": still_wakes.json() },
            "a_sweep_every_20_seconds": { "share_of_a_core": swept.json(), "wakes_per_second": swept_wakes.json() },
            "cpu_seconds_a_sweep": one, "share_of_a_core_with_the_default_schedule": usual,
        }));
    }
    let columns =
        ["organizations", "no sweep %", "one every 20 s %", "CPU ms a sweep", "by default", "threads woken, a second"];
    table(&columns, &rows);
    report.keep("sizes", json!(kept));
    report.finish()
}

/// The share of a core that a worker takes, and how often its threads are woken in a second.
fn watch(place: &Site, organizations: u64) -> Result<(Series, Series)> {
    let mut worker = Worker::start(place, None)?;
    worker.ready()?;
    sleep(SETTLE);
    let (mut share, mut wakes) = (Series::default(), Series::default());
    for _ in 0..PARTS {
        let (cpu, woken, began) = (worker.process.cpu()?, switches(&worker.process)?, Instant::now());
        sleep(WATCHED / PARTS);
        let seconds = began.elapsed().as_secs_f64();
        share.push(worker.process.cpu_since(cpu)?.as_secs_f64() / seconds);
        // A thread that has ended takes its count with it.
        wakes.push(switches(&worker.process)?.saturating_sub(woken) as f64 / seconds);
    }
    let path = format!("/v1/organizations/{}/token", organization(organizations / 2));
    anyhow::ensure!(worker.get(&path)?.is_ok, "the worker gives out no token");
    worker.process.terminate()?;
    Ok((share, wakes))
}

/// How often its threads gave up a core of their own accord, which is how often they were woken.
fn switches(process: &Process) -> Result<u64> {
    let mut all = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", process.id()))? {
        let text = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        all += line.map_or(Ok(0), |line| line.trim().parse::<u64>()).context("a count")?;
    }
    Ok(all)
}
