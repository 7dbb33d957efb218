//! The ends of a move that are databases.
//!
//! The vault that is left is marked in the transaction that also takes every worker's places away: no commit is made from then on. Then
//! it is read and counted. The one that is made is in its tables from the first record on, and says in its own row that it must
//! not be used; records come in order of their names, and each batch is one commit, so that the last name that is there says how far it is.

use std::collections::HashSet;

use super::{End, Leaving, MoveId, account, hexadecimal};
use crate::{
    model::{Fingerprint, Grant},
    vault::{
        Identity, VaultError,
        cipher::{self, Cipher},
        codec::Record,
        derived::Derived,
        engine::Mark,
        error,
        keyring::Keyring,
        name::{Kind, Name},
        open,
        postgres::{Batch, Expected, Facts, Moving, Postgres, PostgresError, Settings, Work, Write, read_keyring},
    },
};

/// Behind every name.
const END: [u8; 1] = [u8::MAX];

/// A database, whatever is in it.
pub(super) struct Site {
    postgres: Postgres,
    place: String,
    moving: Option<Moving>,
}

impl Site {
    pub(super) async fn open(settings: &Settings) -> Result<Self, VaultError> {
        let postgres = Postgres::connect(settings).await?;
        let place = format!("schema {} of {}", settings.schema, postgres.whereabouts().await?);
        let moving = postgres.moving().await?;
        Ok(Self { postgres, place, moving })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Whether that move has been completed there.
    pub(super) fn is_whole(&self, id: MoveId) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.id == id && !moving.leaving && moving.ended)
    }

    /// Whether that move has begun something there, and not ended.
    pub(super) fn is_begun(&self, id: MoveId) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.id == id && !moving.leaving && !moving.ended)
    }

    /// Says there that a vault is coming from elsewhere, so that no worker that is started too soon makes an empty one.
    pub(super) async fn announce(&mut self, id: MoveId, from: &str) -> Result<(), VaultError> {
        let moving = Moving { id, leaving: false, place: from.to_owned(), ended: false };
        match self.postgres.announce(&moving).await {
            Ok(()) => {
                self.moving = Some(moving);
                Ok(())
            }
            Err(PostgresError::Conflict) => Err(self.taken()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is on its way from there, and not whole.
    pub(super) fn coming(&self, from: &str) -> Option<MoveId> {
        let moving = self.moving.as_ref().filter(|moving| !moving.leaving && !moving.ended && moving.place == from);
        moving.map(|moving| moving.id)
    }

    /// Whether a vault can be made there: nothing of one is.
    pub(super) async fn is_free(&self) -> Result<(), VaultError> {
        if self.postgres.is_vacant().await? { Ok(()) } else { Err(self.taken()) }
    }

    /// Removes what that move has made, if anything.
    pub(super) async fn take_away(&self, id: MoveId) -> Result<(), VaultError> {
        Ok(self.postgres.vacate(&id).await?)
    }

    fn taken(&self) -> VaultError {
        VaultError::Unusable {
            detail: format!("{} holds a vault already, or half of one; name another schema, or drop it", self.place),
        }
    }
}

/// The database that is left.
pub(super) struct Here {
    site: Site,
    leaving: Option<Leaving>,
    keyring: Keyring,
    mark: Mark,
}

impl Here {
    pub(super) async fn open(settings: &Settings, identity: &Identity) -> Result<Self, VaultError> {
        let site = Site::open(settings).await?;
        let keyring = read_keyring(&site.postgres, settings, identity).await?;
        let leaving = match &site.moving {
            Some(Moving { id, leaving: true, place, ended }) => {
                Some(Leaving { id: hexadecimal(*id), to: place.clone(), gone: *ended })
            }
            Some(Moving { leaving: false, place, ended: false, .. }) => {
                let detail = format!("it is being moved here from {place}, and is not whole yet");
                return Err(VaultError::Unusable { detail });
            }
            _ => None,
        };
        Ok(Self { site, leaving, keyring, mark: Mark::default() })
    }

    pub(super) fn place(&self) -> &str {
        &self.site.place
    }

    pub(super) const fn leaving(&self) -> Option<&Leaving> {
        self.leaving.as_ref()
    }

    pub(super) const fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    pub(super) const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Counts every record, now that none is written any more.
    pub(super) async fn count(&mut self) -> Result<(), VaultError> {
        let mut after: Option<Name> = None;
        loop {
            let records = self.next(after.as_ref(), super::RECORDS_AT_ONCE).await?;
            let Some((last, _)) = records.last() else { return Ok(()) };
            after = Some(*last);
            account(&mut self.mark, &records, |_| Ok(None))?;
        }
    }

    pub(super) async fn next(&self, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
        next(&self.site.postgres, after, most).await
    }

    /// Marks it, durably.
    pub(super) async fn leave(&mut self, leaving: &Leaving) -> Result<(), VaultError> {
        let id = super::read_id(leaving)?;
        let moving = Moving { id, leaving: true, place: leaving.to.clone(), ended: leaving.gone };
        let why = error::moved(&self.site.place, &leaving.to, leaving.gone);
        match self.site.postgres.leave(&moving, &why).await {
            Ok(()) => {
                self.leaving = Some(leaving.clone());
                Ok(())
            }
            Err(PostgresError::Fenced) => Err(VaultError::Unusable {
                detail: "a worker is at work on it, or died less than a lease ago: stop all of them, and try again in half a \
                         minute"
                    .to_owned(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the mark off, durably.
    pub(super) async fn remain(&mut self) -> Result<(), VaultError> {
        if let Some(leaving) = self.leaving.take() {
            self.site.postgres.remain(&super::read_id(&leaving)?).await?;
        }
        Ok(())
    }
}

/// The database that a vault is made in.
pub(super) struct There {
    postgres: Postgres,
    id: MoveId,
    after: Option<Name>,
    mark: Mark,
    cipher: Cipher,
    derived: Derived,
}

impl There {
    /// Begins a vault that cannot be used yet, or goes on with what an earlier try of this very move left. It comes from there, by that
    /// command.
    pub(super) async fn begin(
        site: Site,
        to: End<'_>,
        id: MoveId,
        (from, command): (&str, &str),
        keyring: &Keyring,
    ) -> Result<Self, VaultError> {
        let mut own = keyring.clone();
        let mut all = std::mem::take(&mut own.recipients);
        all.extend(to.config.recipients.iter().cloned());
        own.set_recipients(to.identity, &all)?;
        let moving = Moving { id, leaving: false, place: from.to_owned(), ended: false };
        let why =
            format!("a vault is being moved here from {from} and is not whole yet; run the same `{command}` again");
        match site.postgres.arrive(&moving, &why, &own.encrypt()?, &own.recipients_text()).await {
            Ok(()) => {}
            Err(PostgresError::Conflict) => return Err(site.taken()),
            Err(error) => return Err(error.into()),
        }
        site.postgres.enlist().await?;
        let mut there = Self {
            after: site.postgres.last_name().await?,
            postgres: site.postgres,
            id,
            mark: Mark::default(),
            cipher: Cipher::new(keyring.vault, keyring.data_keys.clone(), keyring.current),
            derived: Derived::of(&keyring.fingerprint_key),
        };
        there.mark = there.counted(false).await?;
        Ok(there)
    }

    /// The last record that is there.
    pub(super) const fn after(&self) -> Option<Name> {
        self.after
    }

    pub(super) const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Writes the next records in order of their names.
    pub(super) async fn put(&mut self, records: &[(Name, Vec<u8>)]) -> Result<(), VaultError> {
        let mut batch = Batch::default();
        for (name, sealed) in records {
            let version = cipher::sequence(sealed).unwrap_or(0);
            let write = Write {
                name: *name,
                expected: Expected::Never,
                version,
                sealed: Some(sealed.clone()),
                tombstone: None,
            };
            batch.writes.push(write);
            if name.kind() == Kind::Grant {
                let grant = Grant::read(&self.cipher.open(name, sealed.clone())?.plaintext)?;
                // Whoever works on it first works its dates out.
                batch.work.push(Work::Put(Facts::of(&self.derived, *name, &grant, None)));
                let all: HashSet<Fingerprint> = grant.spent.iter().copied().chain([grant.fingerprint]).collect();
                batch.fingerprints.extend(all.into_iter().map(|fingerprint| (fingerprint, *name)));
            }
        }
        self.postgres.commit(batch).await?;
        account(&mut self.mark, records, |_| Ok(None))?;
        self.after = records.last().map(|(name, _)| *name).or(self.after);
        Ok(())
    }

    /// Sees whether it holds what the other does, each record one that opens.
    pub(super) async fn compare(&mut self, of: &Mark) -> Result<(), VaultError> {
        let found = self.counted(true).await?;
        super::compare(&found, of)
    }

    /// It is used from now on.
    pub(super) async fn complete(self) -> Result<(), VaultError> {
        Ok(self.postgres.arrived(&self.id).await?)
    }

    async fn counted(&self, opened: bool) -> Result<Mark, VaultError> {
        let (mut mark, mut after) = (Mark::default(), None);
        loop {
            let records = next(&self.postgres, after.as_ref(), super::RECORDS_AT_ONCE).await?;
            let Some((last, _)) = records.last() else { return Ok(mark) };
            after = Some(*last);
            account(&mut mark, &records, |_| Ok(None))?;
            for (name, sealed) in records.into_iter().filter(|_| opened) {
                open::check_record(&self.cipher, &name, sealed)?;
            }
        }
    }
}

/// The next records in order of their names.
async fn next(postgres: &Postgres, after: Option<&Name>, most: usize) -> Result<Vec<(Name, Vec<u8>)>, VaultError> {
    let after = after.map_or(&[][..], |name| &name.as_bytes()[..]);
    let found = postgres.scan(after, &END, most).await?;
    Ok(found.into_iter().filter_map(|found| Some((found.name, found.sealed?))).collect())
}
