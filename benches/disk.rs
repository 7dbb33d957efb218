//! What the vault takes on disk while every organization's token is refreshed every hour for 30 days, against its live
//! data; and whether it shrinks again after most of an import was removed.
//!
//! The days are simulated: each refresh is the two commits that a one-time token takes (its intent; the record with the
//! new tokens), through the vault's own writer and codec and with as many under way as the worker has, with the times of
//! the simulated hour. A refresh after the other, without the rest of each hour in which the vault would tidy up: this is
//! harder on it than a month is. At the end of each day the vault is left alone until it has come to rest, for a minute at
//! most, as a worker's has nearly always; that is a day's size, and the highest of the whole day stands beside it. Live data is what
//! a backup takes: every record once, with its name.
//!
//! `CONSENTRY_BENCH_ORGANIZATIONS=5000` runs the whole: 3.6 million refreshes.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use consentry::{
    clock::{Clock as _, SystemClock},
    config::{Config, locate},
    model::{Credential, Grant, Intent, Secret, Timestamp, Usage},
    vault::{Change, Vault},
};
use serde_json::{Value, json};

use self::common::{
    access_token,
    process::{Process, role},
    report::{Report, say, table, thousands},
    site::{Fleet, Options, Site, open, refresh_token},
};

/// As the worker's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many organizations are refreshed, unless the environment says otherwise.
const ORGANIZATIONS: u64 = 500;
const DAYS: u64 = 30;
const HOURS_A_DAY: u64 = 24;
/// As many exchanges as the worker has under way.
const IN_FLIGHT: usize = 64;
/// The days whose sizes are in the table.
const SHOWN: [u64; 6] = [1, 5, 10, 15, 20, 30];
/// An import is this many times what is there before and stays.
const IMPORTED: u64 = 20;
/// How many days go by after the removal.
const DAYS_AFTER: u64 = 3;
/// Removals in one commit.
const REMOVED_AT_ONCE: usize = 250;
/// How often the disk is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A vault whose size has not changed for so long is at rest: its engine tidies up every second.
const AT_REST_AFTER: Duration = Duration::from_secs(3);
/// How long it is waited for at most.
const LONGEST_REST: Duration = Duration::from_mins(1);

fn main() -> Result<()> {
    match role() {
        Some((role, arguments)) if role == "days" => days(&arguments),
        Some((role, arguments)) if role == "remove" => remove(&arguments),
        Some((role, arguments)) if role == "open" => reopen(&arguments),
        Some((role, _)) => anyhow::bail!("{role} is no role of this benchmark"),
        None => measure(),
    }
}

fn measure() -> Result<()> {
    let organizations = match std::env::var("CONSENTRY_BENCH_ORGANIZATIONS") {
        Ok(number) => number.parse().context("CONSENTRY_BENCH_ORGANIZATIONS is a number")?,
        Err(_) => ORGANIZATIONS,
    };
    let mut report = Report::new("disk");
    report.note(&format!(
        "{} organizations, each refreshed {} times a simulated day, {IN_FLIGHT} at once",
        thousands(organizations as f64, 0),
        HOURS_A_DAY,
    ));
    report.keep("organizations", json!(organizations));
    let site = Site::new(Options::default())?;
    site.fill(0, organizations, Fleet::Due(Usage::OneTime))?;

    let mut rows = Vec::new();
    let Days { kept, cpu, busy } = run_days(&site, 0, DAYS, &mut |day, sizes| {
        if SHOWN.contains(&day) {
            say(&format!("day {day}: {} MB", thousands(sizes.all as f64 / 1e6, 1)));
            rows.push(sizes.row(&format!("day {day}")));
        }
    })?;
    let refreshes = (organizations * HOURS_A_DAY * DAYS) as f64;
    let (rate, cpu) = (refreshes / busy.as_secs_f64(), cpu.as_secs_f64() * 1e6 / refreshes);
    report.keep("days", json!(kept));
    report.keep("refreshes_per_second", json!(rate));
    report.keep("cpu_microseconds_per_refresh", json!(cpu));

    site.fill(organizations, organizations * (1 + IMPORTED), Fleet::Due(Usage::OneTime))?;
    let mut burst = vec![("after an import of 20 times as many", Sizes::of_closed(&site, "open")?)];
    burst.push(("after their removal", Sizes::of_closed(&site, "remove")?));
    burst.push(("after the next start", Sizes::of_closed(&site, "open")?));
    let mut last = None;
    run_days(&site, DAYS, DAYS_AFTER, &mut |_, sizes| last = Some(*sizes))?;
    burst.push(("three days later", last.context("days went by")?));
    rows.extend(burst.iter().map(|(name, sizes)| sizes.row(name)));
    let burst: Vec<_> = burst.iter().map(|(name, sizes)| json!({ "when": name, "sizes": sizes.json() })).collect();
    report.keep("import_and_removal", json!(burst));

    let columns =
        ["at rest after", "live MB", "database MB", "journal MB", "all MB", "ratio", "the day's highest", "ratio"];
    table(&columns, &rows);
    report.note(&format!("{} refreshes/s, {} µs of CPU each", thousands(rate, 0), thousands(cpu, 0)));
    report.finish()
}

