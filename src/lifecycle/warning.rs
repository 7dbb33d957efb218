//! What is said before a consent ends, and when it has ended.

use std::time::Duration;

use crate::model::{Grant, State, Timestamp};

/// What stands in [`Consent::warned`](crate::model::Consent::warned) for the end itself.
const THE_END: Duration = Duration::ZERO;
/// How many warnings a consent remembers. The shortest is what counts, so that the longest are forgotten first, should the
/// configuration have been changed that often.
const MAX_WARNED: usize = 32;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What is to be told of a consent's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// It ends within this configured time.
    Within(Duration),
    /// It has ended.
    Ended,
}

impl Warning {
    /// The time before the end that it stands for; zero for the end itself.
    pub const fn before(self) -> Duration {
        match self {
            Self::Within(before) => before,
            Self::Ended => THE_END,
        }
    }
}

/// What is to be told of the grant's end now, which the grant remembers from here on; `None`: nothing.
///
/// Each of `warn_before` is told once for a consent, and its end once. Of several that were missed, by downtime or since the
/// consent was enrolled late, the nearest alone is told. A clock that goes back repeats nothing: what is further from the
/// end than the last that was told is never told any more.
pub fn warn(grant: &mut Grant, warn_before: &[Duration], now: Timestamp) -> Option<Warning> {
    warns_at(grant, warn_before).filter(|at| *at <= now)?;
    let consent = grant.consent.as_mut()?;
    let end = consent.expires_at?;
    let before = if end <= now {
        THE_END
    } else {
        warn_before.iter().copied().filter(|before| !before.is_zero() && end - *before <= now).min()?
    };
    consent.warned.push(before);
    if consent.warned.len() > MAX_WARNED {
        consent.warned.remove(0);
    }
    Some(if before == THE_END { Warning::Ended } else { Warning::Within(before) })
}

/// When there will be something to tell of the grant's end; `None`: never, as it stands.
///
/// A grant that is lost has been told of as such, and what nobody uses concerns nobody. A paused one ends all the same.
pub fn warns_at(grant: &Grant, warn_before: &[Duration]) -> Option<Timestamp> {
    if grant.state == State::Lost || grant.organizations.is_empty() {
        return None;
    }
    let consent = grant.consent.as_ref()?;
    let end = consent.expires_at?;
    let last = consent.warned.iter().copied().min();
    if last == Some(THE_END) {
        return None;
    }
    let next = warn_before.iter().copied().filter(|before| last.is_none_or(|last| *before < last)).max();
    Some(end - next.unwrap_or(THE_END))
}

/// Days until a consent's end, rounded up: 30 at the moment of a warning of 30 days, and for a day after it. Zero or less
/// once it has ended.
pub fn days_left(end: Timestamp, now: Timestamp) -> i64 {
    let left = end.as_millis().saturating_sub(now.as_millis());
    left.div_euclid(DAY_MS) + i64::from(left.rem_euclid(DAY_MS) > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lifecycle::ended::tests::{consent_grant, key_grant};

    const DAY: Duration = Duration::from_hours(24);
    const STEPS: [Duration; 3] = [Duration::from_hours(30 * 24), Duration::from_hours(7 * 24), DAY];
    const END: Timestamp = Timestamp::from_millis(1_900_000_000_000);

    fn ending() -> Grant {
        let mut grant = consent_grant();
        grant.consent.as_mut().expect("consent").expires_at = Some(END);
        grant
    }

    fn days(days: u32) -> Duration {
        DAY * days
    }

    #[test]
    fn each_step_and_the_end_are_told_once() {
        let mut grant = ending();
        let mut told = Vec::new();
        for hours in (0..45 * 24).rev() {
            let now = END + days(5) - Duration::from_hours(hours);
            while let Some(warning) = warn(&mut grant, &STEPS, now) {
                told.push((warning, days_left(END, now)));
            }
        }
        let within = |days| Warning::Within(DAY * days);
        assert_eq!(told, [(within(30), 30), (within(7), 7), (within(1), 1), (Warning::Ended, 0)]);
    }

    #[test]
    fn of_several_that_were_missed_the_nearest_is_told() {
        let mut grant = ending();
        assert_eq!(warn(&mut grant, &STEPS, END - days(6)), Some(Warning::Within(days(7))));
        assert_eq!(warn(&mut grant, &STEPS, END - days(6)), None);
        assert_eq!(warn(&mut grant, &STEPS, END + days(60)), Some(Warning::Ended));
        assert_eq!(warn(&mut grant, &STEPS, END + days(61)), None);
    }

    #[test]
    fn a_clock_that_goes_back_repeats_nothing() {
        let mut grant = ending();
        warn(&mut grant, &STEPS, END - days(1));
        assert_eq!(warn(&mut grant, &STEPS, END - days(20)), None);
        assert_eq!(warns_at(&grant, &STEPS), Some(END));
        warn(&mut grant, &STEPS, END);
        assert_eq!(warn(&mut grant, &STEPS, END - days(1)), None);
        assert_eq!(warns_at(&grant, &STEPS), None);
    }

    #[test]
    fn a_step_that_is_configured_later_is_told_if_it_is_nearer_than_the_last() {
        let mut grant = ending();
        warn(&mut grant, &STEPS, END - days(30));
        assert_eq!(warn(&mut grant, &[days(60), days(30), days(20)], END - days(25)), None);
        assert_eq!(warn(&mut grant, &[days(60), days(30), days(20)], END - days(20)), Some(Warning::Within(days(20))));
    }

    #[test]
    fn only_consents_that_end_and_that_somebody_uses_are_told_of() {
        let mut endless = consent_grant();
        let mut lost = ending();
        lost.state = State::Lost;
        let mut unused = ending();
        unused.organizations.clear();
        for grant in [&mut endless, &mut lost, &mut unused, &mut key_grant()] {
            assert_eq!(warn(grant, &STEPS, END + days(1)), None);
            assert_eq!(warns_at(grant, &STEPS), None);
        }
        let mut paused = ending();
        paused.paused = true;
        assert_eq!(warn(&mut paused, &STEPS, END - days(7)), Some(Warning::Within(days(7))));
    }

    #[test]
    fn without_steps_the_end_alone_is_told() {
        let mut grant = ending();
        assert_eq!(warn(&mut grant, &[], END - days(1)), None);
        assert_eq!(warn(&mut grant, &[], END), Some(Warning::Ended));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_clock_does_what_is_told_comes_ever_nearer_to_the_end(
            moments in prop::collection::vec(-50i64..50, 1..200),
            steps in prop::collection::vec(1u32..40, 0..8),
        ) {
            let steps: Vec<Duration> = steps.into_iter().map(days).collect();
            let mut grant = ending();
            let mut last = Duration::MAX;
            for moment in moments {
                let now = Timestamp::from_millis(END.as_millis() + moment * DAY_MS);
                let at = warns_at(&grant, &steps);
                let warning = warn(&mut grant, &steps, now);
                prop_assert_eq!(warning.is_some(), at.is_some_and(|at| at <= now), "the moment is foretold");
                if let Some(warning) = warning {
                    prop_assert!(warning.before() < last, "nothing twice, and nothing further away");
                    prop_assert!(END - warning.before() <= now, "nothing too early");
                    let nearer = steps.iter().any(|step| *step < warning.before() && END - *step <= now && now < END);
                    prop_assert!(!nearer, "the nearest");
                    last = warning.before();
                }
                prop_assert_eq!(warn(&mut grant, &steps, now), None, "one look, one warning");
            }
            prop_assert!(grant.consent.expect("consent").warned.len() <= MAX_WARNED);
        }
    }
}
