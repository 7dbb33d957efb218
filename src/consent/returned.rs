//! What an issuer sends back with a person (RFC 6749 sections 4.1.2 and 4.1.2.1).

use std::borrow::Cow;

use zeroize::Zeroizing;

use crate::model::Secret;

/// The longest value that is looked at, in bytes; codes of 4 KB are known.
const MAX_VALUE: usize = 8 * 1024;
/// How many parameters are looked at; issuers add a handful of their own.
const MAX_PARAMETERS: usize = 64;

/// The parameters that matter. Empty ones count as absent (RFC 6749 section 3.1).
#[derive(Debug, Default)]
pub(super) struct Returned {
    /// Which flow it answers.
    pub(super) state: Option<String>,
    /// The authorization code.
    pub(super) code: Option<Secret>,
    /// Who answers (RFC 9207).
    pub(super) iss: Option<String>,
    /// Why there is no code.
    pub(super) error: Option<String>,
    /// More about that, for whoever runs the client.
    pub(super) error_description: Option<String>,
    /// By which the issuer's own tools find the error.
    pub(super) error_id: Option<String>,
}

impl Returned {
    /// Reads a query or a form body; `None` where it is too long, or where one of its parameters is there twice.
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let mut read = Self::default();
        for (number, (key, value)) in url::form_urlencoded::parse(text).enumerate() {
            if number >= MAX_PARAMETERS || value.len() > MAX_VALUE {
                return None;
            }
            if value.is_empty() {
                continue;
            }
            let twice = match &*key {
                "code" => {
                    let value = Zeroizing::new(value.into_owned());
                    read.code.replace(Secret::new(value.as_str())).is_some()
                }
                "state" => put(&mut read.state, value),
                "iss" => put(&mut read.iss, value),
                "error" => put(&mut read.error, value),
                "error_description" => put(&mut read.error_description, value),
                "error_id" | "errorId" => put(&mut read.error_id, value),
                _ => false,
            };
            if twice {
                return None;
            }
        }
        Some(read)
    }

    /// Whether the answer is that of `expected`, which has to be named where `promised` (RFC 9207 section 2.4). Only a
    /// slash at the end is forgiven, which issuers and those who configure them forget.
    pub(super) fn is_from(&self, expected: Option<&str>, promised: bool) -> bool {
        match (&self.iss, expected) {
            (None, _) => !promised,
            // Nothing is known to compare with. Every provider has a redirect URI of its own, which keeps them apart.
            (Some(_), None) => true,
            (Some(iss), Some(expected)) => iss.trim_end_matches('/') == expected.trim_end_matches('/'),
        }
    }
}

fn put(place: &mut Option<String>, value: Cow<'_, str>) -> bool {
    place.replace(value.into_owned()).is_some()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn what_matters_is_read_and_the_rest_is_left() {
        let read = Returned::read(b"code=a%2Bb+c&state=s&iss=https%3A%2F%2Fid&session_state=x&error=").expect("read");
        assert_eq!(read.code.as_ref().map(Secret::expose), Some("a+b c"));
        assert_eq!((read.state.as_deref(), read.iss.as_deref()), (Some("s"), Some("https://id")));
        assert!(read.error.is_none());
        let read = Returned::read(b"error=access_denied&error_description=no%20thanks&errorId=42").expect("read");
        assert_eq!(read.error.as_deref(), Some("access_denied"));
        assert_eq!((read.error_description.as_deref(), read.error_id.as_deref()), (Some("no thanks"), Some("42")));
        assert!(!format!("{:?}", Returned::read(b"code=hush")).contains("hush"));
    }

    #[rstest]
    #[case("code=a&code=b")]
    #[case("state=a&code=b&state=a")]
    #[case("iss=a&iss=b")]
    fn a_parameter_that_is_there_twice_is_refused(#[case] text: &str) {
        assert!(Returned::read(text.as_bytes()).is_none());
    }

    #[test]
    fn what_is_too_long_is_refused() {
        assert!(Returned::read(format!("code={}", "a".repeat(MAX_VALUE + 1)).as_bytes()).is_none());
        assert!(Returned::read("a=b&".repeat(MAX_PARAMETERS + 1).as_bytes()).is_none());
    }

    #[rstest]
    #[case("iss=https://id.example", Some("https://id.example/"), true, true)]
    #[case("iss=https://id.example/t", Some("https://id.example/"), false, false)]
    #[case("iss=https://evil.example", Some("https://id.example"), true, false)]
    #[case("", Some("https://id.example"), true, false)]
    #[case("", Some("https://id.example"), false, true)]
    #[case("iss=https://any.example", None, false, true)]
    fn the_issuer_who_answers_is_the_one_who_was_asked(
        #[case] text: &str,
        #[case] expected: Option<&str>,
        #[case] promised: bool,
        #[case] is_from: bool,
    ) {
        assert_eq!(Returned::read(text.as_bytes()).expect("read").is_from(expected, promised), is_from);
    }
}
