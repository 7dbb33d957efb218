//! The vault as a whole, on real files. A crash is a copy of the folder taken while it is open: what the kernel holds at
//! that moment is what a killed process leaves.

mod back;
mod backlog;
mod backup;
mod backup_parts;
mod compact;
mod damage;
mod fuzz;
mod judged;
mod killed;
mod moving;
mod recipients;
mod rekey;
mod wiped;

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::atomic::Ordering, time::Duration,
};

use super::{
    engine::{Each, Engine, Mark},
    folder::Folder,
    journal::Journal,
    keyring::Keyring,
    memory::Memory,
    name::{Kind, Namer},
    open,
    shared::{Opened, Shared},
    sled::SledEngine,
    writer::Writer,
    *,
};
use crate::{
    config::VaultConfig,
    metrics::Metrics,
    model::{AccessToken, ClientCredentials, Credential, Fingerprint, State},
    tests::AtOnce as _,
};

const SMALL_JOURNAL: u64 = 128 * 1024;

struct Fixture {
    temporary: tempfile::TempDir,
    config: VaultConfig,
    identity: Identity,
}

impl Fixture {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let identity = Identity::create(&temporary.path().join("identity.txt")).unwrap();
        let config = VaultConfig {
            path: temporary.path().join("vault"),
            identity_file: temporary.path().join("identity.txt"),
            recipients: Vec::new(),
            cache_bytes: 8 << 20,
            backup_dir: None,
            backup_keep: 14,
            postgres: None,
        };
        open::create(&config, &identity, SMALL_JOURNAL).unwrap();
        Self { temporary, config, identity }
    }

    fn open(&self) -> Vault {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Vault, VaultError> {
        Vault::open(&self.config, &self.identity, Metrics::new(&[]))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.path.join(name)
    }

    /// What would be on the disk if every process died now, as a vault of its own.
    fn crashed(&self) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let config = VaultConfig { path: temporary.path().join("vault"), ..self.config.clone() };
        folder::copy_tree(&self.config.path, &config.path).unwrap();
        Self { temporary, config, identity: Identity::read(&self.config.identity_file).unwrap() }
    }

    /// Every file's bytes but the lock's.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (files, _) = folder::walk(&self.config.path).unwrap();
        let files = files.into_iter().filter(|file| !file.ends_with("LOCK"));
        files.map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
    }

    /// Opening fails, and leaves every file as it was.
    fn refusal(&self) -> VaultError {
        let before = self.files();
        let error = self.try_open().expect_err("the vault must be refused");
        assert!(before == self.files(), "files were changed by a refused opening: {error}");
        error
    }

    /// The parts of this vault, with another engine.
    fn keyring(&self) -> Keyring {
        Keyring::read(&Folder::at(&self.config.path), &self.identity).unwrap()
    }
}

fn id(number: u8) -> GrantId {
    GrantId::from_bytes([number; 16])
}

fn grant(number: u8) -> Grant {
    Grant {
        id: id(number),
        provider: "marker-provider".parse().unwrap(),
        credential: Credential::RefreshToken(Secret::new(format!("MARKER-refresh-{number}"))),
        fingerprint: Fingerprint([number; 16]),
        spent: Vec::new(),
        client: Some(ClientCredentials { id: "MARKER-client".into(), secret: Secret::new("MARKER-client-secret") }),
        access: Some(AccessToken {
            token: Secret::new(format!("MARKER-access-{number}")),
            token_type: "Bearer".into(),
            scope: Some("MARKER-scope".into()),
            issued_at: Timestamp::from_millis(1),
            expires_at: Timestamp::from_millis(2),
            issued_boot: None,
        }),
        state: State::Active,
        since: Timestamp::from_millis(1),
        paused: false,
        subject: Some("MARKER-subject".into()),
        consent: None,
        refreshed_at: None,
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: vec!["MARKER-organization".parse().unwrap()],
        epoch: 1,
    }
}

