use std::{borrow::Cow, time::Duration};

use crate::{model::Timestamp, wire::Code};

/// Why the keeper could not do what it was asked. `Display` is for the caller and holds no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeeperError {
    /// Nobody enrolled it.
    #[error("no such organization is enrolled; enrol it with `consentry org add`")]
    UnknownOrganization,
    /// An operator paused it.
    #[error("an operator paused this organization; `consentry org resume` lifts that")]
    Paused,
    /// The fate of its one-time token is unknown, and the access token has lapsed.
    #[error(
        "a one-time refresh token was sent and its fate is unknown ({reason}); the customer may have to give consent anew"
    )]
    InDoubt {
        /// The contract's word.
        reason: &'static str,
        /// Since when.
        since: Timestamp,
    },
    /// The issuer says the credential is dead.
    #[error("the issuer no longer accepts this credential; the customer has to give consent or a key anew")]
    Lost {
        /// The contract's word.
        reason: &'static str,
        /// Since when.
        since: Timestamp,
    },
    /// More than half the token's life was asked for.
    #[error("min_ttl is too long: at most {limit} seconds, half of this token's life, can be had")]
    MinTtlTooLong {
        /// The most that can be asked for, in seconds.
        limit: u64,
    },
    /// Callers forced exchanges too often.
    #[error("an exchange was forced a moment ago; wait, or send If-Match with the rejected token's ETag")]
    TooManyRequests {
        /// When it may be tried again.
        retry_after: Duration,
    },
    /// No living token, and the provider gives none now.
    #[error("the provider gives nothing now ({reason}), and without it this cannot be done")]
    ProviderUnavailable {
        /// The contract's word.
        reason: &'static str,
        /// When it may be tried again.
        retry_after: Duration,
    },
    /// The vault does not take or give records now.
    #[error("the vault cannot be used now: {0}")]
    VaultUnavailable(String),
    /// The index is not complete yet.
    #[error("the worker is starting, stopping or taking a new configuration; try again soon")]
    Starting,
    /// The issuer refused the credential being enrolled.
    #[error("the issuer refused this credential: {0}")]
    Refused(String),
    /// The credential does not reach the named organization.
    #[error("this credential does not reach that organization; it reaches {0}")]
    WrongOrganization(String),
    /// The refresh token is known to be spent.
    #[error("this one-time refresh token has been spent before; it must not be sent again. Get a new consent")]
    AlreadySpent,
    /// There is nothing to resolve.
    #[error("this grant is {state}: only one that is in_doubt or lost can be resolved, and nothing was changed")]
    NotInDoubt {
        /// The contract's word for its state.
        state: &'static str,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    BadRequest(Cow<'static, str>),
}

impl KeeperError {
    /// The stable word of the contract.
    pub const fn code(&self) -> Code {
        match self {
            Self::UnknownOrganization => Code::UnknownOrganization,
            Self::Paused => Code::Paused,
            Self::InDoubt { .. } => Code::InDoubt,
            Self::Lost { .. } => Code::ConsentLost,
            Self::MinTtlTooLong { .. } => Code::MinTtlTooLong,
            Self::TooManyRequests { .. } => Code::TooManyRequests,
            Self::ProviderUnavailable { .. } => Code::ProviderUnavailable,
            Self::VaultUnavailable(_) => Code::VaultUnavailable,
            Self::Starting => Code::Starting,
            Self::Refused(_) => Code::Refused,
            Self::WrongOrganization(_) => Code::WrongOrganization,
            Self::AlreadySpent => Code::AlreadySpent,
            Self::NotInDoubt { .. } | Self::BadRequest(_) => Code::BadRequest,
        }
    }

    /// When trying again may help.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after } | Self::ProviderUnavailable { retry_after, .. } => Some(*retry_after),
            Self::VaultUnavailable(_) => Some(Duration::from_secs(5)),
            Self::Starting => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}
