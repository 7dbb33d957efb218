use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};

/// One metric with all its series: a name, and the help text that a scrape shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Written by hand into the rendered text: its series come and go, or it is counted without the recorder.
    Written,
}

/// Labels of one series.
pub(super) type Labels<'a> = &'a [(&'static str, &'a str)];

impl Family {
    /// The counter with these labels, made at zero if it is new.
    pub(super) fn counter(self, recorder: &dyn Recorder, labels: Labels<'_>) -> Counter {
        recorder.register_counter(&self.key(labels), &METADATA)
    }

    /// The gauge with these labels, made at zero if it is new.
    pub(super) fn gauge(self, recorder: &dyn Recorder, labels: Labels<'_>) -> Gauge {
        recorder.register_gauge(&self.key(labels), &METADATA)
    }

    /// The histogram with these labels, made empty if it is new.
    pub(super) fn histogram(self, recorder: &dyn Recorder, labels: Labels<'_>) -> Histogram {
        recorder.register_histogram(&self.key(labels), &METADATA)
    }

    fn key(self, labels: Labels<'_>) -> Key {
        let labels = labels.iter().map(|(key, value)| Label::new(*key, (*value).to_owned())).collect::<Vec<_>>();
        Key::from_parts(self.name, labels)
    }

    fn describe(self, recorder: &dyn Recorder) {
        let (name, help) = (KeyName::from_const_str(self.name), self.help.into());
        match self.kind {
            Kind::Counter => recorder.describe_counter(name, None, help),
            Kind::Gauge => recorder.describe_gauge(name, None, help),
            Kind::Histogram => recorder.describe_histogram(name, None, help),
            Kind::Written => {}
        }
    }
}

static METADATA: Metadata<'static> = Metadata::new("consentry", Level::INFO, None);

/// Declares [`Families`]: the doc comment of a field is the help text of its metric.
macro_rules! families {
    ($( #[doc = $help:literal] $field:ident: $kind:ident = $name:literal, )+) => {
        /// Every metric of the worker.
        #[derive(Clone, Copy, Debug)]
        pub(super) struct Families { $( #[doc = $help] pub(super) $field: Family, )+ }

        /// Every metric of the worker.
        pub(super) const FAMILIES: Families = Families {
            $( $field: Family { name: $name, help: $help.trim_ascii(), kind: Kind::$kind }, )+
        };

        /// Gives the recorder every help text.
        pub(super) fn describe_all(recorder: &dyn Recorder) {
            $( FAMILIES.$field.describe(recorder); )+
        }
    };
}

families! {
    /// The worker's version, as a label of a constant 1.
    build_info: Gauge = "consentry_build_info",
    /// Organizations by provider and state; a paused one counts as paused and nowhere else.
    organizations: Gauge = "consentry_organizations",
    /// Consents that end within the time in the label; cumulative, the expired not counted.
    consents_expiring: Gauge = "consentry_consents_expiring",
    /// Consents past their end date.
    consents_expired: Gauge = "consentry_consents_expired",
    /// Consents whose end date was assumed, since none was given at enrolment.
    consents_end_assumed: Gauge = "consentry_consents_end_assumed",
    /// Consents that an operator has to confirm before they take their place.
    consents_awaiting: Gauge = "consentry_consents_awaiting",
    /// People who were sent to an issuer to give consent, and what came of those who came back.
    consent_flows: Counter = "consentry_consent_flows_total",
    /// Authorization codes that were sent to an issuer, by whether a consent came back.
    consent_redemptions: Counter = "consentry_consent_redemptions_total",
    /// When a consent ends, for those inside the longest warning or not active; stays after the end.
    consent_expiration: Written = "consentry_consent_expiration_timestamp_seconds",
    /// Consents that want attention but found no room among the series named by organization.
    organization_series_dropped: Gauge = "consentry_organization_series_dropped",
    /// Exchanges at the token endpoint, by result and by the reason of an error.
    token_refresh: Counter = "consentry_token_refresh_total",
    /// How long exchanges at the token endpoint took.
    token_refresh_duration: Histogram = "consentry_token_refresh_duration_seconds",
    /// Access tokens past the moment they should have been refreshed.
    token_refresh_overdue: Gauge = "consentry_token_refresh_overdue",
    /// Grants not lost, not paused and kept warm whose access token has lapsed.
    access_tokens_expired: Gauge = "consentry_access_tokens_expired",
    /// Fetches and forced refreshes by outcome: ok, degraded, or the code of the error.
    fetch_requests: Counter = "consentry_fetch_requests_total",
    /// How long fetches and forced refreshes took.
    fetch_duration: Written = "consentry_fetch_duration_seconds",
    /// Warnings given before the end of consents.
    consent_warnings: Counter = "consentry_consent_warnings_total",
    /// Deliveries to webhooks by result.
    webhook_deliveries: Counter = "consentry_webhook_deliveries_total",
    /// Deliveries to webhooks that are still to be made.
    webhook_pending: Gauge = "consentry_webhook_pending",
    /// 1 while a provider is frozen, else 0.
    circuit_open: Gauge = "consentry_provider_circuit_open",
    /// Exchanges a minute that are allowed at a provider.
    budget_per_minute: Gauge = "consentry_provider_budget_per_minute",
    /// Exchanges a minute that a provider's grants need to stay warm.
    needed_per_minute: Gauge = "consentry_provider_needed_per_minute",
    /// How long it took to make a batch of commits durable.
    vault_write_duration: Histogram = "consentry_vault_write_duration_seconds",
    /// Times the vault failed to read or write.
    vault_errors: Counter = "consentry_vault_errors_total",
    /// Claims of grants for an exchange where replicas share a vault, by what came of them.
    claims: Counter = "consentry_claims_total",
    /// Bytes of the vault on disk, journal included.
    vault_size: Gauge = "consentry_vault_size_bytes",
    /// Records in the vault.
    vault_records: Gauge = "consentry_vault_records",
    /// Answers that were kept but could not take their place: reported, never served.
    vault_strays: Gauge = "consentry_vault_strays",
    /// 1 where the vault is in a database that may lose what it confirmed, because that is allowed.
    vault_asynchronous: Gauge = "consentry_vault_asynchronous",
    /// How long ago all that other workers had written was known here; 0 where no other shares the vault.
    vault_news_age: Gauge = "consentry_vault_news_age_seconds",
    /// Grants that are in memory: all of them, or as many as the configuration allows.
    grants_resident: Gauge = "consentry_grants_resident",
    /// Share of records under the current data key while they are sealed anew; 1 when all are.
    vault_rekey_progress: Gauge = "consentry_vault_rekey_progress",
    /// When the last backup that was completed was begun; 0 where none is known.
    backup_last_success: Gauge = "consentry_backup_last_success_timestamp_seconds",
}
