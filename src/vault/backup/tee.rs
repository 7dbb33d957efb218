//! The commits that are made while a backup is.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::vault::{
    VaultError,
    engine::{Engine, Mark, tag},
    journal::Batch,
    name::Name,
};

/// How many bytes of commits are kept for a backup under way; a backup that needs more fails. A fleet of a million
/// organizations commits as much in some five minutes.
pub(super) const MAX_TEE_BYTES: usize = 256 * 1024 * 1024;

/// Keeps commits, and adds up what a backup will hold, so that one that would be refused when it is needed is noticed
/// when it is made.
///
/// The sum is of the records as they were read, as far as no commit touched them, and of what the commits left of
/// those that they touched. A record that was read before the first commit that touched it was read as it had been before that commit;
/// names are read in rising order, so that the last one tells which these are.
pub(in crate::vault) struct Tee(Mutex<State>);

struct State {
    limit: usize,
    bytes: usize,
    batches: Vec<Batch>,
    /// What commits have left of each record that they touched.
    touched: HashMap<Name, Option<u128>>,
    /// The last name that was read.
    passed: Option<Name>,
    /// The records that were read and not touched.
    untouched: Mark,
    /// Why the backup has failed, if it has.
    failed: Option<VaultError>,
}

impl Tee {
    pub(super) fn new(limit: usize) -> Self {
        Self(Mutex::new(State {
            limit,
            bytes: 0,
            batches: Vec::new(),
            touched: HashMap::new(),
            passed: None,
            untouched: Mark::default(),
            failed: None,
        }))
    }

    /// Takes commits that are durable and not yet in `engine`. Called by the writer, which must not be held up: what goes
    /// wrong is told to whoever makes the backup.
    pub(in crate::vault) fn committed(&self, batches: &[Batch], engine: &dyn Engine) {
        let mut state = self.lock();
        if state.failed.is_some() {
            return;
        }
        if let Err(error) = batches.iter().try_for_each(|batch| state.take(batch, engine)) {
            // What was kept is of no use any more.
            *state =
                State { failed: Some(error), ..Self::new(0).0.into_inner().unwrap_or_else(PoisonError::into_inner) };
        }
    }

    /// A record was read; an error where it is in vain to go on.
    pub(super) fn seen(&self, name: &Name, sealed: &[u8]) -> Result<(), VaultError> {
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        state.passed = Some(*name);
        if !state.touched.contains_key(name) {
            state.untouched.replace(name.kind(), None, Some(tag(sealed)));
        }
        Ok(())
    }

    /// The commits, if the records that were read and these make up what `end` says.
    pub(super) fn finish(&self, end: &Mark) -> Result<Vec<Batch>, VaultError> {
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let mut found = Mark { applied: end.applied, ..state.untouched };
        for (name, tag) in &state.touched {
            found.replace(name.kind(), None, *tag);
        }
        if found != *end {
            let detail = "the records that a backup read are not those that there should be".to_owned();
            return Err(VaultError::Damaged { what: "its database", detail });
        }
        Ok(std::mem::take(&mut state.batches))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, batch: &Batch, engine: &dyn Engine) -> Result<(), VaultError> {
        self.bytes += batch.payload_bytes();
        if self.bytes > self.limit {
            return Err(VaultError::BackupOutrun { limit: self.limit });
        }
        for entry in &batch.entries {
            let after = entry.sealed.as_deref().map(tag);
            if self.touched.insert(entry.name, after).is_none()
                && self.passed.is_some_and(|passed| passed >= entry.name)
            {
                self.untouched.replace(entry.name.kind(), engine.tag(&entry.name)?, None);
            }
        }
        self.batches.push(batch.clone());
        Ok(())
    }
}
