//! What a reply of the token endpoint proves about the credential (rule 5 of the design).
//!
//! | reply | outcome |
//! | --- | --- |
//! | 429 | `RateLimited` |
//! | 503 | `Unavailable` |
//! | 2xx with an access token | `Granted` |
//! | 4xx with a well-formed OAuth error | by its code, see [`of_code`] |
//! | everything else | `Unknown`: a one-time token may have been spent |
//!
//! A well-formed OAuth error (RFC 6749 section 5.2) is a JSON object of at most the cap, under a 4xx status, whose
//! `error` is a code: lower-case letters, digits and `_ . -`. A phrase such as `Not Found` is what gateways and web
//! frameworks write under that name, and proves nothing. An error under 200 or 5xx proves nothing either.
//!
//! An API key cannot be spent, so for one any sign in a 4xx is taken: Dinero nests the error in another member as a
//! JSON string, and sometimes says no more than `…_grant`.

use std::time::{Duration, UNIX_EPOCH};

use reqwest::header::HeaderValue;
use serde_json::Value;

use super::{
    answer,
    detail::Cleaner,
    transport::{Failure, Reply},
};
use crate::model::{Credential, ExchangeOutcome, NoAnswer, Timestamp};

/// The longest `Retry-After` that is honoured.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);
/// The longest error code.
const MAX_CODE: usize = 64;
/// How many JSON strings inside JSON strings are opened.
const MAX_NESTING: usize = 4;

/// An outcome, and whether it was our client secret that was refused: then another secret may be tried, because a
/// client that is not authenticated spends nothing.
pub(super) struct Verdict {
    pub(super) outcome: ExchangeOutcome,
    pub(super) is_wrong_secret: bool,
}

impl From<ExchangeOutcome> for Verdict {
    fn from(outcome: ExchangeOutcome) -> Self {
        Self { outcome, is_wrong_secret: false }
    }
}

/// What the reply to an exchange of `credential` proves; `now` is for a `Retry-After` that is a date.
pub(super) fn of(
    reply: Result<Reply, Failure>,
    credential: &Credential,
    cleaner: &Cleaner,
    now: Timestamp,
    provider: &str,
) -> Verdict {
    let reply = match reply {
        Ok(reply) => reply,
        Err(failure) => return of_failure(failure).into(),
    };
    let status = reply.status;
    let retry_after = retry_after(reply.retry_after.as_ref(), now);
    match status {
        429 => return ExchangeOutcome::RateLimited { retry_after }.into(),
        503 => return ExchangeOutcome::Unavailable { retry_after }.into(),
        500.. => return unknown(NoAnswer::ServerError, format!("status {status}")).into(),
        ..=199 => return nonsense(format!("status {status}, which ends no request")).into(),
        300..=399 => return nonsense(format!("status {status}, a redirect, which is never followed")).into(),
        _ => {}
    }
    let body = match reply.body {
        Ok(body) => body,
        Err(failure) => return of_failure(failure).into(),
    };
    if (200..=299).contains(&status) {
        return match answer::read(&body) {
            Ok(answer) => ExchangeOutcome::Granted(Box::new(answer)).into(),
            Err(why) => nonsense(format!("status {status}, but {why} ({} bytes)", body.len())).into(),
        };
    }
    let error = match credential {
        Credential::RefreshToken(_) => OauthError::read(&body),
        Credential::ApiKey(_) => OauthError::read_anywhere(&body, status),
    };
    match error {
        Some(error) => of_code(&error, status, retry_after, cleaner, provider),
        None => nonsense(format!("status {status} without an OAuth error ({} bytes)", body.len())).into(),
    }
}

