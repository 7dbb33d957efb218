//! One line of an import: PUT's body plus `organization`.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::model::OrganizationId;

/// A line that can be sent.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) organization: OrganizationId,
    /// PUT's body.
    pub(super) body: Bytes,
}

/// Reads one line. What is wrong is said without a word of the line itself, which holds a secret.
pub(super) fn parse(text: &[u8], verify: bool) -> Result<Line, String> {
    let mut fields: Map<String, Value> = serde_json::from_slice(text).map_err(|error| {
        if error.is_data() {
            "it is not a JSON object".to_owned()
        } else {
            format!("it is not JSON: look at column {}", error.column())
        }
    })?;
    let organization = match fields.remove("organization") {
        Some(Value::String(id)) => id,
        // Spreadsheets and exports write ids as numbers.
        Some(Value::Number(id)) if id.is_u64() => id.to_string(),
        Some(_) => return Err("organization must be text".to_owned()),
        None => return Err("organization is missing".to_owned()),
    };
    let organization = organization.parse::<OrganizationId>().map_err(|error| format!("organization: {error}"))?;
    if verify {
        fields.insert("verify".to_owned(), Value::Bool(true));
    } else {
        fields.entry("verify").or_insert(Value::Bool(false));
    }
    let body = serde_json::to_vec(&fields).map_err(|_| "it cannot be written as JSON".to_owned())?;
    Ok(Line { organization, body: body.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str, verify: bool) -> Value {
        serde_json::from_slice(&parse(text.as_bytes(), verify).expect("a line").body).expect("JSON")
    }

    #[test]
    fn the_rest_of_a_line_is_sent_as_it_is() {
        let text = r#"{"organization":"42","provider":"p","refresh_token":"r","labels":{"plan":"gold"}}"#;
        assert_eq!(parse(text.as_bytes(), false).expect("a line").organization.as_str(), "42");
        let expected = serde_json::json!({
            "provider": "p", "refresh_token": "r", "labels": { "plan": "gold" }, "verify": false
        });
        assert_eq!(body(text, false), expected);
    }

    #[test]
    fn a_line_may_ask_for_its_exchange_itself() {
        assert_eq!(body(r#"{"organization":"1"}"#, true)["verify"], true);
        assert_eq!(body(r#"{"organization":"1","verify":false}"#, true)["verify"], true);
        assert_eq!(body(r#"{"organization":"1","verify":true}"#, false)["verify"], true);
    }

    #[test]
    fn an_id_may_be_a_number() {
        assert_eq!(parse(br#"{"organization":12}"#, false).expect("a line").organization.as_str(), "12");
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_without_its_secret() {
        for (text, why) in [
            (r#"{"organization":"1","refresh_token":"hunter2"#, "not JSON"),
            (r#""hunter2""#, "not a JSON object"),
            (r#"["hunter2"]"#, "not a JSON object"),
            (r#"{"refresh_token":"hunter2"}"#, "missing"),
            (r#"{"organization":null,"refresh_token":"hunter2"}"#, "must be text"),
            (r#"{"organization":"hunter2/../x"}"#, "not an organization id"),
        ] {
            let error = parse(text.as_bytes(), false).expect_err(text);
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }
}
