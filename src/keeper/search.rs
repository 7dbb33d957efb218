//! What the board asks for: organizations by any part of their ids and labels, in an order of the reader's choice.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    fmt,
    ops::Range,
    str::FromStr,
    sync::Arc,
};

use super::{Keeper, KeeperError, Shared, blocking::reading, index::Entry};
use crate::{
    model::{OrganizationId, ProviderName, Timestamp},
    wire,
};

/// Rows of one page at most.
pub(super) const MAX_ROWS: usize = 200;
/// Organizations whose labels are read from the vault for one page at most, each some ten microseconds.
const MAX_LABELS_READ: usize = 5000;

/// Which organizations are looked for; every field that is set must fit.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// A part of the id or of a label's key or value; case does not matter. Empty: all.
    pub text: String,
    /// `active`, `failing`, `in_doubt`, `lost` or `paused`.
    pub state: Option<String>,
    /// The provider.
    pub provider: Option<ProviderName>,
    /// The consent ends, or ended, at a moment in here.
    pub ends: Option<Range<Timestamp>>,
    /// Which come first, where all are in memory; else they come in an order of the vault's own, after the one whose id is the text.
    pub order: Order,
    /// Only those that come after this place.
    pub after: Option<Mark>,
    /// How many at most: 1 to 200.
    pub limit: usize,
}

/// Which organizations come first. Those found by their ids always come before those found by a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Whose consent ends first, or ended first; those without an end last.
    #[default]
    Ends,
    /// Whose tokens were fetched longest ago; before them those whose never were.
    Fetched,
    /// The smallest id.
    Id,
}

/// A page of what was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// In order.
    pub organizations: Vec<wire::Organization>,
    /// How many fit in all, on other pages too; of those that fit by a label alone, none is counted. Where not all are in memory, and
    /// more is asked for than a provider and a state: how many are on this page.
    pub matched: u64,
    /// Organizations left whose labels were not looked at, though they might fit by one; where not all are in memory, that were not
    /// looked at at all, about.
    pub unsearched: u64,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Mark>,
}

/// A place in an order: how well it fits, the order's key, the id. Written `0.1790000000000.123`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    fit: Fit,
    key: i64,
    id: OrganizationId,
}

/// How an organization fits the text, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// It is the id.
    Whole,
    /// It is a part of the id, or empty.
    Part,
    /// It may be in a label.
    Label,
}

impl Mark {
    /// A place in the order of the vault's own, which looks like an id.
    pub(super) const fn at(place: OrganizationId) -> Self {
        Self { fit: Fit::Part, key: 0, id: place }
    }

    pub(super) const fn place(&self) -> &OrganizationId {
        &self.id
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fit = match self.fit {
            Fit::Whole => 0,
            Fit::Part => 1,
            Fit::Label => 2,
        };
        write!(f, "{fit}.{}.{}", self.key, self.id)
    }
}

/// Text that is no place in an order.
#[derive(Debug, thiserror::Error)]
#[error("not a place in a list: follow the links of its pages")]
pub struct InvalidMark;

impl FromStr for Mark {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Self, InvalidMark> {
        let mut parts = text.splitn(3, '.');
        let mut part = || parts.next().ok_or(InvalidMark);
        let fit = match part()? {
            "0" => Fit::Whole,
            "1" => Fit::Part,
            "2" => Fit::Label,
            _ => return Err(InvalidMark),
        };
        let key = part()?.parse().map_err(|_| InvalidMark)?;
        Ok(Self { fit, key, id: part()?.parse().map_err(|_| InvalidMark)? })
    }
}

impl Keeper {
    /// A page of organizations. Every id is looked at, in memory; labels are read from the vault, so that only some are
    /// looked at for one page, and [`Found::unsearched`] tells how many are left.
    pub async fn search(&self, search: Search) -> Result<Found, KeeperError> {
        let shared = Arc::clone(&self.shared);
        if !shared.is_loaded() {
            return Err(KeeperError::Starting);
        }
        if let Some(bounded) = &shared.bounded {
            return Box::pin(shared.search_read(bounded, &search)).await;
        }
        reading(async move || shared.search(&search).await).await.map_err(|_| KeeperError::Starting)
    }
}

/// One that may be on the page.
struct Candidate {
    fit: Fit,
    key: i64,
    entry: Arc<Entry>,
}

impl Candidate {
    fn parts(&self) -> (Fit, i64, &OrganizationId) {
        (self.fit, self.key, &self.entry.id)
    }

