//! How a record is sealed: AES-256-GCM under a key of its own.
//!
//! ```text
//! offset  bytes  what
//!      0      1  format of the seal, 1
//!      1      4  number of the data key, little endian
//!      5      8  sequence number of the commit that wrote it, little endian
//!     13     16  salt, random
//!     29      n  ciphertext, as long as the plaintext
//!   29+n     16  tag
//! ```
//!
//! The key is `HKDF-SHA256(ikm = data key, salt = salt, info = "consentry/v1/record")`, 32 bytes (RFC 5869). The nonce
//! is twelve zero bytes (NIST SP 800-38D asks that a nonce be used once with a key): a key is derived from a fresh
//! random salt of 128 bits for every sealing and seals exactly once, so there is no second nonce to choose. Two
//! sealings share a salt with a chance of 2^-49 after 2^40 of them under one data key.
//!
//! The associated data binds a record to its place and time:
//!
//! ```text
//! offset  bytes  what
//!      0     19  "consentry/v1/record"
//!     19      1  format of the seal
//!     20     16  vault id
//!     36     17  name (kind and hash)
//!     53      4  number of the data key, little endian
//!     57      8  sequence number, little endian
//! ```
//!
//! So a record that was altered, that was moved under another name or into another vault, or whose clear header was
//! changed, does not open.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use super::{error::VaultError, name::Name};
use crate::model::Wiped;

/// The format this version writes.
const FORMAT: u8 = 1;
const SALT_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + 4 + 8 + SALT_BYTES;
const TAG_BYTES: usize = 16;
/// Where in the header the number of the data key is.
const KEY_NUMBER: std::ops::Range<usize> = 1..5;
/// Where in the header the sequence number is.
const SEQUENCE: std::ops::Range<usize> = 5..13;
/// By how much a sealed record is longer than its plaintext.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
const LABEL: &[u8; 19] = b"consentry/v1/record";
const AAD_BYTES: usize = 19 + 1 + 16 + 17 + 4 + 8;

/// A 256-bit key; its memory is wiped when it is dropped.
pub(super) type Key = Zeroizing<[u8; 32]>;

/// Seals and opens records under the data keys of one vault, which may be exchanged for others meanwhile.
pub(super) struct Cipher {
    vault: [u8; 16],
    keys: ArcSwap<DataKeys>,
    random: SystemRandom,
}

struct DataKeys {
    /// The key that seals; older ones only open.
    current: u32,
    by_number: BTreeMap<u32, Key>,
}

/// A record that was opened.
pub(super) struct Opened {
    /// Its plaintext.
    pub(super) plaintext: Wiped<Vec<u8>>,
    /// The sequence number it was sealed with.
    pub(super) sequence: u64,
}

impl Cipher {
    /// A cipher that seals with key number `current`, which must be among `keys`.
    pub(super) fn new(vault: [u8; 16], keys: BTreeMap<u32, Key>, current: u32) -> Self {
        Self { vault, keys: ArcSwap::new(DataKeys::shared(keys, current)), random: SystemRandom::new() }
    }

    /// Seals with key number `current` of `keys` from now on, and opens what any of them sealed.
    pub(super) fn use_keys(&self, keys: BTreeMap<u32, Key>, current: u32) {
        self.keys.store(DataKeys::shared(keys, current));
    }

    /// The number of the key that seals.
    pub(super) fn current(&self) -> u32 {
        self.keys.load().current
    }

    /// Whether it has the key of that number.
    pub(super) fn has(&self, number: u32) -> bool {
        self.keys.load().by_number.contains_key(&number)
    }

