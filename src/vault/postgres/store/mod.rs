//! The vault over PostgreSQL: what `vault/shared.rs` and its writer are for sled.
//!
//! It seals what is written and opens what is read, so that the database never sees a secret ([`mod@write`] lists what it does see in
//! clear). A [`Hold`] is the claim of a grant: whoever changes a grant that exists holds it ([`Store::hold`]), reads it afresh, decides,
//! and commits under it ([`Store::commit_held`]). The [`Feed`] tells what other processes have written.
//!
//! One number goes with each commit, above every one that this process has seen: the version of all records that it writes, bound into
//! their seals. A record that has a later one, written by another process just now, makes it try again with a number above that.
//!
//! What is deliberately absent: a decision about a grant, and a record that is kept here. Whoever reads asks the database.

mod accept;
mod backup;
mod census;
mod due;
mod feed;
mod fleet;
mod founding;
mod hold;
mod holder;
mod inspect;
mod lanes;
mod rekey;
mod upkeep;
mod write;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

pub(in crate::vault) use self::founding::read_keyring;
pub use self::{
    census::{EndingDay, Ends, LaneCount},
    due::{DateBy, MOST_DUE},
    feed::{Feed, Gone, Item, Polled},
    fleet::{InvalidPlace, Place},
    hold::Hold,
    inspect::{DatabaseInspection, InspectedVault},
    lanes::Told,
};
use self::{feed::Followed, hold::Holds, upkeep::Release};
use super::{Found, Postgres, PostgresError, ReplicaId};
use crate::{
    clock::SharedClock,
    metrics::Metrics,
    model::{
        Awaiting, DoubtReason, EventId, Fingerprint, Grant, GrantId, Intent, Organization, OrganizationId,
        ProviderName, RevokedLinks, Secret,
    },
    vault::{
        Rekeying, Stored, VaultError, VaultStats,
        cipher::{self, Cipher},
        codec::{Encoder, Meta, Record},
        derived::Derived,
        keyring::Keyring,
        name::{Kind, Namer, Part},
        recipients::{self, Recipient},
        shared::random_id,
    },
};

/// How many records a scan asks for at once.
const PAGE: usize = 500;

/// A vault that several processes share. Cheap to clone; when the last clone is dropped, what it holds is given up.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    postgres: Postgres,
    lease: Duration,
    poll: Duration,
    clock: SharedClock,
    metrics: Metrics,
    /// Where the identity is, which is read again when the keys have changed.
    identity: PathBuf,
    /// The public keys of that identity.
    own: Vec<String>,
    /// Where the vault is, for errors.
    place: PathBuf,
    keys: RwLock<Keys>,
    cipher: Cipher,
    namer: Namer,
    derived: Derived,
    meta: Meta,
    encoder: Mutex<Encoder>,
    /// The highest number of any record that was read or written here.
    highest: AtomicU64,
    holds: Mutex<Holds>,
    /// Works out what a grant's dates are, where anybody does.
    date_by: RwLock<Option<DateBy>>,
    release: mpsc::UnboundedSender<Release>,
    followed: Mutex<Followed>,
    stats: Mutex<VaultStats>,
    /// How far the sealing under a new data key is, as far as known here.
    rekeying: Mutex<Option<Rekeying>>,
    /// There is something to seal anew.
    rekey_wanted: Arc<Notify>,
    /// What is done in the background ends.
    ending: CancellationToken,
    _at_its_end: DropGuard,
    /// Held while a backup is made.
    backing_up: tokio::sync::Mutex<()>,
    /// In milliseconds since the Unix epoch; 0: never.
    last_backup: AtomicI64,
    /// Why nothing is committed any more.
    over: OnceLock<String>,
}

/// The keyring as this process knows it.
struct Keys {
    keyring: Keyring,
    /// The version of the row that it was read from.
    version: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// A grant; `None` if there is none of that id.
    pub async fn grant(&self, id: GrantId) -> Result<Option<Stored<Grant>>, VaultError> {
        self.0.record(id.as_bytes()).await
    }

    /// An organization; `None` if there is none of that id.
    pub async fn organization(&self, id: &OrganizationId) -> Result<Option<Stored<Organization>>, VaultError> {
        self.0.record(id.as_str().as_bytes()).await
    }

    /// The exchange under way for a grant, if there is one.
    pub async fn intent(&self, id: GrantId) -> Result<Option<Intent>, VaultError> {
        Ok(self.0.record::<Intent>(id.as_bytes()).await?.map(|stored| stored.value))
    }

