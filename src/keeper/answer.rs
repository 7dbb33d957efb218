//! The answer to a fetch. What one refresh settles of it is written down once and shared by every fetch of that token; a
//! fetch adds the organization, the seconds left, and whether refreshing fails.

use std::{
    fmt,
    io::{self, IoSlice, Write},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use serde::Serialize;
use zeroize::Zeroizing;

use super::slot::BriefAccess;
use crate::model::{AccessToken, OrganizationId, ProviderName, Timestamp};

/// Room for what a fetch adds beside the organization's id: the names of four members, a count of seconds, a time and a
/// reason.
const OWN_ROOM: usize = 160;
/// What keeping a token takes beside its texts, in bytes: the struct, the counters of what is shared, a place in the cache's
/// order, and what allocating the small things rounds up.
const BOOKKEEPING: usize = size_of::<CachedToken>() + 64;
/// Allocating rounds a text up by at most one part in so many.
const ROUNDED_UP: usize = 8;

/// An access token ready to be handed out: the part of the answer that is the same for every fetch of it.
///
/// The text holds the token in clear; it is wiped when this was dropped from the cache and the last answer made of it was sent.
pub(super) struct CachedToken {
    /// The entity tag; the JSON of when the consent ends; and a JSON object with what the refresh settled. In one piece, since of a
    /// thousand that are fetched in turn none is in the processor's cache, and each further piece would be one more wait; and what
    /// is short at its beginning, since that is waited for once.
    text: Zeroizing<Box<[u8]>>,
    /// Where the second of these begins, and the third.
    end: usize,
    settled: usize,
    issued_at: Timestamp,
    expires_at: Timestamp,
    /// When the consent ends, as the text says.
    consent_ends: Option<Timestamp>,
}

/// The members of an answer that a refresh settles, in the order of [`crate::wire::Token`].
#[derive(Serialize)]
struct Settled<'a> {
    provider: &'a ProviderName,
    access_token: &'a str,
    token_type: &'a str,
    scope: Option<&'a str>,
    expires_at: Timestamp,
}

impl CachedToken {
    /// Writes down what is the same for every fetch; `etag` names the token without revealing it.
    pub(super) fn new(
        provider: &ProviderName,
        access: &AccessToken,
        consent_ends: Option<Timestamp>,
        etag: &str,
    ) -> Self {
        let settled = Settled {
            provider,
            access_token: access.token.expose(),
            token_type: &access.token_type,
            scope: access.scope.as_deref(),
            expires_at: access.expires_at,
        };
        // Measured first, so that the text never moves and leaves no copy of the token behind.
        let mut length = Length(etag.len());
        let _ = write_json(&mut length, &settled).and_then(|()| write_json(&mut length, &consent_ends));
        let mut text = Zeroizing::new(Vec::with_capacity(length.0));
        // Writing into memory does not fail, nor does making JSON of these types.
        text.extend_from_slice(etag.as_bytes());
        let end = text.len();
        let _ = write_json(&mut *text, &consent_ends);
        let from = text.len();
        let _ = write_json(&mut *text, &settled);
        Self {
            text: Zeroizing::new(std::mem::take(&mut *text).into_boxed_slice()),
            end,
            settled: from,
            issued_at: access.issued_at,
            expires_at: access.expires_at,
            consent_ends,
        }
    }

    /// Whether these are the times of this token.
    pub(super) fn is_of(&self, times: &BriefAccess) -> bool {
        (self.issued_at, self.expires_at) == (times.issued_at, times.expires_at)
    }

    /// What it takes of the cache's bound, in bytes: text and bookkeeping.
    pub(super) fn cost(&self) -> usize {
        self.text.len() + self.text.len() / ROUNDED_UP + BOOKKEEPING
    }

    /// The members that the refresh settled, without the braces around them.
    fn members(&self) -> &[u8] {
        self.text[self.settled..].strip_prefix(b"{").and_then(|text| text.strip_suffix(b"}")).unwrap_or_default()
    }
}

