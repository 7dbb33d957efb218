use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

/// The stable word of an error, `code` in a problem document and a label of the fetch metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// 400
    BadRequest,
    /// 400: more than half the token's life was asked for.
    MinTtlTooLong,
    /// 403
    Forbidden,
    /// 404
    UnknownOrganization,
    /// 404: no such path.
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 409: the issuer says the consent is dead.
    ConsentLost,
    /// 409: a one-time token's fate is unknown.
    InDoubt,
    /// 409: an operator paused it.
    Paused,
    /// 409: the refresh token is known to be spent.
    AlreadySpent,
    /// 409: records are still being sealed anew under another new data key.
    RotationUnderWay,
    /// 413
    TooLarge,
    /// 422: the issuer refused the credential being enrolled.
    Refused,
    /// 422: the credential does not reach the named organization.
    WrongOrganization,
    /// 429
    TooManyRequests,
    /// 503
    ProviderUnavailable,
    /// 503: until the vault is open.
    Starting,
    /// 503
    VaultUnavailable,
    /// 500: a fault of the worker's own.
    Internal,
}

impl Code {
    /// Every code, for making metric series at start.
    pub const ALL: [Self; 19] = [
        Self::BadRequest,
        Self::MinTtlTooLong,
        Self::Forbidden,
        Self::UnknownOrganization,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::ConsentLost,
        Self::InDoubt,
        Self::Paused,
        Self::AlreadySpent,
        Self::RotationUnderWay,
        Self::TooLarge,
        Self::Refused,
        Self::WrongOrganization,
        Self::TooManyRequests,
        Self::ProviderUnavailable,
        Self::Starting,
        Self::VaultUnavailable,
        Self::Internal,
    ];

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::MinTtlTooLong => "min_ttl_too_long",
            Self::Forbidden => "forbidden",
            Self::UnknownOrganization => "unknown_organization",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::ConsentLost => "consent_lost",
            Self::InDoubt => "in_doubt",
            Self::Paused => "paused",
            Self::AlreadySpent => "already_spent",
            Self::RotationUnderWay => "rotation_under_way",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::WrongOrganization => "wrong_organization",
            Self::TooManyRequests => "too_many_requests",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::Starting => "starting",
            Self::VaultUnavailable => "vault_unavailable",
            Self::Internal => "internal",
        }
    }

    /// Its HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::MinTtlTooLong => 400,
            Self::Forbidden => 403,
            Self::UnknownOrganization | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::ConsentLost | Self::InDoubt | Self::Paused | Self::AlreadySpent | Self::RotationUnderWay => 409,
            Self::TooLarge => 413,
            Self::Refused | Self::WrongOrganization => 422,
            Self::TooManyRequests => 429,
            Self::ProviderUnavailable | Self::Starting | Self::VaultUnavailable => 503,
            Self::Internal => 500,
        }
    }
}

/// An RFC 9457 problem document.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Problem {
    /// A URI that names the kind of problem: `urn:consentry:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in a few words.
    pub title: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here and what to do.
    pub detail: String,
    /// The stable word for programs.
    pub code: Code,
    /// For `consent_lost` and `in_doubt`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// For `consent_lost` and `in_doubt`: since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// For `consent_lost` told to operators: where the customer renews the consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_url: Option<String>,
}
