//! Enrolment by `consentry import`, against one durable commit for each record with nothing around it.
//!
//! The file is the CLI's own input: one line for each organization, each with a refresh token of its own. What is counted is
//! from the start of `consentry import` to its end, reading and checking the file included, and after each round every
//! organization must be there. The queue exchanges meanwhile what was stored, as fast as the provider's default budget
//! lets it.
//!
//! There are two baselines. The first is a file as the journal is, in which each record is written and synced before the
//! next one is begun. The second is the vault itself, given as many commits at once as the import has requests under way: no
//! socket, no JSON, no keeper.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

#[path = "../refresh/issuer.rs"]
mod issuer;

mod bare;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use consentry::model::Usage;
use serde_json::{Value, json};

use self::common::{
    process::{Cores, Process, role},
    report::{Report, Series, table},
    rounds,
    site::{Options, Site, organization, refresh_token},
    worker::Worker,
};

/// As the worker's: what differs is what it does, not where its memory comes from.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 3;
/// Organizations in one import.
const LINES: u64 = 40_000;
/// Records that a baseline writes with one sync each: slow disks do a few hundred a second.
const SYNCED_ALONE: u64 = 1000;
/// The budget of a provider whose configuration says nothing of it, an exchange for each of `max_per_minute`.
const DEFAULT_BUDGET: &str = "max_per_minute = 600";

#[derive(Clone, Copy)]
enum Subject {
    /// One record after the other into a file, each synced.
    Journal,
    /// The vault's commits.
    Vault,
    /// `consentry import` and the worker.
    Import,
}

#[derive(Default)]
struct Measured {
    rate: Series,
    cpu: Series,
    caller_cpu: Series,
}

struct Seen {
    /// Enrolments a second.
    rate: f64,
    /// CPU of each in microseconds: of what stores it, and of what asks for it.
    cpu: f64,
    caller_cpu: f64,
}

fn main() -> Result<()> {
    match role() {
        Some((role, _)) if role == "issuer" => issuer::serve(),
        Some((role, arguments)) if role == "journal" => bare::journal(&arguments, SYNCED_ALONE),
        Some((role, arguments)) if role == "vault" => bare::vault(&arguments, LINES),
        Some((role, _)) => anyhow::bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    let mut report = Report::new("import");
    let cores = Cores::pick();
    report.note(&cores.in_words());
    let mut process = Process::role("issuer", &[], cores.other)?;
    let issuer: SocketAddr = process.line()?.parse()?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let file = folder.path().join("fleet.jsonl");
    fs::write(&file, lines()?)?;

    let subjects = [Subject::Journal, Subject::Vault, Subject::Import];
    let mut measured = subjects.map(|_| Measured::default());
    for _ in 0..rounds(ROUNDS) {
        for (subject, measured) in subjects.iter().zip(&mut measured) {
            let seen = subject.round(&file, issuer, cores)?;
            measured.rate.push(seen.rate);
            measured.cpu.push(seen.cpu);
            measured.caller_cpu.push(seen.caller_cpu);
        }
    }
    let baseline = measured[0].rate.median();
    let mut rows = Vec::new();
    let mut kept = Vec::new();
    for (subject, side) in subjects.iter().zip(&measured) {
        let ratio = side.rate.median() / baseline;
        let caller = matches!(subject, Subject::Import);
        rows.push(vec![
            subject.name().to_owned(),
            side.rate.shown(0),
            format!("{ratio:.2}"),
            side.cpu.shown(0),
            if caller { side.caller_cpu.shown(0) } else { "–".to_owned() },
        ]);
        kept.push(json!({
            "subject": subject.name(),
            "enrolments_per_second": side.rate.json(),
            "cpu_microseconds_per_enrolment": side.cpu.json(),
            "caller_cpu_microseconds_per_enrolment": side.caller_cpu.json(),
            "rate_ratio": ratio,
        }));
    }
    table(&["who stores", "enrolments/s", "ratio", "CPU µs each", "CPU µs of consentry import each"], &rows);
    report.keep("lines", json!(LINES));
    report.keep("subjects", json!(kept));
    process.kill()?;
    report.finish()
}

/// The file that is imported.
fn lines() -> Result<String> {
    let mut text = String::new();
    for number in 0..LINES {
        let (organization, token) = (organization(number), refresh_token(number, Usage::OneTime, 0));
        writeln!(text, r#"{{"organization":"{organization}","provider":"bench","refresh_token":"{token}"}}"#)?;
    }
    Ok(text)
}

impl Subject {
    const fn name(self) -> &'static str {
        match self {
            Self::Journal => "a file, one sync for each record",
            Self::Vault => "the vault's commits, 32 under way",
            Self::Import => "consentry import",
        }
    }

    fn round(self, file: &Path, issuer: SocketAddr, cores: Cores) -> Result<Seen> {
        let site = Site::new(Options { issuer: Some(issuer), ..Options::default() })?;
        let config = fs::read_to_string(site.config_file())?;
        fs::write(site.config_file(), config.replace("max_per_minute = 1000000", DEFAULT_BUDGET))?;
        match self {
            Self::Journal => bare(&site, "journal", SYNCED_ALONE, cores),
            Self::Vault => bare(&site, "vault", LINES, cores),
            Self::Import => import(&site, file, cores),
        }
    }
}

/// A baseline says when it begins to write; then it ends.
fn bare(site: &Site, role: &str, records: u64, cores: Cores) -> Result<Seen> {
    let mut process = Process::role(role, &[site.config_file().display().to_string()], cores.subject)?;
    process.line()?;
    let (started, before) = (Instant::now(), process.cpu()?);
    let used = process.wait_counted()?.saturating_sub(before);
    Ok(Seen { rate: rate(records, started.elapsed()), cpu: each(used, records), caller_cpu: 0.0 })
}

fn import(site: &Site, file: &Path, cores: Cores) -> Result<Seen> {
    let mut worker = Worker::start(site, cores.subject)?;
    worker.ready()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_consentry"));
    command.arg("import").arg(file).arg("--config").arg(site.config_file()).stdout(Stdio::null());
    let (started, before) = (Instant::now(), worker.process.cpu()?);
    let caller = Process::start(&mut command, cores.other)?.wait_counted()?;
    let (took, used) = (started.elapsed(), worker.process.cpu_since(before)?);
    let status: Value = serde_json::from_slice(&worker.get("/v1/status")?.body)?;
    let counted = status["organizations"].as_object().context("the status counts organizations")?;
    let enrolled: u64 = counted.values().filter_map(Value::as_u64).sum();
    ensure!(enrolled == LINES, "{enrolled} organizations instead of {LINES}: {status}");
    worker.process.terminate()?;
    Ok(Seen { rate: rate(LINES, took), cpu: each(used, LINES), caller_cpu: each(caller, LINES) })
}

fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn each(used: Duration, count: u64) -> f64 {
    used.as_secs_f64() * 1e6 / count as f64
}
