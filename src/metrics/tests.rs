use super::*;
use crate::model::{ExchangeOutcome, Timestamp};

const DAY: Duration = Duration::from_hours(24);

fn provider(name: &str) -> ProviderName {
    name.parse().expect("a name")
}

/// The value of the one series that is written so.
fn sample<'a>(text: &'a str, series: &str) -> &'a str {
    let mut found = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = found.next().unwrap_or_else(|| panic!("no {series} in\n{text}"));
    assert_eq!(found.next(), None, "{series} is there twice");
    value
}

#[test]
fn every_metric_is_there_from_the_start_with_its_help() {
    let metrics = Metrics::new(&[provider("p")]);
    metrics.configure(&[provider("p")], &[30 * DAY]);
    let text = metrics.render();
    for (name, kind) in [
        ("consentry_build_info", "gauge"),
        ("consentry_organizations", "gauge"),
        ("consentry_consents_expiring", "gauge"),
        ("consentry_consents_expired", "gauge"),
        ("consentry_consents_end_assumed", "gauge"),
        ("consentry_consent_expiration_timestamp_seconds", "gauge"),
        ("consentry_organization_series_dropped", "gauge"),
        ("consentry_token_refresh_total", "counter"),
        ("consentry_token_refresh_duration_seconds", "histogram"),
        ("consentry_token_refresh_overdue", "gauge"),
        ("consentry_access_tokens_expired", "gauge"),
        ("consentry_fetch_requests_total", "counter"),
        ("consentry_fetch_duration_seconds", "histogram"),
        ("consentry_consent_warnings_total", "counter"),
        ("consentry_webhook_deliveries_total", "counter"),
        ("consentry_webhook_pending", "gauge"),
        ("consentry_provider_circuit_open", "gauge"),
        ("consentry_provider_budget_per_minute", "gauge"),
        ("consentry_provider_needed_per_minute", "gauge"),
        ("consentry_vault_write_duration_seconds", "histogram"),
        ("consentry_vault_errors_total", "counter"),
        ("consentry_vault_size_bytes", "gauge"),
        ("consentry_vault_records", "gauge"),
        ("consentry_vault_strays", "gauge"),
        ("consentry_vault_rekey_progress", "gauge"),
    ] {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} in\n{text}");
        assert!(text.contains(&format!("# HELP {name} ")), "help of {name}");
    }
}

#[test]
fn every_label_value_is_there_from_the_start_at_zero() {
    let metrics = Metrics::new(&[provider("p")]);
    metrics.configure(&[provider("p")], &[30 * DAY]);
    let text = metrics.render();
    for state in ["active", "failing", "in_doubt", "lost", "paused"] {
        assert_eq!(sample(&text, &format!("consentry_organizations{{provider=\"p\",state=\"{state}\"}}")), "0");
    }
    for reason in ExchangeOutcome::LABELS {
        let result = if reason == "none" { "ok" } else { "error" };
        let series = format!("consentry_token_refresh_total{{provider=\"p\",result=\"{result}\",reason=\"{reason}\"}}");
        assert_eq!(sample(&text, &series), "0");
    }
    for outcome in Code::ALL.iter().map(|code| code.word()).chain(["ok", "degraded"]) {
        assert_eq!(sample(&text, &format!("consentry_fetch_requests_total{{outcome=\"{outcome}\"}}")), "0");
    }
    assert_eq!(sample(&text, "consentry_consents_expiring{provider=\"p\",within=\"30d\"}"), "0");
    assert_eq!(sample(&text, "consentry_fetch_duration_seconds_bucket{le=\"+Inf\"}"), "0");
    assert_eq!(sample(&text, "consentry_token_refresh_duration_seconds_count{provider=\"p\"}"), "0");
}

#[test]
fn fetches_are_counted_in_the_bucket_that_they_reach() {
    let metrics = Metrics::new(&[]);
    for micros in [50, 51, 1_000_000, 1_000_001] {
        metrics.fetched(false, Duration::from_micros(micros));
    }
    let text = metrics.render();
    let below =
        |bound: &str| sample(&text, &format!("consentry_fetch_duration_seconds_bucket{{le=\"{bound}\"}}")).to_owned();
    assert_eq!([below("0.00005"), below("0.0001"), below("0.5"), below("1"), below("+Inf")], ["1", "2", "2", "3", "4"]);
    assert_eq!(sample(&text, "consentry_fetch_duration_seconds_count"), "4");
    assert_eq!(sample(&text, "consentry_fetch_duration_seconds_sum"), "2.000102");
}

