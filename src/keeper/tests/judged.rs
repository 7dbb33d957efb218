//! A vault that was opened after a crash, while its records are still being counted.

use super::*;

impl World {
    /// As after a crash whose vault is not judged yet: a lapsed one-time grant, a lapsed key, and a key that lives.
    async fn unjudged() -> Self {
        let mut world = Self::new().await;
        world.enrol("one", "one-a").await.expect("enrolled");
        world.enrol("key", "key-b").await.expect("enrolled");
        world.advance(HOUR.mul_f64(0.5));
        world.enrol("lives", "key-c").await.expect("enrolled");
        world.keeper.shared.stopping.cancel();
        world.clock.advance(HOUR.mul_f64(0.6));
        world.vault.judge_for_test(None);
        world.keeper = keeper(&world.vault, &world.issuer, &world.clock, world.keep_warm, &world.providers);
        world
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn until_a_vault_is_judged_what_lives_is_served_and_nothing_is_exchanged() {
    let world = World::unjudged().await;
    let before = world.issuer.count();
    assert_eq!(world.fetch("lives").await.expect("it lives").token.access_token, "at-3");
    world.until(|world| world.keeper.shared.index.slot_count() == 3).await;
    let waits = tokio::time::timeout(Duration::from_millis(50), world.fetch("one"));
    assert!(waits.await.is_err(), "whoever wants a lapsed one waits");
    assert!(!world.keeper.is_ready() && world.issuer.count() == before, "nothing was sent");
    world.vault.judge_for_test(Some(Ok(())));
    world.until(|world| world.keeper.is_ready()).await;
    assert!(world.fetch("one").await.is_ok() && world.fetch("key").await.is_ok());
    assert_eq!(world.issuer.count(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_vault_that_is_found_damaged_nothing_is_ever_exchanged() {
    let world = World::unjudged().await;
    let before = world.issuer.count();
    world.vault.judge_for_test(Some(Err(VaultError::Damaged { what: "its database", detail: "for the test".into() })));
    assert!(tokio::time::timeout(Duration::from_millis(50), world.fetch("one")).await.is_err());
    assert!(!world.keeper.is_ready() && world.issuer.count() == before);
}

#[tokio::test]
async fn an_exchange_that_was_cut_off_is_not_made_a_doubt_before_the_vault_is_judged() {
    let mut world = World::new().await;
    world.enrol("one", "one-a").await.expect("enrolled");
    *world.issuer.delay.lock().expect("whole") = Duration::from_hours(1);
    world.advance(HOUR.mul_f64(0.85));
    world.until(|world| world.issuer.at_once.load(Ordering::SeqCst) == 1).await;
    world.keeper.shared.stopping.cancel();
    world.vault.judge_for_test(None);
    world.keeper = keeper(&world.vault, &world.issuer, &world.clock, world.keep_warm, &world.providers);
    assert_eq!(code(world.fetch("one").await), Code::Starting);
    world.vault.judge_for_test(Some(Ok(())));
    world.until(|world| world.keeper.is_ready()).await;
    assert_eq!(world.state("one").await, "in_doubt/crashed");
}
