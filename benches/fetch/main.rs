//! Fetches on the Unix socket of the real worker, against a bare hyper server that answers the same bytes.
//!
//! Hot: a thousand organizations whose access tokens live and are in the cache, of a thousand and, where
//! `CONSENTRY_BENCH_MILLION` is set, of a million. Cold: twenty thousand in turn, and a cache that holds a few hundred, so that
//! each token is read from the vault. 1, 16 and 64 connections that are kept. With one connection both sides share a core,
//! because a wake-up of another core costs more than the fetch; otherwise each has its own.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

mod bare;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use self::common::{
    caller::{Connection, Load, get, load},
    process::{Cores, Process, on_core, role},
    report::{Report, Series, table, thousands},
    site::{Fleet, Options, Site, organization},
    worker::Worker,
};

/// As the worker's: what differs is what it does, not where its memory comes from.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many organizations are asked for in turn where their tokens are to be in the cache.
const HOT: u64 = 1000;
const MILLION: u64 = 1_000_000;
/// As many where none is to be in the cache, and what the cache is then.
const COLD: u64 = 20_000;
const COLD_CACHE: &str = "1MB";
const CONNECTIONS: [usize; 3] = [1, 16, 64];
/// Unless `CONSENTRY_BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(300);

/// One server with what was measured of it.
struct Side<'a> {
    name: String,
    process: &'a Process,
    socket: PathBuf,
    rate: Series,
    cpu: Series,
    p50: Series,
    p99: Series,
    bytes: usize,
}

