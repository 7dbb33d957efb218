//! A granted token, read so tolerantly that no quirk of an issuer loses a rotated refresh token.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::model::{Answer, Wiped};

/// A longer life of an access token is taken for an error of the issuer.
const MAX_LIFETIME: Duration = Duration::from_hours(366 * 24);
/// The largest payload of a JWT that is looked into, in bytes of base64.
const MAX_JWT_PAYLOAD: usize = 16 * 1024;
/// The longest `sub` and `client_id` that are kept, in bytes.
const MAX_CLAIM: usize = 256;
/// The longest `token_type` that is kept, in bytes.
const MAX_TOKEN_TYPE: usize = 32;
/// The longest `scope` that is kept, in bytes.
const MAX_SCOPE: usize = 4096;

/// Reads a token answer (RFC 6749 section 5.1). The error says what is missing and holds nothing of the body.
pub(super) fn read(body: &[u8]) -> Result<Answer, &'static str> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let fields: Fields = serde_json::from_slice(body).map_err(|_| "the answer is not a JSON object")?;
    let access_token = match fields.access_token {
        Value::Text(token) if !token.is_empty() => token,
        _ => return Err("the answer has no access_token"),
    };
    if !access_token.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err("the access_token holds characters that no header can carry");
    }
    let refresh_token = match fields.refresh_token {
        Value::Missing | Value::False => None,
        Value::Text(token) if token.is_empty() => None,
        Value::Text(token) => Some(token.into()),
        // There is a new token, and it cannot be told which: to go on with the old one would be a replay.
        Value::Number(_) | Value::Other => return Err("the refresh_token of the answer is not a string"),
    };
    let claims = claims(&access_token);
    Ok(Answer {
        token_type: fields.token_type.short_text(MAX_TOKEN_TYPE).unwrap_or_else(|| "Bearer".to_owned()),
        expires_in: fields.expires_in.lifetime(),
        scope: fields.scope.short_text(MAX_SCOPE),
        refresh_token,
        subject: claims.sub.short_text(MAX_CLAIM),
        client_id: claims.client_id.short_text(MAX_CLAIM),
        access_token: access_token.into(),
    })
}

/// The claims of a JWT (RFC 7519), not verified: they are compared with what is known, never trusted.
fn claims(token: &str) -> Fields {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Fields::default();
    };
    if payload.len() > MAX_JWT_PAYLOAD {
        return Fields::default();
    }
    let Ok(payload) = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).map(Wiped::new) else {
        return Fields::default();
    };
    serde_json::from_slice(&payload).unwrap_or_default()
}

/// The members that matter, of a token answer and of a JWT's claims alike. Where a name comes twice the last counts;
/// everything else is skipped.
#[derive(Default)]
struct Fields {
    access_token: Value,
    refresh_token: Value,
    token_type: Value,
    expires_in: Value,
    scope: Value,
    sub: Value,
    client_id: Value,
}

/// A JSON value as far as it matters, whose text is wiped when it is dropped.
#[derive(Default)]
enum Value {
    /// Absent or null.
    #[default]
    Missing,
    False,
    Text(Wiped<String>),
    Number(f64),
    /// `true`, an array or an object.
    Other,
}

impl Value {
    /// The value as text to be shown or compared; `None` if it is longer than `max` bytes or holds control characters.
    fn short_text(&self, max: usize) -> Option<String> {
        let text = match self {
            Self::Text(text) => text.to_string(),
            // Whole numbers up to 2^53 are written as the issuer wrote them.
            Self::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => format!("{number:.0}"),
            _ => return None,
        };
        (!text.is_empty() && text.len() <= max && !text.chars().any(char::is_control)).then_some(text)
    }