impl fmt::Debug for CachedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Counts what is written.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_json(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    Ok(serde_json::to_writer(to, what)?)
}

/// An access token that may be handed out now.
#[derive(Clone)]
pub struct Served {
    pub(super) token: Arc<CachedToken>,
    pub(super) organization: OrganizationId,
    /// Whole seconds until the token ends.
    pub(super) expires_in: u64,
    /// When the consent ends, as far as known.
    pub(super) consent_ends: Option<Timestamp>,
    pub(super) degraded: Option<&'static str>,
}

impl Served {
    /// Names the token without revealing it: a quoted strong entity tag (RFC 9110 section 8.8.3).
    pub fn etag(&self) -> &[u8] {
        &self.token.text[..self.token.end]
    }

    /// Why refreshing fails while this token still lives, in the contract's words; `None` while all is well.
    pub const fn degraded(&self) -> Option<&'static str> {
        self.degraded
    }

    /// The JSON of a [`crate::wire::Token`], to be sent.
    pub fn into_text(self) -> AnswerText {
        let mut own = Vec::with_capacity(self.organization.as_str().len() + OWN_ROOM);
        // Neither an organization's id nor a reason holds anything that JSON would escape.
        own.extend_from_slice(b"{\"organization\":\"");
        own.extend_from_slice(self.organization.as_str().as_bytes());
        own.extend_from_slice(b"\",");
        let split = own.len();
        own.extend_from_slice(b",\"expires_in\":");
        let _ = write_json(&mut own, &self.expires_in);
        own.extend_from_slice(b",\"consent_expires_at\":");
        if self.consent_ends == self.token.consent_ends {
            own.extend_from_slice(&self.token.text[self.token.end..self.token.settled]);
        } else {
            let _ = write_json(&mut own, &self.consent_ends);
        }
        own.extend_from_slice(b",\"degraded\":");
        match self.degraded {
            Some(reason) => own.extend([b"\"", reason.as_bytes(), b"\"}"].into_iter().flatten()),
            None => own.extend_from_slice(b"null}"),
        }
        let length = own.len() + self.token.members().len();
        AnswerText { token: self.token, own, split, sent: 0, length }
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("organization", &self.organization)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// The text of an answer, of which the largest part is the cache's own: nothing of the token is copied.
pub struct AnswerText {
    token: Arc<CachedToken>,
    /// What this fetch added: before `split`, what goes before the token's members, and behind it, what follows them.
    own: Vec<u8>,
    split: usize,
    sent: usize,
    length: usize,
}

impl AnswerText {
    /// All that is left to be sent in one piece, which is wiped when it is dropped.
    pub fn into_bytes(mut self) -> Bytes {
        let mut whole = Zeroizing::new(Vec::with_capacity(self.remaining()));
        while self.has_remaining() {
            let chunk = self.chunk();
            whole.extend_from_slice(chunk);
            let count = chunk.len();
            self.advance(count);
        }
        Bytes::from_owner(whole)
    }

    /// What is left of each of the three parts.
    fn parts(&self) -> [&[u8]; 3] {
        let (before, after) = self.own.split_at(self.split);
        let mut sent = self.sent;
        [before, self.token.members(), after].map(|part| {
            let skip = sent.min(part.len());
            sent -= skip;
            &part[skip..]
        })
    }
}

impl fmt::Debug for AnswerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerText").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Buf for AnswerText {
    fn remaining(&self) -> usize {
        self.length - self.sent
    }

    fn chunk(&self) -> &[u8] {
        self.parts().into_iter().find(|part| !part.is_empty()).unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.parts().into_iter().filter(|part| !part.is_empty());
        slices.iter_mut().zip(parts).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "no more was sent than there was");
        self.sent += count;
    }
}

