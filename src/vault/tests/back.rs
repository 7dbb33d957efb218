//! Vaults of which an older copy was put back, in whole or in part.

use std::fs;

use super::*;
use crate::model::DoubtReason;

impl Fixture {
    fn accept(&self) -> Result<Accepted, VaultError> {
        Vault::accept(&self.config, &self.identity)
    }

    /// Accepting fails, and leaves every file as it was.
    fn not_accepted(&self) -> VaultError {
        let before = self.files();
        let error = self.accept().expect_err("it must not be accepted");
        assert!(before == self.files(), "files were changed: {error}");
        error
    }

    /// With a part of another vault's folder in place of its own.
    fn with(self, part: &str, of: &Self) -> Self {
        let (from, to) = (of.path(part), self.path(part));
        if from.is_dir() {
            fs::remove_dir_all(&to).unwrap();
            folder::copy_tree(&from, &to).unwrap();
        } else {
            fs::copy(from, to).unwrap();
        }
        self
    }
}

fn opened(fixture: &Fixture) -> (Vault, u32, DoubtReason) {
    let vault = fixture.open();
    let (epoch, reason) = (vault.epoch(), vault.epoch_reason());
    (vault, epoch, reason)
}

#[tokio::test]
async fn a_copy_of_the_whole_folder_is_accepted_in_a_new_epoch_with_all_that_its_journal_has() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1), Change::PutIntent(intent(1))]).await.unwrap();
    vault.checkpoint().unwrap();
    let last = vault.commit(vec![put(2), Change::DeleteIntent(id(1))]).await.unwrap();
    let copy = fixture.crashed();
    vault.commit(vec![put(3)]).await.unwrap();
    let accepted = copy.accept().unwrap();
    assert_eq!((accepted.gap, accepted.records, accepted.grants), (Gap::Unknown, 2, 2));
    let (vault, epoch, reason) = opened(&copy);
    assert_eq!((grants(&vault), epoch, reason), (vec![1, 2], 2, DoubtReason::Restored));
    assert_eq!(vault.intent(id(1)).at_once().unwrap(), None);
    let next = vault.commit(vec![put(4)]).await.unwrap();
    assert!(next > last + (1 << 40), "{next}");
    vault.close().unwrap();

    // And once more.
    copy.accept().unwrap();
    let (vault, epoch, _) = opened(&copy);
    assert_eq!((grants(&vault), epoch), (vec![1, 2, 4], 3));
    assert!(vault.commit(vec![put(5)]).await.unwrap() > next + (1 << 40));
}

#[tokio::test]
async fn a_vault_that_was_closed_cleanly_is_accepted_too_and_one_in_use_is_not() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    assert!(matches!(fixture.accept(), Err(VaultError::InUse { .. })));
    vault.close().unwrap();
    fixture.accept().unwrap();
    let (vault, epoch, reason) = opened(&fixture);
    assert_eq!((grants(&vault), epoch, reason), (vec![1], 2, DoubtReason::Restored));
}

#[tokio::test]
async fn a_database_older_than_its_journal_is_accepted_with_what_the_journal_has_and_the_gap_is_told() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1), put(2)]).await.unwrap();
    vault.checkpoint().unwrap();
    let older = fixture.crashed();
    vault.commit(vec![put(3)]).await.unwrap();
    vault.commit(vec![Change::DeleteGrant(id(2))]).await.unwrap();
    vault.checkpoint().unwrap();
    let newer = Grant { failures: 9, ..grant(1) };
    let last = vault.commit(vec![Change::PutGrant(Box::new(newer)), put(4)]).await.unwrap();
    let behind = fixture.crashed().with("db", &older);
    let refused = behind.refusal();
    assert!(matches!(refused, VaultError::Behind { .. }), "{refused}");
    for command in ["`consentry restore FILE`", "`consentry restore --in-place`"] {
        assert!(refused.to_string().contains(command), "{refused}");
    }
    let inspected = Vault::inspect(&behind.config, &behind.identity).unwrap_err();
    assert_eq!(inspected.to_string(), refused.to_string());

    let accepted = behind.accept().unwrap();
    assert_eq!(accepted.gap, Gap::Commits(3, 4));
    let (vault, epoch, reason) = opened(&behind);
    assert_eq!((epoch, reason), (2, DoubtReason::RolledBack));
    assert_eq!(grants(&vault), [1, 2, 4], "what was committed in the gap is gone, and what came after it is there");
    assert_eq!(vault.grant(id(1)).at_once().unwrap().unwrap().value.failures, 9);
    assert!(vault.commit(vec![put(5)]).await.unwrap() > last + (1 << 40));
    vault.close().unwrap();
    Vault::inspect(&behind.config, &behind.identity).unwrap();
}

