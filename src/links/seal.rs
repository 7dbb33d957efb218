//! How a link's token is sealed, byte for byte. The token is base64 for URLs, without padding (RFC 4648 section 5), of:
//!
//! ```text
//! offset  bytes  what
//!      0     12  nonce: HMAC-SHA256(nonce key, plaintext), its first 12 bytes
//!     12      n  ciphertext, as long as the plaintext
//!   12+n     16  tag
//! ```
//!
//! The cipher is AES-256-GCM with the associated data "consentry/v1/link". Both keys are
//! `HKDF-SHA256(ikm = the vault's link key, salt = "", info = "consentry/v1/link/seal" or "consentry/v1/link/nonce")`. The nonce is
//! made from the plaintext, so that the same link is sealed to the same bytes and no randomness is needed; two links that
//! differ share a nonce with a chance below 2^-32 after 2^32 of them (the bound of NIST SP 800-38D section 8.3).
//!
//! The plaintext, in postcard: when the link ends, in seconds since 1970; the grant of its binding, if any; the generation;
//! the organization; the provider; the further organizations. Its length can be seen, and nothing else of it.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    hmac,
};
use serde::{Deserialize, Serialize};

use super::{Binding, Invitation, MAX_ALSO};
use crate::model::{GrantId, OrganizationId, Timestamp};

const LABEL: &[u8] = b"consentry/v1/link";
const SEAL_LABEL: &[&[u8]] = &[b"consentry/v1/link/seal"];
const NONCE_LABEL: &[&[u8]] = &[b"consentry/v1/link/nonce"];

/// Seals and opens tokens.
pub(super) struct Seal {
    cipher: LessSafeKey,
    nonces: hmac::Key,
}

/// What a token holds. postcard writes fields in order, so none may ever change here; another form needs another label.
#[derive(Serialize, Deserialize)]
struct Form<'a> {
    expires_at: u64,
    grant: Option<GrantId>,
    generation: u32,
    organization: &'a str,
    provider: &'a str,
    #[serde(borrow)]
    also: Vec<&'a str>,
}

impl Seal {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let prk = Salt::new(HKDF_SHA256, b"").extract(key);
        let cipher = prk.expand(SEAL_LABEL, &AES_256_GCM).expect("one key is not too long");
        let nonces = prk.expand(NONCE_LABEL, hmac::HMAC_SHA256).expect("one key is not too long");
        Self { cipher: LessSafeKey::new(UnboundKey::from(cipher)), nonces: hmac::Key::from(nonces) }
    }

    /// The token of a link that ends at `expires_at`, which is kept in whole seconds; before 1970 counts as 1970.
    pub(super) fn close(&self, invitation: &Invitation, expires_at: Timestamp) -> String {
        let form = Form {
            expires_at: u64::try_from(expires_at.as_seconds()).unwrap_or(0),
            grant: invitation.binding.grant,
            generation: invitation.binding.generation,
            organization: invitation.organization.as_str(),
            provider: invitation.provider.as_str(),
            also: invitation.also.iter().map(OrganizationId::as_str).collect(),
        };
        let mut sealed = vec![0; NONCE_LEN];
        sealed.extend(postcard::to_stdvec(&form).expect("numbers and text can always be written"));
        let nonce = self.nonce(&sealed[NONCE_LEN..]);
        sealed[..NONCE_LEN].copy_from_slice(&nonce);
        let tag = self
            .cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(LABEL), &mut sealed[NONCE_LEN..])
            .expect("far shorter than what the cipher takes");
        sealed.extend_from_slice(tag.as_ref());
        BASE64_URL_SAFE_NO_PAD.encode(sealed)
    }

    /// What [`close`](Self::close) sealed, and when it ends; `None` of anything else.
    pub(super) fn open(&self, token: &str) -> Option<(Invitation, Timestamp)> {
        let mut sealed = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let (nonce, body) = sealed.split_first_chunk_mut::<NONCE_LEN>()?;
        let plaintext = self.cipher.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(LABEL), body).ok()?;
        let form: Form<'_> = postcard::from_bytes(plaintext).ok()?;
        if form.also.len() > MAX_ALSO {
            return None;
        }
        let seconds = i64::try_from(form.expires_at).ok()?;
        let invitation = Invitation {
            organization: form.organization.parse().ok()?,
            provider: form.provider.parse().ok()?,
            also: form.also.iter().map(|id| id.parse().ok()).collect::<Option<_>>()?,
            binding: Binding { grant: form.grant, generation: form.generation },
        };
        Some((invitation, Timestamp::from_millis(seconds.saturating_mul(1000))))
    }

    fn nonce(&self, plaintext: &[u8]) -> [u8; NONCE_LEN] {
        let tag = hmac::sign(&self.nonces, plaintext);
        *tag.as_ref().first_chunk().expect("a hash of 32 bytes")
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(…)")
    }
}
