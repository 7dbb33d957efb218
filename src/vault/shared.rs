use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
};

use arc_swap::ArcSwapOption;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;

use super::{
    Stored, VaultError,
    backlog::Backlog,
    cipher::{self, Cipher},
    codec::{Meta, Record},
    derived::Derived,
    engine::{Engine, Mark},
    folder::Lock,
    keyring::Keyring,
    name::{Kind, Name, Namer, Part},
    rekey::Rekeying,
};
use crate::metrics::Metrics;

/// What readers and the writer have in common.
pub(super) struct Shared {
    /// `None` once the vault is closed.
    pub(super) opened: ArcSwapOption<Opened>,
    pub(super) cipher: Cipher,
    pub(super) namer: Namer,
    pub(super) metrics: Metrics,
    pub(super) meta: Meta,
    /// Makes ids of grants.
    pub(super) random_id: fn() -> [u8; 16],
    /// Why nothing more is written.
    pub(super) poison: OnceLock<String>,
    /// What is durable in the journal and not yet in the engine; where that failed, it stays here.
    pub(super) backlog: Backlog,
    /// Whether what is in the engine is known to be all that should be.
    pub(super) judgement: watch::Sender<Judgement>,
    /// The vault is to be closed without a judgement.
    pub(super) ending: AtomicBool,
    /// How many want the files not to be written anew now.
    pub(super) undisturbed: Arc<AtomicUsize>,
    /// The keys as they are on the disk; only the writer changes them.
    pub(super) keyring: Mutex<Keyring>,
    /// The public keys of the identities that the vault was opened with.
    pub(super) own: Vec<String>,
    /// How far the sealing under a new data key has come; no lock is held for longer than it takes to copy it.
    pub(super) rekeying: Mutex<Option<Rekeying>>,
    pub(super) records: AtomicU64,
    pub(super) strays: AtomicU64,
    /// In milliseconds since the Unix epoch; 0: never.
    pub(super) last_backup: AtomicI64,
    /// The journal's size on the disk.
    pub(super) journal_bytes: AtomicU64,
    pub(super) derived: Derived,
}

/// The engine, and the lock that must not be released before it.
pub(super) struct Opened {
    pub(super) engine: Box<dyn Engine>,
    pub(super) lock: Option<Lock>,
}

/// What is known of all records together.
#[derive(Clone, Debug)]
pub(super) enum Judgement {
    /// They are still being counted.
    Pending,
    /// They are what the vault should hold.
    Whole,
    /// They are not.
    Damaged(VaultError),
}

