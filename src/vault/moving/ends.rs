//! The ends of a move, whatever engine they have.

use super::{End, Leaving, MoveId, database, folder};
use crate::vault::{VaultError, engine::Mark, keyring::Keyring, name::Name, postgres::Settings};

/// The vault that is left, which nobody else holds.
pub(super) enum Here {
    Folder(Box<folder::Here>),
    Database(Box<database::Here>),
}

impl Here {
    /// Holds it, marked or not.
    pub(super) async fn open(end: End<'_>) -> Result<Self, VaultError> {
        match &end.config.postgres {
            None => folder::Here::open(end).map(|here| Self::Folder(Box::new(here))),
            Some(config) => {
                let opened = database::Here::open(&Settings::of(config)?, end.identity).await;
                opened.map(|here| Self::Database(Box::new(here)))
            }
        }
    }

    /// Where it is, in words.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Folder(here) => here.place(),
            Self::Database(here) => here.place().to_owned(),
        }
    }

    /// How it is marked, if it is.
    pub(super) fn leaving(&self) -> Option<&Leaving> {
        match self {
            Self::Folder(here) => here.leaving(),
            Self::Database(here) => here.leaving(),
        }
    }

    pub(super) fn keyring(&self) -> &Keyring {
        match self {
            Self::Folder(here) => here.keyring(),
            Self::Database(here) => here.keyring(),
        }
    }

    /// What it holds.
    pub(super) fn mark(&self) -> &Mark {
        match self {
            Self::Folder(here) => here.mark(),
            Self::Database(here) => here.mark(),
        }
    }

    /// Counts what it holds, once it is marked.
    pub(super) async fn count(&mut self) -> Result<(), VaultError> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Database(here) => here.count().await,
        }
    }

    /// The next records in order of their names, of all kinds: those after `after`, or from the first on.
    pub(super) async fn next(&self, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        match self {
            Self::Folder(here) => here.next(after, most),
            Self::Database(here) => here.next(after, most).await,
        }
    }

    /// Marks it, durably.
    pub(super) async fn leave(&mut self, leaving: &Leaving) -> Result<(), VaultError> {
        match self {
            Self::Folder(here) => here.leave(leaving),
            Self::Database(here) => here.leave(leaving).await,
        }
    }

    /// Takes the mark off, durably.
    pub(super) async fn remain(&mut self) -> Result<(), VaultError> {
        match self {
            Self::Folder(here) => here.remain(),
            Self::Database(here) => here.remain().await,
        }
    }
}

/// The place where a vault is to be made.
pub(super) enum Site<'a> {
    Folder(End<'a>),
    Database(database::Site),
}

impl Site<'_> {
    pub(super) async fn open(end: End<'_>) -> Result<Site<'_>, VaultError> {
        match &end.config.postgres {
            None => Ok(Site::Folder(end)),
            Some(config) => database::Site::open(&Settings::of(config)?).await.map(Site::Database),
        }
    }

    /// It in words, the same for the same place.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Folder(end) => folder::place(end.config),
            Self::Database(site) => site.place().to_owned(),
        }
    }

    /// Whether a vault can be made there: nothing is, not even half a vault.
    pub(super) async fn is_free(&self) -> Result<(), VaultError> {
        match self {
            Self::Folder(end) => folder::There::is_free(*end),
            Self::Database(site) => site.is_free().await,
        }
    }

    /// Whether that move has been completed there.
    pub(super) fn is_whole(&self, id: MoveId) -> Result<bool, VaultError> {
        match self {
            Self::Folder(end) => folder::There::is_whole(*end, id),
            Self::Database(site) => Ok(site.is_whole(id)),
        }
    }

    /// Whether that move has begun something there that is not whole.
    pub(super) fn is_begun(&self, id: MoveId) -> Result<bool, VaultError> {
        match self {
            Self::Folder(end) => folder::There::is_begun(*end, id),
            Self::Database(site) => Ok(site.is_begun(id)),
        }
    }

    /// Says there that a vault is coming, where somebody might make one meanwhile.
    pub(super) async fn announce(&mut self, id: MoveId, from: &str) -> Result<(), VaultError> {
        match self {
            // A worker makes no folder.
            Self::Folder(_) => Ok(()),
            Self::Database(site) => site.announce(id, from).await,
        }
    }

    /// What was announced from there, if anything.
    pub(super) fn coming(&self, from: &str) -> Option<MoveId> {
        match self {
            Self::Folder(_) => None,
            Self::Database(site) => site.coming(from),
        }
    }

    /// Removes what that move has made, if anything.
    pub(super) async fn take_away(&self, id: MoveId) -> Result<(), VaultError> {
        match self {
            Self::Folder(end) => folder::There::take_away(*end, id),
            Self::Database(site) => site.take_away(id).await,
        }
    }
}

/// The vault that is made.
pub(super) enum There {
    Folder(Box<folder::There>),
    Database(Box<database::There>),
}

impl There {
    /// Begins one, or goes on with what an earlier try of this very move left.
    pub(super) async fn begin(site: Site<'_>, to: End<'_>, id: MoveId, from: &Here) -> Result<Self, VaultError> {
        match site {
            Site::Folder(end) => folder::There::begin(end, id).map(|there| Self::Folder(Box::new(there))),
            Site::Database(site) => {
                let begun = database::There::begin(site, to, id, (&from.place(), super::COMMAND), from.keyring()).await;
                begun.map(|there| Self::Database(Box::new(there)))
            }
        }
    }

    /// The last record that is there for sure.
    pub(super) fn after(&self) -> Option<Name> {
        match self {
            Self::Folder(there) => there.after(),
            Self::Database(there) => there.after(),
        }
    }

    /// What is there.
    pub(super) fn mark(&self) -> &Mark {
        match self {
            Self::Folder(there) => there.mark(),
            Self::Database(there) => there.mark(),
        }
    }

    /// Writes the next records in order of their names.
    pub(super) async fn put(&mut self, records: &[(Name, Vec<u8>)]) -> Result<(), VaultError> {
        match self {
            Self::Folder(there) => there.put(records),
            Self::Database(there) => there.put(records).await,
        }
    }

    /// Sees whether it holds what the other does, each record one that opens.
    pub(super) async fn compare(&mut self, of: &Mark, keyring: &Keyring) -> Result<(), VaultError> {
        match self {
            Self::Folder(there) => there.compare(of, keyring),
            Self::Database(there) => there.compare(of).await,
        }
    }

    /// Makes it one that can be used.
    pub(super) async fn complete(self, to: End<'_>, keyring: &Keyring) -> Result<(), VaultError> {
        match self {
            Self::Folder(there) => (*there).complete(to, keyring),
            Self::Database(there) => (*there).complete().await,
        }
    }
}
