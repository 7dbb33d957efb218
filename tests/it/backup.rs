//! Backups of a worker that is at work, and what a vault does that went back in time.

use std::{collections::BTreeSet, fs, io::Read as _, os::unix::fs::PermissionsExt as _, path::Path};

use consentry::{model::Usage, sandbox::Entry};
use serde_json::{Value, json};

use crate::harness::{
    eventually,
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

/// How long access tokens live, in seconds: they are exchanged all the time.
const LIFETIME: u64 = 4;
const ONE_TIME: usize = 24;
const OTHERS: usize = 3;

/// A worker with organizations of every kind, and every kind's ids.
struct Fleet {
    stand: Stand,
    worker: Worker,
    one_time: Vec<String>,
    others: Vec<String>,
}

fn fleet() -> Fleet {
    let stand = Stand::start(LIFETIME);
    let worker = Setup::default().sandbox(&stand).start();
    let ids = |kind: &str, count| (0..count).map(|number| format!("{kind}-{number}")).collect::<Vec<_>>();
    let (one_time, reuse, keys) = (ids("one", ONE_TIME), ids("reuse", OTHERS), ids("key", OTHERS));
    let consents = one_time.iter().map(|id| (id, Usage::OneTime)).chain(reuse.iter().map(|id| (id, Usage::Reuse)));
    for (id, usage) in consents {
        let token = stand.consent(&format!("user-{id}"), usage, &[id]);
        assert_eq!(worker.enrol(id, &json!({ "provider": CONSENTS, "refresh_token": token })).status, 201);
    }
    for id in &keys {
        assert_eq!(worker.enrol(id, &json!({ "provider": KEYS, "api_key": stand.api_key(id) })).status, 201);
    }
    // A token is known to be re-usable once an exchange has given it back.
    Fleet { stand, worker, one_time, others: [reuse, keys].concat() }
}

impl Fleet {
    /// Waits until every one-time token was exchanged `times` more.
    fn rotate(&self, times: u64) {
        let enough = self.stand.issuer().exchanges() + times * (ONE_TIME + 2 * OTHERS) as u64;
        eventually("tokens rotate", || (self.stand.issuer().exchanges() >= enough).then_some(()));
    }

    /// Starts the worker on the vault as it is now, and sees that no one-time token is sent while all others go on.
    fn goes_on_without_a_replay(self) {
        let before = self.stand.issuer().exchanges();
        let worker = self.worker.restart();
        let organizations = list(&worker);
        let listed: BTreeSet<&str> = organizations.iter().filter_map(|one| one["organization"].as_str()).collect();
        let all: BTreeSet<&str> = self.one_time.iter().chain(&self.others).map(String::as_str).collect();
        assert_eq!(listed, all);
        for id in &self.others {
            assert!(self.stand.takes(&worker.fetch(id)), "{id} is served at once");
        }
        // Long enough for every one-time token to have been due.
        let enough = self.stand.issuer().exchanges() + 4 * self.others.len() as u64;
        eventually("the others go on", || (self.stand.issuer().exchanges() >= enough).then_some(()));
        for one in list(&worker) {
            let id = one["organization"].as_str().expect("an id");
            let expected = if self.one_time.iter().any(|known| known == id) {
                (json!("in_doubt"), json!("restored"))
            } else {
                (json!("active"), Value::Null)
            };
            assert_eq!((one["state"].clone(), one["reason"].clone()), expected, "{one}");
        }
        let refused = worker.get(&format!("/v1/organizations/{}/token", self.one_time[0]));
        assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("in_doubt")), "{refused:?}");
        assert_eq!(worker.post(&format!("/v1/organizations/{}/token/refresh", self.one_time[0]), &[]).status, 409);

        let made = self.stand.issuer().exchanges() - before;
        let entries = self.stand.issuer().last_entries(usize::try_from(made).expect("few"));
        let one_time = |entry: &Entry| entry.user.as_deref().is_some_and(|user| user.starts_with("user-one-"));
        assert_eq!(entries.iter().filter(|entry| one_time(entry)).count(), 0, "{entries:?}");
        assert_eq!(self.stand.issuer().replays(), 0);
        // A second start finds nothing to change any more.
        let worker = worker.restart();
        assert_eq!(list(&worker).iter().filter(|one| one["reason"] == "restored").count(), ONE_TIME);
    }
}

