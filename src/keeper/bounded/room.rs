//! Room for what is brought in: what nobody uses leaves, the least lately fetched first, and when it was fetched is written.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{super::Shared, Bounded};
use crate::{
    config::KeepWarm,
    model::{GrantId, Timestamp},
};

/// Of what may be kept, one part in so many leaves at once, so that looking for it costs each little.
const MADE_AT_ONCE: usize = 16;
/// What was noted of fetches is written so often.
const WRITTEN_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked which of those in memory were fetched: as often as matters to who asks what is idle, and no oftener.
const LOOKED_AT_EVERY: Duration = Duration::from_mins(15);
/// How many fetches are written by one statement.
const WRITTEN_AT_ONCE: usize = 1000;

impl Shared {
    /// Makes room for a grant, or an organization, that is about to be added.
    pub(in crate::keeper) fn make_room(&self, bounded: &Bounded) {
        if self.in_memory() >= bounded.make_room_at.load(Ordering::Relaxed) {
            self.evict(bounded);
        }
    }

    /// How many are in memory, of grants or of organizations, whichever are more.
    fn in_memory(&self) -> usize {
        self.index.slot_count().max(self.index.entry_count())
    }

    fn evict(&self, bounded: &Bounded) {
        let gone = self.index.evict(keep(bounded.most), self.now().boot);
        bounded.make_room_at.store(next_time(self.in_memory(), bounded.most), Ordering::Relaxed);
        for slot in &gone {
            self.cache.forget(&mut slot.lock());
        }
        // Of those that were not fetched since it was last looked, that was noted then, or is in their records.
        let fetched = gone.iter().filter_map(|slot| Some((slot.id, slot.last_fetched()?)));
        bounded.note_fetched(fetched.filter(|(_, at)| *at >= bounded.looked_at()));
    }

    /// Those in memory that were fetched since that moment.
    fn fetched_since(&self, moment: Timestamp) -> Vec<(GrantId, Timestamp)> {
        let fetched = self.index.slots().into_iter().filter_map(|slot| Some((slot.id, slot.last_fetched()?)));
        fetched.filter(|(_, at)| *at >= moment).collect()
    }
}

/// How many stay when room is made.
fn keep(most: usize) -> usize {
    most - (most / MADE_AT_ONCE).max(1)
}

/// With how many in memory room is made next: not with each one more where too many are in use.
fn next_time(left: usize, most: usize) -> usize {
    if left < most { most } else { left + (most / MADE_AT_ONCE).max(1) }
}

/// Lets go of what was in use and is not any more, where that is too much; and writes when grants were fetched, until the keeper stops: a
/// worker that claims one that is due asks whether anybody needs it.
pub(in crate::keeper) async fn keep_room(shared: Arc<Shared>) {
    let Some(bounded) = &shared.bounded else { return };
    let every = match shared.refresh.keep_warm {
        KeepWarm::FetchedWithin(within) => LOOKED_AT_EVERY.min(within / 4).max(WRITTEN_EVERY),
        KeepWarm::Always => LOOKED_AT_EVERY,
    };
    let mut looked_at = shared.now();
    bounded.set_looked_at(looked_at.wall);
    loop {
        tokio::time::sleep(WRITTEN_EVERY).await;
        if shared.in_memory() > bounded.most {
            shared.evict(bounded);
        }
        let now = shared.now();
        if now.boot.saturating_sub(looked_at.boot) >= every {
            bounded.note_fetched(shared.fetched_since(looked_at.wall));
            looked_at = now;
            bounded.set_looked_at(now.wall);
        }
        for fetched in bounded.take_unwritten().chunks(WRITTEN_AT_ONCE) {
            if let Err(error) = bounded.store.fetched(fetched).await {
                // Coarse as it is, it is worth no second try.
                tracing::debug!(%error, "when grants were fetched could not be written");
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_for_many_at_once_and_seldom_where_all_are_in_use() {
        assert_eq!((keep(1600), keep(10)), (1500, 9));
        assert_eq!(next_time(1500, 1600), 1600);
        assert_eq!(next_time(1700, 1600), 1800, "as many are in use");
    }
}
