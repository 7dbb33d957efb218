//! What a slot remembers of its grant: as the rest of the keeper reads it, and packed, since there may be a million.

use std::{num::NonZeroU64, time::Duration};

use crate::{
    clock::Now,
    lifecycle::{Standing, remaining},
    model::{Credential, DoubtReason, FailingReason, Grant, GrantKind, State, Timestamp},
};

/// The living subject of a grant that is not alive.
pub(super) const NOT_LIVING: u64 = 0;
/// The living subject of a consent whose subject nobody knows: it may be anybody's.
pub(super) const UNKNOWN_SUBJECT: u64 = 1;

/// What is remembered of a stored grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FirstRefusal {
    /// As it is stored.
    pub(super) at: Timestamp,
    /// How long that was ago at `seen`, a moment of the boot-time clock.
    ago: Duration,
    seen: Duration,
}

impl FirstRefusal {
    pub(super) fn new(at: Timestamp, now: Now) -> Self {
        Self { at, ago: now.wall.since(at), seen: now.boot }
    }

    /// How long ago it was.
    pub(super) fn ago(&self, now: Now) -> Duration {
        self.ago + now.boot.saturating_sub(self.seen)
    }
}

/// An access token's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        let first_refusal = grant.refusals.map(|refusals| FirstRefusal::new(refusals.first_at, now));
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

/// A [`Brief`] in 64 bytes rather than thrice that, with what the slot keeps beside it, and without what few grants have: [`Rare`].
///
/// What tells tokens and exchanges apart keeps its milliseconds. Moments that are only shown, or by which a record is
/// looked at that says it exactly, are whole seconds, rounded down.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PackedBrief {
    since: Second,
    refreshed_at: Second,
    warns_at: Second,
    /// How long the access token lives; [`LONG_LIFE`] where that does not fit.
    life_millis: u32,
    refresh_after: Share,
    organizations: u16,
    sequence: Six,
    issued_at: Moment,
    /// In steps of [`BOOT_STEP`].
    expires_boot: Six,
    due: Moment,
    consent_ends: Moment,
    living_subject: Six,
    /// Its key in the timers, or zero. This one and the last two facts are the slot's own, and here since there is room.
    timer: Six,
    /// Its place among [`STATES`].
    state: u8,
    facts: u8,
}

/// What few grants have at a time: it is in a box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rare {
    first_refusal: Option<FirstRefusal>,
    retry_at: Option<Timestamp>,
    /// When an access token ends that lives for longer than seven weeks, or ends before it was issued.
    expires_at: Option<Timestamp>,
}

const PAUSED: u8 = 1;
const ONE_TIME: u8 = 1 << 1;
const OWN_CLIENT: u8 = 1 << 2;
const END_ASSUMED: u8 = 1 << 3;
const CONSENT: u8 = 1 << 4;
/// The slot's access token was used.
const USED: u8 = 1 << 5;
/// The grant is gone from the vault.
const REMOVED: u8 = 1 << 6;

const LONG_LIFE: u32 = u32::MAX;
/// Of the boot-time clock: 89 years of it fit.
const BOOT_STEP: Duration = Duration::from_micros(10);

/// Every state, by the byte that stands for it.
const STATES: [State; 12] = [
    State::Active,
    State::Failing(FailingReason::Unverified),
    State::Failing(FailingReason::Refused),
    State::Failing(FailingReason::ProviderUnavailable),
    State::Failing(FailingReason::RateLimited),
    State::Failing(FailingReason::ClientRefused),
    State::Failing(FailingReason::VaultUnavailable),
    State::InDoubt(DoubtReason::NoAnswer),
    State::InDoubt(DoubtReason::Crashed),
    State::InDoubt(DoubtReason::Restored),
    State::InDoubt(DoubtReason::RolledBack),
    State::Lost,
];