/// The most that lies on the disk at any time, what is written beside what it replaces included.
struct Watched {
    most: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Watched {
    fn start(vault: PathBuf) -> Self {
        let (most, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, ended) = (Arc::clone(&most), Arc::clone(&ends));
        let looking = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // A folder may go while it is looked at.
                seen.fetch_max(bytes_below(&vault).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(LOOK_EVERY);
            }
        });
        Self { most, ends, looking: Some(looking) }
    }

    /// The most since this was asked before.
    fn take_most(&self) -> u64 {
        self.most.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.looking.take().map(JoinHandle::join);
    }
}

/// Waits until the size of a vault has not changed for a while.
fn come_to_rest(vault: &Path) {
    let begun = Instant::now();
    let (mut bytes, mut since) = (0, begun);
    while since.elapsed() < AT_REST_AFTER && begun.elapsed() < LONGEST_REST {
        // A folder may go while it is looked at.
        let now = bytes_below(vault).unwrap_or(0);
        if now != bytes {
            (bytes, since) = (now, Instant::now());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// What lies on the disk, in bytes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    live: u64,
    database: u64,
    journal: u64,
    all: u64,
    /// The most of the day, where days went by.
    most: Option<u64>,
}

impl Sizes {
    fn of(site: &Site, live: u64) -> Result<Self> {
        let vault = site.config()?.vault.path;
        let journal = fs::metadata(vault.join("journal"))?.len();
        Ok(Self { live, database: bytes_below(&vault.join("db"))?, journal, all: bytes_below(&vault)?, most: None })
    }

    /// After another process has opened the vault in this role, and closed it.
    fn of_closed(site: &Site, role: &str) -> Result<Self> {
        let mut process = Process::role(role, &[site.config_file().display().to_string()], None)?;
        let live = process.line()?.parse()?;
        process.wait()?;
        Self::of(site, live)
    }

    fn ratio(&self, bytes: u64) -> f64 {
        bytes as f64 / self.live as f64
    }

    fn row(&self, when: &str) -> Vec<String> {
        let mb = |bytes: u64| thousands(bytes as f64 / 1e6, 1);
        let ratio = |bytes| format!("{:.2}", self.ratio(bytes));
        let of_most = |show: &dyn Fn(u64) -> String| self.most.map_or_else(|| "–".to_owned(), show);
        vec![
            when.to_owned(),
            mb(self.live),
            mb(self.database),
            mb(self.journal),
            mb(self.all),
            ratio(self.all),
            of_most(&mb),
            of_most(&ratio),
        ]
    }

    fn json(&self) -> Value {
        let Self { live, database, journal, all, most } = self;
        json!({
            "live": live, "database": database, "journal": journal, "all": all, "ratio": self.ratio(*all),
            "most": most, "ratio_of_most": most.map(|most| self.ratio(most)),
        })
    }
}

/// The size of all files below `path`, those that go meanwhile left out.
fn bytes_below(path: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(about) if about.is_dir() => bytes_below(&entry.path())?,
            Ok(about) => about.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(bytes)
}

/// Days that went by.
struct Days {
    kept: Vec<Value>,
    /// What they took of the processor.
    cpu: Duration,
    /// How long they took, without the rests.
    busy: Duration,
}

/// Lets days go by in a process of its own, which the sizes are looked at beside. It goes on with the next day where it was told to,
/// when the vault has come to rest.
fn run_days(site: &Site, first: u64, days: u64, seen: &mut dyn FnMut(u64, &Sizes)) -> Result<Days> {
    let vault = site.config()?.vault.path;
    let go_on = site.config_file().with_extension("go-on");
    let arguments = [site.config_file(), go_on.clone()].map(|path| path.display().to_string());
    let arguments = [&arguments[..], &[first.to_string(), days.to_string()]].concat();
    let mut process = Process::role("days", &arguments, None)?;
    let watched = Watched::start(vault.clone());
    let mut went = Days { kept: Vec::new(), cpu: Duration::ZERO, busy: Duration::ZERO };
    for day in 1..=days {
        let started = Instant::now();
        let live = process.line()?.parse()?;
        went.busy += started.elapsed();
        went.cpu = process.cpu()?;
        come_to_rest(&vault);
        let sizes = Sizes { most: Some(watched.take_most()), ..Sizes::of(site, live)? };
        seen(day, &sizes);
        went.kept.push(json!({ "day": day, "sizes": sizes.json() }));
        fs::write(&go_on, [])?;
    }
    process.wait()?;
    Ok(went)
}

fn site_of(arguments: &[String]) -> Result<Config> {
    let file = arguments.first().context("a configuration")?;
    Ok(Config::load(&locate(Some(file.as_ref()))?)?)
}

/// Lets days go by, and says after each how much live data there is.
fn days(arguments: &[String]) -> Result<()> {
    let [_, go_on, first, days] = arguments else {
        anyhow::bail!("a configuration, a file that says when to go on, the first day and how many")
    };
    let (first, days): (u64, u64) = (first.parse()?, days.parse()?);
    let vault = open(&site_of(arguments)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut grants = Vec::new();
    runtime.block_on(vault.for_each_grant(&mut |stored| {
        grants.push(stored.value);
        Ok(())
    }))?;
    // As many worlds as there are exchanges under way: each refreshes its share of the grants, one after the other.
    let mut shares: Vec<Vec<Grant>> = (0..IN_FLIGHT).map(|_| Vec::new()).collect();
    for (at, grant) in grants.into_iter().enumerate() {
        shares[at % IN_FLIGHT].push(grant);
    }
    let begun = SystemClock::new().now().wall;
    for day in first..first + days {
        for hour in day * HOURS_A_DAY..(day + 1) * HOURS_A_DAY {
            let now = begun + Duration::from_hours(hour);
            shares = runtime.block_on(refresh_all(&vault, shares, hour + 1, now))?;
        }
        say(&live(&vault, begun)?.to_string());
        while fs::remove_file(go_on).is_err() {
            thread::sleep(LOOK_EVERY);
        }
    }
    vault.close()?;
    Ok(())
}

/// Every grant is refreshed once.
async fn refresh_all(vault: &Vault, shares: Vec<Vec<Grant>>, number: u64, now: Timestamp) -> Result<Vec<Vec<Grant>>> {
    let mut under_way = tokio::task::JoinSet::new();
    for mut share in shares {
        let vault = vault.clone();
        under_way.spawn(async move {
            for grant in &mut share {
                let intent = Intent {
                    grant: grant.id,
                    fingerprint: grant.fingerprint,
                    attempt: 1,
                    first_at: now,
                    first_boot: Duration::ZERO,
                    boot_id: 0,
                };
                vault.commit(vec![Change::PutIntent(intent)]).await?;
                answered(&vault, grant, number, now);
                let changes = vec![Change::PutGrant(Box::new(grant.clone())), Change::DeleteIntent(grant.id)];
                vault.commit(changes).await?;
            }
            anyhow::Ok(share)
        });
    }
    under_way.join_all().await.into_iter().collect()
}

/// What becomes of a grant's record when a one-time token was exchanged.
fn answered(vault: &Vault, grant: &mut Grant, number: u64, now: Timestamp) {
    let token = Secret::new(refresh_token(number, Usage::OneTime, number));
    if grant.spent.len() == consentry::model::MAX_SPENT {
        grant.spent.remove(1);
    }
    grant.spent.push(grant.fingerprint);
    grant.fingerprint = vault.fingerprint(&token);
    grant.credential = Credential::RefreshToken(token);
    grant.refreshed_at = Some(now);
    let subject = grant.subject.clone().unwrap_or_default();
    if let Some(access) = &mut grant.access {
        access.token = Secret::new(access_token(&subject, number));
        access.issued_at = now;
        access.expires_at = now + Duration::from_hours(1);
    }
}

/// How much a backup takes, and with it the live data.
fn live(vault: &Vault, now: Timestamp) -> Result<u64> {
    struct Counter(u64);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    vault.backup(now, &mut counter)?;
    Ok(counter.0)
}

/// Opens the vault, says how much live data there is, and closes it when it has come to rest.
fn reopen(arguments: &[String]) -> Result<()> {
    let config = site_of(arguments)?;
    let vault = open(&config)?;
    say(&live(&vault, SystemClock::new().now().wall)?.to_string());
    come_to_rest(&config.vault.path);
    vault.close()?;
    Ok(())
}

/// Removes what was imported, which is all but one organization in 21.
fn remove(arguments: &[String]) -> Result<()> {
    let vault = open(&site_of(arguments)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut gone = Vec::new();
    let mut stays = 0;
    runtime.block_on(vault.for_each_grant(&mut |stored| {
        let grant = stored.value;
        // Those that were there before have spent tokens.
        if grant.spent.is_empty() {
            gone.push(Change::DeleteGrant(grant.id));
            gone.extend(grant.organizations.into_iter().map(Change::DeleteOrganization));
        } else {
            stays += 1;
        }
        Ok(())
    }))?;
    ensure!(gone.len() as u64 == 2 * IMPORTED * stays, "{} changes, {stays} organizations stay", gone.len());
    let mut gone = gone.into_iter();
    loop {
        let changes: Vec<Change> = gone.by_ref().take(REMOVED_AT_ONCE).collect();
        if changes.is_empty() {
            break;
        }
        runtime.block_on(vault.commit(changes))?;
    }
    say(&live(&vault, SystemClock::new().now().wall)?.to_string());
    vault.close()?;
    Ok(())
}
