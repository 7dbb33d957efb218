//! `docs/openapi.yaml`, against which every answer on the socket is held.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use super::http::Response;

const TEXT: &str = include_str!("../../../docs/openapi.yaml");

static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| serde_yaml_ng::from_str(TEXT).expect("the description is YAML"));

/// Fails where the description does not allow this answer to `method path`.
pub(crate) fn check(method: &str, path: &str, answer: &Response) {
    let faults = faults(method, path, answer);
    assert!(faults.is_empty(), "{method} {path} is not answered as described: {faults:?}\n{answer:?}");
}

fn faults(method: &str, path: &str, answer: &Response) -> Vec<String> {
    let mut faults = Vec::new();
    if answer.header("cache-control") != Some("no-store") {
        faults.push("every answer carries Cache-Control: no-store".to_owned());
    }
    if matches!(answer.status, 429 | 503) && answer.header("retry-after").is_none() {
        faults.push(format!("a {} says when to come back", answer.status));
    }
    let method = method.to_lowercase();
    match (route(path), method.as_str()) {
        (None, _) => faults.extend(problem_faults(answer, 404, "not_found")),
        (Some(item), method) => {
            if let Some(operation) = item.get(method) {
                faults.extend(operation_faults(operation, answer));
            } else {
                faults.extend(problem_faults(answer, 405, "method_not_allowed"));
                if answer.header("allow").is_none() {
                    faults.push("a 405 lists what is allowed (RFC 9110 section 15.5.6)".to_owned());
                }
            }
        }
    }
    if answer.status >= 400 {
        let problem = answer.json();
        if problem["status"] != answer.status {
            faults.push("the problem has another status than the answer".to_owned());
        }
        let code = problem["code"].as_str().unwrap_or_default();
        if problem["type"] != format!("urn:consentry:problem:{code}") {
            faults.push("the problem's type does not name its code".to_owned());
        }
    }
    faults
}

/// What the description has for this path; `{…}` in it stands for one segment, whatever that is.
fn route(path: &str) -> Option<&'static Map<String, Value>> {
    let path = path.split('?').next().unwrap_or_default();
    let fits = |template: &str| {
        let (template, path) = (template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && path.clone().next_back() != Some("")
            && template.zip(path).all(|(wanted, found)| wanted == found || wanted.starts_with('{'))
    };
    let paths = DESCRIPTION["paths"].as_object().expect("paths are an object");
    paths.iter().find(|(template, _)| fits(template)).and_then(|(_, item)| item.as_object())
}

fn operation_faults(operation: &Value, answer: &Response) -> Vec<String> {
    let described = resolve(&operation["responses"][answer.status.to_string()]);
    if described.is_null() {
        return vec![format!("status {} is not described here", answer.status)];
    }
    let mut faults = Vec::new();
    for (name, header) in described["headers"].as_object().into_iter().flatten() {
        let Some(text) = answer.header(&name.to_lowercase()) else {
            if name == "ETag" || name == "consentry-changed" {
                faults.push(format!("{name} is missing"));
            }
            continue;
        };
        let schema = &resolve(header)["schema"];
        let value = match schema["type"].as_str() {
            Some("integer") => text.parse::<u64>().map_or_else(|_| json!(text), Value::from),
            _ => json!(text),
        };
        faults.extend(schema_faults(schema, &value).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    let Some(contents) = described["content"].as_object() else {
        if !answer.body.is_empty() {
            faults.push("no body is described here".to_owned());
        }
        return faults;
    };
    let kind = answer.header("content-type").unwrap_or_default();
    match contents.get(kind) {
        Some(_) if kind == "application/octet-stream" => {}
        Some(_) if kind == "text/event-stream" => {
            for event in answer.events() {
                faults.extend(schema_faults(&json!({ "$ref": "#/components/schemas/Event" }), &event));
            }
        }
        Some(content) => faults.extend(schema_faults(&content["schema"], &answer.json())),
        None => faults.push(format!("content type {kind:?} is not described here")),
    }
    faults
}

fn problem_faults(answer: &Response, status: u16, code: &str) -> Vec<String> {
    if answer.status != status || answer.header("content-type") != Some("application/problem+json") {
        return vec![format!("here only a problem with status {status} is right")];
    }
    let problem = answer.json();
    let mut faults = schema_faults(&json!({ "$ref": "#/components/schemas/Problem" }), &problem);
    if problem["code"] != code {
        faults.push(format!("here only the code {code} is right"));
    }
    faults
}

fn resolve(value: &Value) -> &Value {
    let reference = value.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
    reference.map_or(value, |pointer| {
        resolve(DESCRIPTION.pointer(pointer).unwrap_or_else(|| panic!("{pointer} leads nowhere")))
    })
}

fn schema_faults(schema: &Value, instance: &Value) -> Vec<String> {
    let root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "allOf": [schema],
        "components": DESCRIPTION["components"],
    });
    let validator: Validator = jsonschema::validator_for(&root).expect("the description's schemas are schemas");
    validator.iter_errors(instance).map(|error| format!("{error} at {:?}", error.instance_path().to_string())).collect()
}
