//! A day, as people write it.

use jiff::tz::TimeZone;

use super::language::Language;
use crate::model::Timestamp;

const ENGLISH: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DANISH: [&str; 12] = [
    "januar",
    "februar",
    "marts",
    "april",
    "maj",
    "juni",
    "juli",
    "august",
    "september",
    "oktober",
    "november",
    "december",
];

/// The day on which `at` lies in that time zone, e.g. `21 May 2027` and `21. maj 2027`.
pub(super) fn day(at: Timestamp, zone: &TimeZone, language: Language) -> String {
    let Ok(moment) = jiff::Timestamp::from_second(at.as_seconds()) else { return at.to_string() };
    let date = moment.to_zoned(zone.clone()).date();
    let month = usize::try_from(date.month() - 1).unwrap_or(0);
    match language {
        Language::English => format!("{} {} {}", date.day(), ENGLISH[month], date.year()),
        Language::Danish => format!("{}. {} {}", date.day(), DANISH[month], date.year()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_that_of_the_time_zone() {
        let zone = TimeZone::get("Europe/Copenhagen").expect("known");
        let at: Timestamp = "2026-12-31T23:30:00Z".parse().expect("a time");
        assert_eq!(day(at, &zone, Language::English), "1 January 2027");
        assert_eq!(day(at, &zone, Language::Danish), "1. januar 2027");
        assert_eq!(day(at, &TimeZone::UTC, Language::Danish), "31. december 2026");
        assert!(!day(Timestamp::from_millis(i64::MAX), &zone, Language::English).is_empty());
    }
}
