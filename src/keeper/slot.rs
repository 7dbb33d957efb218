use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{KeeperError, answer::CachedToken};
use crate::{
    clock::Now,
    lifecycle::{Standing, remaining},
    model::{Credential, Fingerprint, Grant, GrantId, GrantKind, State, Timestamp, Usage},
};

/// The living subject of a grant that is not alive.
pub(super) const NOT_LIVING: u64 = 0;
/// The living subject of a consent whose subject nobody knows: it may be anybody's.
pub(super) const UNKNOWN_SUBJECT: u64 = 1;

/// One grant in memory: what a fetch, the timers and the counts need, and no long-lived secret.
///
/// The mutex is never held across an await. `record` serializes changes to the stored grant; an exchange holds it
/// only around its commits, never while it waits for the issuer.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: GrantId,
    /// Index of its provider among the keeper's.
    pub(super) provider: u16,
    state: Mutex<SlotState>,
    pub(super) record: Arc<tokio::sync::Mutex<()>>,
    last_fetched: AtomicI64,
}

/// What changes about a slot.
#[derive(Debug)]
pub(super) struct SlotState {
    pub(super) brief: Brief,
    /// The access token, while the bounded cache keeps it.
    pub(super) token: Option<Arc<CachedToken>>,
    /// Set by each use of `token`, so that the cache spares it once.
    pub(super) used: bool,
    /// The exchange that is queued or under way.
    pub(super) flight: Option<Flight>,
    /// Its place in the provider's queue, while it waits there.
    pub(super) queued: Option<Place>,
    /// Its key in the timers, on the boot-time clock in milliseconds.
    pub(super) timer: Option<u64>,
    /// Exchanges that callers forced.
    pub(super) forced: Forced,
    /// The grant is gone from the vault; nothing may be started with this slot.
    pub(super) removed: bool,
}

/// A place in a queue: the smallest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) urgency: Urgency,
    /// When its access token ends, in milliseconds of the boot-time clock.
    pub(super) lapses: u64,
    pub(super) grant: GrantId,
}

/// How soon a grant should have its turn; the budget goes to the first ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// A caller waits for it.
    Awaited,
    /// It was fetched lately.
    Fetched,
    /// Neither.
    Idle,
}

/// What is remembered of a stored grant.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the stored grant")]
pub(super) struct Brief {
    /// The commit that wrote the record: the engine must not give an older one.
    pub(super) sequence: u64,
    pub(super) state: State,
    pub(super) since: Timestamp,
    pub(super) kind: GrantKind,
    pub(super) paused: bool,
    pub(super) one_time: bool,
    /// It has client credentials of its own.
    pub(super) own_client: bool,
    pub(super) access: Option<BriefAccess>,
    /// When the grant is due on the wall clock.
    pub(super) due: Option<Timestamp>,
    pub(super) refreshed_at: Option<Timestamp>,
    pub(super) retry_at: Option<Timestamp>,
    pub(super) consent_ends: Option<Timestamp>,
    pub(super) end_assumed: bool,
    /// When there will be something to tell of the consent's end.
    pub(super) warns_at: Option<Timestamp>,
    /// The first of the refusals that the grant has counted.
    pub(super) first_refusal: Option<FirstRefusal>,
    /// A hash of the subject while the grant lives; else [`NOT_LIVING`] or [`UNKNOWN_SUBJECT`].
    pub(super) living_subject: u64,
    pub(super) organizations: u32,
}

/// When a grant was first refused, on both clocks: wall time may jump between two refusals.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstRefusal {
    /// As it is stored.
    pub(super) at: Timestamp,
    /// How long that was ago at `seen`, a moment of the boot-time clock.
    ago: Duration,
    seen: Duration,
}

impl FirstRefusal {
    /// How long ago it was.
    pub(super) fn ago(&self, now: Now) -> Duration {
        self.ago + now.boot.saturating_sub(self.seen)
    }
}

/// An access token's times.
#[derive(Debug, Clone, Copy)]
pub(super) struct BriefAccess {
    pub(super) issued_at: Timestamp,
    pub(super) expires_at: Timestamp,
    /// Its end on the boot-time clock, which no change of wall time moves.
    pub(super) expires_boot: Duration,
    /// How long after `issued_at` it is to be refreshed.
    pub(super) refresh_after: Duration,
}

