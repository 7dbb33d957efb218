//! Keys that follow from the keyring's fingerprint key, and what is made with them: the same for the vault's whole life, backups
//! and moves included.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    hkdf::{HKDF_SHA256, Salt},
    hmac,
};
use zeroize::Zeroizing;

use crate::model::{EventId, Fingerprint, ProviderName, Secret};

/// How many bytes of the hash an entity tag shows.
const ENTITY_TAG_BYTES: usize = 12;

/// The derived keys.
pub(super) struct Derived {
    fingerprints: hmac::Key,
    entity_tags: hmac::Key,
    link_key: Zeroizing<[u8; 32]>,
    events: hmac::Key,
    lanes: hmac::Key,
    persons: hmac::Key,
}

impl Derived {
    /// Those of that fingerprint key.
    pub(super) fn of(fingerprint_key: &[u8; 32]) -> Self {
        let key = Salt::new(HKDF_SHA256, b"").extract(fingerprint_key);
        let derive =
            |label: &[u8]| hmac::Key::from(key.expand(&[label], hmac::HMAC_SHA256).expect("one hash is not too long"));
        let mut link_key = Zeroizing::new([0; 32]);
        let derived =
            key.expand(&[b"consentry/v1/links"], HKDF_SHA256).and_then(|okm| okm.fill(link_key.as_mut_slice()));
        derived.expect("one hash is not too long");
        Self {
            fingerprints: derive(b"consentry/v1/fingerprint"),
            entity_tags: derive(b"consentry/v1/entity-tag"),
            link_key,
            events: derive(b"consentry/v1/event"),
            lanes: derive(b"consentry/v1/lane"),
            persons: derive(b"consentry/v1/person"),
        }
    }

    /// The secret's keyed hash: HMAC-SHA256, cut to 128 bits.
    pub(super) fn fingerprint(&self, secret: &Secret) -> Fingerprint {
        Fingerprint(cut(&hmac::sign(&self.fingerprints, secret.expose().as_bytes())))
    }

    /// Another keyed hash of the secret, for an entity tag: 16 characters of URL-safe base64, without quotes.
    pub(super) fn entity_tag(&self, secret: &Secret) -> String {
        let tag = hmac::sign(&self.entity_tags, secret.expose().as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(&tag.as_ref()[..ENTITY_TAG_BYTES])
    }

    /// The key of consent links.
    pub(super) fn link_key(&self) -> Zeroizing<[u8; 32]> {
        self.link_key.clone()
    }

    /// The id of the happening that `parts` tell apart from every other: a keyed hash of them, HMAC-SHA256 cut to 128 bits.
    pub(super) fn event_id(&self, parts: &[&[u8]]) -> EventId {
        EventId::from_bytes(hash(&self.events, parts))
    }

    /// What a database that others may read knows a provider by.
    pub(super) fn lane(&self, provider: &ProviderName) -> [u8; 16] {
        hash(&self.lanes, &[provider.as_str().as_bytes()])
    }

    /// What it knows by that two grants are the same person's.
    pub(super) fn person(&self, provider: &ProviderName, subject: &str) -> [u8; 16] {
        hash(&self.persons, &[provider.as_str().as_bytes(), subject.as_bytes()])
    }
}

fn hash(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 16] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        // The length first, so that no two lists of parts read the same.
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        context.update(part);
    }
    cut(&context.sign())
}

fn cut(tag: &hmac::Tag) -> [u8; 16] {
    tag.as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_parts_that_read_the_same_in_a_row_are_told_apart() {
        let derived = Derived::of(&[1; 32]);
        assert_eq!(derived.event_id(&[b"a", b"b"]), derived.event_id(&[b"a", b"b"]));
        assert_ne!(derived.event_id(&[b"ab", b""]), derived.event_id(&[b"a", b"b"]));
        assert_ne!(derived.event_id(&[b"a"]), Derived::of(&[2; 32]).event_id(&[b"a"]));
    }

    #[test]
    fn what_a_database_knows_a_provider_or_a_person_by_is_no_other_hash_of_it() {
        let derived = Derived::of(&[1; 32]);
        let (visma, other) = ("visma".parse().unwrap(), "other".parse().unwrap());
        assert_ne!(derived.lane(&visma), derived.lane(&other));
        assert_ne!(derived.person(&visma, "anna"), derived.person(&other, "anna"));
        assert_ne!(&derived.lane(&visma), derived.event_id(&[b"visma"]).as_bytes());
    }
}
