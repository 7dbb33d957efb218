//! Vaults that were left by a kill, and are opened without a copy: read at once, written once they are known to be whole.

use std::os::unix::fs::FileExt;

use super::*;
use crate::vault::sled::outline;

impl Fixture {
    /// Whether the next opening tries no copy, if the journal says that commits up to `last` were made.
    fn opens_in_place(&self, last: u64) -> bool {
        outline::is_as_kept(&self.path("db"), 1..=last)
    }

    /// With a record that nobody committed, though the engine has been synced as ever.
    fn with_a_planted_record(self) -> Self {
        {
            let engine = SledEngine::open(&self.path("db"), 1 << 20).unwrap();
            let mark = engine.mark().unwrap().unwrap();
            let name = Namer::new(&[0; 32]).name(Kind::Grant, b"planted");
            engine.write(&[(name, Some(&b"planted"[..]))].into(), &mark).unwrap();
            engine.sync().unwrap();
        }
        self
    }
}

/// A fleet of some segments, left by a kill some commits after a checkpoint; what it is a copy of; and the number of the
/// last commit.
async fn killed() -> (Fixture, Fixture, u64) {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let mut last = 0;
    for failures in 0..3 {
        for number in 0..=u8::MAX {
            let credential = Credential::RefreshToken(Secret::new("x".repeat(1200)));
            let changes = vec![Change::PutGrant(Box::new(Grant { credential, failures, ..grant(number) }))];
            last = vault.commit(changes).await.unwrap();
        }
    }
    vault.checkpoint().unwrap();
    for number in 0..9 {
        last = vault.commit(vec![put(number)]).await.unwrap();
    }
    (fixture.crashed(), fixture, last)
}

#[tokio::test]
async fn what_a_kill_leaves_is_opened_in_place_and_found_whole() {
    let (fixture, _original, last) = killed().await;
    assert!(fixture.opens_in_place(last) && !fixture.opens_in_place(last - 10), "it is of the checkpoint");
    let vault = fixture.open();
    assert_eq!(grants(&vault).len(), 256, "it can be read at once");
    vault.judged().await.unwrap();
    assert!(vault.is_judged());
    assert_eq!(vault.commit(vec![put(1)]).await.unwrap(), last + 1);
    assert!(fixture.crashed().opens_in_place(last + 1), "and the next one, too");
}

#[tokio::test]
async fn a_vault_that_is_found_wrong_takes_no_commit_and_is_refused_from_then_on() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    vault.checkpoint().unwrap();
    let planted = fixture.crashed().with_a_planted_record();
    assert!(planted.opens_in_place(9));

    let vault = planted.open();
    let error = vault.judged().await.unwrap_err();
    assert!(error.is_damaged() && error.to_string().contains("2 of 1 records"), "{error}");
    assert!(vault.commit(vec![put(2)]).await.is_err() && vault.checkpoint().is_err());
    assert!(vault.close().is_err());
    let error = planted.refusal();
    assert!(error.is_damaged() && error.to_string().contains("`consentry restore FILE`"), "{error}");
}

#[tokio::test]
async fn a_vault_that_was_closed_while_it_was_wrong_and_not_yet_judged_is_not_taken_for_whole() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1)]).await.unwrap();
    vault.checkpoint().unwrap();
    let planted = fixture.crashed().with_a_planted_record();
    // Whether it is judged before it ends hangs on the machine; neither way may mark it clean.
    let vault = planted.open();
    vault.shared().unwrap().ending.store(true, Ordering::Relaxed);
    drop(vault.close());
    let again = planted.try_open();
    match again {
        Ok(vault) => assert!(vault.judged().await.unwrap_err().is_damaged()),
        Err(error) => assert!(error.is_damaged(), "{error}"),
    }
}

#[tokio::test]
async fn whatever_is_flipped_after_a_kill_is_noticed_before_or_found_by_counting_and_nothing_wrong_is_read() {
    let (fixture, _original, last) = killed().await;
    let length = fs::metadata(fixture.path("db/db")).unwrap().len();
    assert!(length > 1 << 20, "several segments: {length}");
    let mut refused = 0;
    for step in 0..16 {
        let damaged = fixture.crashed();
        let at = length * step / 16 + if step % 2 == 0 { 6 } else { 1000 };
        let file = fs::OpenOptions::new().read(true).write(true).open(damaged.path("db/db")).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
        let before = damaged.files();
        // By which segments the engine has cleaned so far, some are opened in place, or none.
        let in_place = damaged.opens_in_place(last);
        let vault = match damaged.try_open() {
            Ok(vault) => vault,
            Err(error) => {
                assert!(
                    error.is_damaged() && before == damaged.files(),
                    "at {at}, opened in place: {in_place}: {error}"
                );
                refused += 1;
                continue;
            }
        };
        if let Err(error) = vault.judged().await {
            assert!(error.is_damaged(), "at {at}: {error}");
            refused += 1;
            continue;
        }
        for number in 0..=u8::MAX {
            let failures = if number < 9 { 0 } else { 2 };
            match vault.grant(id(number)).at_once() {
                Ok(Some(read)) => assert_eq!(read.value.failures, failures, "grant {number}, flipped at {at}"),
                Ok(None) => panic!("grant {number} vanished silently, flipped at {at}"),
                Err(error) => assert!(error.is_damaged(), "at {at}: {error}"),
            }
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn files_that_are_cut_short_or_gone_are_not_opened_in_place() {
    let (fixture, _original, last) = killed().await;
    let length = fs::metadata(fixture.path("db/db")).unwrap().len();
    for cut in [0, 4096, length / 2 + 1] {
        let damaged = fixture.crashed();
        fs::OpenOptions::new().write(true).open(damaged.path("db/db")).unwrap().set_len(cut).unwrap();
        assert!(!damaged.opens_in_place(last), "cut to {cut}");
    }
    let listed = fixture.crashed();
    let outline = fs::OpenOptions::new().write(true).open(listed.path("db/outline")).unwrap();
    outline.write_all_at(&[9], 20).unwrap();
    assert!(!listed.opens_in_place(last), "a list that is damaged itself");
    let unlisted = fixture.crashed();
    fs::remove_file(unlisted.path("db/outline")).unwrap();
    assert!(!unlisted.opens_in_place(last));
    unlisted.open().judged().await.unwrap();
}
