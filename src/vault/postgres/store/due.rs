//! What is due, claimed in batches; and what was claimed and is not to be exchanged yet, put off.
//!
//! A grant's dates are worked out by whoever commits it, with what [`Store::date_by`] was given. Those of a grant that was written without
//! (by a tool, by an older worker, by a move) are worked out here when it is claimed, once.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio_postgres::types::{ToSql, Type};

use super::{
    super::{
        Claim, Dates, Due, Facts, Found, LaneId, PostgresError, cell,
        claims::waited_for,
        work::{Columns, millis},
    },
    Hold, Inner, Store,
    hold::Held,
};
use crate::{
    model::{Grant, GrantId, Intent, ProviderName, Timestamp},
    task,
    vault::{
        Stored, VaultError,
        name::{Kind, Name},
    },
};

/// How many grants are claimed at once, at most, because they are due.
pub const MOST_DUE: u16 = 500;
/// How many grants without dates are dated on the way, at most.
const UNDATED_AT_ONCE: u16 = 250;
/// How long a grant waits whose record cannot be read: else it would be the longest due for ever, and the first to be claimed.
const UNREADABLE_PAUSE: Duration = Duration::from_hours(1);
/// How many fetches are noted in one statement, and how many grants put off.
const NOTED_AT_ONCE: usize = 1000;
/// How many grants are brought forward in one statement.
const BROUGHT_AT_ONCE: i32 = 10_000;

/// Works out a grant's dates. What it holds must not keep the vault alive.
pub type DateBy = Arc<dyn Fn(&Grant, Option<&Intent>) -> Dates + Send + Sync>;

impl Store {
    /// From now on every commit of a grant writes the dates that this works out. It is called for each, on whatever task commits, and
    /// must not wait.
    pub fn date_by(&self, by: DateBy) {
        *self.0.date_by.write().unwrap_or_else(PoisonError::into_inner) = Some(by);
    }

    /// Claims at most `most` of a provider's grants that are due and that nobody has, and reads them: those that are due longest first. A
    /// grant that comes from here is due, whatever its record says of when to try it again ([`bring_forward`](Self::bring_forward));
    /// its last fetch is the later of what the record says and what was noted.
    ///
    /// Some of those whose dates nobody wrote are dated on the way; where nobody works dates out ([`date_by`](Self::date_by)), they count
    /// as due. Of one that is claimed by others in this process meanwhile nothing is given.
    pub async fn claim_due(
        &self,
        provider: &ProviderName,
        most: u16,
    ) -> Result<Vec<(Stored<Grant>, Hold)>, VaultError> {
        let (inner, lane, most) = (Arc::clone(&self.0), self.lane(provider), most.min(MOST_DUE));
        // A task of its own: what was claimed for somebody who does not wait any more is given up.
        let task = task::spawn(async move { inner.claim_due(lane, most).await });
        task.await.unwrap_or_else(|error| Err(VaultError::Engine { detail: format!("a claim died: {error}") }))
    }

    /// Writes other dates of grants that are held, without their records, and gives the holds up as far as nobody else here shares them.
    /// It waits for no standby: dates that are lost with the primary are worked out again by whoever claims the grant then.
    pub async fn put_off(&self, put_off: Vec<(Hold, Dates)>) -> Result<(), VaultError> {
        let rows = put_off.into_iter().map(|(hold, dates)| PutOff { hold, dates: Written::Dates(dates), ends: true });
        self.0.put_off(rows.collect()).await
    }

    /// Notes when grants were last fetched, so that others know. It waits for no standby, and for nobody else: what is being written at the
    /// moment is left out.
    pub async fn fetched(&self, fetched: &[(GrantId, Timestamp)]) -> Result<(), VaultError> {
        let inner = &self.0;
        for some in fetched.chunks(NOTED_AT_ONCE) {
            let names: Vec<Vec<u8>> = some.iter().map(|(id, _)| inner.grant_name(*id).as_bytes().to_vec()).collect();
            let times: Vec<i64> = some.iter().map(|(_, at)| millis(*at)).collect();
            let postgres = inner.postgres.clone();
            let noted = waited_for(task::spawn(async move {
                let shared = &postgres.0;
                let parameters: &[(&(dyn ToSql + Sync), Type)] = &[
                    (&names, Type::BYTEA_ARRAY),
                    (&times, Type::INT8_ARRAY),
                    (&shared.allow_asynchronous, Type::BOOL),
                ];
                shared.claim(&shared.sql.fetched, parameters).await.map(drop)
            }));
            noted.await.map_err(|error| inner.failed(error))?;
        }
        Ok(())
    }

