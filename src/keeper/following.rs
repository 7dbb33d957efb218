//! Circuits of several workers: what one finds out of a provider, all know a second later.
//!
//! Each worker observes the answers that it gets. Where its circuit has changed, it writes how the provider is from now on, over the
//! version that it knew; of two who do so at once one is heard, and the other follows it. Who was heard tells the event.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Shared,
    circuit::{Change, Standing},
    lane::Lane,
};
use crate::{
    model::EventKind,
    vault::postgres::{Store, Told},
};

/// How often it is looked what others have found out.
pub(super) const FOLLOWED: Duration = Duration::from_secs(1);

/// How a provider was last heard to be.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<(u64, Standing)>);

impl Heard {
    pub(super) fn standing(&self) -> Standing {
        self.get().1
    }

    fn get(&self) -> (u64, Standing) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, version: u64, standing: Standing) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (version, standing);
    }
}

/// What is to be done about one provider.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Another has found this out.
    Follow(Standing),
    /// This worker has, and says it over the version that it knows.
    Tell(Standing),
}

/// `told` is newer than what was heard, where there is such a thing.
fn step(heard: Standing, own: Standing, told: Option<Standing>) -> Step {
    match told {
        // Whoever was first is right: what this worker has found out meanwhile, it will find out again.
        Some(told) if told != own => Step::Follow(told),
        None if own != heard => Step::Tell(own),
        _ => Step::Nothing,
    }
}

/// Keeps the circuits in step with those of other workers; ends at once where there are none.
pub(super) async fn follow(shared: Arc<Shared>) {
    let Some(store) = shared.vault.sharing() else { return };
    loop {
        // While the database is away each goes by what it sees itself.
        if let Ok(told) = store.told().await {
            for number in 0..shared.lanes.len() {
                shared.follow_lane(&store, number, &told).await;
            }
        }
        tokio::select! {
            () = shared.circuits_changed.notified() => {}
            () = tokio::time::sleep(FOLLOWED) => {}
        }
    }
}

impl Shared {
    async fn follow_lane(&self, store: &Store, number: usize, told: &[Told]) {
        let (lane, provider) = (&self.lanes[number], u16::try_from(number).unwrap_or(u16::MAX));
        let (id, known) = (store.lane(&lane.name), lane.heard.get());
        let said = match told.iter().find(|told| told.lane == id) {
            None => (0, Standing::default()),
            Some(told) => match Standing::read(&told.words) {
                Some(standing) => (told.version, standing),
                // A newer version's: each goes by what it sees itself.
                None => return,
            },
        };
        // Another version is news also where it is a lesser one: a server that took over may know less.
        let news = (said != known).then_some(said.1);
        lane.heard.set(said.0, said.1);
        let (version, heard) = said;
        match step(heard, lane.circuit.standing(), news) {
            Step::Nothing => {}
            Step::Follow(standing) => {
                let change = lane.circuit.follow(standing, self.now().boot);
                self.circuit_followed(provider, change);
            }
            Step::Tell(own) => {
                // Where the answer does not come, the next look tells whether it was heard.
                if let Ok(Some(version)) = store.tell(id, version, &own.words()).await {
                    lane.heard.set(version, own);
                    self.tell_standing(lane, heard, own);
                }
            }
        }
    }

    /// Another worker found out that the provider has failed or recovered, and tells of it.
    fn circuit_followed(&self, provider: u16, change: Option<Change>) {
        let lane = &self.lanes[usize::from(provider)];
        match change {
            None => {}
            Some(Change::Opened(reason)) => {
                lane.froze();
                let provider = lane.name.as_str();
                tracing::warn!(provider, reason, "another worker found that the provider fails as a whole");
            }
            Some(Change::Closed) => {
                tracing::info!(provider = lane.name.as_str(), "another worker found that the provider answers again");
                self.bring_back(provider);
            }
        }
    }

    fn tell_standing(&self, lane: &Lane, before: Standing, now: Standing) {
        match (before.open, now.open) {
            (None, Some(reason)) => self.tell_provider(lane, EventKind::ProviderFailing, Some(reason)),
            (Some(_), None) => self.tell_provider(lane, EventKind::ProviderRecovered, None),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::circuit::REFUSED;

    #[test]
    fn who_is_first_is_followed_and_what_nobody_said_is_told() {
        let (well, frozen) = (Standing::default(), Standing { open: Some(REFUSED), ..Standing::default() });
        let trial = Standing { trial: Some(REFUSED), relapses: 1, ..Standing::default() };
        assert_eq!(step(well, well, None), Step::Nothing);
        assert_eq!(step(well, frozen, None), Step::Tell(frozen));
        assert_eq!(step(well, well, Some(frozen)), Step::Follow(frozen));
        assert_eq!(step(well, frozen, Some(frozen)), Step::Nothing, "both found out the same");
        assert_eq!(step(frozen, well, Some(trial)), Step::Follow(trial), "the other was first");
    }
}
