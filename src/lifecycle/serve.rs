use std::time::Duration;

use crate::model::{State, Timestamp};

/// A grant as a fetch sees it at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Its state.
    pub state: State,
    /// An operator's pause.
    pub paused: bool,
    /// The access token's whole life and what is left of it by the stricter of both clocks; zero: lapsed.
    pub access: Option<(Duration, Duration)>,
    /// Not to be exchanged before.
    pub retry_at: Option<Timestamp>,
    /// Past the moment of its refresh.
    pub overdue: bool,
    /// Why its provider is frozen, if it is; it need not be asked unless [`may_need_provider`](Self::may_need_provider).
    pub frozen: Option<&'static str>,
}

impl Standing {
    /// Whether it can matter to a fetch that wants at least `min_ttl` if the provider is frozen. It cannot while the token is not
    /// due to be refreshed and lives for as long as is wished.
    pub fn may_need_provider(&self, min_ttl: Duration) -> bool {
        self.overdue || self.access.is_none_or(|(_, left)| left.is_zero() || left < min_ttl)
    }
}

/// What a fetch gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The living token; `degraded` says why refreshing fails meanwhile.
    Serve {
        /// The contract's word.
        degraded: Option<&'static str>,
    },
    /// Exchange first, then decide again.
    Refresh,
    /// An operator paused it.
    Paused,
    /// The credential is dead.
    Lost,
    /// A one-time token's fate is unknown and no token lives.
    InDoubt,
    /// More than half the token's life was asked for.
    MinTtlTooLong {
        /// The most that can be asked for.
        limit: Duration,
    },
    /// No token lives, and the next try is still to come.
    Unavailable {
        /// The contract's word.
        reason: &'static str,
        /// When the next try is.
        retry_at: Timestamp,
    },
}

/// How long a caller should wait while a provider is frozen.
pub const FROZEN_RETRY: Duration = Duration::from_secs(5);

