//! Admitting what was read, where only some of the fleet is in memory.
//!
//! What is read is put in memory only after that, and what is written in between is told of a record that is not there. So whatever may have
//! made a record old is counted, and what was read before such a change is not admitted. Both are looked at with the index locked: of a change
//! that is counted later, whoever tells of it finds here what was admitted.

use std::{
    hash::BuildHasher,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hashbrown::hash_table;

use super::{Entry, Index, Slot, hash_of};
use crate::model::{GrantId, OrganizationId, Timestamp};

/// Changes are counted by so many parts of all ids, so that what is read is seldom read anew for the sake of another's change.
const PARTS: usize = 256;

/// How many changes there were of each part of the records.
#[derive(Debug)]
pub(super) struct Changes(Box<[AtomicU64]>);

/// How many there were before something was read.
#[derive(Debug)]
pub(in crate::keeper) struct Before(Box<[u64]>);

/// Why a slot was not added.
#[derive(Debug)]
pub(in crate::keeper) enum NotAdded {
    /// There is one, which stays.
    There(Arc<Slot>),
    /// What it was made of may be old.
    Outdated,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self((0..PARTS).map(|_| AtomicU64::new(0)).collect())
    }

    fn note(&self, part: usize) {
        self.0[part].fetch_add(1, Ordering::AcqRel);
    }

    fn are_as(&self, before: &Before, part: usize) -> bool {
        self.0[part].load(Ordering::Acquire) == before.0[part]
    }
}

impl Index {
    /// To be asked for before anything is read that is to be admitted.
    pub(in crate::keeper) fn before(&self) -> Before {
        Before(self.changed.0.iter().map(|part| part.load(Ordering::Acquire)).collect())
    }

    /// A grant's record has changed, and nothing is done about it yet here.
    pub(in crate::keeper) fn note_grant(&self, id: GrantId) {
        self.changed.note(part_of(hash_of(id)));
    }

    /// The same of an organization's record.
    pub(in crate::keeper) fn note_organization(&self, id: &OrganizationId) {
        self.changed.note(part_of(self.hash(id)));
    }

    /// Adds a slot that was made of what was read, or written, after `before`; `None`: it is known that nothing has changed since.
    pub(in crate::keeper) fn admit_slot(&self, slot: Arc<Slot>, before: Option<&Before>) -> Result<(), NotAdded> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let hash = hash_of(slot.id);
        match slots.entry(hash, |there| there.id == slot.id, |slot| hash_of(slot.id)) {
            hash_table::Entry::Occupied(there) => Err(NotAdded::There(Arc::clone(there.get()))),
            hash_table::Entry::Vacant(_)
                if before.is_some_and(|before| !self.changed.are_as(before, part_of(hash))) =>
            {
                Err(NotAdded::Outdated)
            }
            hash_table::Entry::Vacant(place) => {
                place.insert(slot);
                Ok(())
            }
        }
    }

    /// Puts an organization that was read after `before` on a slot, unless it is in memory already; what is there stays, and is given back.
    /// `None`: what was read may be old.
    pub(in crate::keeper) fn enter(
        &self,
        id: &OrganizationId,
        slot: &Arc<Slot>,
        last_fetched: Option<Timestamp>,
        before: &Before,
    ) -> Option<Arc<Entry>> {
        let hash = self.hash(id);
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        match shard.entry(hash, |entry| entry.id == *id, |entry| self.hasher.hash_one(&entry.id)) {
            hash_table::Entry::Occupied(there) => Some(Arc::clone(there.get())),
            hash_table::Entry::Vacant(_) if !self.changed.are_as(before, part_of(hash)) => None,
            hash_table::Entry::Vacant(place) => {
                let entry = Arc::new(Entry::new(id.clone(), Arc::clone(slot), last_fetched));
                place.insert(Arc::clone(&entry));
                self.entries.fetch_add(1, Ordering::Relaxed);
                self.changes.fetch_add(1, Ordering::Release);
                Some(entry)
            }
        }
    }
}

/// The top of a hash tells entries of a table apart; these are from its middle.
fn part_of(hash: u64) -> usize {
    usize::try_from(hash >> 24).unwrap_or(0) % PARTS
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::evict::tests::{organization, slot},
        *,
    };

    #[test]
    fn what_was_read_before_a_change_is_not_admitted_and_what_was_read_after_it_is() {
        let index = Index::new();
        let (grant, id) = (slot(1), organization(1));
        let before = index.before();
        index.note_grant(grant.id);
        assert!(matches!(index.admit_slot(Arc::clone(&grant), Some(&before)), Err(NotAdded::Outdated)));
        assert_eq!(index.slot_count(), 0);
        index.admit_slot(Arc::clone(&grant), Some(&index.before())).expect("read anew");

        let before = index.before();
        index.note_organization(&id);
        assert!(index.enter(&id, &grant, None, &before).is_none());
        assert!(index.find(&id).is_none());
        assert!(index.enter(&id, &grant, None, &index.before()).is_some());
    }

    #[test]
    fn a_change_of_one_grant_makes_few_others_old() {
        let index = Index::new();
        let before = index.before();
        index.note_grant(slot(0).id);
        let admitted = (1..=1000).filter(|number| index.admit_slot(slot(*number), Some(&before)).is_ok()).count();
        assert!(admitted > 900, "{admitted}");
    }

    #[test]
    fn what_was_read_of_a_grant_before_it_left_memory_is_not_admitted_since_it_may_have_been_written_there() {
        let index = Index::new();
        let before = index.before();
        // It comes by another way, is written, and leaves.
        index.admit_slot(slot(1), Some(&before)).expect("the first");
        assert_eq!(index.evict(0, Duration::ZERO).len(), 1);
        assert!(matches!(index.admit_slot(slot(1), Some(&before)), Err(NotAdded::Outdated)));
        index.admit_slot(slot(1), Some(&index.before())).expect("read anew");
    }

    #[test]
    fn what_is_in_memory_already_stays_however_old_it_is_that_was_read() {
        let index = Index::new();
        let before = index.before();
        let there = slot(1);
        index.admit_slot(Arc::clone(&there), Some(&before)).expect("the first");
        index.note_grant(there.id);
        let Err(NotAdded::There(found)) = index.admit_slot(slot(1), Some(&before)) else { panic!("two of one grant") };
        assert!(Arc::ptr_eq(&found, &there));
    }
}
