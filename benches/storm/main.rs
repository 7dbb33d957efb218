//! A storm: the tokens of many organizations lapse together while the issuer is down, and then all is well. How fast the
//! provider's budget is used, what callers of living tokens notice of it, and how long callers wait for a lapsed one.
//!
//! The budget is a minute's worth of exchanges, one for each organization. Living tokens are fetched by callers who pause
//! between two fetches, as real ones do, during the storm and after it, when nothing is due: that is the baseline. Others
//! ask meanwhile for organizations whose tokens have lapsed, one after the other.
//!
//! `CONSENTRY_BENCH_ORGANIZATIONS=100000` runs the whole.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

mod issuer;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use consentry::model::Usage;
use serde_json::{Value, json};

use self::common::{
    caller::{Connection, get},
    process::{Process, role},
    report::{Report, table, thousands},
    site::{Fleet, Options, Site, organization},
    worker::Worker,
};

/// How many tokens lapse together, unless the environment says otherwise; and how many exchanges a minute there may be.
const LAPSED: u64 = 20_000;
/// How many organizations have a token that lives.
const LIVING: u64 = 1000;
/// Callers of living tokens, each on a connection of its own, and how long each pauses.
const CALLERS: u64 = 4;
const PAUSE: Duration = Duration::from_millis(2);
/// How long the issuer stays down once the worker has noticed, and how long is looked at when all is over.
const OUTAGE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(8);
/// How long the storm may last.
const PATIENCE: Duration = Duration::from_mins(4);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The budget lets two seconds' worth through at once; that much is not counted.
const BURST_SECONDS: f64 = 2.0;
/// So few at most were tried while the issuer was down, and wait for their back-off: the drain is over without them.
const TRIED: u64 = 10;

