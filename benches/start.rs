//! From the start of the process to the first token, and to readiness, against reading and opening every record of the
//! same vault in a bare loop.
//!
//! The files are in the page cache, as after a restart of the worker alone. A million organizations take a minute to
//! fill, are kept for later runs, and are measured where `CONSENTRY_BENCH_MILLION` is set; where that is `only`, nothing else
//! is. `CONSENTRY_BENCH_ROUNDS` says how often each is measured.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use consentry::{
    config::{Config, locate},
    vault::Change,
};
use serde_json::{Value, json};

use self::common::{
    process::{Process, role},
    report::{Report, Series, say, table, thousands},
    site::{Fleet, Options, Site, open, organization},
    worker::Worker,
};

/// As the worker's: what differs is what it does, not where its memory comes from.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often each is measured, unless `CONSENTRY_BENCH_ROUNDS` says otherwise.
const ROUNDS: u64 = 5;
/// From so many organizations on a filled vault is kept for later runs.
const MANY: u64 = 1_000_000;
/// Grants in one commit while all are written anew.
const WRITTEN_AT_ONCE: usize = 250;

/// What was measured of one way to start.
#[derive(Default)]
struct Start {
    first_token: Series,
    ready: Series,
    cpu: Series,
}

fn main() -> Result<()> {
    match role() {
        Some((role, arguments)) if role == "read" => read(&arguments),
        Some((role, arguments)) if role == "write" => write(&arguments),
        Some((role, _)) => anyhow::bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    let mut report = Report::new("start");
    let mut sizes = vec![1000, 100_000];
    if let Ok(million) = std::env::var("CONSENTRY_BENCH_MILLION") {
        sizes.retain(|_| million != "only");
        sizes.push(MANY);
    }
    let rounds = std::env::var("CONSENTRY_BENCH_ROUNDS").map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    report.note("nothing is pinned; the vault's files are in the page cache");
    let mut rows = Vec::new();
    let mut kept = Vec::new();
    for size in sizes {
        let started = Instant::now();
        let site = if size < MANY { Site::new(Options::default())? } else { Site::kept(size, Options::default())? };
        if size < MANY {
            site.fill(0, size, Fleet::Warm)?;
        }
        let filled = started.elapsed();
        report.note(&format!("{} organizations filled in {:.1} s", thousands(size as f64, 0), filled.as_secs_f64()));

        let (mut opened, mut bare, mut bare_cpu) = (Series::default(), Series::default(), Series::default());
        let (mut clean, mut crashed, mut written) = (Start::default(), Start::default(), Start::default());
        for round in 0..rounds {
            let arguments = [site.config_file().display().to_string()];
            let started = Instant::now();
            let mut process = Process::role("read", &arguments, None)?;
            let seen: Value = serde_json::from_str(&process.line()?)?;
            bare.push(started.elapsed().as_secs_f64());
            bare_cpu.push(process.cpu()?.as_secs_f64());
            opened.push(seen["opened"].as_f64().context("when it was open")?);
            process.wait()?;

            // Another organization each time, so that nothing has warmed it.
            let asked = organization(size / 2 + round);
            clean.round(&site, &asked)?.process.kill()?;
            crashed.round(&site, &asked)?.process.kill()?;
            // As after many days: everything was written anew since the engine was opened last.
            let mut process = Process::role("write", &arguments, None)?;
            process.line()?;
            process.kill()?;
            written.round(&site, &asked)?.process.terminate()?;
        }
        rows.push(row(size, "bare loop", None, &bare, &bare_cpu, &bare));
        rows.push(row(size, "consentry", Some(&clean.first_token), &clean.ready, &clean.cpu, &bare));
        let name = "consentry, after it was killed";
        rows.push(row(size, name, Some(&crashed.first_token), &crashed.ready, &crashed.cpu, &bare));
        let name = "consentry, killed after all was written anew";
        rows.push(row(size, name, Some(&written.first_token), &written.ready, &written.cpu, &bare));
        kept.push(json!({
            "organizations": size,
            "filled_in_seconds": filled.as_secs_f64(),
            "bare_loop": { "opened_seconds": opened.json(), "all_read_seconds": bare.json(), "cpu_seconds": bare_cpu.json() },
            "clean": clean.json(),
            "killed": crashed.json(),
            "killed_after_all_was_written_anew": written.json(),
            "ready_ratio": clean.ready.median() / bare.median(),
        }));
    }
    let columns = ["organizations", "what starts", "first token ms", "ready ms", "ratio", "CPU ms until then"];
    table(&columns, &rows);
    report.keep("sizes", json!(kept));
    report.finish()
}

fn row(size: u64, name: &str, first: Option<&Series>, ready: &Series, cpu: &Series, bare: &Series) -> Vec<String> {
    let ms = |series: &Series| series.scaled(1000.0).shown(0);
    vec![
        thousands(size as f64, 0),
        name.to_owned(),
        first.map_or_else(|| "–".to_owned(), ms),
        ms(ready),
        format!("{:.2}", ready.median() / bare.median()),
        ms(cpu),
    ]
}

impl Start {
    fn round(&mut self, site: &Site, organization: &str) -> Result<Worker> {
        let mut worker = Worker::start(site, None)?;
        let first = worker.until_ok(&format!("/v1/organizations/{organization}/token"))?;
        let ready = worker.ready()?;
        self.first_token.push(first.as_secs_f64());
        self.ready.push(ready.as_secs_f64());
        self.cpu.push(worker.process.cpu()?.as_secs_f64());
        Ok(worker)
    }

    fn json(&self) -> Value {
        json!({
            "first_token_seconds": self.first_token.json(),
            "ready_seconds": self.ready.json(),
            "cpu_seconds": self.cpu.json(),
        })
    }
}

/// Writes every grant anew, says so, and waits to be killed.
fn write(arguments: &[String]) -> Result<()> {
    let file = arguments.first().context("a configuration")?;
    let vault = open(&Config::load(&locate(Some(file.as_ref()))?)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let mut grants = Vec::new();
        vault
            .for_each_grant(&mut |stored| {
                grants.push(stored.value.id);
                Ok(())
            })
            .await?;
        for some in grants.chunks(WRITTEN_AT_ONCE) {
            let mut changes = Vec::with_capacity(some.len());
            for id in some {
                let stored = vault.grant(*id).await?.context("a grant is gone")?;
                changes.push(Change::PutGrant(Box::new(stored.value)));
            }
            vault.commit(changes).await?;
        }
        anyhow::Ok(())
    })?;
    say("written");
    loop {
        std::thread::park();
    }
}

/// The baseline: opens the vault and reads every grant and every organization.
fn read(arguments: &[String]) -> Result<()> {
    let started = Instant::now();
    let file = arguments.first().context("a configuration")?;
    let config = Config::load(&locate(Some(file.as_ref()))?)?;
    let vault = open(&config)?;
    let opened: Duration = started.elapsed();
    // As the worker does it.
    let undisturbed = vault.undisturbed();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut records = 0u64;
    runtime.block_on(vault.for_each_grant(&mut |_| {
        records += 1;
        Ok(())
    }))?;
    runtime.block_on(vault.for_each_organization(&mut |_| {
        records += 1;
        Ok(())
    }))?;
    say(&json!({ "opened": opened.as_secs_f64(), "records": records }).to_string());
    drop(undisturbed);
    vault.close()?;
    Ok(())
}
