//! Organizations and the whole as operators see them.

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    Keeper, KeeperError, Scope, Shared,
    index::Entry,
    slot::{Brief, shown_usage},
};
use crate::{
    model::{Grant, Labels, OrganizationId, Timestamp, Usage, in_largest_unit},
    vault::Rekeying,
    wire,
};

/// Strays that are named at most; their number is told in any case.
const MAX_STRAYS: usize = 100;

impl Keeper {
    /// The state of the whole, counted over what `scope` allows; `None`: over everything.
    pub async fn status(&self, scope: Option<Scope<'_>>) -> wire::Status {
        let shared = &self.shared;
        let (census, forecast) = shared.survey(scope).await;
        let stats = shared.vault.stats();
        let rekeying = shared.vault.rekeying();
        let mut organizations = BTreeMap::new();
        for counts in census.providers.values() {
            for (state, count) in &counts.states {
                *organizations.entry(Cow::Borrowed(*state)).or_default() += count;
            }
        }
        let providers = census.providers.iter().map(|(name, counts)| wire::ProviderStatus {
            name: name.clone(),
            circuit: Cow::Borrowed(if counts.circuit_open { "open" } else { "closed" }),
            organizations: counts.states.values().sum(),
            overdue: counts.overdue,
            budget_per_minute: counts.budget_per_minute,
            needed_per_minute: counts.needed_per_minute,
        });
        wire::Status {
            version: Cow::Borrowed(env!("CARGO_PKG_VERSION")),
            uptime_seconds: shared.now().boot.saturating_sub(shared.started.boot).as_secs(),
            organizations,
            providers: providers.collect(),
            forecast: forecast.weeks.into_iter().map(Into::into).collect(),
            later: forecast.later,
            expired: census.providers.values().map(|counts| counts.expired).sum(),
            end_assumed: census.providers.values().map(|counts| counts.end_assumed).sum(),
            invitations_per_week: forecast.invitations_per_week,
            webhooks: wire::WebhookStatus { pending: shared.outbox.pending(), given_up: shared.outbox.given_up() },
            awaiting: shared.named_awaiting(scope).await,
            strays: if stats.strays == 0 { Vec::new() } else { shared.strays(scope).await },
            vault: wire::VaultStatus {
                records: stats.records,
                bytes: stats.bytes,
                strays: stats.strays,
                data_key: stats.data_key,
                rekey_progress: rekeying.as_ref().map(Rekeying::progress),
                rekey_problem: rekeying.and_then(|rekeying| rekeying.problem),
                last_backup_at: shared.vault.last_backup_at(),
            },
        }
    }
}

impl Shared {
    /// One organization as operators see it.
    pub(super) async fn view(&self, organization: &OrganizationId) -> Result<wire::Organization, KeeperError> {
        let entry = self.find(organization).await?;
        let view = self.view_at(&entry).await;
        match self.successor(&entry, &view).await {
            Some(entry) => self.view_at(&entry).await,
            None => view,
        }
    }

    async fn view_at(&self, entry: &Entry) -> Result<wire::Organization, KeeperError> {
        match self.view_of(entry).await {
            Ok(view) => view.ok_or(KeeperError::UnknownOrganization),
            Err(KeeperError::VaultUnavailable(_)) => Ok(self.unreadable(entry)),
            Err(error) => Err(error),
        }
    }

    /// `None` where it was removed meanwhile.
    pub(super) async fn view_of(&self, entry: &Entry) -> Result<Option<wire::Organization>, KeeperError> {
        let failed = |error| self.vault_failed(&error);
        let Some(record) = self.vault.organization(&entry.id).await.map_err(failed)? else { return Ok(None) };
        let Some(grant) = self.vault.grant(entry.slot.id).await.map_err(failed)? else { return Ok(None) };
        Ok(Some(Self::view_with(entry, &grant.value, record.value.labels)))
    }

    /// One organization as operators see it, by what is stored of it.
    pub(super) fn view_with(entry: &Entry, grant: &Grant, labels: Labels) -> wire::Organization {
        Self::view_by(&entry.id, &entry.slot.brief(), entry.last_fetched(), grant, labels)
    }

