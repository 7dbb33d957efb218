//! Signatures as Standard Webhooks 1.0.0 describes them (<https://www.standardwebhooks.com>, "Signature scheme"):
//! HMAC-SHA256 over `id.timestamp.body`, once for each secret in force.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_STANDARD,
};
use ring::hmac;
use zeroize::Zeroizing;

use crate::{
    model::{EventId, Secret, Timestamp},
    secret_file::Rules,
};

/// What every serialized secret of this scheme may begin with; a bare base64 text is the same secret.
const PREFIX: &str = "whsec_";
/// The shortest and the longest key that the specification allows, in bytes.
const MIN_KEY: usize = 24;
const MAX_KEY: usize = 64;
/// The version of the symmetric scheme.
const VERSION: &str = "v1";

/// Base64 with or without its padding, since both are found in secrets that people copy.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a signing secret must be.
pub(super) const RULES: Rules = Rules { what: "signing secret", flaw };

fn flaw(secret: &Secret) -> Option<&'static str> {
    match key(secret) {
        Err(_) => Some(
            "is not base64; write it as the receiver has it, such as what `printf whsec_; openssl rand -base64 32` prints",
        ),
        Ok(key) if key.len() < MIN_KEY => Some(
            "is too short: it needs 24 bytes before base64 (32 characters after it); `printf whsec_; openssl rand -base64 32` makes one",
        ),
        Ok(key) if key.len() > MAX_KEY => {
            Some("is too long: Standard Webhooks allows 64 bytes before base64 (88 characters after it)")
        }
        Ok(_) => None,
    }
}

/// The key that `secret` is written for.
fn key(secret: &Secret) -> Result<Zeroizing<Vec<u8>>, base64::DecodeError> {
    let text = secret.expose();
    BASE64.decode(text.strip_prefix(PREFIX).unwrap_or(text)).map(Zeroizing::new)
}

/// The value of `webhook-signature`: one signature a secret, separated by spaces. `at` is when the attempt is made, and
/// leaves as whole seconds in `webhook-timestamp`.
///
/// `secrets` have been held against [`RULES`]; one that does not decode would be left out.
pub(super) fn header(secrets: &[Secret], id: &EventId, at: Timestamp, body: &[u8]) -> String {
    sign(secrets, &id.to_string(), at.as_seconds(), body)
}

fn sign(secrets: &[Secret], id: &str, seconds: i64, body: &[u8]) -> String {
    let signatures = secrets.iter().filter_map(|secret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key(secret).ok()?);
        let mut signed = hmac::Context::with_key(&key);
        signed.update(format!("{id}.{seconds}.").as_bytes());
        signed.update(body);
        Some(format!("{VERSION},{}", BASE64_STANDARD.encode(signed.sign())))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that the specification's reference libraries test themselves with.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const SECONDS: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_vector_of_the_specification_is_met_with_and_without_the_prefix() {
        for text in [SECRET, SECRET.trim_start_matches(PREFIX)] {
            assert_eq!(flaw(&Secret::new(text)), None);
            assert_eq!(sign(&[Secret::new(text)], ID, SECONDS, BODY), SIGNATURE);
        }
    }

    #[test]
    fn two_secrets_make_two_signatures_the_first_secrets_first() {
        let other = Secret::new(format!("{PREFIX}{}", BASE64_STANDARD.encode([7; 32])));
        let signed = sign(&[Secret::new(SECRET), other.clone()], ID, SECONDS, BODY);
        assert_eq!(signed, format!("{SIGNATURE} {}", sign(&[other], ID, SECONDS, BODY)));
    }

    #[test]
    fn whatever_is_signed_changes_the_signature() {
        let secrets = [Secret::new(SECRET)];
        assert_ne!(sign(&secrets, "evt_2", SECONDS, BODY), SIGNATURE);
        assert_ne!(sign(&secrets, ID, SECONDS + 1, BODY), SIGNATURE);
        assert_ne!(sign(&secrets, ID, SECONDS, b"{}"), SIGNATURE);
    }

    #[test]
    fn a_secret_that_no_receiver_could_have_is_refused_without_showing_it() {
        let of_bytes = |count: usize| format!("{PREFIX}{}", BASE64_STANDARD.encode(vec![7; count]));
        for (text, expected) in [
            ("hunter2!".to_owned(), "is not base64"),
            (format!("{PREFIX}æøå"), "is not base64"),
            (of_bytes(23), "is too short"),
            (of_bytes(65), "is too long"),
        ] {
            let flaw = flaw(&Secret::new(text.clone())).expect("refused");
            assert!(flaw.contains(expected) && !flaw.contains(&text), "{flaw}");
        }
        for count in [24, 25, 32, 64] {
            assert_eq!(flaw(&Secret::new(of_bytes(count))), None);
            assert_eq!(flaw(&Secret::new(of_bytes(count).trim_end_matches('='))), None, "padding is optional");
        }
    }
}
