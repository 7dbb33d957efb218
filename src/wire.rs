//! The JSON of the Unix-socket API, shared by the server and the client. `docs/openapi.yaml` describes the same
//! shapes, and the tests hold every answer against it.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::model::{self, GrantKind, Labels, OrganizationId, ProviderName, Secret, Timestamp, Usage};

/// Where both listeners say whether the worker lives.
pub const HEALTHZ: &str = "/healthz";
/// Where both listeners say whether the vault is open and loaded.
pub const READYZ: &str = "/readyz";

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

/// `GET /v1/status`.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Status {
    /// The worker's version.
    pub version: Cow<'static, str>,
    /// Whole seconds since it started.
    pub uptime_seconds: u64,
    /// How many organizations are in each state, `paused` included; every state always present.
    pub organizations: BTreeMap<Cow<'static, str>, u64>,
    /// Every configured provider.
    pub providers: Vec<ProviderStatus>,
    /// Consents that end, by week (its Monday, as a date) and provider, soonest first.
    pub forecast: Vec<ForecastWeek>,
    /// Consents that end after the last week of the forecast, where it was cut.
    #[serde(default)]
    pub later: u64,
    /// Consents past their end.
    pub expired: u64,
    /// Consents of which nobody told when they end: the date is assumed from the provider's configuration.
    #[serde(default)]
    pub end_assumed: u64,
    /// The least even number of invitations a week, from this week on, that renews all of the forecast in time.
    #[serde(default)]
    pub invitations_per_week: u64,
    /// Deliveries.
    pub webhooks: WebhookStatus,
    /// The vault.
    pub vault: VaultStatus,
    /// Answers that could not take their place, at most a hundred; those that the caller may see.
    #[serde(default)]
    pub strays: Vec<Stray>,
    /// Consents that have not taken their place, the oldest first, at most a hundred; those that the caller may see.
    #[serde(default)]
    pub awaiting: Vec<Awaiting>,
}

/// An answer that is kept sealed and never served.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// The first organization of the grant whose exchange it answered; null where that is gone.
    pub organization: Option<OrganizationId>,
    /// When it came.
    pub at: Timestamp,
    /// Why it could not take its place.
    pub why: String,
}

/// A consent that a person has given and that has not taken its place yet.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Awaiting {
    /// The organization that it may be for; it need not be known yet.
    pub organization: OrganizationId,
    /// The provider.
    pub provider: ProviderName,
    /// The issuer's name for who gave it, where it told.
    pub subject: Option<String>,
    /// When it was given.
    pub since: Timestamp,
    /// `unfinished` (it goes on by itself); `first_connection`, `another_person` or `unknown_person`: an operator has to
    /// confirm or decline it.
    pub reason: Cow<'static, str>,
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

/// One provider's health.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct ProviderStatus {
    /// Its name.
    pub name: ProviderName,
    /// `closed` (all is well) or `open` (frozen).
    pub circuit: Cow<'static, str>,
    /// Organizations served by it.
    pub organizations: u64,
    /// Access tokens past the moment they should have been refreshed.
    pub overdue: u64,
    /// Exchanges a minute that are allowed.
    pub budget_per_minute: u32,
    /// Exchanges a minute that its grants need to stay warm, rounded up.
    pub needed_per_minute: u32,
}

/// How many consents end in one week.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ForecastWeek {
    /// The week's Monday in UTC, as `2026-11-23`.
    pub week: String,
    /// The provider.
    pub provider: ProviderName,
    /// How many.
    pub consents: u64,
    /// How many of them have an assumed end.
    #[serde(default)]
    pub assumed: u64,
}

impl From<model::EndingWeek> for ForecastWeek {
    fn from(week: model::EndingWeek) -> Self {
        let model::EndingWeek { week, provider, consents, assumed } = week;
        Self { week, provider, consents, assumed }
    }
}

/// Deliveries to webhooks.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct WebhookStatus {
    /// Not yet delivered.
    pub pending: u64,
    /// Given up since the worker started.
    #[serde(default)]
    pub given_up: u64,
}

/// The vault's figures.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct VaultStatus {
    /// Records in it.
    pub records: u64,
    /// Bytes on disk, journal included.
    pub bytes: u64,
    /// Answers among them that could not take their place.
    #[serde(default)]
    pub strays: u64,
    /// The number of the data key in use.
    pub data_key: u32,
    /// 0 to 1 while records are re-sealed under a new data key, else null.
    pub rekey_progress: Option<f64>,
    /// Why the sealing anew has stopped, if it has; nothing is lost by that.
    pub rekey_problem: Option<String>,
    /// When the last backup was made.
    pub last_backup_at: Option<Timestamp>,
}

