//! Backups of a vault in a database: of one moment whatever is written meanwhile, brought back into either engine, and made by one of the
//! workers.

use std::{
    fs,
    io::{self, Write},
    sync::mpsc,
    thread,
};

use consentry::{
    config::Config,
    metrics::Metrics,
    model::{Timestamp, Usage},
    vault::{BackedUp, Change, End, Stored, Vault, VaultError},
};
use serde_json::json;

use super::{
    cluster::{Cluster, is_installed},
    settings,
    store::{Pair, Replica, grant, grant_id, organization, put, put_organization},
};
use crate::harness::{
    eventually,
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const GRANTS: u8 = 40;
/// So many others, and so large, that they take several pages, and are written in several goes.
const FILLERS: u32 = 700;
const FILLER_BYTES: usize = 1000;
const AT: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// Takes a backup's bytes, and waits each time until somebody has written something.
struct Slow {
    bytes: Vec<u8>,
    taken: mpsc::SyncSender<()>,
    written: mpsc::Receiver<()>,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.taken.send(()).is_ok() {
            self.written.recv().ok();
        }
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn backup(replica: &Replica, output: impl Write) -> Result<BackedUp, VaultError> {
    let _here = replica.runtime.enter();
    Vault::from(replica.store.clone()).backup(AT, output)
}

/// A folder's configuration, and a database's.
fn configurations(folder: &tempfile::TempDir, cluster: &Cluster, schema: &str) -> [Config; 2] {
    let root = folder.path().display();
    let vault = format!("[vault]\npath = \"{root}/restored\"\nidentity_file = \"{root}/identity.txt\"\n");
    let database =
        format!("engine = \"postgres\"\n[vault.postgres]\nurl = \"{}\"\nschema = \"{schema}\"\n", cluster.url());
    [vault.clone(), vault + &database].map(|text| Config::parse(&text).expect("a configuration"))
}

#[test]
fn a_backup_is_of_one_moment_whatever_is_written_meanwhile_and_comes_back_into_either_engine() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("backed_up");
    let (one, other) = (&pair.one, &pair.other);
    for id in 1..=GRANTS {
        one.commit(vec![put(grant(id)), put_organization(&format!("org-{id}"), id)]).unwrap();
    }
    for numbers in (0..FILLERS).collect::<Vec<_>>().chunks(100) {
        let filler = |number: &u32| {
            let mut filler = organization(&format!("filler-{number}"), 1);
            filler.labels.insert("filler".to_owned(), "x".repeat(FILLER_BYTES));
            Change::PutOrganization(Box::new(filler))
        };
        one.commit(numbers.iter().map(filler).collect()).unwrap();
    }
    // In each commit every pair of two grants is written together, some go, and some come; and the data key is another at the end.
    let change = |round: u32| {
        let first = u8::try_from(round % u32::from(GRANTS / 2)).unwrap() + 1;
        let ids = [first, first + GRANTS / 2];
        let holds = ids.map(|id| other.runtime.block_on(other.store.hold(grant_id(id), super::LONG)).unwrap());
        let mut changes: Vec<Change> = ids
            .map(|id| {
                let mut changed = grant(id);
                changed.failures = round;
                put(changed)
            })
            .into();
        changes.push(match round % 3 {
            0 => Change::DeleteOrganization(format!("org-{first}").parse().unwrap()),
            _ => put_organization(&format!("new-{round}"), first),
        });
        other.runtime.block_on(other.store.commit_last(holds.into(), changes)).unwrap();
        if round == 5 {
            other.runtime.block_on(other.store.rotate_data_key()).unwrap();
            eventually("the first key goes", || other.store.rekeying().is_none().then_some(()));
        }
    };
    let (taken, next) = mpsc::sync_channel(0);
    let (writes, written) = mpsc::sync_channel(0);
    let (made, bytes, rounds) = thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let mut rounds = 0;
            while next.recv().is_ok() {
                rounds += 1;
                change(rounds);
                if writes.send(()).is_err() {
                    break;
                }
            }
            rounds
        });
        let mut output = Slow { bytes: Vec::new(), taken, written };
        let made = backup(one, &mut output);
        let Slow { bytes, taken, .. } = output;
        drop(taken);
        (made.expect("it is made"), bytes, writing.join().expect("it writes"))
    });
    assert!(rounds > 5, "there were {rounds}");

    let [folder, database] = configurations(&pair.folder, &pair.cluster, "brought_back");
    let restored = Vault::restore(&folder.vault, &pair.identity, &bytes[..], &mut |_| {}).expect("it comes back");
    assert_eq!((restored.records, restored.begun_at), (made.records, AT));
    let vault = Vault::open(&folder.vault, &pair.identity, Metrics::new(&[])).expect("it opens");
    let mut failures = vec![0; usize::from(GRANTS) + 1];
    one.runtime
        .block_on(vault.for_each_grant(&mut |Stored { value, .. }| {
            failures[usize::from(value.id.as_bytes()[0])] = value.failures;
            Ok(())
        }))
        .expect("all of it opens");
    let halves = failures[1..].split_at(usize::from(GRANTS / 2));
    assert_eq!(halves.0, halves.1, "what was written together is there together");
    let newest = *failures.iter().max().unwrap();
    let mut organizations = Vec::new();
    one.runtime
        .block_on(vault.for_each_organization(&mut |stored| {
            organizations.push(stored.value.id.as_str().to_owned());
            Ok(())
        }))
        .unwrap();
    for round in 1..=newest {
        let is_there = |name: String| organizations.contains(&name);
        assert!(round % 3 == 0 || is_there(format!("new-{round}")), "commit {round} of {newest} is there");
        assert!(round % 3 != 0 || !is_there(format!("org-{}", round % u32::from(GRANTS / 2) + 1)), "commit {round}");
    }

    let of_later =
        |name: &String| name.strip_prefix("new-").is_some_and(|round| round.parse::<u32>().unwrap() > newest);
    assert!(!organizations.iter().any(of_later), "and nothing of a later one");

    // Into a database, where an earlier try has left something.
    let to = End { config: &database.vault, identity: &pair.identity };
    let again = one.runtime.block_on(Vault::restore_into_database(to, &bytes[..bytes.len() - 50], &mut |_| {}));
    assert!(matches!(again, Err(VaultError::BackupUnusable { .. })), "{again:?}");
    pair.cluster.on_primary("INSERT INTO brought_back.moving VALUES (true, '\\x000102030405060708090a0b0c0d0e0f', false, 'a backup', false)");
    let again = one.runtime.block_on(Vault::restore_into_database(to, &bytes[..], &mut |_| {})).expect("it comes back");
    assert_eq!(again.records, made.records);
    let replica = Replica::open(&settings(&pair.cluster.url(), "brought_back"), &pair.identity).expect("it opens");
    assert_eq!(replica.store.epoch(), 2, "what is in it may have been spent since");
    assert!((1..=GRANTS).all(|id| replica.grant(id).expect("it opens").value.failures == failures[usize::from(id)]));
    replica.change(1, |grant| grant.paused = true).expect("it is written as ever");
    let taken = one.runtime.block_on(Vault::restore_into_database(to, &bytes[..], &mut |_| {}));
    assert!(matches!(taken, Err(VaultError::Unusable { .. })), "nothing is overwritten: {taken:?}");
}

