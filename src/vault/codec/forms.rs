//! The forms of version 1, and of version 2 of grants and of the vault's own record. postcard writes fields in order and variants by their place, so neither may ever change here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Meta;
use crate::{
    model::{
        AccessToken, BootMoment, ClientCredentials, Consent, Credential, DoubtReason, FailingReason, Fingerprint,
        Grant, GrantId, Intent, InvalidId, Organization, Refusals, Secret, State, Timestamp, Usage,
    },
    vault::Stray,
};

#[derive(Serialize, Deserialize)]
pub(super) struct GrantForm<'a> {
    id: GrantId,
    #[serde(borrow)]
    provider: &'a str,
    credential: CredentialForm<'a>,
    fingerprint: Fingerprint,
    spent: Vec<Fingerprint>,
    client: Option<ClientForm<'a>>,
    access: Option<AccessForm<'a>>,
    state: StateForm,
    since: Timestamp,
    paused: bool,
    subject: Option<&'a str>,
    consent: Option<ConsentForm>,
    refreshed_at: Option<Timestamp>,
    failures: u32,
    retry_at: Option<Timestamp>,
    refusals: Option<(u32, Timestamp)>,
    last_fetched_at: Option<Timestamp>,
    organizations: Vec<&'a str>,
    epoch: u32,
    /// Of the access token: boot id and time since boot. New in version 2.
    issued_boot: Option<(u128, Duration)>,
}

#[derive(Serialize, Deserialize)]
enum CredentialForm<'a> {
    RefreshToken(&'a str),
    ApiKey(&'a str),
}

#[derive(Serialize, Deserialize)]
struct ClientForm<'a> {
    id: &'a str,
    secret: &'a str,
}

#[derive(Serialize, Deserialize)]
struct AccessForm<'a> {
    token: &'a str,
    token_type: &'a str,
    scope: Option<&'a str>,
    issued_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct ConsentForm {
    granted_at: Timestamp,
    expires_at: Option<Timestamp>,
    assumed: bool,
    expected: UsageForm,
    shown: Option<UsageForm>,
    grace: Duration,
    warned: Vec<Duration>,
}

#[derive(Serialize, Deserialize)]
enum UsageForm {
    Reuse,
    OneTime,
}

#[derive(Serialize, Deserialize)]
enum StateForm {
    Active,
    Unverified,
    Refused,
    ProviderUnavailable,
    RateLimited,
    ClientRefused,
    VaultUnavailable,
    NoAnswer,
    Crashed,
    Restored,
    RolledBack,
    Lost,
}

impl<'a> From<&'a Grant> for GrantForm<'a> {
    fn from(grant: &'a Grant) -> Self {
        Self {
            id: grant.id,
            provider: grant.provider.as_str(),
            credential: match &grant.credential {
                Credential::RefreshToken(secret) => CredentialForm::RefreshToken(secret.expose()),
                Credential::ApiKey(secret) => CredentialForm::ApiKey(secret.expose()),
            },
            fingerprint: grant.fingerprint,
            spent: grant.spent.clone(),
            client: grant.client.as_ref().map(|client| ClientForm { id: &client.id, secret: client.secret.expose() }),
            access: grant.access.as_ref().map(AccessForm::from),
            state: grant.state.into(),
            since: grant.since,
            paused: grant.paused,
            subject: grant.subject.as_deref(),
            consent: grant.consent.as_ref().map(ConsentForm::from),
            refreshed_at: grant.refreshed_at,
            failures: grant.failures,
            retry_at: grant.retry_at,
            refusals: grant.refusals.map(|refusals| (refusals.count, refusals.first_at)),
            last_fetched_at: grant.last_fetched_at,
            organizations: grant.organizations.iter().map(crate::model::OrganizationId::as_str).collect(),
            epoch: grant.epoch,
            issued_boot: grant
                .access
                .as_ref()
                .and_then(|access| access.issued_boot)
                .map(|boot| (boot.boot_id, boot.at)),
        }
    }
}

