//! Forgetting what nobody uses, where only some of the fleet is in memory.
//!
//! Two slots of one grant would be two that exchange it. So a slot goes only when the index holds the only reference to it, and that is
//! looked at with the index locked: nobody can come by another then. Whoever needs the grant afterwards finds no slot and makes one.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{Entry, Index, Second, Slot};
use crate::model::{OrganizationId, Timestamp};

/// How often it is tried: a grant of several organizations goes after the last of them.
const ROUNDS: usize = 3;

impl Index {
    /// Forgets an entry, unless another has taken its place.
    pub(in crate::keeper) fn leave(&self, entry: &Arc<Entry>) {
        let hash = self.hash(&entry.id);
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(found) = shard.find_entry(hash, |there| Arc::ptr_eq(there, entry)) {
            found.remove();
            self.recent.forget(hash);
            self.entries.fetch_sub(1, Ordering::Relaxed);
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Forgets what nobody uses until there are at most `keep` grants and as many organizations, those that were fetched longest ago
    /// first. Gives the slots that went; nobody else has them. Fewer go where the others are in use, or have something to remember.
    pub(in crate::keeper) fn evict(&self, keep: usize, boot: Duration) -> Vec<Arc<Slot>> {
        self.recent.clear();
        let mut gone = self.evict_slots(boot);
        for _ in 0..ROUNDS {
            let excess = self.slot_count().max(self.entry_count()).saturating_sub(keep);
            if excess == 0 || self.evict_entries(excess) == 0 {
                break;
            }
            gone.append(&mut self.evict_slots(boot));
        }
        gone
    }

    /// How many organizations are in memory.
    pub(in crate::keeper) fn entry_count(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Forgets so many organizations that nobody uses, if there are so many; those that were fetched longest ago.
    fn evict_entries(&self, wanted: usize) -> usize {
        let mut fetched = Vec::with_capacity(self.entry_count());
        self.for_each(&mut |entry| {
            if Arc::strong_count(entry) == 1 {
                fetched.push(entry.last_fetched.load(Ordering::Relaxed));
            }
        });
        let Some(last) = fetched.len().min(wanted).checked_sub(1) else { return 0 };
        let (_, until, _) = fetched.select_nth_unstable(last);
        let (until, mut left) = (*until, wanted);
        for shard in &self.organizations {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|entry| {
                let is_old = entry.last_fetched.load(Ordering::Relaxed) <= until;
                let goes = left > 0 && is_old && Arc::strong_count(entry) == 1;
                left -= usize::from(goes);
                !goes
            });
        }
        self.entries.fetch_sub(wanted - left, Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::Release);
        wanted - left
    }

    /// Forgets the slots that no organization in memory uses, nor anybody else.
    fn evict_slots(&self, boot: Duration) -> Vec<Arc<Slot>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        // The token cache may come by one more for as long as it takes a token out of it, and does nothing else with it.
        let goes = |slot: &mut Arc<Slot>| Arc::strong_count(slot) == 1 && slot.lock().has_nothing_to_remember(boot);
        let gone: Vec<Arc<Slot>> = slots.extract_if(goes).collect();
        // Whoever has read one before it was written here finds no slot from here on, and must not make one of that.
        for slot in &gone {
            self.note_grant(slot.id);
        }
        gone
    }
}

impl Entry {
    pub(super) fn new(id: OrganizationId, slot: Arc<Slot>, last_fetched: Option<Timestamp>) -> Self {
        Self { id, slot, last_fetched: super::AtomicU32::new(Second::of(last_fetched).0) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        keeper::{
            slot::{Brief, Flight, Place, Urgency},
            tests::new_slot,
        },
        model::{FailingReason, GrantId, State},
    };

    pub(in crate::keeper::index) fn slot(number: u32) -> Arc<Slot> {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        new_slot(id)
    }

    pub(in crate::keeper::index) fn organization(number: u32) -> OrganizationId {
        number.to_string().parse().expect("an id")
    }

    fn fetched(seconds: u32) -> Timestamp {
        Timestamp::from_millis(i64::from(seconds) * 1000)
    }

    /// Organizations by their numbers, each fetched at that second, with a grant of its own.
    fn index(numbers: std::ops::Range<u32>) -> Index {
        let index = Index::new();
        for number in numbers {
            let slot = slot(number);
            index.admit_slot(Arc::clone(&slot), None).expect("the first of its grant");
            enter(&index, &organization(number), &slot, Some(fetched(number + 1)));
        }
        index
    }

    fn enter(index: &Index, id: &OrganizationId, slot: &Arc<Slot>, last_fetched: Option<Timestamp>) -> Arc<Entry> {
        index.enter(id, slot, last_fetched, &index.before()).expect("nothing has changed")
    }

    fn present(index: &Index) -> Vec<String> {
        // Not by the sorted list, which keeps what is in it.
        let mut ids = Vec::new();
        index.for_each(&mut |entry| ids.push(entry.id.to_string()));
        ids.sort();
        ids
    }

    #[test]
    fn those_that_were_fetched_longest_ago_go_first_and_no_more_than_need_be() {
        let index = index(0..10);
        assert_eq!(index.evict(7, Duration::ZERO).len(), 3);
        assert_eq!(present(&index), ["3", "4", "5", "6", "7", "8", "9"]);
        assert_eq!(index.slot_count(), 7);
        assert!(index.evict(7, Duration::ZERO).is_empty());
    }

    #[test]
    fn of_many_that_were_never_fetched_no_more_go_than_need_be() {
        let index = Index::new();
        for number in 0..50 {
            let slot = slot(number);
            index.admit_slot(Arc::clone(&slot), None).expect("the first of its grant");
            enter(&index, &organization(number), &slot, None);
        }
        assert_eq!(index.evict(45, Duration::ZERO).len(), 5);
        assert_eq!((index.slot_count(), index.entry_count()), (45, 45));
    }

    #[test]
    fn whoever_is_in_use_stays_so_that_there_are_never_two_slots_of_a_grant() {
        let index = index(0..4);
        let entry = index.find(&organization(0)).expect("there");
        let slot = index.find(&organization(1)).map(|entry| Arc::clone(&entry.slot)).expect("there");
        let gone = index.evict(0, Duration::ZERO);
        assert_eq!(gone.len(), 2);
        assert!(index.find(&organization(0)).is_some_and(|there| Arc::ptr_eq(&there, &entry)));
        assert!(index.find(&organization(1)).is_none(), "the organization is not in use itself");
        assert!(index.slot(slot.id).is_some_and(|there| Arc::ptr_eq(&there, &slot)));
        drop((entry, slot));
        assert_eq!(index.evict(0, Duration::ZERO).len(), 2);
        assert_eq!((index.slot_count(), index.entry_count()), (0, 0));
    }

    #[tokio::test]
    async fn a_grant_whose_record_is_held_or_whose_exchange_waits_stays() {
        let index = index(0..3);
        let slot_of = |number| Arc::clone(&index.find(&organization(number)).expect("there").slot);
        let record = slot_of(0).record().await;
        let (end, flight) = Flight::new();
        let queued = slot_of(1);
        queued.lock().queue(flight, Place { urgency: Urgency::Idle, lapses: 0, turn: 0, grant: queued.id });
        drop(queued);
        let gone: Vec<GrantId> = index.evict(0, Duration::ZERO).iter().map(|slot| slot.id).collect();
        assert_eq!(gone, [slot(2).id]);
        drop((record, end));
    }

    #[test]
    fn a_grant_that_is_tried_again_later_leaves_unless_the_vault_could_not_be_told_why() {
        let index = index(0..2);
        let fails = |number, reason| {
            let slot = Arc::clone(&index.find(&organization(number)).expect("there").slot);
            let brief = Brief { state: State::Failing(reason), retry_at: Some(fetched(9)), ..slot.brief() };
            slot.lock().set_brief(&brief);
        };
        fails(0, FailingReason::VaultUnavailable);
        fails(1, FailingReason::ProviderUnavailable);
        let gone: Vec<GrantId> = index.evict(0, Duration::ZERO).iter().map(|slot| slot.id).collect();
        assert_eq!(gone, [slot(1).id]);
    }

    #[test]
    fn a_caller_who_forces_exchanges_is_remembered_until_he_is_calm() {
        let index = index(0..1);
        let forced = Duration::from_secs(100);
        index.find(&organization(0)).expect("there").slot.lock().force(forced).expect("the first");
        assert!(index.evict(0, forced).is_empty());
        assert_eq!(index.evict(0, forced + Duration::from_mins(1)).len(), 1);
    }

    #[test]
    fn whoever_forgets_a_slot_does_not_forget_the_one_that_has_taken_its_place() {
        let index = index(0..1);
        let old = index.evict(0, Duration::ZERO).pop().expect("nobody uses it");
        let new = slot(0);
        index.admit_slot(Arc::clone(&new), None).expect("there is none");
        index.remove_slot(&old);
        assert!(index.slot(new.id).is_some_and(|there| Arc::ptr_eq(&there, &new)));
        index.remove_slot(&new);
        assert!(index.slot(new.id).is_none());
    }

    #[test]
    fn a_grant_of_several_organizations_goes_with_the_last_of_them() {
        let index = index(0..1);
        let slot = index.find(&organization(0)).map(|entry| Arc::clone(&entry.slot)).expect("there");
        enter(&index, &organization(7), &slot, Some(fetched(100)));
        drop(slot);
        assert!(index.evict(1, Duration::ZERO).is_empty(), "one of its organizations is kept");
        assert_eq!(present(&index), ["7"]);
        assert_eq!(index.evict(0, Duration::ZERO).len(), 1);
    }

    #[test]
    fn whoever_is_in_memory_already_is_not_put_elsewhere_by_who_read_an_older_record() {
        let index = index(0..2);
        let there = index.find(&organization(0)).expect("there");
        let other = Arc::clone(&index.find(&organization(1)).expect("there").slot);
        assert!(Arc::ptr_eq(&enter(&index, &organization(0), &other, None), &there));
        index.insert(organization(0), other, None);
        index.leave(&there);
        assert!(index.find(&organization(0)).is_some(), "another has taken its place");
    }
}
