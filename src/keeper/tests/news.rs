//! What a slot takes of what others have stored, and what it does not.

use super::*;
use crate::{model::Grant, vault::Stored};

impl World {
    fn stored_record(&self, organization: &str) -> Stored<Grant> {
        let entry = self.keeper.shared.index.find(&org(organization)).expect("there");
        self.vault.grant(entry.slot.id).at_once().expect("read").expect("there")
    }
}

#[tokio::test]
async fn a_slot_follows_what_was_stored_later_and_takes_nothing_older_than_it_has() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    let Stored { value: grant, sequence } = world.stored_record("a");
    let slot = Arc::clone(&world.keeper.shared.index.find(&org("a")).expect("there").slot);
    let learn = async |sequence, change: &dyn Fn(&mut Grant)| {
        let mut value = grant.clone();
        change(&mut value);
        world.keeper.shared.learn(&slot, &Stored { value, sequence }).await;
    };

    learn(sequence - 1, &|grant| grant.paused = true).await;
    assert_eq!(world.fetch("a").await.expect("it is not paused").token.access_token, "at-1");
    learn(sequence + 2, &|grant| grant.access.as_mut().expect("there").token = Secret::new("at-elsewhere")).await;
    assert_eq!(world.fetch("a").await.expect("served").token.access_token, "at-elsewhere");
    learn(sequence + 1, &|grant| grant.access = None).await;
    assert_eq!(world.fetch("a").await.expect("served").token.access_token, "at-elsewhere", "that came too late");
    learn(sequence + 3, &|grant| grant.paused = true).await;
    assert_eq!(code(world.fetch("a").await), Code::Paused);
}

#[tokio::test]
async fn a_grant_that_another_has_removed_is_neither_served_nor_exchanged() {
    let world = World::new().await;
    world.enrol("a", "one-a").await.expect("enrolled");
    let slot = Arc::clone(&world.keeper.shared.index.find(&org("a")).expect("there").slot);
    for _ in 0..2 {
        // To hear of it twice changes nothing more.
        world.keeper.shared.forget_slots(&[Arc::clone(&slot)]);
    }
    world.keeper.shared.learn_organization(&org("a"), None).await;
    assert_eq!(code(world.fetch("a").await), Code::UnknownOrganization);
    world.advance(HOUR * 2);
    tokio::task::yield_now().await;
    assert_eq!(world.issuer.count(), 1);
    assert_eq!(world.keeper.status(None).at_once().organizations.values().sum::<u64>(), 0);
}
