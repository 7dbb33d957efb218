//! A commit: changes are sealed under one number, and given to the database with the claims that they are made under.
//!
//! Of a grant the database learns in clear: a keyed hash of its provider, its state, when its consent ends, a keyed hash of the person
//! that gave it, and keyed hashes of the secrets that it has and had; of everything else a keyed name, when it was written, and how long it is.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{
    super::{Batch, Dates, Expected, Facts, Lease, MAX_READS, MAX_WRITES, PostgresError, Work, Write},
    Hold, Inner, Store,
    hold::Noted,
};
use crate::{
    model::{Fingerprint, Grant, GrantId, State},
    task,
    vault::{
        Change, Expectation, VaultError,
        codec::{Encoder, Record},
        name::{Kind, Name},
        shared::random_id,
    },
};

/// How often a commit is tried that met others: each time with what they made of it.
const TRIES: usize = 8;
/// What it waits in between, at most.
const PAUSE: Duration = Duration::from_millis(50);
/// How the plaintext of a tombstone begins, which no record does: the id of what was deleted follows.
pub(super) const TOMBSTONE: u8 = 0xff;

impl Store {
    /// Commits all of `changes` or none, and gives their number: the version of every record that they write. When it returns, they are
    /// durable and every read of every process sees them.
    ///
    /// For what belongs to no grant that exists: new grants with what belongs to them, strays, and records that are no grant's. Of
    /// those the last who writes is right, unless an [`Expectation`] says more.
    ///
    /// A commit that was begun goes on by itself if this future is dropped. It waits as long as its outcome is unknown. After an error
    /// nothing was changed, and nothing will be.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<u64, VaultError> {
        self.commit_under(Vec::new(), changes, false).await
    }

    /// As [`commit`](Self::commit), for grants that are held: their records are written over whatever is there. The holds are prolonged.
    ///
    /// [`VaultError::Fenced`]: another process has taken one of the grants over, and has perhaps changed it. It is to be held and read anew.
    pub async fn commit_held(&self, holds: &[&Hold], changes: Vec<Change>) -> Result<u64, VaultError> {
        self.commit_under(holds.iter().copied().cloned().collect(), changes, false).await
    }

    /// As [`commit_held`](Self::commit_held), and gives the holds up in the same commit, as far as nobody else here shares them.
    pub async fn commit_last(&self, holds: Vec<Hold>, changes: Vec<Change>) -> Result<u64, VaultError> {
        self.commit_under(holds, changes, true).await
    }

    async fn commit_under(&self, holds: Vec<Hold>, changes: Vec<Change>, last: bool) -> Result<u64, VaultError> {
        let plan = Plan::of(&self.0, &holds, changes)?;
        let names: Vec<Name> = plan.entries.iter().map(|entry| entry.name).collect();
        let inner = Arc::clone(&self.0);
        let started = inner.clock.boot();
        // With the holds in it, so that none is given up before it is over.
        let task = task::spawn(async move { inner.commit(&plan, &holds, last).await });
        let number =
            task.await.unwrap_or_else(|error| Err(VaultError::Engine { detail: format!("a commit died: {error}") }))?;
        self.0.metrics.vault_written(self.0.clock.boot().saturating_sub(started));
        self.0.postgres.wrote();
        // Whoever made it knows it, and need not be told.
        let mut followed = self.0.followed.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            followed.own.add(name, number);
        }
        drop(followed);
        Ok(number)
    }
}

impl Inner {
    async fn commit(&self, plan: &Plan, holds: &[Hold], last: bool) -> Result<u64, VaultError> {
        let ends: Vec<bool> = holds.iter().map(|hold| last && Arc::strong_count(&hold.0) == 1).collect();
        for (hold, _) in holds.iter().zip(&ends).filter(|(_, ends)| **ends) {
            // Whoever wants it from here on asks the database, and waits for this commit there.
            hold.0.doubted();
        }
        let mut tried = 0;
        loop {
            tried += 1;
            let asked = self.clock.boot();
            let (batch, number) = self.seal(plan, holds, &ends)?;
            let error = match self.postgres.commit(batch).await {
                Ok(()) => {
                    for (hold, ends) in holds.iter().zip(&ends) {
                        hold.0.note(plan.noted(hold.grant(), holds));
                        if *ends {
                            hold.0.is_over.store(true, Ordering::Release);
                        } else {
                            hold.0.prolonged(asked);
                        }
                    }
                    return Ok(number);
                }
                Err(error) => error,
            };
            match &error {
                PostgresError::Behind if tried < TRIES => self.catch_up(plan).await?,
                PostgresError::KeysChanged if tried < TRIES => self.read_keys_again().await?,
                PostgresError::Busy(_) if tried < TRIES => tokio::time::sleep(PAUSE).await,
                // Two have made the same record at once, which both may write.
                PostgresError::Conflict if tried < TRIES && plan.is_unconditional() => {
                    tokio::time::sleep(PAUSE).await;
                }
                PostgresError::Fenced => {
                    for hold in holds {
                        hold.0.doubted();
                    }
                    return Err(VaultError::Fenced);
                }
                _ => return Err(self.failed(error)),
            }
        }
    }

