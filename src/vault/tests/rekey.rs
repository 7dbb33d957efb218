//! A new data key while the vault is in use.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU32},
    thread,
};

use super::*;
use crate::vault::{cipher, codec::Record as _};

/// More than one chunk of them, and more than one commit of a small journal holds.
pub(super) const GRANTS: u8 = 150;
/// How often, and at what distance, a test looks whether the writer is done.
const LOOKS: u32 = 12_000;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A vault with records of every kind.
pub(super) async fn filled(fixture: &Fixture) -> Vault {
    let vault = fixture.open();
    for number in 1..=GRANTS {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    let organization = Box::new(organization("42", 1));
    vault
        .commit(vec![Change::PutOrganization(organization), Change::PutIntent(intent(1)), stray(), stray()])
        .await
        .unwrap();
    vault
}

/// Waits until the vault has one data key.
pub(super) fn settled(vault: &Vault) {
    for _ in 0..LOOKS {
        match vault.rekeying() {
            None => return,
            Some(rekeying) => assert_eq!(rekeying.problem, None),
        }
        thread::sleep(LOOK_EVERY);
    }
    panic!("records are still being sealed anew: {:?}", vault.rekeying());
}

/// Waits until sealing anew has stopped, and gives why.
fn stopped(vault: &Vault) -> String {
    for _ in 0..LOOKS {
        if let Some(problem) = vault.rekeying().expect("it cannot end well").problem {
            return problem;
        }
        thread::sleep(LOOK_EVERY);
    }
    panic!("nothing stopped it: {:?}", vault.rekeying());
}

/// The data keys that records are sealed under.
fn used(vault: &Vault) -> BTreeSet<u32> {
    let records = vault.ask(|writer| writer.shared.opened.load_full().unwrap().engine.next(None, usize::MAX));
    records.unwrap().iter().map(|(_, sealed)| cipher::key_number(sealed).unwrap()).collect()
}

/// The numbers of the data keys in the folder's keyring.
fn kept(fixture: &Fixture) -> Vec<u32> {
    fixture.keyring().data_keys.into_keys().collect()
}

fn bytes(grant: &Grant) -> Vec<u8> {
    let mut buffer = vec![0; MAX_RECORD_BYTES];
    let length = grant.write(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

/// Every grant, as its bytes, with its sequence number; and that everything else is there.
fn contents(vault: &Vault) -> BTreeMap<u8, (u64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    vault
        .for_each_grant(&mut |stored| {
            all.insert(stored.value.id.as_bytes()[0], (stored.sequence, bytes(&stored.value)));
            Ok(())
        })
        .at_once()
        .unwrap();
    assert_eq!(vault.organization(&"42".parse().unwrap()).at_once().unwrap().unwrap().value, organization("42", 1));
    assert_eq!(vault.intent(id(1)).at_once().unwrap(), Some(intent(1)));
    let mut strays = 0;
    vault
        .for_each_stray(&mut |_| {
            strays += 1;
            Ok(())
        })
        .at_once()
        .unwrap();
    assert_eq!(strays, 2);
    all
}

#[tokio::test]
async fn every_record_is_sealed_anew_and_stays_the_same_and_then_the_old_key_is_gone() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let before = contents(&vault);
    assert_eq!(before.len(), usize::from(GRANTS));
    let (old_keyring, records) = (fs::read(fixture.path("keyring.age")).unwrap(), vault.stats().records);
    for number in 2..=3 {
        assert_eq!(vault.rotate_data_key().unwrap(), number);
        assert_eq!(vault.stats().data_key, number, "what is written from now on is sealed under it");
        settled(&vault);
        assert_eq!((used(&vault), kept(&fixture)), ([number].into(), vec![number]));
        assert!(contents(&vault) == before, "contents and sequence numbers");
        assert_eq!(vault.stats().records, records);
    }
    let crashed = fixture.crashed();
    assert!(contents(&crashed.open()) == before);
    vault.close().unwrap();
    assert!(contents(&fixture.open()) == before);

    // Whoever kept a copy of the old keyring opens nothing with it any more.
    fs::write(fixture.path("keyring.age"), old_keyring).unwrap();
    let error = fixture.try_open().unwrap_err();
    assert!(error.to_string().contains("a data key that is not there"), "{error}");
}

#[tokio::test]
async fn whatever_the_step_a_crash_happens_at_the_next_opening_loses_nothing_and_finishes() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let before = contents(&vault);
    let (config, identity) = (fixture.config.clone(), fixture.config.identity_file.clone());
    let crash = move || {
        let temporary = tempfile::tempdir().unwrap();
        let config = VaultConfig { path: temporary.path().join("vault"), ..config.clone() };
        folder::copy_tree(&fixture.config.path, &config.path).unwrap();
        Fixture { temporary, config, identity: Identity::read(&identity).unwrap() }
    };
    // On the writer's own thread, nothing goes on between two steps.
    let crashed = vault
        .ask(move |writer| {
            writer.rotate_data_key()?;
            let mut crashed = vec![crash()];
            while writer.idle_work() {
                crashed.push(crash());
            }
            crashed.push(crash());
            Ok(crashed)
        })
        .unwrap();
    let steps = crashed.len();
    assert!(steps > 8, "{steps}");
    for (step, fixture) in crashed.into_iter().enumerate() {
        assert_eq!(kept(&fixture).len(), if step + 1 == steps { 1 } else { 2 }, "step {step}");
        // As if it had died while it wrote the next keyring.
        fs::write(fixture.path("keyring.age.new"), "half a keyr").unwrap();
        let vault = fixture.open();
        assert!(contents(&vault) == before, "step {step}");
        settled(&vault);
        assert!(contents(&vault) == before, "step {step}");
        assert_eq!((used(&vault), kept(&fixture)), ([2].into(), vec![2]), "step {step}");
        vault.close().unwrap();
        let vault = fixture.open();
        assert!(contents(&vault) == before && vault.rekeying().is_none(), "step {step}");
        assert!(!fixture.path("keyring.age.new").exists());
    }
}

#[tokio::test]
async fn once_the_old_key_is_gone_neither_header_of_the_journal_leads_to_a_record_under_it() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    vault.rotate_data_key().unwrap();
    settled(&vault);
    let crashed = fixture.crashed();
    let keyring = crashed.keyring();
    let newest = Journal::open(&crashed.path("journal"), keyring.vault, false).unwrap();
    assert!(newest.batches().unwrap().is_empty());
    for page in [0, 4096] {
        let mut bytes = fs::read(fixture.path("journal")).unwrap();
        bytes[page..page + 8].fill(0);
        fs::write(crashed.path("journal"), bytes).unwrap();
        let other = Journal::open(&crashed.path("journal"), keyring.vault, false).unwrap();
        assert!(other.batches().unwrap().is_empty(), "header at {page}");
        assert_eq!(other.checkpoint(), newest.checkpoint());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_commits_go_on_while_records_are_sealed_anew_and_do_not_hold_it_up() {
    const WRITERS: u8 = 20;
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let before = contents(&vault);
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (vault, before, done) = (vault.clone(), before.clone(), done.clone());
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for number in 1..=GRANTS {
                        let read = vault.grant(id(number)).at_once().unwrap().unwrap();
                        assert!(number <= WRITERS || (read.sequence, bytes(&read.value)) == before[&number]);
                    }
                    assert_eq!(contents(&vault).len(), usize::from(GRANTS));
                }
            })
        })
        .collect();
    // As an exchange does: an intent, and then the grant with its next token; each always with another one behind it.
    let counts: Vec<_> = (0..WRITERS).map(|_| std::sync::Arc::new(AtomicU32::new(0))).collect();
    let writers: Vec<_> = counts
        .iter()
        .zip(1..)
        .map(|(count, number)| {
            let (vault, done, count) = (vault.clone(), done.clone(), count.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let failures = count.load(Ordering::Relaxed) + 1;
                    let changes = vec![Change::PutGrant(Box::new(Grant { failures, ..grant(number) }))];
                    let sequence = vault.commit(changes).await.unwrap();
                    assert!(vault.grant(id(number)).at_once().unwrap().unwrap().sequence >= sequence);
                    count.store(failures, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let rotating = tokio::task::spawn_blocking({
        let vault = vault.clone();
        move || {
            for number in 2..=4 {
                assert_eq!(vault.rotate_data_key().unwrap(), number);
                settled(&vault);
            }
        }
    });
    rotating.await.unwrap();
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!((used(&vault), kept(&fixture)), ([4].into(), vec![4]));
    let check = |vault: &Vault| {
        let after = contents(vault);
        assert_eq!(after.len(), usize::from(GRANTS));
        for (number, found) in &after {
            match counts.get(usize::from(*number - 1)) {
                Some(count) => {
                    let failures = count.load(Ordering::Relaxed);
                    assert_eq!(found.1, bytes(&Grant { failures, ..grant(*number) }));
                }
                None => assert!(*found == before[number]),
            }
        }
    };
    check(&vault);
    check(&fixture.crashed().open());
}

#[tokio::test]
async fn commits_that_never_end_do_not_keep_records_from_being_sealed_anew() {
    const COMMITS: u64 = 1000;
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let held = thread::spawn({
        let vault = vault.clone();
        move || {
            vault.ask(move |writer| {
                writer.rotate_data_key()?;
                gate.recv().unwrap();
                Ok(())
            })
        }
    });
    while vault.stats().data_key == 1 {
        thread::yield_now();
    }
    // All of them wait before the first is served, so that the writer has no moment to itself before the last.
    let numbers = (1..=GRANTS).cycle().take(usize::try_from(COMMITS).unwrap());
    // Unconstrained, since so many at once are more than the runtime lets a task do before it yields.
    let commit = |number| Box::pin(tokio::task::unconstrained(vault.commit(vec![put(number)])));
    let mut commits: Vec<_> = numbers.map(commit).collect();
    for commit in &mut commits {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(commit.as_mut().poll(&mut context).is_pending());
    }
    open.send(()).unwrap();
    held.join().unwrap().unwrap();
    let mut sequences = Vec::new();
    for commit in commits {
        sequences.push(commit.await.unwrap());
    }
    assert!(sequences.is_sorted());
    let between = sequences.last().unwrap() - sequences[0] + 1 - COMMITS;
    assert!((1..COMMITS / 20).contains(&between), "{between} batches were sealed anew between {COMMITS} commits");
    settled(&vault);
}

#[tokio::test]
async fn a_record_whose_key_is_destroyed_between_being_read_and_being_opened_is_read_once_more() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let shared = vault.shared().unwrap();
    let opened = shared.opened.load_full().unwrap();
    let read = |number| {
        let name = shared.namer.name(Kind::Grant, id(number).as_bytes());
        (name, opened.engine.get(&name).unwrap().unwrap())
    };
    let ((kept, old), (removed, gone)) = (read(1), read(2));
    vault.rotate_data_key().unwrap();
    settled(&vault);
    vault.commit(vec![Change::DeleteGrant(id(2))]).await.unwrap();
    let found = shared.open_as_it_is::<Grant>(&opened, &kept, old).unwrap().unwrap();
    assert_eq!(bytes(&found.value), bytes(&grant(1)));
    assert!(shared.open_as_it_is::<Grant>(&opened, &removed, gone).unwrap().is_none());
}

#[tokio::test]
async fn a_second_new_key_has_to_wait_for_the_first() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let error = vault
        .ask(|writer| {
            writer.rotate_data_key()?;
            writer.idle_work();
            writer.rotate_data_key()
        })
        .unwrap_err();
    let VaultError::Rekeying { data_key: 2, percent } = error else { panic!("{error}") };
    assert!((1..100).contains(&percent), "{percent}");
    settled(&vault);
    assert_eq!(vault.rotate_data_key().unwrap(), 3);
}

#[tokio::test]
async fn a_record_that_does_not_open_keeps_its_key_alive_and_stops_no_other() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    vault
        .ask(|writer| {
            let opened = writer.shared.opened.load_full().unwrap();
            let name = writer.shared.namer.name(Kind::Grant, id(9).as_bytes());
            let mut sealed = opened.engine.get(&name)?.unwrap();
            sealed[40] ^= 1;
            opened.engine.write(&[(name, Some(&sealed[..]))].into(), &writer.mark)
        })
        .unwrap();
    vault.rotate_data_key().unwrap();
    let problem = stopped(&vault);
    assert!(problem.contains("do not open: 1; ") && problem.contains("a grant's record"), "{problem}");
    let rekeying = vault.rekeying().unwrap();
    assert_eq!((rekeying.done + 1, rekeying.total), (rekeying.total, vault.stats().records + 1));
    assert_eq!((used(&vault), kept(&fixture)), ([1, 2].into(), vec![1, 2]));
    assert_eq!(bytes(&vault.grant(id(8)).at_once().unwrap().unwrap().value), bytes(&grant(8)));
    vault.commit(vec![put(7)]).await.unwrap();

    // A newer key is not refused for it.
    assert_eq!(vault.rotate_data_key().unwrap(), 3);
    stopped(&vault);
    assert_eq!((used(&vault), kept(&fixture)), ([1, 3].into(), vec![1, 2, 3]));
    vault.close().unwrap();

    // Once it is overwritten, the next opening finishes.
    let vault = fixture.open();
    stopped(&vault);
    vault.commit(vec![put(9)]).await.unwrap();
    vault.close().unwrap();
    let vault = fixture.open();
    settled(&vault);
    assert_eq!((used(&vault), kept(&fixture)), ([3].into(), vec![3]));
    assert_eq!(grants(&vault).len(), usize::from(GRANTS));
}

