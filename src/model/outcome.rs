use std::time::Duration;

use super::Secret;

/// What a token endpoint answered when it granted an access token (RFC 6749 section 5.1), tolerantly read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The new access token.
    pub access_token: Secret,
    /// `token_type`, `Bearer` where the answer had none.
    pub token_type: String,
    /// `expires_in`; `None` where the answer had none that made sense.
    pub expires_in: Option<Duration>,
    /// `scope`, where the answer had one.
    pub scope: Option<String>,
    /// `refresh_token`; `None` where it was absent, null or empty: the one that was sent stays valid then
    /// (RFC 6749 section 6).
    pub refresh_token: Option<Secret>,
    /// `sub` of the access token where that is a JWT; not verified, only compared.
    pub subject: Option<String>,
    /// `client_id` of the access token where that is a JWT; not verified, only compared.
    pub client_id: Option<String>,
}

/// How an exchange ended, sorted by what it proves about the credential.
///
/// The variants follow rule 5: only [`NotSent`](Self::NotSent), [`RateLimited`](Self::RateLimited),
/// [`Unavailable`](Self::Unavailable) and a well-formed OAuth error say that a one-time token was not spent.
#[derive(Clone, Debug)]
pub enum ExchangeOutcome {
    /// An access token was granted.
    Granted(Box<Answer>),
    /// `invalid_grant`: the issuer refuses this credential, for whatever reason.
    Refused {
        /// What the issuer wrote, cut and cleaned, for the log.
        detail: String,
    },
    /// `invalid_client`, `unauthorized_client` and the like: it says nothing about any credential.
    ClientRefused {
        /// What the issuer wrote, cut and cleaned, for the log.
        detail: String,
    },
    /// 429.
    RateLimited {
        /// `Retry-After`, as seconds or as a date (RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
    },
    /// 503.
    Unavailable {
        /// `Retry-After`, as seconds or as a date (RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
    },
    /// No byte of the request was written: the name did not resolve, nobody listens, TLS failed.
    NotSent {
        /// What went wrong, for the log.
        detail: String,
    },
    /// Anything else: a one-time token may have been spent.
    Unknown {
        /// Which kind of silence it was.
        why: NoAnswer,
        /// What went wrong, for the log.
        detail: String,
    },
}

/// Why nobody knows how an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// No answer within the limit.
    Timeout,
    /// The connection broke after the request had left.
    Broken,
    /// A server error other than 503, or OAuth's `server_error`.
    ServerError,
    /// A success, redirect or other answer that makes no sense.
    Nonsense,
}

impl ExchangeOutcome {
    /// The `reason` label of `consentry_token_refresh_total`: one of a fixed set.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Granted(_) => "none",
            Self::Refused { .. } => "refused",
            Self::ClientRefused { .. } => "client_refused",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable { .. } | Self::NotSent { .. } => "provider_unavailable",
            Self::Unknown { .. } => "no_answer",
        }
    }

    /// Every value of [`label`](Self::label), for making series at start.
    pub const LABELS: [&'static str; 7] =
        ["none", "refused", "client_refused", "rate_limited", "provider_unavailable", "no_answer", "vault_unavailable"];
}
