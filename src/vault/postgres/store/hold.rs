//! Holds: claims of grants as this process has them, each shared by all that work on its grant here.
//!
//! A hold knows the number of its claim. One that ran out and was taken anew has another number, also where nobody else had it
//! meanwhile: whoever still has the old hold is refused at the next commit, and looks at the grant again.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    super::{
        PostgresError,
        claims::{Claim, Claimed, Lease},
        commit::Fence,
    },
    Inner, Release, Store,
};
use crate::{
    model::{GrantId, Intent},
    task,
    vault::{
        VaultError,
        name::{Kind, Name},
    },
};

/// How often a claim that another process has is asked for: at first, and after a while.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The claims of this process, by the names of their grants.
pub(super) type Holds = HashMap<Name, Weak<Held>>;

/// The right to change one grant that exists, for a while; given up when it is dropped, or by [`Store::commit_last`].
#[derive(Clone)]
pub struct Hold(pub(super) Arc<Held>);

pub(super) struct Held {
    inner: Arc<Inner>,
    grant: GrantId,
    pub(super) name: Name,
    /// `None`: there was no such grant, and there is nothing to hold.
    pub(super) number: Option<u64>,
    /// On the boot-time clock; zero once the claim was found to be another's.
    good_until: Mutex<Duration>,
    /// It was given up by a commit.
    pub(super) is_over: AtomicBool,
    /// The exchange that was noted under it, as far as it is known here whether there is one.
    noted: Mutex<Noted>,
}

/// What is known of a grant's intent.
#[derive(Clone, Debug)]
pub(super) enum Noted {
    /// Nothing: it may have one.
    Unknown,
    /// It has none.
    Nothing,
    /// It has this one.
    Intent(Intent),
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("number", &self.0.number).finish_non_exhaustive()
    }
}

impl Hold {
    /// The grant that it is of.
    pub fn grant(&self) -> GrantId {
        self.0.grant
    }

    /// Until when, on the boot-time clock, no other process works on the grant, whatever has happened to this one.
    pub fn good_until(&self) -> Duration {
        *self.0.good_until()
    }

    /// Whether there was a grant to hold. Under a hold of none, nothing but strays can be written for it.
    pub fn is_of_a_grant(&self) -> bool {
        self.0.number.is_some()
    }
}

impl Held {
    /// A claim that was asked for at that moment.
    pub(super) fn of(inner: &Arc<Inner>, grant: GrantId, claim: Claim, asked: Duration) -> Self {
        Self::new(inner, grant, claim.name, Some(claim.number), asked)
    }

    fn new(inner: &Arc<Inner>, grant: GrantId, name: Name, number: Option<u64>, asked: Duration) -> Self {
        Self {
            inner: Arc::clone(inner),
            grant,
            name,
            number,
            good_until: Mutex::new(good_until(asked, inner.lease)),
            is_over: AtomicBool::new(false),
            noted: Mutex::new(Noted::Unknown),
        }
    }

