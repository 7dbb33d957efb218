//! What is sent and to whom: client secrets, discovery, and the calls beside the token endpoint.

use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{body_string, body_string_contains, header, method, path},
};

use super::*;
use crate::{
    clock::{Clock, Now},
    model::ClientCredentials,
    provider::{ProviderError, Redemption, Severity},
};

fn grants() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(serde_json::json!({"access_token": "at", "expires_in": 3600}))
}

fn refuses(code: &str) -> ResponseTemplate {
    ResponseTemplate::new(400).set_body_json(serde_json::json!({"error": code}))
}

async fn bodies(server: &MockServer) -> Vec<String> {
    let requests = server.received_requests().await.expect("recorded");
    requests.iter().map(|request: &Request| String::from_utf8_lossy(&request.body).into_owned()).collect()
}

fn is_granted(outcome: &ExchangeOutcome) -> bool {
    matches!(outcome, ExchangeOutcome::Granted(_))
}

#[tokio::test]
async fn an_api_key_is_exchanged_as_dinero_documents() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(header("authorization", "Basic cmFzbXVzOmRpbmVybw=="))
        .and(header("content-type", "application/x-www-form-urlencoded"))
        .and(header("user-agent", concat!("consentry/", env!("CARGO_PKG_VERSION"))))
        .and(body_string("grant_type=password&scope=read+write&username=the+key&password=the+key"))
        .respond_with(grants())
        .expect(1)
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = ProviderConfig {
        client_id: "rasmus".into(),
        token_url: Some(url_of(&server, "/token")),
        client_auth: ClientAuth::BasicPlain,
        ..config(Kind::DineroPersonal)
    };
    let provider = provider(with_secrets(config, folder.path(), "dinero\n"));
    assert!(is_granted(&exchange_of(&provider, &Credential::ApiKey(Secret::new("the key"))).await));
}

/// Redeems the code `c/1` with a verifier.
async fn redeem(provider: &Provider) -> ExchangeOutcome {
    let (code, verifier) = (Secret::new("c/1"), Secret::new("verifier-of-it"));
    let redirect_uri = "https://connect.example.com/callback/test";
    provider.redeem(Redemption { code: &code, verifier: Some(&verifier), redirect_uri }).await
}

#[tokio::test]
async fn a_code_is_redeemed_with_its_verifier_by_the_secret_that_is_not_refused() {
    let server = MockServer::start().await;
    let sent = "grant_type=authorization_code&code=c%2F1&redirect_uri=https%3A%2F%2Fconnect.example.com%2Fcallback%2Ftest\
                &code_verifier=verifier-of-it&client_id=client&client_secret=";
    Mock::given(body_string(format!("{sent}new"))).respond_with(refuses("invalid_client")).mount(&server).await;
    Mock::given(body_string(format!("{sent}old"))).respond_with(grants()).mount(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    let provider = provider(with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "new\nold\n"));
    assert!(is_granted(&redeem(&provider).await));
    assert_eq!(bodies(&server).await.len(), 2);
}

#[tokio::test]
async fn a_code_is_sent_once_whatever_comes_back_and_no_error_shows_it() {
    let echo = "no c/1 nor verifier-of-it here";
    let refusal = ResponseTemplate::new(400)
        .set_body_json(serde_json::json!({"error": "invalid_grant", "error_description": echo}));
    for (answer, is_refused) in [(refusal, true), (ResponseTemplate::new(500).set_body_string(echo), false)] {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(answer).expect(1).mount(&server).await;
        let outcome = redeem(&provider(at(url_of(&server, "/token").as_str()))).await;
        let as_expected = match &outcome {
            ExchangeOutcome::Refused { .. } => is_refused,
            ExchangeOutcome::Unknown { .. } => !is_refused,
            _ => false,
        };
        let told = format!("{outcome:?}");
        assert!(as_expected && !told.contains("c/1") && !told.contains("verifier-of-it"), "{told}");
    }
}

