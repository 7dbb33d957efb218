//! What is durable and not yet in the engine: it is read as if it were, and the engine holds the state after some commit at
//! any time.

use super::*;
use crate::vault::{engine, name::Name};

fn name_of(fixture: &Fixture, kind: Kind, number: u8) -> Name {
    Namer::new(&fixture.keyring().name_key).name(kind, id(number).as_bytes())
}

/// Whether the engine holds what its own mark says.
fn adds_up(engine: &Memory) -> u64 {
    let mark = engine.mark().unwrap().unwrap_or_default();
    engine::verify(engine, &mark, &mut |_, _| Ok(())).unwrap();
    mark.applied
}

#[tokio::test]
async fn a_commit_is_read_before_the_engine_has_it_and_after() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    vault.commit(vec![put(1), put(2)]).await.unwrap();
    bring_up(&vault).unwrap();
    vault.commit(vec![put(3), Change::DeleteGrant(id(1)), Change::PutIntent(intent(3))]).await.unwrap();
    let sequence = vault.commit(vec![put(2)]).await.unwrap();
    let check = |vault: &Vault| {
        assert_eq!(grants(vault), [2, 3], "each is handed over once");
        assert_eq!(vault.grant(id(2)).at_once().unwrap().unwrap().sequence, sequence);
        assert!(vault.grant(id(1)).at_once().unwrap().is_none() && vault.intent(id(3)).at_once().unwrap().is_some());
        assert_eq!(vault.stats().records, 3);
    };
    check(&vault);
    bring_up(&vault).unwrap();
    check(&vault);
    assert_eq!((adds_up(&engine), engine.mark().unwrap().unwrap().all()), (sequence, 3));
    assert!(engine.get(&name_of(&fixture, Kind::Grant, 1)).unwrap().is_none());
}

#[tokio::test]
async fn what_comes_and_goes_never_reaches_the_engine_and_its_mark_follows_all_the_same() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    vault.commit(vec![put(1)]).await.unwrap();
    bring_up(&vault).unwrap();
    let writes = engine.writes.load(Ordering::Relaxed);
    vault.commit(vec![Change::PutIntent(intent(1))]).await.unwrap();
    let last = vault.commit(vec![Change::DeleteIntent(id(1))]).await.unwrap();
    bring_up(&vault).unwrap();
    assert_eq!(adds_up(&engine), last, "the journal may start over after it");
    assert_eq!(engine.writes.load(Ordering::Relaxed), writes, "not a record was written");
    // What the engine has must go from it, too.
    vault.commit(vec![Change::PutIntent(intent(1))]).await.unwrap();
    bring_up(&vault).unwrap();
    vault.commit(vec![Change::DeleteIntent(id(1))]).await.unwrap();
    bring_up(&vault).unwrap();
    adds_up(&engine);
    assert!(engine.get(&name_of(&fixture, Kind::Intent, 1)).unwrap().is_none());
}

#[tokio::test]
async fn the_engine_is_given_what_it_lacks_when_nothing_comes_for_a_while_or_much_has_come() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    vault.commit(vec![put(1)]).await.unwrap();
    while adds_up(&engine) < 2 {
        std::thread::yield_now();
    }
    for _ in 0..20 {
        vault.commit((0..20).map(put).collect()).await.unwrap();
        let lacking = vault.ask(|writer| Ok(writer.shared.backlog.bytes())).unwrap();
        assert!(lacking < usize::try_from(SMALL_JOURNAL).unwrap() / 64, "it lacks {lacking} bytes");
    }
}

#[tokio::test]
async fn whatever_is_committed_the_engine_is_after_some_commit_and_readers_are_after_the_last() {
    let fixture = Fixture::new();
    let (vault, engine) = with_memory(&fixture, |_| {});
    let mut chance = fastrand::Rng::with_seed(7);
    let mut model: BTreeMap<u8, u64> = BTreeMap::new();
    for _ in 0..400 {
        let number = chance.u8(..12);
        let removes = chance.u8(..3) == 0;
        let changes = if removes { vec![Change::DeleteGrant(id(number))] } else { vec![put(number)] };
        let sequence = vault.commit(changes).await.unwrap();
        if removes {
            model.remove(&number)
        } else {
            model.insert(number, sequence)
        };
        if chance.u8(..6) == 0 {
            bring_up(&vault).unwrap();
            assert_eq!(adds_up(&engine), sequence);
        }
        for number in 0..12 {
            let read = vault.grant(id(number)).at_once().unwrap().map(|stored| stored.sequence);
            assert_eq!(read.as_ref(), model.get(&number));
        }
        assert_eq!(grants(&vault), model.keys().copied().collect::<Vec<_>>());
        assert_eq!(vault.stats().records, model.len() as u64);
    }
}

#[tokio::test]
async fn a_crash_with_an_engine_that_lags_behind_loses_nothing() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1), put(2)]).await.unwrap();
    bring_up(&vault).unwrap();
    vault.commit(vec![put(3), Change::PutIntent(intent(3))]).await.unwrap();
    vault.commit(vec![Change::DeleteGrant(id(1)), Change::DeleteIntent(id(3))]).await.unwrap();
    let reopened = fixture.crashed().open();
    assert_eq!(grants(&reopened), [2, 3]);
    assert!(reopened.intent(id(3)).at_once().unwrap().is_none());
    vault.close().unwrap();
    assert_eq!(grants(&fixture.open()), [2, 3], "and a clean close leaves nothing behind in it");
}
