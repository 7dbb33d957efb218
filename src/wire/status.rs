use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::model::{self, OrganizationId, ProviderName, Timestamp};

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
