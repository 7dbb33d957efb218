//! What a worker asks of the grants that it does not keep in memory. Each question is one statement, and its answer is bounded.

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{
    super::{Found, LaneId, MAX_READS, Parameters, cell, found, work::millis},
    Inner, Store,
};
use crate::{
    model::{Fingerprint, Grant, GrantId, Organization, OrganizationId, ProviderName, Timestamp},
    vault::{
        Stored, VaultError,
        codec::Record,
        name::{Kind, Name, Part},
    },
};

/// A place in the order of names, which is the order of nothing else: where a page ended. Written in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(Name);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Text that is no place in the order of names.
#[derive(Debug, thiserror::Error)]
#[error("not a place in a list: follow the links of its pages")]
pub struct InvalidPlace;

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let mut bytes = Vec::with_capacity(text.len() / 2);
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return Err(InvalidPlace);
        }
        for at in (0..text.len()).step_by(2) {
            bytes.push(u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| InvalidPlace)?);
        }
        Name::parse(&bytes).map(Self).ok_or(InvalidPlace)
    }
}

impl Store {
    /// The grants of these ids, in their order, as far as there are any; at most [`MAX_READS`] in one round trip. The last fetch of each is
    /// the later of what its record says and what was noted.
    pub async fn grants(&self, ids: &[GrantId]) -> Result<Vec<Option<Stored<Grant>>>, VaultError> {
        let inner = &*self.0;
        let names: Vec<Name> = ids.iter().map(|id| inner.namer.name(Kind::Grant, id.as_bytes())).collect();
        let mut read: HashMap<Name, (Found, Option<Timestamp>)> = HashMap::with_capacity(names.len());
        for names in names.chunks(MAX_READS) {
            let names: Vec<&[u8]> = names.iter().map(|name| &name.as_bytes()[..]).collect();
            let sql = &inner.postgres.0.sql.questions.with_fetched;
            for row in inner.asked(sql, &[(&names, Type::BYTEA_ARRAY)]).await? {
                let found = found(&row).map_err(|error| inner.failed(error))?;
                let fetched: Option<i64> = cell(&row, 4).map_err(|error| inner.failed(error))?;
                read.insert(found.name, (found, fetched.map(Timestamp::from_millis)));
            }
        }
        let mut grants = Vec::with_capacity(names.len());
        for name in names {
            grants.push(match read.get(&name) {
                Some((found, fetched)) => inner.open::<Grant>(found.clone()).await?.map(|mut stored| {
                    stored.value.last_fetched_at = stored.value.last_fetched_at.max(*fetched);
                    stored
                }),
                None => None,
            });
        }
        Ok(grants)
    }

    /// The grant, or what is remembered of one that is gone, that has or had the secret of this fingerprint.
    pub async fn holder_of(&self, fingerprint: Fingerprint) -> Result<Option<GrantId>, VaultError> {
        Ok(self.holder(fingerprint).await?.map(|stored| stored.value.id))
    }

    /// Whether a provider may have another living grant of this person, beside `but`. A person that nobody knows, this one or another's,
    /// may be the same; a key that names no person is nobody's.
    pub async fn may_be_shared(
        &self,
        provider: &ProviderName,
        subject: Option<&str>,
        but: GrantId,
    ) -> Result<bool, VaultError> {
        let inner = &*self.0;
        let (lane, but) = (self.lane(provider), inner.namer.name(Kind::Grant, but.as_bytes()));
        let (lane, but) = (&lane[..], &but.as_bytes()[..]);
        let person = subject.map(|subject| inner.derived.person(provider, subject));
        let sql = &inner.postgres.0.sql.questions;
        let rows = match &person {
            Some(person) => {
                let person = &person[..];
                inner
                    .asked(&sql.shared_with, &[(&lane, Type::BYTEA), (&person, Type::BYTEA), (&but, Type::BYTEA)])
                    .await
            }
            None => inner.asked(&sql.shared_with_any, &[(&lane, Type::BYTEA), (&but, Type::BYTEA)]).await,
        };
        // Whoever is not told takes it for shared.
        rows?.first().map_or(Ok(true), |row| cell(row, 0)).map_err(|error| inner.failed(error))
    }

    /// Grants of these providers of whose consent's end something is to be told by now, the soonest to end first; at most `most`, and
    /// [`MAX_READS`].
    pub async fn warnings_due(
        &self,
        providers: &[&ProviderName],
        most: usize,
    ) -> Result<Vec<Stored<Grant>>, VaultError> {
        let now = millis(self.0.clock.now().wall);
        let lanes: Vec<LaneId> = providers.iter().map(|provider| self.lane(provider)).collect();
        let lanes: Vec<&[u8]> = lanes.iter().map(|lane| &lane[..]).collect();
        let most = bounded(most);
        let sql = &self.0.postgres.0.sql.questions.warns;
        let rows = self.0.asked(sql, &[(&now, Type::INT8), (&most, Type::INT8), (&lanes, Type::BYTEA_ARRAY)]).await?;
        self.0.opened(self.0.found(&rows)?).await
    }

