//! What a slot remembers of its grant: as the rest of the keeper reads it, and packed, since there may be a million.

use std::{num::NonZeroI64, time::Duration};

use crate::{
    clock::Now,
    lifecycle::{Standing, remaining},
    model::{Credential, Grant, GrantKind, State, Timestamp},
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

/// A [`Brief`] in 88 bytes rather than more than twice that, without what few grants have: a first refusal.
///
/// What tells tokens and exchanges apart keeps its milliseconds. Moments that are only shown, or by which a record is
/// looked at that says it exactly, are whole seconds, rounded down.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedBrief {
    sequence: u64,
    issued_at: Option<Moment>,
    expires_at: i64,
    /// In nanoseconds.
    expires_boot: u64,
    due: Option<Moment>,
    retry_at: Option<Moment>,
    consent_ends: Option<Moment>,
    living_subject: u64,
    refresh_after: Eighths,
    since: Second,
    refreshed_at: Second,
    warns_at: Second,
    organizations: u16,
    state: State,
    facts: u8,
    /// Set by each use of the slot's access token. This one and the next are the slot's own, and here since there is room.
    pub(super) used: bool,
    /// The grant is gone from the vault.
    pub(super) removed: bool,
}

const PAUSED: u8 = 1;
const ONE_TIME: u8 = 1 << 1;
const OWN_CLIENT: u8 = 1 << 2;
const END_ASSUMED: u8 = 1 << 3;
const CONSENT: u8 = 1 << 4;

impl PackedBrief {
    pub(super) fn of(brief: &Brief) -> Self {
        let access = brief.access;
        let facts = [
            (brief.paused, PAUSED),
            (brief.one_time, ONE_TIME),
            (brief.own_client, OWN_CLIENT),
            (brief.end_assumed, END_ASSUMED),
            (brief.kind == GrantKind::Consent, CONSENT),
        ];
        Self {
            sequence: brief.sequence,
            issued_at: access.map(|access| Moment::of(access.issued_at)),
            expires_at: access.map_or(0, |access| access.expires_at.as_millis()),
            expires_boot: access.map_or(0, |access| u64::try_from(access.expires_boot.as_nanos()).unwrap_or(u64::MAX)),
            due: brief.due.map(Moment::of),
            retry_at: brief.retry_at.map(Moment::of),
            consent_ends: brief.consent_ends.map(Moment::of),
            living_subject: brief.living_subject,
            refresh_after: access.map_or(Eighths(0), |access| Eighths::of(access.refresh_after)),
            since: Second::of(Some(brief.since)),
            refreshed_at: Second::of(brief.refreshed_at),
            warns_at: Second::of(brief.warns_at),
            organizations: u16::try_from(brief.organizations).unwrap_or(u16::MAX),
            state: brief.state,
            facts: facts.iter().filter(|(holds, _)| *holds).fold(0, |facts, (_, bit)| facts | bit),
            used: false,
            removed: false,
        }
    }

    /// Takes in what is newer.
    pub(super) fn put(&mut self, brief: &Brief) {
        *self = Self { used: self.used, removed: self.removed, ..Self::of(brief) };
    }

    pub(super) fn open(&self, first_refusal: Option<FirstRefusal>) -> Brief {
        let holds = |bit: u8| self.facts & bit != 0;
        Brief {
            sequence: self.sequence,
            state: self.state,
            since: self.since.time().unwrap_or_default(),
            kind: if holds(CONSENT) { GrantKind::Consent } else { GrantKind::ApiKey },
            paused: holds(PAUSED),
            one_time: holds(ONE_TIME),
            own_client: holds(OWN_CLIENT),
            access: self.issued_at.map(|issued_at| BriefAccess {
                issued_at: issued_at.time(),
                expires_at: Timestamp::from_millis(self.expires_at),
                expires_boot: Duration::from_nanos(self.expires_boot),
                refresh_after: self.refresh_after.duration(),
            }),
            due: self.due.map(Moment::time),
            refreshed_at: self.refreshed_at.time(),
            retry_at: self.retry_at.map(Moment::time),
            consent_ends: self.consent_ends.map(Moment::time),
            end_assumed: holds(END_ASSUMED),
            warns_at: self.warns_at.time(),
            first_refusal,
            living_subject: self.living_subject,
            organizations: u32::from(self.organizations),
        }
    }
}

/// A moment of the wall clock, exactly, that takes no more room where there may be none.
#[derive(Debug, Clone, Copy)]
struct Moment(NonZeroI64);

impl Moment {
    /// The one value that has no room: 292 million years ago.
    const TAKEN: i64 = i64::MIN;

    fn of(time: Timestamp) -> Self {
        Self(NonZeroI64::new(time.as_millis() ^ Self::TAKEN).unwrap_or(NonZeroI64::MIN))
    }

    const fn time(self) -> Timestamp {
        Timestamp::from_millis(self.0.get() ^ Self::TAKEN)
    }
}

/// A moment of the wall clock in whole seconds, rounded down, from 1970 until 2106; zero for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Second(pub(super) u32);

impl Second {
    pub(super) fn of(time: Option<Timestamp>) -> Self {
        Self(time.map_or(0, |time| u32::try_from(time.as_seconds().max(1)).unwrap_or(u32::MAX)))
    }

    pub(super) fn time(self) -> Option<Timestamp> {
        (self.0 != 0).then(|| Timestamp::from_millis(i64::from(self.0) * 1000))
    }
}

/// A duration in eighths of a second, rounded up, so that nothing is overdue before it is due; at most 17 years.
#[derive(Debug, Clone, Copy)]
struct Eighths(u32);

impl Eighths {
    const MILLIS: u128 = 125;

    fn of(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_millis().div_ceil(Self::MILLIS)).unwrap_or(u32::MAX))
    }

    fn duration(self) -> Duration {
        Duration::from_millis(125) * self.0
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FailingReason;

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
            expires_boot: Duration::from_nanos(7_200_000_000_001),
            refresh_after: seconds(2700),
        };
        let first_refusal = FirstRefusal { at: at(1), ago: seconds(1), seen: seconds(2) };
        Brief {
            sequence: u64::MAX,
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
            living_subject: u64::MAX,
            organizations: 65_535,
        }
    }

    #[test]
    fn what_is_packed_is_as_it_was() {
        for brief in [plain(), full()] {
            assert_eq!(PackedBrief::of(&brief).open(brief.first_refusal), brief);
        }
        let alone = |change: &dyn Fn(&mut Brief)| {
            let mut brief = plain();
            change(&mut brief);
            assert_eq!(PackedBrief::of(&brief).open(None), brief);
        };
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
        assert_eq!(Eighths::of(Duration::from_millis(126)).duration(), Duration::from_millis(250));
        for extreme in [i64::MIN + 1, -1, 0, i64::MAX] {
            assert_eq!(Moment::of(at(extreme)).time(), at(extreme));
        }
    }
}
