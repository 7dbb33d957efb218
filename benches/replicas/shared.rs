//! Refreshes by workers that share a vault, and what they and the database used for them.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use consentry::model::Usage;
use serde_json::Value;

use crate::{
    PATIENCE, PATIENCE_EACH,
    cluster::Cluster,
    common::{
        caller::{Connection, get},
        site::{Database, Fleet, Options, Site},
        worker::Worker,
    },
    harness::ports::free_port,
    issuer::Issuer,
};

/// How often workers are asked whether they know of everything.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The unit of processor time in `/proc`.
const TICK: Duration = Duration::from_millis(10);
/// What is said of organizations that have been refreshed, by reason and provider.
const REFRESHED: &str = "consentry_token_refresh_total{";
/// What is said of claims that were asked for.
const CLAIMED: &str = "consentry_claims_total{";

/// What came of it.
pub(crate) struct Refreshed {
    /// Exchanges a second, between the first tenth and the last twentieth.
    pub(crate) rate: f64,
    /// Processor time of all the workers for each, in microseconds, and of all the database's servers.
    pub(crate) worker_cpu: f64,
    pub(crate) database_cpu: f64,
    /// From the first worker's start until the issuer had seen all of them.
    pub(crate) took: Duration,
    /// How many each worker has made.
    pub(crate) shares: Vec<u64>,
    /// How often a claim was asked for that another worker had, for each exchange.
    pub(crate) in_vain: f64,
}

/// What a number of workers that share is called; 0: one with files.
pub(crate) fn name(workers: usize) -> String {
    match workers {
        0 => "one, sled".to_owned(),
        1 => "one, PostgreSQL".to_owned(),
        _ => format!("{workers}, PostgreSQL"),
    }
}

/// Lets so many workers, or one with files, refresh organizations whose tokens have lapsed, each once.
pub(crate) fn refresh(
    cluster: &Cluster,
    servers: &Servers,
    issuer: &Issuer,
    schema: &str,
    workers: usize,
    organizations: u64,
) -> Result<Refreshed> {
    issuer.begin()?;
    let database = (workers > 0).then(|| Database { url: cluster.url(), schema: schema.to_owned() });
    let mut sites = vec![Site::new(Options { issuer: Some(issuer.address), database, ..Options::default() })?];
    sites[0].fill(0, organizations, Fleet::Due(Usage::OneTime))?;
    for _ in 1..workers {
        sites.push(sites[0].another()?);
    }
    let patience = PATIENCE + PATIENCE_EACH * u32::try_from(organizations)?;
    let begun = Instant::now();
    let mut running = sites.iter().map(Running::start).collect::<Result<Vec<_>>>()?;
    for Running { worker, .. } in &mut running {
        worker.ready()?;
    }
    let used = || running.iter().map(|running| running.worker.process.cpu()).sum::<Result<Duration>>();
    let first = issuer.reaches(organizations / 10, patience)?;
    let (started, worker_before, database_before) = (Instant::now(), used()?, servers.cpu()?);
    let last = issuer.reaches(organizations - organizations / 20, patience)?;
    let (measured, worker_cpu, database_cpu) =
        (started.elapsed(), used()?.saturating_sub(worker_before), servers.cpu()?.saturating_sub(database_before));
    issuer.reaches(organizations, patience)?;
    let took = begun.elapsed();
    for Running { worker, .. } in &running {
        knows_all(worker, organizations)?;
    }
    let all = issuer.reaches(organizations, patience)?;
    let shares = running.iter().map(Running::refreshed).collect::<Result<Vec<_>>>()?;
    let held = running.iter().map(Running::asked_in_vain).sum::<Result<u64>>()?;
    ensure!(all == organizations, "{all} exchanges for {organizations} organizations");
    ensure!(shares.iter().sum::<u64>() == all, "the workers count {shares:?}, and the issuer {all}");
    for Running { worker, .. } in running {
        worker.process.terminate()?;
    }
    let counted = (last - first) as f64;
    ensure!(counted > 0.0, "they were refreshed before all workers were ready: take more organizations");
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / counted;
    Ok(Refreshed {
        rate: counted / measured.as_secs_f64(),
        worker_cpu: each(worker_cpu),
        database_cpu: each(database_cpu),
        took,
        shares,
        in_vain: held as f64 / all as f64,
    })
}

/// A worker, and where its metrics are.
struct Running {
    worker: Worker,
    port: u16,
}

impl Running {
    fn start(site: &Site) -> Result<Self> {
        let (text, port) = (fs::read_to_string(site.config_file())?, free_port());
        let listen = format!("listen = \"127.0.0.1:{port}\"");
        fs::write(site.config_file(), text.replace("listen = \"\"", &listen))?;
        Ok(Self { worker: Worker::start(site, None)?, port })
    }

    /// How many exchanges it has made.
    fn refreshed(&self) -> Result<u64> {
        self.count(REFRESHED, "result=\"ok\"")
    }

    /// How often it asked for a claim that another had.
    fn asked_in_vain(&self) -> Result<u64> {
        self.count(CLAIMED, "result=\"held\"")
    }

    fn count(&self, metric: &str, label: &str) -> Result<u64> {
        let mut connection = Connection::new(TcpStream::connect(("127.0.0.1", self.port))?);
        connection.ask(&get("/metrics"))?;
        let text = String::from_utf8(connection.answer()?.body)?;
        let samples = text.lines().filter(|line| line.starts_with(metric) && line.contains(label));
        let counts = samples.map(|line| Ok(line.rsplit(' ').next().context("a value")?.parse::<f64>()?));
        let count: f64 = counts.sum::<Result<f64>>()?;
        // The sum of nothing is -0.
        Ok(format!("{:.0}", count.abs()).parse()?)
    }
}

/// Waits until a worker has heard of every organization that it was refreshed.
fn knows_all(worker: &Worker, organizations: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status: Value = serde_json::from_slice(&worker.get("/v1/status")?.body)?;
        let active = status["organizations"]["active"].as_u64().context("the status counts organizations")?;
        let overdue = status["providers"][0]["overdue"].as_u64().context("the status counts those overdue")?;
        if active == organizations && overdue == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "not every organization was refreshed: {status}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The database's servers, for the processor time that they use.
pub(crate) struct Servers(Vec<u32>);

impl Servers {
    pub(crate) fn of(cluster: &Cluster) -> Result<Self> {
        let folder = cluster.account().1;
        let files = ["a", "b", "c"].map(|name| -> PathBuf { folder.join(name).join("postmaster.pid") });
        let ids = files.iter().map(|file| {
            let text = fs::read_to_string(file)?;
            Ok(text.lines().next().context("the file begins with the server's process")?.parse()?)
        });
        Ok(Self(ids.collect::<Result<_>>()?))
    }

    /// What they and their processes have used, those included that have ended.
    fn cpu(&self) -> Result<Duration> {
        let mut ticks = 0;
        for entry in fs::read_dir("/proc")? {
            let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // Any may end meanwhile.
            let Ok(text) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
            // The second field is the name, in parentheses, and may hold spaces; after it: the state, and the parent.
            let fields: Vec<&str> = text.rsplit_once(") ").context("stat")?.1.split(' ').collect();
            let field = |at: usize| -> Result<u32> { Ok(fields.get(at).context("stat")?.parse()?) };
            if self.0.contains(&id) {
                ticks += field(11)? + field(12)? + field(13)? + field(14)?;
            } else if self.0.contains(&field(1)?) {
                ticks += field(11)? + field(12)?;
            }
        }
        Ok(TICK * ticks)
    }
}
