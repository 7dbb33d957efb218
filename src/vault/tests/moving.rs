//! A move from one folder to another, ended at every step: each time what is found is one vault that can be used, or none and a
//! move that goes on.

use std::path::Path;

use super::{
    super::{
        cipher,
        moving::{HereInFolder, beside},
        name::Name,
    },
    *,
};

/// Two places in one folder, and who opens them.
struct Stage {
    temporary: tempfile::TempDir,
    identity: Identity,
}

impl Stage {
    /// With a vault of so many grants in the first place.
    fn new(grants: u8) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let identity = Identity::create(&temporary.path().join("identity.txt")).unwrap();
        let stage = Self { temporary, identity };
        Vault::create(&stage.config("from"), &stage.identity).unwrap();
        let vault = stage.open("from").unwrap();
        for numbers in (1..=grants).collect::<Vec<_>>().chunks(50) {
            let changes = numbers.iter().flat_map(|number| everything_about(*number)).collect();
            runtime().block_on(vault.commit(changes)).unwrap();
        }
        vault.close().unwrap();
        stage
    }

    fn config(&self, name: &str) -> VaultConfig {
        VaultConfig {
            path: self.temporary.path().join("world").join(name),
            identity_file: self.temporary.path().join("identity.txt"),
            recipients: Vec::new(),
            cache_bytes: 8 << 20,
            backup_dir: None,
            backup_keep: 14,
            postgres: None,
        }
    }

    fn open(&self, name: &str) -> Result<Vault, VaultError> {
        Vault::open(&self.config(name), &self.identity, Metrics::new(&[]))
    }

    fn move_to(&self, told: &mut dyn FnMut(Progress) -> Result<(), VaultError>) -> Result<Moved, VaultError> {
        let (from, to) = (self.config("from"), self.config("to"));
        let end = |config| End { config, identity: &self.identity };
        runtime().block_on(Vault::move_to(end(&from), end(&to), told))
    }

    fn stay(&self) -> Result<(), VaultError> {
        let (from, to) = (self.config("from"), self.config("to"));
        let end = |config| End { config, identity: &self.identity };
        runtime().block_on(Vault::stay(end(&from), end(&to)))
    }

    /// Every record, as it is sealed.
    fn records(&self, name: &str) -> Vec<(Name, Vec<u8>)> {
        let here = HereInFolder::open(End { config: &self.config(name), identity: &self.identity }).unwrap();
        let mut records = Vec::new();
        while let Some(more) =
            Some(here.next(records.last().map(|(name, _)| name), 100).unwrap()).filter(|more| !more.is_empty())
        {
            records.extend(more);
        }
        records
    }

    /// What the disk held at every step of a move, each as a world of its own.
    fn deaths(&self) -> Vec<(Progress, tempfile::TempDir)> {
        let mut worlds = Vec::new();
        let world = self.temporary.path().join("world");
        self.move_to(&mut |progress| {
            let copy = tempfile::tempdir().unwrap();
            folder::copy_tree(&world, &copy.path().join("world")).unwrap();
            worlds.push((progress, copy));
            Ok(())
        })
        .unwrap();
        worlds
    }

    /// Brings a world back to where it was.
    fn bring_back(&self, world: &Path) {
        let own = self.temporary.path().join("world");
        fs::remove_dir_all(&own).unwrap();
        folder::copy_tree(&world.join("world"), &own).unwrap();
    }
}

/// A grant with all that there can be with it.
fn everything_about(number: u8) -> Vec<Change> {
    let organization = organization(&number.to_string(), number);
    vec![put(number), Change::PutOrganization(Box::new(organization)), Change::PutIntent(intent(number)), stray()]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "what a move tells may end it")]
fn go_on(_: Progress) -> Result<(), VaultError> {
    Ok(())
}

#[test]
fn everything_is_moved_as_it_is_and_the_vault_that_is_left_refuses() {
    let stage = Stage::new(40);
    let (before, epoch, tag) = {
        let vault = stage.open("from").unwrap();
        let tag = vault.fingerprint(&Secret::new("some-secret"));
        let epoch = vault.epoch();
        vault.close().unwrap();
        (stage.records("from"), epoch, tag)
    };
    let moved = stage.move_to(&mut go_on).unwrap();
    assert_eq!((moved.grants, moved.organizations), (40, 40));
    assert!(stage.records("to") == before, "every record, sealed as it was");

    let vault = stage.open("to").unwrap();
    assert_eq!((vault.epoch(), vault.fingerprint(&Secret::new("some-secret"))), (epoch, tag));
    let sequence = runtime().block_on(vault.commit(everything_about(99))).unwrap();
    assert!(before.iter().all(|(_, sealed)| cipher::sequence(sealed) < Some(sequence)), "numbers go on");
    vault.close().unwrap();

    for refused in
        [stage.open("from").err().unwrap(), Vault::inspect(&stage.config("from"), &stage.identity).unwrap_err()]
    {
        assert!(matches!(refused, VaultError::Moved { gone: true, .. }), "{refused}");
    }
    assert!(matches!(stage.stay(), Err(VaultError::Moved { gone: true, .. })));
    assert_eq!(stage.move_to(&mut go_on).unwrap(), moved, "once more is no more");

    // As after any older copy.
    Vault::accept(&stage.config("from"), &stage.identity).unwrap();
    let vault = stage.open("from").unwrap();
    assert_eq!(vault.epoch(), epoch + 1, "its one-time tokens are in doubt");
    vault.close().unwrap();
}