    /// What was written of its intent under this claim.
    pub(super) fn noted(&self) -> Noted {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// That was committed.
    pub(super) fn note(&self, noted: Noted) {
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = noted;
    }

    fn good_until(&self) -> std::sync::MutexGuard<'_, Duration> {
        self.good_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was prolonged by what was asked for at that moment.
    pub(super) fn prolonged(&self, asked: Duration) {
        let until = good_until(asked, self.inner.lease);
        let mut good_until = self.good_until();
        *good_until = (*good_until).max(until);
    }

    /// It may be another's: the next who wants it asks the database.
    pub(super) fn doubted(&self) {
        *self.good_until() = Duration::ZERO;
    }

    /// As a commit names it.
    pub(super) fn fence(&self, then: Lease) -> Option<Fence> {
        self.number.map(|number| Fence { name: self.name, number, then })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holds = self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if holds.get(&self.name).is_some_and(|held| held.strong_count() == 0) {
            holds.remove(&self.name);
        }
        drop(holds);
        if let Some(number) = self.number
            && !self.is_over.load(Ordering::Acquire)
        {
            // Should nobody be there to give it up, it runs out.
            let _ = self.inner.release.send(Release::Claim(Claim { name: self.name, number }));
        }
    }
}

/// Until when a claim is good that was asked for at that moment: a tenth less than for the server, which began to count later.
fn good_until(asked: Duration, lease: Duration) -> Duration {
    asked + lease.mul_f64(0.9)
}

impl Store {
    /// Claims a grant for this process; what it has already is shared, and prolonged where it is half over. While another has it, it is
    /// asked for again until `patience` is over, and then it is [`VaultError::Held`].
    ///
    /// Whoever holds a grant reads it before it decides: another may have changed it until then.
    pub async fn hold(&self, grant: GrantId, patience: Duration) -> Result<Hold, VaultError> {
        let name = self.0.namer.name(Kind::Grant, grant.as_bytes());
        let asking = async {
            let mut pause = FIRST_PAUSE;
            loop {
                if let Some(hold) = self.try_hold(grant, name).await? {
                    return Ok(hold);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        if patience.is_zero() {
            return self.try_hold(grant, name).await?.ok_or(VaultError::Held);
        }
        tokio::time::timeout(patience, asking).await.unwrap_or(Err(VaultError::Held))
    }

    /// Claims a grant, unless another process has it.
    async fn try_hold(&self, grant: GrantId, name: Name) -> Result<Option<Hold>, VaultError> {
        let inner = &self.0;
        let known = inner.holds.lock().unwrap_or_else(PoisonError::into_inner).get(&name).and_then(Weak::upgrade);
        let known = known.filter(|held| held.number.is_some());
        let asked = inner.clock.boot();
        if let Some(held) = &known
            && *held.good_until() > asked + inner.lease / 2
        {
            return Ok(known.map(Hold));
        }
        let mine = known.as_ref().and_then(|held| held.number).unwrap_or(0);
        let number = match inner.claim(name, mine).await.map_err(|error| inner.failed(error))? {
            Claimed::Held => return Ok(None),
            Claimed::Won(claim) => Some(claim.number),
            Claimed::Unknown => None,
        };
        if let Some(held) = known
            && held.number == number
        {
            held.prolonged(asked);
            return Ok(Some(Hold(held)));
        }
        let held = Arc::new(Held::new(inner, grant, name, number, asked));
        if number.is_some() {
            inner.enter(&held);
        }
        Ok(Some(Hold(held)))
    }

    /// Gives a hold up, unless others in this process share it. It is done in the background.
    pub fn release(&self, hold: Hold) {
        drop(hold);
    }
}

impl Inner {
    /// Lets all in this process share a claim; false where they have a later one of the grant already.
    pub(super) fn enter(&self, held: &Arc<Held>) -> bool {
        // Kept until the lock is free, which its end takes.
        let there;
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        there = holds.get(&held.name).and_then(Weak::upgrade);
        let is_latest = there.as_ref().is_none_or(|there| there.number < held.number);
        if is_latest {
            holds.insert(held.name, Arc::downgrade(held));
        }
        drop(holds);
        is_latest
    }

    /// Asks for a claim. Should nobody wait for the answer any more when it comes, what was claimed is given up.
    async fn claim(self: &Arc<Self>, name: Name, mine: u64) -> Result<Claimed, PostgresError> {
        let (answer, answered) = oneshot::channel();
        let inner = Arc::clone(self);
        task::spawn(async move {
            let claimed = inner.postgres.claim_one(name, mine, inner.lease, inner.seen()).await;
            if let Err(Ok(Claimed::Won(claim))) = answer.send(claimed)
                && claim.number != mine
            {
                let _ = inner.release.send(Release::Claim(claim));
            }
        });
        match tokio::time::timeout(self.postgres.0.statement_timeout, answered).await {
            Ok(Ok(claimed)) => claimed,
            Ok(Err(_)) => Err(PostgresError::Failed("a claim died".to_owned())),
            Err(_) => Err(PostgresError::Slow),
        }
    }
}
