//! Files that are not as they were left, and disks that fail.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::atomic::Ordering,
};

use super::*;

#[tokio::test]
async fn a_record_moved_under_another_name_is_damaged_and_the_others_are_read() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1), put(2), put(3)]).await.unwrap();
    let namer = Namer::new(&fixture.keyring().name_key);
    let (one, two) = (namer.name(Kind::Grant, id(1).as_bytes()), namer.name(Kind::Grant, id(2).as_bytes()));
    bring_up(&vault).unwrap();
    {
        let opened = vault.shared().unwrap().opened.load_full().unwrap();
        let (moved, mark) = (opened.engine.get(&one).unwrap().unwrap(), opened.engine.mark().unwrap().unwrap());
        opened.engine.write(&[(two, Some(&moved[..]))].into(), &mark).unwrap();
    }
    let error = vault.grant(id(2)).at_once().unwrap_err();
    assert!(error.is_damaged() && error.to_string().contains("a grant's record"), "{error}");
    let mut seen = 0;
    let scanned = vault
        .for_each_grant(&mut |_| {
            seen += 1;
            Ok(())
        })
        .at_once();
    assert!(scanned.unwrap_err().is_damaged());
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
    assert!(error.is_damaged() && error.to_string().contains("`consentry restore FILE`"), "{error}");
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
    assert!(
        matches!(error, VaultError::Behind { .. }) && error.to_string().contains("`consentry restore FILE`"),
        "{error}"
    );

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
        assert!(error.is_damaged() && error.to_string().contains("`consentry restore FILE`"), "cut to {cut}: {error}");
    }
}

#[tokio::test]
async fn whatever_is_flipped_in_the_database_no_record_is_lost_or_older_or_changed_silently() {
    const RECORDS: u8 = 250;
    let fixture = Fixture::new();
    let vault = fixture.open();
    for failures in 0..4 {
        for number in 0..RECORDS {
            let credential = Credential::RefreshToken(Secret::new("x".repeat(1200)));
            vault
                .commit(vec![Change::PutGrant(Box::new(Grant { credential, failures, ..grant(number) }))])
                .await
                .unwrap();
        }
    }
    vault.close().unwrap();
    let length = fs::metadata(fixture.path("db/db")).unwrap().len();
    assert!(length > 1 << 20, "several segments: {length}");
    let mut refused = 0;
    for step in 0..16 {
        let damaged = fixture.crashed();
        let at = length * step / 16 + 1000;
        let file = fs::OpenOptions::new().read(true).write(true).open(damaged.path("db/db")).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
        let before = damaged.files();
        match damaged.try_open() {
            Err(error) => {
                assert!(error.is_damaged() && before == damaged.files(), "at {at}: {error}");
                refused += 1;
            }
            Ok(vault) => {
                for number in 0..RECORDS {
                    match vault.grant(id(number)).at_once() {
                        Ok(Some(read)) => assert_eq!(read.value.failures, 3, "grant {number}, flipped at {at}"),
                        Ok(None) => panic!("grant {number} vanished silently, flipped at {at}"),
                        Err(error) => assert!(error.is_damaged(), "at {at}: {error}"),
                    }
                }
            }
        }
    }
    assert!(refused > 0, "the flips hit nothing that is in use");
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
    assert!(vault.grant(id(1)).at_once().unwrap().is_none());
    assert!(vault.close().is_err());
}

#[tokio::test]
async fn what_is_durable_is_read_even_if_the_engine_fails_to_take_it() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    vault.commit(vec![put(1), put(2), put(3)]).await.unwrap();
    bring_up(&vault).unwrap();
    engine.broken.store(true, Ordering::Relaxed);
    vault.commit(vec![put(4), Change::DeleteGrant(id(1))]).await.unwrap();
    assert!(bring_up(&vault).is_err() && vault.poisoned().is_some());
    assert!(vault.grant(id(4)).at_once().unwrap().is_some() && vault.grant(id(1)).at_once().unwrap().is_none());
    assert_eq!(grants(&vault), [2, 3, 4]);
    assert_eq!(vault.commit(vec![put(5)]).await.unwrap(), 4, "what is under way can end");
    assert_eq!(grants(&vault), [2, 3, 4, 5]);
    assert!(vault.checkpoint().is_err() && vault.close().is_err(), "the engine lacks what the journal holds");
    let journal = Journal::open(&fixture.path("journal"), fixture.keyring().vault, false).unwrap();
    assert_eq!(journal.batches().unwrap().len(), 3, "all are there to be replayed");
}

#[tokio::test]
async fn without_an_engine_commits_end_when_the_journal_is_full_and_none_that_was_acknowledged_is_lost() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    engine.broken.store(true, Ordering::Relaxed);
    let mut kept = 0;
    let error = loop {
        match vault.commit((0..40).map(put).collect()).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, VaultError::Poisoned { .. }) && kept > 3, "after {kept}: {error}");
    assert_eq!(grants(&vault), (0..40).collect::<Vec<_>>());
    drop(vault);
    let journal = Journal::open(&fixture.path("journal"), fixture.keyring().vault, false).unwrap();
    assert_eq!(journal.batches().unwrap().len(), kept);
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