#[tokio::test]
async fn no_key_is_destroyed_while_the_database_shows_fewer_records_than_it_holds() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let held = vault.stats().records + 1;
    vault
        .ask(|writer| {
            writer.mark.counts[Kind::Grant.index()] += 1;
            writer.rotate_data_key()
        })
        .unwrap();
    let problem = stopped(&vault);
    assert!(problem.contains(&format!("{} of {} records can be found", held, held + 1)), "{problem}");
    assert_eq!((used(&vault), kept(&fixture)), ([2].into(), vec![1, 2]));
}

#[tokio::test]
async fn where_the_keyring_cannot_be_written_nothing_changes_and_the_vault_goes_on() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let before = contents(&vault);
    // A folder in its way stands for a disk without room.
    let in_the_way = fixture.path("keyring.age.new");
    fs::create_dir(&in_the_way).unwrap();
    let error = vault.rotate_data_key().unwrap_err();
    assert!(error.to_string().contains("keyring.age"), "{error}");
    assert!(vault.add_recipient(age::x25519::Identity::generate().to_public().to_string()).is_err());
    assert_eq!((vault.stats().data_key, vault.rekeying(), vault.poisoned()), (1, None, None));
    assert_eq!((kept(&fixture), vault.recipients().unwrap().len()), (vec![1], 1));
    vault.commit(vec![put(1)]).await.unwrap();

    // And so at the end: both keys are kept, until another try gets further.
    fs::remove_dir(&in_the_way).unwrap();
    vault
        .ask(move |writer| {
            writer.rotate_data_key()?;
            fs::create_dir(&in_the_way).unwrap();
            Ok(())
        })
        .unwrap();
    let problem = stopped(&vault);
    assert!(problem.contains("keyring.age"), "{problem}");
    assert_eq!((used(&vault), kept(&fixture), vault.poisoned()), ([2].into(), vec![1, 2], None));
    fs::remove_dir(fixture.path("keyring.age.new")).unwrap();
    assert_eq!(vault.rotate_data_key().unwrap(), 3);
    settled(&vault);
    assert_eq!(kept(&fixture), [3]);
    assert_eq!(contents(&vault).len(), before.len());
}

#[tokio::test]
async fn a_failed_sync_in_the_middle_ends_it_until_the_vault_is_opened_anew() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let before = contents(&vault);
    vault
        .ask(|writer| {
            writer.rotate_data_key()?;
            writer.idle_work();
            writer.journal.break_for_test();
            Ok(())
        })
        .unwrap();
    let problem = stopped(&vault);
    assert!(problem.contains("takes no more writes"), "{problem}");
    assert!(vault.poisoned().is_some() && vault.rotate_data_key().is_err());
    assert!(contents(&vault) == before);
    assert_eq!(kept(&fixture), [1, 2]);
    drop(vault);
    let vault = fixture.open();
    settled(&vault);
    assert!(contents(&vault) == before);
    assert_eq!(kept(&fixture), [2]);
}
