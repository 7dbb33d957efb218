//! The way to what was found lately, without the large tables.
//!
//! Of a million organizations each lies in pages of memory of its own, and so does its place in the table. To look up where those pages are
//! takes time, too. Whoever asks is one of a few thousand as a rule, and these fit into some pages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Entry;
use crate::model::OrganizationId;

/// How many places there are, 16 bytes each: of a thousand organizations that are fetched in turn, one in seventeen shares its place.
const PLACES: u64 = 1 << 14;

/// Entries that were found lately, one at most of all whose hash ends alike.
///
/// What the table has not is not here either: an entry is put here with its part of the table locked for reading, and whoever changes
/// the table clears the place before the lock for writing is given up.
#[derive(Debug)]
pub(super) struct Recent(Box<[Mutex<Option<Arc<Entry>>>]>);

impl Recent {
    pub(super) fn new() -> Self {
        Self((0..PLACES).map(|_| Mutex::new(None)).collect())
    }

    /// The organization's entry, if it was the last one found at its place.
    pub(super) fn find(&self, hash: u64, id: &OrganizationId) -> Option<Arc<Entry>> {
        self.place(hash).as_ref().filter(|entry| entry.id == *id).cloned()
    }

    /// Keeps an entry that was just found in the table, whose lock is held.
    pub(super) fn keep(&self, hash: u64, entry: &Arc<Entry>) {
        let before = self.place(hash).replace(Arc::clone(entry));
        // Not while others wait for the place.
        drop(before);
    }

    /// The table's entry of that hash has changed, or is about to go, and its lock is held.
    pub(super) fn forget(&self, hash: u64) {
        let before = self.place(hash).take();
        drop(before);
    }

    /// Keeps none, so that nothing is in use for having been found.
    pub(super) fn clear(&self) {
        for place in &self.0 {
            let before = lock(place).take();
            drop(before);
        }
    }

    fn place(&self, hash: u64) -> MutexGuard<'_, Option<Arc<Entry>>> {
        // The top of a hash chooses the table.
        lock(&self.0[usize::try_from(hash % PLACES).unwrap_or(0)])
    }
}

fn lock(place: &Mutex<Option<Arc<Entry>>>) -> MutexGuard<'_, Option<Arc<Entry>>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::{
        super::{
            Index,
            evict::tests::{organization, slot},
        },
        *,
    };

    #[test]
    fn what_was_found_lately_follows_every_change_of_the_table() {
        let (index, id) = (Index::new(), organization(1));
        let (first, second) = (slot(1), slot(2));
        let slot_of = || index.find(&id).map(|entry| Arc::clone(&entry.slot));
        index.insert(id.clone(), Arc::clone(&first), None);
        for _ in 0..2 {
            assert!(slot_of().is_some_and(|found| Arc::ptr_eq(&found, &first)));
        }
        index.insert(id.clone(), Arc::clone(&second), None);
        for _ in 0..2 {
            assert!(slot_of().is_some_and(|found| Arc::ptr_eq(&found, &second)), "it was moved");
        }
        let entry = index.find(&id).expect("there");
        index.leave(&entry);
        assert!(index.find(&id).is_none(), "it left");
        index.enter(&id, &first, None, &index.before()).expect("nothing has changed");
        assert!(slot_of().is_some_and(|found| Arc::ptr_eq(&found, &first)));
        index.remove(&id);
        assert!(index.find(&id).is_none(), "it was removed");
    }

    #[test]
    fn those_that_share_a_place_are_found_all_the_same() {
        let index = Index::new();
        let many = 4 * u32::try_from(PLACES).expect("few");
        let grant = slot(1);
        (0..many).for_each(|number| drop(index.insert(organization(number), Arc::clone(&grant), None)));
        for number in (0..many).chain(0..many) {
            assert!(index.find(&organization(number)).is_some_and(|entry| entry.id == organization(number)));
        }
    }

    #[test]
    fn what_was_found_lately_leaves_when_room_is_needed() {
        let index = Index::new();
        for number in 0..8 {
            let grant = slot(number);
            index.admit_slot(Arc::clone(&grant), None).expect("new");
            index.insert(organization(number), grant, None);
            assert!(index.find(&organization(number)).is_some());
        }
        assert_eq!(index.evict(2, Duration::ZERO).len(), 6);
    }

    #[test]
    fn whoever_asks_after_a_change_never_finds_what_was_before_it() {
        let (index, id) = (Index::new(), organization(1));
        let (first, second) = (slot(1), slot(2));
        thread::scope(|scope| {
            let asking: Vec<_> =
                (0..2).map(|_| scope.spawn(|| (0..20_000).filter_map(|_| index.find(&id)).count())).collect();
            while !asking.iter().all(thread::ScopedJoinHandle::is_finished) {
                for grant in [&first, &second] {
                    index.insert(id.clone(), Arc::clone(grant), None);
                    assert!(index.find(&id).is_some_and(|entry| Arc::ptr_eq(&entry.slot, grant)));
                }
                index.remove(&id);
                assert!(index.find(&id).is_none());
            }
        });
    }
}
