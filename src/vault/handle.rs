use std::{
    fmt,
    sync::{Arc, atomic::Ordering, mpsc::RecvTimeoutError},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    runtime::Handle as Runtime,
    sync::{Semaphore, mpsc, oneshot},
};
use zeroize::Zeroizing;

#[cfg(test)]
use super::name::Kind;
use super::{
    Change, Stored, Stray, VaultError,
    codec::Record,
    compact::Undisturbed,
    name::Part,
    postgres::{self, DateBy, Feed, Store},
    shared::{Judgement, Shared},
    writer::{Commit, Request, Writer},
};
use crate::{
    model::{
        Awaiting, DoubtReason, EventId, Fingerprint, Grant, GrantId, Intent, Organization, OrganizationId, OutboxRow,
        RevokedLinks, Secret, Timestamp,
    },
    task,
};

/// How many commits may be under way or wait; more wait for a place.
pub(super) const MAX_WAITING: usize = 4096;
/// How long closing waits for records that are still being counted after a crash. Then that is left to the next opening.
const JUDGING_PATIENCE: Duration = Duration::from_secs(2);

/// An open vault. Cheap to clone.
///
/// Reads may be made from any thread. Those of a vault on this machine are ready at once, after microseconds as a rule and a disk
/// access at worst; those of one in a database wait for it. When the last clone is dropped without [`close`](Self::close), the
/// writer of one on this machine finishes the commits it was given and the lock is released; the next opening then replays the
/// journal, as after a crash.
#[derive(Clone)]
pub struct Vault(Kept);

