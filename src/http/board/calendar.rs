//! The calendar of endings: how many consents end in each of the coming weeks, as a picture for those who see it and as a
//! table for everybody.

use std::collections::BTreeMap;

use jiff::civil::Date;

use super::{
    html::Html,
    query::{Ends, Query},
    words,
};
use crate::{
    model::{ProviderName, Timestamp},
    wire::ForecastWeek,
};

/// Weeks that are shown at least and at most: a quarter, and the longest life of a consent.
const LEAST_WEEKS: usize = 13;
const MOST_WEEKS: usize = 53;
/// Providers with a colour of their own; further ones share the last.
pub(super) const COLOURS: usize = 8;

/// The picture's size and where the bars are in it, in units of its own.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 44.0;
const TOP: f64 = 14.0;
const FLOOR: f64 = 190.0;
/// How much of its place a bar takes.
const THICKNESS: f64 = 0.72;

/// Consents by week and provider, in the order of the weeks, the empty ones included.
struct Weeks {
    weeks: Vec<(Date, BTreeMap<ProviderName, u64>)>,
    /// Those that end after the last week shown.
    later: u64,
}

impl Weeks {
    fn of(forecast: &[ForecastWeek], now: Timestamp) -> Self {
        let first = words::monday(words::date(now));
        let mut counts: BTreeMap<Date, BTreeMap<ProviderName, u64>> = BTreeMap::new();
        for week in forecast {
            if let Ok(monday) = week.week.parse::<Date>() {
                *counts.entry(monday).or_default().entry(week.provider.clone()).or_default() += week.consents;
            }
        }
        let place = |number: usize| words::later(first, 7 * i64::try_from(number).unwrap_or_default());
        let wanted = (LEAST_WEEKS..MOST_WEEKS).find(|number| counts.range(place(*number)..).next().is_none());
        let shown = wanted.unwrap_or(MOST_WEEKS);
        let later = counts.range(place(shown)..).flat_map(|(_, week)| week.values()).sum();
        let weeks = (0..shown).map(place).map(|monday| (monday, counts.remove(&monday).unwrap_or_default()));
        Self { weeks: weeks.collect(), later }
    }

    fn sums(&self) -> impl Iterator<Item = (Date, u64)> {
        self.weeks.iter().map(|(monday, providers)| (*monday, providers.values().sum()))
    }
}

/// The section. `providers` gives the colours, by their place in it.
pub(super) fn calendar(forecast: &[ForecastWeek], providers: &[ProviderName], now: Timestamp) -> Html {
    let weeks = Weeks::of(forecast, now);
    let all: u64 = weeks.sums().map(|(_, consents)| consents).sum();
    let mut html = Html::new();
    html.raw("<section aria-labelledby=\"endings\" class=\"card\"><h2 id=\"endings\">What ends when</h2><figure>");
    html.raw("<figcaption>").text(summary(&weeks, all)).raw("</figcaption>");
    if all > 0 {
        legend(&mut html, &weeks, providers);
        picture(&mut html, &weeks, providers);
        html.raw("</figure><details><summary>The same as a table</summary>");
        table(&mut html, &weeks, providers);
        html.raw("</details></section>");
    } else {
        html.raw("</figure></section>");
    }
    html
}

fn summary(weeks: &Weeks, all: u64) -> String {
    let shown = weeks.weeks.len();
    let later = match weeks.later {
        0 => String::new(),
        later => format!(" {} later.", words::counted(later, "ends", "end")),
    };
    // Of equal weeks the first: it is the next to prepare for.
    let most = weeks.sums().fold(None, |most: Option<(Date, u64)>, week| match most {
        Some(most) if most.1 >= week.1 => Some(most),
        _ => Some(week),
    });
    match most {
        Some((monday, most)) if all > 0 => format!(
            "{} in the coming {shown} weeks; most of them, {}, in the week of {}.{later}",
            words::counted(all, "consent ends", "consents end"),
            words::count(most),
            words::day(monday)
        ),
        _ => format!("No consent ends on a known date in the coming {shown} weeks.{later}"),
    }
}

fn colour(provider: &ProviderName, providers: &[ProviderName]) -> usize {
    providers.iter().position(|known| known == provider).unwrap_or(COLOURS).min(COLOURS - 1)
}

