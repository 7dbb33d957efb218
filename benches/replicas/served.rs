//! Fetches at a worker with files, and at each of three that share a vault.

use std::{os::unix::net::UnixStream, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    cluster::Cluster,
    common::{
        caller::{Connection, get, load},
        process::{Cores, on_core},
        report::{Report, Series, table},
        rounds,
        site::{Database, Fleet, Options, Site, organization},
        worker::Worker,
    },
};

/// How many organizations are asked for in turn: all are in the cache.
const ORGANIZATIONS: u64 = 1000;
const CONNECTIONS: [usize; 2] = [1, 16];
const SHARING: usize = 3;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_millis(200);

/// One worker with what was measured of it.
struct Side {
    name: String,
    worker: Worker,
    rate: Series,
    cpu: Series,
    p99: Series,
}

/// Measures all of them in turns, and reports.
pub(crate) fn measure(report: &mut Report, cluster: &Cluster, cores: Cores) -> Result<()> {
    let mut places = vec![Site::new(Options::default())?];
    let database = Database { url: cluster.url(), schema: "served".to_owned() };
    places.push(Site::new(Options { database: Some(database), ..Options::default() })?);
    for site in &places {
        site.fill(0, ORGANIZATIONS, Fleet::Warm)?;
    }
    for _ in 1..SHARING {
        places.push(places[1].another()?);
    }
    let requests: Vec<Vec<u8>> =
        (0..ORGANIZATIONS).map(|number| get(&format!("/v1/organizations/{}/token", organization(number)))).collect();
    let (mut rows, mut kept) = (Vec::new(), Vec::new());
    let mut workers = Vec::new();
    for (number, site) in places.iter().enumerate() {
        let mut worker = Worker::start(site, cores.subject)?;
        worker.ready()?;
        fetch_each(&worker, &requests)?;
        let name = if number == 0 { "sled".to_owned() } else { format!("PostgreSQL, worker {number}") };
        workers.push((name, worker));
    }
    for connections in CONNECTIONS {
        let mut sides: Vec<Side> = workers.drain(..).map(|(name, worker)| Side::new(name, worker)).collect();
        // With one connection the two take turns, and never run at once.
        let core = if connections == 1 { cores.subject } else { cores.other };
        for _ in 0..rounds(ROUNDS) {
            for side in &mut sides {
                on_core(core, || side.round(connections, &requests))??;
            }
        }
        let baseline = &sides[0];
        rows.extend(sides.iter().map(|side| side.row(connections, baseline)));
        kept.extend(sides.iter().map(|side| {
            json!({
                "connections": connections,
                "worker": side.name,
                "requests_per_second": side.rate.json(),
                "cpu_microseconds_per_request": side.cpu.json(),
                "p99_microseconds": side.p99.json(),
            })
        }));
        workers.extend(sides.into_iter().map(|side| (side.name, side.worker)));
    }
    let columns = ["connections", "worker", "requests/s", "ratio", "CPU µs a request", "ratio", "p99 µs", "ratio"];
    table(&columns, &rows);
    report.keep("fetches", json!(kept));
    workers.into_iter().try_for_each(|(_, worker)| worker.process.terminate())
}

/// Fetches every token once: the first time it is read from the vault, which is not what is measured.
fn fetch_each(worker: &Worker, requests: &[Vec<u8>]) -> Result<()> {
    let mut connection = Connection::new(UnixStream::connect(worker.socket())?);
    requests.iter().try_for_each(|request| {
        connection.ask(request)?;
        ensure!(connection.answer()?.is_ok, "a fetch failed");
        Ok(())
    })
}

impl Side {
    fn new(name: String, worker: Worker) -> Self {
        Self { name, worker, rate: Series::default(), cpu: Series::default(), p99: Series::default() }
    }

    fn round(&mut self, connections: usize, requests: &[Vec<u8>]) -> Result<()> {
        let connect = || Ok(Connection::new(UnixStream::connect(self.worker.socket())?));
        let mut connections = (0..connections).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        load(&mut connections, requests, WARM_UP)?;
        let before = self.worker.process.cpu()?;
        let mut seen = load(&mut connections, requests, ROUND)?;
        let cpu = self.worker.process.cpu_since(before)?;
        self.rate.push(seen.rate());
        self.cpu.push(cpu.as_secs_f64() * 1e6 / seen.answers as f64);
        self.p99.push(seen.percentile(99));
        Ok(())
    }

    fn row(&self, connections: usize, baseline: &Self) -> Vec<String> {
        let ratio = |mine: &Series, other: &Series| format!("{:.2}", mine.median() / other.median());
        vec![
            connections.to_string(),
            self.name.clone(),
            self.rate.shown(0),
            ratio(&self.rate, &baseline.rate),
            self.cpu.shown(1),
            ratio(&self.cpu, &baseline.cpu),
            format!("{:.0}", self.p99.median()),
            ratio(&self.p99, &baseline.p99),
        ]
    }
}