    /// Takes note of the versions that are there.
    async fn catch_up(&self, plan: &Plan) -> Result<(), VaultError> {
        let names: Vec<Name> = plan.entries.iter().map(|entry| entry.name).collect();
        for names in names.chunks(MAX_READS) {
            for found in self.postgres.read(names).await.map_err(|error| self.failed(error))? {
                self.saw(found.version);
            }
        }
        Ok(())
    }

    /// Seals what is planned under the next number.
    fn seal(&self, plan: &Plan, holds: &[Hold], ends: &[bool]) -> Result<(Batch, u64), VaultError> {
        // Before anything is sealed: should the keys change now, the database says so.
        let keyring = self.keys_version();
        let number = self.highest.fetch_add(1, Ordering::AcqRel) + 1;
        let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = plan.entries.iter().map(|entry| {
            let sealed = entry.seal(&mut encoder, |plaintext| self.cipher.seal(&entry.name, number, plaintext))?;
            let tombstone = match &sealed {
                Some(_) => None,
                None => Some(self.cipher.seal(&entry.name, number, &[&[TOMBSTONE][..], &entry.id].concat())?),
            };
            Ok(Write { name: entry.name, expected: entry.expected, version: number, sealed, tombstone })
        });
        let then = |ends: bool| if ends { Lease::Ends } else { Lease::For(self.lease) };
        let batch = Batch {
            writes: writes.collect::<Result<_, VaultError>>()?,
            work: plan.work.clone(),
            fences: holds.iter().zip(ends).filter_map(|(hold, ends)| hold.0.fence(then(*ends))).collect(),
            fingerprints: plan.fingerprints.clone(),
            new: plan.new.clone(),
            keyring,
        };
        Ok((batch, number))
    }
}

/// What is to be written, each record once.
struct Plan {
    entries: Vec<Entry>,
    work: Vec<Work>,
    fingerprints: Vec<(Fingerprint, Name)>,
    new: Vec<Fingerprint>,
}

struct Entry {
    name: Name,
    id: Vec<u8>,
    expected: Expected,
    change: Change,
}

impl Plan {
    fn of(inner: &Inner, holds: &[Hold], changes: Vec<Change>) -> Result<Self, VaultError> {
        if changes.len() > MAX_WRITES {
            return Err(VaultError::TooLarge { what: "a batch", bytes: changes.len(), limit: MAX_WRITES });
        }
        let mut plan = Self { entries: Vec::new(), work: Vec::new(), fingerprints: Vec::new(), new: Vec::new() };
        let (mut places, mut expected) = (HashMap::new(), HashMap::new());
        for change in changes {
            let (kind, id) = match &change {
                Change::Expect(Expectation::NewSecret(fingerprint)) => {
                    plan.new.push(*fingerprint);
                    continue;
                }
                Change::Expect(Expectation::Organization(id, sequence)) => {
                    let name = inner.namer.name(Kind::Organization, id.as_str().as_bytes());
                    inner.saw(sequence.unwrap_or(0));
                    expected.insert(name, sequence.map_or(Expected::Nothing, Expected::Version));
                    continue;
                }
                change => target(change),
            };
            let name = inner.namer.name(kind, &id);
            let expected = may_write(&change, holds)?;
            let entry = Entry { name, id, expected, change };
            // Of several changes of one record the last counts.
            if let Some(place) = places.get(&name) {
                plan.entries[*place] = entry;
            } else {
                places.insert(name, plan.entries.len());
                plan.entries.push(entry);
            }
        }
        for (name, expected) in expected {
            let place = places.get(&name).ok_or_else(|| fault("a record is expected and not written"))?;
            plan.entries[*place].expected = expected;
        }
        plan.add_work(inner, holds);
        Ok(plan)
    }

    /// What the grants among the entries mean for what the database knows in clear.
    fn add_work(&mut self, inner: &Inner, holds: &[Hold]) {
        for entry in &self.entries {
            match &entry.change {
                Change::PutGrant(grant) => {
                    let dates = self.dates(inner, grant, holds);
                    self.work.push(Work::Put(Facts::of(&inner.derived, entry.name, grant, dates)));
                    let all: HashSet<Fingerprint> = grant.spent.iter().copied().chain([grant.fingerprint]).collect();
                    self.fingerprints.extend(all.into_iter().map(|fingerprint| (fingerprint, entry.name)));
                }
                Change::DeleteGrant(_) => self.work.push(Work::Gone(entry.name)),
                _ => {}
            }
        }
    }

    /// The dates of a grant that is written. One that is in doubt is due by its intent: where nobody here knows that, whoever claims the
    /// grant next works them out.
    fn dates(&self, inner: &Inner, grant: &Grant, holds: &[Hold]) -> Option<Dates> {
        match self.noted(grant.id, holds) {
            Noted::Intent(intent) => inner.dates(grant, Some(&intent)),
            Noted::Unknown if matches!(grant.state, State::InDoubt(_)) => None,
            Noted::Unknown | Noted::Nothing => inner.dates(grant, None),
        }
    }