impl Shared {
    pub(super) fn new(
        opened: Opened,
        keyring: Keyring,
        meta: Meta,
        mark: &Mark,
        journal_bytes: u64,
        metrics: Metrics,
    ) -> Self {
        let shared = Self {
            opened: ArcSwapOption::from_pointee(opened),
            derived: Derived::of(&keyring.fingerprint_key),
            namer: Namer::new(&keyring.name_key),
            cipher: Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current),
            metrics,
            meta,
            keyring: Mutex::new(keyring),
            random_id,
            own: Vec::new(),
            poison: OnceLock::new(),
            backlog: Backlog::default(),
            judgement: watch::Sender::new(Judgement::Whole),
            ending: AtomicBool::new(false),
            undisturbed: Arc::default(),
            rekeying: Mutex::default(),
            records: AtomicU64::new(0),
            strays: AtomicU64::new(0),
            last_backup: AtomicI64::new(0),
            journal_bytes: AtomicU64::new(journal_bytes),
        };
        shared.count(mark);
        shared
    }

    /// Takes over the counts of the engine's last batch.
    pub(super) fn count(&self, mark: &Mark) {
        self.records.store(mark.records(), Ordering::Relaxed);
        self.strays.store(mark.count(Kind::Stray), Ordering::Relaxed);
    }

    /// Ends all writing but what the journal can still keep; the first reason stays.
    pub(super) fn poison(&self, error: &VaultError) {
        self.metrics.vault_failed();
        if self.poison.set(error.to_string()).is_ok() {
            tracing::error!(error = %error, "the vault takes no more writes until the worker is restarted");
        }
    }

    /// The error of everything that comes after [`poison`](Self::poison).
    pub(super) fn poisoned(&self) -> Option<VaultError> {
        self.poison.get().map(|reason| VaultError::Poisoned { reason: reason.clone() })
    }

    /// Why there is no writer any more.
    pub(super) fn gone(&self) -> VaultError {
        self.poisoned().unwrap_or(VaultError::Closed)
    }

    pub(super) fn record<R: Record>(&self, id: &[u8]) -> Result<Option<Stored<R>>, VaultError> {
        let name = self.namer.name(R::KIND, id);
        let opened = self.opened.load();
        let opened = opened.as_ref().ok_or(VaultError::Closed)?;
        let Some(sealed) = self.sealed(opened, &name)? else { return Ok(None) };
        self.open_as_it_is(opened, &name, sealed)
    }

    fn sealed(&self, opened: &Opened, name: &Name) -> Result<Option<Vec<u8>>, VaultError> {
        self.backlog.newest(name, || opened.engine.get(name).inspect_err(|error| self.poison(error)))
    }

    /// Opens a record that was read just now; `None` if it is gone. Where its data key was destroyed since, it is read once
    /// more: it was sealed anew before that.
    pub(super) fn open_as_it_is<R: Record>(
        &self,
        opened: &Opened,
        name: &Name,
        sealed: Vec<u8>,
    ) -> Result<Option<Stored<R>>, VaultError> {
        let number = cipher::key_number(&sealed);
        match self.open(name, sealed) {
            Err(_) if self.is_outdated(number) => {
                self.sealed(opened, name)?.map(|sealed| self.open(name, sealed)).transpose()
            }
            read => read.map(Some),
        }
    }

    pub(super) fn for_each<R: Record>(
        &self,
        part: Part,
        f: &mut (dyn FnMut(Stored<R>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        let opened = self.opened.load_full().ok_or(VaultError::Closed)?;
        let mut newer = self.backlog.names(R::KIND);
        newer.retain(|name| part.contains(name));
        let (mut unreadable, mut stopped) = (None, false);
        let mut hand_over = |name: &Name, sealed: Vec<u8>| match self.open_as_it_is(&opened, name, sealed) {
            Ok(Some(stored)) => f(stored).inspect_err(|_| stopped = true),
            Ok(None) => Ok(()),
            Err(error) => {
                unreadable.get_or_insert(error);
                Ok(())
            }
        };
        let scanned = opened.engine.scan_part(R::KIND, part, &mut |name, sealed| {
            if newer.contains(name) { Ok(()) } else { hand_over(name, sealed) }
        });
        // Wherever the newest of these is by now.
        let scanned = scanned.and_then(|()| {
            newer.iter().try_for_each(|name| match self.sealed(&opened, name)? {
                Some(sealed) => hand_over(name, sealed),
                None => Ok(()),
            })
        });
        if let (Err(error), false) = (&scanned, stopped) {
            self.poison(error);
        }
        scanned?;
        unreadable.map_or(Ok(()), Err)
    }

    /// Opens and decodes a record. One that is damaged concerns nothing but itself.
    pub(super) fn open<R: Record>(&self, name: &Name, sealed: Vec<u8>) -> Result<Stored<R>, VaultError> {
        let opened = self
            .cipher
            .open(name, sealed)
            .and_then(|opened| Ok(Stored { value: R::read(&opened.plaintext)?, sequence: opened.sequence }));
        opened.inspect_err(|_| self.metrics.vault_failed())
    }
}

/// An id that nobody can guess and nobody else has.
///
/// # Panics
///
/// If the system has no randomness, which it had when the vault was opened.
pub(super) fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).expect("the system had randomness when the vault was opened");
    id
}
