//! Backups taken while the vault is used, and what they bring back.

use std::{
    fs,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    model::DoubtReason,
    vault::{
        backup::{BackedUp, Input},
        engine,
        restore::fill,
    },
};

/// A vault's records by name.
type Records = BTreeMap<name::Name, Vec<u8>>;

/// An engine that lets something happen before each record of a scan is handed over, and hands over what was there when the scan
/// began, or what is there by then.
struct Interrupted {
    memory: Memory,
    stale: bool,
    between: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Interrupted {
    fn all(&self) -> Records {
        let mut all = Records::new();
        for kind in Kind::ALL {
            let mut each = |name: &name::Name, sealed| {
                all.insert(*name, sealed);
                Ok(())
            };
            self.memory.scan(kind, &mut each).unwrap();
        }
        all
    }
}

impl Engine for Arc<Interrupted> {
    fn get(&self, name: &name::Name) -> Result<Option<Vec<u8>>, VaultError> {
        self.memory.get(name)
    }
    fn tag(&self, name: &name::Name) -> Result<Option<u128>, VaultError> {
        self.memory.tag(name)
    }
    fn scan(&self, kind: Kind, each: Each<'_>) -> Result<(), VaultError> {
        let began_with = self.all();
        let mut last = None;
        loop {
            let now = if self.stale { began_with.clone() } else { self.all() };
            let next = now.iter().find(|(name, _)| name.kind() == kind && last.is_none_or(|last| last < **name));
            let Some((name, sealed)) = next else { return Ok(()) };
            last = Some(*name);
            if let Some(between) = &mut *self.between.lock().unwrap() {
                between();
            }
            each(name, sealed.clone())?;
        }
    }
    fn next(&self, after: Option<&name::Name>, most: usize) -> Result<Vec<(name::Name, Vec<u8>)>, VaultError> {
        self.memory.next(after, most)
    }
    fn write(
        &self,
        writes: &std::collections::HashMap<name::Name, Option<&[u8]>>,
        mark: &Mark,
    ) -> Result<(), VaultError> {
        self.memory.write(writes, mark)
    }
    fn mark(&self) -> Result<Option<Mark>, VaultError> {
        self.memory.mark()
    }
    fn sync(&self) -> Result<(), VaultError> {
        self.memory.sync()
    }
    fn bytes(&self) -> u64 {
        0
    }
}

/// A vault over such an engine, and the vault's records after each commit.
fn interrupted(fixture: &Fixture, stale: bool) -> (Vault, Arc<Interrupted>) {
    let engine = Arc::new(Interrupted { memory: Memory::default(), stale, between: Mutex::default() });
    let mark = Mark { applied: 1, ..Mark::default() };
    let keyring = fixture.keyring();
    let mut journal = Journal::open(&fixture.path("journal"), keyring.vault, true).unwrap();
    journal.start_over(1, None).unwrap();
    let opened = Opened { engine: Box::new(Arc::clone(&engine)), lock: None };
    let shared = Shared::new(opened, keyring, codec::Meta::NEW, &mark, journal.bytes(), Metrics::new(&[]));
    (Writer::start(shared, Folder::at(&fixture.config.path), journal, mark).unwrap(), engine)
}

/// Commits some changes that a seed chooses.
fn commit_something(vault: &Vault, chance: &mut fastrand::Rng) -> u64 {
    let count = chance.usize(1..4);
    let changes = (0..count).map(|_| match (chance.u8(..6), chance.u8(..40)) {
        (0, number) => Change::DeleteGrant(id(number)),
        (1, number) => Change::PutIntent(intent(number)),
        (2, number) => Change::DeleteIntent(id(number)),
        (3, number) => Change::PutOrganization(Box::new(organization(&number.to_string(), number))),
        (4, number) if number < 4 => stray(),
        (_, number) => put(number),
    });
    let changes = changes.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let sequence = runtime.block_on(vault.commit(changes)).unwrap();
    if chance.u8(..4) == 0 {
        bring_up(vault).unwrap();
    }
    sequence
}

/// Every record after the last commit: as the engine has it, and what it lacks.
fn all(vault: &Vault, engine: &Arc<Interrupted>) -> Records {
    let engine = Arc::clone(engine);
    // Asked of the writer, so that nothing moves from the one to the other meanwhile.
    let all = vault.ask(move |writer| {
        let mut all = engine.all();
        let backlog = &writer.shared.backlog;
        for name in Kind::ALL.into_iter().flat_map(|kind| backlog.names(kind)) {
            match backlog.newest(&name, || unreachable!("it is here")).unwrap() {
                Some(sealed) => all.insert(name, sealed),
                None => all.remove(&name),
            };
        }
        Ok(all)
    });
    all.unwrap()
}

#[test]
fn whatever_is_committed_while_it_is_made_a_backup_is_the_state_after_one_commit() {
    let fixture = Fixture::new();
    let mut during = 0;
    for seed in 0..120 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let (vault, engine) = interrupted(&fixture, seed % 2 == 0);
        let states: Arc<Mutex<BTreeMap<u64, Records>>> = Arc::default();
        for _ in 0..chance.usize(0..30) {
            let sequence = commit_something(&vault, &mut chance);
            states.lock().unwrap().insert(sequence, all(&vault, &engine));
        }
        let before = states.lock().unwrap().last_key_value().map_or(1, |(sequence, _)| *sequence);
        states.lock().unwrap().entry(before).or_default();
        let often = chance.u8(1..8);
        *engine.between.lock().unwrap() = Some(Box::new({
            let (vault, engine, states) = (vault.clone(), Arc::clone(&engine), Arc::clone(&states));
            move || {
                while chance.u8(..8) < often {
                    let sequence = commit_something(&vault, &mut chance);
                    states.lock().unwrap().insert(sequence, all(&vault, &engine));
                }
            }
        }));
        let mut file = Vec::new();
        let made = vault.backup(Timestamp::from_millis(7), &mut file).unwrap();
        *engine.between.lock().unwrap() = None;
        during += made.sequence - before;

        let (mut input, header) = Input::open(&fixture.identity, &file[..]).unwrap();
        assert_eq!((header.begun_at, header.sequence), (Timestamp::from_millis(7), before));
        let copy = Interrupted { memory: Memory::default(), stale: false, between: Mutex::default() };
        let (_, mark) = fill(&copy.memory, &mut input, header).unwrap();
        assert_eq!(mark.applied, made.sequence, "seed {seed}");
        let states = states.lock().unwrap();
        assert!(copy.all() == states[&made.sequence], "seed {seed}: not the state after commit {}", made.sequence);
    }
    assert!(during > 1000, "{during} commits were made meanwhile");
}