/// A worker on that schema, with a folder for backups of its own.
fn worker(stand: &Stand, cluster: &Cluster, of: Option<&Worker>) -> Worker {
    let setup = Setup::default()
        .sandbox(stand)
        .database(&format!("url = \"{}\"\nschema = \"operated\"\npoll = \"100ms\"", cluster.url()));
    let worker = match of {
        Some(first) => setup.identity_of(first),
        None => setup,
    }
    .prepare();
    let folder = worker.file("backups").display().to_string();
    let vault = format!("[schedule]\nbackup = \"0 30 2 * * *\"\n\n[vault]\nbackup_dir = \"{folder}\"\n");
    worker.reconfigure(|text| text.replacen("[vault]\n", &vault, 1));
    worker.started()
}

#[test]
fn operators_of_two_workers_take_backups_and_a_new_key_at_either_of_them() {
    if !is_installed() {
        return;
    }
    let (cluster, stand) = (Cluster::shared(), Stand::start(3600));
    let backups = |worker: &Worker| fs::read_dir(worker.file("backups")).map_or(0, Iterator::count);
    let mut one = worker(&stand, &cluster, None);
    eventually("the first makes the backup that was never made", || (backups(&one) == 1).then_some(()));
    let noted = "SELECT count(*) FROM operated.backups WHERE what = 'scheduled'";
    eventually("and says so", || (cluster.on_primary(noted) == "1").then_some(()));
    let mut two = worker(&stand, &cluster, Some(&one));
    let consent = stand.consent("birgit", Usage::OneTime, &["481001"]);
    assert_eq!(one.enrol("481001", &json!({ "provider": CONSENTS, "refresh_token": consent })).status, 201);
    assert_eq!(two.enrol("499001", &json!({ "provider": KEYS, "api_key": stand.api_key("499001") })).status, 201);
    let status = two.get("/v1/status").json();
    assert!(status["vault"]["last_backup_at"].is_string(), "but it knows of it: {status}");
    assert!(two.metric("consentry_backup_last_success_timestamp_seconds", &[]) > 0.0);

    let rotated = two.command(&["key", "rotate", "--json"]);
    assert!(rotated.status.success(), "{rotated:?}");
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&rotated.stdout).unwrap(),
        json!({ "data_key": 2, "done": true })
    );
    let token = one.fetch("481001");
    let file = one.file("backup.age");
    let made = one.command(&["backup", file.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    assert!(one.stop().success() && two.stop().success());
    assert_eq!((backups(&one), backups(&two)), (1, 0), "what one has made the other does not make again");

    // Into another schema, from which one goes on.
    two.reconfigure(|text| text.replace("schema = \"operated\"", "schema = \"operated_again\""));
    let restored = two.command(&["restore", file.to_str().unwrap()]);
    assert!(restored.status.success(), "{restored:?}");
    let two = two.started();
    assert_eq!(two.fetch("481001"), token, "it is served while it lives");
    // With other workers about, that is found out before its token would be sent.
    let exchanges = stand.issuer().exchanges();
    assert_eq!(two.post("/v1/organizations/481001/token/refresh", &[]).status, 409);
    let shown = two.get("/v1/organizations/481001").json();
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("in_doubt"), &json!("restored")), "{shown}");
    assert_eq!(stand.issuer().exchanges(), exchanges);
    two.fetch("499001");
}
