use std::fmt;

use serde::Deserialize;

use crate::model::{Labels, ProviderName, Secret, Timestamp, Usage};

/// Header of an enrolment's answer: `true`, or `false` where the same secret was enrolled again and nothing changed.
pub const ENROLMENT_CHANGED: &str = "consentry-changed";

/// `PUT /v1/organizations/{org}`; also a line of an import, which has `organization` besides.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Which provider the credential belongs to.
    pub provider: ProviderName,
    /// A refresh token; exactly one of this and `api_key`.
    #[serde(default, deserialize_with = "secret")]
    pub refresh_token: Option<Secret>,
    /// A personal API key.
    #[serde(default, deserialize_with = "secret")]
    pub api_key: Option<Secret>,
    /// Overrides the provider's client id for this grant.
    #[serde(default)]
    pub client_id: Option<String>,
    /// Overrides the provider's client secret for this grant.
    #[serde(default, deserialize_with = "secret")]
    pub client_secret: Option<Secret>,
    /// When the person approved.
    #[serde(default)]
    pub granted_at: Option<Timestamp>,
    /// When the consent ends.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Whether the refresh token is expected to outlive an exchange.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// How long a spent token may be exchanged again, e.g. `"30s"`.
    #[serde(default)]
    pub grace: Option<String>,
    /// The operator's labels.
    #[serde(default)]
    pub labels: Option<Labels>,
    /// Whether the first exchange proves it before anything is stored; true where absent.
    #[serde(default)]
    pub verify: Option<bool>,
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment").field("provider", &self.provider).finish_non_exhaustive()
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Secret::new))
}
