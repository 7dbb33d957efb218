mod admit;
mod evict;
mod recent;

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use hashbrown::HashTable;

pub(super) use self::admit::{Before, NotAdded};
use self::{admit::Changes, recent::Recent};
use super::{
    brief::Second,
    fingerprints::{Fingerprints, Start},
    slot::{Slot, fingerprint_key},
    subjects::Subjects,
};
use crate::model::{Fingerprint, Grant, GrantId, OrganizationId, Timestamp};

/// Tables double when they are full. These do so at other sizes than those that are one table: no power of two.
const SHARDS: usize = 80;

/// Organization to slot, grant to slot, fingerprint to slot.
#[derive(Debug)]
pub(super) struct Index {
    hasher: RandomState,
    organizations: Vec<RwLock<HashTable<Arc<Entry>>>>,
    recent: Recent,
    /// How many organizations there are.
    entries: AtomicUsize,
    /// By id.
    slots: RwLock<HashTable<Arc<Slot>>>,
    pub(super) fingerprints: Fingerprints,
    pub(super) subjects: Subjects,
    /// Spent tokens of grants that are gone: which record remembers each, and since when.
    graves: RwLock<HashMap<u64, (GrantId, Timestamp)>>,
    changes: AtomicU64,
    /// Of the records, where not all are in memory.
    changed: Changes,
    sorted: Mutex<(u64, Arc<[Arc<Entry>]>)>,
}

/// One organization in memory. Moving it to another grant makes a new entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: OrganizationId,
    pub(super) slot: Arc<Slot>,
    /// In whole seconds; zero for never.
    last_fetched: AtomicU32,
}

impl Entry {
    pub(super) fn fetched(&self, now: Timestamp) {
        self.last_fetched.store(Second::of(Some(now)).0, Ordering::Relaxed);
        self.slot.fetched(now);
    }

