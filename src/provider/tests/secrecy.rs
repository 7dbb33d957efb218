//! Nothing that can be shown shows a secret.

use std::fmt::Write as _;

use wiremock::{Mock, MockServer, ResponseTemplate, matchers::method};

use super::*;
use crate::provider::SetupError;

/// Part of every secret that is planted.
const MARKER: &str = "planted";

/// A server's answer that repeats the request's body and header, as text inside of `template`.
fn echoing(status: u16, template: &'static str) -> impl Fn(&wiremock::Request) -> ResponseTemplate {
    move |request| {
        let header = request.headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let echo = format!("{} {header}", String::from_utf8_lossy(&request.body));
        ResponseTemplate::new(status).set_body_string(template.replace("ECHO", &echo))
    }
}

#[tokio::test]
async fn debug_and_display_hold_no_secret_whatever_the_issuer_echoes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shown = String::new();
    for (status, template) in [
        (200, r#"{"access_token":"planted-at","refresh_token":"planted-new","id_token":"planted-id","scope":"s"}"#),
        (200, r#"{"access_token":7,"refresh_token":"planted-new","x":"ECHO"}"#),
        (200, "ECHO"),
        (400, r#"{"error":"invalid_grant","error_description":"ECHO"}"#),
        (400, r#"{"error":"invalid_client","error_description":"ECHO"}"#),
        (400, r#"{"error":"of_their_own","error_description":"ECHO"}"#),
        (400, r#"{"error":"server_error","error_description":"ECHO"}"#),
        (400, r#"{"message":"{\"error\":\"invalid_grant\",\"error_description\":\"ECHO\"}"}"#),
        (404, "ECHO"),
        (500, "ECHO"),
    ] {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(echoing(status, template)).mount(&server).await;
        let mut config =
            with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "planted s/1\nplanted s/2");
        config.revoke_url = Some(url_of(&server, "/revoke"));
        for client_auth in [ClientAuth::Post, ClientAuth::Basic, ClientAuth::BasicPlain] {
            let provider = provider(ProviderConfig { client_auth, ..config.clone() });
            let secret = Secret::new("planted c+r/e d");
            for credential in [Credential::RefreshToken(secret.clone()), Credential::ApiKey(secret.clone())] {
                let outcome = exchange_of(&provider, &credential).await;
                let _ = write!(shown, "{outcome:?} {provider:?} ");
            }
            if let Err(error) = provider.revoke(&secret, None).await {
                let _ = write!(shown, "{error} {error:?} ");
            }
        }
    }
    assert!(shown.contains("Refused") && shown.contains("[hidden]"), "the echo came back: {shown}");
    assert!(!shown.contains(MARKER), "{shown}");
    // What the Basic headers hold: "client:planted…" in base64.
    assert!(!shown.contains("Y2xpZW50OnBsYW50ZW"), "{shown}");
}

#[tokio::test]
async fn errors_of_the_connection_do_not_show_the_url() {
    let config = at("http://127.0.0.1:1/token?key=planted");
    let provider = provider(config);
    let outcome = exchange(&provider).await;
    assert!(!format!("{outcome:?} {provider:?}").contains(MARKER), "{outcome:?}");
    let findings = provider.findings().await;
    assert!(!format!("{findings:?}").contains(MARKER), "{findings:?}");
}

#[test]
fn a_setup_error_names_the_file_and_not_what_is_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = with_secrets(at("https://example.com/token"), folder.path(), "planted-1\nplanted-2\nplanted-3");
    let error = Provider::new(config, PATIENT, ManualClock::at(NOW)).expect_err("too many");
    let text = format!("{error} {error:?}");
    assert!(text.contains("client_secret_file") && text.contains("secret"), "{text}");
    assert!(!text.contains(MARKER), "{text}");

    let config = at("https://user:planted@example.com/token?planted");
    let error = Provider::new(config, PATIENT, ManualClock::at(NOW)).expect_err("userinfo");
    assert!(matches!(error, SetupError::UnsafeEndpoint { .. }));
    assert!(!format!("{error} {error:?}").contains(MARKER), "{error}");
}
