//! Every metric of the worker, in one struct.

use std::time::Duration;

use crate::{keeper::Census, model::ProviderName, wire::Code};

/// The worker's metrics. Cheap to clone; each has a recorder of its own, so that several workers of one process do
/// not mix.
#[derive(Clone, Debug)]
pub struct Metrics;

#[expect(clippy::unused_self, unused_variables, reason = "stub")]
impl Metrics {
    /// Makes every series that is known from the start, at zero.
    pub fn new(providers: &[ProviderName]) -> Self {
        Self
    }

    /// An exchange has ended; `reason` is one of `ExchangeOutcome::LABELS`, `none` for a good one.
    pub fn exchanged(&self, provider: &ProviderName, reason: &'static str, took: Duration) {}

    /// A fetch or forced refresh was answered with a living token, marked `degraded` or not.
    pub fn fetched(&self, degraded: bool, took: Duration) {}

    /// A fetch or forced refresh was refused.
    pub fn fetch_refused(&self, code: Code, took: Duration) {}

    /// The vault made a batch of commits durable.
    pub fn vault_written(&self, took: Duration) {}

    /// The vault failed to read or write.
    pub fn vault_failed(&self) {}

    /// Sets every gauge that is counted over the grants.
    pub fn set_census(&self, census: &Census) {}

    /// Sets the vault's gauges.
    pub fn set_vault(&self, bytes: u64, records: u64, strays: u64) {}

    /// The text exposition format of Prometheus.
    pub fn render(&self) -> String {
        String::new()
    }
}
