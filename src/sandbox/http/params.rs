use axum::http::{HeaderMap, header};
use base64::{Engine as _, engine::general_purpose::STANDARD_PAD_INDIFFERENT};
use percent_encoding::percent_decode_str;

use crate::{
    model::{ClientCredentials, Secret},
    sandbox::rules::Denied,
};

/// The parameters of a query or a form. It has no `Debug`, since tokens are among them.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn parse(text: &[u8]) -> Self {
        Self(url::form_urlencoded::parse(text).into_owned().collect())
    }

    /// A parameter's value. One without a value counts as absent (RFC 6749 section 3.1).
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// A parameter that must be kept from sight.
    pub(super) fn secret(&self, name: &str) -> Option<Secret> {
        self.get(name).map(Secret::new)
    }

    /// Parameters must not be there more than once (RFC 6749 sections 3.1 and 3.2).
    pub(super) fn repeats(&self) -> bool {
        self.0.iter().enumerate().any(|(at, (key, _))| self.0[..at].iter().any(|(earlier, _)| earlier == key))
    }
}

/// Whether the body is said to be a form.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

/// What the client says of itself: HTTP Basic with both parts form-encoded, or the body; not both (RFC 6749 section
/// 2.3). A client that says nothing is an empty one, which no secret fits.
pub(super) fn client(headers: &HeaderMap, params: &Params) -> Result<ClientCredentials, Denied> {
    match (basic(headers), params.get("client_secret")) {
        (Some(_), Some(_)) => Err(Denied::InvalidRequest("client credentials both in the header and in the body")),
        (Some(Basic { id, secret }), None) => Ok(ClientCredentials {
            id: form_decoded(&id).ok_or(Denied::InvalidClient)?,
            secret: Secret::new(form_decoded(secret.expose()).ok_or(Denied::InvalidClient)?),
        }),
        (None, secret) => Ok(ClientCredentials {
            id: params.get("client_id").unwrap_or_default().to_owned(),
            secret: Secret::new(secret.unwrap_or_default()),
        }),
    }
}

/// What a personal client says of itself: HTTP Basic with both parts as they are.
pub(super) fn personal_client(headers: &HeaderMap) -> ClientCredentials {
    let Basic { id, secret } = basic(headers).unwrap_or_else(|| Basic { id: String::new(), secret: Secret::new("") });
    ClientCredentials { id, secret }
}

/// The access token of a request (RFC 6750 section 2.1).
pub(super) fn bearer(headers: &HeaderMap) -> Option<Secret> {
    after_scheme(headers, "bearer").map(Secret::new)
}

struct Basic {
    id: String,
    secret: Secret,
}

fn basic(headers: &HeaderMap) -> Option<Basic> {
    let decoded = STANDARD_PAD_INDIFFERENT.decode(after_scheme(headers, "basic")?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some(Basic { id: id.to_owned(), secret: Secret::new(secret) })
}

fn after_scheme<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (said, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    said.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

fn form_decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn with(authorization: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(authorization))])
    }

    #[test]
    fn the_documented_header_of_a_personal_client_is_read() {
        let client = personal_client(&with("Basic cmFzbXVzOmRpbmVybw=="));
        assert_eq!((client.id.as_str(), client.secret.expose()), ("rasmus", "dinero"));
    }

    #[test]
    fn basic_of_a_client_is_form_decoded_and_body_beside_it_is_refused() {
        // "a%3Ab:c+d%25"
        let headers = with("basic YSUzQWI6YytkJTI1");
        let read = client(&headers, &Params::parse(b"")).expect("credentials");
        assert_eq!((read.id.as_str(), read.secret.expose()), ("a:b", "c d%"));
        assert!(client(&headers, &Params::parse(b"client_secret=x")).is_err());
    }

    #[test]
    fn an_empty_parameter_is_absent_and_a_repeated_one_is_noticed() {
        let params = Params::parse(b"a=&b=1&b=2");
        assert_eq!((params.get("a"), params.get("b")), (None, Some("1")));
        assert!(params.repeats());
        assert!(!Params::parse(b"a=1&b=1").repeats());
    }
}