fn put(number: u8) -> Change {
    Change::PutGrant(Box::new(grant(number)))
}

fn organization(text: &str, number: u8) -> Organization {
    let labels = [("MARKER-key".to_owned(), "MARKER-value".to_owned())].into();
    Organization { id: text.parse().unwrap(), grant: id(number), labels, added_at: Timestamp::from_millis(1) }
}

fn intent(number: u8) -> Intent {
    Intent {
        grant: id(number),
        fingerprint: Fingerprint([number; 16]),
        attempt: 1,
        first_at: Timestamp::from_millis(1),
        first_boot: Duration::from_secs(1),
        boot_id: 1,
    }
}

fn stray() -> Change {
    Change::PutStray(Box::new(Stray {
        grant: id(1),
        at: Timestamp::from_millis(1),
        why: "MARKER-why".into(),
        refresh_token: Some(Secret::new("MARKER-stray-refresh")),
        access_token: Secret::new("MARKER-stray-access"),
    }))
}

/// Gives the engine what it lacks, as it is given that when nothing comes for a while.
fn bring_up(vault: &Vault) -> Result<(), VaultError> {
    vault.ask(Writer::bring_up)
}

fn grants(vault: &Vault) -> Vec<u8> {
    let mut seen = Vec::new();
    vault
        .for_each_grant(&mut |stored| {
            seen.push(stored.value.id.as_bytes()[0]);
            Ok(())
        })
        .at_once()
        .unwrap();
    seen.sort_unstable();
    seen
}

#[tokio::test]
async fn what_is_committed_is_read_back_before_and_after_reopening() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    assert_eq!(vault.epoch(), 1);
    let organization = organization("42", 1);
    let changes =
        vec![put(1), Change::PutOrganization(Box::new(organization.clone())), Change::PutIntent(intent(1)), stray()];
    let sequence = vault.commit(changes).await.unwrap();
    let later = vault.commit(vec![put(2), put(3), Change::DeleteGrant(id(3))]).await.unwrap();
    assert!(later > sequence);
    let tag = vault.entity_tag(&Secret::new("x"));
    assert_eq!(tag.len(), 16);
    let fingerprint = vault.fingerprint(&Secret::new("x"));
    assert_ne!(fingerprint, vault.fingerprint(&Secret::new("y")));

    let check = |vault: &Vault| {
        let read = vault.grant(id(1)).at_once().unwrap().unwrap();
        assert_eq!(read.sequence, sequence);
        assert_eq!(read.value.credential.secret().expose(), "MARKER-refresh-1");
        assert_eq!(vault.organization(&organization.id).at_once().unwrap().unwrap().value, organization);
        assert_eq!(vault.intent(id(1)).at_once().unwrap(), Some(intent(1)));
        assert!(vault.grant(id(3)).at_once().unwrap().is_none());
        assert_eq!(grants(vault), [1, 2]);
        let stats = vault.stats();
        assert_eq!((stats.records, stats.strays, stats.data_key), (5, 1, 1));
        assert!(stats.bytes > SMALL_JOURNAL);
        assert_eq!(vault.entity_tag(&Secret::new("x")), tag);
        assert_eq!(vault.fingerprint(&Secret::new("x")), fingerprint);
    };
    check(&vault);
    vault.close().unwrap();
    let vault = fixture.open();
    check(&vault);
    let next = vault.commit(vec![Change::DeleteIntent(id(1))]).await.unwrap();
    assert!(next > later);
    assert_eq!(vault.stats().records, 4);
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_committed() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    for number in 1..=20 {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    vault.commit(vec![Change::DeleteGrant(id(7))]).await.unwrap();
    let crashed = fixture.crashed();
    let reopened = crashed.open();
    assert_eq!(grants(&reopened), (1..=20).filter(|number| *number != 7).collect::<Vec<_>>());
    assert_eq!(reopened.stats().records, 19);
    assert_eq!(grants(&crashed.crashed().open()).len(), 19, "and once more, right after the replay");
    let left: Vec<_> = fs::read_dir(&crashed.config.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 6, "nothing is left of the trial: {left:?}");
}

