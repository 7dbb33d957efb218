//! Every metric of the worker, in one struct. Names and labels are the contract's; the help text of each is the doc
//! comment of its field in `families.rs`.
//!
//! Every series exists from the start, zero included, so that an alert on a rate sees the first increase. Labels are
//! bounded: providers and warnings come from the configuration, reasons and outcomes from fixed lists. The one metric
//! that names organizations is written from the latest census alone, so that what is no longer reported is gone.

mod census;
mod durations;
mod families;
mod flow;
mod series;

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub use self::{
    census::{Census, ExpiringSeries, ProviderCensus, STATES},
    flow::Flow,
};
use self::{
    durations::Durations,
    families::{FAMILIES, describe_all},
    series::ProviderTable,
};
use crate::{
    model::{ProviderName, Timestamp},
    wire::Code,
};

/// Fetches, in microseconds: in memory as a rule, a vault read at times, an exchange now and then.
const FETCH_BUCKETS: [u64; 14] =
    [50, 100, 200, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];
/// Exchanges: a call to another continent, up to the longest timeout that makes sense.
const REFRESH_BUCKETS: [f64; 11] = [10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Commits: one sync of the journal, on anything from flash to a tired network disk.
const VAULT_BUCKETS: [f64; 14] =
    [100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 5.0];

/// The worker's metrics. Cheap to clone; each has a recorder of its own, so that several workers of one process do
/// not mix.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    providers: ProviderTable,
    fetched_ok: Counter,
    fetched_degraded: Counter,
    /// In the order of [`Code::ALL`].
    fetch_refused: Vec<Counter>,
    fetch_duration: Durations<{ FETCH_BUCKETS.len() }>,
    organization_series_dropped: Gauge,
    webhook_pending: Gauge,
    vault_write_duration: Histogram,
    vault_errors: Counter,
    vault_size: Gauge,
    vault_records: Gauge,
    vault_strays: Gauge,
    vault_asynchronous: Gauge,
    vault_news_age: Gauge,
    grants_resident: Gauge,
    vault_rekey_progress: Gauge,
    backup_last_success: Gauge,
    /// What the latest census named by organization; the keeper bounds it.
    expiring: Mutex<Vec<ExpiringSeries>>,
}

/// What may come of a claim.
const CLAIMED: [&str; 3] = ["won", "held", "fenced"];

impl Metrics {
    /// Makes every series that is known from the start, at zero.
    pub fn new(providers: &[ProviderName]) -> Self {
        let recorder = recorder();
        describe_all(&recorder);
        FAMILIES.build_info.gauge(&recorder, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        for result in ["ok", "error", "given_up"] {
            FAMILIES.webhook_deliveries.counter(&recorder, &[("result", result)]).increment(0);
        }
        for result in CLAIMED {
            FAMILIES.claims.counter(&recorder, &[("result", result)]).increment(0);
        }
        let outcome = |word| FAMILIES.fetch_requests.counter(&recorder, &[("outcome", word)]);
        let metrics = Self(Arc::new(Inner {
            handle: recorder.handle(),
            providers: ProviderTable::default(),
            fetched_ok: outcome("ok"),
            fetched_degraded: outcome("degraded"),
            fetch_refused: Code::ALL.iter().map(|code| outcome(code.word())).collect(),
            fetch_duration: Durations::new(FETCH_BUCKETS),
            organization_series_dropped: FAMILIES.organization_series_dropped.gauge(&recorder, &[]),
            webhook_pending: FAMILIES.webhook_pending.gauge(&recorder, &[]),
            vault_write_duration: FAMILIES.vault_write_duration.histogram(&recorder, &[]),
            vault_errors: FAMILIES.vault_errors.counter(&recorder, &[]),
            vault_size: FAMILIES.vault_size.gauge(&recorder, &[]),
            vault_records: FAMILIES.vault_records.gauge(&recorder, &[]),
            vault_strays: FAMILIES.vault_strays.gauge(&recorder, &[]),
            vault_asynchronous: FAMILIES.vault_asynchronous.gauge(&recorder, &[]),
            vault_news_age: FAMILIES.vault_news_age.gauge(&recorder, &[]),
            grants_resident: FAMILIES.grants_resident.gauge(&recorder, &[]),
            vault_rekey_progress: FAMILIES.vault_rekey_progress.gauge(&recorder, &[]),
            backup_last_success: FAMILIES.backup_last_success.gauge(&recorder, &[]),
            expiring: Mutex::default(),
            recorder,
        }));
        metrics.configure(providers, &[]);
        metrics.set_rekey_progress(1.0);
        metrics
    }

    /// Makes the series of these providers, and of each of them with these warnings, at zero where they are new; at
    /// start and whenever the configuration is read again.
    pub fn configure(&self, providers: &[ProviderName], warn_before: &[Duration]) {
        for provider in providers {
            let series = self.0.providers.get(&self.0.recorder, provider);
            for warning in warn_before {
                series.expiring_within(&self.0.recorder, provider, *warning).increment(0.0);
            }
        }
    }

    /// An exchange has ended; `reason` is one of `ExchangeOutcome::LABELS`, `none` for a good one. `took`: `None` where the issuer was
    /// not asked.
    pub fn exchanged(&self, provider: &ProviderName, reason: &'static str, took: Option<Duration>) {
        self.0.providers.get(&self.0.recorder, provider).exchanged(reason, took);
    }

    /// A person was sent to the provider's issuer to give consent, or has come back with what `flow` says.
    pub fn flow(&self, provider: &ProviderName, flow: Flow) {
        self.0.providers.get(&self.0.recorder, provider).flow(flow);
    }

    /// An authorization code was sent to the provider's issuer; `given`: it gave a consent for it.
    pub fn redeemed(&self, provider: &ProviderName, given: bool) {
        self.0.providers.get(&self.0.recorder, provider).redeemed(given);
    }

    /// A consent was told of that ends within `before`.
    pub fn warned(&self, provider: &ProviderName, before: Duration) {
        let within = within(before);
        let labels = [("provider", provider.as_str()), ("within", within.as_str())];
        FAMILIES.consent_warnings.counter(&self.0.recorder, &labels).increment(1);
    }

    /// A fetch or forced refresh was answered with a living token, marked `degraded` or not.
    pub fn fetched(&self, degraded: bool, took: Duration) {
        if degraded { &self.0.fetched_degraded } else { &self.0.fetched_ok }.increment(1);
        self.0.fetch_duration.record(took);
    }

    /// A fetch or forced refresh was refused.
    pub fn fetch_refused(&self, code: Code, took: Duration) {
        if let Some(index) = Code::ALL.iter().position(|known| *known == code) {
            self.0.fetch_refused[index].increment(1);
        }
        self.0.fetch_duration.record(took);
    }

    /// The vault made a batch of commits durable.
    pub fn vault_written(&self, took: Duration) {
        self.0.vault_write_duration.record(took);
    }

    /// A grant was claimed for an exchange, where replicas share the vault: `won`, `held` by another, or `fenced`, taken over by another
    /// before the exchange was stored.
    pub fn claimed(&self, result: &'static str) {
        FAMILIES.claims.counter(&self.0.recorder, &[("result", result)]).increment(1);
    }

    /// The vault failed to read or write.
    pub fn vault_failed(&self) {
        self.0.vault_errors.increment(1);
    }

    /// Sets every gauge that is counted over the grants. A provider that the census does not know goes back to zero.
    pub fn set_census(&self, census: &Census) {
        self.0.providers.set_census(&self.0.recorder, census);
        self.0.organization_series_dropped.set(float(census.expiring_dropped));
        self.0.expiring.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&census.expiring);
    }