/// Decides a fetch that wants at least `min_ttl`. A token that still lives is served while refreshing fails (rule 11
/// of the design), also with less left than was asked for.
pub fn serve(standing: &Standing, now: Timestamp, min_ttl: Duration) -> Verdict {
    if standing.paused {
        return Verdict::Paused;
    }
    if standing.state == State::Lost {
        return Verdict::Lost;
    }
    if let Some((life, _)) = standing.access
        && min_ttl > life / 2
    {
        return Verdict::MinTtlTooLong { limit: life / 2 };
    }
    let left = standing.access.map(|(_, left)| left).filter(|left| !left.is_zero());
    let reason = match standing.state {
        State::Active => standing.frozen.filter(|_| standing.overdue),
        state => state.reason(),
    };
    if left.is_some_and(|left| left >= min_ttl) {
        return Verdict::Serve { degraded: reason };
    }
    if matches!(standing.state, State::InDoubt(_)) {
        return if left.is_some() { Verdict::Serve { degraded: reason } } else { Verdict::InDoubt };
    }
    let wait = standing
        .retry_at
        .filter(|at| *at > now)
        .map(|at| (at, reason))
        .or_else(|| standing.frozen.map(|frozen| (now + FROZEN_RETRY, Some(frozen))));
    match wait {
        None => Verdict::Refresh,
        Some((_, reason)) if left.is_some() => Verdict::Serve { degraded: reason.or(standing.frozen) },
        Some((retry_at, reason)) => Verdict::Unavailable { reason: reason.unwrap_or("provider_unavailable"), retry_at },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::{DoubtReason, FailingReason};

    const LIFE: Duration = Duration::from_hours(1);
    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn standing(state: State, left: u64) -> Standing {
        Standing {
            state,
            paused: false,
            access: Some((LIFE, Duration::from_secs(left))),
            retry_at: None,
            overdue: false,
            frozen: None,
        }
    }

    const LIMITED: State = State::Failing(FailingReason::RateLimited);
    const DOUBT: State = State::InDoubt(DoubtReason::NoAnswer);

    #[rstest]
    #[case::plain(State::Active, 100, 0, Verdict::Serve { degraded: None })]
    #[case::enough(State::Active, 100, 100, Verdict::Serve { degraded: None })]
    #[case::too_little(State::Active, 100, 101, Verdict::Refresh)]
    #[case::lapsed(State::Active, 0, 0, Verdict::Refresh)]
    #[case::half_the_life(State::Active, 3600, 1800, Verdict::Serve { degraded: None })]
    #[case::more_than_half(State::Active, 3600, 1801, Verdict::MinTtlTooLong { limit: Duration::from_mins(30) })]
    #[case::failing(LIMITED, 100, 0, Verdict::Serve { degraded: Some("rate_limited") })]
    #[case::failing_and_lapsed(LIMITED, 0, 0, Verdict::Refresh)]
    #[case::in_doubt(DOUBT, 100, 0, Verdict::Serve { degraded: Some("no_answer") })]
    #[case::in_doubt_with_too_little(DOUBT, 100, 200, Verdict::Serve { degraded: Some("no_answer") })]
    #[case::in_doubt_and_lapsed(DOUBT, 0, 0, Verdict::InDoubt)]
    #[case::lost(State::Lost, 100, 0, Verdict::Lost)]
    fn a_fetch_is_answered(#[case] state: State, #[case] left: u64, #[case] min_ttl: u64, #[case] verdict: Verdict) {
        assert_eq!(serve(&standing(state, left), NOW, Duration::from_secs(min_ttl)), verdict);
    }

    #[test]
    fn a_wait_is_honoured_and_told() {
        let retry_at = NOW + Duration::from_secs(30);
        let waiting = Standing { retry_at: Some(retry_at), ..standing(LIMITED, 0) };
        assert_eq!(serve(&waiting, NOW, Duration::ZERO), Verdict::Unavailable { reason: "rate_limited", retry_at });
        assert_eq!(serve(&waiting, retry_at, Duration::ZERO), Verdict::Refresh);
        let alive = Standing { retry_at: Some(retry_at), ..standing(LIMITED, 10) };
        let degraded = Verdict::Serve { degraded: Some("rate_limited") };
        assert_eq!(serve(&alive, NOW, Duration::from_mins(1)), degraded);
    }

    #[test]
    fn a_frozen_provider_is_not_asked_and_its_living_tokens_are_served() {
        let frozen = Standing { frozen: Some("client_refused"), ..standing(State::Active, 0) };
        assert!(matches!(serve(&frozen, NOW, Duration::ZERO), Verdict::Unavailable { reason: "client_refused", .. }));
        let overdue =
            Standing { overdue: true, ..Standing { frozen: Some("client_refused"), ..standing(State::Active, 9) } };
        assert_eq!(serve(&overdue, NOW, Duration::ZERO), Verdict::Serve { degraded: Some("client_refused") });
        let early = Standing { overdue: false, ..overdue };
        assert_eq!(serve(&early, NOW, Duration::ZERO), Verdict::Serve { degraded: None });
    }

    #[test]
    fn a_provider_that_is_not_needed_changes_nothing() {
        let retry_at = [None, Some(NOW), Some(NOW + Duration::from_secs(30))];
        let states = [State::Active, State::Lost, LIMITED, DOUBT];
        let cases = states.into_iter().flat_map(|state| retry_at.map(|retry_at| (state, retry_at)));
        let mut needless = 0;
        for (state, retry_at) in cases {
            for (paused, overdue) in [(false, false), (false, true), (true, false), (true, true)] {
                for (left, min_ttl) in [(None, 0), (Some(0), 0), (Some(1), 0), (Some(99), 100), (Some(100), 100)] {
                    let access = left.map(|left| (LIFE, Duration::from_secs(left)));
                    let min_ttl = Duration::from_secs(min_ttl);
                    let unasked = Standing { paused, access, retry_at, overdue, ..standing(state, 0) };
                    let frozen = Standing { frozen: Some("client_refused"), ..unasked };
                    if !unasked.may_need_provider(min_ttl) {
                        needless += 1;
                        assert_eq!(serve(&unasked, NOW, min_ttl), serve(&frozen, NOW, min_ttl), "{frozen:?}");
                    }
                }
            }
        }
        assert_eq!(needless, 48, "of all that is not overdue, two lengths of three");
    }

    #[test]
    fn a_pause_lies_over_everything() {
        let paused = Standing { paused: true, ..standing(State::Lost, 100) };
        assert_eq!(serve(&paused, NOW, Duration::ZERO), Verdict::Paused);
    }
}