impl TryFrom<GrantForm<'_>> for Grant {
    type Error = InvalidId;

    fn try_from(form: GrantForm<'_>) -> Result<Self, InvalidId> {
        Ok(Self {
            id: form.id,
            provider: form.provider.parse()?,
            credential: match form.credential {
                CredentialForm::RefreshToken(text) => Credential::RefreshToken(Secret::new(text)),
                CredentialForm::ApiKey(text) => Credential::ApiKey(Secret::new(text)),
            },
            fingerprint: form.fingerprint,
            spent: form.spent,
            client: form
                .client
                .map(|client| ClientCredentials { id: client.id.to_owned(), secret: Secret::new(client.secret) }),
            access: form.access.map(|access| AccessToken {
                issued_boot: form.issued_boot.map(|(boot_id, at)| BootMoment { boot_id, at }),
                ..AccessToken::from(access)
            }),
            state: form.state.into(),
            since: form.since,
            paused: form.paused,
            subject: form.subject.map(str::to_owned),
            consent: form.consent.map(Consent::from),
            refreshed_at: form.refreshed_at,
            failures: form.failures,
            retry_at: form.retry_at,
            refusals: form.refusals.map(|(count, first_at)| Refusals { count, first_at }),
            last_fetched_at: form.last_fetched_at,
            organizations: form.organizations.into_iter().map(str::parse).collect::<Result<_, _>>()?,
            epoch: form.epoch,
        })
    }
}

impl<'a> From<&'a AccessToken> for AccessForm<'a> {
    fn from(access: &'a AccessToken) -> Self {
        Self {
            token: access.token.expose(),
            token_type: &access.token_type,
            scope: access.scope.as_deref(),
            issued_at: access.issued_at,
            expires_at: access.expires_at,
        }
    }
}

impl From<AccessForm<'_>> for AccessToken {
    fn from(form: AccessForm<'_>) -> Self {
        Self {
            token: Secret::new(form.token),
            token_type: form.token_type.to_owned(),
            scope: form.scope.map(str::to_owned),
            issued_at: form.issued_at,
            expires_at: form.expires_at,
            issued_boot: None,
        }
    }
}

impl From<&Consent> for ConsentForm {
    fn from(consent: &Consent) -> Self {
        Self {
            granted_at: consent.granted_at,
            expires_at: consent.expires_at,
            assumed: consent.assumed,
            expected: consent.expected.into(),
            shown: consent.shown.map(UsageForm::from),
            grace: consent.grace,
            warned: consent.warned.clone(),
        }
    }
}

impl From<ConsentForm> for Consent {
    fn from(form: ConsentForm) -> Self {
        Self {
            granted_at: form.granted_at,
            expires_at: form.expires_at,
            assumed: form.assumed,
            expected: form.expected.into(),
            shown: form.shown.map(Usage::from),
            grace: form.grace,
            warned: form.warned,
        }
    }
}

impl From<Usage> for UsageForm {
    fn from(usage: Usage) -> Self {
        match usage {
            Usage::Reuse => Self::Reuse,
            Usage::OneTime => Self::OneTime,
        }
    }
}

impl From<UsageForm> for Usage {
    fn from(form: UsageForm) -> Self {
        match form {
            UsageForm::Reuse => Self::Reuse,
            UsageForm::OneTime => Self::OneTime,
        }
    }
}

impl From<State> for StateForm {
    fn from(state: State) -> Self {
        match state {
            State::Active => Self::Active,
            State::Failing(FailingReason::Unverified) => Self::Unverified,
            State::Failing(FailingReason::Refused) => Self::Refused,
            State::Failing(FailingReason::ProviderUnavailable) => Self::ProviderUnavailable,
            State::Failing(FailingReason::RateLimited) => Self::RateLimited,
            State::Failing(FailingReason::ClientRefused) => Self::ClientRefused,
            State::Failing(FailingReason::VaultUnavailable) => Self::VaultUnavailable,
            State::InDoubt(DoubtReason::NoAnswer) => Self::NoAnswer,
            State::InDoubt(DoubtReason::Crashed) => Self::Crashed,
            State::InDoubt(DoubtReason::Restored) => Self::Restored,
            State::InDoubt(DoubtReason::RolledBack) => Self::RolledBack,
            State::Lost => Self::Lost,
        }
    }
}