#[test]
fn what_happened_is_counted() {
    let metrics = Metrics::new(&[provider("p")]);
    metrics.fetched(false, Duration::from_micros(80));
    metrics.fetched(true, Duration::from_micros(80));
    metrics.fetch_refused(Code::Forbidden, Duration::from_micros(80));
    metrics.exchanged(&provider("p"), "refused", Some(Duration::from_millis(20)));
    metrics.exchanged(&provider("later"), "none", Some(Duration::from_millis(20)));
    metrics.exchanged(&provider("later"), "vault_unavailable", None);
    metrics.vault_written(Duration::from_millis(1));
    metrics.vault_failed();
    metrics.set_vault(3, 2, 1);
    let text = metrics.render();
    assert_eq!(sample(&text, "consentry_fetch_requests_total{outcome=\"ok\"}"), "1");
    assert_eq!(sample(&text, "consentry_fetch_requests_total{outcome=\"degraded\"}"), "1");
    assert_eq!(sample(&text, "consentry_fetch_requests_total{outcome=\"forbidden\"}"), "1");
    assert_eq!(sample(&text, "consentry_fetch_duration_seconds_bucket{le=\"0.0001\"}"), "3");
    let refused = "consentry_token_refresh_total{provider=\"p\",result=\"error\",reason=\"refused\"}";
    assert_eq!(sample(&text, refused), "1");
    let later = "consentry_token_refresh_total{provider=\"later\",result=\"ok\",reason=\"none\"}";
    assert_eq!(sample(&text, later), "1");
    let asked = "consentry_token_refresh_duration_seconds_count{provider=\"later\"}";
    assert_eq!(sample(&text, asked), "1", "where the issuer was not asked, it took no time");
    assert_eq!(sample(&text, "consentry_vault_write_duration_seconds_count"), "1");
    assert_eq!(sample(&text, "consentry_vault_errors_total"), "1");
    assert_eq!(sample(&text, "consentry_vault_size_bytes"), "3");
    assert_eq!(sample(&text, "consentry_vault_strays"), "1");
}

#[test]
fn what_a_census_no_longer_reports_is_gone_or_zero() {
    let metrics = Metrics::new(&[]);
    let mut census = Census {
        expiring: vec![ExpiringSeries {
            provider: provider("p"),
            organization: "DK:1".parse().expect("an id"),
            expires_at: Timestamp::from_millis(1_700_000_000_999),
        }],
        expiring_dropped: 4,
        ..Census::default()
    };
    census.providers.insert(
        provider("p"),
        ProviderCensus {
            states: [("paused", 7)].into(),
            expiring_within: vec![(30 * DAY, 5)],
            circuit_open: true,
            ..ProviderCensus::default()
        },
    );
    metrics.set_census(&census);
    let text = metrics.render();
    let named = "consentry_consent_expiration_timestamp_seconds{provider=\"p\",organization=\"DK:1\"}";
    assert_eq!(sample(&text, named), "1700000000");
    assert_eq!(sample(&text, "consentry_organization_series_dropped"), "4");
    assert_eq!(sample(&text, "consentry_organizations{provider=\"p\",state=\"paused\"}"), "7");
    assert_eq!(sample(&text, "consentry_consents_expiring{provider=\"p\",within=\"30d\"}"), "5");
    assert_eq!(sample(&text, "consentry_provider_circuit_open{provider=\"p\"}"), "1");

    metrics.set_census(&Census::default());
    let text = metrics.render();
    assert!(!text.contains(named), "{text}");
    assert_eq!(sample(&text, "consentry_organizations{provider=\"p\",state=\"paused\"}"), "0");
    assert_eq!(sample(&text, "consentry_consents_expiring{provider=\"p\",within=\"30d\"}"), "0");
    assert_eq!(sample(&text, "consentry_provider_circuit_open{provider=\"p\"}"), "0");
}

#[test]
fn two_workers_of_one_process_do_not_mix() {
    let (one, other) = (Metrics::new(&[]), Metrics::new(&[]));
    one.vault_failed();
    assert_eq!(sample(&other.render(), "consentry_vault_errors_total"), "0");
}

#[test]
fn a_warning_is_named_in_days_where_it_is_whole_days() {
    assert_eq!(within(30 * DAY), "30d");
    assert_eq!(within(Duration::from_mins(90)), "90m");
    assert_eq!(within(Duration::from_hours(36)), "36h");
}