#[cfg(test)]
impl Served {
    /// The answer as a client reads it.
    pub(crate) fn read(&self) -> crate::wire::Token {
        serde_json::from_slice(&self.clone().into_text().into_bytes()).expect("the JSON of an answer")
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{model::Secret, wire};

    const TOKEN: &str = "hush-\"token\"-that\\is\u{e6}\u{1}wiped";

    fn access(scope: Option<&str>) -> AccessToken {
        AccessToken {
            token: Secret::new(TOKEN),
            token_type: "Bearer".into(),
            scope: scope.map(str::to_owned),
            issued_at: Timestamp::from_millis(1_000),
            expires_at: Timestamp::from_millis(1_767_225_600_000),
            issued_boot: None,
        }
    }

    fn served(
        scope: Option<&str>,
        cached_end: Option<i64>,
        end: Option<i64>,
        degraded: Option<&'static str>,
    ) -> Served {
        let end_of = |end: Option<i64>| end.map(Timestamp::from_millis);
        let provider = "visma-connect".parse().expect("a name");
        Served {
            token: Arc::new(CachedToken::new(&provider, &access(scope), end_of(cached_end), "\"tag\"")),
            organization: "DK:1@x".parse().expect("an id"),
            expires_in: 3599,
            consent_ends: end_of(end),
            degraded,
        }
    }

    #[rstest]
    #[case::all(Some("a b"), Some(1), Some(1), Some("rate_limited"))]
    #[case::nothing(None, None, None, None)]
    #[case::an_end_that_changed(None, Some(1), Some(86_400_000), None)]
    #[case::an_end_that_is_gone(None, Some(1), None, None)]
    #[case::an_end_that_came(Some(""), None, Some(1), None)]
    fn an_answer_is_the_json_of_its_token(
        #[case] scope: Option<&str>,
        #[case] cached_end: Option<i64>,
        #[case] end: Option<i64>,
        #[case] degraded: Option<&'static str>,
    ) {
        let expected = wire::Token {
            organization: "DK:1@x".parse().expect("an id"),
            provider: "visma-connect".parse().expect("a name"),
            access_token: TOKEN.into(),
            token_type: "Bearer".into(),
            scope: scope.map(str::to_owned),
            expires_at: access(None).expires_at,
            expires_in: 3599,
            consent_expires_at: end.map(Timestamp::from_millis),
            degraded: degraded.map(Into::into),
        };
        let text = served(scope, cached_end, end, degraded).into_text();
        assert_eq!(text.remaining(), serde_json::to_vec(&expected).expect("JSON").len());
        assert_eq!(String::from_utf8_lossy(&text.into_bytes()), serde_json::to_string(&expected).expect("JSON"),);
    }

    #[test]
    fn an_answer_that_is_taken_in_pieces_is_the_same() {
        let whole = served(Some("a"), None, Some(1), None).into_text().into_bytes();
        for piece in [1, 7, 40, whole.len()] {
            let (mut text, mut taken) = (served(Some("a"), None, Some(1), None).into_text(), Vec::new());
            while text.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 4];
                let count = text.chunks_vectored(&mut slices);
                let left: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                assert_eq!(left.len(), text.remaining());
                taken.extend_from_slice(&left[..piece.min(left.len())]);
                text.advance(piece.min(left.len()));
            }
            assert_eq!(taken, whole);
        }
    }

    #[test]
    fn nothing_of_the_token_is_left_in_memory_or_shown() {
        let text = "hush-Token-that-is-in-an-answer-and-wiped";
        let left = crate::tests::given_back_with(text.as_bytes(), || {
            let access = AccessToken { token: Secret::new(text), ..access(Some("a")) };
            let provider = "p".parse().expect("a name");
            let token = Arc::new(CachedToken::new(&provider, &access, None, "\"tag\""));
            drop(access);
            let served = Served {
                token,
                organization: "1".parse().expect("an id"),
                expires_in: 1,
                consent_ends: None,
                degraded: None,
            };
            assert!(!format!("{served:?}").contains("hush"));
            let answer = served.clone().into_text();
            assert!(!format!("{answer:?}").contains("hush"));
            drop(answer);
            drop(served.into_text().into_bytes());
        });
        assert_eq!(left, 0);
    }
}
