//! What the database is told in clear about a grant, beside its sealed record: enough to find what is to be done, and to count.

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};

use crate::{
    model::{FailingReason, Grant, State, Timestamp},
    vault::{derived::Derived, name::Name},
};

/// The last moment that a date is written as: the end of the year 9999. Beyond are dates that mean "never", and some that a server
/// cannot keep.
const LAST_MOMENT: Timestamp = Timestamp::from_millis(253_402_300_799_000);

/// When something is to be done about a grant, as whoever wrote it worked it out by the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dates {
    /// When it is to be exchanged next; `None`: not by itself.
    pub due: Option<Timestamp>,
    /// When there will be something to tell of its consent's end; `None`: never.
    pub warns: Option<Timestamp>,
    /// When its access token ends; `None`: it has none.
    pub lapses: Option<Timestamp>,
    /// How long it is from one refresh to the next; `None`: it is not refreshed.
    pub every: Option<Duration>,
}

/// What the database knows in clear about a grant.
#[derive(Clone, Debug)]
pub enum Work {
    /// Written over whatever was there, but for the claim.
    Put(Facts),
    /// The grant is gone.
    Gone(Name),
}

/// What is written about a grant.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The name of its record.
    pub name: Name,
    /// Its provider, by a keyed hash.
    pub lane: [u8; 16],
    /// How it stands.
    pub standing: Standing,
    /// When its consent ends; of a grave, since when it is one.
    pub ends: Option<Timestamp>,
    /// Whose it is.
    pub person: Person,
    /// How many organizations it serves.
    pub organizations: u32,
    /// An operator's pause lies over its state.
    pub paused: bool,
    /// Its consent's end was assumed.
    pub end_assumed: bool,
    /// When one of its organizations was last fetched, as its record says; a later moment that the database knows stays.
    pub fetched: Option<Timestamp>,
    /// `None`: whoever wrote it does not work them out. Then it counts as due once, for whoever does.
    pub dates: Option<Dates>,
}

/// A grant's state, as the database knows it. The numbers are part of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Standing {
    /// The last exchange went well.
    Active = 1,
    /// Exchanges fail for a reason of its own.
    Failing = 2,
    /// A one-time token was sent, and the outcome is unknown.
    InDoubt = 3,
    /// It is dead.
    Lost = 4,
    /// It is gone, and its spent tokens are remembered.
    Grave = 5,
    /// Exchanges fail because of the provider: it does not answer, or refuses the client.
    Outage = 6,
}

impl Standing {
    /// That of a grant.
    pub(in crate::vault) fn of(grant: &Grant) -> Self {
        match grant.state {
            State::Active => Self::Active,
            State::Failing(FailingReason::ProviderUnavailable | FailingReason::ClientRefused) => Self::Outage,
            State::Failing(_) => Self::Failing,
            State::InDoubt(_) => Self::InDoubt,
            State::Lost if is_grave(grant) => Self::Grave,
            State::Lost => Self::Lost,
        }
    }
}

/// Whether it is kept for its spent tokens alone: it has no secret and serves nobody.
fn is_grave(grant: &Grant) -> bool {
    grant.organizations.is_empty() && grant.credential.secret().expose().is_empty()
}

/// Whose living grant it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Person {
    /// Somebody's, and nobody knows whose: perhaps the same person's as any other.
    Unknown,
    /// Nobody's: it does not live, or is a key that names no person.
    Nobody,
    /// Who that is, by a keyed hash of provider and subject.
    Known([u8; 16]),
}

impl Person {
    fn bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Unknown => None,
            Self::Nobody => Some(Vec::new()),
            Self::Known(hash) => Some(hash.to_vec()),
        }
    }

    fn of(derived: &Derived, grant: &Grant) -> Self {
        use crate::model::GrantKind::{ApiKey, Consent};
        match (grant.state, &grant.subject, grant.kind()) {
            (State::Lost, ..) | (_, None, ApiKey) => Self::Nobody,
            (_, Some(subject), _) => Self::Known(derived.person(&grant.provider, subject)),
            (_, None, Consent) => Self::Unknown,
        }
    }
}

impl Facts {
    /// Those of a grant, with the dates that somebody worked out.
    pub(in crate::vault) fn of(derived: &Derived, name: Name, grant: &Grant, dates: Option<Dates>) -> Self {
        let (standing, consent) = (Standing::of(grant), grant.consent.as_ref());
        Self {
            name,
            lane: derived.lane(&grant.provider),
            standing,
            ends: match standing {
                Standing::Grave => Some(grant.since),
                _ => consent.and_then(|consent| consent.expires_at),
            },
            person: Person::of(derived, grant),
            organizations: u32::try_from(grant.organizations.len()).unwrap_or(u32::MAX),
            paused: grant.paused,
            end_assumed: consent.is_some_and(|consent| consent.assumed),
            fetched: grant.last_fetched_at,
            dates,
        }
    }
}