#[test]
fn a_vault_that_is_busier_than_a_backup_can_follow_goes_on_and_the_backup_fails() {
    let fixture = Fixture::new();
    let (vault, engine) = interrupted(&fixture, false);
    let mut chance = fastrand::Rng::with_seed(1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(vault.commit(vec![put(1), put(2)])).unwrap();
    *engine.between.lock().unwrap() = Some(Box::new({
        let vault = vault.clone();
        move || {
            commit_something(&vault, &mut chance);
        }
    }));
    let error = vault.backup_within(100, Timestamp::default(), io::sink()).unwrap_err();
    assert!(matches!(error, VaultError::BackupOutrun { limit: 100 }), "{error}");
    *engine.between.lock().unwrap() = None;
    runtime.block_on(vault.commit(vec![put(3)])).unwrap();
    assert!(vault.poisoned().is_none());
    vault.backup(Timestamp::default(), io::sink()).expect("the next one is not held up by it");
}

#[test]
fn one_backup_is_made_at_a_time() {
    let fixture = Fixture::new();
    let (vault, engine) = interrupted(&fixture, false);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(vault.commit(vec![put(1)])).unwrap();
    let second = Arc::new(Mutex::new(None));
    *engine.between.lock().unwrap() = Some(Box::new({
        let (vault, second) = (vault.clone(), Arc::clone(&second));
        move || *second.lock().unwrap() = Some(vault.backup(Timestamp::default(), io::sink()))
    }));
    vault.backup(Timestamp::default(), io::sink()).unwrap();
    let second = second.lock().unwrap().take().unwrap();
    assert!(matches!(second, Err(VaultError::BackupUnderWay)));
    *engine.between.lock().unwrap() = None;
    vault.backup(Timestamp::default(), io::sink()).unwrap();
}

#[test]
fn an_engine_that_loses_a_record_is_noticed_when_the_backup_is_made() {
    let fixture = Fixture::new();
    let (vault, engine) = interrupted(&fixture, false);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(vault.commit(vec![put(1), put(2)])).unwrap();
    bring_up(&vault).unwrap();
    let (name, mark) = (*engine.all().keys().next().unwrap(), engine.memory.mark().unwrap().unwrap());
    engine.memory.write(&[(name, None)].into(), &mark).unwrap();
    let error = vault.backup(Timestamp::default(), io::sink()).unwrap_err();
    assert!(error.is_damaged(), "{error}");
}

#[test]
fn nobody_who_takes_it_ends_the_backup_and_nothing_else() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let fixture = Fixture::new();
    let vault = fixture.open();
    let error = vault.backup(Timestamp::default(), Gone).unwrap_err();
    assert!(matches!(error, VaultError::BackupUnwritten { .. }), "{error}");
    assert!(vault.poisoned().is_none());
    vault.backup(Timestamp::default(), io::sink()).unwrap();
}

