use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::model::{GrantKind, Labels, OrganizationId, ProviderName, Timestamp, Usage};

/// An organization as operators see it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Organization {
    /// The issuer's id of it.
    pub organization: OrganizationId,
    /// The provider of its grant.
    pub provider: ProviderName,
    /// Consent or API key.
    pub kind: GrantKind,
    /// `active`, `failing`, `in_doubt` or `lost`.
    pub state: Cow<'static, str>,
    /// Why, for every state but `active`.
    pub reason: Option<Cow<'static, str>>,
    /// Since when.
    pub since: Timestamp,
    /// Whether an operator paused it.
    pub paused: bool,
    /// The issuer's name for who gave the consent.
    pub subject: Option<String>,
    /// Other organizations that the same grant serves.
    pub shares_grant_with: Vec<OrganizationId>,
    /// When the access token ends.
    pub access_token_expires_at: Option<Timestamp>,
    /// When the last exchange went well.
    pub refreshed_at: Option<Timestamp>,
    /// When the next exchange is due; null when none is.
    pub next_refresh_at: Option<Timestamp>,
    /// Failed exchanges since the last good one.
    pub failures: u32,
    /// The consent, or null for an API key.
    pub consent: Option<Consent>,
    /// When a token was last fetched.
    pub last_fetched_at: Option<Timestamp>,
    /// The operator's labels.
    pub labels: Labels,
    /// Its record, or its grant's, is damaged: what is not known is null, empty or zero.
    #[serde(default)]
    pub unreadable: bool,
}

/// What is known of a consent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Consent {
    /// When the person approved.
    pub granted_at: Timestamp,
    /// When it ends at the latest; null: not by itself.
    pub expires_at: Option<Timestamp>,
    /// No date was given at enrolment.
    pub assumed: bool,
    /// As exchanges have shown it, else as expected.
    pub usage: Usage,
    /// How long a spent token may be exchanged again.
    pub grace_seconds: u64,
    /// Warnings already given, e.g. `"30d"`; `"0s"`: that it has ended.
    pub warned: Vec<String>,
}

/// `GET /v1/organizations`.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct OrganizationPage {
    /// In order of their ids.
    pub organizations: Vec<Organization>,
    /// Hand it back as `cursor` for what follows; null at the end.
    pub next_cursor: Option<String>,
}

/// `POST /v1/organizations/{org}/resolve`
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// What to do.
    pub action: Resolution,
}

/// What to do with a grant in doubt or lost.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Exchange it now, though that may be a replay.
    Retry,
    /// Give it up: it is lost from now on.
    Abandon,
}

/// `POST /v1/organizations/{org}/confirm`
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    /// What to do.
    pub action: Confirmation,
}

/// What to do with a consent that waits for an operator.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Confirmation {
    /// It is the organization's: it takes its place.
    Accept,
    /// It is not: it is forgotten.
    Decline,
}