/// `POST /v1/vault/keys`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataKey {
    /// The number of the data key that seals from now on.
    pub data_key: u32,
}

/// `GET /v1/vault/recipients`, and what is answered to changes below it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Recipients {
    /// Everybody who can open the vault.
    pub recipients: Vec<Recipient>,
}

/// Somebody who can open the vault.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The public key, `age1…`.
    pub recipient: String,
    /// Whether it is of the worker's own identity.
    pub own: bool,
}

/// An event as `GET /v1/events` and webhooks tell it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Event {
    /// Names it: the same happening told twice has the same one.
    pub id: String,
    /// What happened, such as `consent.expiring`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// When.
    pub timestamp: Timestamp,
    /// What it is about.
    pub data: EventData,
}

/// What an event is about.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(untagged)]
pub enum EventData {
    /// An organization's grant.
    Organization(Box<OrganizationEvent>),
    /// All consents that end.
    Digest(Box<Digest>),
    /// A provider as a whole.
    Provider {
        /// Its name.
        provider: ProviderName,
        /// Why it fails; null where it does not.
        reason: Option<Cow<'static, str>>,
    },
    /// The vault.
    Vault {
        /// Why it fails.
        reason: Option<Cow<'static, str>>,
    },
}

/// All consents in numbers, as a digest tells them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// What ends, by week and provider, soonest first.
    pub weeks: Vec<ForecastWeek>,
    /// For each of `consent.warn_before`, how many end within it; cumulative, the expired not counted.
    pub ending: Vec<EndingWithin>,
    /// Consents that end after the last of the weeks.
    pub later: u64,
    /// Consents past their end.
    pub expired: u64,
    /// Consents of which nobody told when they end.
    pub end_assumed: u64,
    /// Organizations in doubt.
    pub in_doubt: u64,
    /// Organizations whose grant is lost.
    pub lost: u64,
    /// The least even number of invitations a week that keeps ahead of what ends.
    pub invitations_per_week: u64,
}

/// How many consents end within a time.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct EndingWithin {
    /// One of `consent.warn_before`, such as `30d`.
    pub within: String,
    /// How many.
    pub consents: u64,
}

impl Digest {
    fn of(weeks: &[model::EndingWeek], outlook: Option<&model::Outlook>) -> Self {
        let outlook = outlook.cloned().unwrap_or_default();
        let ending = outlook
            .ending
            .into_iter()
            .map(|(within, consents)| EndingWithin { within: model::in_largest_unit(within), consents });
        Self {
            weeks: weeks.iter().cloned().map(Into::into).collect(),
            ending: ending.collect(),
            later: outlook.later,
            expired: outlook.expired,
            end_assumed: outlook.end_assumed,
            in_doubt: outlook.in_doubt,
            lost: outlook.lost,
            invitations_per_week: outlook.invitations_per_week,
        }
    }
}

/// What an event tells of an organization's grant.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct OrganizationEvent {
    /// Whose grant.
    pub organization: OrganizationId,
    /// Where it is.
    pub provider: ProviderName,
    /// The operator's labels.
    pub labels: Labels,
    /// The grant's state since.
    pub state: Option<Cow<'static, str>>,
    /// Why, for every state but `active`.
    pub reason: Option<Cow<'static, str>>,
    /// When the consent ends, as far as known.
    pub consent_expires_at: Option<Timestamp>,
    /// Days until then, rounded up; zero or less once it has ended.
    pub days_left: Option<i64>,
    /// Of `consent.expiring`: which of `consent.warn_before` this is, such as `30d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Where the customer renews the consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_url: Option<String>,
}

impl From<&model::Event> for Event {
    fn from(event: &model::Event) -> Self {
        let reason = event.reason.clone();
        let data = match (&event.organization, &event.provider) {
            (Some(organization), Some(provider)) => EventData::Organization(Box::new(OrganizationEvent {
                organization: organization.clone(),
                provider: provider.clone(),
                labels: event.labels.clone(),
                state: event.state.clone(),
                reason,
                consent_expires_at: event.consent_expires_at,
                days_left: event.days_left,
                within: event.within.map(model::in_largest_unit),
                renewal_url: event.renewal_url.clone(),
            })),
            _ if event.kind == model::EventKind::ConsentsDigest => {
                EventData::Digest(Box::new(Digest::of(&event.weeks, event.outlook.as_deref())))
            }
            (_, Some(provider)) => EventData::Provider { provider: provider.clone(), reason },
            (_, None) => EventData::Vault { reason },
        };
        Self { id: event.id.to_string(), kind: Cow::Borrowed(event.kind.word()), timestamp: event.at, data }
    }
}

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
