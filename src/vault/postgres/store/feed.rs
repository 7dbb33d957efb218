//! What other processes have written, opened.
//!
//! Whatever this process was told already, or has written itself and been told so, is left out; a record that was written several times
//! between two polls comes once, as it is now.

use std::{collections::HashMap, sync::PoisonError, time::Duration};

use super::{
    super::{Cursor, Found, Fresh, MAX_READS, News, Seen},
    Inner, Store,
    write::TOMBSTONE,
};
use crate::{
    model::{Awaiting, EventId, Grant, GrantId, Intent, Organization, OrganizationId, OutboxRow, RevokedLinks},
    vault::{
        Stored, VaultError,
        name::{Kind, Name},
    },
};

/// How many records are remembered as known. When there are more, all are forgotten: what comes again is nothing new to who compares
/// numbers.
const MOST_KNOWN: usize = 16 * 1024;

/// Follows what other processes write.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    news: News,
    /// Up to where everything was handed over.
    handed_over: Cursor,
    /// The latest number of what was handed over.
    told: Known,
}

/// What one poll found.
#[derive(Debug)]
pub struct Polled {
    /// In the order in which it was written, but for what was written several times.
    pub items: Vec<Item>,
    /// Whether that is all for now.
    pub is_all: bool,
}

/// A record that another process has written.
#[derive(Debug)]
pub enum Item {
    /// A grant.
    Grant(Box<Stored<Grant>>),
    /// An organization.
    Organization(Stored<Organization>),
    /// An exchange is under way.
    Intent(Stored<Intent>),
    /// An event, or its deliveries.
    Row(Stored<OutboxRow>),
    /// A consent waits.
    Awaiting(Stored<Awaiting>),
    /// Links were revoked.
    RevokedLinks(Stored<RevokedLinks>),
    /// A record is there no more, since that commit.
    Gone(Gone, u64),
}

/// What was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// A grant.
    Grant(GrantId),
    /// An organization.
    Organization(OrganizationId),
    /// An exchange has ended.
    Intent(GrantId),
    /// An event is forgotten.
    Row(EventId),
    /// A consent waits no more.
    Awaiting(GrantId),
    /// Revoked links have ended.
    RevokedLinks(OrganizationId),
}

/// The latest number, by the name of its record, that whoever asks knows.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Name, u64>);

impl Known {
    pub(super) fn add(&mut self, name: Name, number: u64) {
        if self.0.len() >= MOST_KNOWN {
            self.0.clear();
        }
        let known = self.0.entry(name).or_default();
        *known = (*known).max(number);
    }

    fn has(&self, name: &Name, number: u64) -> bool {
        self.0.get(name).is_some_and(|known| *known >= number)
    }
}

/// How far this process has followed.
pub(super) struct Followed {
    /// Up to where the feed that was polled last has handed everything over.
    cursor: Cursor,
    /// What this process has written itself.
    pub(super) own: Known,
    /// When the last complete poll was begun, on the boot-time clock.
    polled_at: Duration,
    /// Since when the server is known to be on its timeline, on that clock.
    timeline_since: Duration,
}

impl Followed {
    /// From where that news begins.
    pub(super) fn from(news: &News, now: Duration) -> Self {
        Self { cursor: news.cursor(), own: Known::default(), polled_at: now, timeline_since: now }
    }
}

impl Store {
    /// Follows what other processes write: from where the last feed was polled, or else from before this vault was opened, so that nothing
    /// is missed that is read from now on.
    pub fn news(&self) -> Feed {
        let cursor = self.0.followed.lock().unwrap_or_else(PoisonError::into_inner).cursor;
        let news = self.0.postgres.news_after(cursor);
        Feed { store: self.clone(), news, handed_over: cursor, told: Known::default() }
    }

    /// How old the last complete poll is: what other processes have written since may be unknown here.
    pub fn news_age(&self) -> Duration {
        let polled_at = self.0.followed.lock().unwrap_or_else(PoisonError::into_inner).polled_at;
        self.0.clock.boot().saturating_sub(polled_at)
    }
}

impl Feed {
    /// Resolves when other processes may have written since it was asked last; where none says so
    /// ([`Settings::listen_url`](super::super::Settings::listen_url)), never.
    pub async fn hinted(&self) {
        self.store.0.postgres.hinted().await;
    }

    /// What other processes have written since the last poll, at most a thousand records at once. After an error nothing is lost: the next
    /// poll begins where this one did. What cannot be opened is logged and left out.
    pub async fn poll(&mut self) -> Result<Polled, VaultError> {
        let inner = &*self.store.0;
        let asked = inner.clock.boot();
        let (fresh, is_all) = self.news.poll().await.map_err(|error| inner.failed(error))?;
        let unknown = inner.unknown(&fresh, &self.told);
        let items = match inner.items(&unknown).await {
            Ok(items) => items,
            Err(error) => {
                self.news = inner.postgres.news_after(self.handed_over);
                return Err(error);
            }
        };
        for (name, number) in unknown {
            self.told.add(name, number);
        }
        if is_all {
            self.handed_over = self.news.cursor();
            let mut followed = inner.followed.lock().unwrap_or_else(PoisonError::into_inner);
            if self.handed_over.timeline != followed.cursor.timeline {
                followed.timeline_since = asked;
            }
            followed.cursor = self.handed_over;
            followed.polled_at = asked;
        }
        Ok(Polled { items, is_all })
    }
}