/// What an error code proves.
///
/// | code | outcome | because |
/// | --- | --- | --- |
/// | `invalid_grant`, `…_grant` | `Refused` | it is about the credential |
/// | `access_denied`, `interaction_required` and the like | `Refused` | so are these: the person has to act |
/// | `invalid_client`, `unauthorized_client`, `…_client` | `ClientRefused` | it is about the client |
/// | `invalid_request`, `invalid_scope`, `unsupported_grant_type` … | `ClientRefused` | registration or configuration is at fault, the same for every credential |
/// | `server_error` | `Unknown` | the issuer failed somewhere, maybe after spending the token |
/// | `slow_down` | `RateLimited` | |
/// | `temporarily_unavailable` | `Unavailable` | |
/// | any other | `Unavailable` | the issuer answered no and nothing was spent; whom it is about nobody knows, so neither one credential nor all may be blamed for it |
fn of_code(
    error: &OauthError,
    status: u16,
    retry_after: Option<Duration>,
    cleaner: &Cleaner,
    provider: &str,
) -> Verdict {
    let code = error.code.as_str();
    let detail = cleaner.clean(&match &error.description {
        Some(description) => format!("status {status}, {code}: {description}"),
        None => format!("status {status}, {code}"),
    });
    match code {
        "server_error" => unknown(NoAnswer::ServerError, detail).into(),
        "temporarily_unavailable" => ExchangeOutcome::Unavailable { retry_after }.into(),
        "slow_down" => ExchangeOutcome::RateLimited { retry_after }.into(),
        "access_denied"
        | "account_selection_required"
        | "consent_required"
        | "expired_token"
        | "interaction_required"
        | "invalid_token"
        | "login_required"
        | "request_denied" => ExchangeOutcome::Refused { detail }.into(),
        "invalid_dpop_proof"
        | "invalid_request"
        | "invalid_scope"
        | "invalid_target"
        | "unsupported_grant_type"
        | "unsupported_response_type"
        | "use_dpop_nonce" => ExchangeOutcome::ClientRefused { detail }.into(),
        _ if code.ends_with("_client") => Verdict {
            // `unauthorized_client` is said of a client whose secret was right.
            is_wrong_secret: code != "unauthorized_client",
            outcome: ExchangeOutcome::ClientRefused { detail },
        },
        _ if code.ends_with("_grant") => ExchangeOutcome::Refused { detail }.into(),
        _ => {
            // The outcome carries no detail, so this is the only trace of the code.
            tracing::warn!(provider.name = provider, answer.detail = detail, "the issuer answered an unknown error");
            ExchangeOutcome::Unavailable { retry_after }.into()
        }
    }
}

fn of_failure(failure: Failure) -> ExchangeOutcome {
    match failure {
        Failure::NotSent(detail) => ExchangeOutcome::NotSent { detail },
        Failure::Timeout(detail) => unknown(NoAnswer::Timeout, detail),
        Failure::Broken(detail) => unknown(NoAnswer::Broken, detail),
        Failure::TooLarge(detail) => unknown(NoAnswer::Nonsense, detail),
    }
}

fn nonsense(detail: String) -> ExchangeOutcome {
    unknown(NoAnswer::Nonsense, detail)
}

fn unknown(why: NoAnswer, detail: String) -> ExchangeOutcome {
    ExchangeOutcome::Unknown { why, detail }
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date that is compared with `now`; at most
/// `MAX_RETRY_AFTER`. `None` if it is absent or unreadable.
pub fn retry_after(value: Option<&HeaderValue>, now: Timestamp) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit are merely more than the bound.
        let wait = text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs);
        return Some(wait.min(MAX_RETRY_AFTER));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let date = Timestamp::from_millis(i64::try_from(date.as_millis()).ok()?);
    Some(date.since(now).min(MAX_RETRY_AFTER))
}

/// An OAuth error (RFC 6749 section 5.2). Its description is the issuer's text: to be cleaned before it is shown.
pub(super) struct OauthError {
    pub(super) code: String,
    pub(super) description: Option<String>,
}

