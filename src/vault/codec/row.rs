//! The form of version 1 of the outbox's rows. As the other forms, it may never change once it was released.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::{
    EndingWeek, Event, EventId, EventKind, InvalidId, OpenDelivery, OutboxRow, Outlook, ReceiverId, Timestamp,
};

#[derive(Serialize, Deserialize)]
pub(super) struct RowForm<'a> {
    number: u64,
    id: [u8; 16],
    at: Timestamp,
    kind: KindForm,
    #[serde(borrow)]
    provider: Option<&'a str>,
    organization: Option<&'a str>,
    labels: Vec<(&'a str, &'a str)>,
    state: Option<&'a str>,
    reason: Option<&'a str>,
    consent_expires_at: Option<Timestamp>,
    days_left: Option<i64>,
    renewal_url: Option<&'a str>,
    within: Option<Duration>,
    /// Monday, provider, consents, and how many of them with an assumed end.
    weeks: Vec<(&'a str, &'a str, u64, u64)>,
    outlook: Option<OutlookForm>,
    deliveries: Vec<DeliveryForm>,
}

#[derive(Serialize, Deserialize)]
struct OutlookForm {
    ending: Vec<(Duration, u64)>,
    later: u64,
    expired: u64,
    end_assumed: u64,
    in_doubt: u64,
    lost: u64,
    invitations_per_week: u64,
}

#[derive(Serialize, Deserialize)]
struct DeliveryForm {
    receiver: u64,
    attempts: u32,
    first_at: Timestamp,
    next_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
enum KindForm {
    ConsentExpiring,
    ConsentExpired,
    ConsentRefused,
    ConsentLost,
    ConsentInDoubt,
    ConsentRenewed,
    ConsentRecovered,
    ConsentsDigest,
    ProviderFailing,
    ProviderRecovered,
    VaultFailing,
    TokenRefreshed,
}

impl<'a> From<&'a OutboxRow> for RowForm<'a> {
    fn from(row: &'a OutboxRow) -> Self {
        let event = &*row.event;
        let weeks = event.weeks.iter().map(|week| (&*week.week, week.provider.as_str(), week.consents, week.assumed));
        let deliveries = row.deliveries.iter().map(|open| DeliveryForm {
            receiver: open.receiver.0,
            attempts: open.attempts,
            first_at: open.first_at,
            next_at: open.next_at,
        });
        Self {
            number: row.number,
            id: *event.id.as_bytes(),
            at: event.at,
            kind: event.kind.into(),
            provider: event.provider.as_ref().map(crate::model::ProviderName::as_str),
            organization: event.organization.as_ref().map(crate::model::OrganizationId::as_str),
            labels: event.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            state: event.state.as_deref(),
            reason: event.reason.as_deref(),
            consent_expires_at: event.consent_expires_at,
            days_left: event.days_left,
            renewal_url: event.renewal_url.as_deref(),
            within: event.within,
            weeks: weeks.collect(),
            outlook: event.outlook.as_deref().map(OutlookForm::from),
            deliveries: deliveries.collect(),
        }
    }
}

impl TryFrom<RowForm<'_>> for OutboxRow {
    type Error = InvalidId;

    fn try_from(form: RowForm<'_>) -> Result<Self, InvalidId> {
        let owned = |text: &str| Cow::Owned(text.to_owned());
        let weeks = form.weeks.into_iter().map(|(week, provider, consents, assumed)| {
            Ok(EndingWeek { week: week.to_owned(), provider: provider.parse()?, consents, assumed })
        });
        let event = Event {
            id: EventId::from_bytes(form.id),
            at: form.at,
            kind: form.kind.into(),
            provider: form.provider.map(str::parse).transpose()?,
            organization: form.organization.map(str::parse).transpose()?,
            labels: form.labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            state: form.state.map(owned),
            reason: form.reason.map(owned),
            consent_expires_at: form.consent_expires_at,
            days_left: form.days_left,
            renewal_url: form.renewal_url.map(str::to_owned),
            within: form.within,
            weeks: weeks.collect::<Result<_, _>>()?,
            outlook: form.outlook.map(|form| Box::new(form.into())),
        };
        let deliveries = form.deliveries.into_iter().map(|open| OpenDelivery {
            receiver: ReceiverId(open.receiver),
            attempts: open.attempts,
            first_at: open.first_at,
            next_at: open.next_at,
        });
        Ok(Self { number: form.number, event: Arc::new(event), deliveries: deliveries.collect() })
    }
}

impl From<&Outlook> for OutlookForm {
    fn from(outlook: &Outlook) -> Self {
        let Outlook { ending, later, expired, end_assumed, in_doubt, lost, invitations_per_week } = outlook.clone();
        Self { ending, later, expired, end_assumed, in_doubt, lost, invitations_per_week }
    }
}

impl From<OutlookForm> for Outlook {
    fn from(form: OutlookForm) -> Self {
        let OutlookForm { ending, later, expired, end_assumed, in_doubt, lost, invitations_per_week } = form;
        Self { ending, later, expired, end_assumed, in_doubt, lost, invitations_per_week }
    }
}

/// Both ways of the one table, so that neither can miss a kind.
macro_rules! kinds {
    ($($kind:ident)+) => {
        impl From<EventKind> for KindForm {
            fn from(kind: EventKind) -> Self {
                match kind { $(EventKind::$kind => Self::$kind,)+ }
            }
        }

        impl From<KindForm> for EventKind {
            fn from(form: KindForm) -> Self {
                match form { $(KindForm::$kind => Self::$kind,)+ }
            }
        }
    };
}

kinds! {
    ConsentExpiring ConsentExpired ConsentRefused ConsentLost ConsentInDoubt ConsentRenewed ConsentRecovered
    ConsentsDigest ProviderFailing ProviderRecovered VaultFailing TokenRefreshed
}
