//! The alert rules: tried out by `promtool`, each with its page, and none of them about a metric that is not there.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use super::{document, installed, path, run, text};

const RULES: &str = "deploy/prometheus/consentry.rules.yaml";
const CASES: &str = "deploy/prometheus/consentry.rules.test.yaml";
/// What the addresses of pages begin with; docs/deploy.md says how to put one's own in its place.
const PAGES: &str = "https://docs.example.com/consentry/";

#[test]
fn the_alert_rules_fire_and_stay_silent_in_every_case_that_is_written_down() {
    if installed("promtool") {
        run(Command::new("promtool").args(["check", "rules"]).arg(path(RULES)));
        run(Command::new("promtool").args(["test", "rules"]).arg(path(CASES)));
    }
}

#[test]
fn every_alert_has_both_cases_and_a_page_that_exists_and_names_it() {
    let cases = document(&text(CASES));
    let names: Vec<&str> =
        cases["tests"].as_array().expect("cases").iter().map(|case| case["name"].as_str().expect("a name")).collect();
    let index = text("docs/runbooks/README.md");
    let mut alerts = BTreeSet::new();
    for rule in alert_rules() {
        let alert = rule["alert"].as_str().expect("a name");
        assert!(alerts.insert(alert.to_owned()), "{alert} is there twice");
        for verb in ["fires", "is silent"] {
            assert!(
                names.iter().any(|name| name.contains(&format!("{alert} {verb}"))),
                "no case in which {alert} {verb}"
            );
        }
        let severity = rule["labels"]["severity"].as_str().expect("a severity");
        assert!(["critical", "warning"].contains(&severity), "{alert}: {severity}");
        for annotation in ["summary", "description", "runbook_url"] {
            assert!(
                rule["annotations"][annotation].as_str().is_some_and(|text| !text.is_empty()),
                "{alert}: {annotation}"
            );
        }
        let url = rule["annotations"]["runbook_url"].as_str().expect("just seen");
        let page = url.strip_prefix(PAGES).unwrap_or_else(|| panic!("{alert}: {url}"));
        let page = text(&format!("docs/{page}"));
        assert!(page.contains(alert), "the page of {alert} does not name it");
        for part in ["**Means:**", "**Hurts:**", "## What to do", "**Ends**"] {
            assert!(page.contains(part), "the page of {alert} has no {part}");
        }
        let row = index.lines().find(|line| line.starts_with(&format!("| {alert} |")));
        assert!(row.is_some_and(|row| row.ends_with(&format!("| {severity} |"))), "{alert} in the list of pages");
    }
    assert!(alerts.len() >= 14, "{alerts:?}");
}

#[test]
fn the_rules_are_about_metrics_and_label_values_that_the_worker_has() {
    let known = text("docs/metrics.md");
    for rule in rules() {
        let expression = rule["expr"].as_str().expect("an expression");
        for metric in metrics(expression) {
            assert!(known.contains(&format!("| `{metric}` |")), "{metric} of {expression}");
        }
        for (_, value) in expression
            .match_indices("=\"")
            .map(|(at, found)| (at, expression[at + found.len()..].split('"').next().expect("a value ends")))
        {
            assert!(value == "consentry" || known.contains(&format!("`{value}`")), "{value:?} of {expression}");
        }
    }
}

#[test]
fn the_object_for_prometheus_operator_is_made_of_the_same_rules() {
    let made = run(&mut Command::new(path("deploy/kubernetes/as-prometheusrule")));
    assert_eq!(
        made,
        text("deploy/kubernetes/base/prometheusrule.yaml"),
        "run deploy/kubernetes/as-prometheusrule again"
    );
    let object = document(&made);
    assert_eq!(object["spec"]["groups"], document(&text(RULES))["groups"]);
}

/// The worker's metrics that an expression names, without the endings of histograms. Recorded ones have a colon.
pub(super) fn metrics(expression: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !word(c)).filter(|word| word.starts_with("consentry_"));
    let families = words.map(|word| {
        ["_bucket", "_sum", "_count"].iter().find_map(|ending| word.strip_suffix(ending)).unwrap_or(word).to_owned()
    });
    families.collect()
}

/// Every rule, recording ones too.
fn rules() -> Vec<Value> {
    let file = document(&text(RULES));
    let groups = file["groups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

fn alert_rules() -> Vec<Value> {
    rules().into_iter().filter(|rule| rule.get("alert").is_some()).collect()
}