impl BriefAccess {
    /// What is left by the stricter of both clocks.
    pub(super) fn left(&self, now: Now) -> Duration {
        self.expires_at.since(now.wall).min(self.expires_boot.saturating_sub(now.boot))
    }

    /// Whether the moment of its refresh has passed, by either clock.
    pub(super) fn is_overdue(&self, now: Now) -> bool {
        let life = self.expires_at.since(self.issued_at);
        self.left(now) <= life.saturating_sub(self.refresh_after)
    }
}

/// What tells one exchange's end from the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    issued_at: Option<Timestamp>,
    retry_at: Option<Timestamp>,
}

/// An exchange that others may wait for: `None` while it goes on.
#[derive(Debug, Clone)]
pub(super) struct Flight(watch::Receiver<Option<Result<(), KeeperError>>>);

/// The end of a flight that tells.
pub(super) type FlightEnd = watch::Sender<Option<Result<(), KeeperError>>>;

impl Flight {
    pub(super) fn new() -> (FlightEnd, Self) {
        let (end, flight) = watch::channel(None);
        (end, Self(flight))
    }

    /// Waits for the end; `None` where the exchange's task died without telling.
    pub(super) async fn ended(mut self) -> Option<Result<(), KeeperError>> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|end| end.clone())
    }
}

/// How often callers have forced an exchange of one grant.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Forced {
    /// The last one, on the boot-time clock.
    last: Option<Duration>,
    /// How long the next one must wait after it.
    pause: Duration,
}

impl Forced {
    const FIRST: Duration = Duration::from_secs(10);
    const LONGEST: Duration = Duration::from_mins(5);

    /// Takes one forced exchange at `boot`, or says how long to wait: 10 s after the last, growing to 5 min while
    /// it goes on.
    pub(super) fn take(&mut self, boot: Duration) -> Result<(), Duration> {
        if let Some(last) = self.last {
            let passed = boot.saturating_sub(last);
            if passed < self.pause {
                return Err(self.pause.saturating_sub(passed));
            }
            let calm = passed >= self.pause * 3;
            self.pause = if calm { Self::FIRST } else { (self.pause * 2).min(Self::LONGEST) };
        } else {
            self.pause = Self::FIRST;
        }
        self.last = Some(boot);
        Ok(())
    }
}

impl Slot {
    pub(super) fn new(id: GrantId, provider: u16, brief: Brief, last_fetched: Option<Timestamp>) -> Self {
        let state = SlotState {
            brief,
            token: None,
            used: false,
            flight: None,
            queued: None,
            timer: None,
            forced: Forced::default(),
            removed: false,
        };
        Self {
            id,
            provider,
            state: Mutex::new(state),
            record: Arc::default(),
            last_fetched: AtomicI64::new(last_fetched.map_or(0, Timestamp::as_millis)),
        }
    }

    /// The slot's state; a panic of another holder does not make it unusable, since every change to it is one
    /// assignment.
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn brief(&self) -> Brief {
        self.lock().brief
    }

    pub(super) fn fetched(&self, now: Timestamp) {
        self.last_fetched.store(now.as_millis(), Ordering::Relaxed);
    }

    pub(super) fn last_fetched(&self) -> Option<Timestamp> {
        Some(self.last_fetched.load(Ordering::Relaxed)).filter(|at| *at != 0).map(Timestamp::from_millis)
    }
}

impl Brief {
    /// What is remembered of `grant`, written by commit `sequence`.
    pub(super) fn of(
        grant: &Grant,
        sequence: u64,
        due: Option<Timestamp>,
        refresh_after: Duration,
        now: Now,
        boot_id: u128,
    ) -> Self {
        let access = grant.access.as_ref().map(|access| BriefAccess {
            issued_at: access.issued_at,
            expires_at: access.expires_at,
            expires_boot: now.boot + remaining(access, now, boot_id),
            refresh_after,
        });
        let consent = grant.consent.as_ref();
        let first_refusal = grant.refusals.map(|refusals| FirstRefusal {
            at: refusals.first_at,
            ago: now.wall.since(refusals.first_at),
            seen: now.boot,
        });
        Self {
            sequence,
            state: grant.state,
            since: grant.since,
            kind: grant.kind(),
            paused: grant.paused,
            one_time: grant.is_one_time(),
            own_client: grant.client.is_some(),
            access,
            due,
            refreshed_at: grant.refreshed_at,
            retry_at: grant.retry_at,
            consent_ends: consent.and_then(|consent| consent.expires_at),
            end_assumed: consent.is_some_and(|consent| consent.assumed),
            warns_at: None,
            first_refusal,
            living_subject: living_subject(grant),
            organizations: u32::try_from(grant.organizations.len()).unwrap_or(u32::MAX),
        }
    }