    /// A grant and the exchange under way for it, both of one moment.
    pub async fn grant_and_intent(&self, id: GrantId) -> Result<(Option<Stored<Grant>>, Option<Intent>), VaultError> {
        let names = [Kind::Grant, Kind::Intent].map(|kind| self.0.namer.name(kind, id.as_bytes()));
        let (mut grant, mut intent) = (None, None);
        for found in self.0.postgres.read(&names).await.map_err(|error| self.0.failed(error))? {
            if found.name == names[0] {
                grant = self.0.open(found).await?;
            } else {
                intent = self.0.open::<Intent>(found).await?;
            }
        }
        Ok((grant, intent.map(|stored| stored.value)))
    }

    /// What a consent waits for that has not taken its place.
    pub async fn awaiting(&self, id: GrantId) -> Result<Option<Awaiting>, VaultError> {
        Ok(self.0.record::<Awaiting>(id.as_bytes()).await?.map(|stored| stored.value))
    }

    /// Which of an organization's links were revoked; `None` if none were.
    pub async fn revoked_links(&self, id: &OrganizationId) -> Result<Option<RevokedLinks>, VaultError> {
        Ok(self.0.record::<RevokedLinks>(id.as_str().as_bytes()).await?.map(|stored| stored.value))
    }

    /// Hands over every record of a kind in a part of the names, page by page, while commits go on: one that is written meanwhile is
    /// seen before or after. An error of `f` stops it. A record that cannot be read does not: all others are handed over first, and
    /// then it is the error.
    pub(in crate::vault) async fn for_each<R: Record>(
        &self,
        part: Part,
        f: &mut (dyn FnMut(Stored<R>) -> Result<(), VaultError> + Send),
    ) -> Result<(), VaultError> {
        let (mut after, before) = part.bounds(R::KIND);
        let mut unreadable = None;
        loop {
            let page = self.0.postgres.scan(&after, &before, PAGE).await.map_err(|error| self.0.failed(error))?;
            let is_last = page.len() < PAGE;
            for found in page {
                after = found.name.as_bytes().to_vec();
                match self.0.open(found).await {
                    Ok(Some(stored)) => f(stored)?,
                    Ok(None) => {}
                    Err(error) => _ = unreadable.get_or_insert(error),
                }
            }
            if is_last {
                return unreadable.map_or(Ok(()), Err);
            }
        }
    }

    /// The secret's keyed hash, as [`Vault::fingerprint`](crate::vault::Vault::fingerprint).
    pub fn fingerprint(&self, secret: &Secret) -> Fingerprint {
        self.0.derived.fingerprint(secret)
    }

    /// Another keyed hash of the secret, as [`Vault::entity_tag`](crate::vault::Vault::entity_tag).
    pub fn entity_tag(&self, secret: &Secret) -> String {
        self.0.derived.entity_tag(secret)
    }

    /// The key of consent links, as [`Vault::link_key`](crate::vault::Vault::link_key).
    pub fn link_key(&self) -> Zeroizing<[u8; 32]> {
        self.0.derived.link_key()
    }

    /// The id of a happening, as [`Vault::event_id`](crate::vault::Vault::event_id).
    pub fn event_id(&self, parts: &[&[u8]]) -> EventId {
        self.0.derived.event_id(parts)
    }

    /// What the database knows a provider by: in `work`, and for budgets and leases of its own.
    pub fn lane(&self, provider: &ProviderName) -> [u8; 16] {
        self.0.derived.lane(provider)
    }

    /// How often the vault's contents went back to an earlier state, plus one.
    pub fn epoch(&self) -> u32 {
        self.0.meta.epoch
    }

    /// How they went back last.
    pub fn epoch_reason(&self) -> DoubtReason {
        self.0.meta.reason
    }

    /// An id for a new grant.
    ///
    /// # Panics
    ///
    /// If the system has no randomness, which it had when the vault was opened.
    pub fn random_grant_id(&self) -> GrantId {
        GrantId::from_bytes(random_id())
    }

