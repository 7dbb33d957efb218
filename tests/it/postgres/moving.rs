//! `consentry vault move`, from a folder into a database and back, ended at every step.

use std::{fs, path::PathBuf, sync::Arc};

use consentry::{
    clock::SystemClock,
    config::Config,
    metrics::Metrics,
    model::{GrantId, Usage},
    vault::{
        Change, End, Identity, Moved, Progress, Vault, VaultError,
        postgres::{Settings, Store},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::cluster::{Cluster, is_installed};
use crate::harness::{
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

#[test]
fn a_vault_goes_into_a_database_and_comes_back_and_nothing_is_in_doubt() {
    if !is_installed() {
        return;
    }
    let (cluster, stand) = (Cluster::shared(), Stand::start(3600));
    let mut worker = Setup::default().sandbox(&stand).start();
    let consent = stand.consent("birgit", Usage::OneTime, &["481001"]);
    assert_eq!(worker.enrol("481001", &json!({ "provider": CONSENTS, "refresh_token": consent })).status, 201);
    assert_eq!(worker.enrol("499001", &json!({ "provider": KEYS, "api_key": stand.api_key("499001") })).status, 201);
    let (before, exchanges) = (worker.fetch("481001"), stand.issuer().exchanges());
    let own = fs::read_to_string(worker.file("consentry.toml")).expect("it was written");
    let database = worker.file("database.toml");
    let lines =
        format!("engine = \"postgres\"\n[vault.postgres]\nurl = \"{}\"\nschema = \"moved\"\n\n[socket]", cluster.url());
    fs::write(&database, own.replacen("[socket]", &lines, 1)).expect("the folder is ours");
    let back = worker.file("back.toml");
    let elsewhere =
        own.replacen(&worker.vault().display().to_string(), &worker.file("elsewhere").display().to_string(), 1);
    fs::write(&back, elsewhere).expect("the folder is ours");
    let path = |file: &PathBuf| file.to_str().expect("a temporary folder has a plain name").to_owned();

    let refused = worker.command(&["vault", "move", "--to", &path(&database)]);
    assert!(said(&refused.stderr).contains("is in use by process"), "{}", said(&refused.stderr));
    assert!(worker.stop().success());

    let moved = succeeded(&worker, &["vault", "move", "--to", &path(&database), "--json"]);
    assert_eq!((&moved["organizations"], &moved["grants"], &moved["intents"]), (&json!(2), &json!(2), &json!(0)));
    // What was left says so, and is not used.
    let left = worker.command(&["run"]);
    let why = said(&left.stderr);
    assert!(!left.status.success() && why.contains("was moved to schema moved"), "{why}");
    let checked = worker.command(&["check"]);
    assert!(!checked.status.success() && said(&checked.stdout).contains("was moved to"), "{}", said(&checked.stdout));
    let given_up = worker.command(&["vault", "move", "--to", &path(&database), "--give-up"]);
    assert!(!given_up.status.success() && said(&given_up.stderr).contains("was moved to"));

    let returned = succeeded(&worker, &["--config", &path(&database), "vault", "move", "--to", &path(&back), "--json"]);
    assert_eq!(returned["organizations"], 2);
    worker.reconfigure(|_| fs::read_to_string(&back).expect("it was written"));
    let worker = worker.started();
    assert_eq!(worker.fetch("481001"), before, "it is as it was, its access token included");
    let active = worker.metric("consentry_organizations", &["state=\"active\""]);
    assert!((active - 2.0).abs() < f64::EPSILON, "nothing is in doubt");
    assert_eq!(
        (stand.issuer().exchanges(), stand.issuer().replays()),
        (exchanges, 0),
        "and nothing had to be exchanged"
    );
}

fn succeeded(worker: &Worker, arguments: &[&str]) -> Value {
    let output = worker.command(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A vault in a folder, a schema, and a folder to come back to.
struct Places {
    runtime: Runtime,
    identity: Identity,
    folder: Config,
    database: Config,
    back: Config,
    _temporary: TempDir,
}

impl Places {
    fn new(cluster: &Cluster, schema: &str) -> Self {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let identity = Identity::create(&temporary.path().join("identity.txt")).expect("the folder is ours");
        let config = |name: &str, more: &str| {
            let root = temporary.path().display();
            let text = format!("[vault]\npath = \"{root}/{name}\"\nidentity_file = \"{root}/identity.txt\"\n{more}");
            Config::parse(&text).expect("a configuration")
        };
        let database =
            format!("engine = \"postgres\"\n[vault.postgres]\nurl = \"{}\"\nschema = \"{schema}\"", cluster.url());
        let places = Self {
            runtime: Runtime::new().expect("a runtime"),
            folder: config("folder", ""),
            database: config("nowhere", &database),
            back: config("back", ""),
            identity,
            _temporary: temporary,
        };
        Vault::create(&places.folder.vault, &places.identity).expect("the folder is ours");
        places
    }

    fn end<'a>(&'a self, config: &'a Config) -> End<'a> {
        End { config: &config.vault, identity: &self.identity }
    }

    fn move_to(
        &self,
        from: &Config,
        to: &Config,
        told: &mut dyn FnMut(Progress) -> Result<(), VaultError>,
    ) -> Result<Moved, VaultError> {
        self.runtime.block_on(Vault::move_to(self.end(from), self.end(to), told))
    }

    /// Moves, and dies at the first step, then at the second, and so on; each time neither can be used.
    fn move_with_deaths(&self, from: &Config, to: &Config) -> (Moved, usize) {
        for deaths in 0.. {
            let mut steps = 0;
            let moved = self.move_to(from, to, &mut |_| {
                steps += 1;
                if steps > deaths { Err(VaultError::Closed) } else { Ok(()) }
            });
            match moved {
                Ok(moved) => return (moved, deaths),
                Err(error) => assert!(matches!(error, VaultError::Closed), "{error}"),
            }
            // Nor is one made where nothing has come yet.
            for config in [from, to] {
                let error = self.open(config).expect_err("neither can be used");
                let expected = matches!(
                    error,
                    VaultError::Moved { .. }
                        | VaultError::Arriving { .. }
                        | VaultError::Missing { .. }
                        | VaultError::Unusable { .. }
                );
                assert!(expected, "{error}");
            }
        }
        unreachable!("it ends when there are no more steps")
    }

    /// Opens what is there, as a worker would; makes nothing.
    fn open(&self, config: &Config) -> Result<(), VaultError> {
        match &config.vault.postgres {
            None => Vault::open(&config.vault, &self.identity, Metrics::new(&[]))?.close(),
            Some(_) => self.store().map(drop),
        }
    }

    fn store(&self) -> Result<Store, VaultError> {
        let config = self.database.vault.postgres.as_ref().expect("it is in a database");
        let settings = Settings::of(config)?;
        let clock = Arc::new(SystemClock::new());
        self.runtime.block_on(Store::open(&settings, &self.identity, &[], clock, Metrics::new(&[])))
    }
}

#[test]
fn wherever_a_move_into_a_database_or_out_of_it_dies_neither_vault_can_be_used_and_it_goes_on() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let places = Places::new(&cluster, "moved_with_deaths");
    let (there, deaths) = places.move_with_deaths(&places.folder, &places.database);
    assert!(deaths >= 3, "there were {deaths}");
    let epoch = places.store().expect("it is whole").epoch();
    let (back, _) = places.move_with_deaths(&places.database, &places.back);
    assert_eq!((there.records, there.grants), (back.records, back.grants));
    let vault = Vault::open(&places.back.vault, &places.identity, Metrics::new(&[])).expect("it is whole");
    assert_eq!(vault.epoch(), epoch, "nothing was lost");
    assert!(matches!(places.open(&places.database), Err(VaultError::Unusable { .. })));
    assert!(places.open(&places.folder).is_err());
}

#[test]
fn a_move_into_a_database_and_one_out_of_it_can_be_given_up() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let places = Places::new(&cluster, "given_up");
    for (from, to) in [(&places.folder, &places.database), (&places.database, &places.back)] {
        for step in [Progress::Marked, Progress::Compared, Progress::Left] {
            let died = places.move_to(from, to, &mut |now| if now == step { Err(VaultError::Closed) } else { Ok(()) });
            assert!(matches!(died, Err(VaultError::Closed)), "{died:?}");
            places.runtime.block_on(Vault::stay(places.end(from), places.end(to))).expect("it is given up");
            places.open(from).expect("it can be used again");
        }
        places.move_to(from, to, &mut |_| Ok(())).expect("it can be begun anew");
    }
}

#[test]
fn no_vault_is_made_where_one_is_on_its_way_until_that_is_given_up() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let places = Places::new(&cluster, "announced");
    // As a move leaves it that dies when it has only said that it is coming.
    places.runtime.block_on(Vault::stay(places.end(&places.folder), places.end(&places.database))).unwrap_err();
    let from = std::path::absolute(&places.folder.vault.path).expect("it has a place");
    cluster.on_primary(&format!(
        "INSERT INTO announced.moving VALUES (true, '\\x000102030405060708090a0b0c0d0e0f', false, '{}', false)",
        from.display()
    ));
    let refused = places.store().expect_err("no empty vault is made").to_string();
    assert!(refused.contains("is being moved here"), "{refused}");
    places.open(&places.folder).expect("the other is what it was");
    places.runtime.block_on(Vault::stay(places.end(&places.folder), places.end(&places.database))).expect("given up");
    places.store().expect("one is made");
    cluster.on_primary("DELETE FROM announced.vault; DELETE FROM announced.records");
    places.move_to(&places.folder, &places.database, &mut |_| Ok(())).expect("it is vacant");
    places.store().expect("it is whole");
}

#[test]
fn a_vault_is_not_moved_while_a_worker_has_claims_and_whoever_had_it_open_commits_no_more() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let places = Places::new(&cluster, "moved_under_workers");
    places.move_to(&places.folder, &places.database, &mut |_| Ok(())).expect("nobody has it");
    let worker = places.store().expect("it is whole");
    let grant = GrantId::from_bytes([7; 16]);
    places
        .runtime
        .block_on(worker.commit(vec![Change::PutGrant(Box::new(super::store::grant(7)))]))
        .expect("it is stored");
    let hold = places.runtime.block_on(worker.hold(grant, std::time::Duration::ZERO)).expect("nobody has it");

    let refused = places.move_to(&places.database, &places.back, &mut |_| Ok(()));
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("a worker is at work")), "{refused:?}");
    places.runtime.block_on(worker.commit_held(&[&hold], vec![Change::DeleteIntent(grant)])).expect("it goes on here");
    worker.release(hold);

    crate::harness::eventually("the claim is given up", || {
        places.move_to(&places.database, &places.back, &mut |_| Ok(())).ok()
    });
    // Should the other be lost, this one is taken as it is.
    let epoch = worker.epoch();
    let config = places.database.vault.postgres.as_ref().expect("it is in a database");
    let settings = Settings::of(config).expect("settings");
    let accepted = places.runtime.block_on(Store::accept(&settings, &places.identity)).expect("it is whole");
    assert_eq!((accepted.grants, places.store().expect("it can be used").epoch()), (1, epoch + 1));
    let late =
        places.runtime.block_on(worker.commit(vec![Change::DeleteRow(consentry::model::EventId::from_bytes([1; 16]))]));
    assert!(matches!(late, Err(VaultError::Poisoned { .. })), "{late:?}");
}
