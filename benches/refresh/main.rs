//! Refreshes that end in the vault, against the same HTTP client at the same issuer with nothing stored.
//!
//! Every organization's access token has lapsed when the worker starts, so that its timers fire for all at once and 64
//! exchanges are under way until none is left. What is counted is what the issuer answered between the first tenth and
//! the last twentieth; before it counts, every one of them must be active. A one-time token takes an intent that is
//! durable before the request leaves, a connection of its own, and a second commit; a re-use token takes one commit.
//!
//! A row of its own tells what of that is the vault's: as many of the same records read and committed, and nothing exchanged. No
//! worker on this vault can be faster than that and its client together.
//!
//! Each is measured on one core, with the issuer on another; and on all cores, as it is run, with the issuer on one of them. What a thread of the vault's
//! adds shows in the second. And each over HTTP, where asking costs the least that it can, and over HTTPS, as every issuer is asked that is not
//! on the same machine: there a one-time token takes a handshake besides.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

mod bare;
mod issuer;

use std::{
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use consentry::model::Usage;
use serde_json::{Value, json};

use self::common::{
    caller::{Connection, get, load},
    process::{Cores, Process, on_core, role},
    report::{Report, Series, table, thousands},
    rounds,
    site::{Fleet, Options, Site, refresh_token},
    worker::Worker,
};

/// As the worker's: what differs is what it does, not where its memory comes from.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 3;
/// How many exchanges one round of the worker has.
const EXCHANGES: u64 = 8000;
/// As many times that has one of a client alone, which is faster: so that each takes a second or more.
const PLAIN_TIMES: u64 = 5;
const ENCRYPTED_TIMES: u64 = 2;
/// How often the issuer is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a round may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// In the order in which they have their turns. The first two are baselines.
const SUBJECTS: [Subject; 4] = [Subject::Reqwest, Subject::Provider, Subject::Vault, Subject::Worker];

#[derive(Clone, Copy)]
enum Subject {
    /// reqwest, set up as the worker's is, and the body read.
    Reqwest,
    /// The worker's own provider client: request, answer and verdict, nothing stored.
    Provider,
    /// The vault: the same records committed, nothing exchanged.
    Vault,
    /// The worker.
    Worker,
}

#[derive(Default)]
struct Measured {
    rate: Series,
    cpu: Series,
    connections: Series,
}

fn main() -> Result<()> {
    match role() {
        Some((role, _)) if role == "issuer" => issuer::serve(),
        Some((role, arguments)) if role == "reqwest" => bare::reqwest_loop(&arguments),
        Some((role, arguments)) if role == "provider" => bare::provider_loop(&arguments),
        Some((role, arguments)) if role == "vault" => bare::vault_loop(&arguments),
        Some((role, _)) => anyhow::bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    let mut report = Report::new("refresh");
    let cores = Cores::pick();
    report.note(&cores.in_words());
    let mut process = Process::role("issuer", &[], cores.other)?;
    let line = process.line()?;
    let (plain, encrypted) = line.split_once(' ').context("two addresses")?;
    let issuer = Issuer { process, plain: plain.parse()?, encrypted: encrypted.parse()? };
    let ceiling = on_core(cores.subject, || issuer.ceiling())??;
    report.note(&format!(
        "the stand-in issuer alone, asked by the cheapest caller: {} exchanges/s on 64 connections that are kept, {} µs of its CPU each",
        thousands(ceiling.0, 0),
        thousands(ceiling.1, 1),
    ));
    report.keep("issuer", json!({ "exchanges_per_second": ceiling.0, "cpu_microseconds_per_exchange": ceiling.1 }));

    let mut rows = Vec::new();
    let mut kept = Vec::new();
    for (usage, name) in [(Usage::Reuse, "re-use"), (Usage::OneTime, "one-time")] {
        for ((core, place), way) in cores.places().flat_map(|place| WAYS.map(|way| (place, way))) {
            let measured = issuer.rounds(usage, core, way)?;
            let baselines = [&measured[0].1, &measured[1].1].map(|side| side.rate.median());
            for (subject, side) in &measured {
                let rate_ratios = baselines.map(|rate| side.rate.median() / rate);
                let cpu_ratio = side.cpu.median() / measured[0].1.cpu.median();
                rows.push(vec![
                    name.to_owned(),
                    place.to_owned(),
                    way.name().to_owned(),
                    subject.name().to_owned(),
                    side.rate.shown(0),
                    format!("{:.2}", rate_ratios[0]),
                    format!("{:.2}", rate_ratios[1]),
                    side.cpu.shown(0),
                    format!("{cpu_ratio:.2}"),
                    format!("{:.2}", side.connections.median()),
                ]);
                kept.push(json!({
                    "usage": name,
                    "cores": place,
                    "way": way.name(),
                    "subject": subject.name(),
                    "exchanges_per_second": side.rate.json(),
                    "cpu_microseconds_per_exchange": side.cpu.json(),
                    "connections_per_exchange": side.connections.json(),
                    "rate_ratio": rate_ratios[0],
                    "rate_ratio_to_own_client": rate_ratios[1],
                    "cpu_ratio": cpu_ratio,
                }));
            }
        }
    }
    table(
        &[
            "token",
            "cores",
            "by way of",
            "who exchanges",
            "exchanges/s",
            "ratio",
            "to own client",
            "CPU µs an exchange",
            "ratio",
            "connections each",
        ],
        &rows,
    );
    report.keep("in_flight", json!(bare::IN_FLIGHT));
    report.keep("exchanges", json!(EXCHANGES));
    report.keep("subjects", json!(kept));
    issuer.process.kill()?;
    report.finish()
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Reqwest => "reqwest alone",
            Self::Provider => "the worker's client, nothing stored",
            Self::Vault => "the vault's commits alone",
            Self::Worker => "consentry",
        }
    }
}

