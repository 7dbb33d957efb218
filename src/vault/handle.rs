use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use arc_swap::ArcSwapOption;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    hkdf::{HKDF_SHA256, Salt},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use zeroize::Zeroizing;

use super::{
    Change, Stored, Stray, VaultError,
    backlog::Backlog,
    cipher::{self, Cipher},
    codec::{Meta, Record},
    engine::{Engine, Mark},
    folder::Lock,
    keyring::Keyring,
    name::{Kind, Name, Namer},
    rekey::Rekeying,
    writer::{Commit, Request, Writer},
};
use crate::{
    metrics::Metrics,
    model::{
        Awaiting, DoubtReason, EventId, Fingerprint, Grant, GrantId, Intent, Organization, OrganizationId, OutboxRow,
        RevokedLinks, Secret, Timestamp,
    },
};

/// How many commits may be under way or wait; more wait for a place.
pub(super) const MAX_WAITING: usize = 4096;
/// How many bytes of the hash an entity tag shows.
const ENTITY_TAG_BYTES: usize = 12;

/// An open vault. Cheap to clone.
///
/// Reads may be made from any thread and block it, for microseconds as a rule and for a disk access at worst. When the
/// last clone is dropped without [`close`](Self::close), the writer finishes the commits it was given and the lock is
/// released; the next opening then replays the journal, as after a crash.
#[derive(Clone)]
pub struct Vault(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    requests: Option<mpsc::UnboundedSender<Request>>,
    places: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
}

/// The vault's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VaultStats {
    /// Records in it.
    pub records: u64,
    /// Bytes on disk, journal included.
    pub bytes: u64,
    /// Strays among the records.
    pub strays: u64,
    /// The number of the data key that seals.
    pub data_key: u32,
}

