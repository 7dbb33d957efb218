use chrono::{Datelike, NaiveDate, NaiveDateTime, TimeZone as _, Timelike, Utc};
use croner::parser::{CronParser, Seconds};
use jiff::{civil, tz::TimeZone};

use crate::model::Timestamp;

/// How many steps back are tried where a moment that was found is, by daylight saving, later than now.
const MAX_STEPS: usize = 4;

/// The last moment at or before `now` that a cron pattern with seconds names, read as the clock on the wall of `timezone`
/// shows it; `None` where there is none, or where either makes no sense.
///
/// A time that daylight saving leaves out counts as so much later; one that comes twice counts the first time.
pub(super) fn last_due(pattern: &str, timezone: &str, now: Timestamp) -> Option<Timestamp> {
    let pattern = CronParser::builder().seconds(Seconds::Required).build().parse(pattern).ok()?;
    let zone = TimeZone::get(timezone).ok()?;
    let local = jiff::Timestamp::from_millisecond(now.as_millis()).ok()?.to_zoned(zone.clone()).datetime();
    // The pattern is looked up on a calendar without daylight saving, on which every time is there once.
    let mut from = Utc.from_utc_datetime(&to_chrono(local)?);
    for inclusive in std::iter::once(true).chain(std::iter::repeat(false)).take(MAX_STEPS) {
        from = pattern.find_previous_occurrence(&from, inclusive).ok()?;
        let moment = from_chrono(from.naive_utc())?.to_zoned(zone.clone()).ok()?.timestamp();
        let moment = Timestamp::from_millis(moment.as_millisecond());
        if moment <= now {
            return Some(moment);
        }
    }
    None
}

fn to_chrono(at: civil::DateTime) -> Option<NaiveDateTime> {
    let part = |number: i8| u32::try_from(number).ok();
    NaiveDate::from_ymd_opt(at.year().into(), part(at.month())?, part(at.day())?)?.and_hms_opt(
        part(at.hour())?,
        part(at.minute())?,
        part(at.second())?,
    )
}

fn from_chrono(at: NaiveDateTime) -> Option<civil::DateTime> {
    let part = |number: u32| i8::try_from(number).ok();
    let year = i16::try_from(at.year()).ok()?;
    let (month, day) = (part(at.month())?, part(at.day())?);
    civil::DateTime::new(year, month, day, part(at.hour())?, part(at.minute())?, part(at.second())?, 0).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const NIGHTLY: &str = "0 30 2 * * *";

    #[rstest]
    // Denmark is an hour ahead of UTC in winter, two in summer.
    #[case::just_now(NIGHTLY, "2026-11-22T01:30:00Z", Some("2026-11-22T01:30:00Z"))]
    #[case::a_second_before(NIGHTLY, "2026-11-22T01:29:59Z", Some("2026-11-21T01:30:00Z"))]
    #[case::in_summer(NIGHTLY, "2026-07-01T12:00:00Z", Some("2026-07-01T00:30:00Z"))]
    #[case::before_a_time_left_out(NIGHTLY, "2026-03-29T01:29:59Z", Some("2026-03-28T01:30:00Z"))]
    #[case::a_time_left_out(NIGHTLY, "2026-03-29T01:30:00Z", Some("2026-03-29T01:30:00Z"))]
    #[case::a_time_that_comes_twice(NIGHTLY, "2026-10-25T00:30:00Z", Some("2026-10-25T00:30:00Z"))]
    #[case::and_its_second_coming(NIGHTLY, "2026-10-25T01:45:00Z", Some("2026-10-25T00:30:00Z"))]
    #[case::weekly("0 0 8 * * Mon", "2026-11-22T12:00:00Z", Some("2026-11-16T07:00:00Z"))]
    #[case::seconds("*/10 * * * * *", "2026-11-22T12:00:07Z", Some("2026-11-22T12:00:00Z"))]
    #[case::nonsense("whenever", "2026-11-22T12:00:00Z", None)]
    fn the_last_time_by_the_clock_on_the_wall(
        #[case] pattern: &str,
        #[case] now: Timestamp,
        #[case] expected: Option<&str>,
    ) {
        let expected = expected.map(|text| text.parse().expect("a time"));
        assert_eq!(last_due(pattern, "Europe/Copenhagen", now), expected);
    }

    /// Where clocks go forward and back in another season, by half an hour, at midnight, and never.
    #[rstest]
    #[case("Europe/Copenhagen")]
    #[case("America/New_York")]
    #[case("Australia/Lord_Howe")]
    #[case("America/Santiago")]
    #[case("Asia/Tokyo")]
    fn through_the_years_every_day_has_one_moment_and_no_day_two(#[case] timezone: &str) {
        const LOOKS_A_DAY: u64 = 3;
        let zone = TimeZone::get(timezone).expect("known");
        let date_of = |moment: Timestamp| {
            jiff::Timestamp::from_millisecond(moment.as_millis()).expect("in range").to_zoned(zone.clone()).date()
        };
        for pattern in ["0 0 8 * * *", "0 30 2 * * *", "0 30 0 * * *"] {
            let start: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
            let mut moments = std::collections::BTreeSet::new();
            for looks in 0..3 * 365 * LOOKS_A_DAY {
                let now = start + std::time::Duration::from_hours(looks * 24 / LOOKS_A_DAY);
                moments.extend(last_due(pattern, timezone, now));
            }
            let dates: Vec<_> = moments.iter().map(|moment| date_of(*moment)).collect();
            for pair in dates.windows(2) {
                assert_eq!(pair[0].tomorrow().expect("in range"), pair[1], "{pattern} in {timezone}");
            }
            assert!(dates.len() >= 3 * 365 - 1, "{} days of {pattern} in {timezone}", dates.len());
        }
    }

    #[test]
    fn an_unknown_zone_has_no_times() {
        assert_eq!(last_due(NIGHTLY, "Europe/Atlantis", Timestamp::default()), None);
    }
}
