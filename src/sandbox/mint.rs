//! Makes every secret of the issuer, and knows its own when it sees them again.
//!
//! A million consents that rotate every hour make 24 million refresh tokens a day, and the judge of a simulation must
//! know the oldest of them as well as the newest. So none is remembered: a token names its authorization and its place
//! in that authorization's sequence, hidden and authenticated under the mint's key. Forging one takes the key.
//!
//! A sealed token is 32 bytes, shown as 64 hexadecimal characters, as Visma Connect's refresh tokens are:
//! `tag (20) = HMAC-SHA256(key, 0 ‖ kind ‖ id ‖ number)`, cut, then `(id ‖ number) (12) xor
//! HMAC-SHA256(key, 1 ‖ kind ‖ tag)`, cut; integers are big-endian.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{digest, hmac};
use serde_json::json;

use crate::model::{Secret, Timestamp};

const TAG: usize = 20;
const MARK: usize = 12;
/// The longest access token that is looked at, in bytes: ours have about 1,100.
const MAX_ACCESS_TOKEN: usize = 4096;

/// What a sealed token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Refresh = 1,
    Code = 2,
    ApiKey = 3,
}

/// What a sealed token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The authorization, the code or the API key.
    pub(super) id: u64,
    /// The place in an authorization's sequence.
    pub(super) number: u32,
}

/// What an access token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    /// For an API key, not for a consent.
    pub(super) personal: bool,
    /// The authorization or API key behind it.
    pub(super) id: u64,
    /// How many access tokens had been issued before it.
    pub(super) serial: u64,
    /// When it ends, in seconds since the Unix epoch.
    pub(super) expires: i64,
}

/// What an access token is made of beside its [`Claims`].
#[derive(Debug)]
pub(super) struct Face<'a> {
    pub(super) issuer: &'a str,
    pub(super) client: &'a str,
    pub(super) subject: &'a str,
    pub(super) scopes: &'a [&'a str],
    pub(super) authenticated_at: Timestamp,
    pub(super) now: Timestamp,
}

pub(super) struct Mint {
    key: hmac::Key,
    signer: hmac::Key,
}

impl std::fmt::Debug for Mint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mint(…)")
    }
}

impl Mint {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), signer: hmac::Key::new(hmac::HMAC_SHA512, key) }
    }

    pub(super) fn seal(&self, kind: Kind, mark: Mark) -> Secret {
        let mut plain = [0; MARK];
        plain[..8].copy_from_slice(&mark.id.to_be_bytes());
        plain[8..].copy_from_slice(&mark.number.to_be_bytes());
        let tag = self.tag(kind, &plain);
        let mut token = [0; TAG + MARK];
        token[..TAG].copy_from_slice(&tag);
        token[TAG..].copy_from_slice(&self.mask(kind, &tag, &plain));
        Secret::new(hex(&token))
    }

    pub(super) fn open(&self, kind: Kind, text: &str) -> Option<Mark> {
        let token: [u8; TAG + MARK] = unhex(text)?;
        let (tag, masked) = token.split_at(TAG);
        let plain = self.mask(kind, tag.try_into().ok()?, masked.try_into().ok()?);
        let ours = self.tag(kind, &plain);
        let (id, number) = plain.split_at(8);
        (ours == *tag).then_some(Mark {
            id: u64::from_be_bytes(id.try_into().ok()?),
            number: u32::from_be_bytes(number.try_into().ok()?),
        })
    }

    /// An access token as Visma Connect's look: three parts, about 1.1 KB, and no organization in it. Its third part has
    /// an RS256 signature's length, and is none: it only lets the mint know its own.
    pub(super) fn access_token(&self, claims: &Claims, face: &Face<'_>) -> Secret {
        let header = json!({
            "alg": "RS256", "kid": "5A4D0E2B7C91F36800D1E7A2946B3C58F21B09ADRS256", "x5t": "Wk0OK3yR82gA0eeilGs8WPIbCa0",
            "typ": "at+JWT",
        });
        let jti = format!("{:02X}{:014X}{:016X}", u8::from(claims.personal), claims.id, claims.serial);
        let payload = json!({
            "iss": face.issuer, "nbf": face.now.as_seconds(), "iat": face.now.as_seconds(), "exp": claims.expires,
            "aud": "https://api.dinero.dk", "scope": face.scopes, "amr": ["pwd"], "client_id": face.client,
            "sub": face.subject, "auth_time": face.authenticated_at.as_seconds(), "idp": "Visma Connect",
            "llt": face.authenticated_at.as_seconds(), "acr": "2",
            "sid": hex(&digest::digest(&digest::SHA256, jti.as_bytes()).as_ref()[..16]), "jti": jti,
        });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(payload.to_string(), &mut token);
        let seal = self.signature(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(seal, &mut token);
        Secret::new(token)
    }

    pub(super) fn read_access_token(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_ACCESS_TOKEN {
            return None;
        }
        let (signed, seal) = token.rsplit_once('.')?;
        if URL_SAFE_NO_PAD.decode(seal).ok()? != self.signature(signed.as_bytes()) {
            return None;
        }
        let (_header, payload) = signed.split_once('.')?;
        let payload: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let jti = payload.get("jti")?.as_str()?;
        Some(Claims {
            personal: jti.get(..2)? == "01",
            id: u64::from_str_radix(jti.get(2..16)?, 16).ok()?,
            serial: u64::from_str_radix(jti.get(16..)?, 16).ok()?,
            expires: payload.get("exp")?.as_i64()?,
        })
    }

    fn tag(&self, kind: Kind, plain: &[u8; MARK]) -> [u8; TAG] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[0, kind as u8]);
        context.update(plain);
        first_bytes(context.sign().as_ref())
    }

    /// Hides what is plain and shows what is hidden.
    fn mask(&self, kind: Kind, tag: &[u8; TAG], bytes: &[u8; MARK]) -> [u8; MARK] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[1, kind as u8]);
        context.update(tag);
        let pad: [u8; MARK] = first_bytes(context.sign().as_ref());
        std::array::from_fn(|at| bytes[at] ^ pad[at])
    }

    /// 256 bytes, as long as an RSA signature of 2048 bits.
    fn signature(&self, signed: &[u8]) -> Vec<u8> {
        (0..4_u8)
            .flat_map(|block| {
                let mut context = hmac::Context::with_key(&self.signer);
                context.update(&[block]);
                context.update(signed);
                context.sign().as_ref().to_vec()
            })
            .collect()
    }
}