/// What is written about grants as the parameters of a statement, column by column.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) names: Vec<Vec<u8>>,
    /// `None`: the grant is gone; or, where only dates are written, nothing but those is known.
    lanes: Vec<Option<Vec<u8>>>,
    states: Vec<i16>,
    ends: Vec<Option<i64>>,
    persons: Vec<Option<Vec<u8>>>,
    organizations: Vec<i32>,
    paused: Vec<bool>,
    assumed: Vec<bool>,
    fetched: Vec<Option<i64>>,
    dated: Vec<bool>,
    due: Vec<Option<i64>>,
    warns: Vec<Option<i64>>,
    lapses: Vec<Option<i64>>,
    every: Vec<Option<i64>>,
}

impl Columns {
    pub(super) fn add(&mut self, work: &Work) {
        match work {
            Work::Put(facts) => self.add_facts(facts),
            Work::Gone(name) => self.add_dates(*name, None),
        }
    }

    pub(super) fn add_facts(&mut self, facts: &Facts) {
        self.add_row(facts.name, Some(facts.lane.to_vec()), facts.dates);
        let last = self.names.len() - 1;
        self.states[last] = facts.standing as i16;
        self.ends[last] = facts.ends.map(millis);
        self.persons[last] = facts.person.bytes();
        self.organizations[last] = i32::try_from(facts.organizations).unwrap_or(i32::MAX);
        self.paused[last] = facts.paused;
        self.assumed[last] = facts.end_assumed;
        self.fetched[last] = facts.fetched.map(millis);
    }

    pub(super) fn add_dates(&mut self, name: Name, dates: Option<Dates>) {
        self.add_row(name, None, dates);
    }

    fn add_row(&mut self, name: Name, lane: Option<Vec<u8>>, dates: Option<Dates>) {
        self.names.push(name.as_bytes().to_vec());
        self.lanes.push(lane);
        self.states.push(0);
        self.ends.push(None);
        self.persons.push(None);
        self.organizations.push(0);
        self.paused.push(false);
        self.assumed.push(false);
        self.fetched.push(None);
        self.dated.push(dates.is_some());
        let dates = dates.unwrap_or_default();
        self.due.push(dates.due.map(millis));
        self.warns.push(dates.warns.map(millis));
        self.lapses.push(dates.lapses.map(millis));
        self.every.push(dates.every.map(|every| i64::try_from(every.as_millis()).unwrap_or(i64::MAX)));
    }

    /// As they follow each other in every statement that takes them.
    pub(super) fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 14] {
        [
            (&self.names, Type::BYTEA_ARRAY),
            (&self.lanes, Type::BYTEA_ARRAY),
            (&self.states, Type::INT2_ARRAY),
            (&self.ends, Type::INT8_ARRAY),
            (&self.persons, Type::BYTEA_ARRAY),
            (&self.organizations, Type::INT4_ARRAY),
            (&self.paused, Type::BOOL_ARRAY),
            (&self.assumed, Type::BOOL_ARRAY),
            (&self.fetched, Type::INT8_ARRAY),
            (&self.dated, Type::BOOL_ARRAY),
            (&self.due, Type::INT8_ARRAY),
            (&self.warns, Type::INT8_ARRAY),
            (&self.lapses, Type::INT8_ARRAY),
            (&self.every, Type::INT8_ARRAY),
        ]
    }
}

/// A moment for the server, in milliseconds since 1970.
pub(super) fn millis(moment: Timestamp) -> i64 {
    moment.clamp(Timestamp::default(), LAST_MOMENT).as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_no_server_keeps_is_written_as_the_last_or_first_that_one_does() {
        assert_eq!(millis(Timestamp::from_millis(i64::MAX)), 253_402_300_799_000);
        assert_eq!(millis(Timestamp::from_millis(i64::MIN)), 0);
        assert_eq!(millis(Timestamp::from_millis(1_800_000_000_123)), 1_800_000_000_123);
    }

    #[test]
    fn every_column_has_a_value_for_every_grant() {
        let mut columns = Columns::default();
        let name = crate::vault::name::Namer::new(&[0; 32]).name(crate::vault::name::Kind::Grant, b"1");
        columns.add(&Work::Gone(name));
        columns.add_dates(name, Some(Dates::default()));
        let lengths = [
            columns.names.len(),
            columns.lanes.len(),
            columns.states.len(),
            columns.ends.len(),
            columns.persons.len(),
            columns.organizations.len(),
            columns.paused.len(),
            columns.assumed.len(),
            columns.fetched.len(),
            columns.dated.len(),
            columns.due.len(),
            columns.warns.len(),
            columns.lapses.len(),
            columns.every.len(),
        ];
        assert_eq!(lengths, [2; 14]);
    }
}
