//! The vault as a whole, on real files. A crash is a copy of the folder taken while it is open: what the kernel holds at
//! that moment is what a killed process leaves.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use super::{
    engine::{Engine, Mark},
    folder::Folder,
    handle::{Opened, Shared},
    journal::Journal,
    keyring::Keyring,
    memory::Memory,
    name::{Kind, Namer},
    open,
    sled::SledEngine,
    writer::Writer,
    *,
};
use crate::{
    config::VaultConfig,
    metrics::Metrics,
    model::{AccessToken, ClientCredentials, Credential, Fingerprint, State},
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
        let error = self.try_open().err().expect("the vault must be refused");
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

fn grants(vault: &Vault) -> Vec<u8> {
    let mut seen = Vec::new();
    vault.for_each_grant(&mut |stored| Ok(seen.push(stored.value.id.as_bytes()[0]))).unwrap();
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
        let read = vault.grant(id(1)).unwrap().unwrap();
        assert_eq!(read.sequence, sequence);
        assert_eq!(read.value.credential.secret().expose(), "MARKER-refresh-1");
        assert_eq!(vault.organization(&organization.id).unwrap().unwrap().value, organization);
        assert_eq!(vault.intent(id(1)).unwrap(), Some(intent(1)));
        assert!(vault.grant(id(3)).unwrap().is_none());
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
    assert!(!crashed.path("db.trial").exists());
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
    assert!(matches!(other.grant(id(1)), Err(VaultError::Closed)));
    assert!(matches!(other.commit(vec![put(2)]).await, Err(VaultError::Closed)));
    let journal = Journal::open(&fixture.path("journal"), keyring.vault, false).unwrap();
    assert!(journal.clean().is_some() && journal.batches().unwrap().is_empty());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_share_a_sync() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    let commits: Vec<_> = (0..200_u8)
        .map(|number| {
            let vault = vault.clone();
            tokio::spawn(async move { vault.commit(vec![put(number)]).await.unwrap() })
        })
        .collect();
    let mut sequences = Vec::new();
    for commit in commits {
        sequences.push(commit.await.unwrap());
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (2..=201).collect::<Vec<_>>());
    assert_eq!(grants(&vault).len(), 200);
    assert_eq!(engine.syncs.load(Ordering::Relaxed), 0, "a commit does not wait for the engine's own sync");
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
    fs::write(fixture.path("format"), r#"{"format":2,"vault":"?","new":true}"#).unwrap();
    fs::remove_file(fixture.path("keyring.age")).unwrap();
    let error = fixture.refusal();
    assert!(matches!(error, VaultError::NewerFormat { found: 2, known: 1, .. }), "{error}");
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
async fn a_record_moved_under_another_name_is_damaged_and_the_others_are_read() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1), put(2), put(3)]).await.unwrap();
    let namer = Namer::new(&fixture.keyring().name_key);
    let (one, two) = (namer.name(Kind::Grant, id(1).as_bytes()), namer.name(Kind::Grant, id(2).as_bytes()));
    {
        let opened = vault.shared().opened.load_full().unwrap();
        let (moved, mark) = (opened.engine.get(&one).unwrap().unwrap(), opened.engine.mark().unwrap().unwrap());
        opened.engine.write(&[(two, Some(&moved[..]))].into(), &mark).unwrap();
    }
    let error = vault.grant(id(2)).unwrap_err();
    assert!(error.is_damaged() && error.to_string().contains("a grant's record"), "{error}");
    let mut seen = 0;
    assert!(vault.for_each_grant(&mut |_| Ok(seen += 1)).unwrap_err().is_damaged());
    assert_eq!((seen, vault.poisoned()), (2, None), "one bad record concerns nothing but itself");
}