    /// Seals `plaintext` as the record `name` of commit `sequence`.
    pub(super) fn seal(&self, name: &Name, sequence: u64, plaintext: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut salt = [0; SALT_BYTES];
        self.random
            .fill(&mut salt)
            .map_err(|_| VaultError::Engine { detail: "the system has no randomness".to_owned() })?;
        let keys = self.keys.load();
        let number = keys.current;
        let key = keys.derive(number, &salt).ok_or_else(|| damaged(name, "its data key is missing"))?;
        // The capacity is exact, so that no copy of the plaintext is left behind by growing.
        let mut sealed = Vec::with_capacity(OVERHEAD_BYTES + plaintext.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(&number.to_le_bytes());
        sealed.extend_from_slice(&sequence.to_le_bytes());
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(plaintext);
        let aad = Aad::from(self.associated(name, number, sequence));
        let tag = key
            .seal_in_place_separate_tag(nonce(), aad, &mut sealed[HEADER_BYTES..])
            .map_err(|_| VaultError::TooLarge { what: "a record", bytes: plaintext.len(), limit: usize::MAX })?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens what [`seal`](Self::seal) made for `name`; anything else is an error.
    pub(super) fn open(&self, name: &Name, sealed: Vec<u8>) -> Result<Opened, VaultError> {
        let mut sealed = Wiped::new(sealed);
        let Some((header, body)) = sealed.split_at_mut_checked(HEADER_BYTES) else {
            return Err(damaged(name, "it is too short"));
        };
        if header[0] != FORMAT {
            return Err(damaged(name, "its seal has an unknown format"));
        }
        let number = u32::from_le_bytes(header[KEY_NUMBER].try_into().expect("four bytes"));
        let sequence = u64::from_le_bytes(header[SEQUENCE].try_into().expect("eight bytes"));
        let salt: [u8; SALT_BYTES] = header[13..].try_into().expect("the rest of the header");
        let key = self.keys.load().derive(number, &salt);
        let key = key.ok_or_else(|| damaged(name, "it names a data key that is not there"))?;
        let aad = Aad::from(self.associated(name, number, sequence));
        let length = key
            .open_in_place(nonce(), aad, body)
            .map_err(|_| damaged(name, "its seal does not fit: it was altered or moved"))?
            .len();
        sealed.copy_within(HEADER_BYTES..HEADER_BYTES + length, 0);
        sealed.truncate(length);
        Ok(Opened { plaintext: sealed, sequence })
    }

    /// Seals a record anew under the key that seals now. Its contents and its sequence number stay: whoever wrote it
    /// knows it again.
    pub(super) fn seal_anew(&self, name: &Name, sealed: Vec<u8>) -> Result<Vec<u8>, VaultError> {
        let Opened { plaintext, sequence } = self.open(name, sealed)?;
        self.seal(name, sequence, &plaintext)
    }

    fn associated(&self, name: &Name, number: u32, sequence: u64) -> [u8; AAD_BYTES] {
        let mut aad = [0; AAD_BYTES];
        aad[..19].copy_from_slice(LABEL);
        aad[19] = FORMAT;
        aad[20..36].copy_from_slice(&self.vault);
        aad[36..53].copy_from_slice(name.as_bytes());
        aad[53..57].copy_from_slice(&number.to_le_bytes());
        aad[57..].copy_from_slice(&sequence.to_le_bytes());
        aad
    }
}

impl DataKeys {
    fn shared(by_number: BTreeMap<u32, Key>, current: u32) -> Arc<Self> {
        debug_assert!(by_number.contains_key(&current), "the keyring checks this when it is read");
        Arc::new(Self { current, by_number })
    }

    /// The key of one sealing.
    fn derive(&self, number: u32, salt: &[u8; SALT_BYTES]) -> Option<LessSafeKey> {
        struct Aes256;
        impl KeyType for Aes256 {
            fn len(&self) -> usize {
                32
            }
        }
        let data_key = self.by_number.get(&number)?;
        let derived = Salt::new(HKDF_SHA256, salt).extract(data_key.as_slice());
        let mut bytes = Key::default();
        derived.expand(&[LABEL], Aes256).ok()?.fill(bytes.as_mut_slice()).ok()?;
        UnboundKey::new(&AES_256_GCM, bytes.as_slice()).ok().map(LessSafeKey::new)
    }
}

/// The number of the data key that a sealed record names, which is not authenticated before it is opened; `None` where
/// the bytes are too short for one.
pub(super) fn key_number(sealed: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(sealed.get(KEY_NUMBER)?.try_into().expect("four bytes")))
}

/// The sequence number that a sealed record names, which is not authenticated before it is opened; `None` where the bytes are
/// too short for one.
pub(super) fn sequence(sealed: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(sealed.get(SEQUENCE)?.try_into().expect("eight bytes")))
}

