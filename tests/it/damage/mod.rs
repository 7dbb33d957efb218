//! Files of a vault that are cut short, written over, zeroed, flipped or gone, at rest after a clean end and after a kill,
//! with and without a trace in their times: each ends in a clear error or in continued service, never in a wrong value,
//! an older refresh token at the issuer, or an acknowledged write that is lost in silence.
//!
//! `CONSENTRY_DAMAGES` says how many (`make damage N=1000`), `CONSENTRY_SEED` repeats what a failed run printed.

mod specimen;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs::{self, File, FileTimes, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use consentry::sandbox::{Entry, Fault, FaultKind};
use fastrand::Rng;
use serde_json::Value;

use self::specimen::{Left, Specimen, files};
use crate::harness::{
    chance::{Seed, number, tell},
    eventually, http,
    worker::Worker,
};

/// How many damages there are, unless `CONSENTRY_DAMAGES` says otherwise.
const DAMAGES: usize = 60;
/// How many grants are exchanged by force after each damage.
const FORCED: usize = 3;
/// The longest stretch of a file that is written over, in bytes.
const LONGEST: u64 = 16 * 1024;
/// The longest error, in lines.
const MAX_LINES: usize = 2;

#[test]
fn whatever_is_damaged_the_worker_says_so_or_serves_what_is_right() {
    let (damages, seed) = (number("CONSENTRY_DAMAGES", DAMAGES), Seed::new("damages"));
    let mut rng = Rng::with_seed(seed.0);
    let mut specimen = Specimen::make();
    // The record then shows which token was sent, and none is spent by it: every damage finds the issuer the same.
    specimen.stand.fault(Fault::always(FaultKind::RateLimit));

    let mut ends: BTreeMap<End, usize> = BTreeMap::new();
    for _ in 0..damages {
        let damage = Damage::any(&specimen, &mut rng);
        specimen.put(damage.left);
        damage.strike(specimen.worker.vault());
        let end = examine(&mut specimen, &damage, &mut rng);
        *ends.entry(end).or_default() += 1;
        a_backup_helps(&mut specimen, &mut rng);
    }
    tell(&format!("{damages} damages: {ends:?}"));
}

/// What is done to which file.
#[derive(Clone, Debug)]
struct Damage {
    left: Left,
    /// Below the vault's folder.
    file: PathBuf,
    way: Way,
    /// The file's time of change is put back, as where the disk itself lost something.
    unseen: bool,
}

#[derive(Clone, Debug)]
enum Way {
    Truncate(u64),
    Overwrite { at: u64, bytes: Vec<u8> },
    Zero { at: u64, length: u64 },
    Flip { at: u64, bit: u8 },
    Remove,
}

impl Damage {
    fn any(specimen: &Specimen, rng: &mut Rng) -> Self {
        let left = if rng.bool() { Left::Closed } else { Left::Killed };
        specimen.put(left);
        let folder = specimen.worker.vault();
        let files = files(folder);
        // Half of it goes to where the records are.
        let large = ["journal", "db/db"].map(|name| folder.join(name));
        let file = if rng.bool() { large[rng.usize(..2)].clone() } else { files[rng.usize(..files.len())].clone() };
        let length = fs::metadata(&file).expect("it is there").len();
        let way = match (rng.u8(..10), length) {
            (0, _) | (_, 0) => Way::Remove,
            (1 | 2, _) => Way::Truncate(rng.u64(..length)),
            (kind, _) => {
                let at = rng.u64(..length);
                let stretch = rng.u64(1..=LONGEST.min(length - at));
                match kind {
                    3 | 4 => Way::Overwrite { at, bytes: (0..stretch).map(|_| rng.u8(..)).collect() },
                    5 | 6 => Way::Zero { at, length: stretch },
                    _ => Way::Flip { at, bit: rng.u8(..8) },
                }
            }
        };
        let file = file.strip_prefix(folder).expect("it is below the folder").to_owned();
        Self { left, file, way, unseen: rng.bool() }
    }