#[tokio::test]
async fn a_journal_older_than_its_database_is_accepted_without_what_it_has() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    let older = fixture.crashed();
    let last = vault.commit(vec![Change::PutGrant(Box::new(Grant { failures: 9, ..grant(1) }))]).await.unwrap();
    vault.checkpoint().unwrap();
    let behind = fixture.crashed().with("journal", &older);
    assert!(matches!(behind.refusal(), VaultError::Behind { .. }));
    assert_eq!(behind.accept().unwrap().gap, Gap::After(last));
    let (vault, epoch, reason) = opened(&behind);
    assert_eq!((epoch, reason), (2, DoubtReason::RolledBack));
    assert_eq!(vault.grant(id(1)).at_once().unwrap().unwrap().value.failures, 9, "nothing older is written over it");
    assert!(vault.commit(vec![put(5)]).await.unwrap() > last + (1 << 40));
}

#[tokio::test]
async fn a_death_while_it_is_accepted_leaves_a_vault_that_is_refused_or_in_a_new_epoch() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    vault.checkpoint().unwrap();
    let older = fixture.crashed();
    vault.commit(vec![put(2)]).await.unwrap();
    vault.checkpoint().unwrap();
    vault.commit(vec![put(3)]).await.unwrap();
    for behind in [fixture.crashed(), fixture.crashed().with("db", &older), fixture.crashed().with("journal", &older)] {
        let before = behind.crashed();
        behind.accept().unwrap();
        // The engine has been written, and the journal has not.
        let died = behind.crashed().with("journal", &before);
        assert!(matches!(died.refusal(), VaultError::Behind { .. }), "it is not opened in the old epoch");
        assert!(matches!(died.accept().unwrap().gap, Gap::After(_)));
        let (vault, epoch, _) = opened(&died);
        assert_eq!(epoch, 3);
        assert_eq!(grants(&vault), grants(&behind.open()));
    }
}

#[tokio::test]
async fn a_damaged_vault_is_never_accepted() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    for number in 0..100 {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    vault.close().unwrap();

    let none = fixture.crashed();
    fs::remove_dir_all(none.path("db")).unwrap();
    assert!(matches!(none.not_accepted(), VaultError::Damaged { .. }));
    let no_journal = fixture.crashed();
    fs::remove_file(no_journal.path("journal")).unwrap();
    assert!(matches!(no_journal.not_accepted(), VaultError::Damaged { .. }));
    let other = Fixture::new();
    let mixed = fixture.crashed().with("db", &other);
    assert!(mixed.not_accepted().is_damaged(), "another vault's database");

    let planted = fixture.crashed();
    {
        let engine = SledEngine::open(&planted.path("db"), 1 << 20).unwrap();
        let mark = engine.mark().unwrap().unwrap();
        let name = Namer::new(&[0; 32]).name(Kind::Grant, b"planted");
        engine.write(&[(name, Some(&b"planted"[..]))].into(), &mark).unwrap();
        engine.sync().unwrap();
    }
    assert!(planted.not_accepted().is_damaged());
}

#[tokio::test]
async fn a_database_that_was_cut_short_is_refused_or_accepted_as_the_older_one_that_it_is() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    for number in 0..100 {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    vault.close().unwrap();
    let length = fs::metadata(fixture.path("db/db")).unwrap().len();
    for cut in [0, 100, 4096, 8192, length / 10, length / 2] {
        let damaged = fixture.crashed();
        fs::OpenOptions::new().write(true).open(damaged.path("db/db")).unwrap().set_len(cut).unwrap();
        let before = damaged.files();
        match damaged.accept() {
            Err(error) => assert!(error.is_damaged() && before == damaged.files(), "cut to {cut}: {error}"),
            Ok(accepted) => {
                // Grant n came with commit n + 2.
                let left = match accepted.gap {
                    Gap::Unknown => 100,
                    Gap::Commits(first, 101) => u8::try_from(first - 2).unwrap(),
                    other => panic!("{other:?}, cut to {cut}"),
                };
                let there: Vec<_> = (0..left).collect();
                assert_eq!(grants(&damaged.open()), there, "cut to {cut}");
            }
        }
    }
}
