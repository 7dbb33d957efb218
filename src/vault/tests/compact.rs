//! Files of the engine that are written anew.

use super::{
    rekey::{GRANTS, filled},
    *,
};
use crate::{
    tests::AtOnce as _,
    vault::{
        compact::{self, Rewrite},
        writer::Writer,
    },
};

/// What the writer is told in these tests: that there is much to copy, a few records at a time.
const LIVE: u64 = compact::SMALL_BYTES;

/// The failures of every grant, by its number: tests count with them.
fn failures(vault: &Vault) -> BTreeMap<u8, u32> {
    let mut all = BTreeMap::new();
    vault
        .for_each_grant(&mut |stored| {
            all.insert(stored.value.id.as_bytes()[0], stored.value.failures);
            Ok(())
        })
        .at_once()
        .unwrap();
    all
}

fn put_with(number: u8, failures: u32) -> Change {
    Change::PutGrant(Box::new(Grant { failures, ..grant(number) }))
}

/// What lies in the vault's folder.
fn entries(fixture: &Fixture) -> Vec<String> {
    let entries = fs::read_dir(&fixture.config.path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The number of the main file's inode: another one after an exchange.
fn main_file(fixture: &Fixture) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(fixture.path("db/db")).unwrap())
}

#[tokio::test]
async fn what_is_committed_while_the_database_is_written_anew_is_in_it_afterwards() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let (names, first) = (entries(&fixture), main_file(&fixture));
    vault
        .ask(|writer| {
            writer.begin_compaction(LIVE);
            assert!(writer.compact_some(), "the first of three chunks");
            Ok(())
        })
        .unwrap();
    // Some of these are copied already and some are not; the writer copies more between them.
    for number in (1..=GRANTS).step_by(2) {
        vault.commit(vec![put_with(number, 7)]).await.unwrap();
    }
    let gone = (1..=GRANTS).step_by(5);
    vault.commit(gone.clone().map(|number| Change::DeleteGrant(id(number))).collect()).await.unwrap();
    vault.commit(vec![put_with(200, 9)]).await.unwrap();
    let mut expected: BTreeMap<u8, u32> = (1..=GRANTS).map(|number| (number, 7 * u32::from(number % 2))).collect();
    gone.for_each(|number| {
        expected.remove(&number);
    });
    expected.insert(200, 9);

    vault
        .ask(|writer| {
            while writer.compact_some() {}
            Ok(())
        })
        .unwrap();
    assert_ne!(main_file(&fixture), first, "it is another file");
    assert_eq!(failures(&vault), expected);
    assert_eq!((vault.poisoned(), entries(&fixture)), (None, names));
    assert_eq!(failures(&fixture.crashed().open()), expected);
    vault.commit(vec![put_with(200, 10)]).await.unwrap();
    expected.insert(200, 10);
    assert_eq!(failures(&fixture.crashed().open()), expected);
    vault.close().unwrap();
    assert_eq!(failures(&fixture.open()), expected);
}

#[tokio::test]
async fn whatever_the_step_a_crash_happens_at_every_record_is_there_and_nothing_is_left_over() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let (before, names) = (failures(&vault), entries(&fixture));
    let (config, identity) = (fixture.config.clone(), fixture.config.identity_file.clone());
    let crash = move || {
        let temporary = tempfile::tempdir().unwrap();
        let config = VaultConfig { path: temporary.path().join("vault"), ..config.clone() };
        folder::copy_tree(&fixture.config.path, &config.path).unwrap();
        Fixture { temporary, config, identity: Identity::read(&identity).unwrap() }
    };
    let crashed = vault
        .ask(move |writer| {
            writer.begin_compaction(LIVE);
            let mut crashed = vec![("begun", crash())];
            for step in ["64 copied", "128 copied", "all copied"] {
                assert!(writer.compact_some());
                crashed.push((step, crash()));
            }
            let place = writer.compaction.rewrite.take().unwrap().finish(&writer.mark)?;
            crashed.push(("closed", crash()));
            writer.exchange(place.path())?;
            crashed.push(("exchanged", crash()));
            let torn = crash();
            fs::remove_file(torn.path(&place.path().file_name().unwrap().to_string_lossy()).join("db/db")).unwrap();
            crashed.push(("half removed", torn));
            drop(place);
            crashed.push(("removed", crash()));
            Ok(crashed)
        })
        .unwrap();
    let leftover = |fixture: &Fixture| entries(fixture).into_iter().any(|name| name.starts_with("db.trial-"));
    for (step, fixture) in crashed {
        assert_eq!(leftover(&fixture), step != "removed", "{step}");
        let vault = fixture.open();
        assert_eq!(failures(&vault), before, "{step}");
        vault.commit(vec![put_with(1, 3)]).await.unwrap();
        vault.close().unwrap();
        assert_eq!(entries(&fixture), names, "{step}");
        assert_eq!(failures(&fixture.open())[&1], 3, "{step}");
    }
}