fn main() -> Result<()> {
    match role() {
        Some((role, _)) if role == "issuer" => issuer::serve(),
        Some((role, _)) => bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    let lapsed = match std::env::var("CONSENTRY_BENCH_ORGANIZATIONS") {
        Ok(number) => number.parse().context("CONSENTRY_BENCH_ORGANIZATIONS is a number")?,
        Err(_) => LAPSED,
    };
    let mut report = Report::new("storm");
    report.note(&format!(
        "{} one-time tokens lapse together, with a budget of as many exchanges a minute; nothing is pinned",
        thousands(lapsed as f64, 0)
    ));
    let mut process = Process::role("issuer", &[], None)?;
    let issuer = Issuer { address: process.line()?.parse()?, process };
    issuer.tell("/down")?;
    let site = Site::new(Options { issuer: Some(issuer.address), ..Options::default() })?;
    let text = fs::read_to_string(site.config_file())?;
    fs::write(site.config_file(), text.replace("max_per_minute = 1000000", &format!("max_per_minute = {lapsed}")))?;
    site.fill(0, lapsed, Fleet::Due(Usage::OneTime))?;
    site.fill(lapsed, lapsed + LIVING, Fleet::Warm)?;
    let mut worker = Worker::start(&site, None)?;
    worker.ready()?;
    until(|| Ok(frozen(&worker)?.then_some(())))?;
    sleep(OUTAGE);

    let living = Callers::start(&site, move |caller| living(&caller, lapsed));
    let waiting = Callers::start_one(&site, move |caller| waiting(&caller, lapsed));
    let well = Instant::now();
    issuer.tell("/well")?;
    let begun = issuer.reaches(1)?;
    let first = issuer.reaches(lapsed / 10)?;
    let cpu = worker.process.cpu()?;
    let last = issuer.reaches(lapsed - lapsed / 20)?;
    let cpu = worker.process.cpu_since(cpu)?;
    let all = issuer.reaches(lapsed - TRIED)?;
    let mut stormy = living.end()?;
    let mut waited = waiting.end()?;
    until(|| Ok((active(&worker)? + TRIED >= lapsed + LIVING).then_some(())))?;
    ensure!(issuer.exchanges()? <= lapsed, "{} exchanges for {lapsed} tokens", issuer.exchanges()?);

    let calm = Callers::start(&site, move |caller| self::living(&caller, lapsed));
    sleep(QUIET);
    let mut calm = calm.end()?;

    let budget = lapsed as f64 / 60.0;
    let rate = (last.count - first.count) as f64 / (last.at - first.at).as_secs_f64();
    let drain = all.at - begun.at;
    let whole = (lapsed as f64 - budget * BURST_SECONDS) / drain.as_secs_f64() / budget;
    table(
        &[
            "budget, exchanges/s",
            "between a tenth and the last twentieth",
            "share",
            "whole drain s",
            "share",
            "CPU µs an exchange",
        ],
        &[vec![
            thousands(budget, 0),
            thousands(rate, 0),
            format!("{:.3}", rate / budget),
            thousands(drain.as_secs_f64(), 1),
            format!("{whole:.3}"),
            thousands(cpu.as_secs_f64() * 1e6 / (last.count - first.count) as f64, 0),
        ]],
    );
    report.note(&format!(
        "the first exchange came {:.1} s after the issuer was well again; callers' fetches are in the CPU",
        (begun.at - well).as_secs_f64()
    ));
    let ratio = percentile(&mut stormy, 99) / percentile(&mut calm, 99);
    let row = |name: &str, latencies: &mut [Duration], ratio: String| {
        let mut cells = vec![name.to_owned(), thousands(latencies.len() as f64, 0)];
        cells.extend([50, 99].map(|percent| thousands(percentile(latencies, percent) * 1e6, 0)));
        cells.push(ratio);
        cells
    };
    table(
        &["fetches", "count", "p50 µs", "p99 µs", "p99 ratio"],
        &[
            row("of living tokens, nothing due", &mut calm, "1.00".to_owned()),
            row("of living tokens, in the storm", &mut stormy, format!("{ratio:.2}")),
            row("of lapsed tokens, in the storm", &mut waited, "–".to_owned()),
        ],
    );
    report.keep("lapsed", json!(lapsed));
    report.keep("budget_per_second", json!(budget));
    report.keep("exchanges_per_second", json!(rate));
    report.keep("share_of_the_budget", json!({ "steady": rate / budget, "whole": whole }));
    report.keep("drained_in_seconds", json!(drain.as_secs_f64()));
    report.keep("noticed_after_seconds", json!((begun.at - well).as_secs_f64()));
    for (name, latencies) in [("calm", &mut calm), ("storm", &mut stormy), ("waited", &mut waited)] {
        let percentiles = [50, 90, 99].map(|percent| percentile(latencies, percent));
        report.keep(name, json!({ "count": latencies.len(), "p50_p90_p99_seconds": percentiles }));
    }
    worker.process.terminate()?;
    issuer.process.kill()?;
    report.finish()
}

/// The issuer's process, and how far it is.
struct Issuer {
    address: SocketAddr,
    process: Process,
}

/// So many exchanges were answered at this moment.
struct Reached {
    count: u64,
    at: Instant,
}

impl Issuer {
    fn tell(&self, path: &str) -> Result<u64> {
        let mut connection = Connection::new(TcpStream::connect(self.address)?);
        connection.ask(&get(path))?;
        let answer = connection.answer()?;
        Ok(std::str::from_utf8(&answer.body)?.parse()?)
    }

    fn exchanges(&self) -> Result<u64> {
        self.tell("/count")
    }

    fn reaches(&self, count: u64) -> Result<Reached> {
        until(|| {
            let seen = self.exchanges()?;
            Ok((seen >= count).then(|| Reached { count: seen, at: Instant::now() }))
        })
    }
}

/// Looks until there is something.
fn until<T>(mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "it did not come within {PATIENCE:?}");
        sleep(LOOK_EVERY);
    }
}

fn status(worker: &Worker) -> Result<Value> {
    Ok(serde_json::from_slice(&worker.get("/v1/status")?.body)?)
}

/// Whether the worker has noticed that the issuer is down.
fn frozen(worker: &Worker) -> Result<bool> {
    Ok(status(worker)?["providers"][0]["circuit"] == "open")
}

