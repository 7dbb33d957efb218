//! What an issuer may answer: anything.

use bolero::check;
use reqwest::header::HeaderValue;
use serde_json::Value;
use url::Url;

use super::super::{
    answer,
    detail::Cleaner,
    discovery, organizations,
    transport::{Reply, is_safe_endpoint},
    verdict,
};
use crate::{
    model::{Credential, ExchangeOutcome, OrganizationId, Secret, Timestamp, Wiped},
    tests::{Edit, allocated, edited},
};

const GRANTED: &[u8] = br#"{"access_token":"e30.eyJzdWIiOiJ1IiwiY2xpZW50X2lkIjoiYyJ9.s","expires_in":3600,
    "token_type":"Bearer","refresh_token":"rotated","scope":"a b","id_token":null}"#;
const REFUSED: &[u8] =
    br#"{"error":"invalid_grant","error_description":"hush-Sent-1 is spent","error_uri":"hush-Sent-1"}"#;
/// What was sent, and what [`REFUSED`] gives back.
const SENT: &str = "hush-Sent-1";

/// A refresh token that is overlooked is a consent that is lost with the next exchange.
#[test]
fn no_rotated_token_is_overlooked_however_the_answer_is_spoilt() {
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let body = edited(GRANTED, edits);
        let (read, asked) = allocated(|| answer::read(&body));
        assert!(asked <= 64 * body.len() + 4096, "{asked} bytes for an answer of {}", body.len());
        let Ok(answer) = read else { return };
        let token = answer.access_token.expose();
        assert!(!token.is_empty() && HeaderValue::from_str(token).is_ok());
        for text in
            [Some(&answer.token_type), answer.scope.as_ref(), answer.subject.as_ref(), answer.client_id.as_ref()]
        {
            assert!(text.is_none_or(|text| !text.is_empty() && !text.chars().any(char::is_control)), "{text:?}");
        }
        // Another reader of JSON is the judge.
        let Ok(Value::Object(members)) = serde_json::from_slice(&body) else { return };
        assert_eq!(members["access_token"], token);
        let rotated = members.get("refresh_token").and_then(Value::as_str).filter(|token| !token.is_empty());
        assert_eq!(answer.refresh_token.as_ref().map(Secret::expose), rotated);
    });
}

#[test]
fn a_token_counts_as_unspent_only_by_a_proof_and_what_was_sent_is_never_told() {
    type Input = (Vec<Edit>, u16, bool, bool);
    check!().with_type::<Input>().for_each(|(edits, status, is_key, granted)| {
        let (status, secret) = (100 + status % 500, Secret::new(SENT));
        let body = edited(if *granted { GRANTED } else { REFUSED }, edits);
        let credential = if *is_key { Credential::ApiKey(secret) } else { Credential::RefreshToken(secret) };
        let reply = Reply { status, retry_after: None, body: Ok(Wiped::new(body.clone())) };
        let cleaner = Cleaner::of([credential.secret()]);
        let outcome = verdict::of(Ok(reply), &credential, &cleaner, Timestamp::default(), "p").outcome;
        let is_success = (200..=299).contains(&status);
        match outcome {
            ExchangeOutcome::Granted(_) => return assert!(is_success, "{status}"),
            ExchangeOutcome::Unknown { .. } | ExchangeOutcome::NotSent { .. } => {}
            _ if matches!(status, 429 | 503) => {}
            _ => {
                assert!((400..=499).contains(&status), "{status}: {outcome:?}");
                let judged: Option<Value> = serde_json::from_slice(&body).ok();
                let has_code = judged.is_some_and(|judged| judged["error"].is_string());
                assert!(has_code || *is_key, "{status}: {outcome:?}");
            }
        }
        assert!(!format!("{outcome:?}").contains(SENT), "{outcome:?}");
    });
}

#[test]
fn no_retry_after_lasts_longer_than_the_longest() {
    check!().with_type::<(Vec<Edit>, bool, i64)>().for_each(|(edits, is_date, now)| {
        let text = edited(if *is_date { b"Sun, 06 Nov 1994 08:49:37 GMT" } else { b"120" }, edits);
        let Ok(value) = HeaderValue::from_bytes(&text) else { return };
        let wait = verdict::retry_after(Some(&value), Timestamp::from_millis(*now));
        assert!(wait.is_none_or(|wait| wait <= verdict::MAX_RETRY_AFTER), "{wait:?}");
    });
}

#[test]
fn no_discovery_document_leads_a_secret_astray() {
    const DOCUMENT: &[u8] = br#"{"issuer":"https://issuer.example","token_endpoint":"https://issuer.example/token",
        "authorization_endpoint":"http://localhost/authorize","revocation_endpoint":"https://[::1]/revoke",
        "token_endpoint_auth_methods_supported":["client_secret_post"]}"#;
    let issuer: Url = "https://issuer.example".parse().expect("a URL");
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let body = edited(DOCUMENT, edits);
        match discovery::read(&body, &issuer) {
            Ok(document) => {
                let urls = [document.token, document.authorize, document.revoke];
                assert!(urls.iter().flatten().all(is_safe_endpoint), "{urls:?}");
                // A stricter reader than the one that skips what it does not need.
                let Ok(judged) = serde_json::from_slice::<Value>(&body) else { return };
                assert_eq!(judged["issuer"].as_str().expect("text").trim_end_matches('/'), "https://issuer.example");
            }
            Err(why) => assert!(why.chars().count() < 400 && !why.chars().any(char::is_control), "{why:?}"),
        }
    });
}

#[test]
fn a_list_of_organizations_yields_ids_and_no_more_than_it_has_room_for() {
    const LIST: &[u8] = br#"{"organizations":[{"id":"1","name":"x"},{"OrganizationId":2},{"organisationId":"DK-3"}]}"#;
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let body = edited(LIST, edits);
        let ids = organizations::read(&body).unwrap_or_default();
        assert!(ids.len() <= body.len() / 4, "{ids:?}");
        assert!(ids.iter().all(|id| OrganizationId::is_valid(id)), "{ids:?}");
    });
}
