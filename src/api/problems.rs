use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{
    keeper::KeeperError,
    model::Timestamp,
    wire::{Code, Problem},
};

/// The longest `detail`, in characters.
const MAX_DETAIL: usize = 1000;
/// When to try again what cannot be done now, where nobody knows better.
const LATER: Duration = Duration::from_secs(5);

/// A request that is answered with a problem document (RFC 9457).
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    detail: String,
    reason: Option<&'static str>,
    since: Option<Timestamp>,
    renewal_url: Option<String>,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// A problem of this kind; `detail` says what is wrong here and what to do.
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        let retry_after = (code == Code::Starting).then_some(Duration::from_secs(1));
        Self { code, detail: detail.into(), reason: None, since: None, renewal_url: None, retry_after }
    }

    /// A problem of this kind that may be gone in a while.
    pub(super) fn again(code: Code, detail: impl Into<String>) -> Self {
        Self { retry_after: Some(LATER), ..Self::new(code, detail) }
    }

    /// 400
    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    /// 500
    pub(super) fn internal() -> Self {
        Self::new(Code::Internal, "the worker made a mistake; its log has more")
    }

    /// The same, with where the customer renews the consent.
    pub(super) fn renewable_at(self, renewal_url: Option<String>) -> Self {
        Self { renewal_url, ..self }
    }

    /// What is wrong, in words.
    #[cfg(test)]
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The problem document.
    pub(super) fn problem(&self) -> Problem {
        Problem {
            kind: format!("urn:consentry:problem:{}", self.code.word()),
            title: title(self.code).into(),
            status: self.code.status(),
            detail: self.detail.chars().take(MAX_DETAIL).collect(),
            code: self.code,
            reason: self.reason.map(Cow::Borrowed),
            since: self.since,
            renewal_url: self.renewal_url.clone(),
        }
    }

    /// `Retry-After` in seconds, where trying again may help.
    pub(super) fn retry_after(&self) -> Option<u64> {
        self.retry_after.map(whole_seconds)
    }
}

impl From<KeeperError> for Refusal {
    fn from(error: KeeperError) -> Self {
        let (reason, since) = match error {
            KeeperError::InDoubt { reason, since } | KeeperError::Lost { reason, since } => (Some(reason), Some(since)),
            _ => (None, None),
        };
        Self {
            code: error.code(),
            detail: error.to_string(),
            reason,
            since,
            renewal_url: None,
            retry_after: error.retry_after(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.problem()).unwrap_or_default();
        let mut response = (status, Body::from(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3): rounded up, and never "at once".
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0)).max(1)
}

const fn title(code: Code) -> &'static str {
    match code {
        Code::BadRequest => "The request makes no sense",
        Code::MinTtlTooLong => "min_ttl is too long",
        Code::Forbidden => "Not allowed",
        Code::UnknownOrganization => "Unknown organization",
        Code::NotFound => "No such path",
        Code::MethodNotAllowed => "Method not allowed",
        Code::ConsentLost => "The consent is lost",
        Code::InDoubt => "The consent is in doubt",
        Code::Paused => "Paused",
        Code::AlreadySpent => "The refresh token is spent",
        Code::RotationUnderWay => "A new data key is still being taken into use",
        Code::TooLarge => "The request is too large",
        Code::Refused => "The issuer refused the credential",
        Code::WrongOrganization => "The credential is for another organization",
        Code::TooManyRequests => "Too many requests",
        Code::ProviderUnavailable => "The provider is unavailable",
        Code::Starting => "Starting",
        Code::VaultUnavailable => "The vault is unavailable",
        Code::Internal => "Internal error",
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use rstest::rstest;

    use super::*;

    async fn parts(refusal: Refusal) -> (u16, Option<String>, serde_json::Value) {
        let response = refusal.into_response();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let retry = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().expect("text").to_owned());
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 10_000).await.expect("whole");
        (status, retry, serde_json::from_slice(&body).expect("JSON"))
    }

    fn soon() -> Duration {
        Duration::from_millis(1200)
    }

    #[rstest]
    #[case(KeeperError::UnknownOrganization, 404, "unknown_organization", None)]
    #[case(KeeperError::Paused, 409, "paused", None)]
    #[case(KeeperError::MinTtlTooLong { limit: 1800 }, 400, "min_ttl_too_long", None)]
    #[case(KeeperError::TooManyRequests { retry_after: soon() }, 429, "too_many_requests", Some("2"))]
    #[case(KeeperError::TooManyRequests { retry_after: Duration::ZERO }, 429, "too_many_requests", Some("1"))]
    #[case(KeeperError::ProviderUnavailable { reason: "rate_limited", retry_after: soon() }, 503, "provider_unavailable", Some("2"))]
    #[case(KeeperError::VaultUnavailable("full".to_owned()), 503, "vault_unavailable", Some("5"))]
    #[case(KeeperError::Starting, 503, "starting", Some("1"))]
    #[case(KeeperError::Refused("no".to_owned()), 422, "refused", None)]
    #[case(KeeperError::WrongOrganization("2".to_owned()), 422, "wrong_organization", None)]
    #[case(KeeperError::RotationUnderWay("37 %".to_owned()), 409, "rotation_under_way", None)]
    #[case(KeeperError::AlreadySpent, 409, "already_spent", None)]
    #[case(KeeperError::BadRequest("no".into()), 400, "bad_request", None)]
    #[tokio::test]
    async fn every_error_of_the_keeper_has_its_problem(
        #[case] error: KeeperError,
        #[case] status: u16,
        #[case] code: &str,
        #[case] retry: Option<&str>,
    ) {
        let detail = error.to_string();
        let (found, after, problem) = parts(error.into()).await;
        assert_eq!((found, after.as_deref()), (status, retry));
        assert_eq!(problem["type"], format!("urn:consentry:problem:{code}"));
        assert_eq!(problem["code"], code);
        assert_eq!(problem["status"], status);
        assert_eq!(problem["detail"], detail);
        assert!(problem.get("reason").is_none() && problem.get("since").is_none());
    }

    #[rstest]
    #[case(KeeperError::Lost { reason: "refused", since: Timestamp::from_millis(0) }, "consent_lost", "refused")]
    #[case(KeeperError::InDoubt { reason: "crashed", since: Timestamp::from_millis(0) }, "in_doubt", "crashed")]
    #[tokio::test]
    async fn a_dead_or_doubtful_consent_says_why_and_since_when(
        #[case] error: KeeperError,
        #[case] code: &str,
        #[case] reason: &str,
    ) {
        let (status, _, problem) = parts(error.into()).await;
        assert_eq!((status, &problem["code"], &problem["reason"]), (409, &code.into(), &reason.into()));
        assert_eq!(problem["since"], "1970-01-01T00:00:00Z");
    }

    #[tokio::test]
    async fn a_detail_is_bounded() {
        let (_, _, problem) = parts(Refusal::bad_request("æ".repeat(5000))).await;
        assert_eq!(problem["detail"].as_str().expect("text").chars().count(), MAX_DETAIL);
    }
}
