//! Numbers, days and words as people read them.

use std::time::Duration;

use jiff::{
    Span,
    civil::Date,
    tz::{Offset, TimeZone},
};

use crate::model::Timestamp;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// `12345` as `12,345`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with its noun: `1 consent`, `2,000 consents`.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A time span by its largest unit, rounded down: `12 days`, `5 hours`, `1 minute`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        DAY.. => counted(seconds / DAY, "day", "days"),
        HOUR.. => counted(seconds / HOUR, "hour", "hours"),
        _ => counted((seconds / MINUTE).max(1), "minute", "minutes"),
    }
}

/// The date in UTC.
pub(super) fn date(time: Timestamp) -> Date {
    let time = jiff::Timestamp::from_second(time.as_seconds()).unwrap_or(jiff::Timestamp::MAX);
    Offset::UTC.to_datetime(time).date()
}

/// A date as `23 Nov 2026`.
pub(super) fn day(date: Date) -> String {
    format!("{} {} {}", date.day(), month(date), date.year())
}

/// A date's month in three letters.
pub(super) fn month(date: Date) -> &'static str {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let number = usize::try_from(date.month()).unwrap_or(1);
    MONTHS[number.clamp(1, 12) - 1]
}

/// The Monday of the week that holds `date`.
pub(super) fn monday(date: Date) -> Date {
    later(date, -i64::from(date.weekday().to_monday_zero_offset()))
}

/// So many days later; the date itself where the calendar ends.
pub(super) fn later(date: Date, days: i64) -> Date {
    Span::new().try_days(days).and_then(|span| date.checked_add(span)).unwrap_or(date)
}

/// The date's first moment in UTC.
pub(super) fn begins(date: Date) -> Timestamp {
    let zoned = date.to_zoned(TimeZone::UTC);
    Timestamp::from_millis(zoned.map_or(i64::MAX, |zoned| zoned.timestamp().as_millisecond()))
}

/// A state's or reason's word without its underscore.
pub(super) fn word(word: &str) -> String {
    word.replace('_', " ")
}

/// Bytes by their largest unit: `12 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
        1_000_000.. => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} KB", bytes.div_ceil(1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_groups() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "day", "days"), "1 day");
    }

    #[test]
    fn a_span_is_told_by_its_largest_unit() {
        for (seconds, text) in [
            (0, "1 minute"),
            (7199, "1 hour"),
            (2 * DAY - 1, "1 day"),
            (2 * DAY, "2 days"),
            (59 * MINUTE, "59 minutes"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn weeks_begin_on_monday_and_days_at_midnight_in_utc() {
        let time: Timestamp = "2026-11-22T23:59:59Z".parse().expect("valid");
        let monday = monday(date(time));
        assert_eq!((day(monday).as_str(), monday.to_string().as_str()), ("16 Nov 2026", "2026-11-16"));
        assert_eq!(begins(later(monday, 7)).to_string(), "2026-11-23T00:00:00Z");
        assert_eq!(begins(date(Timestamp::from_millis(i64::MAX))), begins(date(Timestamp::from_millis(i64::MAX))));
    }
}
