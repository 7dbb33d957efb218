use std::time::Duration;

use crate::{model::Secret, sandbox::record::GrantType};

/// What a client asks the token endpoints for.
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// `grant_type=refresh_token`.
    Refresh(&'a Secret),
    /// `grant_type=authorization_code`.
    Code {
        /// The code.
        code: &'a Secret,
        /// The same redirect URI as at the authorize endpoint.
        redirect_uri: &'a str,
        /// PKCE's verifier.
        verifier: Option<&'a str>,
    },
    /// Dinero's `grant_type=password`: an API key as both name and password.
    ApiKey(&'a Secret),
}

impl Request<'_> {
    pub(super) const fn grant_type(&self) -> GrantType {
        match self {
            Self::Refresh(_) => GrantType::RefreshToken,
            Self::Code { .. } => GrantType::AuthorizationCode,
            Self::ApiKey(_) => GrantType::Password,
        }
    }
}

/// Tokens that were given.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The access token.
    pub access_token: Secret,
    /// How long it lives.
    pub expires_in: Duration,
    /// Its scopes, separated by spaces.
    pub scope: String,
    /// The refresh token to use from now on: another one, or the one that was sent. `None`: there is none, or a fault
    /// left it out.
    pub refresh_token: Option<Secret>,
}

/// Why no tokens were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The client is not known, or its secret is wrong.
    #[error("the client is not known or its secret is wrong")]
    InvalidClient,
    /// The credential is of no use.
    #[error("the credential is refused: {}", .0.word())]
    InvalidGrant(Refusal),
    /// A parameter is missing, repeated or wrong.
    #[error("bad request: {0}")]
    InvalidRequest(&'static str),
    /// The grant type is not offered here.
    #[error("this grant type is not offered here")]
    UnsupportedGrantType,
}

impl Denied {
    /// The error code of RFC 6749 section 5.2.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant(_) => "invalid_grant",
            Self::InvalidRequest(_) => "invalid_request",
            Self::UnsupportedGrantType => "unsupported_grant_type",
        }
    }
}

/// What `invalid_grant` does not tell the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Never given by this issuer, or so long ago that it has forgotten it.
    Unknown,
    /// A one-time token that was spent: a replay.
    Replay,
    /// The consent's end has passed.
    Expired,
    /// The token was not exchanged for too long.
    Idle,
    /// Revoked by the client.
    Revoked,
    /// Withdrawn by the user, or the API key was deleted.
    Withdrawn,
    /// All access of the user was ended by an earlier replay.
    Ended,
    /// The authorization code has been used.
    UsedCode,
    /// The authorization code is too old.
    OldCode,
    /// The redirect URI is not the one that the code was sent to.
    WrongRedirect,
    /// PKCE's verifier does not fit, or only one side used PKCE.
    WrongVerifier,
    /// Too many refresh tokens of this authorization are usable at once.
    TooMany,
}

impl Refusal {
    /// It as one word, for the record.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Replay => "replay",
            Self::Expired => "expired",
            Self::Idle => "idle",
            Self::Revoked => "revoked",
            Self::Withdrawn => "withdrawn",
            Self::Ended => "ended",
            Self::UsedCode => "used_code",
            Self::OldCode => "old_code",
            Self::WrongRedirect => "wrong_redirect",
            Self::WrongVerifier => "wrong_verifier",
            Self::TooMany => "too_many",
        }
    }
}
