use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The longest organization id, in bytes.
pub const MAX_ORGANIZATION_ID: usize = 128;
/// The longest provider name, in bytes.
const MAX_PROVIDER_NAME: usize = 64;

/// The user or group id that the kernel shows in place of one that the reader's user namespace does not know (its
/// default `overflowuid`): several users hide behind it, so that nobody may be known by it.
pub const OVERFLOW_ID: u32 = 65_534;

/// Text that cannot be the id it was given as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not an organization id.
    #[error("not an organization id: it needs 1 to {MAX_ORGANIZATION_ID} of letters, digits and . _ : @ -")]
    Organization,
    /// Not a provider name.
    #[error("not a provider name: it needs 1 to {MAX_PROVIDER_NAME} of lower-case letters, digits and -")]
    Provider,
}

/// The issuer's id of a customer's company: 1 to 128 of ASCII letters, digits and `. _ : @ -`.
///
/// There may be a million, and nearly all are a number of some digits: a short one allocates nothing.
#[derive(Clone)]
pub struct OrganizationId(Text);

/// A text in 16 bytes, and what is longer than that takes.
#[derive(Clone)]
enum Text {
    Short { length: u8, bytes: [u8; SHORT] },
    // Twice boxed: a pointer with a length would need eight bytes more in every id.
    Long(Box<Box<str>>),
}

/// As much as has room beside what tells which of both it is.
const SHORT: usize = 14;

impl Text {
    fn of(text: &str) -> Self {
        const { assert!(size_of::<Self>() == 16) };
        match u8::try_from(text.len()) {
            Ok(length) if text.len() <= SHORT => {
                let mut bytes = [0; SHORT];
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Self::Short { length, bytes }
            }
            _ => Self::Long(Box::new(text.into())),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

impl OrganizationId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // Made of a text, so that it is one.
            Text::Short { .. } => std::str::from_utf8(self.0.as_bytes()).unwrap_or_default(),
            Text::Long(text) => text,
        }
    }

    /// Whether `text` could be an id; for look-ups that should not allocate.
    pub fn is_valid(text: &str) -> bool {
        (1..=MAX_ORGANIZATION_ID).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-'))
    }
}

impl FromStr for OrganizationId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if Self::is_valid(text) { Ok(Self(Text::of(text))) } else { Err(InvalidId::Organization) }
    }
}

impl PartialEq for OrganizationId {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl Eq for OrganizationId {}

impl Ord for OrganizationId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.as_bytes().cmp(other.0.as_bytes())
    }
}

impl PartialOrd for OrganizationId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for OrganizationId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Serialize for OrganizationId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for OrganizationId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Borrow<str> for OrganizationId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a configured provider: lower-case, since map keys that come from the environment are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ProviderName(Arc<str>);

impl ProviderName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProviderName {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let fits = (1..=MAX_PROVIDER_NAME).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(Self(text.into())) } else { Err(InvalidId::Provider) }
    }
}

impl<'de> Deserialize<'de> for ProviderName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Borrow<str> for ProviderName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a grant inside the vault; random, and never shown outside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GrantId([u8; 16]);

impl GrantId {
    /// An id made of 16 random bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn organization_ids_are_bounded() {
        for good in ["1", "DK-123.45:x@y_z", &"a".repeat(128)] {
            assert!(good.parse::<OrganizationId>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "æ", "a\0b", &"a".repeat(129)] {
            assert_eq!(bad.parse::<OrganizationId>(), Err(InvalidId::Organization), "{bad}");
        }
    }

    #[test]
    fn an_organization_id_is_its_text_whether_it_is_short_or_long() {
        let texts = [1, SHORT - 1, SHORT, SHORT + 1, 128].map(|length| "Ab:1".repeat(32)[..length].to_owned());
        let ids = texts.each_ref().map(|text| text.parse::<OrganizationId>().expect("good"));
        for (id, text) in ids.iter().zip(&texts) {
            assert_eq!((id.as_str(), &id.to_string(), &id.clone()), (&text[..], text, id));
            assert_eq!(serde_json::to_string(id).expect("text"), format!("{text:?}"));
            assert_eq!(serde_json::from_str::<OrganizationId>(&format!("{text:?}")).expect("good"), *id);
        }
        let mut sorted = ids.clone();
        sorted.sort();
        assert_eq!(sorted, ids, "a text comes before what it begins");
        let by_text: std::collections::HashSet<OrganizationId> = ids.into_iter().collect();
        assert!(texts.iter().all(|text| by_text.contains(&text[..])), "its hash is that of its text");
    }

    #[test]
    fn provider_names_are_lower_case() {
        assert!("visma-connect".parse::<ProviderName>().is_ok());
        assert_eq!("Visma".parse::<ProviderName>(), Err(InvalidId::Provider));
    }
}