    /// In whole seconds, rounded down.
    pub(super) fn last_fetched(&self) -> Option<Timestamp> {
        Second(self.last_fetched.load(Ordering::Relaxed)).time()
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            organizations: (0..SHARDS).map(|_| RwLock::new(HashTable::new())).collect(),
            recent: Recent::new(),
            entries: AtomicUsize::new(0),
            slots: RwLock::default(),
            fingerprints: Fingerprints::default(),
            subjects: Subjects::default(),
            graves: RwLock::default(),
            changes: AtomicU64::new(1),
            changed: Changes::new(),
            sorted: Mutex::new((0, Arc::new([]))),
        }
    }

    /// The organization's entry.
    pub(super) fn find(&self, id: &OrganizationId) -> Option<Arc<Entry>> {
        let hash = self.hash(id);
        if let Some(entry) = self.recent.find(hash, id) {
            return Some(entry);
        }
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.find(hash, |entry| entry.id == *id)?;
        self.recent.keep(hash, entry);
        Some(Arc::clone(entry))
    }

    /// Puts an organization on a slot, or moves it there; gives back where it was.
    pub(super) fn insert(
        &self,
        id: OrganizationId,
        slot: Arc<Slot>,
        last_fetched: Option<Timestamp>,
    ) -> Option<Arc<Entry>> {
        let hash = self.hash(&id);
        let entry = Arc::new(Entry::new(id, slot, last_fetched));
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        self.changes.fetch_add(1, Ordering::Release);
        if let Some(there) = shard.find_mut(hash, |other| other.id == entry.id) {
            entry.last_fetched.store(there.last_fetched.load(Ordering::Relaxed), Ordering::Relaxed);
            self.recent.forget(hash);
            return Some(std::mem::replace(there, entry));
        }
        shard.insert_unique(hash, entry, |entry| self.hasher.hash_one(&entry.id));
        self.entries.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Puts an organization on a slot unless it is there already; for the loader, which must not undo what was
    /// enrolled meanwhile.
    pub(super) fn insert_new(&self, id: OrganizationId, slot: Arc<Slot>, last_fetched: Option<Timestamp>) {
        if self.find(&id).is_none() {
            self.insert(id, slot, last_fetched);
        }
    }

    /// Forgets an organization.
    pub(super) fn remove(&self, id: &OrganizationId) {
        let hash = self.hash(id);
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(entry) = shard.find_entry(hash, |entry| entry.id == *id) {
            entry.remove();
            self.recent.forget(hash);
            self.entries.fetch_sub(1, Ordering::Relaxed);
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Every organization, in no order; a shard's lock is held meanwhile, so `f` must be quick and stay out of the
    /// index.
    pub(super) fn for_each(&self, f: &mut dyn FnMut(&Arc<Entry>)) {
        for shard in &self.organizations {
            shard.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(&mut *f);
        }
    }

    /// Every organization in order of ids; built anew only after a change. Sorting a million takes about a second:
    /// call it where that may block.
    pub(super) fn sorted(&self) -> Arc<[Arc<Entry>]> {
        let mut sorted = self.sorted.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.changes.load(Ordering::Acquire);
        if sorted.0 != changes {
            let mut entries: Vec<Arc<Entry>> = Vec::new();
            for shard in &self.organizations {
                entries.extend(shard.read().unwrap_or_else(PoisonError::into_inner).iter().cloned());
            }
            entries.sort_unstable_by(|a, b| a.id.cmp(&b.id));
            *sorted = (changes, entries.into());
        }
        Arc::clone(&sorted.1)
    }

    /// The grant's slot.
    pub(super) fn slot(&self, id: GrantId) -> Option<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).find(hash_of(id), |slot| slot.id == id).cloned()
    }

    /// Forgets a slot, unless it was forgotten before.
    pub(super) fn remove_slot(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(found) = slots.find_entry(hash_of(slot.id), |there| Arc::ptr_eq(there, slot)) {
            found.remove();
        }
    }

    /// How many slots there are.
    pub(super) fn slot_count(&self) -> usize {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Every slot.
    pub(super) fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Which slots may have, or have had, a secret with this fingerprint; verify it against the stored grants.
    pub(super) fn by_fingerprint(&self, fingerprint: Fingerprint) -> Vec<Arc<Slot>> {
        let found = self.fingerprints.find(fingerprint);
        if found.is_empty() {
            return Vec::new();
        }
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let of_start = |start: Start| slots.iter_hash(start.hash()).filter(move |slot| Start::of(slot.id) == start);
        found.into_iter().flat_map(of_start).cloned().collect()
    }

    /// Remembers the spent tokens of a grant that is gone.
    pub(super) fn bury(&self, grave: &Grant) {
        let mut graves = self.graves.write().unwrap_or_else(PoisonError::into_inner);
        for fingerprint in grave.spent.iter().chain([&grave.fingerprint]) {
            graves.insert(fingerprint_key(*fingerprint), (grave.id, grave.since));
        }
    }

    /// Which record may remember a token with this fingerprint as spent; verify it against that.
    pub(super) fn grave_of(&self, fingerprint: Fingerprint) -> Option<GrantId> {
        let graves = self.graves.read().unwrap_or_else(PoisonError::into_inner);
        graves.get(&fingerprint_key(fingerprint)).map(|(id, _)| *id)
    }

    /// The records of all graves made before `moment`.
    pub(super) fn graves_before(&self, moment: Timestamp) -> HashSet<GrantId> {
        let graves = self.graves.read().unwrap_or_else(PoisonError::into_inner);
        graves.values().filter(|(_, since)| *since < moment).map(|(id, _)| *id).collect()
    }

    /// Forgets graves.
    pub(super) fn forget_graves(&self, ids: &HashSet<GrantId>) {
        self.graves.write().unwrap_or_else(PoisonError::into_inner).retain(|_, (id, _)| !ids.contains(id));
    }

    /// How many spent tokens of grants that are gone are remembered.
    pub(super) fn grave_count(&self) -> usize {
        self.graves.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn hash(&self, id: &OrganizationId) -> u64 {
        self.hasher.hash_one(id)
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<Arc<Entry>>> {
        let top = usize::try_from(hash >> 48).unwrap_or(0);
        &self.organizations[top % SHARDS]
    }
}

fn hash_of(id: GrantId) -> u64 {
    Start::of(id).hash()
}
