//! Which language a person reads, by what the browser says.

use axum::http::{HeaderMap, header};

/// How many languages of a header are looked at.
const MAX_LANGUAGES: usize = 32;
/// The longest language tag that is passed on to an issuer, in bytes; RFC 5646 section 4.4.1 asks for no more.
const MAX_TAG: usize = 35;

/// A language that the pages are written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Language {
    /// English, also for all whose language is not there.
    #[default]
    English,
    /// Danish.
    Danish,
}

impl Language {
    /// Its tag (RFC 5646).
    pub(super) const fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Danish => "da",
        }
    }

    /// What `Accept-Language` prefers (RFC 9110 section 12.5.4): by weight, and then by order.
    pub(super) fn preferred(headers: &HeaderMap) -> Self {
        let known = |tag: &str| match tag.split('-').next().map(str::to_ascii_lowercase).as_deref() {
            Some("da") => Some(Self::Danish),
            Some("en") => Some(Self::English),
            _ => None,
        };
        by_preference(headers).iter().find_map(|tag| known(tag)).unwrap_or_default()
    }
}

/// The language to ask an issuer for in `ui_locales`: the browser's first choice, also one that these pages do not speak.
/// Visma Connect's documentation writes Danish with its country.
pub(super) fn for_issuer(headers: &HeaderMap) -> Option<String> {
    let first = by_preference(headers).into_iter().next()?;
    Some(if first.eq_ignore_ascii_case("da") { "da-DK".to_owned() } else { first.to_owned() })
}

/// Well-formed tags, the most wanted first.
fn by_preference(headers: &HeaderMap) -> Vec<&str> {
    let text = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut wanted: Vec<(&str, u32)> = text.split(',').take(MAX_LANGUAGES).filter_map(weighted).collect();
    // A stable sort: what is wanted equally stays in order.
    wanted.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    wanted.into_iter().map(|(tag, _)| tag).collect()
}

/// A tag with its weight in thousandths; `None` where it is no tag, or not wanted at all.
fn weighted(item: &str) -> Option<(&str, u32)> {
    let mut parts = item.split(';').map(str::trim);
    let tag = parts.next().filter(|tag| is_tag(tag))?;
    let weight = match parts.next().map(|part| part.strip_prefix("q=")) {
        None => 1000,
        Some(weight) => thousandths(weight?)?,
    };
    (weight > 0).then_some((tag, weight))
}

fn is_tag(text: &str) -> bool {
    (2..=MAX_TAG).contains(&text.len())
        && text
            .split('-')
            .all(|part| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn thousandths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
    Some((whole.parse::<u32>().ok()? * 1000 + fraction).min(1000))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn headers(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, text.parse().expect("a value"))])
    }

    #[rstest]
    #[case("da", Language::Danish, Some("da-DK"))]
    #[case("da-DK,da;q=0.9,en-US;q=0.8,en;q=0.7", Language::Danish, Some("da-DK"))]
    #[case("en-GB,da;q=0.9", Language::English, Some("en-GB"))]
    #[case("en;q=0.8, da", Language::Danish, Some("da-DK"))]
    #[case("sv-SE,sv;q=0.9,da;q=0.8,en;q=0.5", Language::Danish, Some("sv-SE"))]
    #[case("da;q=0,en;q=0.1", Language::English, Some("en"))]
    #[case("DA-dk", Language::Danish, Some("DA-dk"))]
    #[case("*", Language::English, None)]
    #[case("", Language::English, None)]
    #[case("<script>;q=1", Language::English, None)]
    #[case("da;q=2", Language::English, None)]
    #[case("daX9+1,en;q=nonsense", Language::English, None)]
    fn the_most_wanted_language_wins(#[case] text: &str, #[case] language: Language, #[case] issuer: Option<&str>) {
        assert_eq!(Language::preferred(&headers(text)), language);
        assert_eq!(for_issuer(&headers(text)).as_deref(), issuer);
    }
}
