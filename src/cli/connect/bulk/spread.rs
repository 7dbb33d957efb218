//! On which day each of many invitations is sent, so that neither the customers' questions nor the new consents' ends pile up.

use jiff::{ToSpan, civil::Date};

/// Days before a consent's end by which its invitation is sent: a week for the person to read it, to be reminded, and to act.
pub(super) const SAFE_DAYS: i64 = 7;
/// The longest spread, in days.
pub(super) const MAX_DAYS: i64 = 366;

/// The day on which to send the invitation for each of these ends, which are in order, the soonest first.
///
/// Invitations go out from `today` on for `days` days, Monday to Friday, as evenly as the ends allow: none later than
/// [`SAFE_DAYS`] before its consent's end, or, where that has passed, today. Where too many end soon for an even number a day,
/// the days until then get more, and the rest is even again. The same input gives the same days.
pub(super) fn spread(ends: &[Date], today: Date, days: i64) -> Vec<Date> {
    let offered = working_days(today, days.clamp(1, MAX_DAYS));
    let latest: Vec<Date> = ends.iter().map(|end| last_working_day(end.saturating_sub(SAFE_DAYS.days()))).collect();
    let urgent = latest.partition_point(|latest| offered.first().is_none_or(|first| latest < first));
    // How many must have gone out by the end of each offered day; by the end of the last one, all.
    let mut due: Vec<usize> = offered.iter().map(|day| latest.partition_point(|latest| latest <= day)).collect();
    if let Some(last) = due.last_mut() {
        *last = ends.len();
    }
    let mut sent = vec![today; urgent];
    let mut from = 0;
    while from < offered.len() {
        let (until, count) = steepest(&due, from, sent.len());
        let span = until - from + 1;
        sent.extend((0..count).map(|place| offered[from + place * span / count]));
        from = until + 1;
    }
    sent
}

/// The offered day, by its place, until which the most a day are due where `done` have gone out before `from`, and how many those
/// are; of several such days the last. Their average is the least even pace that is too late for nobody, and what comes
/// after that day can only go slower.
fn steepest(due: &[usize], from: usize, done: usize) -> (usize, usize) {
    let mut best = (from, 0);
    for (until, all) in due.iter().enumerate().skip(from) {
        let count = all.saturating_sub(done);
        // Averages, compared without fractions.
        if count * (best.0 - from + 1) >= best.1 * (until - from + 1) {
            best = (until, count);
        }
    }
    best
}

/// Mondays to Fridays among the `days` days from `today` on; none where these are a weekend's.
fn working_days(today: Date, days: i64) -> Vec<Date> {
    let days = usize::try_from(days).unwrap_or(0);
    today.series(1.day()).take(days).filter(|day| last_working_day(*day) == *day).collect()
}

/// The day itself, or of a Saturday or Sunday the Friday before it.
fn last_working_day(day: Date) -> Date {
    const FRIDAY: i8 = 4;
    let since_friday = day.weekday().to_monday_zero_offset() - FRIDAY;
    if since_friday > 0 { day.saturating_sub(i64::from(since_friday).days()) } else { day }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::civil::date;
    use proptest::prelude::*;

    use super::*;

    const MONDAY: Date = date(2026, 11, 23);

    fn counts(sent: &[Date]) -> BTreeMap<Date, usize> {
        sent.iter().fold(BTreeMap::new(), |mut counts, day| {
            *counts.entry(*day).or_default() += 1;
            counts
        })
    }

    #[test]
    fn a_fleet_that_ends_on_one_day_is_invited_in_equal_parts_on_working_days() {
        let sent = spread(&[date(2027, 3, 1); 2000], MONDAY, 28);
        let counts = counts(&sent);
        assert_eq!((counts.len(), counts.values().min(), counts.values().max()), (20, Some(&100), Some(&100)));
        assert_eq!((sent[0], sent[1999]), (MONDAY, date(2026, 12, 18)));
    }

    #[test]
    fn who_ends_soon_is_invited_first_and_in_time() {
        // Ten end in ten days, so that three days are left to invite them; ten have months.
        let ends = [[date(2026, 12, 3); 10], [date(2027, 3, 1); 10]].concat();
        let sent = spread(&ends, MONDAY, 14);
        assert!(sent[..10].iter().all(|day| *day <= date(2026, 11, 26)), "{sent:?}");
        assert_eq!(sent.last(), Some(&date(2026, 12, 4)));
        assert_eq!(counts(&sent).values().max(), Some(&3), "10 on four days, then 10 on six");
    }

    #[test]
    fn what_cannot_wait_is_sent_today_also_on_a_weekend() {
        let sunday = date(2026, 11, 22);
        assert_eq!(spread(&[date(2026, 11, 1), date(2026, 11, 29), date(2026, 11, 30)], sunday, 7)[..2], [sunday; 2]);
        assert_eq!(spread(&[date(2027, 5, 5)], sunday, 1), [sunday], "no working day is offered");
        assert_eq!(spread(&[], sunday, 28), []);
    }

    proptest! {
        #[test]
        fn none_is_late_none_is_outside_and_no_day_has_more_than_it_must(
            start in 0_i32..400,
            days in 1_i64..120,
            mut ends in prop::collection::vec(-30_i32..300, 0..300),
        ) {
            let today = MONDAY + i64::from(start).days();
            ends.sort_unstable();
            let ends: Vec<Date> = ends.iter().map(|end| today + i64::from(*end).days()).collect();
            let sent = spread(&ends, today, days);
            prop_assert_eq!(sent.len(), ends.len());
            prop_assert!(sent.is_sorted(), "the soonest to end go first");
            for (day, end) in sent.iter().zip(&ends) {
                prop_assert!(*day >= today && *day < today + days.days());
                prop_assert!(*day == today || *day + SAFE_DAYS.days() <= *end, "{} for {}", day, end);
                prop_assert!(*day == today || last_working_day(*day) == *day);
            }
            // Whatever plan there is: what is due by a day goes out on the days until then.
            let offered = working_days(today, days);
            let Some(first) = offered.first() else { return Ok(()) };
            let latest = |end: &Date| last_working_day(*end - SAFE_DAYS.days());
            let waiting: Vec<Date> = ends.iter().map(latest).filter(|latest| latest >= first).collect();
            let least = (1..=offered.len()).map(|days| {
                let all = days == offered.len();
                waiting.iter().filter(|latest| all || **latest <= offered[days - 1]).count().div_ceil(days)
            });
            let mut most = counts(&sent[ends.len() - waiting.len()..]);
            most.retain(|_, count| *count > 0);
            prop_assert_eq!(most.values().max().copied().unwrap_or(0), least.max().unwrap_or(0));
        }
    }
}