#[tokio::test]
async fn whoever_reads_all_of_it_is_not_disturbed_and_afterwards_it_goes_on_by_itself() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let (before, first) = (failures(&vault), main_file(&fixture));
    let (one, other) = (vault.undisturbed(), vault.undisturbed());
    let has_copied = |writer: &Writer| writer.compaction.rewrite.as_ref().is_none_or(Rewrite::has_copied);
    let copied = vault
        .ask(move |writer| {
            writer.begin_compaction(LIVE);
            Ok(writer.compact_some() || has_copied(writer))
        })
        .unwrap();
    assert!(!copied);
    drop(one);
    // Commits do not bring it on either.
    for _ in 0..10 {
        vault.commit(vec![put_with(1, 0)]).await.unwrap();
    }
    assert!(!vault.ask(move |writer| Ok(has_copied(writer))).unwrap());
    drop(other);
    let mut tries = 0;
    while main_file(&fixture) == first {
        tries += 1;
        assert!(tries < 3000, "it does not go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    vault.ask(|_| Ok(())).unwrap();
    assert_eq!((failures(&vault), vault.poisoned()), (before, None));
    // Nor does it keep the vault open.
    let undisturbed = vault.undisturbed();
    drop(vault);
    assert_eq!(failures(&fixture.open()).len(), usize::from(GRANTS));
    drop(undisturbed);
}

#[tokio::test]
async fn a_database_that_shows_fewer_records_than_it_holds_is_not_replaced() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let (before, first) = (failures(&vault), main_file(&fixture));
    vault
        .ask(|writer| {
            writer.mark.counts[Kind::Grant.index()] += 1;
            writer.begin_compaction(LIVE);
            while writer.compact_some() {}
            writer.mark.counts[Kind::Grant.index()] -= 1;
            Ok(())
        })
        .unwrap();
    assert_eq!((main_file(&fixture), failures(&vault), vault.poisoned()), (first, before, None));
}

#[tokio::test]
async fn where_the_folders_cannot_be_exchanged_the_vault_goes_on_with_the_one_it_has() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let (before, first) = (failures(&vault), main_file(&fixture));
    let nothing = tempfile::tempdir_in(fixture.temporary.path()).unwrap();
    let error = vault.ask(move |writer| writer.exchange(nothing.path())).unwrap_err();
    assert!(error.to_string().contains("db"), "{error}");
    assert_eq!((main_file(&fixture), failures(&vault), vault.poisoned()), (first, before, None));
    vault.commit(vec![put_with(1, 3)]).await.unwrap();
    vault.close().unwrap();
    assert_eq!(failures(&fixture.open())[&1], 3);
}

#[tokio::test]
async fn files_that_come_back_without_every_commit_end_all_writing() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let older = fixture.crashed();
    vault.commit(vec![put_with(1, 3)]).await.unwrap();
    // As if the successor had not been the newest.
    let place = tempfile::tempdir_in(&fixture.config.path).unwrap();
    folder::copy_tree(&older.path("db"), &place.path().join("db")).unwrap();
    assert!(vault.ask(move |writer| writer.exchange(place.path())).is_ok());
    assert!(vault.poisoned().unwrap().contains("lost commits"));
}

#[tokio::test]
async fn a_compaction_under_way_is_given_up_when_the_vault_is_closed() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let names = entries(&fixture);
    vault
        .ask(|writer| {
            writer.begin_compaction(LIVE);
            writer.compact_some();
            writer.close()
        })
        .unwrap();
    assert_eq!(entries(&fixture), names);
    let opened = fixture.open();
    assert_eq!(failures(&opened).len(), usize::from(GRANTS));
}

#[tokio::test]
async fn how_large_the_records_are_is_told_by_some_of_them() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let (told, is) = vault
        .ask(|writer| {
            let opened = writer.shared.opened.load_full().unwrap();
            let told = compact::live_bytes(&*opened.engine, &writer.mark)?;
            let all = opened.engine.next(None, usize::MAX)?;
            Ok((told, all.iter().map(|(name, sealed)| name.as_bytes().len() + sealed.len()).sum::<usize>()))
        })
        .unwrap();
    assert!(told.abs_diff(is as u64) < told / 20, "{told} {is}");
}