impl Inner {
    /// On which timeline this process has seen the server, and for how long.
    pub(super) fn seen(&self) -> Seen {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let (timeline, since) = (followed.cursor.timeline, followed.timeline_since);
        drop(followed);
        Seen { timeline, time: self.clock.boot().saturating_sub(since) }
    }

    /// The records among these that whoever asks does not know.
    fn unknown(&self, fresh: &[Fresh], told: &Known) -> Vec<(Name, u64)> {
        let own = &self.followed.lock().unwrap_or_else(PoisonError::into_inner).own;
        let is_told_of = |fresh: &&Fresh| !matches!(fresh.name.kind(), Kind::Meta | Kind::Stray);
        let is_known = |fresh: &Fresh| [own, told].iter().any(|known| known.has(&fresh.name, fresh.version));
        let unknown = fresh.iter().filter(is_told_of).filter(|fresh| !is_known(fresh));
        unknown.map(|fresh| (fresh.name, fresh.version)).collect()
    }

    /// Reads and opens records, in the order in which they are named.
    async fn items(&self, names: &[(Name, u64)]) -> Result<Vec<Item>, VaultError> {
        let mut found: HashMap<Name, Found> = HashMap::with_capacity(names.len());
        for names in names.chunks(MAX_READS) {
            let names: Vec<Name> = names.iter().map(|(name, _)| *name).collect();
            let read = self.postgres.read(&names).await.map_err(|error| self.failed(error))?;
            found.extend(read.into_iter().map(|found| (found.name, found)));
        }
        let mut items = Vec::with_capacity(names.len());
        for (name, _) in names {
            let Some(found) = found.remove(name) else { continue };
            match self.item(found).await {
                Ok(Some(item)) => items.push(item),
                Ok(None) => {}
                // The keys cannot be read again now: to be tried again.
                Err(error) if error.passes() => return Err(error),
                Err(error) => tracing::error!(%error, "a record that another replica has written cannot be read"),
            }
        }
        Ok(items)
    }

    /// Opens what was found; `None` where it is of no kind that is told.
    async fn item(&self, found: Found) -> Result<Option<Item>, VaultError> {
        if found.sealed.is_none() {
            return Ok(self.gone(found).await?.map(|(gone, number)| Item::Gone(gone, number)));
        }
        Ok(match found.name.kind() {
            Kind::Grant => self.open(found).await?.map(|stored| Item::Grant(Box::new(stored))),
            Kind::Organization => self.open(found).await?.map(Item::Organization),
            Kind::Intent => self.open(found).await?.map(Item::Intent),
            Kind::Event => self.open(found).await?.map(Item::Row),
            Kind::Awaiting => self.open(found).await?.map(Item::Awaiting),
            Kind::RevokedLinks => self.open(found).await?.map(Item::RevokedLinks),
            Kind::Stray | Kind::Meta => None,
        })
    }

    /// Which record it was, by its tombstone.
    async fn gone(&self, found: Found) -> Result<Option<(Gone, u64)>, VaultError> {
        let found = self.under_known_keys(found).await?;
        self.saw(found.version);
        // Made again meanwhile: that is news of its own.
        if found.sealed.is_some() {
            return Ok(None);
        }
        let (name, number) = (found.name, found.version);
        let Some(tombstone) = found.tombstone else { return Ok(None) };
        let opened = self.cipher.open(&name, tombstone)?;
        let makes_no_sense = || VaultError::Damaged { what: name.kind().word(), detail: "its tombstone".to_owned() };
        let id = opened.plaintext.strip_prefix(&[TOMBSTONE]).ok_or_else(makes_no_sense)?;
        let grant = || id.try_into().map(GrantId::from_bytes).map_err(|_| makes_no_sense());
        let organization = || -> Result<OrganizationId, VaultError> {
            let text = std::str::from_utf8(id).map_err(|_| makes_no_sense())?;
            text.parse().map_err(|_| makes_no_sense())
        };
        let gone = match name.kind() {
            Kind::Grant => Gone::Grant(grant()?),
            Kind::Organization => Gone::Organization(organization()?),
            Kind::Intent => Gone::Intent(grant()?),
            Kind::Event => Gone::Row(EventId::from_bytes(id.try_into().map_err(|_| makes_no_sense())?)),
            Kind::Awaiting => Gone::Awaiting(grant()?),
            Kind::RevokedLinks => Gone::RevokedLinks(organization()?),
            Kind::Stray | Kind::Meta => return Ok(None),
        };
        Ok(Some((gone, number)))
    }
}