#[tokio::test]
async fn a_nested_error_refuses_an_api_key_and_nothing_else() {
    let server = MockServer::start().await;
    let nested = ResponseTemplate::new(400)
        .set_body_json(serde_json::json!({"code": 7, "message": "{\"error\":\"invalid_grant\"}"}));
    Mock::given(method("POST")).respond_with(nested).mount(&server).await;
    let provider = provider(at(url_of(&server, "/token").as_str()));
    let outcome = exchange_of(&provider, &Credential::ApiKey(Secret::new("key"))).await;
    assert!(matches!(outcome, ExchangeOutcome::Refused { .. }), "{outcome:?}");
    let outcome = exchange(&provider).await;
    assert!(matches!(outcome, ExchangeOutcome::Unknown { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_refused_secret_gives_way_to_the_other_which_is_then_kept() {
    let server = MockServer::start().await;
    Mock::given(body_string_contains("client_secret=new")).respond_with(refuses("invalid_client")).mount(&server).await;
    Mock::given(body_string_contains("client_secret=old")).respond_with(grants()).mount(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    let provider = provider(with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "new\nold\n"));
    assert!(is_granted(&exchange(&provider).await));
    assert!(is_granted(&exchange(&provider).await));
    let sent: Vec<_> = bodies(&server).await.iter().map(|body| body.contains("client_secret=new")).collect();
    assert_eq!(sent, [true, false, false]);
}

#[tokio::test]
async fn two_refused_secrets_are_two_requests_and_a_refused_client() {
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(refuses("invalid_client")).expect(2).mount(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    let provider = provider(with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "a\nb\n"));
    assert!(matches!(exchange(&provider).await, ExchangeOutcome::ClientRefused { .. }));
}

#[tokio::test]
async fn only_a_refused_secret_causes_a_second_request() {
    for response in [refuses("invalid_grant"), refuses("unauthorized_client"), ResponseTemplate::new(500)] {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(response).expect(1).mount(&server).await;
        let folder = tempfile::tempdir().expect("a folder");
        let provider = provider(with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "a\nb\n"));
        assert!(!is_granted(&exchange(&provider).await));
    }
}

#[tokio::test]
async fn a_changed_secret_file_is_used_without_a_restart() {
    let server = MockServer::start().await;
    Mock::given(body_string_contains("client_secret=after")).respond_with(grants()).mount(&server).await;
    Mock::given(method("POST")).respond_with(refuses("invalid_client")).mount(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::at(NOW);
    let config = with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "before");
    let provider = provider_at(config, PATIENT, &clock);
    assert!(!is_granted(&exchange(&provider).await));
    std::fs::write(folder.path().join("secret"), "after").expect("written");
    clock.advance(Duration::from_secs(1));
    assert!(is_granted(&exchange(&provider).await));
}

#[tokio::test]
async fn a_grants_own_client_goes_before_the_providers() {
    let server = MockServer::start().await;
    Mock::given(body_string("grant_type=refresh_token&refresh_token=rt&client_id=own&client_secret=its"))
        .respond_with(grants())
        .expect(1)
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    let provider = provider(with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "shared"));
    let credential = Credential::RefreshToken(Secret::new("rt"));
    let own = ClientCredentials { id: "own".into(), secret: Secret::new("its") };
    let outcome = provider
        .exchange(Exchange { credential: &credential, client: Some(&own), fresh_connection: false, not_after: None })
        .await;
    assert!(is_granted(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn a_one_time_token_gets_a_connection_of_its_own() {
    let (opened, mut connections) = tokio::sync::mpsc::unbounded_channel();
    let url = bare_server(move |mut stream| {
        opened.send(()).expect("counted");
        async move {
            while !read_request(&mut stream).await.is_empty() {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"access_token\":\"a\"}";
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await;
    let provider = provider(at(&url));
    let credential = Credential::RefreshToken(Secret::new("rt"));
    let mut count = async |fresh_connection| {
        for _ in 0..3 {
            let outcome = provider
                .exchange(Exchange { credential: &credential, client: None, fresh_connection, not_after: None })
                .await;
            assert!(is_granted(&outcome), "{outcome:?}");
        }
        std::iter::from_fn(|| connections.try_recv().ok()).count()
    };
    assert_eq!(count(true).await, 3);
    assert_eq!(count(false).await, 1);
}

#[tokio::test]
async fn a_request_that_would_leave_after_its_grace_does_not_leave() {
    let server = MockServer::start().await;
    let clock = ManualClock::at(NOW);
    let (passing, answer) = (clock.clone(), document(&server, &server.uri()));
    let slow = move |_: &Request| {
        passing.advance(Duration::from_secs(10));
        answer.clone()
    };
    Mock::given(method("GET")).respond_with(slow).expect(1).mount(&server).await;
    Mock::given(path("/discovered")).respond_with(grants()).expect(1).mount(&server).await;
    let provider = provider_at(discovered(&server), PATIENT, &clock);
    let credential = Credential::RefreshToken(Secret::new("rt"));
    let within = async |seconds| {
        let not_after = Some(clock.now().boot + Duration::from_secs(seconds));
        let exchange = Exchange { credential: &credential, client: None, fresh_connection: true, not_after };
        provider.exchange(exchange).await
    };
    let late = within(5).await;
    assert!(matches!(late, ExchangeOutcome::NotSent { .. }), "discovery has eaten the grace: {late:?}");
    assert!(is_granted(&within(5).await));
}

fn document(server: &MockServer, issuer: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(serde_json::json!({
        "issuer": issuer,
        "token_endpoint": url_of(server, "/discovered").as_str(),
        "authorization_endpoint": url_of(server, "/authorize").as_str(),
        "revocation_endpoint": url_of(server, "/revoke").as_str(),
    }))
}

fn discovered(server: &MockServer) -> ProviderConfig {
    ProviderConfig { issuer: Some(server.uri().parse().expect("a URL")), ..config(Kind::Oauth2) }
}

#[tokio::test]
async fn discovery_is_asked_once_an_hour_and_an_old_document_outlives_a_failure() {
    let server = MockServer::start().await;
    let well_known = || Mock::given(path("/.well-known/openid-configuration"));
    well_known().respond_with(document(&server, &server.uri())).up_to_n_times(1).expect(1).mount(&server).await;
    well_known().respond_with(ResponseTemplate::new(500)).expect(1).mount(&server).await;
    Mock::given(path("/discovered")).respond_with(grants()).expect(4).mount(&server).await;
    let clock = ManualClock::at(NOW);
    let provider = provider_at(discovered(&server), PATIENT, &clock);
    assert!(is_granted(&exchange(&provider).await));
    assert!(is_granted(&exchange(&provider).await));
    assert_eq!(provider.authorize_endpoint().await.expect("discovered").url, url_of(&server, "/authorize"));
    clock.advance(Duration::from_hours(1));
    assert!(is_granted(&exchange(&provider).await));
    assert!(is_granted(&exchange(&provider).await));
}

#[tokio::test]
async fn a_failed_discovery_is_not_repeated_for_a_minute() {
    let server = MockServer::start().await;
    let other_issuer = document(&server, "https://evil.example");
    Mock::given(method("GET")).respond_with(other_issuer).expect(2).mount(&server).await;
    let clock = ManualClock::at(NOW);
    let provider = provider_at(discovered(&server), PATIENT, &clock);
    for _ in 0..3 {
        assert!(matches!(exchange(&provider).await, ExchangeOutcome::NotSent { .. }));
    }
    clock.advance(Duration::from_mins(1));
    assert!(matches!(exchange(&provider).await, ExchangeOutcome::NotSent { .. }));
}

#[tokio::test]
async fn many_who_need_discovery_ask_once() {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(document(&server, &server.uri())).expect(1).mount(&server).await;
    Mock::given(path("/discovered")).respond_with(grants()).expect(3).mount(&server).await;
    let provider = provider(discovered(&server));
    let outcomes = tokio::join!(exchange(&provider), exchange(&provider), exchange(&provider));
    assert!([&outcomes.0, &outcomes.1, &outcomes.2].into_iter().all(is_granted), "{outcomes:?}");
}

#[tokio::test]
async fn a_configured_endpoint_goes_before_discovery() {
    let server = MockServer::start().await;
    Mock::given(path("/configured")).respond_with(grants()).expect(1).mount(&server).await;
    Mock::given(method("GET")).respond_with(document(&server, &server.uri())).expect(0).mount(&server).await;
    let config = ProviderConfig { token_url: Some(url_of(&server, "/configured")), ..discovered(&server) };
    assert!(is_granted(&exchange(&provider(config)).await));
}

#[tokio::test]
async fn a_sandbox_whose_discovery_fails_sends_nothing_to_the_real_issuer() {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(404)).expect(1).mount(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = ProviderConfig { kind: Kind::VismaConnect, ..discovered(&server) };
    let provider = provider(with_secrets(config, folder.path(), "s"));
    assert!(matches!(exchange(&provider).await, ExchangeOutcome::NotSent { .. }));
    assert!(matches!(provider.authorize_endpoint().await, Err(ProviderError::NotOffered { .. })));
    let revoked = provider.revoke(&Secret::new("rt"), None).await;
    assert!(matches!(revoked, Err(ProviderError::NotOffered { .. })));
}

#[tokio::test]
async fn the_profiles_endpoints_serve_where_nothing_else_is_known() {
    let authorize = provider(config(Kind::VismaConnect)).authorize_endpoint().await.expect("the profile's").url;
    assert_eq!(authorize.as_str(), "https://connect.visma.com/connect/authorize");
}

#[tokio::test]
async fn organizations_are_listed_where_the_provider_can() {
    let token = Secret::new("at");
    let config = config(Kind::Oauth2);
    assert_eq!(provider(config.clone()).organizations(&token).await.expect("no list"), None);

    let server = MockServer::start().await;
    let list = ResponseTemplate::new(200).set_body_json(serde_json::json!([{"id": 1}, {"organizationId": "b"}]));
    Mock::given(header("authorization", "Bearer at")).respond_with(list).mount(&server).await;
    Mock::given(header("authorization", "Bearer 401")).respond_with(ResponseTemplate::new(401)).mount(&server).await;
    Mock::given(header("authorization", "Bearer 480")).respond_with(ResponseTemplate::new(480)).mount(&server).await;
    let nonsense = ResponseTemplate::new(200).set_body_string("<html>");
    Mock::given(header("authorization", "Bearer html")).respond_with(nonsense).mount(&server).await;
    let config = ProviderConfig { organizations_url: Some(url_of(&server, "/v1/organizations")), ..config };
    let provider = provider(config);
    assert_eq!(provider.organizations(&token).await.expect("a list"), Some(vec!["1".to_owned(), "b".to_owned()]));
    let answer = async |token: &str| provider.organizations(&Secret::new(token)).await.expect_err("no list");
    assert!(matches!(answer("401").await, ProviderError::Refused { status: 401, .. }));
    for token in ["480", "html", "bad\nheader"] {
        assert!(matches!(answer(token).await, ProviderError::Unavailable { .. }), "{token}");
    }
}

#[tokio::test]
async fn revocation_at_visma_is_by_basic() {
    let server = MockServer::start().await;
    Mock::given(path("/revoke"))
        .and(header("authorization", "Basic Y2xpZW50OnM="))
        .and(body_string("token=rt&token_type_hint=refresh_token"))
        .respond_with(ResponseTemplate::new(200))
        .expect(1)
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = ProviderConfig { revoke_url: Some(url_of(&server, "/revoke")), ..config(Kind::VismaConnect) };
    let provider = provider(with_secrets(config, folder.path(), "s"));
    provider.revoke(&Secret::new("rt"), None).await.expect("revoked");
}

#[tokio::test]
async fn a_revocation_that_fails_says_how() {
    let token = Secret::new("rt");
    let none = provider(config(Kind::Oauth2));
    assert!(matches!(none.revoke(&token, None).await, Err(ProviderError::NotOffered { .. })));
    for (response, is_refused) in [
        (refuses("unsupported_token_type"), true),
        (ResponseTemplate::new(503), false),
        (ResponseTemplate::new(302), false),
    ] {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(response).mount(&server).await;
        let config = ProviderConfig { revoke_url: Some(url_of(&server, "/revoke")), ..config(Kind::Oauth2) };
        let error = provider(config).revoke(&token, None).await.expect_err("failed");
        assert_eq!(matches!(error, ProviderError::Refused { .. }), is_refused, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_answers_at_all_is_reachable() {
    for (status, is_reachable) in [(200, true), (404, true), (405, true), (500, false), (503, false)] {
        let server = MockServer::start().await;
        Mock::given(method("GET")).respond_with(ResponseTemplate::new(status)).expect(2).mount(&server).await;
        for config in [at(url_of(&server, "/token").as_str()), discovered(&server)] {
            assert_eq!(provider(config).reachable().await.is_ok(), is_reachable, "{status}");
        }
    }
    assert!(provider(config(Kind::Oauth2)).reachable().await.is_err());
}

#[tokio::test]
async fn an_online_check_passes_where_the_token_endpoint_refuses_in_oauths_words() {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(document(&server, &server.uri())).mount(&server).await;
    Mock::given(path("/discovered")).respond_with(refuses("invalid_client")).mount(&server).await;
    let findings = provider(discovered(&server)).findings().await;
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:?}");
    for body in bodies(&server).await {
        assert!(body.is_empty() || body == "grant_type=refresh_token", "{body}");
    }
}

#[tokio::test]
async fn an_online_check_tells_whether_the_issuer_knows_the_client() {
    for (answer, severity) in [("invalid_grant", Severity::Ok), ("invalid_client", Severity::Error)] {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(refuses(answer)).mount(&server).await;
        let folder = tempfile::tempdir().expect("a folder");
        let config = with_secrets(at(url_of(&server, "/token").as_str()), folder.path(), "planted");
        let findings = provider(config).findings().await;
        assert_eq!(findings.last().expect("of the client").severity, severity, "{findings:?}");
        assert!(!format!("{findings:?}").contains("planted"), "{findings:?}");
    }
}

#[tokio::test]
async fn an_online_check_names_what_is_wrong() {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(404)).mount(&server).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(302)).mount(&server).await;
    let config = ProviderConfig { token_url: Some(url_of(&server, "/token")), ..discovered(&server) };
    let findings = provider(config).findings().await;
    let severities: Vec<_> = findings.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Warn, Severity::Error], "{findings:?}");
    assert!(findings.iter().all(|finding| !finding.hint.is_empty()), "{findings:?}");
}

/// A clock that goes on by a second with every look.
#[derive(Debug)]
struct Stepping(std::sync::atomic::AtomicU64);

impl Clock for Stepping {
    fn now(&self) -> Now {
        let looked = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Now { wall: NOW, boot: Duration::from_secs(looked) }
    }

    fn boot_id(&self) -> u128 {
        1
    }
}

#[tokio::test]
async fn a_request_whose_time_is_over_when_its_connection_stands_does_not_leave() {
    let (seen, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let url = bare_server(move |mut stream| {
        let seen = seen.clone();
        async move {
            let mut first = [0; 1];
            let _ = seen.send(stream.read(&mut first).await.unwrap_or(0));
        }
    })
    .await;
    let credential = Credential::RefreshToken(Secret::new("rt-sent"));
    let mut refused = 0;
    // However many looks there are before it: at some moment the one on the open connection is the first that is too late.
    for last in 1..20 {
        let clock = Arc::new(Stepping(std::sync::atomic::AtomicU64::new(0)));
        let provider = Provider::new(at(&url), IMPATIENT, clock).expect("a provider");
        let not_after = Some(Duration::from_secs(last));
        let exchange = Exchange { credential: &credential, client: None, fresh_connection: true, not_after };
        let ExchangeOutcome::NotSent { detail } = provider.exchange(exchange).await else { break };
        if detail.contains("too long until the request could leave") {
            refused += 1;
            assert_eq!(requests.recv().await, Some(0), "a connection stood, and nothing was written");
        }
    }
    assert_eq!(refused, 1, "nothing but the look on the connection comes after the others");
}
