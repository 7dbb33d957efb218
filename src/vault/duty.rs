//! What one of the workers that share a vault does for all of them.
//!
//! Where a vault has one worker, it does all of it, and asks nobody. Where several share one, whoever has the work's lease does it. All
//! of it is harmless when it is done twice, since a process may be stopped in the middle and go on when another has
//! taken over: events have ids that follow from what happened, and what changes a grant goes through its claim.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Vault,
    postgres::{LaneId, Lease, Postgres, Store},
};
use crate::{clock::SharedClock, task};

/// How long a lease is given for. The work of a worker that died waits for so long.
const LENGTH: Duration = Duration::from_secs(30);
/// It is prolonged so often.
const PROLONGED: Duration = Duration::from_secs(8);
/// Of a lease's length, its holder does not count on one part in so many: clocks do not run alike.
const UNCOUNTED: u32 = 10;
/// How long the answer about a lease is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one worker does for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Singular {
    /// What the sweep tells and clears away: warnings, what was left unfinished, graves.
    Sweep,
    /// The digest of what ends.
    Digest,
    /// Scheduled backups.
    Backup,
    /// Deliveries to webhooks.
    Deliveries,
    /// Sealing records anew under a new data key.
    Rekey,
    /// Finding out whether a frozen provider is well again, and trying it while that is not sure.
    Probe(LaneId),
}

impl Singular {
    /// The lease's name, which the database sees.
    fn what(self) -> String {
        match self {
            Self::Sweep => "sweep".to_owned(),
            Self::Digest => "digest".to_owned(),
            Self::Backup => "backup".to_owned(),
            Self::Deliveries => "deliveries".to_owned(),
            Self::Rekey => "rekey".to_owned(),
            Self::Probe(lane) => format!("probe/{:032x}", u128::from_be_bytes(lane)),
        }
    }
}

/// One kind of singular work, as one process sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Duty(Option<Arc<Leased>>);

struct Leased {
    postgres: Postgres,
    what: String,
    clock: SharedClock,
    /// Somebody in this process is at it.
    taken: AtomicBool,
}

impl fmt::Debug for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leased").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Vault {
    /// This process's part in singular work on the vault. To be asked for once for each kind.
    pub fn duty(&self, work: Singular, clock: &SharedClock) -> Duty {
        self.sharing().map_or(Duty::always(), |store| Duty::leased(store.postgres().clone(), work, clock.clone()))
    }

    /// What this worker shares with others; `None` where it is the only one.
    pub fn sharing(&self) -> Option<Store> {
        self.store().cloned()
    }
}

impl Duty {
    /// Always this process's, which is the only one.
    pub const fn always() -> Self {
        Self(None)
    }

    /// That of whoever has the lease.
    pub fn leased(postgres: Postgres, work: Singular, clock: SharedClock) -> Self {
        Self(Some(Arc::new(Leased { postgres, what: work.what(), clock, taken: AtomicBool::new(false) })))
    }

    /// Whether others may have it.
    pub const fn is_shared(&self) -> bool {
        self.0.is_some()
    }

    /// Takes the work upon this process; `None` where another is at it, or where that cannot be told. Answers within seconds; needs a
    /// Tokio runtime.
    pub async fn begin(&self) -> Option<OnDuty> {
        let Some(leased) = &self.0 else { return Some(OnDuty(None)) };
        let place = Place::take(leased)?;
        let asked = leased.clock.boot();
        let answer = tokio::time::timeout(PATIENCE, leased.postgres.lease(&leased.what, LENGTH)).await;
        // Should the answer come later after all, that lease runs out.
        let number = match answer {
            Ok(Ok(number)) => number?,
            Ok(Err(error)) => {
                tracing::warn!(%error, what = leased.what, "nobody can tell whose work it is; it waits");
                return None;
            }
            Err(_) => return None,
        };
        let term = Arc::new(Term { leased: Arc::clone(leased), number, good_until: AtomicU64::new(counted(asked)) });
        let over = CancellationToken::new();
        let held = Held { term: Arc::clone(&term), _over: over.clone().drop_guard() };
        task::spawn(async move {
            term.keep(&over).await;
            drop(place);
        });
        Some(OnDuty(Some(held)))
    }
}