/// How many organizations have what they need.
fn active(worker: &Worker) -> Result<u64> {
    status(worker)?["organizations"]["active"].as_u64().context("the status counts organizations")
}

/// The latency below which `percent` of them are, in seconds.
fn percentile(latencies: &mut [Duration], percent: usize) -> f64 {
    latencies.sort_unstable();
    let last = latencies.len().saturating_sub(1);
    latencies.get(last * percent / 100).map_or(f64::NAN, Duration::as_secs_f64)
}

/// Callers until they are told to end.
struct Callers {
    threads: Vec<JoinHandle<Result<Vec<Duration>>>>,
    ended: Arc<AtomicBool>,
}

/// One of them.
struct Caller {
    number: u64,
    socket: PathBuf,
    ended: Arc<AtomicBool>,
}

impl Callers {
    fn start(site: &Site, call: impl Fn(Caller) -> Result<Vec<Duration>> + Send + Copy + 'static) -> Self {
        Self::of(site, CALLERS, call)
    }

    fn start_one(site: &Site, call: impl Fn(Caller) -> Result<Vec<Duration>> + Send + Copy + 'static) -> Self {
        Self::of(site, 1, call)
    }

    fn of(site: &Site, count: u64, call: impl Fn(Caller) -> Result<Vec<Duration>> + Send + Copy + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|number| {
            let caller = Caller { number, socket: site.socket(), ended: Arc::clone(&ended) };
            thread::spawn(move || call(caller))
        });
        Self { threads: threads.collect(), ended }
    }

    fn end(self) -> Result<Vec<Duration>> {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in self.threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??);
        }
        Ok(all)
    }
}

impl Caller {
    fn is_told_to_end(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn connect(&self) -> Result<Connection<UnixStream>> {
        Ok(Connection::new(UnixStream::connect(&self.socket)?))
    }
}

/// Fetches living tokens, which must always be had.
fn living(caller: &Caller, first: u64) -> Result<Vec<Duration>> {
    let mut connection = caller.connect()?;
    let mut latencies = Vec::new();
    for number in (first..first + LIVING).cycle().skip(usize::try_from(caller.number * LIVING / CALLERS)?) {
        if caller.is_told_to_end() {
            break;
        }
        let asked = Instant::now();
        connection.ask(&get(&format!("/v1/organizations/{}/token", organization(number))))?;
        let answer = connection.answer()?;
        ensure!(answer.is_ok, "a living token was refused: {}", answer.head);
        latencies.push(asked.elapsed());
        sleep(PAUSE);
    }
    Ok(latencies)
}

/// Fetches tokens that have lapsed, and tells how long that took. One that was refreshed meanwhile does not count, and
/// neither does one that is refused because the outage is not over.
fn waiting(caller: &Caller, lapsed: u64) -> Result<Vec<Duration>> {
    /// So that they are asked in no order that the worker has.
    const STEP: u64 = 7919;
    let mut connection = caller.connect()?;
    let mut refreshed_at = |organization: &str| -> Result<Value> {
        connection.ask(&get(&format!("/v1/organizations/{organization}")))?;
        let about: Value = serde_json::from_slice(&connection.answer()?.body)?;
        Ok(about["refreshed_at"].clone())
    };
    // All were filled as if they had been refreshed at the same moment.
    let before = refreshed_at(&organization(0))?;
    let mut connection = caller.connect()?;
    let mut latencies = Vec::new();
    for turn in 0..lapsed {
        if caller.is_told_to_end() {
            break;
        }
        let organization = organization(turn * STEP % lapsed);
        let is_lapsed = refreshed_at(&organization)? == before;
        let asked = Instant::now();
        connection.ask(&get(&format!("/v1/organizations/{organization}/token")))?;
        if connection.answer()?.is_ok && is_lapsed {
            latencies.push(asked.elapsed());
        }
        sleep(10 * PAUSE);
    }
    Ok(latencies)
}
