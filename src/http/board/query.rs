//! What a reader of the board asks for, as it stands in the address: every part is optional, and what makes no sense is
//! taken as not said, since an address may be typed or old.

use std::time::Duration;

use jiff::civil::Date;
use url::form_urlencoded;

use super::words;
use crate::{
    keeper::{Mark, Order, Search},
    metrics::STATES,
    model::{ProviderName, Timestamp},
};

/// Rows of one page.
pub(super) const ROWS: usize = 50;
/// The longest text that is searched for, in characters; an id and a label's value have no more to tell apart.
const MAX_TEXT: usize = 128;
/// The choices of "ends within", in days.
pub(super) const WITHIN: [u16; 4] = [7, 14, 30, 90];
const DAY: Duration = Duration::from_hours(24);

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Query {
    pub(super) text: String,
    pub(super) state: Option<&'static str>,
    pub(super) provider: Option<ProviderName>,
    pub(super) ends: Option<Ends>,
    pub(super) order: Order,
    pub(super) after: Option<Mark>,
}

/// When a consent should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// It has ended.
    Past,
    /// It ends from now on, within so many days.
    Within(u16),
    /// It ends in the week of this Monday, in UTC.
    Week(Date),
}

impl Ends {
    fn read(text: &str) -> Option<Self> {
        if text == "past" {
            return Some(Self::Past);
        }
        if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse().ok()) {
            return WITHIN.contains(&days).then_some(Self::Within(days));
        }
        text.parse().ok().map(|date| Self::Week(words::monday(date)))
    }

    /// As it stands in an address.
    pub(super) fn written(self) -> String {
        match self {
            Self::Past => "past".to_owned(),
            Self::Within(days) => format!("{days}d"),
            Self::Week(monday) => monday.to_string(),
        }
    }

    fn range(self, now: Timestamp) -> std::ops::Range<Timestamp> {
        match self {
            Self::Past => Timestamp::from_millis(i64::MIN)..now,
            Self::Within(days) => now..now + DAY * u32::from(days),
            Self::Week(monday) => words::begins(monday)..words::begins(words::later(monday, 7)),
        }
    }
}

/// An order as it stands in an address.
const fn word_of(order: Order) -> &'static str {
    match order {
        Order::Ends => "ends",
        Order::Fetched => "fetched",
        Order::Id => "id",
    }
}

impl Query {
    /// Reads what follows the `?` of an address.
    pub(super) fn read(text: &str) -> Self {
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*key {
                "q" => query.text = value.trim().chars().take(MAX_TEXT).collect(),
                "state" => query.state = STATES.into_iter().find(|state| *state == value),
                "provider" => query.provider = value.parse().ok(),
                "ends" => query.ends = Ends::read(&value),
                "sort" => {
                    let orders = [Order::Ends, Order::Fetched, Order::Id];
                    query.order = orders.into_iter().find(|order| word_of(*order) == value).unwrap_or_default();
                }
                "after" => query.after = value.parse().ok(),
                _ => {}
            }
        }
        query
    }

    /// What the keeper is to look for.
    pub(super) fn search(&self, now: Timestamp) -> Search {
        Search {
            text: self.text.clone(),
            state: self.state.map(str::to_owned),
            provider: self.provider.clone(),
            ends: self.ends.map(|ends| ends.range(now)),
            order: self.order,
            after: self.after.clone(),
            limit: ROWS,
        }
    }

    /// The address of the board with this query: `board?…`, for pages at the board's own level.
    pub(super) fn address(&self) -> String {
        let written = self.written();
        if written.is_empty() { "board".to_owned() } else { format!("board?{written}") }
    }

    /// As it follows the `?` of an address; empty for one that asks for nothing.
    pub(super) fn written(&self) -> String {
        let mut pairs = form_urlencoded::Serializer::new(String::new());
        if !self.text.is_empty() {
            pairs.append_pair("q", &self.text);
        }
        if let Some(state) = self.state {
            pairs.append_pair("state", state);
        }
        if let Some(provider) = &self.provider {
            pairs.append_pair("provider", provider.as_str());
        }
        if let Some(ends) = self.ends {
            pairs.append_pair("ends", &ends.written());
        }
        if self.order != Order::default() {
            pairs.append_pair("sort", word_of(self.order));
        }
        if let Some(after) = &self.after {
            pairs.append_pair("after", &after.to_string());
        }
        pairs.finish()
    }

    /// Whether it leaves anything out.
    pub(super) fn is_narrowed(&self) -> bool {
        !self.text.is_empty() || self.state.is_some() || self.provider.is_some() || self.ends.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_was_written() {
        for text in [
            "",
            "q=a%26b+%C3%B8&state=in_doubt&provider=visma-connect&ends=30d&sort=fetched&after=1.5.dk-1",
            "ends=2026-11-23",
            "ends=past&sort=id",
        ] {
            assert_eq!(Query::read(text).written(), text);
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_said() {
        let odd = "state=dead&provider=A&ends=31d&sort=x&after=y&other=1&q=++";
        assert_eq!(Query::read(odd), Query::default());
        assert_eq!(Query::read("ends=2026-11-25").written(), "ends=2026-11-23", "a week is named by its Monday");
        assert_eq!(Query::read(&format!("q={}", "x".repeat(1000))).text.len(), MAX_TEXT);
    }

    #[test]
    fn what_has_ended_does_not_end_within_thirty_days() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().expect("valid");
        let range = Ends::Within(30).range(now);
        assert!(range.contains(&now) && !range.contains(&(now - DAY)) && !range.contains(&(now + DAY * 30)));
        assert!(Ends::Past.range(now).contains(&(now - DAY)) && !Ends::Past.range(now).contains(&now));
    }
}
