//! Which grants may have, or have had, the secret of a fingerprint.

use std::sync::{PoisonError, RwLock};

use hashbrown::HashTable;

use crate::model::{Fingerprint, Grant, GrantId};

/// Every fingerprint that a grant remembers, current and spent: of a million grants with one-time tokens five million.
///
/// What it gives is verified against the stored grants: of each fingerprint and of each id it keeps but a part.
#[derive(Debug, Default)]
pub(super) struct Fingerprints(RwLock<HashTable<Known>>);

/// [`Known::FINGERPRINT_BITS`] of a fingerprint, and the beginning of the id of the grant that remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known(u64);

impl Known {
    /// So many that of five million one in fifty is taken for another, and is verified in vain.
    const FINGERPRINT_BITS: u32 = 28;

    fn of(fingerprint: Fingerprint, grant: GrantId) -> Self {
        let start = Start::of(grant);
        Self(key(fingerprint) << Start::BITS | start.0)
    }

    const fn key(self) -> u64 {
        self.0 >> Start::BITS
    }

    const fn grant(self) -> Start {
        Start(self.0 & (u64::MAX >> Self::FINGERPRINT_BITS))
    }

    const fn hash(self) -> u64 {
        spread(self.key())
    }
}

/// The beginning of a grant's id. Ids are random and of our own making: of a million some fifteen begin as another does, and nobody can
/// choose them so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start(u64);

impl Start {
    const BITS: u32 = u64::BITS - Known::FINGERPRINT_BITS;

    pub(super) fn of(grant: GrantId) -> Self {
        Self(first_bits(grant.as_bytes()) >> Known::FINGERPRINT_BITS)
    }

    /// For a table of grants by their ids.
    pub(super) const fn hash(self) -> u64 {
        spread(self.0)
    }
}

impl Fingerprints {
    /// Remembers the grant's fingerprints, current and spent.
    pub(super) fn know(&self, grant: &Grant) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for known in all(grant) {
            table.entry(known.hash(), |other| *other == known, |known| known.hash()).or_insert(known);
        }
    }

    /// Forgets what a grant remembered.
    pub(super) fn forget(&self, grant: &Grant) {
        self.forget_all(all(grant));
    }

    /// Forgets a fingerprint that its grant no longer remembers.
    pub(super) fn forget_one(&self, grant: GrantId, fingerprint: Fingerprint) {
        self.forget_all([Known::of(fingerprint, grant)]);
    }

    /// How the ids of those begin that may remember this fingerprint.
    pub(super) fn find(&self, fingerprint: Fingerprint) -> Vec<Start> {
        let key = key(fingerprint);
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.iter_hash(spread(key)).filter(|known| known.key() == key).map(|known| known.grant()).collect()
    }

    fn forget_all(&self, gone: impl IntoIterator<Item = Known>) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for known in gone {
            if let Ok(found) = table.find_entry(known.hash(), |other| *other == known) {
                found.remove();
            }
        }
    }
}

fn all(grant: &Grant) -> impl Iterator<Item = Known> {
    let fingerprints = grant.spent.iter().chain([&grant.fingerprint]);
    fingerprints.map(|fingerprint| Known::of(*fingerprint, grant.id))
}

fn key(fingerprint: Fingerprint) -> u64 {
    first_bits(&fingerprint.0) >> Start::BITS
}

fn first_bits(bytes: &[u8; 16]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    u64::from_be_bytes(first)
}

/// The bits are as good as random, but a table looks at the uppermost of 64.
const fn spread(bits: u64) -> u64 {
    bits.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::tests::grant_of_key;

    fn grant(id: u8, fingerprint: u8, spent: &[u8]) -> Grant {
        let mut grant = grant_of_key([id; 16], [fingerprint; 16]);
        grant.spent = spent.iter().map(|spent| Fingerprint([*spent; 16])).collect();
        grant
    }

    #[test]
    fn a_fingerprint_leads_to_every_grant_that_remembers_it() {
        let fingerprints = Fingerprints::default();
        let (first, second) = (grant(1, 10, &[11, 12]), grant(2, 11, &[]));
        fingerprints.know(&first);
        fingerprints.know(&second);
        fingerprints.know(&second);
        let found = |fingerprint| fingerprints.find(Fingerprint([fingerprint; 16]));
        assert_eq!(found(10), [Start::of(first.id)]);
        assert_eq!(found(11).len(), 2, "whoever asks finds out which it is");
        assert_eq!(found(13), []);

        fingerprints.forget_one(first.id, Fingerprint([11; 16]));
        assert_eq!(found(11), [Start::of(second.id)]);
        fingerprints.forget(&second);
        assert_eq!(found(11), []);
        fingerprints.forget(&first);
        assert!(fingerprints.0.read().expect("whole").is_empty(), "nothing is left behind");
    }
}