    /// Grants that serve nobody and are no graves, in the order of names; at most `most`, and [`MAX_READS`]. With each page, where the next
    /// one begins, if there may be one.
    pub async fn unfinished(
        &self,
        after: Option<Place>,
        most: usize,
    ) -> Result<(Vec<Stored<Grant>>, Option<Place>), VaultError> {
        let after = after.map_or(Vec::new(), |Place(name)| name.as_bytes().to_vec());
        let found = self.0.some(&self.0.postgres.0.sql.questions.unfinished, &after, Type::BYTEA, most).await?;
        // Also where the last cannot be read, or none can.
        let next = found.last().filter(|_| found.len() >= most.min(MAX_READS)).map(|found| Place(found.name));
        Ok((self.0.opened(found).await?, next))
    }

    /// What is remembered of grants that were gone before that moment, the oldest first; at most `most`, and [`MAX_READS`].
    pub async fn graves_before(&self, moment: Timestamp, most: usize) -> Result<Vec<Stored<Grant>>, VaultError> {
        self.0.some_grants(&self.0.postgres.0.sql.questions.graves, &millis(moment), Type::INT8, most).await
    }

    /// How many grants that are gone are remembered.
    pub async fn grave_count(&self) -> Result<u64, VaultError> {
        let rows = self.0.asked(&self.0.postgres.0.sql.questions.grave_count, &[]).await?;
        let count: i64 = rows.first().map_or(Ok(0), |row| cell(row, 0)).map_err(|error| self.0.failed(error))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Grants whose consent ends `within` that time from now, or ends and is not active; the soonest to end first, at most `most`, and
    /// [`MAX_READS`]. Looks at every grant.
    pub async fn soonest_to_end(&self, within: Duration, most: usize) -> Result<Vec<Stored<Grant>>, VaultError> {
        let end = millis(self.0.clock.now().wall + within);
        self.0.some_grants(&self.0.postgres.0.sql.questions.soonest, &end, Type::INT8, most).await
    }

    /// The place of an organization in the order of names, whether or not there is one of that id.
    pub fn place_of(&self, id: &OrganizationId) -> Place {
        Place(self.0.namer.name(Kind::Organization, id.as_str().as_bytes()))
    }

    /// A page of organizations in the order of names; at most `most`, and [`MAX_READS`]. With it, where the next one begins, if there may be
    /// one. A record that cannot be read is left out, and told in the log.
    pub async fn organizations_after(
        &self,
        after: Option<Place>,
        most: usize,
    ) -> Result<(Vec<Stored<Organization>>, Option<Place>), VaultError> {
        let (from, to) = Part::ALL.bounds(Kind::Organization);
        let from = after.map_or(from, |Place(name)| name.as_bytes().to_vec());
        let most = most.min(MAX_READS);
        let found = self.0.postgres.scan(&from, &to, most).await.map_err(|error| self.0.failed(error))?;
        let next = found.last().filter(|_| found.len() >= most).map(|found| Place(found.name));
        Ok((self.0.opened(found).await?, next))
    }
}

/// How many are read at once at most, as the database is told.
fn bounded(most: usize) -> i64 {
    i64::try_from(most.min(MAX_READS)).unwrap_or(i64::MAX)
}

impl Inner {
    pub(super) async fn asked(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, VaultError> {
        self.postgres.0.query(sql, parameters).await.map_err(|error| self.failed(error))
    }

    /// The grants that a statement finds which takes one parameter and how many there are to be.
    async fn some_grants(
        &self,
        sql: &str,
        parameter: &(dyn ToSql + Sync),
        kind: Type,
        most: usize,
    ) -> Result<Vec<Stored<Grant>>, VaultError> {
        self.opened(self.some(sql, parameter, kind, most).await?).await
    }

    async fn some(
        &self,
        sql: &str,
        parameter: &(dyn ToSql + Sync),
        kind: Type,
        most: usize,
    ) -> Result<Vec<Found>, VaultError> {
        self.found(&self.asked(sql, &[(parameter, kind), (&bounded(most), Type::INT8)]).await?)
    }

    fn found(&self, rows: &[Row]) -> Result<Vec<Found>, VaultError> {
        let found: Result<Vec<Found>, _> = rows.iter().map(found).collect();
        found.map_err(|error| self.failed(error))
    }

    /// Opens records, in their order. One that cannot be read is logged and left out; so is one that is gone.
    async fn opened<R: Record>(&self, found: Vec<Found>) -> Result<Vec<Stored<R>>, VaultError> {
        let mut opened = Vec::with_capacity(found.len());
        for found in found {
            match self.open(found).await {
                Ok(stored) => opened.extend(stored),
                // The keys cannot be read again now.
                Err(error) if error.passes() => return Err(error),
                Err(error) => tracing::error!(%error, "a record cannot be read, and is left out"),
            }
        }
        Ok(opened)
    }
}
