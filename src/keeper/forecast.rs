//! How many consents end when, and how many invitations a week keep up with them.

use std::collections::BTreeMap;

use super::{Keeper, Scope, Shared};
use crate::{
    clock::Now,
    model::{EndingWeek, Outlook, State, Timestamp},
};

/// Lines that a forecast has at most, each a week of one provider: more than a year of a dozen providers. What ends later
/// is counted and not listed.
pub(super) const MAX_LINES: usize = 640;

/// Lines that a digest has at most: a record of the vault, and a message to a person, have less room.
const MAX_DIGEST_LINES: usize = 200;

const WEEK_SECONDS: i64 = 7 * 86_400;
/// 1970-01-01 was a Thursday: the Monday of its week is three days earlier.
const FIRST_MONDAY_SECONDS: i64 = -3 * 86_400;

/// The consents ahead.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forecast {
    /// By week and provider, the soonest first; at most [`MAX_LINES`].
    pub(super) weeks: Vec<EndingWeek>,
    /// Consents that end after all of these.
    pub(super) later: u64,
    /// The least even number of invitations a week, from this week on, with which every consent of the list is invited before
    /// the week in which it ends; those past their end count as of this week.
    pub(super) invitations_per_week: u64,
}

/// How many consents end, and of how many of them the end was assumed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ending {
    consents: u64,
    assumed: u64,
}

impl Ending {
    pub(super) const fn add(&mut self, consents: u64, assumed: u64) {
        self.consents += consents;
        self.assumed += assumed;
    }
}

impl Keeper {
    /// What a digest tells: what ends by week and provider, and how all consents stand; `None` while they are being loaded. Looks at
    /// every organization, so it takes a while where there are many.
    pub async fn outlook(&self) -> Option<(Vec<EndingWeek>, Outlook)> {
        if !self.shared.is_loaded() {
            return None;
        }
        let (census, forecast) = self.shared.survey(None).await;
        let Forecast { mut weeks, mut later, invitations_per_week } = forecast;
        later += weeks.drain(MAX_DIGEST_LINES.min(weeks.len())..).map(|week| week.consents).sum::<u64>();
        let mut outlook = Outlook {
            ending: self.shared.warn_before.iter().map(|before| (*before, 0)).collect(),
            later,
            invitations_per_week,
            ..Outlook::default()
        };
        for counts in census.providers.values() {
            for ((_, all), (_, within)) in outlook.ending.iter_mut().zip(&counts.expiring_within) {
                *all += within;
            }
            let in_state = |state| counts.states.get(state).copied().unwrap_or_default();
            outlook.expired += counts.expired;
            outlook.end_assumed += counts.end_assumed;
            outlook.in_doubt += in_state("in_doubt");
            outlook.lost += in_state("lost");
        }
        Some((weeks, outlook))
    }
}

impl Shared {
    /// What ends ahead, counted over what `scope` allows. A lost consent has ended already and is left out.
    pub(super) fn forecast(&self, scope: Option<Scope<'_>>) -> Forecast {
        let Now { wall, .. } = self.now();
        let mut weeks: BTreeMap<(i64, u16), Ending> = BTreeMap::new();
        let mut overdue = 0;
        self.for_each_grant_once(scope, &mut |_, slot| {
            let brief = slot.brief();
            let Some(end) = brief.consent_ends.filter(|_| brief.state != State::Lost) else { return };
            if end <= wall {
                overdue += 1;
                return;
            }
            weeks.entry((week_of(end), slot.provider)).or_default().add(1, u64::from(brief.end_assumed));
        });
        self.forecast_from(overdue, weeks)
    }

    /// A forecast, by what ends in which week at which provider, and how many have ended already.
    pub(super) fn forecast_from(&self, overdue: u64, weeks: BTreeMap<(i64, u16), Ending>) -> Forecast {
        let Now { wall, .. } = self.now();
        let invitations_per_week = even_rate(week_of(wall), overdue, &weeks);
        let later = weeks.values().skip(MAX_LINES).map(|ends| ends.consents).sum();
        let listed = weeks.into_iter().take(MAX_LINES).map(|((week, provider), ends)| EndingWeek {
            week: monday(week),
            provider: self.lanes[usize::from(provider)].name.clone(),
            consents: ends.consents,
            assumed: ends.assumed,
        });
        Forecast { weeks: listed.collect(), later, invitations_per_week }
    }
}