/// The one nonce of a key that seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn damaged(name: &Name, detail: &str) -> VaultError {
    VaultError::Damaged { what: name.kind().word(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::name::{Kind, Namer};

    fn cipher(vault: u8, current: u32) -> Cipher {
        let keys = (1..=2).map(|number| (number, Key::new([u8::try_from(number).unwrap(); 32]))).collect();
        Cipher::new([vault; 16], keys, current)
    }

    fn name(id: &[u8]) -> Name {
        Namer::new(&[9; 32]).name(Kind::Grant, id)
    }

    #[test]
    fn what_was_sealed_opens_with_its_sequence() {
        let sealed = cipher(1, 1).seal(&name(b"a"), 77, b"token").unwrap();
        assert_eq!(sealed.len(), OVERHEAD_BYTES + 5);
        let opened = cipher(1, 1).open(&name(b"a"), sealed).unwrap();
        assert_eq!((&opened.plaintext[..], opened.sequence), (&b"token"[..], 77));
    }

    #[test]
    fn an_older_data_key_still_opens() {
        let sealed = cipher(1, 1).seal(&name(b"a"), 1, b"token").unwrap();
        assert!(cipher(1, 2).open(&name(b"a"), sealed).is_ok());
    }

    #[test]
    fn a_record_sealed_anew_is_the_same_under_another_key() {
        let cipher = cipher(1, 1);
        let old = cipher.seal(&name(b"a"), 77, b"token").unwrap();
        cipher.use_keys([(1, Key::new([1; 32])), (2, Key::new([2; 32]))].into(), 2);
        let new = cipher.seal_anew(&name(b"a"), old.clone()).unwrap();
        assert_eq!((key_number(&old), key_number(&new)), (Some(1), Some(2)));
        cipher.use_keys([(2, Key::new([2; 32]))].into(), 2);
        let opened = cipher.open(&name(b"a"), new).unwrap();
        assert_eq!((&opened.plaintext[..], opened.sequence), (&b"token"[..], 77));
        assert!(cipher.open(&name(b"a"), old).is_err(), "its key is gone");
        assert!(cipher.has(2) && !cipher.has(1));
    }

    #[test]
    fn the_same_record_is_never_sealed_to_the_same_bytes() {
        let cipher = cipher(1, 1);
        let (one, two) =
            (cipher.seal(&name(b"a"), 1, b"token").unwrap(), cipher.seal(&name(b"a"), 1, b"token").unwrap());
        assert_ne!(one[HEADER_BYTES..], two[HEADER_BYTES..]);
    }

    #[test]
    fn a_record_with_any_bit_changed_does_not_open() {
        let cipher = cipher(1, 1);
        let sealed = cipher.seal(&name(b"a"), 1, b"token").unwrap();
        for byte in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[byte] ^= 1;
            assert!(cipher.open(&name(b"a"), altered).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn a_record_that_was_cut_short_does_not_open() {
        let cipher = cipher(1, 1);
        let sealed = cipher.seal(&name(b"a"), 1, b"token").unwrap();
        for length in 0..sealed.len() {
            assert!(cipher.open(&name(b"a"), sealed[..length].to_vec()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_record_moved_under_another_name_or_into_another_vault_does_not_open() {
        let sealed = cipher(1, 1).seal(&name(b"a"), 1, b"token").unwrap();
        assert!(cipher(1, 1).open(&name(b"b"), sealed.clone()).is_err());
        assert!(cipher(2, 1).open(&name(b"a"), sealed.clone()).is_err());
        assert!(cipher(1, 1).open(&Namer::new(&[9; 32]).name(Kind::Stray, b"a"), sealed).is_err());
    }
}