impl Fixture {
    /// The place of a vault on a new machine, with this identity.
    pub(super) fn elsewhere(&self, recipients: Vec<String>) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let config = VaultConfig { path: temporary.path().join("vault"), recipients, ..self.config.clone() };
        Self { temporary, config, identity: Identity::read(&self.config.identity_file).unwrap() }
    }

    pub(super) fn restore(&self, backup: &[u8]) -> Result<Restored, VaultError> {
        Vault::restore(&self.config, &self.identity, backup, &mut |_| ())
    }

    /// Restoring fails, and leaves nothing behind.
    pub(super) fn restore_refused(&self, backup: &[u8]) -> String {
        let error = self.restore(backup).expect_err("it must be refused");
        let left: Vec<_> =
            fs::read_dir(self.temporary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?} is left behind: {error}");
        assert!(matches!(error, VaultError::BackupUnusable { .. }), "{error}");
        error.to_string()
    }
}

pub(super) fn backup_of(vault: &Vault) -> Vec<u8> {
    let mut file = Vec::new();
    let BackedUp { sequence, .. } = vault.backup(Timestamp::from_millis(1_000), &mut file).unwrap();
    assert!(sequence > 0);
    file
}

#[tokio::test]
async fn a_restored_vault_holds_everything_in_a_new_epoch_under_new_numbers() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let mut last = 0;
    for number in 0..200 {
        let changes = vec![put(number), Change::PutOrganization(Box::new(organization(&format!("o{number}"), number)))];
        last = vault.commit(changes).await.unwrap();
    }
    last = last.max(vault.commit(vec![Change::PutIntent(intent(3)), stray()]).await.unwrap());
    let (fingerprint, entity_tag) = (vault.fingerprint(&Secret::new("x")), vault.entity_tag(&Secret::new("x")));
    let backup = backup_of(&vault);
    vault.commit(vec![put(201)]).await.unwrap();

    let offline = Identity::create(&fixture.temporary.path().join("offline")).unwrap();
    let new = fixture.elsewhere(vec![offline.recipient()]);
    let mut read = 0;
    let restored = Vault::restore(&new.config, &new.identity, &backup[..], &mut |bytes| read += bytes).unwrap();
    assert_eq!(read, backup.len() as u64);
    assert_eq!((restored.records, restored.grants, restored.organizations), (402, 200, 200));
    assert_eq!(restored.begun_at, Timestamp::from_millis(1_000));
    let left: Vec<_> = fs::read_dir(new.temporary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["vault"]);
    for identity in [&new.identity, &offline] {
        assert_eq!(Vault::inspect(&new.config, identity).unwrap().records, 402);
    }

    let vault = new.open();
    assert_eq!((vault.epoch(), vault.epoch_reason()), (2, DoubtReason::Restored));
    assert_eq!(grants(&vault), (0..200).collect::<Vec<_>>());
    let grant = vault.grant(id(7)).at_once().unwrap().unwrap().value;
    assert_eq!((grant.credential.secret().expose(), grant.epoch), ("MARKER-refresh-7", 1));
    assert_eq!(vault.organization(&"o9".parse().unwrap()).at_once().unwrap().unwrap().value.grant, id(9));
    assert_eq!(vault.intent(id(3)).at_once().unwrap(), Some(intent(3)));
    assert_eq!(vault.stats().strays, 1);
    assert_eq!(vault.fingerprint(&Secret::new("x")), fingerprint);
    assert_eq!(vault.entity_tag(&Secret::new("x")), entity_tag);
    let next = vault.commit(vec![put(202)]).await.unwrap();
    assert!(next > last + (1 << 40), "no number is given out twice: {next}");

    // And once more, from a backup of the restored one.
    let again = new.elsewhere(Vec::new());
    again.restore(&backup_of(&vault)).unwrap();
    let vault = again.open();
    assert_eq!((vault.epoch(), grants(&vault).len()), (3, 201));
    assert_eq!(Vault::inspect(&new.config, &offline).unwrap_err().to_string(), {
        format!("vault {} is in use by process {}", new.config.path.display(), std::process::id())
    });
}

#[tokio::test]
async fn a_backup_is_never_brought_back_over_a_vault_or_over_anything_else() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    let backup = backup_of(&vault);
    vault.close().unwrap();
    let before = fixture.files();
    let error = fixture.restore(&backup).unwrap_err();
    assert!(matches!(error, VaultError::AlreadyThere { .. }), "{error}");
    fs::remove_file(fixture.path("format")).unwrap();
    assert!(matches!(fixture.restore(&backup).unwrap_err(), VaultError::Unfinished { .. }));
    let kept = fixture.files();
    assert!(before.iter().all(|(path, bytes)| path.ends_with("format") || kept.get(path) == Some(bytes)));

    let new = fixture.elsewhere(Vec::new());
    fs::create_dir(&new.config.path).unwrap();
    fs::write(new.path("notes"), "somebody's").unwrap();
    assert!(new.restore(&backup).unwrap_err().to_string().contains("not empty"));
    fs::remove_file(new.path("notes")).unwrap();
    new.restore(&backup).expect("an empty folder gives way");
    assert_eq!(grants(&new.open()), [1]);
}