    /// The value as a number of seconds, written as a number or as text; `None` if it makes no sense.
    fn lifetime(&self) -> Option<Duration> {
        let seconds = match self {
            Self::Number(seconds) => *seconds,
            Self::Text(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        let lifetime = Duration::try_from_secs_f64(seconds).ok()?;
        (Duration::from_secs(1)..=MAX_LIFETIME).contains(&lifetime).then_some(lifetime)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    let slot = match &*name {
                        "access_token" => &mut fields.access_token,
                        "refresh_token" => &mut fields.refresh_token,
                        "token_type" => &mut fields.token_type,
                        "expires_in" => &mut fields.expires_in,
                        "scope" => &mut fields.scope,
                        "sub" => &mut fields.sub,
                        "client_id" => &mut fields.client_id,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *slot = map.next_value()?;
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Missing)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(if value { Value::Other } else { Value::False })
            }
            #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 no lifetime and no id makes sense")]
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Number(value as f64))
            }
            #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 no lifetime and no id makes sense")]
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Number(value as f64))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Number(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(Wiped::new(value.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(body: &str) -> Answer {
        read(body.as_bytes()).expect("a grant")
    }

    fn expires_in(value: &str) -> Option<u64> {
        granted(&format!(r#"{{"access_token":"a","expires_in":{value}}}"#)).expires_in.map(|life| life.as_secs())
    }

    #[test]
    fn a_lifetime_is_read_however_it_is_written() {
        for (value, seconds) in [
            ("3600", 3600),
            ("3600.0", 3600),
            ("3599.9", 3599),
            (r#""3600""#, 3600),
            (r#"" 60 ""#, 60),
            ("3.6e3", 3600),
        ] {
            assert_eq!(expires_in(value), Some(seconds), "{value}");
        }
    }

    #[test]
    fn a_lifetime_that_makes_no_sense_is_none() {
        for value in [
            "null",
            "0",
            "-1",
            r#""""#,
            r#""soon""#,
            "1e300",
            "99999999999",
            r#""NaN""#,
            r#""inf""#,
            "[]",
            "{}",
            "true",
        ] {
            assert_eq!(expires_in(value), None, "{value}");
        }
        assert_eq!(granted(r#"{"access_token":"a"}"#).expires_in, None);
    }

    #[test]
    fn an_absent_refresh_token_is_none_however_it_is_absent() {
        for body in [
            r#"{"access_token":"a"}"#,
            r#"{"access_token":"a","refresh_token":null}"#,
            r#"{"access_token":"a","refresh_token":""}"#,
            r#"{"access_token":"a","refresh_token":false}"#,
        ] {
            assert!(granted(body).refresh_token.is_none(), "{body}");
        }
    }

    #[test]
    fn a_refresh_token_that_cannot_be_read_is_not_taken_for_absent() {
        for value in ["1", "true", "[]", "{}"] {
            let body = format!(r#"{{"access_token":"a","refresh_token":{value}}}"#);
            assert!(read(body.as_bytes()).is_err(), "{value}");
        }
    }

    #[test]
    fn unknown_and_odd_members_lose_nothing() {
        let answer = granted(
            "\u{feff}{\"x\":[{\"y\":1}],\"access_token\":\"old\",\"access_token\":\"a\\u0062\",\"refresh_token\":\"r\",\
             \"token_type\":null,\"scope\":7,\"id_token\":\"e.e.e\"}",
        );
        assert_eq!(answer.access_token.expose(), "ab");
        assert_eq!(answer.refresh_token.expect("there").expose(), "r");
        assert_eq!(answer.token_type, "Bearer");
        assert_eq!(answer.subject, None);
    }

    #[test]
    fn nonsense_is_no_grant() {
        let bodies: [&[u8]; 10] = [
            b"",
            b"null",
            b"[]",
            b"<html></html>",
            b"{}",
            br#"{"access_token":""}"#,
            br#"{"access_token":null}"#,
            br#"{"access_token":"a\nb"}"#,
            br#"{"access_token":"a","refresh_tok"#,
            b"{\"access_token\":\"\xff\"}",
        ];
        for body in bodies {
            assert!(read(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_jwt_tells_subject_and_client() {
        let jwt = |claims: &str| format!("{}.{}.sig", URL_SAFE_NO_PAD.encode("{}"), URL_SAFE_NO_PAD.encode(claims));
        let read_claims = |token: String| {
            let answer = granted(&format!(r#"{{"access_token":"{token}"}}"#));
            (answer.subject, answer.client_id)
        };
        let told = read_claims(jwt(r#"{"sub":"user-1","client_id":"isv_x","aud":["a"],"exp":1}"#));
        assert_eq!(told, (Some("user-1".into()), Some("isv_x".into())));
        assert_eq!(read_claims(jwt(r#"{"sub":42}"#)), (Some("42".into()), None));
        let long = "s".repeat(MAX_CLAIM + 1);
        for silent in [
            jwt("[]"),
            jwt("{"),
            jwt(r#"{"sub":"a\u0000"}"#),
            jwt(&format!(r#"{{"sub":"{long}"}}"#)),
            "a.b.c".into(),
            "a.b.c.d.e".into(),
            "opaque".into(),
        ] {
            assert_eq!(read_claims(silent.clone()), (None, None), "{silent}");
        }
    }
}
