//! A vault in two states, closed cleanly and left by a kill, with all that was acknowledged about it.

use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use consentry::{
    metrics::Metrics,
    model::{Timestamp, Usage},
    sandbox::Outcome,
    vault::Vault,
};
use serde_json::{Value, json};

use crate::harness::{
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const ONE_TIME: usize = 10;
const REUSE: usize = 3;
const API_KEYS: usize = 3;
/// How often each organization is written anew besides.
const REWRITES: usize = 3;
/// Room for some thirty commits, so that most of the journal holds something.
const JOURNAL_BYTES: u64 = 128 * 1024;
/// After so long without a write, the engine has written out all that it was given, and the journal's last note is there:
/// from then on it is known what was durable.
const REST: Duration = Duration::from_secs(2);

/// How the vault was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Closed,
    Killed,
}

/// An organization as it was acknowledged last.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Acknowledged {
    pub(super) access_token: String,
    pub(super) labels: Value,
}

/// What there is to be damaged.
#[derive(Debug)]
pub(super) struct Specimen {
    /// Not running; its vault is to be put in place with [`put`](Self::put).
    pub(super) worker: Worker,
    pub(super) stand: Stand,
    closed: BTreeMap<String, Acknowledged>,
    killed: BTreeMap<String, Acknowledged>,
    /// By authorization, the place of the newest refresh token.
    pub(super) newest: BTreeMap<u64, u32>,
}

impl Specimen {
    pub(super) fn make() -> Self {
        let stand = Stand::start(3600);
        let mut worker = Setup::default().log("level = \"info\"").journal(JOURNAL_BYTES).sandbox(&stand).start();
        let mut organizations = Vec::new();
        for number in 0..ONE_TIME + REUSE {
            let usage = if number < ONE_TIME { Usage::OneTime } else { Usage::Reuse };
            let organization = format!("org-{number}");
            let token = stand.consent(&organization, usage, &[&organization]);
            organizations.push((organization, json!({ "provider": CONSENTS, "refresh_token": token })));
        }
        for number in 0..API_KEYS {
            let organization = format!("key-{number}");
            let key = stand.api_key(&organization);
            organizations.push((organization, json!({ "provider": KEYS, "api_key": key })));
        }
        for (organization, body) in &organizations {
            let answer = worker.enrol(organization, body);
            assert_eq!(answer.status, 201, "{answer:?}");
            let forced = worker.post(&format!("/v1/organizations/{organization}/token/refresh"), &[]);
            assert_eq!(forced.status, 200, "{forced:?}");
        }
        (0..REWRITES).for_each(|round| label(&worker, &organizations, round));
        let closed = acknowledged(&worker, &organizations);
        thread::sleep(REST);
        assert!(worker.stop().success());
        copy(worker.vault(), &worker.file("closed"));
        back_up(&worker);

        let mut worker = worker.restart();
        label(&worker, &organizations, REWRITES);
        let killed = acknowledged(&worker, &organizations);
        thread::sleep(REST);
        worker.kill9();
        copy(worker.vault(), &worker.file("killed"));

        let mut newest = BTreeMap::new();
        for entry in stand.issuer().record().iter().filter(|entry| entry.result == Outcome::Granted) {
            if let (Some(authorization), Some(token), Some(Usage::OneTime)) =
                (entry.authorization, entry.token, entry.usage)
            {
                newest.insert(authorization, token + 1);
            }
        }
        assert_eq!(newest.len(), ONE_TIME, "every one-time grant was exchanged");
        Self { worker, stand, closed, killed, newest }
    }

    /// Puts the vault in place as it was left.
    pub(super) fn put(&self, left: Left) {
        let vault = self.worker.vault();
        if vault.exists() {
            fs::remove_dir_all(vault).expect("the folder is ours");
        }
        copy(&self.worker.file(if left == Left::Closed { "closed" } else { "killed" }), vault);
    }

    /// Brings back the backup that was taken before the last writes, in place of whatever is there; gives what is in it.
    pub(super) fn restore(&self) -> &BTreeMap<String, Acknowledged> {
        let (config, identity) = self.worker.vault_config();
        fs::remove_dir_all(&config.path).expect("the folder is ours");
        let backup = File::open(self.worker.file("backup.age")).expect("it was made");
        Vault::restore(&config, &identity, backup, &mut |_| {}).expect("a backup can be restored");
        &self.closed
    }

    pub(super) const fn acknowledged(&self, left: Left) -> &BTreeMap<String, Acknowledged> {
        match left {
            Left::Closed => &self.closed,
            Left::Killed => &self.killed,
        }
    }
}

/// Takes a backup of a vault that no worker holds.
fn back_up(worker: &Worker) {
    let (config, identity) = worker.vault_config();
    let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("it was closed cleanly");
    let output = File::create_new(worker.file("backup.age")).expect("the folder is ours");
    vault.backup(Timestamp::default(), output).expect("there is room for it");
    vault.close().expect("nobody else has it");
}

/// Every file below `folder`, in order of their names.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is ours") {
        let path = entry.expect("the folder is ours").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Copies a folder with the times of its files: the vault knows by them whether it was touched.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("the folder is ours");
    for entry in fs::read_dir(from).expect("the folder is ours") {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).expect("the folder is ours");
        if path.is_dir() {
            copy(&path, &to.join(name));
            continue;
        }
        fs::copy(&path, to.join(&name)).expect("the folder is ours");
        let modified = fs::metadata(&path).and_then(|about| about.modified()).expect("the system keeps times");
        let copied = File::options().write(true).open(to.join(&name)).expect("the folder is ours");
        copied.set_times(FileTimes::new().set_modified(modified)).expect("the folder is ours");
    }
}

/// Enrols every organization once more, with another label: a write that spends no token.
fn label(worker: &Worker, organizations: &[(String, Value)], round: usize) {
    for (organization, body) in organizations {
        let mut body = body.clone();
        body["labels"] = json!({ "round": round.to_string() });
        let answer = worker.enrol(organization, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn acknowledged(worker: &Worker, organizations: &[(String, Value)]) -> BTreeMap<String, Acknowledged> {
    let look = |organization: &String| {
        let shown = worker.get(&format!("/v1/organizations/{organization}")).json();
        Acknowledged { access_token: worker.fetch(organization), labels: shown["labels"].clone() }
    };
    organizations.iter().map(|(organization, _)| (organization.clone(), look(organization))).collect()
}