impl PackedBrief {
    /// Takes in what is newer; gives what has no room in it.
    pub(super) fn put(&mut self, brief: &Brief) -> Rare {
        let facts = [
            (brief.paused, PAUSED),
            (brief.one_time, ONE_TIME),
            (brief.own_client, OWN_CLIENT),
            (brief.end_assumed, END_ASSUMED),
            (brief.kind == GrantKind::Consent, CONSENT),
        ];
        let facts = facts.iter().filter(|(holds, _)| *holds).fold(0, |facts, (_, bit)| facts | bit);
        let mut rare = Rare { first_refusal: brief.first_refusal, retry_at: brief.retry_at, expires_at: None };
        let (mut life_millis, mut refresh_after) = (0, Share::default());
        if let Some(access) = &brief.access {
            let life = access.expires_at.as_millis().checked_sub(access.issued_at.as_millis());
            let life = life.and_then(|life| u32::try_from(life).ok()).filter(|life| *life != LONG_LIFE);
            life_millis = life.unwrap_or(LONG_LIFE);
            rare.expires_at = life.is_none().then_some(access.expires_at);
            refresh_after = Share::of(access.refresh_after, access.expires_at.since(access.issued_at));
        }
        *self = Self {
            since: Second::of(Some(brief.since)),
            refreshed_at: Second::of(brief.refreshed_at),
            warns_at: Second::of(brief.warns_at),
            life_millis,
            refresh_after,
            organizations: u16::try_from(brief.organizations).unwrap_or(u16::MAX),
            sequence: Six::of(brief.sequence),
            issued_at: Moment::of(brief.access.map(|access| access.issued_at)),
            expires_boot: Six::of(brief.access.map_or(0, |access| {
                u64::try_from(access.expires_boot.as_nanos() / BOOT_STEP.as_nanos()).unwrap_or(u64::MAX)
            })),
            due: Moment::of(brief.due),
            consent_ends: Moment::of(brief.consent_ends),
            living_subject: Six::of(brief.living_subject),
            timer: self.timer,
            state: STATES
                .iter()
                .position(|state| *state == brief.state)
                .and_then(|at| u8::try_from(at).ok())
                .unwrap_or(0),
            facts: facts | (self.facts & (USED | REMOVED)),
        };
        rare
    }

    pub(super) fn open(&self, rare: Rare) -> Brief {
        let access = self.issued_at.time().map(|issued_at| {
            let life = Duration::from_millis(u64::from(self.life_millis));
            let expires_at = rare.expires_at.unwrap_or(issued_at + life);
            BriefAccess {
                issued_at,
                expires_at,
                expires_boot: Duration::from_micros(self.expires_boot.get() * 10),
                refresh_after: self.refresh_after.duration(expires_at.since(issued_at)),
            }
        });
        Brief {
            sequence: self.sequence.get(),
            state: STATES[usize::from(self.state)],
            since: self.since.time().unwrap_or_default(),
            kind: if self.holds(CONSENT) { GrantKind::Consent } else { GrantKind::ApiKey },
            paused: self.holds(PAUSED),
            one_time: self.holds(ONE_TIME),
            own_client: self.holds(OWN_CLIENT),
            access,
            due: self.due.time(),
            refreshed_at: self.refreshed_at.time(),
            retry_at: rare.retry_at,
            consent_ends: self.consent_ends.time(),
            end_assumed: self.holds(END_ASSUMED),
            warns_at: self.warns_at.time(),
            first_refusal: rare.first_refusal,
            living_subject: self.living_subject.get(),
            organizations: u32::from(self.organizations),
        }
    }

    /// The slot's key in the timers: at most [`LATEST_TIMER`].
    pub(super) fn timer(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.timer.get())
    }

    pub(super) fn set_timer(&mut self, timer: Option<NonZeroU64>) {
        self.timer = Six::of(timer.map_or(0, NonZeroU64::get));
    }

    pub(super) const fn is_removed(&self) -> bool {
        self.holds(REMOVED)
    }

    pub(super) const fn remove(&mut self) {
        self.facts |= REMOVED;
    }

    pub(super) const fn is_used(&self) -> bool {
        self.holds(USED)
    }

    pub(super) const fn set_used(&mut self, used: bool) {
        self.facts = if used { self.facts | USED } else { self.facts & !USED };
    }

    const fn holds(&self, fact: u8) -> bool {
        self.facts & fact != 0
    }
}