impl Vault {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: mpsc::UnboundedSender<Request>,
        writer: Option<JoinHandle<()>>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(MAX_WAITING));
        Self(Arc::new(Handle { shared, requests: Some(requests), places, writer }))
    }

    /// A grant; `None` if there is none of that id.
    pub fn grant(&self, id: GrantId) -> Result<Option<Stored<Grant>>, VaultError> {
        self.0.shared.record(id.as_bytes())
    }

    /// An organization; `None` if there is none of that id.
    pub fn organization(&self, id: &OrganizationId) -> Result<Option<Stored<Organization>>, VaultError> {
        self.0.shared.record(id.as_str().as_bytes())
    }

    /// The exchange under way for a grant, if there is one.
    pub fn intent(&self, id: GrantId) -> Result<Option<Intent>, VaultError> {
        Ok(self.0.shared.record::<Intent>(id.as_bytes())?.map(|stored| stored.value))
    }

    /// Hands over every grant, in no useful order, while commits go on: one that is written meanwhile is seen before or
    /// after. An error of `f` stops it. A record that cannot be read does not: all others are handed over first, and then
    /// it is the error.
    pub fn for_each_grant(&self, f: &mut dyn FnMut(Stored<Grant>) -> Result<(), VaultError>) -> Result<(), VaultError> {
        self.0.shared.for_each(f)
    }

    /// Hands over every organization, as [`for_each_grant`](Self::for_each_grant) does.
    pub fn for_each_organization(
        &self,
        f: &mut dyn FnMut(Stored<Organization>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.0.shared.for_each(f)
    }

    /// Hands over every intent, as [`for_each_grant`](Self::for_each_grant) does.
    pub fn for_each_intent(
        &self,
        f: &mut dyn FnMut(Stored<Intent>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.0.shared.for_each(f)
    }

    /// Hands over every stray, as [`for_each_grant`](Self::for_each_grant) does.
    pub fn for_each_stray(&self, f: &mut dyn FnMut(Stored<Stray>) -> Result<(), VaultError>) -> Result<(), VaultError> {
        self.0.shared.for_each(f)
    }

    /// Which of an organization's links were revoked; `None` if none were.
    pub fn revoked_links(&self, id: &OrganizationId) -> Result<Option<RevokedLinks>, VaultError> {
        Ok(self.0.shared.record::<RevokedLinks>(id.as_str().as_bytes())?.map(|stored| stored.value))
    }

    /// Hands over every consent that has not taken its place, as [`for_each_grant`](Self::for_each_grant) does.
    pub fn for_each_awaiting(
        &self,
        f: &mut dyn FnMut(Stored<Awaiting>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.0.shared.for_each(f)
    }

    /// Hands over every revocation of links, as [`for_each_grant`](Self::for_each_grant) does.
    pub fn for_each_revoked_links(
        &self,
        f: &mut dyn FnMut(Stored<RevokedLinks>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.0.shared.for_each(f)
    }

    /// Hands over every event of the outbox, as [`for_each_grant`](Self::for_each_grant) does.
    pub fn for_each_row(
        &self,
        f: &mut dyn FnMut(Stored<OutboxRow>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.0.shared.for_each(f)
    }

    /// Commits all of `changes` or none, and gives their sequence number. When it returns, they are durable and every
    /// read sees them. Commits take effect in the order in which they were given a place in the queue.
    ///
    /// A future that is dropped while it waits for a place (there are 4096) has done nothing; later, the commit goes on
    /// without it. After [`VaultError::TooLarge`] nothing was changed. After any other error nothing can be seen until the
    /// vault is opened anew, and then all of it or nothing. Once the database has failed, which
    /// [`poisoned`](Self::poisoned) tells, commits go on as long as the journal has room: what is under way can end.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<u64, VaultError> {
        let handle = &*self.0;
        let place = Arc::clone(&handle.places).acquire_owned().await.map_err(|_| VaultError::Closed)?;
        let (done, answer) = oneshot::channel();
        handle.send(Request::Commit(Commit { changes, done, _place: place }))?;
        answer.await.map_err(|_| handle.shared.gone())?
    }

    /// The secret's keyed hash: HMAC-SHA256, cut to 128 bits. It is the same for the vault's whole life, backups included.
    pub fn fingerprint(&self, secret: &Secret) -> Fingerprint {
        let tag = hmac::sign(&self.0.shared.fingerprints, secret.expose().as_bytes());
        Fingerprint(tag.as_ref().first_chunk().copied().unwrap_or_default())
    }

    /// Another keyed hash of the secret, for an entity tag: 16 characters of URL-safe base64, without quotes.
    pub fn entity_tag(&self, secret: &Secret) -> String {
        let tag = hmac::sign(&self.0.shared.entity_tags, secret.expose().as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(&tag.as_ref()[..ENTITY_TAG_BYTES])
    }

    /// The key of consent links. It is the same for the vault's whole life, backups included, so that a link that was sent
    /// holds across restarts, new data keys and a restore.
    pub fn link_key(&self) -> Zeroizing<[u8; 32]> {
        self.0.shared.link_key.clone()
    }

    /// The id of the happening that `parts` tell apart from every other: a keyed hash of them, HMAC-SHA256 cut to 128 bits. It
    /// is the same for the vault's whole life, backups included.
    pub fn event_id(&self, parts: &[&[u8]]) -> EventId {
        let mut context = hmac::Context::with_key(&self.0.shared.events);
        for part in parts {
            // The length first, so that no two lists of parts read the same.
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            context.update(part);
        }
        EventId::from_bytes(context.sign().as_ref().first_chunk().copied().unwrap_or_default())
    }

    /// How often the vault's contents went back to an earlier state, plus one.
    pub fn epoch(&self) -> u32 {
        self.0.shared.meta.epoch
    }

    /// How they went back last: what one-time grants of an earlier epoch are in doubt for.
    pub fn epoch_reason(&self) -> DoubtReason {
        self.0.shared.meta.reason
    }

    /// When the last backup was completed, by this process or as the folder of scheduled ones tells; `None`: never.
    pub fn last_backup_at(&self) -> Option<Timestamp> {
        let at = self.0.shared.last_backup.load(Ordering::Relaxed);
        (at != 0).then_some(Timestamp::from_millis(at))
    }

    /// A backup was completed; an earlier one than is known changes nothing.
    pub fn backed_up(&self, at: Timestamp) {
        self.0.shared.last_backup.fetch_max(at.as_millis(), Ordering::Relaxed);
    }

    /// The vault's figures, without a scan.
    pub fn stats(&self) -> VaultStats {
        let shared = &*self.0.shared;
        VaultStats {
            records: shared.records.load(Ordering::Relaxed),
            bytes: shared.journal_bytes + shared.opened.load().as_ref().map_or(0, |opened| opened.engine.bytes()),
            strays: shared.strays.load(Ordering::Relaxed),
            data_key: shared.cipher.current(),
        }
    }

    /// An id for a new grant.
    ///
    /// # Panics
    ///
    /// If the system has no randomness, which it had when the vault was opened.
    pub fn random_grant_id(&self) -> GrantId {
        GrantId::from_bytes((self.0.shared.random_id)())
    }

    /// Why the vault must be given no new work, if that is so: a write has failed. Reads go on.
    pub fn poisoned(&self) -> Option<String> {
        self.0.shared.poison.get().cloned()
    }

    /// Whether only opening the vault anew can help, and would: it takes no more writes, and its disk does again. Blocks,
    /// and writes a little, where the vault takes no more writes; else it asks nothing.
    pub fn wants_reopening(&self) -> bool {
        let opened = self.0.shared.opened.load_full();
        let lock = opened.as_ref().and_then(|opened| opened.lock.as_ref());
        self.poisoned().is_some() && lock.is_some_and(|lock| lock.folder.takes_writes())
    }

    /// Brings the engine to the disk and starts the journal over. Done by itself when the journal runs full. Blocks.
    pub fn checkpoint(&self) -> Result<(), VaultError> {
        self.ask(Writer::checkpoint)
    }

    /// Ends the vault: commits that were given are finished, the engine is brought to the disk, the journal is marked as
    /// closed cleanly, and the lock is released. Other clones then answer [`VaultError::Closed`]. Blocks.
    pub fn close(self) -> Result<(), VaultError> {
        let (done, answer) = std::sync::mpsc::sync_channel(1);
        self.0.send(Request::Close(done))?;
        answer.recv().map_err(|_| self.0.shared.gone())?
    }

    /// Lets the writer do something between two commits, and waits for it. Blocks.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Writer) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let (done, answer) = std::sync::mpsc::sync_channel(1);
        let run = move |writer: &mut Writer| {
            let _ = done.send(what(writer));
        };
        self.0.send(Request::Run(Box::new(run)))?;
        answer.recv().map_err(|_| self.0.shared.gone())?
    }

    /// As after a sync that failed.
    #[cfg(test)]
    pub(crate) fn poison_for_test(&self) {
        self.0.shared.poison(&VaultError::Closed);
        let broken = self.ask(|writer| {
            writer.journal.break_for_test();
            Ok(())
        });
        broken.unwrap();
    }

    /// As after a bad block: the organization's record does not open any more.
    #[cfg(test)]
    pub(crate) fn damage_for_test(&self, id: &OrganizationId) {
        let shared = &self.0.shared;
        let name = shared.namer.name(Kind::Organization, id.as_str().as_bytes());
        shared.backlog.plant(name, vec![0; 64]);
    }

    /// What readers and the writer have in common.
    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

impl Handle {
    fn send(&self, request: Request) -> Result<(), VaultError> {
        let requests = self.requests.as_ref().ok_or(VaultError::Closed)?;
        requests.send(request).map_err(|_| self.shared.gone())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // It ends once it has nothing left to write. Its panics are caught where they happen.
            let _ = writer.join();
        }
    }
}

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
    /// The keys as they are on the disk; only the writer changes them.
    pub(super) keyring: Mutex<Keyring>,
    /// The public keys of the identities that the vault was opened with.
    pub(super) own: Vec<String>,
    /// How far the sealing under a new data key has come; no lock is held for longer than it takes to copy it.
    pub(super) rekeying: Mutex<Option<Rekeying>>,
    records: AtomicU64,
    strays: AtomicU64,
    /// In milliseconds since the Unix epoch; 0: never.
    last_backup: AtomicI64,
    journal_bytes: u64,
    fingerprints: hmac::Key,
    entity_tags: hmac::Key,
    link_key: Zeroizing<[u8; 32]>,
    events: hmac::Key,
}

/// The engine, and the lock that must not be released before it.
pub(super) struct Opened {
    pub(super) engine: Box<dyn Engine>,
    pub(super) lock: Option<Lock>,
}

/// An id that nobody can guess and nobody else has.
///
/// # Panics
///
/// If the system has no randomness, which it had when the vault was opened.
fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).expect("the system had randomness when the vault was opened");
    id
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
        let key = Salt::new(HKDF_SHA256, b"").extract(keyring.fingerprint_key.as_slice());
        let derive =
            |label: &[u8]| hmac::Key::from(key.expand(&[label], hmac::HMAC_SHA256).expect("one hash is not too long"));
        let mut link_key = Zeroizing::new([0; 32]);
        let derived =
            key.expand(&[b"consentry/v1/links"], HKDF_SHA256).and_then(|okm| okm.fill(link_key.as_mut_slice()));
        derived.expect("one hash is not too long");
        let shared = Self {
            opened: ArcSwapOption::from_pointee(opened),
            fingerprints: derive(b"consentry/v1/fingerprint"),
            entity_tags: derive(b"consentry/v1/entity-tag"),
            link_key,
            events: derive(b"consentry/v1/event"),
            namer: Namer::new(&keyring.name_key),
            cipher: Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current),
            metrics,
            meta,
            keyring: Mutex::new(keyring),
            random_id,
            own: Vec::new(),
            poison: OnceLock::new(),
            backlog: Backlog::default(),
            rekeying: Mutex::default(),
            records: AtomicU64::new(0),
            strays: AtomicU64::new(0),
            last_backup: AtomicI64::new(0),
            journal_bytes,
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
    fn gone(&self) -> VaultError {
        self.poisoned().unwrap_or(VaultError::Closed)
    }

    fn record<R: Record>(&self, id: &[u8]) -> Result<Option<Stored<R>>, VaultError> {
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

    fn for_each<R: Record>(&self, f: &mut dyn FnMut(Stored<R>) -> Result<(), VaultError>) -> Result<(), VaultError> {
        let opened = self.opened.load_full().ok_or(VaultError::Closed)?;
        let newer = self.backlog.names(R::KIND);
        let (mut unreadable, mut stopped) = (None, false);
        let mut hand_over = |name: &Name, sealed: Vec<u8>| match self.open_as_it_is(&opened, name, sealed) {
            Ok(Some(stored)) => f(stored).inspect_err(|_| stopped = true),
            Ok(None) => Ok(()),
            Err(error) => {
                unreadable.get_or_insert(error);
                Ok(())
            }
        };
        let scanned = opened
            .engine
            .scan(R::KIND, &mut |name, sealed| if newer.contains(name) { Ok(()) } else { hand_over(name, sealed) });
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