#[tokio::test]
async fn the_journal_alone_brings_an_older_engine_up_to_date() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let before = fixture.crashed();
    for number in 1..=5 {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    fs::copy(fixture.path("journal"), before.path("journal")).unwrap();
    assert_eq!(grants(&before.open()), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn dropping_the_vault_replays_and_closing_it_does_not() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    drop(vault);
    let keyring = fixture.keyring();
    let journal = Journal::open(&fixture.path("journal"), keyring.vault, false).unwrap();
    assert!(journal.clean().is_none() && journal.batches().unwrap().len() == 1);
    let vault = fixture.open();
    assert_eq!(grants(&vault), [1]);
    let other = vault.clone();
    vault.close().unwrap();
    assert!(matches!(other.grant(id(1)).at_once(), Err(VaultError::Closed)));
    assert!(matches!(other.commit(vec![put(2)]).await, Err(VaultError::Closed)));
    let journal = Journal::open(&fixture.path("journal"), keyring.vault, false).unwrap();
    assert!(journal.batches().unwrap().is_empty());
    assert_eq!(journal.clean(), Some(folder::fingerprint(&fixture.path("db")).unwrap()), "no trial is needed then");
}

#[tokio::test]
async fn a_full_journal_starts_over_by_itself() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    for round in 0..2000_u32 {
        vault.commit(vec![put(u8::try_from(round % 50).unwrap())]).await.unwrap();
    }
    let keyring = fixture.keyring();
    let journal = Journal::open(&fixture.path("journal"), keyring.vault, false).unwrap();
    assert!(journal.checkpoint() > 1000, "{}", journal.checkpoint());
    assert_eq!(grants(&fixture.crashed().open()).len(), 50);
}

#[tokio::test]
async fn commits_that_wait_share_a_sync() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    vault.commit(vec![put(0)]).await.unwrap();
    // The writer is held up in a checkpoint while twenty commits queue up behind it.
    let gate = engine.gate.lock().unwrap();
    let checkpoint = std::thread::spawn({
        let vault = vault.clone();
        move || vault.checkpoint()
    });
    while engine.syncs.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let mut commits: Vec<_> = (1..=20).map(|number| Box::pin(vault.commit(vec![put(number)]))).collect();
    for commit in &mut commits {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(commit.as_mut().poll(&mut context).is_pending());
    }
    drop(gate);
    checkpoint.join().unwrap().unwrap();
    let mut sequences = Vec::new();
    for commit in commits {
        sequences.push(commit.await.unwrap());
    }
    assert_eq!(sequences, (3..=22).collect::<Vec<_>>(), "in the order in which they were asked for");
    assert_eq!(grants(&vault).len(), 21);

    // Frames of one group were all written when the same commit was the last durable one.
    let bytes = fs::read(fixture.path("journal")).unwrap();
    let frames = (8192..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(b"cnstryJF"));
    let durable: Vec<_> = frames.map(|at| bytes[at + 24]).collect();
    assert_eq!(durable, [2; 20]);
}

#[tokio::test]
async fn a_commit_goes_on_when_its_caller_goes_away() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    {
        let mut commit = Box::pin(vault.commit(vec![put(1)]));
        // Polled once, it is in the queue.
        let _ = std::future::poll_fn(|context| std::task::Poll::Ready(commit.as_mut().poll(context))).await;
    }
    vault.commit(vec![put(2)]).await.unwrap();
    assert_eq!(grants(&vault), [1, 2]);
}

