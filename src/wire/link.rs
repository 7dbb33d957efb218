use serde::{Deserialize, Serialize};

use crate::model::{OrganizationId, ProviderName, Timestamp};

/// `POST /v1/organizations/{org}/consent-link`
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// The provider; needed for an organization that is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderName>,
    /// Further organizations of the same user, which the same consent is to serve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<OrganizationId>,
}

/// A link by which a person gives consent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ConsentLink {
    /// What the person opens. Whoever has it may ask for consent in the organization's name.
    pub url: String,
    /// When it stops working.
    pub expires_at: Timestamp,
}
