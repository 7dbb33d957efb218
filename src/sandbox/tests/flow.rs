use std::{net::SocketAddr, sync::Arc};

use reqwest::{Client, StatusCode, redirect::Policy};
use rstest::rstest;
use serde_json::{Value, json};
use url::Url;

use super::START;
use crate::{
    clock::ManualClock,
    model::{Secret, Usage},
    sandbox::{Outcome, Sandbox, SandboxConfig},
};

const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const CALLBACK: &str = "http://127.0.0.1:9/cb?keep=1";
const SCOPE: &str = "dineropublicapi:read dineropublicapi:write offline_access";

/// A sandbox on a free port with a clock that stands still, and a client that follows no redirect.
pub(super) struct Bench {
    pub(super) sandbox: Sandbox,
    pub(super) clock: Arc<ManualClock>,
    pub(super) http: Client,
}

impl Bench {
    pub(super) async fn start(config: SandboxConfig) -> Self {
        // Another test may have installed it already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let clock = ManualClock::at(START);
        let config = SandboxConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..config };
        let sandbox = Sandbox::start(config, clock.clone()).await.expect("a free port");
        let http = Client::builder().redirect(Policy::none()).no_proxy().build().expect("a client");
        Self { sandbox, clock, http }
    }

    pub(super) fn at(&self, path: &str) -> Url {
        self.sandbox.url().join(path).expect("a path")
    }

    pub(super) async fn post(&self, path: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let response = self.http.post(self.at(path)).form(form).send().await.expect("an answer");
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    pub(super) async fn refresh(&self, token: &str) -> (StatusCode, Value) {
        self.post("/connect/token", &refresh_form(token)).await
    }

    pub(super) async fn get(&self, path: &str, bearer: &str) -> (StatusCode, Value) {
        let response = self.http.get(self.at(path)).bearer_auth(bearer).send().await.expect("an answer");
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    pub(super) async fn control(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response = self.http.post(self.at(path)).json(body).send().await.expect("an answer");
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    async fn authorize(&self, changes: &[(&str, &str)]) -> reqwest::Response {
        self.http.get(self.at("/connect/authorize")).query(&question(changes)).send().await.expect("an answer")
    }
}

pub(super) fn refresh_form(token: &str) -> [(&str, &str); 4] {
    [
        ("grant_type", "refresh_token"),
        ("refresh_token", token),
        ("client_id", "isv_sandbox"),
        ("client_secret", "sandbox-secret"),
    ]
}

fn one_time() -> SandboxConfig {
    SandboxConfig { usage: Usage::OneTime, ..SandboxConfig::default() }
}

/// An authorization request; a change with an empty value leaves the parameter out.
fn question<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut asked = vec![
        ("client_id", "isv_sandbox"),
        ("response_type", "code"),
        ("redirect_uri", CALLBACK),
        ("scope", SCOPE),
        ("state", "s t&\"<"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    for (name, value) in changes {
        asked.retain(|(known, _)| known != name);
        if !value.is_empty() {
            asked.push((name, value));
        }
    }
    asked
}

fn location(response: &reqwest::Response) -> Url {
    let location = response.headers().get("location").expect("a redirect").to_str().expect("text");
    Url::parse(location).expect("an address")
}

fn in_query(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn code_form(code: &str) -> [(&str, &str); 6] {
    [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", CALLBACK),
        ("code_verifier", VERIFIER),
        ("client_id", "isv_sandbox"),
        ("client_secret", "sandbox-secret"),
    ]
}

#[tokio::test]
async fn a_person_approves_and_the_code_becomes_tokens_that_rotate_until_a_replay() {
    let bench = Bench::start(one_time()).await;
    let page = bench.authorize(&[]).await;
    assert_eq!(page.status(), StatusCode::OK);
    let page = page.text().await.expect("a page");
    assert!(page.contains("Bageriet ApS") && page.contains("Tømrer Juul &amp; Søn I/S"));
    assert!(page.contains("value=\"s t&amp;&quot;&lt;\"") && !page.contains("s t&\""));

    let mut approval = question(&[]);
    approval.extend([("user", "anders"), ("decision", "approve")]);
    let approved = bench.http.post(bench.at("/connect/authorize")).form(&approval).send().await.expect("an answer");
    let back = location(&approved);
    assert_eq!((in_query(&back, "state"), in_query(&back, "keep")), (Some("s t&\"<".to_owned()), Some("1".to_owned())));
    let code = in_query(&back, "code").expect("a code");

    let (status, tokens) = bench.post("/connect/token", &code_form(&code)).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    assert_eq!(
        (&tokens["expires_in"], &tokens["token_type"], &tokens["scope"]),
        (&json!(3600), &json!("Bearer"), &json!(SCOPE))
    );
    let access = tokens["access_token"].as_str().expect("an access token");
    let (_, organizations) = bench.get("/v1/organizations", access).await;
    assert_eq!(
        organizations,
        json!([{"id": 482_001, "name": "Nordhavn Cykler ApS"}, {"id": 482_002, "name": "Nordhavn Ejendomme ApS"}])
    );
    assert_eq!(bench.get("/v1/482001/contacts", access).await.0, StatusCode::OK);
    assert_eq!(bench.get("/v1/481001/contacts", access).await.0, StatusCode::FORBIDDEN);

    let first = tokens["refresh_token"].as_str().expect("a refresh token");
    let (status, rotated) = bench.refresh(first).await;
    assert_eq!(status, StatusCode::OK);
    let second = rotated["refresh_token"].as_str().expect("a refresh token");
    assert_ne!(first, second);
    for dead in [first, second] {
        assert_eq!(bench.refresh(dead).await, (StatusCode::BAD_REQUEST, json!({"error": "invalid_grant"})));
    }
    assert_eq!(bench.get("/v1/organizations", access).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.sandbox.issuer().replays(), 1);
    bench.sandbox.stop().await;
}

#[tokio::test]
async fn form_post_answers_with_a_form_and_prompt_none_needs_no_person() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let silent = [("prompt", "none"), ("login_hint", "birgit"), ("response_mode", "form_post")];
    let response = bench.authorize(&silent).await;
    assert_eq!(response.status(), StatusCode::OK);
    let page = response.text().await.expect("a page");
    assert!(page.contains("<form method=\"post\" action=\"http://127.0.0.1:9/cb?keep=1\">"), "{page}");
    assert!(page.contains("name=\"code\"") && page.contains("name=\"state\" value=\"s t&amp;&quot;&lt;\""));

    let nobody = bench.authorize(&[("prompt", "none"), ("login_hint", "nobody")]).await;
    assert_eq!(in_query(&location(&nobody), "error").as_deref(), Some("login_required"));
}

#[rstest]
#[case::refused(&[("decision", "refuse")], "access_denied")]
#[case::another_response_type(&[("response_type", "token")], "unsupported_response_type")]
#[case::no_response_type(&[("response_type", "")], "invalid_request")]
#[case::openid_is_off(&[("scope", "openid")], "invalid_scope")]
#[case::plain_pkce(&[("code_challenge_method", "plain")], "invalid_request")]
#[case::a_short_challenge(&[("code_challenge", "abc")], "invalid_request")]
#[tokio::test]
async fn errors_go_back_to_the_client_with_its_state(#[case] changes: &[(&str, &str)], #[case] error: &str) {
    let bench = Bench::start(SandboxConfig::default()).await;
    let back = location(&bench.authorize(changes).await);
    assert_eq!(in_query(&back, "error").as_deref(), Some(error));
    assert_eq!(in_query(&back, "state").as_deref(), Some("s t&\"<"));
    assert_eq!(in_query(&back, "code"), None);
}

#[rstest]
#[case::another_client(&[("client_id", "<i>")])]
#[case::no_redirect(&[("redirect_uri", "")])]
#[case::a_script(&[("redirect_uri", "javascript:alert(1)")])]
#[case::http_elsewhere(&[("redirect_uri", "http://example.com/cb")])]
#[case::a_name_that_begins_like_loopback(&[("redirect_uri", "http://127.0.0.1.example.com/cb")])]
#[case::a_fragment(&[("redirect_uri", "https://example.com/cb#x")])]
#[tokio::test]
async fn what_could_go_to_a_stranger_is_shown_to_the_person_instead(#[case] changes: &[(&str, &str)]) {
    let bench = Bench::start(SandboxConfig::default()).await;
    let response = bench.authorize(changes).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(response.headers().get("location").is_none());
}

#[tokio::test]
async fn the_client_may_authenticate_by_basic_and_a_wrong_secret_is_a_400() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let token = bench.sandbox.issuer().new_consent("birgit", Usage::Reuse, &[]);
    let form = [("grant_type", "refresh_token"), ("refresh_token", token.expose())];
    for (secret, status) in
        [("sandbox-secret", StatusCode::OK), ("sandbox%2Dsecret", StatusCode::OK), ("wrong", StatusCode::BAD_REQUEST)]
    {
        let request = bench.http.post(bench.at("/connect/token")).basic_auth("isv_sandbox", Some(secret)).form(&form);
        assert_eq!(request.send().await.expect("an answer").status(), status, "{secret}");
    }
    let (status, error) = bench.post("/connect/token", &form).await;
    assert_eq!((status, error), (StatusCode::BAD_REQUEST, json!({"error": "invalid_client"})));
    let (_, error) = bench.post("/connect/token", &[("grant_type", "password")]).await;
    assert_eq!(error, json!({"error": "unsupported_grant_type"}));
    let twice = [("grant_type", "refresh_token"), ("grant_type", "refresh_token")];
    assert_eq!(bench.post("/connect/token", &twice).await.1, json!({"error": "invalid_request"}));
}

#[tokio::test]
async fn revocation_ends_a_consent_over_http() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let token = bench.sandbox.issuer().new_consent("birgit", Usage::Reuse, &[]);
    let response = bench
        .http
        .post(bench.at("/connect/revocation"))
        .basic_auth("isv_sandbox", Some("sandbox-secret"))
        .form(&[("token", token.expose()), ("token_type_hint", "refresh_token")])
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(bench.refresh(token.expose()).await.1, json!({"error": "invalid_grant"}));
}

#[tokio::test]
async fn an_api_key_is_exchanged_as_dinero_documents_it() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let (status, made) = bench.control("/sandbox/api-keys", &json!({"organization": "499001"})).await;
    assert_eq!(status, StatusCode::CREATED);
    let key = made["api_key"].as_str().expect("a key");
    let exchange = |key: String, secret: &'static str| {
        let form = [
            ("grant_type", "password".to_owned()),
            ("scope", "read write".to_owned()),
            ("username", key.clone()),
            ("password", key),
        ];
        bench
            .http
            .post(bench.at("/dineroapi/oauth/token"))
            .basic_auth("personal_sandbox", Some(secret))
            .form(&form)
            .send()
    };
    let tokens: Value =
        exchange(key.to_owned(), "personal-secret").await.expect("an answer").json().await.expect("JSON");
    assert_eq!(tokens["refresh_token"], json!(""));
    let access = tokens["access_token"].as_str().expect("an access token");
    assert_eq!(bench.get("/v1/organizations", access).await.1, json!([{"id": 499_001, "name": "Organization 499001"}]));

    for (key, secret, error) in [("wrong", "personal-secret", "invalid_grant"), (key, "wrong", "invalid_client")] {
        let refused = exchange(key.to_owned(), secret).await.expect("an answer");
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        let body: Value = refused.json().await.expect("JSON");
        assert_eq!(body, json!({"message": format!("{{\"error\":\"{error}\"}}")}));
    }
}