fn main() -> Result<()> {
    match role() {
        Some((role, arguments)) if role == "bare" => bare::serve(&arguments),
        Some((role, _)) => anyhow::bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    let mut report = Report::new("fetch");
    let cores = Cores::pick();
    report.note(&cores.in_words());
    let mut rows = Vec::new();
    let hot = measure_hot(&mut report, &cores, &mut rows)?;
    report.keep("hot", hot);
    report.keep("cold", measure_cold(&cores, &mut rows)?);
    let columns = [
        "connections",
        "server",
        "requests/s",
        "ratio",
        "CPU µs a request",
        "ratio",
        "p50 / p99 µs",
        "ratio of p99",
        "bytes an answer",
    ];
    table(&columns, &rows);
    report.finish()
}

/// A thousand organizations in the cache, of a thousand and perhaps of a million.
fn measure_hot(report: &mut Report, cores: &Cores, rows: &mut Vec<Vec<String>>) -> Result<Value> {
    let site = Site::new(Options::default())?;
    site.fill(0, HOT, Fleet::Warm)?;
    let mut sites = vec![(HOT, site)];
    if std::env::var_os("CONSENTRY_BENCH_MILLION").is_some() {
        sites.push((MILLION, Site::kept(MILLION, Options::default())?));
    }
    let mut workers = Vec::new();
    for (count, site) in &sites {
        let mut worker = Worker::start(site, cores.subject)?;
        let ready = worker.ready()?;
        report.note(&format!(
            "{} organizations were ready after {:.1} s",
            thousands(*count as f64, 0),
            ready.as_secs_f64()
        ));
        workers.push((format!("consentry, hot of {}", thousands(*count as f64, 0)), worker));
    }
    let kept = against_bare(cores, &sites[0].1, &workers, HOT, rows)?;
    workers.into_iter().try_for_each(|(_, worker)| worker.process.terminate())?;
    Ok(kept)
}

/// Organizations whose tokens are never in the cache when they are asked for.
fn measure_cold(cores: &Cores, rows: &mut Vec<Vec<String>>) -> Result<Value> {
    let site = Site::new(Options { token_cache: COLD_CACHE, ..Options::default() })?;
    site.fill(0, COLD, Fleet::Warm)?;
    let mut worker = Worker::start(&site, cores.subject)?;
    worker.ready()?;
    let workers = [(format!("consentry, cold, {} in turn", thousands(COLD as f64, 0)), worker)];
    let kept = against_bare(cores, &site, &workers, COLD, rows)?;
    let [(_, worker)] = workers;
    worker.process.terminate()?;
    Ok(kept)
}

/// Measures workers and a bare server that gives the same answer, in turns; the first `asked` organizations are asked for.
fn against_bare(
    cores: &Cores,
    site: &Site,
    workers: &[(String, Worker)],
    asked: u64,
    rows: &mut Vec<Vec<String>>,
) -> Result<Value> {
    let paths = (0..asked).map(|number| format!("/v1/organizations/{}/token", organization(number)));
    let requests: Vec<Vec<u8>> = paths.map(|path| get(&path)).collect();
    let answer = workers[0].1.get(&format!("/v1/organizations/{}/token", organization(0)))?;
    ensure!(answer.is_ok, "the first fetch failed: {}", answer.head);
    let (bare_socket, answer_file) = (site.socket().with_file_name("bare.sock"), site.log().with_file_name("answer"));
    bare::write(&answer_file, &answer)?;
    let arguments = [&bare_socket, &answer_file].map(|path| path.display().to_string());
    let mut bare = Process::role("bare", &arguments, cores.subject)?;
    bare.line()?;

    let mut kept = Vec::new();
    for connections in CONNECTIONS {
        let mut sides = vec![Side::new("bare hyper", &bare, &bare_socket)];
        sides.extend(workers.iter().map(|(name, worker)| Side::new(name, &worker.process, worker.socket())));
        // With one connection the two take turns, and never run at once.
        let core = if connections == 1 { cores.subject } else { cores.other };
        for _ in 0..rounds() {
            for side in &mut sides {
                on_core(core, || side.round(connections, &requests))??;
            }
        }
        let baseline = &sides[0];
        rows.extend(sides.iter().map(|side| side.row(connections, baseline)));
        kept.push(json!({
            "connections": connections,
            "baseline": baseline.json(),
            "subjects": sides[1..].iter().map(|side| side.json_against(baseline)).collect::<Vec<_>>(),
        }));
    }
    bare.kill()?;
    Ok(json!({ "organizations": asked, "connections": kept }))
}

fn rounds() -> usize {
    std::env::var("CONSENTRY_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

fn ratio(series: &Series, of: &Series) -> f64 {
    series.median() / of.median()
}

impl<'a> Side<'a> {
    fn new(name: &str, process: &'a Process, socket: &Path) -> Self {
        Self {
            name: name.to_owned(),
            process,
            socket: socket.to_owned(),
            rate: Series::default(),
            cpu: Series::default(),
            p50: Series::default(),
            p99: Series::default(),
            bytes: 0,
        }
    }

    fn row(&self, connections: usize, baseline: &Self) -> Vec<String> {
        vec![
            connections.to_string(),
            self.name.clone(),
            self.rate.shown(0),
            format!("{:.2}", ratio(&self.rate, &baseline.rate)),
            self.cpu.shown(1),
            format!("{:.2}", ratio(&self.cpu, &baseline.cpu)),
            format!("{:.0} / {:.0}", self.p50.median(), self.p99.median()),
            format!("{:.2}", ratio(&self.p99, &baseline.p99)),
            self.bytes.to_string(),
        ]
    }

    fn round(&mut self, connections: usize, requests: &[Vec<u8>]) -> Result<()> {
        let connect = || Ok(Connection::new(UnixStream::connect(&self.socket)?));
        let mut connections: Vec<_> = (0..connections).map(|_| connect()).collect::<Result<_>>()?;
        load(&mut connections, requests, WARM_UP)?;
        let before = self.process.cpu()?;
        let mut seen: Load = load(&mut connections, requests, ROUND)?;
        let cpu = self.process.cpu_since(before)?;
        self.rate.push(seen.rate());
        self.cpu.push(cpu.as_secs_f64() * 1e6 / seen.answers as f64);
        self.p50.push(seen.percentile(50));
        self.p99.push(seen.percentile(99));
        self.bytes = seen.bytes / seen.answers.max(1);
        Ok(())
    }

    fn json_against(&self, baseline: &Self) -> Value {
        let mut json = self.json();
        json["rate_ratio"] = json!(ratio(&self.rate, &baseline.rate));
        json["cpu_ratio"] = json!(ratio(&self.cpu, &baseline.cpu));
        json["p99_ratio"] = json!(ratio(&self.p99, &baseline.p99));
        json
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "requests_per_second": self.rate.json(),
            "cpu_microseconds_per_request": self.cpu.json(),
            "p50_microseconds": self.p50.json(),
            "p99_microseconds": self.p99.json(),
            "bytes_per_answer": self.bytes,
        })
    }
}