/// How the issuer is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Without TLS: what it costs to ask is the least that it can be.
    Plain,
    /// With it, as every issuer that is not on the same machine.
    Encrypted,
}

const WAYS: [Way; 2] = [Way::Plain, Way::Encrypted];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "HTTP",
            Self::Encrypted => "HTTPS",
        }
    }
}

struct Issuer {
    process: Process,
    plain: SocketAddr,
    encrypted: SocketAddr,
}

impl Issuer {
    /// Exchanges a second and its CPU for each in microseconds, asked by a caller that costs nearly nothing.
    fn ceiling(&self) -> Result<(f64, f64)> {
        let form = format!("grant_type=refresh_token&refresh_token={}", refresh_token(0, Usage::Reuse, 0));
        let request = format!(
            "POST /token HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        );
        let requests = [request.into_bytes()];
        let mut connections = Vec::new();
        for _ in 0..bare::IN_FLIGHT {
            connections.push(self.connect()?);
        }
        load(&mut connections, &requests, Duration::from_millis(300))?;
        let before = self.process.cpu()?;
        let seen = load(&mut connections, &requests, Duration::from_secs(1))?;
        let cpu = self.process.cpu_since(before)?;
        Ok((seen.rate(), cpu.as_secs_f64() * 1e6 / seen.answers as f64))
    }

    /// What every subject did in its rounds. The vault, which asks nobody, is measured once.
    fn rounds(&self, usage: Usage, core: Option<usize>, way: Way) -> Result<Vec<(Subject, Measured)>> {
        let subjects = SUBJECTS.into_iter().filter(|subject| way == Way::Plain || !matches!(subject, Subject::Vault));
        let mut measured: Vec<_> = subjects.map(|subject| (subject, Measured::default())).collect();
        for _ in 0..rounds(ROUNDS) {
            for (subject, measured) in &mut measured {
                let seen = self.round(*subject, usage, core, way)?;
                measured.rate.push(seen.rate);
                measured.cpu.push(seen.cpu);
                measured.connections.push(seen.connections);
            }
        }
        Ok(measured)
    }

    fn round(&self, subject: Subject, usage: Usage, core: Option<usize>, way: Way) -> Result<Seen> {
        let (address, authority, scheme, times) = match way {
            Way::Plain => (self.plain, None, "http", PLAIN_TIMES),
            Way::Encrypted => (self.encrypted, Some(issuer::CERTIFICATE), "https", ENCRYPTED_TIMES),
        };
        let exchanges = match subject {
            Subject::Reqwest | Subject::Provider => times * EXCHANGES,
            Subject::Vault | Subject::Worker => EXCHANGES,
        };
        let site = Site::new(Options { issuer: Some(address), authority, ..Options::default() })?;
        if matches!(subject, Subject::Vault | Subject::Worker) {
            site.fill(0, EXCHANGES, Fleet::Due(usage))?;
        }
        let mut count = Count::new(self)?;
        let arguments = [
            site.config_file().display().to_string(),
            bare::word(usage).to_owned(),
            exchanges.to_string(),
            format!("{scheme}://{address}/token"),
        ];
        let role = |name| Process::role_trusting(authority, name, &arguments, core);
        match subject {
            Subject::Reqwest => count.watch(&role("reqwest")?, exchanges),
            Subject::Provider => count.watch(&role("provider")?, exchanges),
            Subject::Vault => {
                let mut process = role("vault")?;
                process.line()?;
                let (started, before) = (Instant::now(), process.cpu()?);
                let used = process.wait_counted()?.saturating_sub(before);
                Ok(Seen {
                    rate: EXCHANGES as f64 / started.elapsed().as_secs_f64(),
                    cpu: used.as_secs_f64() * 1e6 / EXCHANGES as f64,
                    connections: 0.0,
                })
            }
            Subject::Worker => {
                let worker = Worker::start(&site, core)?;
                let seen = count.watch(&worker.process, exchanges)?;
                all_active(&worker)?;
                worker.process.terminate()?;
                Ok(seen)
            }
        }
    }

    fn connect(&self) -> Result<Connection<TcpStream>> {
        let stream = TcpStream::connect(self.plain)?;
        stream.set_nodelay(true)?;
        Ok(Connection::new(stream))
    }
}

/// What one round showed.
struct Seen {
    /// Exchanges a second.
    rate: f64,
    /// CPU of each, in microseconds.
    cpu: f64,
    /// New connections for each.
    connections: f64,
}

/// How many exchanges the issuer has answered since this was made.
struct Count {
    connection: Connection<TcpStream>,
    before: u64,
}

impl Count {
    fn new(issuer: &Issuer) -> Result<Self> {
        let mut count = Self { connection: issuer.connect()?, before: 0 };
        count.before = count.now()?.0;
        Ok(count)
    }

