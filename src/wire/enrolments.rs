//! Many enrolments in one request: a line for each, and a result for each line.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        DeserializeSeed, Error as _, IntoDeserializer as _, MapAccess, Visitor,
        value::{CowStrDeserializer, MapAccessDeserializer},
    },
};

use super::{Enrolment, Problem};
use crate::model::OrganizationId;

/// The media type of the lines that [`EnrolmentLine`]s are sent as: each JSON, and each ended by a line feed.
pub const ENROLMENT_LINES: &str = "application/x-ndjson";
/// The most lines in one request; empty ones do not count.
pub const MAX_ENROLMENT_LINES: usize = 256;
/// The longest line, in bytes; that of an import, and of PUT's body.
pub const MAX_ENROLMENT_LINE: usize = 64 * 1024;
/// The largest body of such a request, in bytes.
pub const MAX_ENROLMENTS: usize = 512 * 1024;

/// One line of `POST /v1/organizations`, and of an import: PUT's body plus `organization`.
#[derive(Debug)]
pub struct EnrolmentLine {
    /// Whose credential it is.
    pub organization: OrganizationId,
    /// PUT's body.
    pub enrolment: Enrolment,
}

/// The answer to `POST /v1/organizations`.
#[derive(Debug, Serialize, Deserialize)]
pub struct EnrolmentResults {
    /// One for each line that is not empty, in their order.
    pub results: Vec<EnrolmentResult>,
}

/// What became of one line.
#[derive(Debug, Serialize, Deserialize)]
pub struct EnrolmentResult {
    /// The line's number, from 1; empty ones count.
    pub line: u32,
    /// Absent where the line could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<OrganizationId>,
    /// The HTTP status that the line would have been answered with by itself: 201 and 200 are well.
    pub status: u16,
    /// As [`ENROLMENT_CHANGED`](super::ENROLMENT_CHANGED); absent where the line was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// Why the line was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// After how many seconds to try again what was refused, where that may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl<'de> Deserialize<'de> for EnrolmentLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Line;
        impl<'de> Visitor<'de> for Line {
            type Value = EnrolmentLine;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EnrolmentLine, A::Error> {
                let mut organization = None;
                let rest = Rest { map, organization: &mut organization };
                let enrolment = Enrolment::deserialize(MapAccessDeserializer::new(rest))?;
                let organization = organization.ok_or_else(|| A::Error::missing_field("organization"))?;
                Ok(EnrolmentLine { organization, enrolment })
            }
        }
        deserializer.deserialize_map(Line)
    }
}

/// The members of an object but `organization`, which is put aside: [`Enrolment`] takes no key that it does not know.
struct Rest<'a, A> {
    map: A,
    organization: &'a mut Option<OrganizationId>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Rest<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<Cow<'de, str>>()? {
            if key != "organization" {
                let key: CowStrDeserializer<'de, A::Error> = key.into_deserializer();
                return seed.deserialize(key).map(Some);
            }
            if self.organization.is_some() {
                return Err(A::Error::duplicate_field("organization"));
            }
            *self.organization = Some(self.map.next_value()?);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EnrolmentLine, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_an_enrolment_and_its_organization_wherever_that_stands() {
        for text in [
            r#"{"organization":"DK:1","provider":"p","refresh_token":"r","labels":{"a":"b"}}"#,
            r#"{"provider":"p","refresh_token":"r","organization":"DK:1","labels":{"a":"b"}}"#,
            r#"{"provider":"p","refresh_token":"r","labels":{"a":"b"},"organization":"DK:1"}"#,
        ] {
            let line = read(text).expect(text);
            assert_eq!(line.organization.as_str(), "DK:1");
            assert_eq!(line.enrolment.provider.as_str(), "p");
            assert_eq!(line.enrolment.refresh_token.expect("one").expose(), "r");
            assert_eq!(line.enrolment.labels.expect("some")["a"], "b");
        }
    }

    #[test]
    fn a_line_that_is_none_is_refused() {
        for (text, why) in [
            (r#"{"provider":"p","refresh_token":"r"}"#, "missing field `organization`"),
            (r#"{"organization":"1","refresh_token":"r"}"#, "missing field `provider`"),
            (r#"{"organization":"1","provider":"p","organization":"1"}"#, "duplicate field `organization`"),
            (r#"{"organization":"1","provider":"p","provider":"p"}"#, "duplicate field `provider`"),
            (r#"{"organization":"1","provider":"p","colour":"red"}"#, "unknown field `colour`"),
            (r#"{"organization":"a/b","provider":"p"}"#, "not an organization id"),
            ("[]", "expected an object"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