/// Only where there is something to tell apart.
fn legend(html: &mut Html, weeks: &Weeks, providers: &[ProviderName]) {
    let shown = providers.iter().filter(|provider| weeks.weeks.iter().any(|(_, week)| week.contains_key(*provider)));
    let shown: Vec<&ProviderName> = shown.collect();
    if shown.len() < 2 {
        return;
    }
    html.raw("<ul class=\"legend\" aria-hidden=\"true\">");
    for provider in shown {
        html.raw("<li><span class=\"swatch c").text(colour(provider, providers)).raw("\"></span>");
        html.text(provider).raw("</li>");
    }
    html.raw("</ul>");
}

/// Hidden from readers of the table: it says the same.
fn picture(html: &mut Html, weeks: &Weeks, providers: &[ProviderName]) {
    let most = weeks.sums().map(|(_, consents)| consents).max().unwrap_or(0);
    let (top, step) = scale(most);
    let height = |consents: u64| share(consents, top) * (FLOOR - TOP);
    html.raw("<div class=\"chart\"><svg aria-hidden=\"true\" viewBox=\"0 0 ").text(WIDTH).raw(" ").text(HEIGHT);
    html.raw("\" preserveAspectRatio=\"xMinYMin meet\">");
    for line in (0..=top / step).map(|line| line * step) {
        let y = FLOOR - height(line);
        html.raw("<line class=\"grid\" x1=\"").text(LEFT).raw("\" x2=\"").text(WIDTH).raw("\" y1=\"").text(round(y));
        html.raw("\" y2=\"").text(round(y)).raw("\"/><text class=\"axis end\" x=\"").text(LEFT - 8.0).raw("\" y=\"");
        html.text(round(y + 4.0)).raw("\">").text(words::count(line)).raw("</text>");
    }
    let place = (WIDTH - LEFT) / f64::from(u32::try_from(weeks.weeks.len()).unwrap_or(1).max(1));
    let mut x = LEFT;
    let mut month = None;
    for (number, (monday, week)) in weeks.weeks.iter().enumerate() {
        if month != Some(monday.month()) {
            // Not where it would stand in the next one's way.
            if number == 0 || weeks.weeks.len() - number > 1 {
                html.raw("<text class=\"axis\" x=\"").text(round(x)).raw("\" y=\"").text(FLOOR + 20.0).raw("\">");
                html.text(words::month(*monday)).raw("</text>");
            }
            month = Some(monday.month());
        }
        if !week.is_empty() {
            bar(html, *monday, week, &Bar { x, place, providers, height: &height });
        }
        x += place;
    }
    html.raw("</svg></div>");
}

/// Where a bar stands.
struct Bar<'a> {
    x: f64,
    place: f64,
    providers: &'a [ProviderName],
    height: &'a dyn Fn(u64) -> f64,
}

/// One week's bar: a link to what ends in it, for who points at it. Those who use the keyboard have the table's links.
fn bar(html: &mut Html, monday: Date, week: &BTreeMap<ProviderName, u64>, at: &Bar<'_>) {
    let address = Query { ends: Some(Ends::Week(monday)), ..Query::default() }.address();
    html.raw("<a tabindex=\"-1\" href=\"")
        .text(address)
        .raw("#organizations\"><title>Week of ")
        .text(words::day(monday));
    for (provider, consents) in week {
        html.raw("\n").text(provider).raw(": ").text(words::count(*consents));
    }
    html.raw("</title><rect class=\"place\" x=\"").text(round(at.x)).raw("\" y=\"").text(TOP).raw("\" width=\"");
    html.text(round(at.place)).raw("\" height=\"").text(FLOOR - TOP).raw("\"/>");
    let mut y = FLOOR;
    for (provider, consents) in week {
        let height = (at.height)(*consents).max(1.0);
        y -= height;
        html.raw("<rect class=\"c").text(colour(provider, at.providers)).raw("\" x=\"");
        html.text(round(at.x + at.place * (1.0 - THICKNESS) / 2.0)).raw("\" y=\"").text(round(y)).raw("\" width=\"");
        html.text(round(at.place * THICKNESS)).raw("\" height=\"").text(round(height)).raw("\" rx=\"1\"/>");
    }
    html.raw("</a>");
}

