//! One line of an import: PUT's body plus `organization`.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::{model::OrganizationId, wire};

/// The keys of a line.
const KEYS: [&str; 12] = [
    "organization",
    "provider",
    "refresh_token",
    "api_key",
    "client_id",
    "client_secret",
    "granted_at",
    "expires_at",
    "usage",
    "grace",
    "labels",
    "verify",
];
/// The longest unknown key that is shown.
const MAX_SHOWN_KEY: usize = 32;
/// What a key that comes twice is told with; the key is shown where it is a known one.
const TWICE: &str = "is given twice";

/// A line that can be sent.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) organization: OrganizationId,
    /// PUT's body.
    pub(super) body: Bytes,
    /// Whether its exchange is waited for.
    pub(super) verify: bool,
}

impl Line {
    /// Writes it as one of many in a request: the body with `organization` in front.
    pub(super) fn write_to(&self, lines: &mut Vec<u8>) {
        // No character of an id needs an escape, and the body is an object that is never empty.
        lines.extend_from_slice(b"{\"organization\":\"");
        lines.extend_from_slice(self.organization.as_str().as_bytes());
        lines.extend_from_slice(b"\",");
        lines.extend_from_slice(&self.body[1..]);
        lines.push(b'\n');
    }
}

/// Reads one line. What is wrong is said without a word of the line itself, which holds a secret, but its keys.
pub(super) fn parse(text: &[u8], verify: bool) -> Result<Line, String> {
    let Fields(mut fields) = serde_json::from_slice(text).map_err(|error| unreadable(&error))?;
    if let Some(unknown) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(unknown_key(unknown));
    }
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
    let fields = Value::Object(fields);
    // The worker would refuse it as well, but can only tell the place in what it is sent.
    let enrolment = serde_path_to_error::deserialize::<_, wire::Enrolment>(&fields).map_err(|error| unfit(&error))?;
    let body = serde_json::to_vec(&fields).map_err(|_| "it cannot be written as JSON".to_owned())?;
    Ok(Line { organization, body: body.into(), verify: enrolment.verify != Some(false) })
}

fn unreadable(error: &serde_json::Error) -> String {
    if !error.is_data() {
        return format!("it is not JSON: look at column {}", error.column());
    }
    match KEYS.iter().find(|key| error.to_string().starts_with(&format!("{key} {TWICE}"))) {
        Some(key) => format!("{key} {TWICE}"),
        None if error.to_string().starts_with(TWICE) => format!("a key {TWICE}"),
        None => "it is not a JSON object".to_owned(),
    }
}

/// A key is shown only where it looks like a mistyped one: in what was put together wrongly it could be a secret.
fn unknown_key(key: &str) -> String {
    let is_word = key.len() <= MAX_SHOWN_KEY && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let named = if is_word { format!("the key {key:?}") } else { "a key".to_owned() };
    format!("{named} is not known; known are {}", KEYS.join(", "))
}

/// What a value should have been, by the name of its key alone.
fn unfit(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let said = error.inner().to_string();
    if let Some((key, _)) = said.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')) {
        return format!("{key} is missing");
    }
    let path = error.path().to_string();
    let key = path.split(['.', '[']).next().unwrap_or_default();
    if said.contains(" is not a time;") {
        return format!("{key}: not a time; write it as in 2026-01-31T12:00:00Z");
    }
    if said.starts_with("not a provider name") {
        return format!("{key}: {said}");
    }
    match said.rsplit_once(", expected ") {
        Some((_, "a string")) => format!("{key} must be text"),
        Some((_, expected)) => format!("{key} must be {}", expected.replace('`', "")),
        None => format!("{key}: a value of the wrong kind"),
    }
}