impl OauthError {
    /// Reads a well-formed error; `None` for anything else.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        Self::of_object(&serde_json::from_slice(body).ok()?)
    }

    /// Finds an error anywhere in the body of an answer to an API key.
    fn read_anywhere(body: &[u8], status: u16) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        let found = match serde_json::from_str(&text) {
            Ok(value) => Self::of_nested(&value, MAX_NESTING),
            // A page for people may hold any word.
            Err(_) if text.trim_start().starts_with('<') => None,
            Err(_) => Self::of_words(&text),
        };
        // RFC 6749 section 5.2: 401 is for a client that could not be authenticated.
        found.or_else(|| (status == 401).then(|| Self { code: "invalid_client".to_owned(), description: None }))
    }

    fn of_object(value: &Value) -> Option<Self> {
        let code = value.get("error")?.as_str().filter(|code| is_code(code))?;
        let description = value.get("error_description").and_then(Value::as_str).map(str::to_owned);
        Some(Self { code: code.to_owned(), description })
    }

    fn of_nested(value: &Value, nesting: usize) -> Option<Self> {
        let nesting = nesting.checked_sub(1)?;
        if let Some(error) = Self::of_object(value) {
            return Some(error);
        }
        match value {
            Value::Object(members) => members.values().find_map(|member| Self::of_nested(member, nesting)),
            Value::Array(elements) => elements.iter().find_map(|element| Self::of_nested(element, nesting)),
            Value::String(text) => match serde_json::from_str::<Value>(text) {
                Ok(inner) if !inner.is_number() => Self::of_nested(&inner, nesting),
                _ => Self::of_words(text),
            },
            _ => None,
        }
    }

    fn of_words(text: &str) -> Option<Self> {
        let is_word_char = |c: char| c.is_ascii_lowercase() || c == '_';
        let code = text
            .split(|c| !is_word_char(c))
            .find(|word| (word.ends_with("_grant") || word.ends_with("_client")) && is_code(word))?;
        Some(Self { code: code.to_owned(), description: None })
    }
}