#[tokio::test]
async fn a_commit_that_is_too_large_is_refused_alone() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let mut large = grant(1);
    large.credential = Credential::ApiKey(Secret::new("x".repeat(MAX_RECORD_BYTES)));
    let error = vault.commit(vec![Change::PutGrant(Box::new(large))]).await.unwrap_err();
    assert!(matches!(error, VaultError::TooLarge { .. }), "{error}");
    let many = (0..200).map(put).collect();
    assert!(matches!(vault.commit(many).await, Err(VaultError::TooLarge { .. })));
    assert_eq!(vault.commit(vec![put(1)]).await.unwrap(), 2);
    assert_eq!((grants(&vault), vault.poisoned()), (vec![1], None));
}

#[test]
fn a_second_opener_is_told_who_holds_the_vault() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let told = format!("is in use by process {}", std::process::id());
    let error = fixture.try_open().unwrap_err();
    assert!(matches!(error, VaultError::InUse { .. }) && error.to_string().contains(&told), "{error}");
    let error = Vault::inspect(&fixture.config, &fixture.identity).unwrap_err();
    assert!(error.to_string().contains(&told), "{error}");
    drop(vault);
    fixture.open();
}

#[test]
fn another_identity_is_told_which_ones_would_do() {
    let fixture = Fixture::new();
    let stranger = Identity::create(&fixture.temporary.path().join("stranger")).unwrap();
    let error = Vault::open(&fixture.config, &stranger, Metrics::new(&[])).unwrap_err();
    assert!(matches!(error, VaultError::WrongIdentity { .. }), "{error}");
    assert!(error.to_string().contains(&fixture.identity.recipient()), "{error}");
    fixture.open();
}

