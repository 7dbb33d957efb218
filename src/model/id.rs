use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

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
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct OrganizationId(Box<str>);

impl OrganizationId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
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
        if Self::is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidId::Organization) }
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
        &self.0
    }
}

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
    fn provider_names_are_lower_case() {
        assert!("visma-connect".parse::<ProviderName>().is_ok());
        assert_eq!("Visma".parse::<ProviderName>(), Err(InvalidId::Provider));
    }
}
