//! Kills in the middle of writing the vault's files anew: whatever had been copied by then is thrown away, and nothing is lost.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use consentry::{
    metrics::Metrics,
    model::{Grant, GrantId},
    vault::{Change, Stored, Vault},
};
use fastrand::Rng;
use serde_json::json;

use super::{check_at_rest, up_to};
use crate::harness::{
    PATIENCE,
    chance::{Seed, tell},
    eventually,
    worker::{Setup, Worker},
};

const ORGANIZATIONS: usize = 2500;
/// So large that all of them are more than files may waste without being written anew.
const TOKEN_BYTES: usize = 6000;
/// How often all records are written again: after that the files are several times as large as what is in them.
const WRITTEN: usize = 4;
const WRITTEN_AT_ONCE: usize = 25;
const KILLS: u32 = 6;
/// How long the successor is written at most before the kill: a part of what all of it takes.
const HALF_WAY: Duration = Duration::from_millis(40);
/// How often it is looked whether there is one.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How the name of the folder begins that the successor is written in.
const SUCCESSOR: &str = "db.trial-";

#[test]
fn a_worker_that_is_killed_while_it_writes_the_files_anew_loses_nothing_and_ends_it_later() {
    let mut rng = Rng::with_seed(Seed::new("compaction").0);
    // Nobody answers there: every credential stays as it was enrolled.
    let provider = "kind = \"oauth2\"\nclient_id = \"c\"\ntoken_url = \"http://127.0.0.1:9/token\"";
    let mut worker = Setup::default().log("level = \"info\"").provider("p", "a-client-secret", provider).start();
    import(&worker);
    assert!(worker.stop().success());
    let secrets = write_again_and_again(&worker);
    assert_eq!(secrets.len(), ORGANIZATIONS);
    let first = main_file(&worker);

    let mut half_way = 0;
    for kill in 0..KILLS {
        worker.launch();
        let begun = Instant::now();
        while successor(&worker).is_none() {
            assert!(begun.elapsed() < PATIENCE, "the files are not written anew\n{}", worker.log());
            thread::sleep(LOOK_EVERY);
        }
        // The first comes at once, so that at least that one is in the middle on any machine.
        thread::sleep(up_to(HALF_WAY * kill / KILLS, &mut rng));
        worker.kill9();
        if main_file(&worker) != first {
            break;
        }
        half_way += usize::from(successor(&worker).is_some());
    }
    assert!(half_way > 0, "no kill came in the middle");
    tell(&format!("{half_way} kills half-way"));

    if main_file(&worker) == first {
        worker.launch();
        assert_eq!(worker.ready(), None, "{}", worker.log());
        eventually("the files have changed places", || (main_file(&worker) != first).then_some(()));
        eventually("the former files are gone", || successor(&worker).is_none().then_some(()));
        assert!(worker.stop().success());
    }
    check_at_rest(&worker);
    assert!(read_at_rest(&worker) == secrets, "some are not what they were");
    assert_eq!(successor(&worker), None);
}

fn import(worker: &Worker) {
    let lines = (0..ORGANIZATIONS).map(|number| {
        let token = format!("{number:0TOKEN_BYTES$}");
        json!({ "organization": number.to_string(), "provider": "p", "refresh_token": token }).to_string()
    });
    let file = worker.file("fleet.jsonl");
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("the folder is ours");
    let imported = worker.command(&["import", file.to_str().expect("a plain name")]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
}

/// Writes every grant several times as it is, without letting the vault tidy up; gives the secret of each.
fn write_again_and_again(worker: &Worker) -> BTreeMap<GrantId, String> {
    let secrets = read_at_rest(worker);
    let (runtime, vault) = open(worker);
    let undisturbed = vault.undisturbed();
    let ids: Vec<GrantId> = secrets.keys().copied().collect();
    runtime.block_on(async {
        for some in std::iter::repeat_n(&ids, WRITTEN).flat_map(|ids| ids.chunks(WRITTEN_AT_ONCE)) {
            let mut changes = Vec::new();
            for id in some {
                let stored = vault.grant(*id).await.expect("it can be read").expect("it is there");
                changes.push(Change::PutGrant(Box::new(stored.value)));
            }
            vault.commit(changes).await.expect("there is room");
        }
    });
    vault.clone().close().expect("it closes");
    drop(undisturbed);
    secrets
}

/// The secret of each grant in the vault, which no worker holds.
fn read_at_rest(worker: &Worker) -> BTreeMap<GrantId, String> {
    let (runtime, vault) = open(worker);
    let mut secrets = BTreeMap::new();
    let mut keep = |stored: Stored<Grant>| {
        secrets.insert(stored.value.id, stored.value.credential.secret().expose().to_owned());
        Ok(())
    };
    runtime.block_on(vault.for_each_grant(&mut keep)).expect("it can be read");
    vault.close().expect("it closes");
    secrets
}

fn open(worker: &Worker) -> (tokio::runtime::Runtime, Vault) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (config, identity) = worker.vault_config();
    (runtime, Vault::open(&config, &identity, Metrics::new(&[])).expect("it opens"))
}

/// The inode of the engine's main file: another one after an exchange.
fn main_file(worker: &Worker) -> u64 {
    fs::metadata(worker.vault().join("db/db")).expect("it is there at any time").ino()
}

/// The folder in which a successor is written, if there is one.
fn successor(worker: &Worker) -> Option<PathBuf> {
    let entries = fs::read_dir(worker.vault()).expect("the folder is ours");
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(SUCCESSOR.as_bytes())))
}
