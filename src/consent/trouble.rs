//! Why a page is not the one that was hoped for.

use axum::http::StatusCode;

use crate::{
    keeper::{ConsentError, KeeperError},
    links::LinkError,
    model::Timestamp,
};

/// What a person is told instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// The link was cut or made up.
    Unreadable,
    /// The link's time is over.
    Expired(Timestamp),
    /// A consent was stored since the link was made.
    Used,
    /// An operator revoked the link.
    Revoked,
    /// A consent came by it, and an operator has to confirm that.
    Awaiting,
    /// Nobody gives consent at the link's provider any more.
    NotOffered,
    /// The person comes back to nothing: too late, another browser, a worker that was started anew.
    Lost,
    /// The button of another site's page was pressed.
    Foreign,
    /// The issuer sent something back that makes no sense.
    Malformed,
    /// The answer is not that of the issuer who was asked.
    OtherIssuer,
    /// The person refused.
    Declined,
    /// The issuer reported an error, or refused the code.
    Issuer,
    /// The issuer gave access that ends within the hour.
    NoRefreshToken,
    /// The person who approved may not speak for the organization.
    WrongOrganization,
    /// The issuer or the vault does not answer; the link is still good.
    Unavailable,
    /// The worker starts.
    Starting,
    /// Too many requests.
    TooMany,
    /// No such page.
    NotFound,
    /// Another method; these are known.
    Method(&'static str),
    /// A body that is too large.
    TooLarge,
    /// The worker's own fault.
    Internal,
}

impl Trouble {
    /// Its word: in the page's markup and in the log.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable-link",
            Self::Expired(_) => "expired-link",
            Self::Used => "used-link",
            Self::Revoked => "revoked-link",
            Self::Awaiting => "awaiting-confirmation",
            Self::NotOffered => "not-offered",
            Self::Lost => "lost-session",
            Self::Foreign => "foreign-form",
            Self::Malformed => "malformed-answer",
            Self::OtherIssuer => "other-issuer",
            Self::Declined => "declined",
            Self::Issuer => "issuer-error",
            Self::NoRefreshToken => "no-refresh-token",
            Self::WrongOrganization => "wrong-organization",
            Self::Unavailable => "unavailable",
            Self::Starting => "starting",
            Self::TooMany => "too-many-requests",
            Self::NotFound => "not-found",
            Self::Method(_) => "method-not-allowed",
            Self::TooLarge => "too-large",
            Self::Internal => "internal",
        }
    }

    /// The status of a page that tells it; what came of a consent is told on a page that is itself as it should be.
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::Expired(_) | Self::Used | Self::Revoked => StatusCode::GONE,
            Self::Unreadable | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Awaiting | Self::NotOffered => StatusCode::CONFLICT,
            Self::Foreign => StatusCode::FORBIDDEN,
            Self::Unavailable | Self::Starting => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Lost
            | Self::Malformed
            | Self::OtherIssuer
            | Self::Declined
            | Self::Issuer
            | Self::NoRefreshToken
            | Self::WrongOrganization => StatusCode::BAD_REQUEST,
        }
    }

    /// Whether the same link may work at another try.
    pub(super) const fn is_worth_another_try(self) -> bool {
        matches!(
            self,
            Self::Declined
                | Self::Issuer
                | Self::OtherIssuer
                | Self::NoRefreshToken
                | Self::WrongOrganization
                | Self::Unavailable
                | Self::Starting
                | Self::Internal
        )
    }
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Unreadable => Self::Unreadable,
            LinkError::Expired { at } => Self::Expired(at),
        }
    }
}

impl From<&ConsentError> for Trouble {
    fn from(error: &ConsentError) -> Self {
        match error {
            ConsentError::Used => Self::Used,
            ConsentError::Revoked => Self::Revoked,
            ConsentError::Awaiting => Self::Awaiting,
            ConsentError::NotOffered(_) => Self::NotOffered,
            ConsentError::Refused(_) => Self::Issuer,
            ConsentError::NoRefreshToken(_) => Self::NoRefreshToken,
            ConsentError::WrongOrganization { .. } => Self::WrongOrganization,
            ConsentError::Keeper(KeeperError::Starting) => Self::Starting,
            ConsentError::Unavailable(_) | ConsentError::Keeper(_) => Self::Unavailable,
        }
    }
}
