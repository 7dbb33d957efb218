//! Workers that share a vault in PostgreSQL, against a worker that has one in files: fetches at each of three, refreshes by one, two
//! and three of them, and a fleet that three refresh.
//!
//! The cluster is that of the tests: three servers of Debian's PostgreSQL on this machine, one of which has to confirm every commit of the
//! primary. What a network between machines costs is not in these figures. Where its files are, `TMPDIR` says.
//!
//! `CONSENTRY_BENCH_ORGANIZATIONS=100000` refreshes so large a fleet, which takes a quarter of an hour. Every token is a one-time token, and the issuer
//! refuses one that comes twice: then the benchmark fails.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

#[path = "../../tests/it/postgres/cluster.rs"]
#[expect(dead_code, reason = "nothing fails here")]
mod cluster;

mod harness;
mod issuer;
mod served;
mod shared;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use self::{
    cluster::{Cluster, is_installed},
    common::{
        process::{Cores, role},
        report::{Report, Series, table, thousands},
        rounds,
    },
    issuer::Issuer,
    shared::{Refreshed, Servers},
};

/// As the worker's: what differs is what it does, not where its memory comes from.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Unless `CONSENTRY_BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 3;
/// How many workers share the vault; none: one that has its own in files.
const WORKERS: [usize; 4] = [0, 1, 2, 3];
/// How many organizations are refreshed in one round.
const EXCHANGES: u64 = 1500;
/// How large the fleet is, unless the environment says otherwise.
const FLEET: u64 = 6000;
/// How long a round may take, and how much longer for each organization.
const PATIENCE: Duration = Duration::from_mins(2);
const PATIENCE_EACH: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    match role() {
        Some((role, _)) if role == "issuer" => issuer::serve(),
        Some((role, _)) => bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    ensure!(is_installed(), "it needs Debian's PostgreSQL 15 and PgBouncer: tests/peers/need");
    let fleet = match std::env::var("CONSENTRY_BENCH_ORGANIZATIONS") {
        Ok(number) => number.parse().context("CONSENTRY_BENCH_ORGANIZATIONS is a number")?,
        Err(_) => FLEET,
    };
    let mut report = Report::new("replicas");
    let cluster = Cluster::start();
    let servers = Servers::of(&cluster)?;
    report.note("fetches: the workers share one core, and the caller has another; all else: nothing is pinned");
    report.note("the issuer and all three database servers are on the same machine");
    served::measure(&mut report, &cluster, Cores::pick())?;
    let issuer = Issuer::start()?;
    refreshes(&mut report, &cluster, &servers, &issuer)?;
    whole_fleet(&mut report, &cluster, &servers, &issuer, fleet)?;
    issuer.end()?;
    report.finish()
}

/// The same refreshes by a worker with files, and by one, two and three that share.
fn refreshes(report: &mut Report, cluster: &Cluster, servers: &Servers, issuer: &Issuer) -> Result<()> {
    let mut sides = WORKERS.map(|_| <[Series; 4]>::default());
    for round in 0..rounds(ROUNDS) {
        for (workers, [rate, worker_cpu, database_cpu, in_vain]) in WORKERS.into_iter().zip(&mut sides) {
            let schema = format!("refresh_{round}_{workers}");
            let seen = shared::refresh(cluster, servers, issuer, &schema, workers, EXCHANGES)?;
            rate.push(seen.rate);
            worker_cpu.push(seen.worker_cpu);
            database_cpu.push(seen.database_cpu);
            in_vain.push(seen.in_vain);
        }
    }
    let baseline = sides[0][0].median();
    let rows = WORKERS.into_iter().zip(&sides).map(|(workers, [rate, worker_cpu, database_cpu, in_vain])| {
        vec![
            shared::name(workers),
            rate.shown(0),
            format!("{:.2}", rate.median() / baseline),
            worker_cpu.shown(0),
            database_cpu.shown(0),
            format!("{:.2}", in_vain.median()),
        ]
    });
    let columns = [
        "who refreshes",
        "exchanges/s",
        "ratio",
        "workers' CPU µs an exchange",
        "servers' CPU µs an exchange",
        "claims asked in vain",
    ];
    table(&columns, &rows.collect::<Vec<_>>());
    let kept = WORKERS.into_iter().zip(&sides).map(|(workers, [rate, worker_cpu, database_cpu, in_vain])| {
        json!({
            "sharing": workers,
            "exchanges_per_second": rate.json(),
            "rate_ratio": rate.median() / baseline,
            "worker_cpu_microseconds_per_exchange": worker_cpu.json(),
            "database_cpu_microseconds_per_exchange": database_cpu.json(),
            "claims_in_vain_per_exchange": in_vain.json(),
        })
    });
    report.keep("exchanges", json!(EXCHANGES));
    report.keep("refreshes", kept.collect());
    Ok(())
}

/// A fleet that three workers refresh, each organization once.
fn whole_fleet(
    report: &mut Report,
    cluster: &Cluster,
    servers: &Servers,
    issuer: &Issuer,
    organizations: u64,
) -> Result<()> {
    let Refreshed { rate, worker_cpu, database_cpu, took, shares, in_vain } =
        shared::refresh(cluster, servers, issuer, "fleet", 3, organizations)?;
    let shares: Vec<String> = shares.iter().map(|share| thousands(*share as f64, 0)).collect();
    table(
        &[
            "organizations",
            "each refreshed once after s",
            "exchanges/s",
            "by each worker",
            "workers' CPU µs",
            "servers' CPU µs",
            "claims in vain",
        ],
        &[vec![
            thousands(organizations as f64, 0),
            thousands(took.as_secs_f64(), 1),
            thousands(rate, 0),
            shares.join(" / "),
            thousands(worker_cpu, 0),
            thousands(database_cpu, 0),
            format!("{in_vain:.2}"),
        ]],
    );
    report.keep(
        "fleet",
        json!({
            "organizations": organizations,
            "seconds": took.as_secs_f64(),
            "exchanges_per_second": rate,
            "by_each_worker": shares,
            "worker_cpu_microseconds_per_exchange": worker_cpu,
            "database_cpu_microseconds_per_exchange": database_cpu,
            "claims_in_vain_per_exchange": in_vain,
        }),
    );
    Ok(())
}