#[tokio::test]
async fn discovery_names_the_endpoints_that_are_there() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let (_, found) = bench.get("/.well-known/openid-configuration", "").await;
    let base = format!("http://{}", bench.sandbox.addr());
    assert_eq!(found["issuer"], json!(base));
    for (endpoint, path) in
        [("token_endpoint", "token"), ("authorization_endpoint", "authorize"), ("revocation_endpoint", "revocation")]
    {
        assert_eq!(found[endpoint], json!(format!("{base}/connect/{path}")));
    }
}

#[tokio::test]
async fn access_ends_when_its_hour_is_over() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let token = bench.sandbox.issuer().new_consent("birgit", Usage::Reuse, &[]);
    let (_, tokens) = bench.refresh(token.expose()).await;
    let access = tokens["access_token"].as_str().expect("an access token");
    assert_eq!(bench.get("/v1/organizations", access).await.0, StatusCode::OK);
    bench.clock.advance(super::seconds(3600));
    assert_eq!(bench.get("/v1/organizations", access).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.get("/v1/organizations", "nonsense").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_control_surface_makes_consents_shows_the_record_and_withdraws() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let wanted =
        json!({"user": "<b>", "usage": "one-time", "organizations": ["A-1"], "granted_at": "2025-06-01T00:00:00Z"});
    let (status, made) = bench.control("/sandbox/consents", &wanted).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let token = made["refresh_token"].as_str().expect("a refresh token").to_owned();
    let standing =
        async |token: String| bench.control("/sandbox/alive", &json!({ "token": token })).await.1["standing"].clone();
    assert_eq!(standing(token.clone()).await, json!("live"));
    let (_, tokens) = bench.refresh(&token).await;
    assert_eq!(standing(token.clone()).await, json!("spent"));
    assert_eq!(standing(tokens["access_token"].as_str().expect("a token").to_owned()).await, json!("live"));

    assert_eq!(bench.control("/sandbox/withdraw", &json!({"user": "<b>"})).await.0, StatusCode::NO_CONTENT);
    assert_eq!(bench.control("/sandbox/withdraw", &json!({"user": "nobody"})).await.0, StatusCode::NOT_FOUND);
    let fresh = tokens["refresh_token"].as_str().expect("a token").to_owned();
    assert_eq!(standing(fresh).await, json!("withdrawn"));

    let (_, record) = bench.get("/sandbox/record?limit=1", "").await;
    assert_eq!(record["exchanges"], json!(1));
    assert_eq!(record["entries"][0]["grant_type"], json!("withdrawal"));
    assert_eq!(record["entries"][0]["killed"], json!([0]));
    let page = bench.http.get(bench.at("/")).send().await.expect("an answer").text().await.expect("a page");
    assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"));
}