#[test]
fn wherever_a_move_dies_neither_vault_can_be_used_and_the_same_command_goes_on() {
    let stage = Stage::new(200);
    let before = stage.records("from");
    let deaths = stage.deaths();
    assert!(deaths.iter().filter(|(progress, _)| matches!(progress, Progress::Copied { .. })).count() >= 2);
    for (progress, world) in &deaths {
        stage.bring_back(world.path());
        let from = stage.open("from").err().unwrap();
        assert!(matches!(from, VaultError::Moved { .. }), "{progress:?}: {from}");
        let to = stage.open("to").err().unwrap();
        assert!(matches!(to, VaultError::Arriving { .. } | VaultError::Missing { .. }), "{progress:?}: {to}");
        if !matches!(progress, Progress::Marked) {
            let made = Vault::create(&stage.config("to"), &stage.identity);
            assert!(matches!(made, Err(VaultError::Arriving { .. })), "{progress:?}: no other vault is made there");
        }
        stage.move_to(&mut go_on).unwrap();
        assert!(stage.records("to") == before, "{progress:?}");
        stage.open("to").unwrap().close().unwrap();
        assert!(stage.open("from").is_err(), "{progress:?}");
    }
}

#[test]
fn a_move_can_be_given_up_at_every_step_before_it_is_done() {
    let stage = Stage::new(200);
    let before = stage.records("from");
    for (progress, world) in stage.deaths() {
        stage.bring_back(world.path());
        if let Err(error) = stage.stay() {
            panic!("{progress:?}: {error}");
        }
        assert!(stage.records("from") == before, "{progress:?}");
        let vault = stage.open("from").unwrap();
        assert_eq!(vault.epoch(), 1, "nothing was lost");
        vault.close().unwrap();
        assert!(!beside(&stage.config("to").path).unwrap().exists(), "{progress:?}");
        assert!(matches!(stage.stay(), Err(VaultError::NotMoving)), "{progress:?}");
    }
}

#[test]
fn a_place_that_is_taken_is_left_alone_and_so_is_the_vault() {
    let stage = Stage::new(1);
    Vault::create(&stage.config("to"), &stage.identity).unwrap();
    assert!(matches!(stage.move_to(&mut go_on), Err(VaultError::AlreadyThere { .. })));
    stage.open("from").unwrap().close().unwrap();
    fs::remove_dir_all(&stage.config("to").path).unwrap();

    // What another move has left.
    fs::create_dir(beside(&stage.config("to").path).unwrap()).unwrap();
    assert!(matches!(stage.move_to(&mut go_on), Err(VaultError::Arriving { of_another: true, .. })));
    stage.open("from").unwrap().close().unwrap();
}

#[test]
fn a_vault_that_was_moved_goes_nowhere_else_and_not_to_where_the_other_has_vanished_from() {
    let stage = Stage::new(1);
    stage.move_to(&mut go_on).unwrap();
    let elsewhere = stage.config("elsewhere");
    let from = stage.config("from");
    let end = |config| End { config, identity: &stage.identity };
    let again = runtime().block_on(Vault::move_to(end(&from), end(&elsewhere), &mut go_on));
    assert!(matches!(again, Err(VaultError::Moved { gone: true, .. })), "{again:?}");
    fs::remove_dir_all(&stage.config("to").path).unwrap();
    for tried in [stage.move_to(&mut go_on).map(drop), stage.stay()] {
        assert!(
            matches!(tried, Err(VaultError::Moved { gone: true, .. })),
            "its tokens may have been spent: {tried:?}"
        );
    }
}

#[test]
fn a_vault_that_a_worker_holds_is_not_moved() {
    let stage = Stage::new(1);
    let vault = stage.open("from").unwrap();
    assert!(matches!(stage.move_to(&mut go_on), Err(VaultError::InUse { .. })));
    vault.close().unwrap();
}