#[test]
fn a_newer_format_is_told_before_anything_else() {
    let fixture = Fixture::new();
    fs::write(fixture.path("format"), r#"{"format":3,"vault":"?","new":true}"#).unwrap();
    fs::remove_file(fixture.path("keyring.age")).unwrap();
    let error = fixture.refusal();
    assert!(matches!(error, VaultError::NewerFormat { found: 3, known: 1, .. }), "{error}");
}

#[test]
fn a_missing_a_present_and_an_unfinished_vault_are_told_apart() {
    let fixture = Fixture::new();
    assert!(Vault::exists(&fixture.config.path));
    let again = Vault::create(&fixture.config, &fixture.identity).unwrap_err();
    assert!(matches!(again, VaultError::AlreadyThere { .. }), "{again}");
    fs::remove_file(fixture.path("format")).unwrap();
    assert!(!Vault::exists(&fixture.config.path));
    assert!(matches!(fixture.refusal(), VaultError::Unfinished { .. }));
    let again = Vault::create(&fixture.config, &fixture.identity).unwrap_err();
    assert!(matches!(again, VaultError::Unfinished { .. }), "{again}");
    let nowhere = VaultConfig { path: fixture.temporary.path().join("nowhere"), ..fixture.config.clone() };
    let missing = Vault::open(&nowhere, &fixture.identity, Metrics::new(&[])).unwrap_err();
    assert!(missing.to_string().contains("consentry init"), "{missing}");
    assert!(!nowhere.path.exists());
}

#[test]
fn a_failed_creation_leaves_nothing_that_looks_like_a_vault() {
    let fixture = Fixture::new();
    let path = fixture.temporary.path().join("other");
    let recipients = vec!["age1nonsense".to_owned()];
    let config = VaultConfig { path, recipients, ..fixture.config.clone() };
    assert!(matches!(Vault::create(&config, &fixture.identity), Err(VaultError::Recipient { .. })));
    Vault::create(&VaultConfig { recipients: Vec::new(), ..config }, &fixture.identity).unwrap();
}

#[test]
fn every_file_belongs_to_its_owner_alone() {
    let fixture = Fixture::new();
    fixture.open().close().unwrap();
    let (files, folders) = folder::walk(&fixture.config.path).unwrap();
    for path in files.iter().chain(&folders) {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is {mode:o}", path.display());
    }
}

#[tokio::test]
async fn no_file_shows_an_id_a_token_or_a_label() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let changes = vec![
        put(0x5a),
        Change::PutOrganization(Box::new(organization("MARKER-organization", 0x5a))),
        Change::PutIntent(intent(0x5a)),
        stray(),
    ];
    vault.commit(changes).await.unwrap();
    vault.checkpoint().unwrap();
    vault.commit(vec![put(0x5a), Change::DeleteIntent(id(0x5a))]).await.unwrap();
    let files = fixture.crashed().files();
    vault.close().unwrap();
    for (path, bytes) in files.into_iter().chain(fixture.files()) {
        for marker in [&b"MARKER"[..], b"marker", &[0x5a; 16]] {
            assert!(!bytes.windows(marker.len()).any(|window| window == marker), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn inspecting_counts_the_records_and_changes_nothing() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let before = fixture.crashed();
    vault.commit(vec![put(1), put(2)]).await.unwrap();
    fs::copy(fixture.path("journal"), before.path("journal")).unwrap();
    let files = before.files();
    let found = Vault::inspect(&before.config, &before.identity).unwrap();
    assert_eq!((found.records, found.format), (2, 1));
    assert_eq!(found.recipients, [Recipient { key: before.identity.recipient(), own: true }]);
    assert_eq!(found.data_keys, 1);
    assert_eq!(found.bytes, files.values().map(|bytes| bytes.len() as u64).sum::<u64>() + lock_bytes(&before));
    assert!(files == before.files());
}

#[tokio::test]
async fn debug_shows_nothing_secret() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    assert_eq!(format!("{vault:?}"), "Vault { .. }");
}

fn lock_bytes(fixture: &Fixture) -> u64 {
    fs::metadata(fixture.path("LOCK")).unwrap().len()
}

/// A vault over the fixture's journal and keys with an engine in memory, which holds the first commit.
fn with_memory(fixture: &Fixture, prepare: impl FnOnce(&mut Journal)) -> (Vault, std::sync::Arc<Memory>) {
    struct Lent(std::sync::Arc<Memory>);
    impl Engine for Lent {
        fn get(&self, name: &name::Name) -> Result<Option<Vec<u8>>, VaultError> {
            self.0.get(name)
        }
        fn tag(&self, name: &name::Name) -> Result<Option<u128>, VaultError> {
            self.0.tag(name)
        }
        fn scan(&self, kind: Kind, each: Each<'_>) -> Result<(), VaultError> {
            self.0.scan(kind, each)
        }
        fn next(&self, after: Option<&name::Name>, most: usize) -> Result<Vec<(name::Name, Vec<u8>)>, VaultError> {
            self.0.next(after, most)
        }
        fn write(
            &self,
            writes: &std::collections::HashMap<name::Name, Option<&[u8]>>,
            mark: &Mark,
        ) -> Result<(), VaultError> {
            self.0.write(writes, mark)
        }
        fn mark(&self) -> Result<Option<Mark>, VaultError> {
            self.0.mark()
        }
        fn sync(&self) -> Result<(), VaultError> {
            self.0.sync()
        }
        fn bytes(&self) -> u64 {
            self.0.bytes()
        }
    }
    let engine = std::sync::Arc::new(Memory::default());
    let mark = Mark { applied: 1, ..Mark::default() };
    let keyring = fixture.keyring();
    let mut journal = Journal::open(&fixture.path("journal"), keyring.vault, true).unwrap();
    journal.start_over(1, None).unwrap();
    prepare(&mut journal);
    let opened = Opened { engine: Box::new(Lent(std::sync::Arc::clone(&engine))), lock: None };
    let shared = Shared::new(opened, keyring, codec::Meta::NEW, &mark, journal.bytes(), Metrics::new(&[]));
    (Writer::start(shared, Folder::at(&fixture.config.path), journal, mark).unwrap(), engine)
}
