//! What the benchmarks share: a vault that is filled, the real worker on it, processes that are pinned and measured, a
//! caller that costs little, and a report.
//!
//! A number that stands alone says nothing about another machine. So each benchmark measures a baseline in the same
//! run, takes turns with it over several rounds, and reports medians, how far the rounds lie apart, and the ratio. None
//! asserts a time.

pub(crate) mod caller;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod site;
pub(crate) mod worker;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

/// The client id in every configuration and token.
pub(crate) const CLIENT_ID: &str = "isv_bench";
/// How long an RS256 signature is in base64, for a key of 2048 bits.
const SIGNATURE_CHARACTERS: usize = 342;

/// Text of the shape and size of the issuer's access tokens: a signed JWT of about 1.1 KB that names no organization.
pub(crate) fn access_token(subject: &str, number: u64) -> String {
    let header = r#"{"alg":"RS256","kid":"5B2E4FA7D0C94E0B9F3C6A1D8E7F2B4C5D6E7F8A","typ":"at+JWT"}"#;
    let payload = format!(
        r#"{{"iss":"https://connect.example.com","nbf":1700000000,"iat":1700000000,"exp":1700003600,"aud":"https://api.example.com","scope":["dineropublicapi:read","dineropublicapi:write","offline_access"],"amr":["pwd"],"client_id":"{CLIENT_ID}","sub":"{subject}","auth_time":1700000000,"idp":"Visma Connect","llt":1700000000,"acr":"2","sid":"8f14e45f-ceea-467f-9d3b-1f2f3d4c5b6a","jti":"{number:032}"}}"#
    );
    let mut token = String::with_capacity(1200);
    BASE64_URL_SAFE_NO_PAD.encode_string(header, &mut token);
    token.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(payload, &mut token);
    token.push('.');
    token.extend(std::iter::repeat_n('S', SIGNATURE_CHARACTERS));
    token
}

/// How many rounds a benchmark has: `usual`, or what `CONSENTRY_BENCH_ROUNDS` says.
pub(crate) fn rounds(usual: usize) -> usize {
    let wished = std::env::var("CONSENTRY_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
    wished.unwrap_or(usual).max(1)
}
