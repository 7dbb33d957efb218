//! What is durable in the journal and not yet in the engine. Reads look here first.
//!
//! The journal is the commit, and the engine follows in larger steps: it is given everything that has come together as one
//! batch, with the mark after the last of these commits. So it holds the state after some commit at any time, as it did when
//! it was given each commit by itself. A record that was written several times in between costs it one write, and one that
//! came and went, as the intent of a one-time token does, none.
//!
//! Only the writer changes the backlog. It takes from it what the engine has, so that a read which finds nothing here finds in
//! the engine what is newest.

use std::{
    collections::{HashMap, HashSet},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{
    VaultError,
    engine::{Engine, Mark, tag},
    journal::{Batch, Entry},
    name::{Kind, Name},
};

/// The newest of each record that the engine does not have yet; no more than the journal holds.
#[derive(Default)]
pub(super) struct Backlog(RwLock<State>);

#[derive(Default)]
struct State {
    records: HashMap<Name, Newest>,
    /// Memory that they take.
    bytes: usize,
}

/// A record that was written or removed.
struct Newest {
    /// The sealed record; `None` if it was removed.
    sealed: Option<Vec<u8>>,
    /// Whether the engine has an older one.
    in_engine: bool,
}

/// What a record takes besides its sealed bytes, in bytes: its name, and its place in the table.
const RECORD_BYTES: usize = 64;

impl Newest {
    fn bytes(&self) -> usize {
        RECORD_BYTES + self.sealed.as_ref().map_or(0, Vec::len)
    }
}

impl Backlog {
    /// The newest sealed record of that name; `engine` is asked where that is not here.
    pub(super) fn newest(
        &self,
        name: &Name,
        engine: impl FnOnce() -> Result<Option<Vec<u8>>, VaultError>,
    ) -> Result<Option<Vec<u8>>, VaultError> {
        let here = self.read().records.get(name).map(|newest| newest.sealed.clone());
        here.map_or_else(engine, Ok)
    }

    /// The names of a kind of which the engine's record is not the newest.
    pub(super) fn names(&self, kind: Kind) -> HashSet<Name> {
        self.read().records.keys().filter(|name| name.kind() == kind).copied().collect()
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.read().bytes
    }

    /// Adds commits that are durable, in their order, all of them visible at once, and takes account of them in `mark`. An
    /// engine that cannot say what it holds is an error; they are added all the same, and the mark is of no use any more.
    pub(super) fn add(&self, batches: Vec<Batch>, engine: &dyn Engine, mark: &mut Mark) -> Result<(), VaultError> {
        let mut added: HashMap<Name, Newest> = HashMap::new();
        let mut failure = None;
        for batch in batches {
            for Entry { name, sealed } in batch.entries {
                let known = |newest: &Newest| (newest.sealed.as_deref().map(tag), newest.in_engine);
                let before = added.get(&name).map(known).or_else(|| self.read().records.get(&name).map(known));
                let (before, in_engine) = before.unwrap_or_else(|| match engine.tag(&name) {
                    Ok(tag) => (tag, tag.is_some()),
                    Err(error) => {
                        failure.get_or_insert(error);
                        (None, true)
                    }
                });
                mark.replace(name.kind(), before, sealed.as_deref().map(tag));
                added.insert(name, Newest { sealed, in_engine });
            }
            mark.applied = batch.sequence;
        }
        self.write().extend(added);
        failure.map_or(Ok(()), Err)
    }

    /// Gives all of it to the engine as one batch, and forgets it. `mark` is the one after the last commit in it. After an
    /// error all of it is still here.
    pub(super) fn give(&self, engine: &dyn Engine, mark: &Mark) -> Result<(), VaultError> {
        {
            // Reads go on meanwhile, and nobody but the caller writes.
            let state = self.read();
            let writes = state.records.iter().map(|(name, newest)| (*name, newest.sealed.as_deref())).collect();
            engine.write(&writes, mark)?;
        }
        let given = std::mem::take(&mut *self.write());
        drop(given);
        Ok(())
    }

    /// Puts a record here as if it had been committed.
    #[cfg(test)]
    pub(super) fn plant(&self, name: Name, sealed: Vec<u8>) {
        self.write().extend([(name, Newest { sealed: Some(sealed), in_engine: true })].into());
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn extend(&mut self, added: HashMap<Name, Newest>) {
        for (name, newest) in added {
            // What the engine never had and nobody has any more leaves no trace.
            let before = if newest.sealed.is_none() && !newest.in_engine {
                self.records.remove(&name)
            } else {
                self.bytes += newest.bytes();
                self.records.insert(name, newest)
            };
            self.bytes -= before.map_or(0, |before| before.bytes());
        }
    }
}