    /// Exchanges since then, and connections ever.
    fn now(&mut self) -> Result<(u64, u64)> {
        self.connection.ask(&get("/count"))?;
        let answer = self.connection.answer()?;
        let (exchanges, connections) = std::str::from_utf8(&answer.body)?.split_once(' ').context("two counts")?;
        Ok((exchanges.parse::<u64>()? - self.before, connections.parse()?))
    }

    /// Waits until there are `count` exchanges.
    fn reaches(&mut self, count: u64) -> Result<(u64, u64)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.now()?;
            if now.0 >= count {
                return Ok(now);
            }
            ensure!(Instant::now() < end, "after {PATIENCE:?} there are {} of {count} exchanges", now.0);
            sleep(LOOK_EVERY);
        }
    }

    /// Waits for all of `exchanges`, and measures between the first tenth of them and the last twentieth.
    fn watch(&mut self, process: &Process, exchanges: u64) -> Result<Seen> {
        let (first, connected) = self.reaches(exchanges / 10)?;
        let (started, cpu) = (Instant::now(), process.cpu()?);
        let (last, connections) = self.reaches(exchanges - exchanges / 20)?;
        let (took, cpu) = (started.elapsed(), process.cpu_since(cpu)?);
        let (all, _) = self.reaches(exchanges)?;
        ensure!(all == exchanges, "{all} exchanges instead of {exchanges}");
        let counted = (last - first) as f64;
        Ok(Seen {
            rate: counted / took.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / counted,
            connections: (connections - connected) as f64 / counted,
        })
    }
}

/// Makes sure that every answer was stored as its grant's newest.
fn all_active(worker: &Worker) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status: Value = serde_json::from_slice(&worker.get("/v1/status")?.body)?;
        let active = status["organizations"]["active"].as_u64().context("the status counts organizations")?;
        let overdue = status["providers"][0]["overdue"].as_u64().context("the status counts those overdue")?;
        if active == EXCHANGES && overdue == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "not every organization was refreshed: {status}");
        sleep(LOOK_EVERY);
    }
}