#[tokio::test]
async fn no_secret_appears_in_the_record_or_in_debug() {
    let bench = Bench::start(one_time()).await;
    let issuer = bench.sandbox.issuer();
    let token = issuer.new_consent("birgit", Usage::OneTime, &[]);
    let (_, tokens) = bench.refresh(token.expose()).await;
    let record = serde_json::to_string(&issuer.record()).expect("JSON");
    let seen = format!("{record}{issuer:?}{:?}", bench.sandbox);
    assert!(seen.contains("birgit"));
    let given = [tokens["refresh_token"].as_str(), tokens["access_token"].as_str()];
    for secret in [Some(token.expose()), given[0], given[1], Some("sandbox-secret")] {
        assert!(!seen.contains(secret.expect("a token")));
    }
    assert_eq!(issuer.record()[0].result, Outcome::Granted);
}

#[tokio::test]
async fn it_refuses_to_listen_where_others_can_reach_it() {
    let config = SandboxConfig { listen: SocketAddr::from(([0, 0, 0, 0], 0)), ..SandboxConfig::default() };
    let refused = Sandbox::start(config.clone(), ManualClock::at(START)).await;
    assert_eq!(refused.expect_err("refused").kind(), std::io::ErrorKind::InvalidInput);
    let allowed = Sandbox::start(SandboxConfig { allow_remote: true, ..config }, ManualClock::at(START)).await;
    allowed.expect("allowed").stop().await;
}

#[tokio::test]
async fn the_clients_secrets_can_be_replaced_while_it_runs() {
    let bench = Bench::start(SandboxConfig::default()).await;
    let token: Secret = bench.sandbox.issuer().new_consent("birgit", Usage::Reuse, &[]);
    let body = json!({"secrets": ["new"]});
    let put = bench.http.put(bench.at("/sandbox/client-secrets")).json(&body).send().await.expect("an answer");
    assert_eq!(put.status(), StatusCode::NO_CONTENT);
    assert_eq!(bench.refresh(token.expose()).await.1, json!({"error": "invalid_client"}));
}