fn list(worker: &Worker) -> Vec<Value> {
    let listed = worker.command(&["org", "list", "--json"]);
    assert!(listed.status.success(), "{listed:?}");
    serde_json::from_slice(&listed.stdout).expect("a list")
}

/// Runs a command that has to end well; gives what it printed.
fn done(worker: &Worker, arguments: &[&str]) -> String {
    let output = worker.command(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that has to fail with 1; gives what it said.
fn refused(worker: &Worker, arguments: &[&str]) -> String {
    let output = worker.command(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn path(file: &Path) -> &str {
    file.to_str().expect("text")
}

#[test]
fn a_backup_taken_under_load_comes_back_on_a_new_machine_and_no_spent_token_is_sent() {
    let mut fleet = fleet();
    fleet.rotate(1);
    let worker = &fleet.worker;
    let file = worker.file("backup.age");
    assert!(done(worker, &["backup", path(&file)]).contains("backed up to"));
    assert_eq!(fs::metadata(&file).expect("written").permissions().mode() & 0o777, 0o600);
    assert!(fs::read(&file).expect("written").starts_with(b"age-encryption.org/v1\n"));
    assert!(refused(worker, &["backup", path(&file)]).contains("--force"));
    done(worker, &["backup", path(&file), "--force"]);
    assert!(worker.log().contains("action=\"backup\" outcome=\"done\""), "{}", worker.log());
    assert!(worker.get("/v1/status").json()["vault"]["last_backup_at"].is_string());
    assert!(worker.metric("consentry_backup_last_success_timestamp_seconds", &[]) > 1e9);
    // More is spent after it, and then all is lost but the backup, the configuration and the identity.
    fleet.rotate(2);
    fleet.worker.kill9();
    let worker = &fleet.worker;
    assert!(refused(worker, &["restore", path(&file)]).contains("--in-place"), "a vault is there");
    fs::remove_dir_all(worker.file("vault")).expect("ours");
    let told = done(worker, &["restore", path(&file)]);
    assert!(told.contains(&format!("{} organizations", ONE_TIME + 2 * OTHERS)), "{told}");
    assert!(done(worker, &["check"]).contains("the vault in"));
    fleet.goes_on_without_a_replay();
}

#[test]
fn an_older_copy_of_the_vaults_folder_is_put_back_in_place_and_no_spent_token_is_sent() {
    let mut fleet = fleet();
    fleet.rotate(1);
    fleet.worker.stop();
    let (vault, copy) = (fleet.worker.file("vault"), fleet.worker.file("copy"));
    copy_folder(&vault, &copy);
    fleet.worker = fleet.worker.restart();
    assert!(refused(&fleet.worker, &["restore", "--in-place"]).contains("is in use by process"));
    fleet.rotate(2);
    fleet.worker.kill9();
    fs::remove_dir_all(&vault).expect("ours");
    fs::rename(&copy, &vault).expect("ours");
    let told = done(&fleet.worker, &["restore", "--in-place"]);
    assert!(told.contains("have to be enrolled again"), "{told}");
    fleet.goes_on_without_a_replay();
}

#[test]
fn a_vault_whose_database_is_older_than_its_journal_is_refused_with_both_ways_out() {
    let mut fleet = fleet();
    fleet.worker.stop();
    let (db, copy) = (fleet.worker.file("vault/db"), fleet.worker.file("copy"));
    copy_folder(&db, &copy);
    fleet.worker = fleet.worker.restart();
    fleet.rotate(2);
    fleet.worker.stop();
    fs::remove_dir_all(&db).expect("ours");
    fs::rename(&copy, &db).expect("ours");
    let told = refused(&fleet.worker, &["run"]);
    for command in ["consentry restore FILE", "consentry restore --in-place"] {
        assert!(told.contains(command), "{told}");
    }
    let checked = fleet.worker.command(&["check"]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("restore --in-place"), "{checked:?}");
    let told = done(&fleet.worker, &["restore", "--in-place"]);
    assert!(told.contains("commits ") && told.contains(" are gone"), "{told}");
    let worker = fleet.worker.restart();
    eventually("all one-time grants are in doubt", || {
        (list(&worker).iter().filter(|one| one["reason"] == "rolled_back").count() == ONE_TIME).then_some(())
    });
    assert_eq!(fleet.stand.issuer().replays(), 0);
}

#[test]
fn scheduled_backups_are_made_from_the_start_and_can_be_brought_back() {
    let stand = Stand::start(3600);
    let mut worker = Setup::default().sandbox(&stand).start();
    worker.enrol("499001", &json!({ "provider": KEYS, "api_key": stand.api_key("499001") }));
    let folder = worker.file("backups");
    worker.reconfigure(|text| {
        let text =
            text.replace("[vault]\n", &format!("[vault]\nbackup_dir = \"{}\"\nbackup_keep = 2\n", folder.display()));
        text + "\n[schedule]\nbackup = \"* * * * * *\"\nsweep = \"* * * * * *\"\n"
    });
    worker = worker.restart();
    let names = || -> Vec<String> {
        let entries = fs::read_dir(&folder).into_iter().flatten();
        let names = entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text"));
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    let first = eventually("a backup is made", || names().first().cloned());
    eventually("the first one gives way", || names().first().filter(|name| **name != first).map(drop));
    assert!(names().len() <= 3, "{:?}", names());
    assert!(done(&worker, &["check"]).contains("the newest backup in"));
    assert!(worker.get("/v1/status").json()["vault"]["last_backup_at"].is_string());
    worker.stop();
    let newest = folder.join(names().last().expect("at least one"));
    fs::remove_dir_all(worker.file("vault")).expect("ours");
    done(&worker, &["restore", path(&newest)]);
    let worker = worker.restart();
    assert!(stand.takes(&worker.fetch("499001")));
}

#[test]
fn a_backup_that_breaks_off_is_never_taken_for_a_whole_one() {
    let lines = "kind = \"oauth2\"\nclient_id = \"example\"\ntoken_url = \"http://127.0.0.1:9/token\"\n";
    let mut worker = Setup::default().provider("unreachable", "client-secret", lines).start();
    // More than all buffers on the way hold.
    let line = |number: u32| {
        let token = format!("hush-{number}-{}", "x".repeat(1000));
        json!({ "organization": format!("org-{number}"), "provider": "unreachable", "refresh_token": token })
            .to_string()
    };
    let fleet = worker.file("fleet.jsonl");
    fs::write(&fleet, (0..4000).map(line).collect::<Vec<_>>().join("\n")).expect("ours");
    done(&worker, &["import", path(&fleet)]);
    let file = worker.file("whole.age");
    done(&worker, &["backup", path(&file)]);
    let whole = fs::metadata(&file).expect("written").len();

    let mut command = worker.spawn(&["backup", "-"]);
    let mut output = command.stdout.take().expect("it is piped");
    let mut first = [0; 1000];
    output.read_exact(&mut first).expect("it begins");
    worker.kill9();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("a pipe of our child");
    assert!((rest.len() as u64) + 1000 < whole, "it was cut");
    let status = command.wait().expect("our child");
    assert_eq!(status.code(), Some(1));
    fs::remove_dir_all(worker.file("vault")).expect("ours");
    fs::write(&file, [&first[..], &rest].concat()).expect("ours");
    assert!(refused(&worker, &["restore", path(&file)]).contains("the backup cannot be used"));
    assert!(!worker.file("vault").exists() && !worker.file("vault.restoring").exists());
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("ours");
    for entry in fs::read_dir(from).expect("ours").map(|entry| entry.expect("readable")) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("ours");
        }
    }
}