#[tokio::test]
async fn what_a_restore_that_died_has_left_is_no_vault_and_does_not_hinder_the_next() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    let backup = backup_of(&vault);
    vault.close().unwrap();
    let new = fixture.elsewhere(Vec::new());
    let staging = new.temporary.path().join("vault.restoring");
    // Every part that is there before it has its name; the last one is all of a vault.
    for parts in [&[][..], &["LOCK"], &["LOCK", "db"], &["LOCK", "db", "keyring.age", "journal"], &["whole"]] {
        folder::copy_tree(&fixture.config.path, &staging).unwrap();
        for entry in fs::read_dir(&staging).unwrap().map(Result::unwrap) {
            if !parts.contains(&"whole") && !parts.contains(&&*entry.file_name().to_string_lossy()) {
                let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
            }
        }
        assert!(matches!(new.try_open(), Err(VaultError::Missing { .. })));
        new.restore(&backup).unwrap();
        assert!(!staging.exists());
        let vault = new.open();
        assert_eq!((grants(&vault), vault.epoch()), (vec![1], 2));
        drop(vault);
        fs::remove_dir_all(&new.config.path).unwrap();
    }
}

#[tokio::test]
async fn only_who_the_vault_is_encrypted_to_can_bring_a_backup_back() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    let backup = backup_of(&vault);
    // Whoever can write to the folder may add to this list; nothing is encrypted because of it.
    let stranger = Identity::create(&fixture.temporary.path().join("stranger")).unwrap();
    fs::write(fixture.path("recipients.txt"), stranger.recipient()).unwrap();
    let later = backup_of(&vault);
    let mut new = fixture.elsewhere(Vec::new());
    new.restore(&later).unwrap();
    fs::remove_dir_all(&new.config.path).unwrap();
    new.identity = stranger;
    for backup in [&backup, &later] {
        let told = new.restore_refused(backup);
        assert!(told.contains(&new.identity.recipient()) && told.contains("vault.identity_file"), "{told}");
    }
}

#[tokio::test]
async fn a_backup_shows_no_id_and_no_secret() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(0x5a), stray()]).await.unwrap();
    let backup = backup_of(&vault);
    for marker in [&b"MARKER"[..], b"marker", &[0x5a; 16]] {
        assert!(!backup.windows(marker.len()).any(|window| window == marker));
    }
}

#[tokio::test]
async fn a_backup_with_a_record_that_does_not_open_is_refused() {
    let fixture = Fixture::new();
    let (vault, engine) = interrupted(&fixture, false);
    vault.commit(vec![put(1)]).await.unwrap();
    bring_up(&vault).unwrap();
    let (name, mut mark) = (*engine.all().keys().next().unwrap(), engine.memory.mark().unwrap().unwrap());
    let garbage = [7; 60];
    mark.replace(name.kind(), engine.memory.tag(&name).unwrap(), Some(engine::tag(&garbage)));
    engine.memory.write(&[(name, Some(&garbage[..]))].into(), &mark).unwrap();
    vault
        .ask(move |writer| {
            writer.mark = mark;
            Ok(())
        })
        .unwrap();
    fixture.elsewhere(Vec::new()).restore_refused(&backup_of(&vault));
}

#[tokio::test]
async fn scheduled_backups_are_whole_private_and_as_many_as_are_wanted() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    let folder = fixture.temporary.path().join("backups");
    let backups = ScheduledBackups::new(folder.clone(), 2);
    let at = |day: i64| Timestamp::from_millis(day * 86_400_000);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(".consentry-backup.tmp"), "left behind").unwrap();
    fs::write(folder.join("notes"), "somebody's").unwrap();
    for day in 1..=3 {
        let (path, written) = backups.write(&vault, at(day), &|| false).unwrap();
        assert_eq!(written.records, 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(backups.newest(at(9)).unwrap(), Some(at(day)));
    }
    let stopped = backups.write(&vault, at(4), &|| true).unwrap_err();
    assert!(matches!(stopped, VaultError::BackupUnwritten { .. }), "{stopped}");
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["consentry-19700103T000000Z.age", "consentry-19700104T000000Z.age", "notes"]);
    let new = fixture.elsewhere(Vec::new());
    new.restore(&fs::read(folder.join(&names[1])).unwrap()).unwrap();
    assert_eq!(grants(&new.open()), [1]);
}
