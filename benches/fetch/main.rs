//! Fetches on the Unix socket of the real worker, against a bare hyper server that answers the same bytes.
//!
//! A thousand organizations whose access tokens live and are in the cache; 1, 16 and 64 connections that are kept. With
//! one connection both sides share a core, because a wake-up of another core costs more than the fetch; otherwise each
//! has its own.

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
use serde_json::json;

use self::common::{
    caller::{Connection, Load, get, load},
    process::{Cores, Process, on_core, role},
    report::{Report, Series, table},
    site::{Fleet, Options, Site, organization},
    worker::Worker,
};

/// As the worker's: what differs is what it does, not where its memory comes from.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ORGANIZATIONS: u64 = 1000;
const CONNECTIONS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(300);

/// One server with what was measured of it.
struct Side<'a> {
    name: &'static str,
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

    let site = Site::new(Options::default())?;
    site.fill(0, ORGANIZATIONS, Fleet::Warm)?;
    let mut worker = Worker::start(&site, cores.subject)?;
    worker.ready()?;
    let paths = (0..ORGANIZATIONS).map(|number| format!("/v1/organizations/{}/token", organization(number)));
    let requests: Vec<Vec<u8>> = paths.map(|path| get(&path)).collect();

    let bare_socket = site.socket().with_file_name("bare.sock");
    let answer = worker.get(&format!("/v1/organizations/{}/token", organization(0)))?;
    ensure!(answer.is_ok, "the first fetch failed: {}", answer.head);
    let answer_file = site.log().with_file_name("answer");
    bare::write(&answer_file, &answer)?;
    let arguments = [&bare_socket, &answer_file].map(|path| path.display().to_string());
    let mut bare = Process::role("bare", &arguments, cores.subject)?;
    bare.line()?;

    let mut rows = Vec::new();
    let mut kept = Vec::new();
    for connections in CONNECTIONS {
        let new = |name, process, socket: &Path| Side {
            name,
            process,
            socket: socket.to_owned(),
            rate: Series::default(),
            cpu: Series::default(),
            p50: Series::default(),
            p99: Series::default(),
            bytes: 0,
        };
        let mut sides = [new("bare hyper", &bare, &bare_socket), new("consentry", &worker.process, &site.socket())];
        // With one connection the two take turns, and never run at once.
        let core = if connections == 1 { cores.subject } else { cores.other };
        for _ in 0..ROUNDS {
            for side in &mut sides {
                on_core(core, || side.round(connections, &requests))??;
            }
        }
        let [baseline, subject] = &sides;
        for side in &sides {
            let ratio = |series: &Series, of: &Series| format!("{:.2}", series.median() / of.median());
            rows.push(vec![
                connections.to_string(),
                side.name.to_owned(),
                side.rate.shown(0),
                ratio(&side.rate, &baseline.rate),
                side.cpu.shown(1),
                ratio(&side.cpu, &baseline.cpu),
                format!("{:.0} / {:.0}", side.p50.median(), side.p99.median()),
                side.bytes.to_string(),
            ]);
        }
        kept.push(json!({
            "connections": connections,
            "baseline": baseline.json(),
            "subject": subject.json(),
            "rate_ratio": subject.rate.median() / baseline.rate.median(),
            "cpu_ratio": subject.cpu.median() / baseline.cpu.median(),
        }));
    }
    let columns = [
        "connections",
        "server",
        "requests/s",
        "ratio",
        "CPU µs a request",
        "ratio",
        "p50 / p99 µs",
        "bytes an answer",
    ];
    table(&columns, &rows);
    report.keep("organizations", json!(ORGANIZATIONS));
    report.keep("connections", json!(kept));
    bare.kill()?;
    worker.process.terminate()?;
    report.finish()
}

impl Side<'_> {
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

    fn json(&self) -> serde_json::Value {
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
