//! A new data key: every record is sealed anew under it while the vault is in use, and then the older keys are destroyed.
//!
//! The order is what makes it safe to die at any point:
//!
//! 1. The keyring with the new key is durable before anything is sealed under it.
//! 2. From then on every commit seals under the new key. The writer, when nothing else waits for it and now and then
//!    where something always does, seals a few more of the older records anew and commits them like anything else. A
//!    record keeps the sequence number in its seal, so that whoever wrote it knows it again.
//! 3. When all names were gone through without finding a record under an older key, the engine is brought to the disk and
//!    the journal starts over, twice, so that neither of its headers leads to an older record any more.
//! 4. Only then is the keyring replaced by one without the older keys.
//!
//! A vault that is opened with several data keys is somewhere between 1 and 4, and begins again with 2. A record that does
//! not open keeps the older keys alive and stops nothing else.

use std::sync::{MutexGuard, PoisonError};

use tokio::runtime::Handle as Runtime;

use super::{
    Vault, VaultError, cipher, folder, journal::Entry, keyring::Keyring, name::Name, shared::Shared, writer::Writer,
};
use crate::task;

/// How many records are looked at in one go: commits wait that long.
const CHUNK: usize = 64;
/// After how many requests in a row something is sealed anew although more of them wait. A chunk costs about as much as a
/// group of commits.
const PATIENCE: u32 = 8;
/// What an entry takes in the journal besides its record, at most, and a frame besides its entries, in bytes.
const ENTRY_BYTES: usize = 32;
const FRAME_BYTES: usize = 64;

/// How far the sealing of records under a new data key has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rekeying {
    /// Records that are known to be under the new key.
    pub done: u64,
    /// All records.
    pub total: u64,
    /// Why it has stopped; `None` while it goes on. In a vault of one worker it goes on only after a restart or with another new key; in one
    /// that several share it is tried again each minute.
    pub problem: Option<String>,
}

impl Rekeying {
    /// From 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
    pub fn progress(&self) -> f64 {
        if self.total == 0 { 1.0 } else { self.done.min(self.total) as f64 / self.total as f64 }
    }
}

impl Vault {
    /// Makes a new data key, durably, and begins to seal every record anew under it in the background; gives its number.
    /// While that goes on, it is refused with [`VaultError::Rekeying`]. Blocks.
    pub fn rotate_data_key(&self) -> Result<u32, VaultError> {
        if let Some(store) = self.store() {
            return task::block_on(&Runtime::current(), store.rotate_data_key());
        }
        self.ask(Writer::rotate_data_key)
    }