/// Where the records are.
#[derive(Clone)]
enum Kept {
    /// On this machine, for this process alone.
    Local(Arc<Handle>),
    /// In a database, for all who share it.
    Shared(Store),
}

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
        Self(Kept::Local(Arc::new(Handle { shared, requests: Some(requests), places, writer })))
    }

    /// Whether other processes may change what is in it.
    pub const fn is_shared(&self) -> bool {
        matches!(self.0, Kept::Shared(_))
    }

    /// The database, where the vault is in one.
    pub const fn store(&self) -> Option<&Store> {
        match &self.0 {
            Kept::Local(_) => None,
            Kept::Shared(store) => Some(store),
        }
    }

    /// The vault on this machine, for what only such a one can.
    fn local(&self) -> Result<&Arc<Handle>, VaultError> {
        match &self.0 {
            Kept::Local(local) => Ok(local),
            Kept::Shared(_) => Err(VaultError::Unusable {
                detail: "this cannot be done to a vault that is in a database; the database has its own means"
                    .to_owned(),
            }),
        }
    }

    async fn record<R: Record>(&self, id: &[u8]) -> Result<Option<Stored<R>>, VaultError> {
        match &self.0 {
            Kept::Local(local) => local.shared.record(id),
            // Boxed, here and below: what waits for a network is large, and nobody pays for it but who does.
            Kept::Shared(store) => Box::pin(store.record(id)).await,
        }
    }

    async fn for_each<R: Record>(
        &self,
        part: Part,
        f: &mut (dyn FnMut(Stored<R>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        match &self.0 {
            Kept::Local(local) => local.shared.for_each(part, f),
            Kept::Shared(store) => Box::pin(store.for_each(part, f)).await,
        }
    }

    /// A grant; `None` if there is none of that id.
    pub async fn grant(&self, id: GrantId) -> Result<Option<Stored<Grant>>, VaultError> {
        self.record(id.as_bytes()).await
    }

    /// An organization; `None` if there is none of that id.
    pub async fn organization(&self, id: &OrganizationId) -> Result<Option<Stored<Organization>>, VaultError> {
        self.record(id.as_str().as_bytes()).await
    }

    /// The exchange under way for a grant, if there is one.
    pub async fn intent(&self, id: GrantId) -> Result<Option<Intent>, VaultError> {
        Ok(self.record::<Intent>(id.as_bytes()).await?.map(|stored| stored.value))
    }

    /// Hands over every grant, in no useful order, while commits go on: one that is written meanwhile is seen before or
    /// after. An error of `f` stops it. A record that cannot be read does not: all others are handed over first, and then
    /// it is the error.
    pub async fn for_each_grant(
        &self,
        f: &mut (dyn FnMut(Stored<Grant>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(Part::ALL, f).await
    }

    /// Hands over every organization, as [`for_each_grant`](Self::for_each_grant) does.
    pub async fn for_each_organization(
        &self,
        f: &mut (dyn FnMut(Stored<Organization>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(Part::ALL, f).await
    }

    /// As [`for_each_grant`](Self::for_each_grant), for a part of the grants: several threads can share the work.
    pub async fn for_each_grant_of(
        &self,
        part: Part,
        f: &mut (dyn FnMut(Stored<Grant>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(part, f).await
    }

    /// As [`for_each_organization`](Self::for_each_organization), for a part of the organizations.
    pub async fn for_each_organization_of(
        &self,
        part: Part,
        f: &mut (dyn FnMut(Stored<Organization>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(part, f).await
    }

    /// Hands over every intent, as [`for_each_grant`](Self::for_each_grant) does.
    pub async fn for_each_intent(
        &self,
        f: &mut (dyn FnMut(Stored<Intent>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(Part::ALL, f).await
    }

    /// Hands over every stray, as [`for_each_grant`](Self::for_each_grant) does.
    pub async fn for_each_stray(
        &self,
        f: &mut (dyn FnMut(Stored<Stray>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(Part::ALL, f).await
    }

    /// Which of an organization's links were revoked; `None` if none were.
    pub async fn revoked_links(&self, id: &OrganizationId) -> Result<Option<RevokedLinks>, VaultError> {
        Ok(self.record::<RevokedLinks>(id.as_str().as_bytes()).await?.map(|stored| stored.value))
    }

    /// Hands over every consent that has not taken its place, as [`for_each_grant`](Self::for_each_grant) does.
    pub async fn for_each_awaiting(
        &self,
        f: &mut (dyn FnMut(Stored<Awaiting>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(Part::ALL, f).await
    }

    /// Hands over every revocation of links, as [`for_each_grant`](Self::for_each_grant) does.
    pub async fn for_each_revoked_links(
        &self,
        f: &mut (dyn FnMut(Stored<RevokedLinks>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(Part::ALL, f).await
    }

    /// Hands over every event of the outbox, as [`for_each_grant`](Self::for_each_grant) does.
    pub async fn for_each_row(
        &self,
        f: &mut (dyn FnMut(Stored<OutboxRow>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        self.for_each(Part::ALL, f).await
    }

    /// Commits all of `changes` or none, and gives their sequence number. When it returns, they are durable and every
    /// read sees them. Commits take effect in the order in which they were given a place in the queue.
    ///
    /// A future that is dropped while it waits for a place (there are 4096) has done nothing; later, the commit goes on
    /// without it. After [`VaultError::TooLarge`] nothing was changed. After any other error nothing can be seen until the
    /// vault is opened anew, and then all of it or nothing. Once the database has failed, which
    /// [`poisoned`](Self::poisoned) tells, commits go on as long as the journal has room: what is under way can end.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<u64, VaultError> {
        match &self.0 {
            Kept::Local(local) => local.commit(changes).await,
            Kept::Shared(store) => Box::pin(store.commit(changes)).await,
        }
    }

    /// The right to change a grant that exists: a claim among all who share the vault, shared by those of this process who ask for it;
    /// at once, and for ever, where nobody else has the vault. While another process has it, it is waited for as long as `patience`
    /// says, and then it is [`VaultError::Held`]. Whoever holds a grant reads it afresh before it decides.
    pub async fn hold(&self, grant: GrantId, patience: Duration) -> Result<Hold, VaultError> {
        match &self.0 {
            Kept::Local(_) => Ok(Hold(None)),
            Kept::Shared(store) => Box::pin(store.hold(grant, patience)).await.map(|hold| Hold(Some(hold))),
        }
    }

    /// As [`commit`](Self::commit), for grants that are held: [`VaultError::Fenced`] where another process has taken one of them over. What
    /// belongs to a grant that exists can be written in no other way in a vault that is shared.
    pub async fn commit_held(&self, holds: &[&Hold], changes: Vec<Change>) -> Result<u64, VaultError> {
        match &self.0 {
            Kept::Local(local) => local.commit(changes).await,
            Kept::Shared(store) => {
                let holds: Vec<_> = holds.iter().filter_map(|hold| hold.0.as_ref()).collect();
                Box::pin(store.commit_held(&holds, changes)).await
            }
        }
    }

    /// What other processes write; `None` where there are none.
    pub fn news(&self) -> Option<Feed> {
        self.store().map(Store::news)
    }

    /// How often the news are to be asked for.
    pub fn news_interval(&self) -> Option<Duration> {
        self.store().map(Store::poll_interval)
    }

    /// How long a claim lasts when its holder does nothing; `None` where there are none.
    pub fn lease(&self) -> Option<Duration> {
        self.store().map(Store::lease)
    }

    /// The grant, or what is remembered of one that is gone, that has or had the secret of this fingerprint, in a vault that is shared.
    /// `None` where nobody else writes: whoever asks remembers it himself.
    pub async fn holder(&self, fingerprint: Fingerprint) -> Result<Option<Stored<Grant>>, VaultError> {
        match &self.0 {
            Kept::Local(_) => Ok(None),
            Kept::Shared(store) => Box::pin(store.holder(fingerprint)).await,
        }
    }

    /// From now on whoever shares the vault is told, with each grant that is committed here, the dates that this works out: that is how a
    /// worker finds what is due without knowing every grant. Nothing where nobody else has the vault.
    pub fn date_by(&self, by: DateBy) {
        if let Kept::Shared(store) = &self.0 {
            store.date_by(by);
        }
    }

    /// The secret's keyed hash: HMAC-SHA256, cut to 128 bits. It is the same for the vault's whole life, backups included.
    pub fn fingerprint(&self, secret: &Secret) -> Fingerprint {
        match &self.0 {
            Kept::Local(local) => local.shared.derived.fingerprint(secret),
            Kept::Shared(store) => store.fingerprint(secret),
        }
    }

    /// Another keyed hash of the secret, for an entity tag: 16 characters of URL-safe base64, without quotes.
    pub fn entity_tag(&self, secret: &Secret) -> String {
        match &self.0 {
            Kept::Local(local) => local.shared.derived.entity_tag(secret),
            Kept::Shared(store) => store.entity_tag(secret),
        }
    }

    /// The key of consent links. It is the same for the vault's whole life, backups included, so that a link that was sent
    /// holds across restarts, new data keys and a restore.
    pub fn link_key(&self) -> Zeroizing<[u8; 32]> {
        match &self.0 {
            Kept::Local(local) => local.shared.derived.link_key(),
            Kept::Shared(store) => store.link_key(),
        }
    }

    /// The id of the happening that `parts` tell apart from every other: a keyed hash of them, HMAC-SHA256 cut to 128 bits. It
    /// is the same for the vault's whole life, backups included.
    pub fn event_id(&self, parts: &[&[u8]]) -> EventId {
        match &self.0 {
            Kept::Local(local) => local.shared.derived.event_id(parts),
            Kept::Shared(store) => store.event_id(parts),
        }
    }

    /// How often the vault's contents went back to an earlier state, plus one.
    pub fn epoch(&self) -> u32 {
        match &self.0 {
            Kept::Local(local) => local.shared.meta.epoch,
            Kept::Shared(store) => store.epoch(),
        }
    }

    /// How they went back last: what one-time grants of an earlier epoch are in doubt for.
    pub fn epoch_reason(&self) -> DoubtReason {
        match &self.0 {
            Kept::Local(local) => local.shared.meta.reason,
            Kept::Shared(store) => store.epoch_reason(),
        }
    }

    /// When the last backup was completed, by this process or as the folder of scheduled ones tells; `None`: never.
    pub fn last_backup_at(&self) -> Option<Timestamp> {
        let Kept::Local(local) = &self.0 else { return self.store().and_then(Store::last_backup_at) };
        let at = local.shared.last_backup.load(Ordering::Relaxed);
        (at != 0).then_some(Timestamp::from_millis(at))
    }

    /// A backup was completed; an earlier one than is known changes nothing.
    pub fn backed_up(&self, at: Timestamp) {
        match &self.0 {
            Kept::Local(local) => _ = local.shared.last_backup.fetch_max(at.as_millis(), Ordering::Relaxed),
            Kept::Shared(store) => store.backed_up(at),
        }
    }

    /// The vault's figures, without a scan.
    pub fn stats(&self) -> VaultStats {
        let shared = match &self.0 {
            Kept::Local(local) => &*local.shared,
            Kept::Shared(store) => return store.stats(),
        };
        VaultStats {
            records: shared.records.load(Ordering::Relaxed),
            bytes: shared.journal_bytes.load(Ordering::Relaxed)
                + shared.opened.load().as_ref().map_or(0, |opened| opened.engine.bytes()),
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
        match &self.0 {
            Kept::Local(local) => GrantId::from_bytes((local.shared.random_id)()),
            Kept::Shared(store) => store.random_grant_id(),
        }
    }

    /// Waits until it is known whether the vault holds what it should: at once, but for one that was opened after a crash
    /// and whose records are still being counted. Until then a record that is read is right or refused, and may be older
    /// than it should be, or removed since: nothing is to be sent by it that must not be sent twice.
    ///
    /// The error is what an opening would have been refused with. Nothing was committed then.
    pub async fn judged(&self) -> Result<(), VaultError> {
        // A database is whole or says so.
        let Kept::Local(local) = &self.0 else { return Ok(()) };
        let mut judgement = local.shared.judgement.subscribe();
        let known = judgement.wait_for(|judgement| !matches!(judgement, Judgement::Pending)).await;
        match known.as_deref() {
            Ok(Judgement::Damaged(error)) => Err(error.clone()),
            Ok(_) => Ok(()),
            Err(_) => Err(VaultError::Closed),
        }
    }

    /// Whether [`judged`](Self::judged) would answer at once.
    pub fn is_judged(&self) -> bool {
        match &self.0 {
            Kept::Local(local) => !matches!(*local.shared.judgement.borrow(), Judgement::Pending),
            Kept::Shared(_) => true,
        }
    }

    /// Until what this gives is dropped, files that have grown are not written anew: for reading all of a vault that somebody waits for.
    pub fn undisturbed(&self) -> Undisturbed {
        match &self.0 {
            Kept::Local(local) => match &local.requests {
                Some(requests) => Undisturbed::begin(&local.shared, requests),
                None => Undisturbed::of_none(),
            },
            Kept::Shared(_) => Undisturbed::of_none(),
        }
    }

    /// Why the vault must be given no new work, if that is so: a write has failed. Reads go on.
    pub fn poisoned(&self) -> Option<String> {
        match &self.0 {
            Kept::Local(local) => local.shared.poison.get().cloned(),
            Kept::Shared(store) => store.over(),
        }
    }

    /// Whether only opening the vault anew can help, and would: it takes no more writes, and its disk does again. Blocks,
    /// and writes a little, where the vault takes no more writes; else it asks nothing.
    pub fn wants_reopening(&self) -> bool {
        // A database that is away comes back, and one that went back in time is an operator's to look at.
        let Kept::Local(local) = &self.0 else { return false };
        let opened = local.shared.opened.load_full();
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
        let local = match &self.0 {
            Kept::Local(local) => local,
            Kept::Shared(store) => {
                // What is not given up runs out by itself, should there be no runtime to do it.
                if let Ok(here) = Runtime::try_current() {
                    task::block_on(&here, store.close());
                }
                return Ok(());
            }
        };
        let (done, answer) = std::sync::mpsc::sync_channel(1);
        local.send(Request::Close(done))?;
        let closed = match answer.recv_timeout(JUDGING_PATIENCE) {
            Err(RecvTimeoutError::Timeout) => {
                local.shared.ending.store(true, Ordering::Relaxed);
                answer.recv().ok()
            }
            closed => closed.ok(),
        };
        closed.ok_or_else(|| local.shared.gone())?
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
        let local = self.local()?;
        local.send(Request::Run(Box::new(run)))?;
        answer.recv().map_err(|_| local.shared.gone())?
    }

    /// As after a sync that failed.
    #[cfg(test)]
    pub(crate) fn poison_for_test(&self) {
        self.local().unwrap().shared.poison(&VaultError::Closed);
        let broken = self.ask(|writer| {
            writer.journal.break_for_test();
            Ok(())
        });
        broken.unwrap();
    }

    /// As while records are being counted after a crash, if `known` is `None`; else as when that has ended.
    #[cfg(test)]
    pub(crate) fn judge_for_test(&self, known: Option<Result<(), VaultError>>) {
        let judgement = match known {
            None => Judgement::Pending,
            Some(Ok(())) => Judgement::Whole,
            Some(Err(error)) => Judgement::Damaged(error),
        };
        self.local().unwrap().shared.judgement.send_replace(judgement);
    }

    /// As after a bad block: the organization's record does not open any more.
    #[cfg(test)]
    pub(crate) fn damage_for_test(&self, id: &OrganizationId) {
        let shared = &self.local().unwrap().shared;
        let name = shared.namer.name(Kind::Organization, id.as_str().as_bytes());
        shared.backlog.plant(name, vec![0; 64]);
    }

    /// What readers and the writer of a vault on this machine have in common.
    pub(super) fn shared(&self) -> Result<&Shared, VaultError> {
        self.local().map(|local| &*local.shared)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

/// A vault that is in a database.
impl From<Store> for Vault {
    fn from(store: Store) -> Self {
        Self(Kept::Shared(store))
    }
}

/// The right to change a grant: a claim of its own, as [`Vault::hold`] gives it. Given up in the background when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Hold(Option<postgres::Hold>);

/// One that was claimed in a database.
impl From<postgres::Hold> for Hold {
    fn from(hold: postgres::Hold) -> Self {
        Self(Some(hold))
    }
}

impl Hold {
    /// The claim in the database; `None` where nobody else has the vault.
    pub fn claimed(self) -> Option<postgres::Hold> {
        self.0
    }

    /// Until when, on the boot-time clock, no other process works on the grant; `None`: for ever.
    pub fn good_until(&self) -> Option<Duration> {
        self.0.as_ref().map(postgres::Hold::good_until)
    }
}

impl Handle {
    async fn commit(&self, changes: Vec<Change>) -> Result<u64, VaultError> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| VaultError::Closed)?;
        let (done, answer) = oneshot::channel();
        self.send(Request::Commit(Commit { changes, done, _place: place }))?;
        answer.await.map_err(|_| self.shared.gone())?
    }

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
