//! What must hold when something dies, comes late, or happens twice.

use super::*;

const IDLE: KeepWarm = KeepWarm::FetchedWithin(Duration::from_secs(1));

impl World {
    /// How often the issuer was sent this secret.
    fn sent(&self, secret: &str) -> usize {
        self.issuer.sent.lock().expect("whole").iter().filter(|sent| *sent == secret).count()
    }
}

#[tokio::test]
async fn a_token_whose_exchange_died_after_it_was_sent_is_in_doubt_and_not_sent_again() {
    let world = World::with(IDLE).await;
    world.enrol("a", "one-a").await.expect("enrolled");
    world.clock.advance(HOUR * 2);
    world.issuer.panics.store(true, Ordering::SeqCst);
    assert_eq!(code(world.fetch("a").await), Code::ProviderUnavailable);
    assert_eq!(code(world.fetch("a").await), Code::InDoubt);
    assert_eq!(world.state("a").await, "in_doubt/crashed");
    world.keeper.sweep();
    assert_eq!(code(world.keeper.refresh(&org("a"), None).await), Code::InDoubt);
    assert_eq!(world.sent("one-1-one-a"), 1);
}

#[tokio::test]
async fn an_enrolment_whose_exchange_died_keeps_the_doubt_about_its_token() {
    let world = World::new().await;
    world.issuer.panics.store(true, Ordering::SeqCst);
    assert_eq!(code(world.enrol("a", "one-a").await), Code::ProviderUnavailable);
    assert_eq!(code(world.enrol("a", "one-a").await), Code::InDoubt);
    let world = world.restarted().await;
    assert_eq!(code(world.enrol("a", "one-a").await), Code::InDoubt);
    assert_eq!(world.sent("one-a"), 1);
}