    /// How far the sealing under a new data key has come; `None` when the keyring holds one data key only.
    pub fn rekeying(&self) -> Option<Rekeying> {
        if let Some(store) = self.store() {
            return store.rekeying();
        }
        self.shared().ok()?.rekeying.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the writer has to do about data keys.
pub(super) struct Rekey {
    /// Going through the records, if that is under way.
    pass: Option<Pass>,
    /// Requests served since the last chunk.
    requests: u32,
    /// Entries that were committed since the vault was opened.
    written: u64,
}

/// Going through all records once, in order of their names. Behind it everything is sealed under the current key, since
/// every commit is.
#[derive(Default)]
struct Pass {
    /// The last name looked at.
    cursor: Option<Name>,
    /// Records looked at.
    seen: u64,
    /// Records that were under an older key, and no longer are.
    sealed: u64,
    /// Records under an older key that do not open, and what is wrong with the first of them.
    unreadable: u64,
    why: Option<String>,
    /// [`Rekey::written`] when it began.
    written: u64,
    /// Whether an earlier pass has gone through everything already.
    checks: bool,
}

impl Rekey {
    /// Of a vault that was just opened: with more than one data key there is something left to do.
    pub(super) fn of(shared: &Shared) -> Self {
        let pass = (shared.keyring().data_keys.len() > 1).then(Pass::default);
        Self { pass, requests: 0, written: 0 }
    }

    /// So many entries were committed.
    pub(super) const fn note_written(&mut self, entries: usize) {
        self.written += entries as u64;
    }
}

impl Writer {
    /// Seals a few records anew, if there are such; gives whether there is more to do at once.
    pub(super) fn idle_work(&mut self) -> bool {
        let Some(pass) = self.rekey.pass.take() else { return false };
        self.rekey.requests = 0;
        match self.shared.poisoned().map_or_else(|| self.advance(pass), Err) {
            Ok(pass) => self.rekey.pass = pass,
            Err(error) => self.pause(&error),
        }
        self.tell_progress();
        self.rekey.pass.is_some()
    }

    /// A request was served, and another one may wait: the records under older keys are not forgotten over them.
    pub(super) fn work_between_requests(&mut self) {
        self.rekey.requests += 1;
        if self.rekey.requests >= PATIENCE {
            self.idle_work();
        }
    }

    pub(super) fn rotate_data_key(&mut self) -> Result<u32, VaultError> {
        if self.rekey.pass.is_some() {
            let rekeying = self.shared.rekeying.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let percent = rekeying.map_or(0, |rekeying| rekeying.done * 100 / rekeying.total.max(1));
            return Err(VaultError::Rekeying { data_key: self.shared.cipher.current(), percent });
        }
        let mut keyring = self.shared.keyring().clone();
        keyring.add_data_key()?;
        let number = keyring.current;
        self.put_keyring(keyring)?;
        self.rekey.pass = Some(Pass { written: self.rekey.written, ..Pass::default() });
        self.tell_progress();
        tracing::info!(vault.data_key = number, "a new data key is in use; records are sealed anew under it");
        Ok(number)
    }

    /// Puts another keyring in the place of the one in force, in the folder and in memory. After an error the old one is in
    /// force; where nobody can know which of the two is on the disk, the vault takes nothing more.
    pub(super) fn put_keyring(&mut self, keyring: Keyring) -> Result<(), VaultError> {
        if let Some(error) = self.shared.poisoned() {
            return Err(error);
        }
        keyring.replace(&self.folder)?;
        let path = self.folder.path();
        let durable = folder::sync_folder(path).map_err(|error| VaultError::io(path, &error));
        durable.inspect_err(|error| self.shared.poison(error))?;
        self.shared.cipher.use_keys(keyring.data_keys.clone(), keyring.current);
        keyring.tell_recipients(&self.folder);
        *self.shared.keyring() = keyring;
        Ok(())
    }

    /// Looks at the next chunk; gives the pass to go on with, or `None` when all is done.
    fn advance(&mut self, mut pass: Pass) -> Result<Option<Pass>, VaultError> {
        // What is sealed anew must be the newest.
        self.bring_up()?;
        let opened = self.shared.opened.load_full().ok_or(VaultError::Closed)?;
        let records = opened.engine.next(pass.cursor.as_ref(), CHUNK);
        let records = records.inspect_err(|error| self.shared.poison(error))?;
        drop(opened);
        if records.is_empty() {
            return self.end(pass);
        }
        let entries = self.seal_anew(&mut pass, records);
        if !entries.is_empty() {
            pass.sealed += entries.len() as u64;
            self.commit_entries(entries)?;
        }
        Ok(Some(pass))
    }

    /// Seals what is under an older key among `records`, as many of them as one commit holds.
    fn seal_anew(&self, pass: &mut Pass, records: Vec<(Name, Vec<u8>)>) -> Vec<Entry> {
        let current = self.shared.cipher.current();
        let (mut entries, mut bytes) = (Vec::new(), FRAME_BYTES);
        for (name, sealed) in records {
            if cipher::key_number(&sealed) != Some(current) {
                bytes += ENTRY_BYTES + sealed.len();
                if bytes > self.journal.group_limit() && !entries.is_empty() {
                    break;
                }
                match self.shared.cipher.seal_anew(&name, sealed) {
                    Ok(sealed) => entries.push(Entry { name, sealed: Some(sealed) }),
                    Err(error) => {
                        pass.unreadable += 1;
                        pass.why.get_or_insert_with(|| match error {
                            VaultError::Damaged { what, detail } => format!("{what}: {detail}"),
                            other => other.to_string(),
                        });
                    }
                }
            }
            pass.seen += 1;
            pass.cursor = Some(name);
        }
        entries
    }

    /// All names were gone through: once more, if anything was found; else the older keys go.
    fn end(&mut self, pass: Pass) -> Result<Option<Pass>, VaultError> {
        if let Some(first) = pass.why {
            return Err(VaultError::Unreadable { count: pass.unreadable, first });
        }
        if pass.sealed > 0 || !pass.checks {
            return Ok(Some(Pass { checks: true, written: self.rekey.written, ..Pass::default() }));
        }
        // What was written meanwhile may have come or gone behind the cursor.
        let (seen, held) = (pass.seen, self.mark.all());
        if seen.abs_diff(held) > self.rekey.written - pass.written {
            let detail = format!("{seen} of {held} records can be found, so that none of the data keys is destroyed");
            return Err(VaultError::Damaged { what: "its database", detail });
        }
        self.destroy_older()?;
        Ok(None)
    }

    /// Nothing is sealed under an older key any more: makes that durable, and forgets them.
    fn destroy_older(&mut self) -> Result<(), VaultError> {
        // Each writes one of the journal's two headers: whichever counts at the next opening, no older frame is replayed.
        self.checkpoint()?;
        self.checkpoint()?;
        let mut keyring = self.shared.keyring().clone();
        keyring.forget_older();
        self.put_keyring(keyring)?;
        tracing::info!(
            vault.data_key = self.shared.cipher.current(),
            "every record is sealed under the new data key; the older ones are destroyed"
        );
        Ok(())
    }

    /// Nothing is lost by stopping here: both keys are kept.
    fn pause(&self, error: &VaultError) {
        // What poisoned the vault has been counted and told.
        if self.shared.poisoned().is_none() {
            self.shared.metrics.vault_failed();
            tracing::error!(error = %error, "records are not sealed anew any further; the older data keys are kept until all are");
        }
        let mut rekeying = self.shared.rekeying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rekeying) = &mut *rekeying {
            rekeying.problem = Some(error.to_string());
        }
    }

    /// Tells readers how far it has come.
    pub(super) fn tell_progress(&self) {
        let mut told = self.shared.rekeying.lock().unwrap_or_else(PoisonError::into_inner);
        let total = self.mark.all();
        match &self.rekey.pass {
            Some(pass) => {
                let done = if pass.checks { total } else { pass.seen.min(total) };
                *told = Some(Rekeying { done: done - pass.unreadable.min(done), total, problem: None });
            }
            None if self.shared.keyring().data_keys.len() == 1 => *told = None,
            None => {}
        }
        self.shared.metrics.set_rekey_progress(told.as_ref().map_or(1.0, Rekeying::progress));
    }
}

impl Shared {
    /// The keys as they are on the disk. Held for as long as it takes to copy them.
    pub(super) fn keyring(&self) -> MutexGuard<'_, Keyring> {
        self.keyring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the data key that a record names was destroyed after the record was read: it has been sealed anew since.
    pub(super) fn is_outdated(&self, key_number: Option<u32>) -> bool {
        key_number.is_some_and(|number| !self.cipher.has(number))
    }
}