    /// As [`view_with`](Self::view_with), also of one that is not in memory.
    pub(super) fn view_by(
        id: &OrganizationId,
        brief: &Brief,
        last_fetched: Option<Timestamp>,
        grant: &Grant,
        labels: Labels,
    ) -> wire::Organization {
        let shown = shown_usage(grant);
        let consent = grant.consent.as_ref().map(|consent| wire::Consent {
            granted_at: consent.granted_at,
            expires_at: consent.expires_at,
            assumed: consent.assumed,
            usage: shown.unwrap_or(Usage::OneTime),
            grace_seconds: consent.grace.as_secs(),
            warned: consent.warned.iter().copied().map(in_largest_unit).collect(),
        });
        wire::Organization {
            organization: id.clone(),
            provider: grant.provider.clone(),
            kind: grant.kind(),
            // The slot's state, which may know of a failing vault what no vault could store.
            state: Cow::Borrowed(brief.state.word()),
            reason: brief.state.reason().map(Cow::Borrowed),
            since: brief.since,
            paused: grant.paused,
            subject: grant.subject.clone(),
            shares_grant_with: grant.organizations.iter().filter(|other| *other != id).cloned().collect(),
            access_token_expires_at: brief.access.map(|access| access.expires_at),
            refreshed_at: grant.refreshed_at,
            next_refresh_at: brief.due,
            failures: grant.failures,
            consent,
            last_fetched_at: last_fetched,
            labels,
            unreadable: false,
        }
    }

    /// An organization whose record, or its grant's, cannot be read: what memory knows of it, so that one damaged record
    /// does not hide the others.
    pub(super) fn unreadable(&self, entry: &Entry) -> wire::Organization {
        let brief = entry.slot.brief();
        let provider = self.lane(&entry.slot).name.clone();
        tracing::error!(
            event = "vault.unreadable",
            organization = entry.id.as_str(),
            provider = provider.as_str(),
            "a record of this organization cannot be read; `consentry restore` brings a backup back"
        );
        wire::Organization {
            organization: entry.id.clone(),
            provider,
            kind: brief.kind,
            state: Cow::Borrowed(brief.state.word()),
            reason: brief.state.reason().map(Cow::Borrowed),
            since: brief.since,
            paused: brief.paused,
            subject: None,
            shares_grant_with: Vec::new(),
            access_token_expires_at: brief.access.map(|access| access.expires_at),
            refreshed_at: brief.refreshed_at,
            next_refresh_at: brief.due,
            failures: 0,
            consent: None,
            last_fetched_at: entry.last_fetched(),
            labels: BTreeMap::new(),
            unreadable: true,
        }
    }

    /// The strays in the vault, the first of them named by organization where `scope` allows.
    pub(super) async fn strays(&self, scope: Option<Scope<'_>>) -> Vec<wire::Stray> {
        let mut strays = Vec::new();
        let read = self
            .vault
            .for_each_stray(&mut |stored| {
                if strays.len() < MAX_STRAYS {
                    strays.push((stored.value.grant, stored.value.at, stored.value.why));
                }
                Ok(())
            })
            .await;
        if let Err(error) = read {
            tracing::error!(error = %error, "not every stray can be read");
        }
        let mut named = Vec::with_capacity(strays.len());
        for (grant, at, why) in strays {
            let grant = self.vault.grant(grant).await.ok().flatten().map(|stored| stored.value);
            let organization = grant.and_then(|grant| grant.organizations.into_iter().next());
            named.push(wire::Stray { organization, at, why });
        }
        named.retain(|stray| is_in_scope(stray.organization.as_ref(), scope));
        named
    }
}

/// A stray whose organization is gone is for those alone who may see everything.
fn is_in_scope(organization: Option<&OrganizationId>, scope: Option<Scope<'_>>) -> bool {
    match (scope, organization) {
        (None, _) => true,
        (Some(scope), Some(organization)) => scope(organization),
        (Some(_), None) => false,
    }
}
