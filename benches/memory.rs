//! What one more organization takes of the worker's memory: the worker with few and with many, after it has loaded them,
//! after each was fetched once, and after each was refreshed once, as within an hour.
//!
//! Access tokens are in the vault and next to none in the caches, which are bounded and counted apart. A million organizations
//! are measured as well where `CONSENTRY_BENCH_MILLION` is set; to refresh them takes minutes.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;
#[path = "refresh/issuer.rs"]
mod issuer;

use std::{
    collections::BTreeMap,
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use consentry::model::Usage;
use serde_json::{Value, json};

use self::common::{
    caller::{Connection, get},
    process::{Process, role},
    report::{Report, table, thousands},
    site::{Fleet, Options, Site, organization},
    worker::Worker,
};

const SIZES: [u64; 3] = [10, 25_000, 100_000];
const MILLION: u64 = 1_000_000;
/// How long a worker that has nothing to do any more is left alone before it is looked at: threads that have nothing to do end
/// after ten seconds, and what they had put by goes with them.
const SETTLE: Duration = Duration::from_secs(20);
/// Connections on which every organization is fetched.
const CONNECTIONS: usize = 16;
/// How often the issuer is asked how far the refreshes are, and how long they may take.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_mins(30);

/// The least caches there are: what is measured is the rest.
const LEAST: Options =
    Options { vault_cache: "1MB", token_cache: "1MB", issuer: None, authority: None, database: None };

fn main() -> Result<()> {
    match role() {
        Some((role, _)) if role == "issuer" => issuer::serve(),
        Some((role, _)) => anyhow::bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    let mut found = Found::default();
    let million = std::env::var_os("CONSENTRY_BENCH_MILLION").is_some();
    let mut site = Site::new(LEAST)?;
    let mut filled = 0;
    let sizes = || SIZES.into_iter().chain(million.then_some(MILLION));
    for size in sizes() {
        if size == MILLION {
            site = Site::kept(size, LEAST)?;
        } else {
            site.set(LEAST)?;
            site.fill(filled, size, Fleet::Warm)?;
            filled = size;
        }
        let mut worker = Worker::start(&site, None)?;
        worker.ready()?;
        found.look(&worker, "loaded", "1 MB each", size)?;
        fetch_all(&site, size)?;
        found.look(&worker, "each fetched", "1 MB each", size)?;
        worker.process.terminate()?;
        site.set(Options::default())?;
        let mut worker = Worker::start(&site, None)?;
        worker.ready()?;
        found.look(&worker, "loaded", "the defaults", size)?;
        worker.process.terminate()?;
    }
    let mut issuer = Process::role("issuer", &[], None)?;
    let address = issuer.line()?.parse()?;
    let mut done = 0;
    for size in sizes() {
        let site = Site::new(Options { issuer: Some(address), ..LEAST })?;
        site.fill(0, size, Fleet::Due(Usage::Reuse))?;
        let mut worker = Worker::start(&site, None)?;
        worker.ready()?;
        done += size;
        until_exchanged(address, done)?;
        found.look(&worker, "each refreshed", "1 MB each", size)?;
        worker.process.terminate()?;
    }
    issuer.kill()?;
    found.report()
}

/// Every organization once.
fn fetch_all(site: &Site, count: u64) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::new(UnixStream::connect(site.socket())?));
    }
    let numbers: Vec<u64> = (0..count).collect();
    for some in numbers.chunks(CONNECTIONS) {
        for (number, connection) in some.iter().zip(&mut connections) {
            connection.ask(&get(&format!("/v1/organizations/{}/token", organization(*number))))?;
        }
        for (_, connection) in some.iter().zip(&mut connections) {
            let answer = connection.answer()?;
            ensure!(answer.is_ok, "an organization was not served: {}", answer.head);
        }
    }
    Ok(())
}

/// Waits until the issuer has answered so many exchanges.
fn until_exchanged(issuer: std::net::SocketAddr, count: u64) -> Result<()> {
    let mut connection = Connection::new(std::net::TcpStream::connect(issuer)?);
    let end = Instant::now() + PATIENCE;
    loop {
        connection.ask(&get("/count"))?;
        let answer = connection.answer()?;
        let (exchanges, _) = std::str::from_utf8(&answer.body)?.split_once(' ').context("two counts")?;
        if exchanges.parse::<u64>()? >= count {
            return Ok(());
        }
        ensure!(Instant::now() < end, "after {PATIENCE:?} there are {exchanges} of {count} exchanges");
        sleep(LOOK_EVERY);
    }
}

/// What was seen, and of each way to look the sizes and the memory of the fleets, the smallest first.
#[derive(Default)]
struct Found {
    before: BTreeMap<(&'static str, &'static str), Vec<(u64, u64)>>,
    rows: Vec<Vec<String>>,
    kept: Vec<Value>,
}

impl Found {
    fn look(&mut self, worker: &Worker, when: &'static str, caches: &'static str, size: u64) -> Result<()> {
        sleep(SETTLE);
        let resident = worker.process.status_bytes("VmRSS")?;
        let own = worker.process.status_bytes("RssAnon")?;
        let peak = worker.process.status_bytes("VmHWM")?;
        let before = self.before.entry((when, caches)).or_default();
        let further =
            |than: Option<&(u64, u64)>| than.map(|(fewer, less)| (own as f64 - *less as f64) / (size - fewer) as f64);
        let (all, last) = (further(before.first()), further(before.last()));
        before.push((size, own));
        let mebibytes = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        self.rows.push(vec![
            when.to_owned(),
            caches.to_owned(),
            thousands(size as f64, 0),
            mebibytes(resident),
            mebibytes(own),
            mebibytes(peak),
            all.map_or_else(|| "–".to_owned(), |each| thousands(each, 0)),
            last.map_or_else(|| "–".to_owned(), |each| thousands(each, 0)),
        ]);
        self.kept.push(json!({
            "when": when, "caches": caches, "organizations": size, "resident_bytes": resident, "anonymous_bytes": own,
            "peak_bytes": peak, "bytes_per_further_organization_than_ten": all,
            "bytes_per_further_organization_than_the_size_before": last,
        }));
        Ok(())
    }

    fn report(mut self) -> Result<()> {
        let mut report = Report::new("memory");
        report.note(
            "20 s after the worker had nothing to do any more; what is mapped from files is in the resident set alone",
        );
        self.rows.sort_by(|a, b| (&a[1], &a[0]).cmp(&(&b[1], &b[0])));
        let columns = [
            "after",
            "caches",
            "organizations",
            "resident MiB",
            "anonymous",
            "at most",
            "bytes each, beyond 10",
            "beyond the last",
        ];
        table(&columns, &self.rows);
        report.keep("seen", json!(self.kept));
        report.finish()
    }
}
