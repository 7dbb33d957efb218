use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Recorder};

use super::{Census, Flow, ProviderCensus, STATES, families::FAMILIES, float, within};
use crate::model::{ExchangeOutcome, ProviderName};

/// The series of every provider that was ever seen. Providers come from the configuration and from stored grants, so
/// that there are few.
#[derive(Debug, Default)]
pub(super) struct ProviderTable(RwLock<HashMap<ProviderName, Arc<ProviderSeries>>>);

impl ProviderTable {
    /// The provider's series, made at zero if they are new.
    pub(super) fn get(&self, recorder: &dyn Recorder, provider: &ProviderName) -> Arc<ProviderSeries> {
        if let Some(series) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(provider) {
            return Arc::clone(series);
        }
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(table.entry(provider.clone()).or_insert_with(|| Arc::new(ProviderSeries::new(recorder, provider))))
    }

    /// Sets the gauges of every provider: by the census, or to zero where the census does not know it.
    pub(super) fn set_census(&self, recorder: &dyn Recorder, census: &Census) {
        for provider in census.providers.keys() {
            self.get(recorder, provider);
        }
        let nothing = ProviderCensus::default();
        for (provider, series) in &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            series.set_census(recorder, provider, census.providers.get(provider).unwrap_or(&nothing));
        }
    }
}

/// One provider's series.
#[derive(Debug)]
pub(super) struct ProviderSeries {
    /// In the order of [`STATES`].
    organizations: [Gauge; STATES.len()],
    /// By warning.
    consents_expiring: Mutex<BTreeMap<Duration, Gauge>>,
    consents_expired: Gauge,
    consents_end_assumed: Gauge,
    consents_awaiting: Gauge,
    /// In the order of [`Flow::ALL`].
    consent_flows: [Counter; Flow::ALL.len()],
    redeemed: Counter,
    redeemed_nothing: Counter,
    /// In the order of [`ExchangeOutcome::LABELS`].
    token_refresh: [Counter; ExchangeOutcome::LABELS.len()],
    token_refresh_duration: Histogram,
    token_refresh_overdue: Gauge,
    access_tokens_expired: Gauge,
    circuit_open: Gauge,
    budget_per_minute: Gauge,
    needed_per_minute: Gauge,
}

impl ProviderSeries {
    fn new(recorder: &dyn Recorder, provider: &ProviderName) -> Self {
        let labels = [("provider", provider.as_str())];
        let redemptions = |result| {
            let labels = [("provider", provider.as_str()), ("result", result)];
            FAMILIES.consent_redemptions.counter(recorder, &labels)
        };
        Self {
            organizations: STATES.map(|state| {
                FAMILIES.organizations.gauge(recorder, &[("provider", provider.as_str()), ("state", state)])
            }),
            consents_expiring: Mutex::default(),
            consents_expired: FAMILIES.consents_expired.gauge(recorder, &labels),
            consents_end_assumed: FAMILIES.consents_end_assumed.gauge(recorder, &labels),
            consents_awaiting: FAMILIES.consents_awaiting.gauge(recorder, &labels),
            consent_flows: Flow::ALL.map(|flow| {
                let labels = [("provider", provider.as_str()), ("result", flow.word())];
                FAMILIES.consent_flows.counter(recorder, &labels)
            }),
            redeemed: redemptions("ok"),
            redeemed_nothing: redemptions("error"),
            token_refresh: ExchangeOutcome::LABELS.map(|reason| {
                let result = if reason == "none" { "ok" } else { "error" };
                let labels = [("provider", provider.as_str()), ("result", result), ("reason", reason)];
                FAMILIES.token_refresh.counter(recorder, &labels)
            }),
            token_refresh_duration: FAMILIES.token_refresh_duration.histogram(recorder, &labels),
            token_refresh_overdue: FAMILIES.token_refresh_overdue.gauge(recorder, &labels),
            access_tokens_expired: FAMILIES.access_tokens_expired.gauge(recorder, &labels),
            circuit_open: FAMILIES.circuit_open.gauge(recorder, &labels),
            budget_per_minute: FAMILIES.budget_per_minute.gauge(recorder, &labels),
            needed_per_minute: FAMILIES.needed_per_minute.gauge(recorder, &labels),
        }
    }

    /// The gauge of consents that end within `warning`; with it comes the counter of warnings given.
    pub(super) fn expiring_within(&self, recorder: &dyn Recorder, provider: &ProviderName, warning: Duration) -> Gauge {
        let mut expiring = self.consents_expiring.lock().unwrap_or_else(PoisonError::into_inner);
        let gauge = expiring.entry(warning).or_insert_with(|| {
            let within = within(warning);
            let labels = [("provider", provider.as_str()), ("within", within.as_str())];
            FAMILIES.consent_warnings.counter(recorder, &labels).increment(0);
            FAMILIES.consents_expiring.gauge(recorder, &labels)
        });
        gauge.clone()
    }

    /// Counts an exchange, and how long the issuer took if it was asked.
    pub(super) fn exchanged(&self, reason: &'static str, took: Option<Duration>) {
        let index = ExchangeOutcome::LABELS.iter().position(|label| *label == reason);
        debug_assert!(index.is_some(), "{reason} is not among the labels");
        if let Some(index) = index {
            self.token_refresh[index].increment(1);
        }
        if let Some(took) = took {
            self.token_refresh_duration.record(took);
        }
    }

    /// Counts a person who was sent to the issuer, or what came of one.
    pub(super) fn flow(&self, flow: Flow) {
        self.consent_flows[flow as usize].increment(1);
    }

    /// Counts an authorization code that was sent.
    pub(super) fn redeemed(&self, given: bool) {
        if given { &self.redeemed } else { &self.redeemed_nothing }.increment(1);
    }

    fn set_census(&self, recorder: &dyn Recorder, provider: &ProviderName, census: &ProviderCensus) {
        for (state, gauge) in STATES.iter().zip(&self.organizations) {
            gauge.set(float(census.states.get(state).copied().unwrap_or(0)));
        }
        self.set_expiring(recorder, provider, &census.expiring_within);
        self.consents_expired.set(float(census.expired));
        self.consents_end_assumed.set(float(census.end_assumed));
        self.consents_awaiting.set(float(census.awaiting));
        self.token_refresh_overdue.set(float(census.overdue));
        self.access_tokens_expired.set(float(census.access_expired));
        self.circuit_open.set(f64::from(u8::from(census.circuit_open)));
        self.budget_per_minute.set(f64::from(census.budget_per_minute));
        self.needed_per_minute.set(f64::from(census.needed_per_minute));
    }

    /// Sets what ends within each warning; a warning that is no longer configured goes back to zero.
    fn set_expiring(&self, recorder: &dyn Recorder, provider: &ProviderName, counts: &[(Duration, u64)]) {
        for (warning, count) in counts {
            self.expiring_within(recorder, provider, *warning).set(float(*count));
        }
        let expiring = self.consents_expiring.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, gauge) in expiring.iter().filter(|(known, _)| counts.iter().all(|(warning, _)| warning != *known)) {
            gauge.set(0.0);
        }
    }
}