/// The latest moment that a timer can have, in milliseconds of the boot-time clock: after 8,900 years.
pub(super) const LATEST_TIMER: u64 = Six::MOST;

/// A number in six bytes; a larger one is the largest.
#[derive(Debug, Clone, Copy, Default)]
struct Six([u8; 6]);

impl Six {
    const MOST: u64 = (1 << 48) - 1;

    fn of(number: u64) -> Self {
        let [bytes @ .., _, _] = number.min(Self::MOST).to_le_bytes();
        Self(bytes)
    }

    fn get(self) -> u64 {
        let mut number = [0; 8];
        number[..self.0.len()].copy_from_slice(&self.0);
        u64::from_le_bytes(number)
    }
}

/// A moment of the wall clock, exactly, or none; from the year 1870 until after the year 10000.
#[derive(Debug, Clone, Copy, Default)]
struct Moment(Six);

impl Moment {
    /// The earliest is this much before 1970, in milliseconds; zero is none.
    const EARLIEST: i64 = 100 * 31_556_952_000;

    fn of(time: Option<Timestamp>) -> Self {
        let since =
            |time: Timestamp| u64::try_from(time.as_millis().saturating_add(Self::EARLIEST)).unwrap_or(0).max(1);
        Self(Six::of(time.map_or(0, since)))
    }

    fn time(self) -> Option<Timestamp> {
        let since = i64::try_from(self.0.get()).unwrap_or(i64::MAX);
        (since != 0).then(|| Timestamp::from_millis(since - Self::EARLIEST))
    }
}

/// A moment of the wall clock in whole seconds, rounded down, from 1970 until 2106; zero for none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Second(pub(super) u32);

impl Second {
    pub(super) fn of(time: Option<Timestamp>) -> Self {
        Self(time.map_or(0, |time| u32::try_from(time.as_seconds().max(1)).unwrap_or(u32::MAX)))
    }

    pub(super) fn time(self) -> Option<Timestamp> {
        (self.0 != 0).then(|| Timestamp::from_millis(i64::from(self.0) * 1000))
    }
}

/// A part of a token's life, rounded up, so that nothing is overdue before it is due.
#[derive(Debug, Clone, Copy, Default)]
struct Share(u16);

impl Share {
    const WHOLE: u64 = 60_000;
    /// So many of its steps are a microsecond for each millisecond of the life.
    const OF_A_THOUSANDTH: u64 = Self::WHOLE / 1000;