    fn mark(&self) -> Mark {
        Mark { fit: self.fit, key: self.key, id: self.entry.id.clone() }
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl Shared {
    async fn search(&self, search: &Search) -> Found {
        let text = search.text.to_ascii_lowercase();
        let limit = search.limit.clamp(1, MAX_ROWS);
        let (matched, candidates) = self.candidates(search, &text);
        // A heap instead of a sort: a page is a few dozen of what may be a hundred thousand.
        let mut queue = BinaryHeap::from(candidates);
        let (mut organizations, mut labels_read, mut next) = (Vec::new(), 0, None);
        while organizations.len() < limit && labels_read < MAX_LABELS_READ {
            let Some(Reverse(candidate)) = queue.pop() else { break };
            next = Some(candidate.mark());
            if candidate.fit == Fit::Label {
                labels_read += 1;
                if !self.has_label(&candidate.entry, &text).await {
                    continue;
                }
            }
            match self.view_of(&candidate.entry).await {
                Ok(found) => organizations.extend(found),
                Err(_) => organizations.push(self.unreadable(&candidate.entry)),
            }
        }
        let unsearched = queue.iter().filter(|Reverse(candidate)| candidate.fit == Fit::Label).count();
        Found {
            organizations,
            matched,
            unsearched: u64::try_from(unsearched).unwrap_or(u64::MAX),
            next: next.filter(|_| !queue.is_empty()),
        }
    }

    /// How many fit by what memory knows, and those, and who might fit by a label, that come after the page before.
    fn candidates(&self, search: &Search, text: &str) -> (u64, Vec<Reverse<Candidate>>) {
        let (mut matched, mut candidates) = (0, Vec::new());
        self.for_each_organization(None, &mut |entry| {
            let brief = entry.slot.brief();
            let state = if brief.paused { "paused" } else { brief.state.word() };
            let fits = search.state.as_deref().is_none_or(|wanted| wanted == state)
                && search.provider.as_ref().is_none_or(|wanted| *wanted == self.lane(&entry.slot).name)
                && search.ends.as_ref().is_none_or(|ends| brief.consent_ends.is_some_and(|end| ends.contains(&end)));
            if !fits {
                return;
            }
            let fit = fit(entry.id.as_str(), text);
            matched += u64::from(fit != Fit::Label);
            let key = match search.order {
                Order::Ends => brief.consent_ends.map_or(i64::MAX, Timestamp::as_millis),
                Order::Fetched => entry.last_fetched().map_or(i64::MIN, Timestamp::as_millis),
                Order::Id => 0,
            };
            let candidate = Candidate { fit, key, entry: Arc::clone(entry) };
            let before = search.after.as_ref().map(|mark| (mark.fit, mark.key, &mark.id));
            if before.is_none_or(|before| candidate.parts() > before) {
                candidates.push(Reverse(candidate));
            }
        });
        (matched, candidates)
    }

    /// Whether the text is in one of the organization's labels; a record that cannot be read has none.
    async fn has_label(&self, entry: &Entry, text: &str) -> bool {
        let Ok(Some(record)) = self.vault.organization(&entry.id).await else { return false };
        record.value.labels.iter().any(|(key, value)| holds(key, text) || holds(value, text))
    }
}

fn fit(id: &str, text: &str) -> Fit {
    if id.eq_ignore_ascii_case(text) {
        Fit::Whole
    } else if holds(id, text) {
        Fit::Part
    } else {
        Fit::Label
    }
}

/// Whether `part`, which is in lower case, is in `whole`. ASCII letters are compared without their case, all else, such as
/// æ, ø and å, as it is written or as its lower case is.
pub(super) fn holds(whole: &str, part: &str) -> bool {
    if part.is_empty() {
        return true;
    }
    if whole.is_ascii() {
        return whole.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()));
    }
    whole.to_lowercase().contains(&part.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_in_either_case_and_in_danish() {
        for (whole, part, found) in [
            ("DK-1234", "k-12", true),
            ("dk-1234", "", true),
            ("dk-1234", "dk-12345", false),
            ("Østergårds Bageri ApS", "østergårds", true),
            ("Østergårds Bageri ApS", "ØSTERGÅRDS b", true),
            ("Bageri", "ø", false),
        ] {
            assert_eq!(holds(whole, &part.to_ascii_lowercase()), found, "{part} in {whole}");
        }
    }

    #[test]
    fn an_id_that_is_the_text_comes_before_one_that_has_it_as_a_part() {
        assert_eq!(fit("DK-12", "dk-12"), Fit::Whole);
        assert_eq!(fit("DK-123", "dk-12"), Fit::Part);
        assert_eq!(fit("7", "dk-12"), Fit::Label);
        assert_eq!(fit("7", ""), Fit::Part);
        assert!(Fit::Whole < Fit::Part && Fit::Part < Fit::Label);
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_nothing_else_is() {
        for text in ["0.-5.a.b", "1.9223372036854775807.DK-1", "2.0.x"] {
            assert_eq!(text.parse::<Mark>().expect("a mark").to_string(), text);
        }
        for text in ["", "3.0.x", "1.x.x", "1.0", "1.0.", "1.0.a b"] {
            assert!(text.parse::<Mark>().is_err(), "{text}");
        }
    }
}
