//! The parts of a worker, each from the configuration.

use std::{sync::Arc, time::Duration};

use jiff::tz::TimeZone;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::Access,
    clock::SharedClock,
    config::{Config, ProviderConfig},
    consent::Offer,
    http::VaultFigures,
    keeper::{Keeper, Parts},
    links::Links,
    metrics::Metrics,
    outbox::Outbox,
    provider::{Provider, SetupError, TokenEndpoint},
    vault::{Vault, VaultStats},
};

/// Every provider that is configured.
pub(super) type Providers = Vec<Arc<Provider>>;

pub(super) fn keep(
    config: &Config,
    providers: &Providers,
    (vault, outbox): (&Vault, &Outbox),
    metrics: &Metrics,
    clock: &SharedClock,
) -> Keeper {
    let endpoint =
        |provider: &Arc<Provider>| (provider.config().clone(), Arc::clone(provider) as Arc<dyn TokenEndpoint>);
    let parts = Parts {
        vault: vault.clone(),
        outbox: outbox.clone(),
        links: links(config, vault),
        providers: providers.iter().map(endpoint).collect(),
        refresh: config.refresh.clone(),
        revoke_old: config.consent.revoke_old,
        warn_before: config.consent.warn_before.clone(),
        organization_series: config.organization_series,
        clock: clock.clone(),
        metrics: metrics.clone(),
        resident: config.vault.postgres.as_ref().and_then(|postgres| postgres.resident),
        seed: fastrand::u64(..),
    };
    Keeper::start(parts, CancellationToken::new(), TaskTracker::new())
}

pub(super) fn providers(config: &Config, clock: &SharedClock) -> Result<Providers, SetupError> {
    let make = |provider: &ProviderConfig| {
        Provider::new(provider.clone(), config.refresh.timeout, clock.clone()).map(Arc::new)
    };
    config.providers.values().map(make).collect()
}

/// Makes and opens consent links, where `consent.public_url` says where they lead to.
fn links(config: &Config, vault: &Vault) -> Option<Links> {
    let public_url = config.consent.public_url.as_ref()?;
    Some(Links::new(&vault.link_key(), public_url, config.consent.link_lifetime))
}

/// What the consent pages show and do.
pub(super) fn offer(config: &Config, providers: &Providers, vault: &Vault) -> Option<Offer> {
    let public_url = config.consent.public_url.clone()?;
    let name = config.consent.name.clone().or_else(|| public_url.host_str().map(str::to_owned));
    let named = |provider: &Arc<Provider>| (provider.config().name.clone(), Arc::clone(provider));
    Some(Offer {
        links: links(config, vault)?,
        name: name.unwrap_or_default(),
        // The configuration took no name that the database does not know.
        time_zone: TimeZone::get(&config.schedule.timezone).unwrap_or(TimeZone::UTC),
        providers: providers.iter().map(named).collect(),
        public_url,
    })
}

pub(super) fn access(config: &Config) -> Access {
    Access::new(config.access.clone(), rustix::process::geteuid().as_raw())
}

pub(super) fn figures_of(vault: &Vault) -> VaultFigures {
    let VaultStats { bytes, records, strays, .. } = vault.stats();
    let (asynchronous, news_age) =
        vault.store().map_or((false, Duration::ZERO), |store| (store.allows_asynchronous(), store.news_age()));
    VaultFigures { bytes, records, strays, asynchronous, news_age }
}
