//! What an issuer writes, made fit to be seen: issuers echo what they were sent, and some of it is secret.

use std::fmt::Write as _;

use reqwest::header::HeaderValue;
use url::form_urlencoded::byte_serialize;

use crate::model::{Secret, Wiped};

/// The longest detail, in characters.
const MAX_DETAIL: usize = 200;
/// Runs of characters that tokens are made of are hidden from this length on; a UUID, which issuers give to trace a
/// request, has 36 and stays.
const MIN_HIDDEN_RUN: usize = 40;
/// What stands where a secret stood.
const HIDDEN: &str = "[hidden]";

/// Hides the secrets of one request in whatever comes back.
///
/// One is made for each request and seldom used: only then it is worked out how its secrets may be spelt.
pub(super) struct Cleaner {
    secrets: Vec<Secret>,
    /// The header with Basic credentials.
    authorization: Option<HeaderValue>,
}

impl Cleaner {
    /// A cleaner for text that comes back on a request which held `secrets`.
    pub(super) fn of<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        Self { secrets: secrets.into_iter().cloned().collect(), authorization: None }
    }

    /// Hides one more spelling: the Basic credentials of the request's header, where it had them.
    pub(super) fn hiding(self, authorization: Option<HeaderValue>) -> Self {
        Self { authorization, ..self }
    }

    /// Every spelling in which a secret left, the longest first, so that none hides only a part of another.
    fn spellings(&self) -> Vec<Wiped<String>> {
        let mut spellings: Vec<Wiped<String>> = Vec::new();
        for secret in &self.secrets {
            let text = without_controls(secret.expose());
            if text.is_empty() {
                continue;
            }
            let encoded: Wiped<String> = Wiped::new(byte_serialize(secret.expose().as_bytes()).collect());
            if *encoded != *text {
                spellings.push(encoded);
            }
            spellings.push(text);
        }
        let header = self.authorization.as_ref().and_then(|header| header.to_str().ok());
        let basic = header.and_then(|text| text.strip_prefix("Basic ")).map(|text| text.trim_end_matches('='));
        if let Some(text) = basic.filter(|text| !text.is_empty()) {
            spellings.push(Wiped::new(text.to_owned()));
        }
        spellings.sort_by_key(|spelling| std::cmp::Reverse(spelling.len()));
        spellings
    }

    /// `text` on one line, with nothing of a secret, at most [`MAX_DETAIL`] characters.
    pub(super) fn clean(&self, text: &str) -> String {
        // Control characters go first: one in the midst of an echoed secret must not keep it from being found. The
        // cut comes last: it must not leave half a secret.
        let mut text = without_controls(text);
        for spelling in self.spellings() {
            if text.contains(spelling.as_str()) {
                text = Wiped::new(text.replace(spelling.as_str(), HIDDEN));
            }
        }
        let text = hide_long_runs(&text);
        match text.char_indices().nth(MAX_DETAIL) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_string(),
        }
    }
}

/// The text of an error and of all that caused it, cleaned; for errors that hold nothing of a request's secrets.
pub fn of_error(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    Cleaner::of([]).clean(&text)
}

fn without_controls(text: &str) -> Wiped<String> {
    // Format characters of Unicode that reorder a line are as unwelcome in a log as control characters.
    let is_reordering =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut kept = Wiped::new(String::with_capacity(text.len()));
    kept.extend(text.chars().filter(|&c| !c.is_control() && !is_reordering(c)));
    kept
}

/// Whatever looks like a token is hidden even if it was not sent: an issuer may name an older one.
fn hide_long_runs(text: &str) -> Wiped<String> {
    let is_token_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '_' | '=' | '-');
    let mut shown = Wiped::new(String::with_capacity(text.len()));
    let mut rest = text;
    while let Some(start) = rest.find(is_token_char) {
        let end = rest[start..].find(|c| !is_token_char(c)).map_or(rest.len(), |length| start + length);
        shown.push_str(&rest[..start]);
        let run = &rest[start..end];
        shown.push_str(if run.len() >= MIN_HIDDEN_RUN { HIDDEN } else { run });
        rest = &rest[end..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echoed_secret_is_hidden_in_every_spelling() {
        let secret = Secret::new("pa ss/word");
        let cleaner = Cleaner::of([&secret]);
        assert_eq!(cleaner.clean("bad pa ss/word!"), "bad [hidden]!");
        assert_eq!(cleaner.clean("bad pa+ss%2Fword!"), "bad [hidden]!");
        assert_eq!(cleaner.clean("bad pa s\r\ns/wo\0rd!"), "bad [hidden]!");
    }

    #[test]
    fn the_longer_of_two_secrets_is_hidden_whole() {
        let (short, long) = (Secret::new("abc"), Secret::new("abcdef"));
        assert_eq!(Cleaner::of([&short, &long]).clean("abcdef"), "[hidden]");
    }

    #[test]
    fn a_secret_across_the_cut_leaves_no_half() {
        let secret = Secret::new("sekret-marker");
        let text = format!("{}sekret-marker", ". ".repeat(97));
        let cleaned = Cleaner::of([&secret]).clean(&text);
        assert!(!cleaned.contains("sek"), "{cleaned}");
        assert!(cleaned.chars().count() <= MAX_DETAIL + 1);
    }

    #[test]
    fn what_looks_like_a_token_is_hidden_and_a_trace_id_is_not() {
        let cleaner = Cleaner::of([]);
        assert_eq!(cleaner.clean(&format!("token {} spent", "0a".repeat(32))), "token [hidden] spent");
        let traced = "trace 123e4567-e89b-12d3-a456-426614174000";
        assert_eq!(cleaner.clean(traced), traced);
    }

    #[test]
    fn an_empty_secret_hides_nothing() {
        assert_eq!(Cleaner::of([&Secret::new("")]).clean("plain æøå"), "plain æøå");
    }
}