fn table(html: &mut Html, weeks: &Weeks, providers: &[ProviderName]) {
    let shown: Vec<&ProviderName> =
        providers.iter().filter(|provider| weeks.weeks.iter().any(|(_, week)| week.contains_key(*provider))).collect();
    html.raw("<div class=\"scroll\"><table><caption class=\"unseen\">Consents that end, by week</caption><thead><tr>");
    html.raw("<th scope=\"col\">Week of</th>");
    for provider in &shown {
        html.raw("<th scope=\"col\" class=\"number\">").text(provider).raw("</th>");
    }
    html.raw("<th scope=\"col\" class=\"number\">All</th></tr></thead><tbody>");
    for (monday, week) in weeks.weeks.iter().filter(|(_, week)| !week.is_empty()) {
        let address = Query { ends: Some(Ends::Week(*monday)), ..Query::default() }.address();
        html.raw("<tr><th scope=\"row\"><a href=\"").text(address).raw("#organizations\">").text(words::day(*monday));
        html.raw("</a></th>");
        for provider in &shown {
            let consents = week.get(*provider).copied().unwrap_or(0);
            html.raw("<td class=\"number\">").text(words::count(consents)).raw("</td>");
        }
        html.raw("<td class=\"number\">").text(words::count(week.values().sum())).raw("</td></tr>");
    }
    html.raw("</tbody></table></div>");
}

/// The top of a scale that holds `most`, and the step between its lines: 1, 2 or 5 times a power of ten, so that there are
/// at most five lines above the floor.
fn scale(most: u64) -> (u64, u64) {
    let mut step = 1_u64;
    for factor in [2, 5, 10].into_iter().cycle() {
        if most.div_ceil(step) <= 5 {
            break;
        }
        let power = 10_u64.saturating_pow(step.ilog10());
        step = power.saturating_mul(factor);
    }
    (most.div_ceil(step).max(1).saturating_mul(step), step)
}

#[expect(clippy::cast_precision_loss, reason = "a picture shows no 53rd bit")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// To a tenth of a unit, which is less than a pixel.
fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(name: &str) -> ProviderName {
        name.parse().expect("a name")
    }

    fn week(monday: &str, name: &str, consents: u64) -> ForecastWeek {
        ForecastWeek { week: monday.to_owned(), provider: provider(name), consents, assumed: 0 }
    }

    fn now() -> Timestamp {
        "2026-11-25T12:00:00Z".parse().expect("valid")
    }

    #[test]
    fn a_scale_holds_the_most_with_few_round_lines() {
        for (most, expected) in [
            (0, (1, 1)),
            (1, (1, 1)),
            (5, (5, 1)),
            (6, (6, 2)),
            (11, (15, 5)),
            (26, (30, 10)),
            (100_000, (100_000, 20_000)),
        ] {
            assert_eq!(scale(most), expected, "{most}");
        }
        for most in 1..20_000 {
            let (top, step) = scale(most);
            assert!(top >= most && top - most < step && top / step <= 5 && top % step == 0, "{most}: {top} by {step}");
        }
        assert!(scale(u64::MAX).0 > 0);
    }

    #[test]
    fn weeks_reach_as_far_as_consents_end_and_what_is_later_is_counted() {
        let weeks = Weeks::of(&[week("2026-11-23", "a", 2)], now());
        assert_eq!((weeks.weeks.len(), weeks.later), (LEAST_WEEKS, 0));
        assert_eq!(weeks.weeks[0].0.to_string(), "2026-11-23");
        let weeks = Weeks::of(&[week("2026-11-23", "a", 2), week("2028-01-03", "a", 3)], now());
        assert_eq!((weeks.weeks.len(), weeks.later), (MOST_WEEKS, 3));
        let weeks = Weeks::of(&[week("2027-05-24", "a", 2)], now());
        assert_eq!(weeks.weeks.last().map(|(monday, _)| monday.to_string()).as_deref(), Some("2027-05-24"));
    }

    #[test]
    fn the_calendar_is_told_in_words_in_a_picture_and_in_a_table() {
        let forecast = [week("2026-11-23", "a", 2), week("2026-12-07", "a", 1), week("2026-12-07", "b", 1234)];
        let html = calendar(&forecast, &[provider("a"), provider("b")], now()).into_string();
        for part in [
            "1,237 consents end in the coming 13 weeks; most of them, 1,235, in the week of 7 Dec 2026.",
            "<title>Week of 7 Dec 2026\na: 1\nb: 1,234</title>",
            "<span class=\"swatch c1\"></span>b</li>",
            "<a href=\"board?ends=2026-12-07#organizations\">7 Dec 2026</a></th><td class=\"number\">1</td>",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        let html = calendar(&[], &[provider("a")], now()).into_string();
        assert!(html.contains("No consent ends on a known date") && !html.contains("<svg"), "{html}");
    }
}