fn is_code(text: &str) -> bool {
    let is_code_char = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-');
    (1..=MAX_CODE).contains(&text.len()) && text.bytes().all(is_code_char)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Secret, Wiped};

    fn judge(status: u16, body: &str, credential: &Credential) -> Verdict {
        let reply = Reply { status, retry_after: None, body: Ok(Wiped::new(body.as_bytes().to_vec())) };
        of(Ok(reply), credential, &Cleaner::of([credential.secret()]), Timestamp::default(), "p")
    }

    /// The outcome as a short word.
    fn word(outcome: &ExchangeOutcome) -> String {
        match outcome {
            ExchangeOutcome::Granted(_) => "granted".into(),
            ExchangeOutcome::Refused { .. } => "refused".into(),
            ExchangeOutcome::ClientRefused { .. } => "client".into(),
            ExchangeOutcome::RateLimited { .. } => "limited".into(),
            ExchangeOutcome::Unavailable { .. } => "unavailable".into(),
            ExchangeOutcome::NotSent { .. } => "not sent".into(),
            ExchangeOutcome::Unknown { why, .. } => format!("{why:?}"),
        }
    }

    #[test]
    fn only_a_well_formed_error_says_that_a_refresh_token_was_not_spent() {
        let token = Credential::RefreshToken(Secret::new("rt"));
        for (status, body, expected) in [
            (200, r#"{"access_token":"a"}"#, "granted"),
            (201, r#"{"access_token":"a"}"#, "granted"),
            (200, "{}", "Nonsense"),
            (200, r#"{"error":"invalid_grant"}"#, "Nonsense"),
            (200, "<html>", "Nonsense"),
            (204, "", "Nonsense"),
            (101, r#"{"error":"invalid_grant"}"#, "Nonsense"),
            (302, "", "Nonsense"),
            (307, r#"{"error":"invalid_grant"}"#, "Nonsense"),
            (400, r#"{"error":"invalid_grant"}"#, "refused"),
            (401, r#"{"error":"invalid_grant","error_description":"x"}"#, "refused"),
            (400, r#"{"error":"consent_required"}"#, "refused"),
            (400, r#"{"error":"invalid_client"}"#, "client"),
            (401, r#"{"error":"invalid_client"}"#, "client"),
            (400, r#"{"error":"unauthorized_client"}"#, "client"),
            (400, r#"{"error":"invalid_request"}"#, "client"),
            (400, r#"{"error":"unsupported_grant_type"}"#, "client"),
            (400, r#"{"error":"invalid_scope"}"#, "client"),
            (400, r#"{"error":"temporarily_unavailable"}"#, "unavailable"),
            (400, r#"{"error":"slow_down"}"#, "limited"),
            (400, r#"{"error":"something_of_their_own"}"#, "unavailable"),
            (400, r#"{"error":"server_error"}"#, "ServerError"),
            (400, r#"{"error":"Bad Request","status":400}"#, "Nonsense"),
            (400, r#"{"error":{"code":"invalid_grant"}}"#, "Nonsense"),
            (400, r#"{"message":"{\"error\":\"invalid_grant\"}"}"#, "Nonsense"),
            (400, r#"[{"error":"invalid_grant"}]"#, "Nonsense"),
            (400, r#"{"error":""}"#, "Nonsense"),
            (400, r#"{"error":"invalid_gr"#, "Nonsense"),
            (401, "", "Nonsense"),
            (403, "<html>invalid_grant</html>", "Nonsense"),
            (404, "invalid_grant", "Nonsense"),
            (480, "", "Nonsense"),
            (429, r#"{"error":"invalid_grant"}"#, "limited"),
            (500, r#"{"error":"invalid_grant"}"#, "ServerError"),
            (502, "<html>", "ServerError"),
            (503, "<html>", "unavailable"),
            (504, "", "ServerError"),
        ] {
            assert_eq!(word(&judge(status, body, &token).outcome), expected, "{status} {body}");
        }
    }

    #[test]
    fn an_api_keys_error_is_found_wherever_it_is_nested() {
        let key = Credential::ApiKey(Secret::new("key"));
        for (status, body, expected) in [
            (400, r#"{"error":"invalid_grant"}"#, "refused"),
            (400, r#"{"message":"{\"error\":\"invalid_grant\"}"}"#, "refused"),
            (400, r#"{"code":42,"message":"{\"error\":\"invalid_client\"}"}"#, "client"),
            (400, r#"{"error":"Bad Request","message":"wrong_grant"}"#, "refused"),
            (400, r#"{"error":{"error":"invalid_grant"}}"#, "refused"),
            (400, r#"{"message":"the issuer said: unauthorized_client (7)"}"#, "client"),
            (400, r#""{\"error\":\"invalid_grant\"}""#, "refused"),
            (400, "invalid_grant", "refused"),
            (401, "", "client"),
            (400, r#"{"error":"unsupported_grant_type"}"#, "client"),
            (400, r#"{"message":"nothing known"}"#, "Nonsense"),
            (403, "<html>invalid_grant</html>", "Nonsense"),
            (500, r#"{"error":"invalid_grant"}"#, "ServerError"),
        ] {
            assert_eq!(word(&judge(status, body, &key).outcome), expected, "{status} {body}");
        }
    }

    #[test]
    fn nesting_is_followed_to_a_bound() {
        let key = Credential::ApiKey(Secret::new("key"));
        let mut value = serde_json::json!({"error": "invalid_grant"});
        for _ in 0..MAX_NESTING {
            value = serde_json::json!({"message": value});
        }
        assert_eq!(word(&judge(400, &value.to_string(), &key).outcome), "Nonsense");
        let deep = "[".repeat(100_000);
        assert_eq!(word(&judge(400, &deep, &key).outcome), "Nonsense");
    }

    #[test]
    fn only_an_unauthenticated_client_is_worth_another_secret() {
        let token = Credential::RefreshToken(Secret::new("rt"));
        assert!(judge(400, r#"{"error":"invalid_client"}"#, &token).is_wrong_secret);
        for other in ["unauthorized_client", "invalid_grant", "invalid_request", "server_error"] {
            assert!(!judge(400, &format!(r#"{{"error":"{other}"}}"#), &token).is_wrong_secret, "{other}");
        }
    }

    #[test]
    fn a_description_is_shown_without_the_secret_it_echoes() {
        let token = Credential::RefreshToken(Secret::new("planted-marker"));
        let body = r#"{"error":"invalid_grant","error_description":"token planted-mar\u0000ker\nis\u001b[31m spent"}"#;
        let ExchangeOutcome::Refused { detail } = judge(400, body, &token).outcome else { panic!("refused") };
        assert_eq!(detail, "status 400, invalid_grant: token [hidden]is[31m spent");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_an_hour() {
        let now = Timestamp::from_millis(784_111_717_000); // Sun, 06 Nov 1994 08:48:37 GMT
        for (text, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600)),
            ("-5", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ] {
            let value = HeaderValue::from_static(text);
            assert_eq!(retry_after(Some(&value), now).map(|wait| wait.as_secs()), seconds, "{text:?}");
        }
        assert_eq!(retry_after(None, now), None);
    }
}
