use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::ForecastWeek;
use crate::model::{self, Labels, OrganizationId, ProviderName, Timestamp};

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