#[tokio::test]
async fn a_torn_last_commit_of_the_journal_is_left_out() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let engine_before = fixture.crashed();
    vault.commit(vec![put(1)]).await.unwrap();
    vault.commit(vec![put(2)]).await.unwrap();
    let crashed = fixture.crashed();
    fs::copy(crashed.path("journal"), engine_before.path("journal")).unwrap();
    // Everything from the middle of the second frame on is as if it had never been written.
    let journal = fs::OpenOptions::new().read(true).write(true).open(engine_before.path("journal")).unwrap();
    let bytes = fs::read(engine_before.path("journal")).unwrap();
    let frames: Vec<_> = (8192..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(b"cnstryJF")).collect();
    let torn = frames[1] + 100;
    journal.write_all_at(&vec![0; bytes.len() - torn], torn as u64).unwrap();
    let reopened = engine_before.open();
    assert_eq!(grants(&reopened), [1]);
    assert_eq!(reopened.commit(vec![put(3)]).await.unwrap(), 3);
}

#[tokio::test]
async fn a_journal_that_is_damaged_in_the_middle_is_refused() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    for number in 1..=3 {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    let crashed = fixture.crashed();
    let journal = fs::OpenOptions::new().write(true).open(crashed.path("journal")).unwrap();
    journal.write_all_at(b"garbage", 8192 + 64).unwrap();
    let error = crashed.refusal();
    assert!(error.is_damaged() && error.to_string().contains("consentry restore"), "{error}");
    journal.set_len(9000).unwrap();
    assert!(crashed.refusal().is_damaged());
    fs::remove_file(crashed.path("journal")).unwrap();
    assert!(crashed.refusal().is_damaged());
}

#[tokio::test]
async fn an_older_copy_of_the_database_or_of_the_journal_is_refused() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    vault.checkpoint().unwrap();
    let older = fixture.crashed();
    vault.commit(vec![put(2)]).await.unwrap();
    vault.close().unwrap();

    let old_database = fixture.crashed();
    fs::remove_dir_all(old_database.path("db")).unwrap();
    folder::copy_tree(&older.path("db"), &old_database.path("db")).unwrap();
    let error = old_database.refusal();
    assert!(matches!(error, VaultError::Behind { .. }) && error.to_string().contains("consentry restore"), "{error}");

    let old_journal = fixture.crashed();
    fs::copy(older.path("journal"), old_journal.path("journal")).unwrap();
    assert!(matches!(old_journal.refusal(), VaultError::Behind { .. }));

    let no_database = fixture.crashed();
    fs::remove_dir_all(no_database.path("db")).unwrap();
    assert!(matches!(no_database.refusal(), VaultError::Behind { .. }));
    assert_eq!(grants(&fixture.crashed().open()), [1, 2], "a copy of all of it is a vault like any other");
}

#[tokio::test]
async fn a_truncated_or_garbled_database_is_refused_and_left_as_it_is() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    for number in 0..100 {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    vault.close().unwrap();
    let length = fs::metadata(fixture.path("db/db")).unwrap().len();
    for cut in [0, 100, 4096, length / 10] {
        let damaged = fixture.crashed();
        fs::OpenOptions::new().write(true).open(damaged.path("db/db")).unwrap().set_len(cut).unwrap();
        let error = damaged.refusal();
        assert!(error.is_damaged() && error.to_string().contains("consentry restore"), "cut to {cut}: {error}");
    }
}