    /// After an outage: a provider's grants that fail because of it and wait are due within `spread`, at random. To do it twice is nothing.
    pub async fn bring_forward(&self, provider: &ProviderName, spread: Duration) -> Result<(), VaultError> {
        let (inner, lane) = (&self.0, self.lane(provider));
        let spread = i64::try_from(spread.as_millis()).unwrap_or(i64::MAX);
        loop {
            let postgres = inner.postgres.clone();
            let brought = waited_for(task::spawn(async move {
                let shared = &postgres.0;
                let parameters: &[(&(dyn ToSql + Sync), Type)] = &[
                    (&&lane[..], Type::BYTEA),
                    (&spread, Type::INT8),
                    (&BROUGHT_AT_ONCE, Type::INT4),
                    (&shared.allow_asynchronous, Type::BOOL),
                ];
                let rows = shared.claim(&shared.sql.bring_forward, parameters).await?;
                rows.first().map_or(Ok(0), |row| cell::<i32>(row, 0))
            }));
            if brought.await.map_err(|error| inner.failed(error))? < BROUGHT_AT_ONCE {
                return Ok(());
            }
        }
    }
}

/// A grant whose dates are written under its claim.
struct PutOff {
    hold: Hold,
    dates: Written,
    /// The hold is given up.
    ends: bool,
}

/// What is written of it.
enum Written {
    /// Its dates alone.
    Dates(Dates),
    /// All that the database is told.
    Facts(Box<Facts>),
}

impl Inner {
    /// The dates of a grant whose open intent is known, if there is one; `None`: nobody works them out.
    pub(super) fn dates(&self, grant: &Grant, intent: Option<&Intent>) -> Option<Dates> {
        let by = self.date_by.read().unwrap_or_else(PoisonError::into_inner).clone();
        by.map(|by| by(grant, intent))
    }

