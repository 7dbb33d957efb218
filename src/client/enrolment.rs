use serde::Serialize;

use crate::{
    model::{Labels, ProviderName, Secret, Timestamp, Usage},
    wire,
};

/// [`wire::Enrolment`] as it is sent. The type itself cannot be serialized, so that a secret leaves it here alone.
#[derive(Serialize)]
pub(super) struct EnrolmentBody<'a> {
    provider: &'a ProviderName,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    granted_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a Labels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<bool>,
}

impl<'a> From<&'a wire::Enrolment> for EnrolmentBody<'a> {
    fn from(enrolment: &'a wire::Enrolment) -> Self {
        Self {
            provider: &enrolment.provider,
            refresh_token: enrolment.refresh_token.as_ref().map(Secret::expose),
            api_key: enrolment.api_key.as_ref().map(Secret::expose),
            client_id: enrolment.client_id.as_deref(),
            client_secret: enrolment.client_secret.as_ref().map(Secret::expose),
            granted_at: enrolment.granted_at,
            expires_at: enrolment.expires_at,
            usage: enrolment.usage,
            grace: enrolment.grace.as_deref(),
            labels: enrolment.labels.as_ref(),
            verify: enrolment.verify,
        }
    }
}