    fn of(part: Duration, life: Duration) -> Self {
        let micros = u64::try_from(part.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        let share = micros.saturating_mul(Self::OF_A_THOUSANDTH).div_ceil(whole_millis(life).max(1));
        Self(u16::try_from(share).unwrap_or(u16::MAX))
    }

    fn duration(self, life: Duration) -> Duration {
        Duration::from_micros(whole_millis(life).saturating_mul(u64::from(self.0)) / Self::OF_A_THOUSANDTH)
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A hash of a text, of 48 bits; only equality within one process matters. Never one of the words for no subject.
pub(super) fn text_hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    (hasher.finish() >> 16).max(UNKNOWN_SUBJECT + 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
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

    fn plain() -> Brief {
        Brief {
            sequence: 0,
            state: State::Active,
            since: Timestamp::from_millis(1000),
            kind: GrantKind::ApiKey,
            paused: false,
            one_time: false,
            own_client: false,
            access: None,
            due: None,
            refreshed_at: None,
            retry_at: None,
            consent_ends: None,
            end_assumed: false,
            warns_at: None,
            first_refusal: None,
            living_subject: NOT_LIVING,
            organizations: 0,
        }
    }

    fn full() -> Brief {
        let at = |millis: i64| Timestamp::from_millis(1_800_000_000_000 + millis);
        let access = BriefAccess {
            issued_at: at(123),
            expires_at: at(3_600_123),
            expires_boot: Duration::from_micros(7_200_000_010),
            refresh_after: seconds(2700),
        };
        let first_refusal = FirstRefusal { at: at(1), ago: seconds(1), seen: seconds(2) };
        Brief {
            sequence: Six::MOST,
            state: State::Failing(FailingReason::Refused),
            since: at(0),
            kind: GrantKind::Consent,
            paused: true,
            one_time: true,
            own_client: true,
            access: Some(access),
            due: Some(at(-5)),
            refreshed_at: Some(at(1000)),
            retry_at: Some(Timestamp::default()),
            consent_ends: Some(at(999)),
            end_assumed: true,
            warns_at: Some(at(2000)),
            first_refusal: Some(first_refusal),
            living_subject: Six::MOST,
            organizations: 65_535,
        }
    }

    #[test]
    fn what_is_packed_is_as_it_was() {
        let packed_and_opened = |brief: &Brief| {
            let mut packed = PackedBrief::default();
            let rare = packed.put(brief);
            packed.open(rare)
        };
        for brief in [plain(), full()] {
            assert_eq!(packed_and_opened(&brief), brief);
        }
        let alone = |change: &dyn Fn(&mut Brief)| {
            let mut brief = plain();
            change(&mut brief);
            assert_eq!(packed_and_opened(&brief), brief);
        };
        for state in STATES {
            alone(&|brief| brief.state = state);
        }
        let issued_at = Timestamp::from_millis(-5);
        for millis in [0, 1, 3_600_001, i64::from(LONG_LIFE) - 1, i64::from(LONG_LIFE), 1 << 40, -7] {
            let expires_at = Timestamp::from_millis(issued_at.as_millis() + millis);
            let (expires_boot, refresh_after) = (seconds(9), expires_at.since(issued_at) / 4);
            alone(&|brief| brief.access = Some(BriefAccess { issued_at, expires_at, expires_boot, refresh_after }));
        }
        alone(&|brief| brief.paused = true);
        alone(&|brief| brief.one_time = true);
        alone(&|brief| brief.own_client = true);
        alone(&|brief| brief.end_assumed = true);
        alone(&|brief| brief.kind = GrantKind::Consent);
    }

    #[test]
    fn what_is_only_shown_is_cut_to_seconds_and_what_cannot_be_said_is_said_as_nearly_as_can_be() {
        let at = Timestamp::from_millis;
        assert_eq!(Second::of(Some(at(1_999))).time(), Some(at(1_000)));
        assert_eq!(Second::of(Some(at(-1))).time(), Some(at(1_000)), "a moment is not taken for none");
        assert_eq!(Second::of(Some(at(i64::MAX))).time(), Some(at(i64::from(u32::MAX) * 1000)));
        assert_eq!(Second::of(None).time(), None);
        for (life, part) in [(seconds(3600), seconds(2700)), (seconds(7), Duration::from_millis(5001))] {
            let kept = Share::of(part, life).duration(life);
            assert!(kept >= part && kept <= part + life / 60_000, "{kept:?}");
            assert_eq!(Share::of(kept, life).duration(life), kept, "it does not grow by being packed again");
        }
        for exactly in [-Moment::EARLIEST + 1, -1, 0, 253_402_300_799_999] {
            assert_eq!(Moment::of(Some(at(exactly))).time(), Some(at(exactly)));
        }
        assert_eq!(Moment::of(Some(at(i64::MIN))).time(), Some(at(1 - Moment::EARLIEST)), "it is not taken for none");
        assert!(Moment::of(Some(at(i64::MAX))).time() > Some(at(253_402_300_799_999)));
        assert_eq!((Moment::of(None).time(), Six::of(u64::MAX).get()), (None, Six::MOST));
    }
}