    fn strike(&self, folder: &Path) {
        let path = folder.join(&self.file);
        let modified = fs::metadata(&path).and_then(|about| about.modified()).expect("it is there");
        let open = || OpenOptions::new().read(true).write(true).open(&path).expect("the folder is ours");
        let struck = match &self.way {
            Way::Remove => return fs::remove_file(&path).expect("the folder is ours"),
            Way::Truncate(length) => open().set_len(*length),
            Way::Overwrite { at, bytes } => open().write_all_at(bytes, *at),
            Way::Zero { at, length } => open().write_all_at(&vec![0; usize::try_from(*length).expect("short")], *at),
            Way::Flip { at, bit } => {
                let (file, mut byte) = (open(), [0]);
                let read = file.read_exact_at(&mut byte, *at);
                read.and_then(|()| file.write_all_at(&[byte[0] ^ (1 << bit)], *at))
            }
        };
        struck.expect("the folder is ours");
        if self.unseen {
            let file: File = open();
            file.set_times(FileTimes::new().set_modified(modified)).expect("the folder is ours");
        }
    }

    /// In one line, without the bytes.
    fn told(&self) -> String {
        let Self { left, file, way, unseen } = self;
        let way = match way {
            Way::Overwrite { at, bytes } => format!("Overwrite {{ at: {at}, length: {} }}", bytes.len()),
            way => format!("{way:?}"),
        };
        format!("{} {left:?}, {way}{}", file.display(), if *unseen { ", unseen" } else { "" })
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// The worker did not start, and said why.
    Refused,
    /// It serves what it can read, and says that this is not all.
    Partial,
    /// It serves everything.
    Served,
}

/// Looks at a damaged vault with `consentry check`, then with the worker, and holds both to the rules.
fn examine(specimen: &mut Specimen, damage: &Damage, rng: &mut Rng) -> End {
    let told = damage.told();
    let healthy = check(&specimen.worker, &told);
    let sent_before = specimen.stand.issuer().record().len();
    specimen.worker.clear_log();
    specimen.worker.launch();
    let end = eventually(&told, || ended(&mut specimen.worker, &told));
    match end {
        End::Refused => {}
        End::Partial | End::Served => {
            serves_what_was_acknowledged(specimen, damage, end, &told);
            force(specimen, rng);
            specimen.worker.kill9();
        }
    }
    assert!(!healthy || end == End::Served, "{told}: check found nothing, and yet: {end:?}\n{}", specimen.worker.log());
    no_older_token_was_sent(specimen, sent_before, &told);
    end
}

/// Runs `consentry check --json`; gives whether it found no error.
fn check(worker: &Worker, told: &str) -> bool {
    let checked = worker.command(&["check", "--json"]);
    let said = String::from_utf8_lossy(&checked.stdout);
    is_clear(told, &(said.clone() + String::from_utf8_lossy(&checked.stderr)));
    let findings: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{told}: {error} in {said:?}"));
    let errors: Vec<&str> = findings
        .as_array()
        .expect("a list")
        .iter()
        .filter(|finding| finding["severity"] == "error")
        .map(|finding| finding["what"].as_str().expect("a text"))
        .collect();
    for error in &errors {
        says_what_to_do(told, error);
    }
    let code = checked.status.code();
    assert_eq!(code, Some(i32::from(!errors.is_empty())), "{told}: {said}");
    errors.is_empty()
}

/// Whether the worker is ready, has ended with an error, or says that it will not be ready.
fn ended(worker: &mut Worker, told: &str) -> Option<End> {
    let ready = http::over_unix(worker.socket(), "GET", "/readyz", &[], "").is_ok_and(|answer| answer.status == 200);
    if ready {
        return Some(End::Served);
    }
    let log = worker.log();
    if log.contains("serves what it can read and is not ready") {
        return Some(End::Partial);
    }
    let status = worker.ended()?;
    let log = worker.log();
    is_clear(told, &log);
    let error: Vec<&str> = log.lines().filter(|line| !line.starts_with("20")).collect();
    assert!((1..=MAX_LINES).contains(&error.len()), "{told}: {error:?}");
    assert!(matches!(status.code(), Some(1 | 78)), "{told}: {status}: {error:?}");
    says_what_to_do(told, &error.join(" "));
    Some(End::Refused)
}

fn is_clear(told: &str, text: &str) {
    for word in ["panicked", "stack backtrace", "RUST_BACKTRACE", "unwrap", "src/"] {
        assert!(!text.contains(word), "{told}: {text}");
    }
}

fn says_what_to_do(told: &str, error: &str) {
    let does = ["put a backup", "put the", "restore", "use the newer version", "was replaced", "consentry init"];
    assert!(error.lines().count() <= MAX_LINES, "{told}: {error}");
    assert!(does.iter().any(|words| error.contains(words)), "{told}: it does not say what to do: {error}");
}

/// Every organization has the token and the labels that were acknowledged, or an error that says that the vault cannot
/// tell; the latter only where the worker says that it is not ready.
fn serves_what_was_acknowledged(specimen: &Specimen, damage: &Damage, end: End, told: &str) {
    let worker = &specimen.worker;
    for (organization, known) in specimen.acknowledged(damage.left) {
        let path = format!("/v1/organizations/{organization}");
        for (path, field, wanted) in [
            (format!("{path}/token"), "access_token", Value::from(known.access_token.clone())),
            (path.clone(), "labels", known.labels.clone()),
        ] {
            let answer = worker.get(&path);
            match answer.status {
                200 => assert_eq!(answer.json()[field], wanted, "{told}: {organization}: {end:?}"),
                503 if end == End::Partial => {}
                _ => panic!("{told}: {organization}: {end:?}: {answer:?}"),
            }
        }
    }
}

fn force(specimen: &Specimen, rng: &mut Rng) {
    for _ in 0..FORCED {
        let organization = rng.usize(..specimen.newest.len());
        // Whether it is answered well is not the question here; what it makes the worker send is.
        specimen.worker.post(&format!("/v1/organizations/org-{organization}/token/refresh"), &[]);
    }
}

fn no_older_token_was_sent(specimen: &Specimen, before: usize, told: &str) {
    let entries: Vec<Entry> = specimen.stand.issuer().record().split_off(before);
    for entry in entries {
        let newest = entry.authorization.and_then(|authorization| specimen.newest.get(&authorization));
        assert!(newest.is_none() || entry.token == newest.copied(), "{told}: an older token was sent: {entry:?}");
        assert!(!entry.replay, "{told}: {entry:?}");
    }
}

/// What the errors ask for helps: with a backup brought back every organization is there as it was then, and no one-time
/// token is sent, since it may have been spent after the backup was taken.
fn a_backup_helps(specimen: &mut Specimen, rng: &mut Rng) {
    specimen.restore();
    let sent_before = specimen.stand.issuer().record().len();
    specimen.worker.launch();
    let ended = specimen.worker.ready();
    assert!(ended.is_none(), "what was restored does not open: {ended:?}\n{}", specimen.worker.log());
    for (organization, known) in specimen.acknowledged(Left::Closed) {
        let shown = specimen.worker.get(&format!("/v1/organizations/{organization}")).json();
        assert_eq!(shown["labels"], known.labels, "{shown}");
        let is_one_time = shown["consent"]["usage"] == "one-time";
        assert!(
            !is_one_time || (&shown["state"], &shown["reason"]) == (&"in_doubt".into(), &"restored".into()),
            "{shown}"
        );
    }
    force(specimen, rng);
    specimen.worker.kill9();
    let sent = specimen.stand.issuer().record().split_off(sent_before);
    let one_time = |entry: &Entry| entry.authorization.is_some_and(|one| specimen.newest.contains_key(&one));
    assert!(!sent.iter().any(one_time), "a one-time token of a backup was sent: {sent:?}");
}