    /// Sets the vault's gauges.
    pub fn set_vault(&self, bytes: u64, records: u64, strays: u64) {
        self.0.vault_size.set(float(bytes));
        self.0.vault_records.set(float(records));
        self.0.vault_strays.set(float(strays));
    }

    /// Sets how many grants are in memory.
    pub fn set_resident(&self, grants: usize) {
        self.0.grants_resident.set(float(u64::try_from(grants).unwrap_or(u64::MAX)));
    }

    /// Sets what is to be known of a vault that several workers share.
    pub fn set_vault_shared(&self, asynchronous: bool, news_age: Duration) {
        self.0.vault_asynchronous.set(f64::from(u8::from(asynchronous)));
        self.0.vault_news_age.set(news_age.as_secs_f64());
    }

    /// Sets which share of the records is under the current data key, from 0 to 1.
    pub fn set_rekey_progress(&self, share: f64) {
        self.0.vault_rekey_progress.set(share);
    }

    /// A backup that was begun at that time is complete.
    pub fn backed_up(&self, begun_at: Timestamp) {
        self.0.backup_last_success.set(float(u64::try_from(begun_at.as_seconds()).unwrap_or(0)));
    }

    /// A delivery to a webhook was tried.
    pub fn webhook_attempted(&self, delivered: bool) {
        let result = if delivered { "ok" } else { "error" };
        FAMILIES.webhook_deliveries.counter(&self.0.recorder, &[("result", result)]).increment(1);
    }

    /// So many deliveries to webhooks are not tried any more.
    pub fn webhooks_given_up(&self, deliveries: u64) {
        FAMILIES.webhook_deliveries.counter(&self.0.recorder, &[("result", "given_up")]).increment(deliveries);
    }

    /// Sets how many deliveries to webhooks are still to be made.
    pub fn set_webhook_pending(&self, pending: u64) {
        self.0.webhook_pending.set(float(pending));
    }

    /// Folds recorded durations into their buckets. They are kept one by one until then, so this has to be called
    /// every few minutes also where nobody scrapes.
    pub fn upkeep(&self) {
        self.0.handle.run_upkeep();
    }

    /// The text exposition format of Prometheus, version 0.0.4.
    pub fn render(&self) -> String {
        self.upkeep();
        let mut text = self.0.handle.render();
        self.0.fetch_duration.write(FAMILIES.fetch_duration, &mut text);
        self.write_expiring(&mut text);
        text
    }

    /// Writes the series that are named by organization. Their label values need no escaping: neither a provider's
    /// name nor an organization's id can hold a quote, a backslash or a line break.
    fn write_expiring(&self, text: &mut String) {
        let family = FAMILIES.consent_expiration;
        let expiring = self.0.expiring.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} gauge", family.name, family.help, family.name);
        for ExpiringSeries { provider, organization, expires_at } in &*expiring {
            let seconds = expires_at.as_seconds();
            let _ =
                writeln!(text, "{}{{provider=\"{provider}\",organization=\"{organization}\"}} {seconds}", family.name);
        }
    }
}

/// A recorder with the buckets of every histogram set.
fn recorder() -> PrometheusRecorder {
    let buckets: [(&str, &[f64]); 2] = [
        (FAMILIES.token_refresh_duration.name, &REFRESH_BUCKETS),
        (FAMILIES.vault_write_duration.name, &VAULT_BUCKETS),
    ];
    buckets
        .into_iter()
        .fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets).expect("no list is empty")
        })
        .build_recorder()
}

/// A count as a sample; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "samples are 64-bit floats by definition")]
const fn float(count: u64) -> f64 {
    count as f64
}

/// A duration as the `within` label has it.
pub use crate::model::in_largest_unit as within;

#[cfg(test)]
mod tests;