/// What PKCE's S256 makes of a verifier (RFC 7636 section 4.2).
pub(super) fn challenge_of(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()))
}

/// The issuer's name for a user: the same in every sandbox, shaped like a GUID.
pub(super) fn subject_of(user: &str) -> String {
    let hash = hex(&digest::digest(&digest::SHA256, user.as_bytes()).as_ref()[..16]);
    [&hash[..8], &hash[8..12], &hash[12..16], &hash[16..20], &hash[20..]].join("-")
}

fn first_bytes<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| bytes[at])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Reads lower-case hexadecimal only: a token has one spelling.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mint() -> Mint {
        Mint::new(&[7; 32])
    }

    #[test]
    fn a_sealed_token_is_64_hexadecimal_characters_and_opens_to_what_it_names() {
        let mark = Mark { id: 1_234_567, number: 42 };
        let token = mint().seal(Kind::Refresh, mark);
        assert_eq!(token.expose().len(), 64);
        assert!(token.expose().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(mint().open(Kind::Refresh, token.expose()), Some(mark));
    }

    #[test]
    fn a_token_of_another_kind_or_mint_or_one_digit_off_is_unknown() {
        let token = mint().seal(Kind::Refresh, Mark { id: 1, number: 2 });
        assert_eq!(mint().open(Kind::ApiKey, token.expose()), None);
        assert_eq!(Mint::new(&[8; 32]).open(Kind::Refresh, token.expose()), None);
        for at in 0..64 {
            let mut altered = token.expose().as_bytes().to_vec();
            altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).expect("hexadecimal");
            assert_eq!(mint().open(Kind::Refresh, &altered), None, "digit {at}");
        }
        assert_eq!(mint().open(Kind::Refresh, ""), None);
        assert_eq!(mint().open(Kind::Refresh, &"æ".repeat(32)), None);
    }

    #[test]
    fn an_access_token_has_the_size_and_the_claims_of_a_real_one() {
        let claims = Claims { personal: false, id: 9, serial: 77, expires: 1_700_003_600 };
        let now = Timestamp::from_millis(1_700_000_000_000);
        let face = Face {
            issuer: "http://127.0.0.1:9480",
            client: "isv_sandbox",
            subject: &subject_of("birgit"),
            scopes: &["dineropublicapi:read", "dineropublicapi:write", "offline_access"],
            authenticated_at: now,
            now,
        };
        let token = mint().access_token(&claims, &face);
        assert!((1_000..=1_300).contains(&token.expose().len()), "{} bytes", token.expose().len());
        assert_eq!(mint().read_access_token(token.expose()), Some(claims));
        assert_eq!(Mint::new(&[8; 32]).read_access_token(token.expose()), None);
    }

    #[test]
    fn the_challenge_is_the_one_of_rfc_7636_appendix_b() {
        assert_eq!(
            challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }
}
