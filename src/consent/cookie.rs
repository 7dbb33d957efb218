//! The cookie by which the browser that began a flow is known again.
//!
//! `__Host-consent` belongs to exactly this host and comes over https alone (RFC 6265bis section 4.1.3.2): neither a
//! neighbouring subdomain nor a plain-http attacker can plant one. `SameSite=None`, since the issuer's site may send the
//! person back with a form, which no `Lax` cookie comes along with; what it would protect from, that another site makes
//! the browser come back, the random `state` does. On a laptop, where `public_url` is http, browsers take no such
//! cookie: there it is `consent`, `Lax`, which an issuer on another site reaches by a query alone.

use axum::http::{HeaderMap, HeaderValue, header};

use super::flows::LIFETIME;

const HOST: &str = "__Host-consent";
const LAPTOP: &str = "consent";

/// The header that gives the browser `session`.
pub(super) fn set(session: &str, is_https: bool) -> HeaderValue {
    let seconds = LIFETIME.as_secs();
    let text = if is_https {
        format!("{HOST}={session}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=None")
    } else {
        format!("{LAPTOP}={session}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax")
    };
    HeaderValue::from_str(&text).expect("a session is of letters that any header takes")
}

/// The session that the browser names. Where it names two, something planted one: none is taken.
pub(super) fn read(headers: &HeaderMap, is_https: bool) -> Option<&str> {
    let name = if is_https { HOST } else { LAPTOP };
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut found = texts
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    let session = found.next()?;
    found.next().is_none().then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, text.parse().expect("a value"))])
    }

    #[test]
    fn it_is_read_back_among_others_and_never_where_there_are_two() {
        for (text, https, laptop) in [
            ("__Host-consent=abc", Some("abc"), None),
            ("a=b; __Host-consent=abc; consent=def", Some("abc"), Some("def")),
            ("__Host-consent=abc; __Host-consent=abd", None, None),
            ("__host-consent=abc", None, None),
            ("nonsense", None, None),
            ("", None, None),
        ] {
            assert_eq!((read(&sent(text), true), read(&sent(text), false)), (https, laptop), "{text}");
        }
    }

    #[test]
    fn it_keeps_the_rules_of_its_prefix() {
        let set = set("abc", true);
        let set = set.to_str().expect("text");
        for part in ["__Host-consent=abc", "Path=/", "Secure", "HttpOnly", "SameSite=None", "Max-Age=900"] {
            assert!(set.split("; ").any(|found| found == part), "{part} in {set}");
        }
        assert!(!set.contains("Domain"));
    }
}