    /// What is known of a grant's intent once this is written.
    fn noted(&self, grant: GrantId, holds: &[Hold]) -> Noted {
        let written = self.entries.iter().find_map(|entry| match &entry.change {
            Change::PutIntent(intent) if intent.grant == grant => Some(Noted::Intent(intent.clone())),
            Change::DeleteIntent(id) if *id == grant => Some(Noted::Nothing),
            _ => None,
        });
        // One that nobody holds is new.
        written.unwrap_or_else(|| hold_of(holds, grant).map_or(Noted::Nothing, |hold| hold.0.noted()))
    }

    /// Whether nothing in it depends on what is there, but for claims.
    fn is_unconditional(&self) -> bool {
        self.new.is_empty() && self.entries.iter().all(|entry| entry.expected == Expected::Anything)
    }
}

impl Entry {
    /// The sealed record; `None` where it is deleted.
    fn seal(
        &self,
        encoder: &mut Encoder,
        seal: impl FnOnce(&[u8]) -> Result<Vec<u8>, VaultError>,
    ) -> Result<Option<Vec<u8>>, VaultError> {
        fn put<R: Record>(
            encoder: &mut Encoder,
            record: &R,
            seal: impl FnOnce(&[u8]) -> Result<Vec<u8>, VaultError>,
        ) -> Result<Option<Vec<u8>>, VaultError> {
            encoder.encode(record, seal).map(Some)
        }
        match &self.change {
            Change::PutGrant(grant) => put(encoder, &**grant, seal),
            Change::PutOrganization(organization) => put(encoder, &**organization, seal),
            Change::PutIntent(intent) => put(encoder, intent, seal),
            Change::PutStray(stray) => put(encoder, &**stray, seal),
            Change::PutRow(row) => put(encoder, row, seal),
            Change::PutAwaiting(awaiting) => put(encoder, &**awaiting, seal),
            Change::PutRevokedLinks(revoked) => put(encoder, revoked, seal),
            Change::DeleteGrant(_)
            | Change::DeleteOrganization(_)
            | Change::DeleteIntent(_)
            | Change::DeleteRow(_)
            | Change::DeleteAwaiting(_)
            | Change::DeleteRevokedLinks(_)
            | Change::Expect(_) => Ok(None),
        }
    }
}

/// Which record a change is of.
fn target(change: &Change) -> (Kind, Vec<u8>) {
    match change {
        Change::PutGrant(grant) => (Kind::Grant, grant.id.as_bytes().to_vec()),
        Change::DeleteGrant(id) => (Kind::Grant, id.as_bytes().to_vec()),
        Change::PutOrganization(organization) => (Kind::Organization, organization.id.as_str().into()),
        Change::DeleteOrganization(id) => (Kind::Organization, id.as_str().into()),
        Change::PutIntent(intent) => (Kind::Intent, intent.grant.as_bytes().to_vec()),
        Change::DeleteIntent(id) => (Kind::Intent, id.as_bytes().to_vec()),
        Change::PutStray(_) => (Kind::Stray, random_id().to_vec()),
        Change::PutRow(row) => (Kind::Event, row.event.id.as_bytes().to_vec()),
        Change::DeleteRow(id) => (Kind::Event, id.as_bytes().to_vec()),
        Change::PutAwaiting(awaiting) => (Kind::Awaiting, awaiting.grant.as_bytes().to_vec()),
        Change::DeleteAwaiting(id) => (Kind::Awaiting, id.as_bytes().to_vec()),
        Change::PutRevokedLinks(revoked) => (Kind::RevokedLinks, revoked.organization.as_str().into()),
        Change::DeleteRevokedLinks(id) => (Kind::RevokedLinks, id.as_str().into()),
        Change::Expect(_) => (Kind::Meta, Vec::new()),
    }
}

/// What a change finds that is made under these holds: a grant's records can be written by who holds it, or made by who makes the grant.
fn may_write(change: &Change, holds: &[Hold]) -> Result<Expected, VaultError> {
    let (grant, makes) = match change {
        Change::PutGrant(grant) => (grant.id, true),
        Change::PutIntent(intent) => (intent.grant, true),
        Change::PutAwaiting(awaiting) => (awaiting.grant, true),
        Change::DeleteGrant(id) | Change::DeleteIntent(id) | Change::DeleteAwaiting(id) => (*id, false),
        _ => return Ok(Expected::Anything),
    };
    match (hold_of(holds, grant), makes) {
        (Some(hold), _) if hold.is_of_a_grant() => Ok(Expected::Anything),
        // There is none: what is left of it may go, and nothing can be added.
        (Some(_), false) => Ok(Expected::Anything),
        (Some(_), true) => Err(VaultError::Fenced),
        (None, true) => Ok(Expected::Never),
        (None, false) => Err(fault("a grant that nobody holds was to be changed")),
    }
}

fn hold_of(holds: &[Hold], grant: GrantId) -> Option<&Hold> {
    holds.iter().find(|hold| hold.grant() == grant)
}

fn fault(what: &str) -> VaultError {
    VaultError::Engine { detail: format!("{what}; this is a fault of the worker") }
}