/// The keys and values of an object. A key that comes twice is an error: which of the two was meant, nobody knows.
struct Fields(Map<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Fields, A::Error> {
                let mut fields = Map::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    let known = KEYS.iter().find(|known| **known == key);
                    if fields.insert(key, value).is_some() {
                        return Err(A::Error::custom(match known {
                            Some(known) => format!("{known} {TWICE}"),
                            None => TWICE.to_owned(),
                        }));
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const GOOD: &str = r#""provider":"p","refresh_token":"r""#;

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
    fn among_others_a_line_is_what_it_is_by_itself() {
        let text = r#"{"provider":"p","labels":{"a":"b\nc"},"organization":"DK:1","api_key":"k"}"#;
        let line = parse(text.as_bytes(), false).expect("a line");
        let mut written = Vec::new();
        line.write_to(&mut written);
        assert_eq!(written.split(|byte| *byte == b'\n').count(), 2);
        let read: wire::EnrolmentLine = serde_json::from_slice(&written).expect("as the worker reads it");
        assert_eq!((&read.organization, read.enrolment.verify), (&line.organization, Some(false)));
        assert_eq!(read.enrolment.labels.expect("some")["a"], "b\nc");
    }

    #[test]
    fn a_line_may_ask_for_its_exchange_itself() {
        let line = |more: &str| format!(r#"{{"organization":"1",{GOOD}{more}}}"#);
        assert_eq!(body(&line(""), true)["verify"], true);
        assert_eq!(body(&line(r#","verify":false"#), true)["verify"], true);
        assert_eq!(body(&line(r#","verify":true"#), false)["verify"], true);
    }

    #[test]
    fn an_id_may_be_a_number() {
        let text = format!(r#"{{"organization":12,{GOOD}}}"#);
        assert_eq!(parse(text.as_bytes(), false).expect("a line").organization.as_str(), "12");
    }

    #[test]
    fn every_key_that_a_worker_takes_is_known() {
        let text = r#"{"organization":"1","provider":"p","refresh_token":"r","api_key":null,"client_id":"c",
            "client_secret":"s","granted_at":"2026-01-31T12:00:00Z","expires_at":null,"usage":"one-time",
            "grace":"30s","labels":{},"verify":true}"#;
        parse(text.as_bytes(), false).expect("a line");
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_without_its_secret() {
        for (text, why) in [
            (r#"{"organization":"1","refresh_token":"hunter2"#, "not JSON"),
            (r#""hunter2""#, "not a JSON object"),
            (r#"["hunter2"]"#, "not a JSON object"),
            (r#"{"refresh_token":"hunter2"}"#, "organization is missing"),
            (r#"{"organization":"1","refresh_token":"hunter2"}"#, "provider is missing"),
            (r#"{"organization":null,"refresh_token":"hunter2"}"#, "must be text"),
            (r#"{"organization":"hunter2/../x"}"#, "not an organization id"),
            (r#"{"organization":"1","organization":"hunter2"}"#, "organization is given twice"),
            (r#"{"organization":"1","refresh_token":"hunter2","refresh_token":"x"}"#, "refresh_token is given twice"),
            (r#"{"organization":"1","Hunter2 hunter2":1,"Hunter2 hunter2":1}"#, "a key is given twice"),
            (r#"{"organization":"1","refresh_tokn":"hunter2"}"#, "\"refresh_tokn\" is not known"),
            (r#"{"organization":"1","hunter2":"refresh_token"}"#, "a key is not known"),
            (r#"{"organization":"1","provider":"hunter2/"}"#, "provider: not a provider name"),
            (r#"{"organization":"1","provider":"p","refresh_token":["hunter2"]}"#, "refresh_token must be text"),
            (r#"{"organization":"1","provider":"p","api_key":12345}"#, "api_key must be text"),
            (r#"{"organization":"1","provider":"p","granted_at":"hunter2"}"#, "granted_at: not a time"),
            (r#"{"organization":"1","provider":"p","usage":"hunter2"}"#, "usage must be"),
            (r#"{"organization":"1","provider":"p","verify":"hunter2"}"#, "verify must be"),
            (r#"{"organization":"1","provider":"p","labels":{"hunter2":1}}"#, "labels must be text"),
            (r#"{"organization":"1","provider":"p","labels":"hunter2"}"#, "labels must be"),
        ] {
            let error = parse(text.as_bytes(), false).expect_err(text);
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }

    mod fuzz {
        use bolero::check;

        use super::*;
        use crate::tests::{Edit, allocated, edited};

        #[test]
        fn a_line_is_fit_to_be_sent_or_explained_without_its_values_however_it_is_spoilt() {
            const SECRET: &str = "hush-Secret-in-a-line";
            let text = format!(
                r#"{{"organization":"DK-1","provider":"p","refresh_token":"{SECRET}","granted_at":"2026-01-31T12:00:00Z",
                "expires_at":null,"usage":"one-time","grace":"30s","labels":{{"a":"b"}},"client_secret":"{SECRET}"}}"#
            );
            check!().with_type::<Vec<Edit>>().for_each(|edits| {
                let text = edited(text.as_bytes(), edits);
                let (parsed, asked) = allocated(|| parse(&text, false));
                assert!(asked <= 256 * text.len() + 64 * 1024, "{asked} bytes for a line of {}", text.len());
                match parsed {
                    Ok(line) => {
                        let sent: Result<wire::Enrolment, _> = serde_json::from_slice(&line.body);
                        assert!(sent.is_ok(), "the worker could not read it");
                    }
                    Err(why) => assert!(!why.contains(SECRET) && why.len() < 500, "{why}"),
                }
            });
        }
    }
}
