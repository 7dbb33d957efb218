//! Holds `docs/openapi.yaml` against the types that the answers are made of.

use std::borrow::Cow;

use axum::body::to_bytes;
use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use super::problems::Refusal;
use crate::{
    keeper::KeeperError,
    model::{GrantKind, Timestamp, Usage},
    wire,
};

fn description() -> Value {
    serde_yaml_ng::from_str(include_str!("../../docs/openapi.yaml")).expect("YAML")
}

/// What the description says is wrong with `instance` as a `schema`.
fn faults(schema: &str, instance: &Value) -> Vec<String> {
    let root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": format!("#/components/schemas/{schema}"),
        "components": description()["components"],
    });
    let validator = jsonschema::validator_for(&root).expect("a schema");
    validator.iter_errors(instance).map(|error| error.to_string()).collect()
}

fn json_of(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("JSON")
}

fn organization() -> wire::Organization {
    wire::Organization {
        organization: "DK:1".parse().expect("an id"),
        provider: "visma-connect".parse().expect("a name"),
        kind: GrantKind::Consent,
        state: Cow::Borrowed("failing"),
        reason: Some(Cow::Borrowed("unverified")),
        since: Timestamp::default(),
        paused: false,
        subject: None,
        shares_grant_with: vec!["2".parse().expect("an id")],
        access_token_expires_at: None,
        refreshed_at: None,
        next_refresh_at: Some(Timestamp::default()),
        failures: 0,
        consent: Some(wire::Consent {
            granted_at: Timestamp::default(),
            expires_at: None,
            assumed: true,
            usage: Usage::OneTime,
            grace_seconds: 0,
            warned: vec!["30d".to_owned()],
        }),
        last_fetched_at: None,
        labels: [("a".to_owned(), "b".to_owned())].into(),
        unreadable: false,
    }
}

#[test]
fn every_code_of_the_api_is_described_and_no_other() {
    let described = &description()["components"]["schemas"]["Code"]["enum"];
    assert_eq!(*described, json!(wire::Code::ALL.map(wire::Code::word)));
}

#[test]
fn what_operators_are_shown_is_as_described() {
    let page = wire::OrganizationPage { organizations: vec![organization()], next_cursor: None };
    assert_eq!(faults("OrganizationPage", &json_of(&page)), [""; 0]);
    let status = wire::Status {
        version: Cow::Borrowed("0.1.0"),
        uptime_seconds: 1,
        organizations: ["active", "failing", "in_doubt", "lost", "paused"].map(|state| (state.into(), 0)).into(),
        providers: vec![wire::ProviderStatus {
            name: "p".parse().expect("a name"),
            circuit: Cow::Borrowed("closed"),
            organizations: 1,
            overdue: 0,
            budget_per_minute: 600,
            needed_per_minute: 1,
        }],
        forecast: vec![wire::ForecastWeek {
            week: "2026-11-23".to_owned(),
            provider: "p".parse().expect("a name"),
            consents: 1,
            assumed: 1,
        }],
        later: 0,
        expired: 0,
        end_assumed: 1,
        invitations_per_week: 1,
        webhooks: wire::WebhookStatus { pending: 0, given_up: 0 },
        vault: wire::VaultStatus {
            records: 2,
            bytes: 3,
            strays: 1,
            data_key: 1,
            rekey_progress: Some(0.5),
            rekey_problem: Some("p".to_owned()),
            last_backup_at: None,
        },
        strays: vec![wire::Stray { organization: None, at: Timestamp::default(), why: "gone".to_owned() }],
        awaiting: ["unfinished", "first_connection", "another_person", "unknown_person"]
            .map(|reason| wire::Awaiting {
                organization: "1".parse().expect("an id"),
                provider: "p".parse().expect("a name"),
                subject: None,
                since: Timestamp::default(),
                reason: Cow::Borrowed(reason),
            })
            .into(),
    };
    assert_eq!(faults("Status", &json_of(&status)), [""; 0]);
}

#[test]
fn the_vaults_keys_are_as_described() {
    assert_eq!(faults("DataKey", &json_of(&wire::DataKey { data_key: 2 })), [""; 0]);
    let recipient = wire::Recipient { recipient: "age1x".to_owned(), own: true };
    assert_eq!(faults("Recipients", &json_of(&wire::Recipients { recipients: vec![recipient] })), [""; 0]);
}

#[test]
fn a_token_is_as_described() {
    let token = wire::Token {
        organization: "1".parse().expect("an id"),
        provider: "p".parse().expect("a name"),
        access_token: "t".to_owned(),
        token_type: "Bearer".to_owned(),
        scope: None,
        expires_at: Timestamp::default(),
        expires_in: 0,
        consent_expires_at: None,
        degraded: Some(Cow::Borrowed("rate_limited")),
    };
    assert_eq!(faults("Token", &json_of(&token)), [""; 0]);
}

#[test]
fn the_description_allows_nothing_that_is_not_described() {
    let mut organization = json_of(&organization());
    assert_eq!(faults("Organization", &organization), [""; 0]);
    organization["refresh_token"] = json!("hunter2");
    assert_ne!(faults("Organization", &organization), [""; 0]);
    assert_ne!(faults("Organization", &json!({})), [""; 0]);
    assert_ne!(faults("Enrolment", &json!({ "provider": "p", "colour": "red" })), [""; 0]);
}

#[test]
fn a_line_of_many_enrolments_and_its_result_are_as_described() {
    let mut line = json!({ "organization": "DK:1", "provider": "p", "refresh_token": "r", "verify": false });
    assert_eq!(faults("EnrolmentLine", &line), [""; 0]);
    line["colour"] = json!("red");
    assert_ne!(faults("EnrolmentLine", &line), [""; 0]);
    assert_ne!(faults("EnrolmentLine", &json!({ "organization": "1", "provider": "p", "verify": true })), [""; 0]);

    let organization = || Some("DK:1".parse().expect("an id"));
    let taken = |line, status| wire::EnrolmentResult {
        line,
        organization: organization(),
        status,
        changed: Some(true),
        problem: None,
        retry_after: None,
    };
    let problem = Some(Refusal::new(wire::Code::Starting, "d").problem());
    let refused = wire::EnrolmentResult { status: 503, changed: None, problem, retry_after: Some(1), ..taken(3, 0) };
    let unread = wire::EnrolmentResult { line: 4, organization: None, ..taken(4, 201) };
    let results = wire::EnrolmentResults { results: vec![taken(1, 201), taken(2, 200), refused, unread] };
    assert_eq!(faults("EnrolmentResults", &json_of(&results)), [""; 0]);
}

#[tokio::test]
async fn every_problem_is_as_described() {
    let refusals = wire::Code::ALL.map(|code| Refusal::new(code, "d")).into_iter().chain([KeeperError::Lost {
        reason: "refused",
        since: Timestamp::default(),
    }
    .into()]);
    for refusal in refusals {
        let body = to_bytes(refusal.into_response().into_body(), 10_000).await.expect("whole");
        assert_eq!(faults("Problem", &serde_json::from_slice(&body).expect("JSON")), [""; 0]);
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(root: &Value, value: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    let pointer = reference.strip_prefix('#').expect("a local reference");
                    assert!(root.pointer(pointer).is_some(), "{reference}");
                }
                map.values().for_each(|value| walk(root, value));
            }
            Value::Array(list) => list.iter().for_each(|value| walk(root, value)),
            _ => {}
        }
    }
    let root = description();
    walk(&root, &root);
}
