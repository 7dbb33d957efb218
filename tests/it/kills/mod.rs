//! The real binary under load, killed with SIGKILL again and again: while it exchanges, starts, stops, reloads, imports
//! and checkpoints, and with issuers that die in the middle of their answers. Judged by the issuers' own records and by
//! what callers were given, never by what the worker says of itself alone.
//!
//! `CONSENTRY_KILLS` says how many kills (`make kills N=1000`), `CONSENTRY_SEED` repeats what a failed run printed. The
//! seed fixes what is done and when; the machine decides how far the worker has come by then.

mod compaction;
pub(crate) mod issuers;
mod judge;
mod load;
mod peer;

use std::{fs, thread, time::Duration};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::json;

use self::{
    issuers::{Issuers, Kind},
    load::Load,
};
use crate::harness::{
    chance::{Seed, number, tell},
    worker::{Setup, Worker},
};

/// How many kills there are, unless `CONSENTRY_KILLS` says otherwise.
const KILLS: usize = 50;
/// How long the worker runs under load at most before it is killed.
const LONGEST_LIFE: Duration = Duration::from_millis(1200);
/// How long it is given at most while it starts, stops, reloads or imports.
const SHORT_LIFE: Duration = Duration::from_millis(400);
/// The time limit of an exchange.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Room for some twenty exchanges between two checkpoints.
const JOURNAL_BYTES: u64 = 128 * 1024;
/// How many organizations each issuer has at the start.
const ORGANIZATIONS: usize = 8;
/// How many lines each import has.
const IMPORTED: usize = 6;
/// After so many kills the vault at rest is looked at before the worker starts.
const LOOK_EVERY: usize = 10;

#[test]
fn a_worker_that_is_killed_at_any_moment_replays_nothing_and_loses_nothing() {
    let (kills, seed) = (number("CONSENTRY_KILLS", KILLS), Seed::new("kills"));
    let mut rng = Rng::with_seed(seed.0);
    let issuers = Issuers::start();
    let lines = format!("timeout = \"{}s\"", TIMEOUT.as_secs());
    let setup = Setup::default().log("level = \"info\"").refresh(&lines).journal(JOURNAL_BYTES);
    let add = |setup: Setup, (name, secret, lines): (&str, &str, String)| setup.provider(name, secret, &lines);
    let mut worker = issuers.providers().fold(setup, add).start();
    let load = Load::new(&issuers, worker.socket());
    load.enrol_fleet(ORGANIZATIONS);

    let mut killer = Killer::default();
    thread::scope(|scope| {
        let _ends = load.ends();
        load.start(scope, rng.fork());
        while killer.kills < kills {
            killer.strike(&mut worker, &load, &mut rng);
            load.check_what_was_acknowledged(&worker);
            load.mend(&worker);
        }
    });

    let mut worker = worker.restart();
    load.settle(&worker);
    let counts = judge::judge(&issuers, &load);
    let stopped = worker.stop();
    assert!(stopped.success(), "{stopped}");
    check_at_rest(&worker);
    tell(&format!("{killer:?}; {counts}; {}", load.counts()));
}

/// Who kills, and how often in which situation.
#[derive(Debug, Default)]
struct Killer {
    kills: usize,
    at_load: usize,
    at_start: usize,
    at_stop: usize,
    at_reload: usize,
    at_import: usize,
    failed_issuers: usize,
    imports: usize,
}

impl Killer {
    /// Kills the worker that runs, and leaves one that is ready.
    fn strike(&mut self, worker: &mut Worker, load: &Load<'_>, rng: &mut Rng) {
        if rng.u8(..3) == 0 {
            thread::sleep(up_to(LONGEST_LIFE / 2, rng));
            load.issuers.of(Kind::ALL[rng.usize(..3)]).fail(rng);
            self.failed_issuers += 1;
        }
        match rng.u8(..10) {
            0..5 => {
                thread::sleep(up_to(LONGEST_LIFE, rng));
                self.kill(worker, |killer| &mut killer.at_load);
            }
            5 | 6 => {
                self.kill(worker, |killer| &mut killer.at_load);
                worker.launch();
                thread::sleep(up_to(SHORT_LIFE, rng));
                assert!(worker.runs(), "the worker ended by itself while it started\n{}", worker.log());
                self.kill(worker, |killer| &mut killer.at_start);
            }
            7 => {
                worker.signal(Signal::TERM);
                thread::sleep(up_to(SHORT_LIFE, rng));
                if worker.runs() {
                    self.kill(worker, |killer| &mut killer.at_stop);
                }
            }
            8 => {
                worker.signal(Signal::HUP);
                thread::sleep(up_to(SHORT_LIFE, rng));
                self.kill(worker, |killer| &mut killer.at_reload);
            }
            _ => self.kill_at_import(worker, load, rng),
        }
        // What was cut off in an import has started it again already.
        if self.kills.is_multiple_of(LOOK_EVERY) && !worker.runs() {
            check_at_rest(worker);
        }
        start(worker);
    }

    fn kill(&mut self, worker: &mut Worker, situation: impl FnOnce(&mut Self) -> &mut usize) {
        worker.kill9();
        self.kills += 1;
        *situation(self) += 1;
    }

    /// What an import was cut off in is made good by running it again.
    fn kill_at_import(&mut self, worker: &mut Worker, load: &Load<'_>, rng: &mut Rng) {
        let guests: Vec<(String, Kind)> = (0..IMPORTED)
            .map(|number| (format!("import-{}-{number}", self.imports), Kind::ALL[number % Kind::ALL.len()]))
            .collect();
        self.imports += 1;
        let lines = guests.iter().map(|(organization, kind)| {
            let secret = load.issuers.of(*kind).consent(organization);
            json!({ "organization": organization, "provider": kind.name(), "refresh_token": secret }).to_string()
        });
        let file = worker.file("import.jsonl");
        fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("the folder is ours");
        let path = file.to_str().expect("a temporary folder has a plain name");
        let mut import = worker.spawn_unheard(&["import", path]);
        thread::sleep(up_to(SHORT_LIFE, rng));
        self.kill(worker, |killer| &mut killer.at_import);
        import.wait().expect("it is our child");
        start(worker);
        let imported = worker.command(&["import", path]);
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        load.welcome(guests);
    }
}

/// The vault has to open, every time.
fn start(worker: &mut Worker) {
    if !worker.runs() {
        worker.launch();
    }
    if let Some(status) = worker.ready() {
        panic!("the worker ended with {status} before it was ready\n{}", worker.log());
    }
}

/// `consentry check` finds every record of the vault, which no worker holds.
fn check_at_rest(worker: &Worker) {
    let checked = worker.command(&["check"]);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && said.contains("the vault in"), "{said}");
}

fn up_to(longest: Duration, rng: &mut Rng) -> Duration {
    longest.mul_f64(rng.f64())
}