/// The least whole number of invitations a week that keeps up: of what ends up to the end of a week, all must be invited in the
/// weeks before it, and this week counts as one of them for what ends in it. The steepest average decides.
fn even_rate(this_week: i64, overdue: u64, weeks: &BTreeMap<(i64, u16), Ending>) -> u64 {
    let mut ended = overdue;
    let mut rate = overdue;
    for (&(week, _), ends) in weeks {
        ended += ends.consents;
        let left = u64::try_from(week.saturating_sub(this_week)).unwrap_or(0).max(1);
        rate = rate.max(ended.div_ceil(left));
    }
    rate
}

/// The number of the week in UTC that holds `time`; weeks begin on Monday.
pub(super) fn week_of(time: Timestamp) -> i64 {
    (time.as_seconds() - FIRST_MONDAY_SECONDS).div_euclid(WEEK_SECONDS)
}

/// The number of the week that holds a day in UTC, counted from 1970-01-01.
pub(super) const fn week_of_day(day: i64) -> i64 {
    (day.saturating_mul(86_400) - FIRST_MONDAY_SECONDS).div_euclid(WEEK_SECONDS)
}

/// The Monday with which a week begins, as a date.
fn monday(week: i64) -> String {
    let seconds = week.saturating_mul(WEEK_SECONDS).saturating_add(FIRST_MONDAY_SECONDS);
    let moment = jiff::Timestamp::from_second(seconds);
    moment.map_or_else(|_| "9999-12-27".into(), |moment| moment.to_zoned(jiff::tz::TimeZone::UTC).date().to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_week_begins_on_monday() {
        for (time, first) in [
            ("2026-11-22T23:59:59Z", "2026-11-16"),
            ("2026-11-23T00:00:00Z", "2026-11-23"),
            ("2027-01-01T12:00:00Z", "2026-12-28"),
            ("1969-12-28T23:59:59Z", "1969-12-22"),
        ] {
            let time: Timestamp = time.parse().expect("valid");
            assert_eq!(monday(week_of(time)), first, "{time:?}");
            assert_eq!(week_of_day(time.as_seconds().div_euclid(86_400)), week_of(time), "{time:?}");
        }
        assert_eq!(monday(week_of(Timestamp::from_millis(i64::MAX))), "9999-12-27");
    }

    fn ending(weeks: &[(i64, u64)]) -> BTreeMap<(i64, u16), Ending> {
        weeks.iter().map(|&(week, consents)| ((week, 0), Ending { consents, assumed: 0 })).collect()
    }

    #[test]
    fn a_peak_is_spread_over_the_weeks_before_it() {
        assert_eq!(even_rate(0, 0, &ending(&[(20, 4000)])), 200);
        assert_eq!(even_rate(0, 0, &ending(&[(0, 7)])), 7, "what ends this week is invited this week");
        assert_eq!(even_rate(0, 0, &ending(&[(2, 100), (10, 100)])), 50, "the soonest decide where they are many");
        assert_eq!(even_rate(0, 30, &ending(&[(10, 10)])), 30, "who is late already is invited at once");
        assert_eq!(even_rate(0, 0, &ending(&[])), 0);
    }

    proptest! {
        #[test]
        fn the_rate_keeps_up_and_a_smaller_one_does_not(
            overdue in 0_u64..50,
            weeks in prop::collection::btree_map((0_i64..60, 0_u16..3), 1_u64..500, 0..40),
        ) {
            let weeks: BTreeMap<_, _> =
                weeks.into_iter().map(|(key, consents)| (key, Ending { consents, assumed: 0 })).collect();
            let keeps_up = |rate: u64| {
                overdue <= rate
                    && weeks.keys().all(|&(last, _)| {
                        let ended: u64 = weeks.iter().filter(|((week, _), _)| *week <= last).map(|(_, e)| e.consents).sum();
                        ended + overdue <= rate * u64::try_from(last.max(1)).expect("not negative")
                    })
            };
            let rate = even_rate(0, overdue, &weeks);
            prop_assert!(keeps_up(rate));
            prop_assert!(rate == 0 || !keeps_up(rate - 1));
        }
    }
}
