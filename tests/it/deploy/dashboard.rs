//! Grafana's dashboard: every query is put to a real Prometheus that has scraped a real worker.

use std::collections::BTreeSet;

use consentry::model::Usage;
use serde_json::{Value, json};

use super::{installed, rules, text, watched::Prometheus};
use crate::harness::{
    eventually,
    sandbox::{CONSENTS, KEYS, Stand},
    worker::Setup,
};

const DASHBOARD: &str = "deploy/grafana/consentry.json";
/// What Grafana puts in the place of its variables, where everything is chosen.
const VARIABLES: [(&str, &str); 4] =
    [("$__rate_interval", "1m"), ("$namespace", ".*"), ("$instance", ".*"), ("$provider", ".*")];

#[test]
fn every_panel_asks_for_what_a_real_worker_has_and_prometheus_understands_it() {
    if !installed("prometheus") {
        return;
    }
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    let ends = (stand.now() + std::time::Duration::from_hours(48)).to_string();
    let consent = stand.consent("birgit", Usage::Reuse, &["481001"]);
    let body = json!({ "provider": CONSENTS, "refresh_token": consent, "expires_at": ends });
    assert_eq!(worker.enrol("481001", &body).status, 201);
    let key = json!({ "provider": KEYS, "api_key": stand.api_key("499001") });
    assert_eq!(worker.enrol("499001", &key).status, 201);
    let prometheus = Prometheus::start(worker.http(), None, None);
    // Nothing fails here: those that show failures alone, and the one of a label that only some Prometheus have, are empty.
    let empty = ["Errors by reason"];
    for (panel, query) in queries() {
        let asked = VARIABLES.iter().fold(query.clone(), |query, (name, value)| query.replace(name, value));
        assert!(!asked.contains('$'), "{panel}: {asked}");
        eventually(&format!("{panel}: {asked} gives something"), || {
            worker.fetch("481001");
            let result = match prometheus.query(&asked) {
                Ok(result) => result,
                Err(error) => panic!("{panel}: {asked}: {error}"),
            };
            (empty.contains(&panel.as_str()) || result.as_array().is_some_and(|found| !found.is_empty())).then_some(())
        });
    }
}

#[test]
fn the_dashboard_shows_every_metric_and_none_that_is_not_there() {
    let known = text("docs/metrics.md");
    let described: BTreeSet<String> = known
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("consentry_"))
        .collect();
    let shown: BTreeSet<String> = queries().iter().flat_map(|(_, query)| rules::metrics(query)).collect();
    assert_eq!(shown, described);
}

/// Each panel's title with each of its queries.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&text(DASHBOARD)).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("panels").clone();
    let queries = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), target["expr"].as_str().expect("a query").to_owned()))
    });
    queries.collect()
}