    /// What the last exchange left behind: another one has ended since where this has changed.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome { issued_at: self.access.map(|access| access.issued_at), retry_at: self.retry_at }
    }

    /// The grant as a fetch sees it.
    pub(super) fn standing(&self, now: Now, frozen: Option<&'static str>) -> Standing {
        Standing {
            state: self.state,
            paused: self.paused,
            access: self.access.map(|access| (access.expires_at.since(access.issued_at), access.left(now))),
            retry_at: self.retry_at,
            overdue: self.access.is_none_or(|access| access.is_overdue(now)),
            frozen,
        }
    }
}

/// A 64-bit hash of a text; only equality within one process matters. Never one of the words for no subject.
pub(super) fn text_hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish().max(UNKNOWN_SUBJECT + 1)
}

/// By what living grants of one subject are counted. An enrolment that was not finished counts: its token is alive. A
/// key of an unknown subject does not: nothing that is done to a consent ends it.
pub(super) fn living_subject(grant: &Grant) -> u64 {
    match (grant.state, &grant.subject, &grant.credential) {
        (State::Lost, ..) | (_, None, Credential::ApiKey(_)) => NOT_LIVING,
        (_, Some(subject), _) => text_hash(subject),
        (_, None, Credential::RefreshToken(_)) => UNKNOWN_SUBJECT,
    }
}

/// The first eight bytes of a fingerprint, as a key; a match is verified against the stored grant.
pub(super) fn fingerprint_key(fingerprint: Fingerprint) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&fingerprint.0[..8]);
    u64::from_be_bytes(first)
}

/// Whether a consent is one-time as far as anybody knows.
pub(super) fn shown_usage(grant: &Grant) -> Option<Usage> {
    grant.consent.as_ref().map(|consent| consent.shown.unwrap_or(consent.expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn callers_that_keep_forcing_wait_ever_longer() {
        let mut forced = Forced::default();
        assert_eq!(forced.take(seconds(100)), Ok(()));
        assert_eq!(forced.take(seconds(104)), Err(seconds(6)));
        assert_eq!(forced.take(seconds(110)), Ok(()));
        assert_eq!(forced.take(seconds(120)), Err(seconds(10)));
        assert_eq!(forced.take(seconds(130)), Ok(()));
        assert_eq!(forced.take(seconds(131)), Err(seconds(39)));
        assert_eq!(forced.take(seconds(1000)), Ok(()), "calm again");
        assert_eq!(forced.take(seconds(1010)), Ok(()));
    }

    #[test]
    fn who_is_awaited_goes_first_then_who_was_fetched_then_who_lapses_sooner() {
        let place = |urgency, lapses, grant| Place { urgency, lapses, grant: GrantId::from_bytes([grant; 16]) };
        let in_order = [
            place(Urgency::Awaited, 9, 9),
            place(Urgency::Fetched, 8, 8),
            place(Urgency::Idle, 1, 7),
            place(Urgency::Idle, 2, 1),
        ];
        assert!(in_order.is_sorted());
    }

    #[test]
    fn a_token_has_lapsed_when_either_clock_says_so() {
        let wall = Timestamp::from_millis(1_000_000);
        let access = BriefAccess {
            issued_at: wall,
            expires_at: wall + seconds(100),
            expires_boot: seconds(1100),
            refresh_after: seconds(75),
        };
        assert_eq!(access.left(Now { wall: wall + seconds(40), boot: seconds(1040) }), seconds(60));
        let back = Now { wall: wall - seconds(5000), boot: seconds(1100) };
        assert_eq!(access.left(back), Duration::ZERO);
        let forward = Now { wall: wall + seconds(100), boot: seconds(1000) };
        assert_eq!(access.left(forward), Duration::ZERO);
        assert!(!access.is_overdue(Now { wall: wall + seconds(74), boot: seconds(1074) }));
        assert!(access.is_overdue(Now { wall: wall + seconds(75), boot: seconds(1075) }));
    }
}
