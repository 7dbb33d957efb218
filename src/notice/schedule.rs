//! When a delivery is tried again, as pure functions: by how often it was tried, and by what the receiver said.

use std::time::Duration;

use crate::model::Timestamp;

/// How long after each failed attempt the next one is made: the schedule that Standard Webhooks 1.0.0 gives as its
/// example ("Deliverability and reliability"). Ten attempts in a little more than three days.
pub(super) const WAITS: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(14),
    Duration::from_hours(20),
    Duration::from_hours(24),
];
/// A wait is longer by up to this share, so that deliveries that failed together do not all come back together.
const JITTER: f64 = 0.2;

/// The longest that a receiver which fails is left alone before another of its deliveries is tried.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The pause after its first failure; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What a failed attempt leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another attempt, not before then.
    At(Timestamp),
    /// None: it is a dead letter.
    Never,
}

/// What follows the failure of the `attempts`-th attempt (from 1) at `now`. `retry_after` is what the receiver asked for,
/// bounded by whoever read it; `chance` is uniform in `[0, 1)`.
pub(super) fn after_failure(attempts: u32, retry_after: Option<Duration>, now: Timestamp, chance: f64) -> Next {
    let failed = usize::try_from(attempts).unwrap_or(usize::MAX).max(1);
    match WAITS.get(failed - 1) {
        Some(wait) => {
            let wait = wait.mul_f64(1.0 + JITTER * chance.clamp(0.0, 1.0));
            Next::At(now + wait.max(retry_after.unwrap_or_default()))
        }
        None => Next::Never,
    }
}

/// How long a receiver is left alone after its `failures`-th failure in a row (from 1), whichever deliveries those were
/// of: one that is down or overloaded must not be met by everything that waits for it.
pub(super) fn pause(failures: u32, retry_after: Option<Duration>) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(MAX_PAUSE);
    pause.max(retry_after.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    #[test]
    fn ten_attempts_are_made_over_more_than_three_days() {
        let mut at = NOW;
        let mut attempts = 1;
        while let Next::At(next) = after_failure(attempts, None, at, 0.0) {
            (at, attempts) = (next, attempts + 1);
        }
        assert_eq!(attempts, 10);
        assert_eq!(at.since(NOW), Duration::from_secs(75 * 3600 + 35 * 60 + 5), "as the specification's table ends");
    }

    #[test]
    fn what_the_receiver_asks_for_is_waited_for() {
        let hour = Duration::from_hours(1);
        assert_eq!(after_failure(1, Some(hour), NOW, 0.0), Next::At(NOW + hour));
        assert_eq!(after_failure(4, Some(hour), NOW, 0.0), Next::At(NOW + WAITS[3]), "the schedule is longer");
        assert_eq!(after_failure(10, Some(hour), NOW, 0.0), Next::Never);
        assert_eq!(pause(1, Some(hour)), hour);
    }

    #[test]
    fn a_receiver_that_fails_is_met_ever_less_often() {
        let pauses: Vec<u128> = (1..=9).map(|failures| pause(failures, None).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(pause(u32::MAX, None), MAX_PAUSE);
    }

    proptest! {
        #[test]
        fn every_failure_leads_to_a_later_attempt_or_to_none(
            attempts in 0u32.., asked in proptest::option::of(0u64..1_000_000), chance in -1.0f64..2.0, now in 0i64..4_000_000_000_000,
        ) {
            let (now, asked) = (Timestamp::from_millis(now), asked.map(Duration::from_secs));
            match after_failure(attempts, asked, now, chance) {
                Next::At(next) => {
                    let wait = next.since(now);
                    prop_assert!(attempts <= 9);
                    prop_assert!(wait >= asked.unwrap_or_default());
                    prop_assert!(wait >= WAITS[0]);
                    prop_assert!(wait <= WAITS[8].mul_f64(1.0 + JITTER).max(asked.unwrap_or_default()));
                }
                Next::Never => prop_assert!(attempts > 9),
            }
        }

        #[test]
        fn later_attempts_wait_longer_whatever_chance_says(attempts in 1u32..9, one in 0.0f64..1.0, two in 0.0f64..1.0) {
            let wait = |attempts, chance| match after_failure(attempts, None, NOW, chance) {
                Next::At(next) => next.since(NOW),
                Next::Never => Duration::MAX,
            };
            prop_assert!(wait(attempts, one) <= wait(attempts + 1, two));
        }
    }
}