impl From<StateForm> for State {
    fn from(form: StateForm) -> Self {
        match form {
            StateForm::Active => Self::Active,
            StateForm::Unverified => Self::Failing(FailingReason::Unverified),
            StateForm::Refused => Self::Failing(FailingReason::Refused),
            StateForm::ProviderUnavailable => Self::Failing(FailingReason::ProviderUnavailable),
            StateForm::RateLimited => Self::Failing(FailingReason::RateLimited),
            StateForm::ClientRefused => Self::Failing(FailingReason::ClientRefused),
            StateForm::VaultUnavailable => Self::Failing(FailingReason::VaultUnavailable),
            StateForm::NoAnswer => Self::InDoubt(DoubtReason::NoAnswer),
            StateForm::Crashed => Self::InDoubt(DoubtReason::Crashed),
            StateForm::Restored => Self::InDoubt(DoubtReason::Restored),
            StateForm::RolledBack => Self::InDoubt(DoubtReason::RolledBack),
            StateForm::Lost => Self::Lost,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct OrganizationForm<'a> {
    #[serde(borrow)]
    id: &'a str,
    grant: GrantId,
    labels: Vec<(&'a str, &'a str)>,
    added_at: Timestamp,
}

impl<'a> From<&'a Organization> for OrganizationForm<'a> {
    fn from(organization: &'a Organization) -> Self {
        Self {
            id: organization.id.as_str(),
            grant: organization.grant,
            labels: organization.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            added_at: organization.added_at,
        }
    }
}

impl TryFrom<OrganizationForm<'_>> for Organization {
    type Error = InvalidId;

    fn try_from(form: OrganizationForm<'_>) -> Result<Self, InvalidId> {
        Ok(Self {
            id: form.id.parse()?,
            grant: form.grant,
            labels: form.labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            added_at: form.added_at,
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct IntentForm {
    grant: GrantId,
    fingerprint: Fingerprint,
    attempt: u32,
    first_at: Timestamp,
    first_boot: Duration,
    boot_id: u128,
}

impl From<&Intent> for IntentForm {
    fn from(intent: &Intent) -> Self {
        Self {
            grant: intent.grant,
            fingerprint: intent.fingerprint,
            attempt: intent.attempt,
            first_at: intent.first_at,
            first_boot: intent.first_boot,
            boot_id: intent.boot_id,
        }
    }
}

impl From<IntentForm> for Intent {
    fn from(form: IntentForm) -> Self {
        Self {
            grant: form.grant,
            fingerprint: form.fingerprint,
            attempt: form.attempt,
            first_at: form.first_at,
            first_boot: form.first_boot,
            boot_id: form.boot_id,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct StrayForm<'a> {
    grant: GrantId,
    at: Timestamp,
    #[serde(borrow)]
    why: &'a str,
    refresh_token: Option<&'a str>,
    access_token: &'a str,
}

impl<'a> From<&'a Stray> for StrayForm<'a> {
    fn from(stray: &'a Stray) -> Self {
        Self {
            grant: stray.grant,
            at: stray.at,
            why: &stray.why,
            refresh_token: stray.refresh_token.as_ref().map(Secret::expose),
            access_token: stray.access_token.expose(),
        }
    }
}

impl From<StrayForm<'_>> for Stray {
    fn from(form: StrayForm<'_>) -> Self {
        Self {
            grant: form.grant,
            at: form.at,
            why: form.why.to_owned(),
            refresh_token: form.refresh_token.map(Secret::new),
            access_token: Secret::new(form.access_token),
        }
    }
}

/// Version 1; none of its epochs but the first was ever written.
#[derive(Serialize, Deserialize)]
pub(super) struct MetaForm1 {
    epoch: u32,
}

impl From<MetaForm1> for Meta {
    fn from(form: MetaForm1) -> Self {
        Self { epoch: form.epoch, ..Self::NEW }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct MetaForm {
    epoch: u32,
    reason: BackForm,
}

/// How a vault went back to an earlier state.
#[derive(Serialize, Deserialize)]
enum BackForm {
    Restored,
    RolledBack,
}

impl From<&Meta> for MetaForm {
    fn from(meta: &Meta) -> Self {
        let reason = match meta.reason {
            DoubtReason::RolledBack => BackForm::RolledBack,
            _ => BackForm::Restored,
        };
        Self { epoch: meta.epoch, reason }
    }
}

impl From<MetaForm> for Meta {
    fn from(form: MetaForm) -> Self {
        let reason = match form.reason {
            BackForm::Restored => DoubtReason::Restored,
            BackForm::RolledBack => DoubtReason::RolledBack,
        };
        Self { epoch: form.epoch, reason }
    }
}