    /// The vault's figures, as they were counted last: once a minute.
    pub fn stats(&self) -> VaultStats {
        VaultStats { data_key: self.0.cipher.current(), ..*self.0.stats.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Who can open it.
    pub fn recipients(&self) -> Vec<Recipient> {
        recipients::of(&self.0.keys.read().unwrap_or_else(PoisonError::into_inner).keyring, &self.0.own)
    }

    /// Why nothing is committed any more, if that is so: only a restart helps. A database that is away is no such reason.
    pub fn over(&self) -> Option<String> {
        self.0.over.get().cloned()
    }

    /// The id of this process among those that share the vault.
    pub fn replica(&self) -> ReplicaId {
        self.0.postgres.replica()
    }

    /// How long a claim lasts.
    pub fn lease(&self) -> Duration {
        self.0.lease
    }

    /// Whether the database may lose what it confirmed, because that is allowed.
    pub fn allows_asynchronous(&self) -> bool {
        self.0.postgres.0.allow_asynchronous
    }

    /// How often it is to be asked what other processes have written.
    pub fn poll_interval(&self) -> Duration {
        self.0.poll
    }

    /// The database itself, for tables that hold no records.
    pub fn postgres(&self) -> &Postgres {
        &self.0.postgres
    }
}

impl Inner {
    async fn record<R: Record>(&self, id: &[u8]) -> Result<Option<Stored<R>>, VaultError> {
        let name = self.namer.name(R::KIND, id);
        let found = self.postgres.read(&[name]).await.map_err(|error| self.failed(error))?.pop();
        match found {
            Some(found) => self.open(found).await,
            None => Ok(None),
        }
    }

    /// The record as it can be opened. Where it names a data key that this process does not have, the keys are read again; and where there
    /// is none of that number any more, the record, which was sealed anew before that key went.
    async fn under_known_keys(&self, found: Found) -> Result<Found, VaultError> {
        let has_key = |found: &Found| {
            let number =
                found.sealed.as_ref().or(found.tombstone.as_ref()).and_then(|sealed| cipher::key_number(sealed));
            number.is_none_or(|number| self.cipher.has(number))
        };
        if has_key(&found) {
            return Ok(found);
        }
        self.read_keys_again().await?;
        if has_key(&found) {
            return Ok(found);
        }
        let again = self.postgres.read(&[found.name]).await.map_err(|error| self.failed(error))?.pop();
        Ok(again.unwrap_or(found))
    }

    /// Opens a record; `None` if it was deleted.
    async fn open<R: Record>(&self, found: Found) -> Result<Option<Stored<R>>, VaultError> {
        let found = self.under_known_keys(found).await?;
        self.saw(found.version);
        let Some(sealed) = found.sealed else { return Ok(None) };
        let opened = self.cipher.open(&found.name, sealed).and_then(|opened| {
            // The seal names the version, so that an older record cannot be passed off as a later one.
            if opened.sequence != found.version {
                let detail = "its version is not that of its seal".to_owned();
                return Err(VaultError::Damaged { what: R::KIND.word(), detail });
            }
            Ok(Stored { value: R::read(&opened.plaintext)?, sequence: opened.sequence })
        });
        opened.map(Some).inspect_err(|_| self.metrics.vault_failed())
    }

    /// Takes note of a number that a record has.
    fn saw(&self, number: u64) {
        self.highest.fetch_max(number, Ordering::AcqRel);
    }

    /// What an error of the database comes to.
    fn failed(&self, error: PostgresError) -> VaultError {
        if matches!(error, PostgresError::Forgotten | PostgresError::WentBack)
            && self.over.set(error.to_string()).is_ok()
        {
            tracing::error!(%error, "the vault takes no more writes until the worker is restarted");
        }
        if !matches!(error, PostgresError::Conflict | PostgresError::Fenced) {
            self.metrics.vault_failed();
        }
        error.into()
    }
}

impl From<PostgresError> for VaultError {
    fn from(error: PostgresError) -> Self {
        let detail = error.to_string();
        match error {
            PostgresError::Away(_)
            | PostgresError::Slow
            | PostgresError::Busy(_)
            | PostgresError::NotPrimary
            | PostgresError::Behind
            | PostgresError::KeysChanged => Self::Away { detail },
            PostgresError::Conflict => Self::Conflict,
            PostgresError::Fenced => Self::Fenced,
            PostgresError::Asynchronous => Self::Asynchronous,
            PostgresError::Settings(_)
            | PostgresError::Unsafe { .. }
            | PostgresError::Newer { .. }
            | PostgresError::Arriving => Self::Unusable { detail },
            PostgresError::Forgotten | PostgresError::WentBack => Self::Poisoned { reason: detail },
            PostgresError::Batch(_) | PostgresError::Failed(_) => Self::Engine { detail },
        }
    }
}