#[tokio::test]
async fn whatever_is_flipped_in_the_database_no_record_is_lost_or_changed_silently() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    for number in 0..60 {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    vault.close().unwrap();
    let whole = fixture.files();
    let used = whole[&fixture.path("db/db")].iter().rposition(|byte| *byte != 0).unwrap() as u64;
    for step in 0..12 {
        let damaged = fixture.crashed();
        let at = used * step / 12 + 30;
        let file = fs::OpenOptions::new().read(true).write(true).open(damaged.path("db/db")).unwrap();
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, at).unwrap();
        file.write_all_at(&bytes.map(|byte| byte ^ 0x41), at).unwrap();
        let before = damaged.files();
        match damaged.try_open() {
            Err(error) => {
                assert!(error.is_damaged(), "at {at}: {error}");
                assert!(before == damaged.files(), "at {at}");
            }
            Ok(vault) => {
                for number in 0..60 {
                    match vault.grant(id(number)) {
                        Ok(Some(read)) => assert_eq!(read.value.fingerprint, Fingerprint([number; 16])),
                        Ok(None) => panic!("grant {number} vanished silently, flipped at {at}"),
                        Err(_) => {}
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn the_first_failed_sync_ends_all_writing_and_reads_go_on() {
    let fixture = Fixture::new();
    let (vault, _) = with_memory(&fixture, Journal::break_for_test);
    let first = vault.commit(vec![put(1)]).await.unwrap_err();
    assert!(!matches!(first, VaultError::Poisoned { .. }), "{first}");
    let second = vault.commit(vec![put(1)]).await.unwrap_err();
    assert!(matches!(second, VaultError::Poisoned { .. }), "{second}");
    assert_eq!(vault.poisoned(), Some(first.to_string()));
    assert!(vault.checkpoint().is_err());
    assert!(vault.grant(id(1)).unwrap().is_none());
    assert!(vault.close().is_err());
}

#[tokio::test]
async fn what_is_durable_is_read_even_if_the_engine_fails_to_take_it() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    vault.commit(vec![put(1), put(2), put(3)]).await.unwrap();
    engine.broken.store(true, Ordering::Relaxed);
    vault.commit(vec![put(4), Change::DeleteGrant(id(1))]).await.unwrap();
    assert!(vault.poisoned().is_some());
    assert!(vault.grant(id(4)).unwrap().is_some() && vault.grant(id(1)).unwrap().is_none());
    assert_eq!(grants(&vault), [2, 3, 4]);
    assert!(matches!(vault.commit(vec![put(5)]).await, Err(VaultError::Poisoned { .. })));
    drop(vault);
    let journal = Journal::open(&fixture.path("journal"), fixture.keyring().vault, false).unwrap();
    assert_eq!(journal.batches().unwrap().len(), 2, "both are there to be replayed");
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
    assert_eq!(found.recipients, [before.identity.recipient()]);
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

#[test]
fn a_vault_that_cannot_be_written_is_told_as_such_and_left_as_it_is() {
    // Root may write anywhere; a thread without that capability may not.
    let denied = std::thread::spawn(|| {
        let fixture = Fixture::new();
        fixture.open().close().unwrap();
        if rustix::process::geteuid().is_root() {
            use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::DAC_OVERRIDE);
            set_capabilities(None, sets).unwrap();
        }
        let read_only = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(if path.is_dir() { 0o500 } else { 0o400 })).unwrap();
        };
        let (files, folders) = folder::walk(&fixture.config.path).unwrap();
        files.iter().chain(&folders).for_each(|path| read_only(path));
        let opened = fixture.refusal();
        let config = VaultConfig { path: fixture.path("below"), ..fixture.config.clone() };
        let created = Vault::create(&config, &fixture.identity).unwrap_err();
        for folder in folders {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        (opened, created)
    });
    let (opened, created) = denied.join().unwrap();
    assert!(matches!(opened, VaultError::ReadOnly { .. }), "{opened}");
    assert!(matches!(created, VaultError::ReadOnly { .. }), "{created}");
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
        fn contains(&self, name: &name::Name) -> Result<bool, VaultError> {
            self.0.contains(name)
        }
        fn scan(
            &self,
            kind: Kind,
            each: &mut dyn FnMut(&name::Name, Vec<u8>) -> Result<(), VaultError>,
        ) -> Result<(), VaultError> {
            self.0.scan(kind, each)
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
    let shared = Shared::new(opened, keyring, 1, &mark, journal.bytes(), Metrics::new(&[]));
    (Writer::start(shared, Folder::at(&fixture.config.path), journal, mark).unwrap(), engine)
}

#[test]
fn a_database_of_other_contents_than_its_mark_says_is_refused() {
    let fixture = Fixture::new();
    {
        let engine = SledEngine::open(&fixture.path("db"), 1 << 20).unwrap();
        let mark = engine.mark().unwrap().unwrap();
        let name = Namer::new(&[0; 32]).name(Kind::Grant, b"planted");
        engine.write(&[(name, Some(&b"planted"[..]))].into(), &mark).unwrap();
        engine.sync().unwrap();
    }
    let error = fixture.refusal();
    assert!(error.is_damaged() && error.to_string().contains("1 of 0 records"), "{error}");
}
