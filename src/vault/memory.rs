//! An engine in memory, for tests: it can be told to fail.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    engine::{self, Each, Engine, Mark},
    error::VaultError,
    name::{Kind, Name},
};

#[derive(Default)]
pub(super) struct Memory {
    contents: Mutex<Contents>,
    /// Whether writes fail from now on.
    pub(super) broken: AtomicBool,
    /// How many records it was given, or told to remove.
    pub(super) writes: AtomicU64,
    /// How often a sync was begun.
    pub(super) syncs: AtomicU64,
    /// A sync goes on only when it can take this.
    pub(super) gate: Mutex<()>,
}

/// Records by name, and the mark.
type Contents = (BTreeMap<Name, Vec<u8>>, Option<Mark>);

impl Memory {
    fn records(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Memory {
    fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, VaultError> {
        Ok(self.records().0.get(name).cloned())
    }

    fn tag(&self, name: &Name) -> Result<Option<u128>, VaultError> {
        Ok(self.records().0.get(name).map(|sealed| engine::tag(sealed)))
    }

    fn scan(&self, kind: Kind, each: Each<'_>) -> Result<(), VaultError> {
        let records: Vec<_> = self.records().0.iter().map(|(name, sealed)| (*name, sealed.clone())).collect();
        records.into_iter().filter(|(name, _)| name.kind() == kind).try_for_each(|(name, sealed)| each(&name, sealed))
    }

    fn next(&self, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let contents = self.records();
        let records = contents.0.range((from, Bound::Unbounded)).take(most);
        Ok(records.map(|(name, sealed)| (*name, sealed.clone())).collect())
    }

    fn write(&self, writes: &HashMap<Name, Option<&[u8]>>, mark: &Mark) -> Result<(), VaultError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(VaultError::Engine { detail: "broken for the test".to_owned() });
        }
        self.writes.fetch_add(writes.len() as u64, Ordering::Relaxed);
        let mut records = self.records();
        for (name, sealed) in writes {
            match sealed {
                Some(sealed) => records.0.insert(*name, sealed.to_vec()),
                None => records.0.remove(name),
            };
        }
        records.1 = Some(*mark);
        Ok(())
    }

    fn mark(&self) -> Result<Option<Mark>, VaultError> {
        Ok(self.records().1)
    }

    fn sync(&self) -> Result<(), VaultError> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.lock());
        Ok(())
    }

    fn bytes(&self) -> u64 {
        0
    }
}
