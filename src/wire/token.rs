use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

use crate::model::{OrganizationId, ProviderName, Timestamp};

/// `GET /v1/organizations/{org}/token`. Holds the access token: it is serialized straight into an answer.
#[derive(Serialize, Deserialize, Clone)]
pub struct Token {
    /// The organization asked for.
    pub organization: OrganizationId,
    /// The provider that gave it.
    pub provider: ProviderName,
    /// The access token.
    pub access_token: String,
    /// `Bearer`, as a rule.
    pub token_type: String,
    /// The scope, where the issuer said.
    pub scope: Option<String>,
    /// When the access token ends.
    pub expires_at: Timestamp,
    /// Whole seconds until then.
    pub expires_in: u64,
    /// When the consent ends, as far as known.
    pub consent_expires_at: Option<Timestamp>,
    /// Why refreshing fails while this token still lives; null while all is well.
    pub degraded: Option<Cow<'static, str>>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("organization", &self.organization)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