    fn dates_are_worked_out(&self) -> bool {
        self.date_by.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    async fn claim_due(self: &Arc<Self>, lane: LaneId, most: u16) -> Result<Vec<(Stored<Grant>, Hold)>, VaultError> {
        let asked = self.clock.boot();
        let undated = if self.dates_are_worked_out() { UNDATED_AT_ONCE } else { most };
        let claimed = self.postgres.claim_due(lane, most, undated, self.lease, self.seen()).await;
        let claimed = claimed.map_err(|error| self.failed(error))?;
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        // Held from here on: whatever fails, they are given up.
        let mut taken = Taken::of(self, &claimed, asked);
        let names: Vec<Name> = claimed.iter().map(|due| due.claim.name).collect();
        let found = self.postgres.read(&names).await.map_err(|error| self.failed(error))?;
        let mut found: HashMap<Name, Found> = found.into_iter().map(|found| (found.name, found)).collect();
        let (mut due, mut undated, mut put_off) = (Vec::new(), Vec::new(), Vec::new());
        for one in &claimed {
            let grant = match found.remove(&one.claim.name) {
                Some(found) => self.open::<Grant>(found).await,
                None => Ok(None),
            };
            let stored = match grant {
                Ok(Some(mut stored)) => {
                    stored.value.last_fetched_at = stored.value.last_fetched_at.max(one.fetched);
                    stored
                }
                Err(error) if error.passes() => return Err(error),
                unreadable => {
                    put_off.extend(taken.unreadable(self, one.claim, unreadable.err()));
                    continue;
                }
            };
            let Some(hold) = taken.hold(self, one.claim, stored.value.id) else { continue };
            if one.is_dated || !self.dates_are_worked_out() {
                due.push((stored, hold));
            } else {
                undated.push((stored, hold));
            }
        }
        for (stored, hold, is_due) in self.date(undated, &mut put_off).await? {
            if is_due && due.len() < usize::from(most) {
                due.push((stored, hold));
            }
        }
        due.truncate(usize::from(most));
        // A hold that is still shared is not given up by this.
        self.put_off(put_off).await?;
        Ok(due)
    }

    /// Works out the dates of grants, to be written, and says which of them are due.
    async fn date(
        &self,
        undated: Vec<(Stored<Grant>, Hold)>,
        put_off: &mut Vec<PutOff>,
    ) -> Result<Vec<(Stored<Grant>, Hold, bool)>, VaultError> {
        if undated.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<Name> = undated.iter().map(|(stored, _)| self.intent_name(stored.value.id)).collect();
        let mut intents = HashMap::with_capacity(names.len());
        for found in self.postgres.read(&names).await.map_err(|error| self.failed(error))? {
            let name = found.name;
            if let Some(intent) = self.open::<Intent>(found).await? {
                intents.insert(name, intent.value);
            }
        }
        let now = self.clock.now().wall;
        let mut known = Vec::with_capacity(undated.len());
        for ((stored, hold), name) in undated.into_iter().zip(names) {
            let dates = self.dates(&stored.value, intents.get(&name));
            let is_due = dates.and_then(|dates| dates.due).is_some_and(|due| due <= now);
            let facts = Facts::of(&self.derived, hold.0.name, &stored.value, dates);
            put_off.push(PutOff { hold: hold.clone(), dates: Written::Facts(Box::new(facts)), ends: !is_due });
            known.push((stored, hold, is_due));
        }
        Ok(known)
    }

    async fn put_off(&self, put_off: Vec<PutOff>) -> Result<(), VaultError> {
        for some in Chunks(put_off) {
            self.put_some_off(some).await.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    async fn put_some_off(&self, put_off: Vec<PutOff>) -> Result<(), PostgresError> {
        let (mut fences, mut over, mut columns, mut ended) = (Vec::new(), Vec::new(), Columns::default(), Vec::new());
        for PutOff { hold, dates, ends } in put_off {
            let Some(number) = hold.0.number else { continue };
            let ends = ends && Arc::strong_count(&hold.0) == 1;
            fences.push(i64::try_from(number).unwrap_or(i64::MAX));
            over.push(ends);
            match dates {
                Written::Dates(dates) => columns.add_dates(hold.0.name, Some(dates)),
                Written::Facts(facts) => columns.add_facts(&facts),
            }
            if ends {
                // Whoever wants it from here on asks the database.
                hold.0.doubted();
                ended.push(hold);
            }
        }
        if fences.is_empty() {
            return Ok(());
        }
        let postgres = self.postgres.clone();
        // With the holds in it, so that none is given up while it is written.
        waited_for(task::spawn(async move {
            let shared = &postgres.0;
            let replica = shared.replica_bytes();
            let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
                (&replica, Type::BYTEA),
                (&fences, Type::INT8_ARRAY),
                (&over, Type::BOOL_ARRAY),
                (&shared.allow_asynchronous, Type::BOOL),
            ];
            parameters.extend(columns.parameters());
            shared.claim(&shared.sql.put_off, &parameters).await?;
            for hold in &ended {
                hold.0.is_over.store(true, Ordering::Release);
            }
            Ok(())
        }))
        .await
    }

    fn grant_name(&self, id: GrantId) -> Name {
        self.namer.name(Kind::Grant, id.as_bytes())
    }

    fn intent_name(&self, id: GrantId) -> Name {
        self.namer.name(Kind::Intent, id.as_bytes())
    }
}

/// Claims that were given, until they are somebody's holds; what is left of them is given up when this is dropped.
struct Taken {
    asked: Duration,
    left: HashMap<Name, Arc<Held>>,
}

impl Taken {
    fn of(inner: &Arc<Inner>, claimed: &[Due], asked: Duration) -> Self {
        // Whose claim it is becomes known with its record.
        let nobody = GrantId::from_bytes([0; 16]);
        let held = |due: &Due| (due.claim.name, Arc::new(Held::of(inner, nobody, due.claim, asked)));
        Self { asked, left: claimed.iter().map(held).collect() }
    }

    /// The hold of a grant, which others in this process share from now on; `None` where another of them was quicker.
    fn hold(&mut self, inner: &Arc<Inner>, claim: Claim, grant: GrantId) -> Option<Hold> {
        let unnamed = self.left.remove(&claim.name)?;
        unnamed.is_over.store(true, Ordering::Release);
        let held = Arc::new(Held::of(inner, grant, claim, self.asked));
        inner.enter(&held).then_some(Hold(held))
    }

    /// A grant whose record cannot be read, which waits.
    fn unreadable(&mut self, inner: &Inner, claim: Claim, error: Option<VaultError>) -> Option<PutOff> {
        let error = error.map_or_else(|| "its record is missing".to_owned(), |error| error.to_string());
        tracing::error!(error, "a grant that is due cannot be read, and is not refreshed");
        let dates = Dates { due: Some(inner.clock.now().wall + UNREADABLE_PAUSE), ..Dates::default() };
        Some(PutOff { hold: Hold(self.left.remove(&claim.name)?), dates: Written::Dates(dates), ends: true })
    }
}

/// Parts of a list, each no longer than a statement takes.
struct Chunks(Vec<PutOff>);

impl Iterator for Chunks {
    type Item = Vec<PutOff>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0.split_off(self.0.len().min(NOTED_AT_ONCE));
        let some = std::mem::replace(&mut self.0, rest);
        (!some.is_empty()).then_some(some)
    }
}
