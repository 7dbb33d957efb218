//! A new data key while the worker works, and who can open the vault.

use std::{
    fs,
    path::Path,
    process::Output,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use consentry::{model::Usage, vault::Identity};
use serde_json::{Value, json};

use crate::harness::{
    eventually,
    http::over_unix,
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const ORGANIZATIONS: usize = 2_000;
/// How often a new data key is tried until the worker is caught in the middle of it.
const TRIES: u64 = 10;
/// What a vault says whose keyring lacks the data key of a record.
const KEY_IS_GONE: &str = "a data key that is not there";

#[test]
fn a_new_data_key_is_taken_into_use_under_load_and_through_a_kill_and_the_old_one_is_gone() {
    let stand = Stand::start(3600);
    let mut worker = started(&stand);
    let file = worker.file("fleet.jsonl");
    fs::write(&file, fleet(&stand).join("\n")).expect("the folder is ours");
    let imported = worker.command(&["import", &file.display().to_string()]);
    assert!(imported.status.success(), "{imported:?}");
    eventually("all are exchanged", || (active(&worker) == ORGANIZATIONS).then_some(()));
    let old_keyring = fs::read(worker.file("vault/keyring.age")).expect("it is there");

    // Killed in the middle, while tokens are fetched and exchanges are made.
    let load = Load::default();
    let answered = thread::scope(|scope| {
        for caller in 0..4 {
            scope.spawn({
                let (load, stand, worker) = (&load, &stand, &worker);
                move || load.run(caller, stand, worker)
            });
        }
        eventually("callers are answered", || (load.answered.load(Ordering::Relaxed) > 20).then_some(()));
        let caught = (2..2 + TRIES).any(|number| {
            let started = worker.post("/v1/vault/keys", &[]);
            assert_eq!((started.status, &started.json()["data_key"]), (202, &json!(number)), "{started:?}");
            let (mut before, mut caught) = (0.0, false);
            while let Some(progress) = vault(&worker)["rekey_progress"].as_f64() {
                assert!((before..=1.0).contains(&progress), "{before} and then {progress}");
                before = progress;
                if (0.1..0.9).contains(&progress) && load.refreshed.load(Ordering::Relaxed) > 0 {
                    caught = true;
                    break;
                }
            }
            caught
        });
        assert!(caught, "it was always done before anybody could look");
        load.ended.store(true, Ordering::Relaxed);
        worker.signal(rustix::process::Signal::KILL);
        load.answered.load(Ordering::Relaxed)
    });
    worker.wait();
    let data_keys = load.refused();
    assert!(data_keys.is_empty(), "{answered} were answered well, and then: {data_keys:?}");

    let checked = stdout(&worker.command(&["check"]));
    assert!(checked.contains("not all records are sealed under the new data key yet"), "{checked}");

    let worker = worker.restart();
    let shown = eventually("it goes on by itself, and to the end", || {
        Some(vault(&worker)).filter(|vault| vault["rekey_progress"].is_null())
    });
    assert_eq!(shown["rekey_problem"], Value::Null);
    assert!((worker.metric("consentry_vault_rekey_progress", &[]) - 1.0).abs() < f64::EPSILON);
    for number in 0..ORGANIZATIONS {
        assert!(stand.takes(&worker.fetch(&id(number))), "{}", id(number));
    }
    assert_eq!(stand.issuer().replays(), 0);

    // Once more by command, which waits for the end.
    let number = shown["data_key"].as_u64().expect("a number") + 1;
    let rotated = worker.command(&["key", "rotate", "--json"]);
    assert!(rotated.status.success(), "{rotated:?}");
    let told: Value = serde_json::from_slice(&rotated.stdout).expect("JSON");
    assert_eq!(told, json!({ "data_key": number, "done": true }));
    assert_eq!((&vault(&worker)["data_key"], &vault(&worker)["rekey_progress"]), (&json!(number), &Value::Null));
    assert!(worker.log().contains("action=\"rotate_key\"") && worker.log().contains("outcome=\"started\""));

    // With a copy of the old keyring nothing opens that was sealed anew.
    let mut worker = worker;
    worker.stop();
    let checked = worker.command(&["check"]);
    assert!(stdout(&checked).contains("opens, and all of its"), "{checked:?}");
    fs::write(worker.file("vault/keyring.age"), old_keyring).expect("the folder is ours");
    let checked = worker.command(&["check"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    assert!(stdout(&checked).contains(KEY_IS_GONE), "{checked:?}");
}

#[test]
fn who_can_open_the_vault_is_listed_and_changed_by_command() {
    let stand = Stand::start(3600);
    let worker = started(&stand);
    assert_eq!(worker.enrol("1", &json!({ "provider": KEYS, "api_key": stand.api_key("1") })).status, 201);
    let file = worker.file("recovery.txt");
    let recovery = Identity::create(&file).expect("the folder is ours").recipient();
    let own = Identity::read(&worker.file("identity.txt")).expect("init made it").recipient();
    let listed = |all: &Value| -> Vec<(String, bool)> {
        let all = all["recipients"].as_array().expect("a list");
        all.iter().map(|one| (one["recipient"].as_str().expect("text").to_owned(), one["own"] == json!(true))).collect()
    };
    let command = |worker: &Worker, arguments: &[&str]| -> Value {
        let output = worker.command(&[&["key", "recipients", "--json"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    assert_eq!(listed(&command(&worker, &[])), [(own.clone(), true)]);

    // A configuration that says something else is told, with what to do.
    worker.reconfigure(|text| text.replace("[vault]\n", &format!("[vault]\nrecipients = [\"{recovery}\"]\n")));
    let mut worker = worker.restart();
    assert!(worker.log().contains(&format!("consentry key recipients add {recovery}")), "{}", worker.log());
    let hint = format!("consentry key recipients add {recovery}");
    assert!(stdout(&worker.command(&["check"])).contains(&hint));
    let both = [(own.clone(), true), (recovery.clone(), false)];
    assert_eq!(listed(&command(&worker, &["add", &recovery])), both);
    assert_eq!(listed(&command(&worker, &["add", &recovery])), both, "again is no change");
    assert!(!stdout(&worker.command(&["check"])).contains("vault.recipients,"));

    // The recovery key opens the vault.
    worker.stop();
    let opened = |worker: &Worker| check_with(worker, &file);
    let checked = opened(&worker);
    assert!(stdout(&checked).contains("opens, and all of its 2 records"), "{checked:?}");
    let copied = fs::read(worker.file("vault/keyring.age")).expect("it is there");
    let worker = worker.restart();

    // The worker's own stays, and nonsense and secrets are refused, the latter without a word of them.
    let refused = worker.command(&["key", "recipients", "remove", &own]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(stderr(&refused).contains("the worker's own identity"), "{refused:?}");
    let secret = fs::read_to_string(&file).expect("it is there");
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).expect("a key").to_owned();
    worker.plant(&secret);
    for wrong in [&*secret, "age1oops", &secret.to_lowercase()] {
        let refused = worker.command(&["key", "recipients", "add", wrong]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(!stderr(&refused).to_uppercase().contains(&secret[20..]), "{refused:?}");
        assert!(stderr(&refused).lines().count() <= 2, "{refused:?}");
    }
    for path in [&*secret, "age1oops", "x", "age1%20"] {
        let refused = worker.request("PUT", &format!("/v1/vault/recipients/{path}"), &[], "");
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(!refused.body.contains(&secret[20..]), "{refused:?}");
    }

    // Removed, it opens the vault no more; with the keyring copied before, only until there is a new data key.
    let removed = worker.command(&["key", "recipients", "remove", &recovery]);
    assert_eq!(stdout(&removed), format!("{own}  the worker's own identity\n"));
    assert!(stderr(&removed).contains("consentry key rotate"), "{removed:?}");
    let again = worker.command(&["key", "recipients", "remove", &recovery]);
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    assert!(stdout(&worker.command(&["key", "rotate"])).contains("under data key 2"));
    for (action, outcome) in
        [("add_recipient", "added"), ("add_recipient", "unchanged"), ("remove_recipient", "removed")]
    {
        let log = worker.log();
        let mut lines = log.lines().filter(|line| line.contains(&format!("action=\"{action}\"")));
        let found = lines.any(|line| line.contains(&format!("outcome=\"{outcome}\"")) && line.contains(&recovery));
        assert!(found, "{action} {outcome}\n{log}");
    }
    let mut worker = worker;
    worker.stop();
    let checked = opened(&worker);
    assert!(stdout(&checked).contains("does not open the vault"), "{checked:?}");
    fs::write(worker.file("vault/keyring.age"), copied).expect("the folder is ours");
    let checked = opened(&worker);
    assert!(stdout(&checked).contains(KEY_IS_GONE), "{checked:?}");
}

/// Callers who fetch, and who force exchanges.
#[derive(Default)]
struct Load {
    ended: AtomicBool,
    answered: AtomicUsize,
    refreshed: AtomicUsize,
    wrong: std::sync::Mutex<Vec<String>>,
}

impl Load {
    fn run(&self, caller: usize, stand: &Stand, worker: &Worker) {
        for number in (caller..).step_by(7) {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let forces = number.is_multiple_of(3);
            let path = format!("/v1/organizations/{}/token", id(number % ORGANIZATIONS));
            let (method, path) = if forces { ("POST", format!("{path}/refresh")) } else { ("GET", path) };
            match over_unix(worker.socket(), method, &path, &[], "") {
                Ok(answer) if answer.status == 200 => {
                    let token = answer.json()["access_token"].as_str().expect("a token").to_owned();
                    if !stand.takes(&token) {
                        self.note(format!("{method} {path} gave a token that the API does not take"));
                    }
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    self.refreshed.fetch_add(usize::from(forces), Ordering::Relaxed);
                }
                // Forced too often, or more than the share of the budget that callers may force.
                Ok(answer) if forces && answer.status == 429 => {}
                // It may have been killed meanwhile.
                other if !self.ended.load(Ordering::Relaxed) => self.note(format!("{method} {path}: {other:?}")),
                _ => {}
            }
        }
    }

    fn note(&self, what: String) {
        self.wrong.lock().expect("no panic").push(what);
    }

    fn refused(&self) -> Vec<String> {
        self.wrong.lock().expect("no panic").clone()
    }
}

/// A worker with a budget that does not hold two thousand organizations up.
fn started(stand: &Stand) -> Worker {
    let url = stand.url();
    let common = format!("organizations_url = \"{url}/v1/organizations\"\nmax_per_minute = 60000");
    let ((id, secret), (personal_id, personal_secret)) = (stand.client(), stand.personal_client());
    let consents = format!("kind = \"visma-connect\"\nissuer = \"{url}\"\nclient_id = \"{id}\"\n{common}");
    let keys = format!(
        "kind = \"dinero-personal\"\ntoken_url = \"{url}/dineroapi/oauth/token\"\nclient_id = \"{personal_id}\"\n{common}"
    );
    // Two thousand organizations make long logs.
    let setup = Setup::default().log("level = \"info\"");
    setup.provider(CONSENTS, secret, &consents).provider(KEYS, personal_secret, &keys).start()
}

fn id(number: usize) -> String {
    format!("org-{number}")
}

/// A line of an import for each organization: one-time and re-use tokens, and API keys.
fn fleet(stand: &Stand) -> Vec<String> {
    let line = |number: usize| {
        let organization = id(number);
        let usage = if number.is_multiple_of(3) { Usage::OneTime } else { Usage::Reuse };
        let line = if number % 3 == 2 {
            json!({ "organization": organization, "provider": KEYS, "api_key": stand.api_key(&organization) })
        } else {
            let token = stand.consent(&organization, usage, &[&organization]);
            json!({ "organization": organization, "provider": CONSENTS, "refresh_token": token })
        };
        line.to_string()
    };
    (0..ORGANIZATIONS).map(line).collect()
}

fn vault(worker: &Worker) -> Value {
    worker.get("/v1/status").json()["vault"].clone()
}

fn active(worker: &Worker) -> usize {
    let count = worker.get("/v1/status").json()["organizations"]["active"].as_u64().expect("a count");
    usize::try_from(count).expect("few")
}

/// `consentry check` with another identity.
fn check_with(worker: &Worker, identity: &Path) -> Output {
    worker.command_with(&["check"], &[("CONSENTRY__VAULT__IDENTITY_FILE", &identity.display().to_string())])
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