/// Until when a lease counts for its holder, in milliseconds of the boot-time clock, which was asked for then.
fn counted(asked: Duration) -> u64 {
    u64::try_from((asked + LENGTH / UNCOUNTED * (UNCOUNTED - 1)).as_millis()).unwrap_or(u64::MAX)
}

/// That this process is at it; given back when it is dropped.
struct Place(Arc<Leased>);

impl Place {
    fn take(leased: &Arc<Leased>) -> Option<Self> {
        (!leased.taken.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(leased)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

/// One lease that was given.
struct Term {
    leased: Arc<Leased>,
    number: u64,
    /// On the boot-time clock, in milliseconds; 0 once it is known to be lost.
    good_until: AtomicU64,
}

impl Term {
    fn left(&self) -> Duration {
        let until = Duration::from_millis(self.good_until.load(Ordering::Acquire));
        until.saturating_sub(self.leased.clock.boot())
    }

    /// Prolongs it until it is over or lost, and gives it up in the end.
    async fn keep(&self, over: &CancellationToken) {
        let Leased { postgres, what, clock, .. } = &*self.leased;
        let prolonging = async {
            loop {
                tokio::time::sleep(PROLONGED).await;
                let asked = clock.boot();
                match postgres.prolong(what, self.number, Lease::For(LENGTH)).await {
                    Ok(true) => self.good_until.store(counted(asked), Ordering::Release),
                    Ok(false) => {
                        self.good_until.store(0, Ordering::Release);
                        tracing::info!(what, "another worker has taken over");
                        return;
                    }
                    // It runs out by itself, should this go on.
                    Err(error) => tracing::warn!(%error, what, "the lease could not be prolonged"),
                }
            }
        };
        tokio::select! {
            biased;
            () = over.cancelled() => {}
            () = prolonging => return,
        }
        // Where nobody hears of it, it runs out.
        let _ = tokio::time::timeout(PATIENCE, postgres.prolong(what, self.number, Lease::Ends)).await;
    }
}

/// This process has the work, until this is dropped or [`is_good`](Self::is_good) no more.
#[must_use]
pub struct OnDuty(Option<Held>);

struct Held {
    term: Arc<Term>,
    _over: DropGuard,
}

impl fmt::Debug for OnDuty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDuty").finish_non_exhaustive()
    }
}

impl OnDuty {
    /// Whether the work is still this process's. To be asked before each step of it that takes a while.
    pub fn is_good(&self) -> bool {
        self.0.as_ref().is_none_or(|held| !held.term.left().is_zero())
    }

    /// The lease's number, for what is committed under it; `None` where nobody else could have the work.
    pub(super) fn number(&self) -> Option<u64> {
        self.0.as_ref().map(|held| held.term.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_learns_the_name_of_no_provider() {
        let lane = [0xab; 16];
        assert_eq!(Singular::Probe(lane).what(), format!("probe/{}", "ab".repeat(16)));
    }

    #[test]
    fn a_holder_counts_on_less_than_it_was_given() {
        let asked = Duration::from_hours(1);
        let counted = Duration::from_millis(counted(asked));
        assert!(counted < asked + LENGTH && counted > asked + PROLONGED * 2, "{counted:?}");
    }

    #[tokio::test]
    async fn who_is_alone_has_all_work_at_once_and_for_ever() {
        let duty = Duty::always();
        let on_duty = [duty.begin().await, duty.begin().await].map(|begun| begun.expect("it asks nobody"));
        assert!(on_duty.iter().all(OnDuty::is_good) && !duty.is_shared());
    }
}
