use std::time::Duration;

use reqwest::StatusCode;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::flow::{Bench, refresh_form};
use crate::{
    model::{Secret, Usage},
    sandbox::{FaultKind, SandboxConfig, Standing},
};

async fn struck_by(fault: &Value) -> (Bench, Secret) {
    let bench = Bench::start(SandboxConfig::default()).await;
    let token = bench.sandbox.issuer().new_consent("birgit", Usage::OneTime, &[]);
    let (status, faults) = bench.control("/sandbox/faults", fault).await;
    assert_eq!(status, StatusCode::CREATED, "{faults}");
    (bench, token)
}

fn standing(bench: &Bench, token: &Secret) -> Standing {
    bench.sandbox.issuer().standing(super::START, token)
}

/// Sends a refresh on a connection of its own and reads until the other side closes it.
async fn bytes_until_closed(bench: &Bench, token: &Secret) -> Vec<u8> {
    let body: String =
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(refresh_form(token.expose())).finish();
    let request = format!(
        "POST /connect/token HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(bench.sandbox.addr()).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.expect("closed in order");
    received
}

#[rstest]
#[case::outage("outage", 503, Some("5"))]
#[case::rate_limit("rate_limit", 429, Some("5"))]
#[case::error_500("error_500", 500, None)]
#[case::html("html", 502, None)]
#[case::invalid_client("invalid_client", 400, None)]
#[tokio::test]
async fn an_answer_in_the_way_spends_nothing(
    #[case] kind: &str,
    #[case] status: u16,
    #[case] retry_after: Option<&str>,
) {
    let (bench, token) = struck_by(&json!({"fault": kind, "times": 1})).await;
    let request = bench.http.post(bench.at("/connect/token")).form(&refresh_form(token.expose()));
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers().get("retry-after").and_then(|value| value.to_str().ok()), retry_after);
    assert_eq!(standing(&bench, &token), Standing::Live);
    assert_eq!(bench.sandbox.issuer().exchanges(), 0);
    let entries = bench.sandbox.issuer().record();
    assert_eq!((entries[0].user.as_deref(), entries[0].result.to_string().as_str()), (Some("birgit"), "not_processed"));
    assert_eq!(bench.refresh(token.expose()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_lost_answer_closes_the_connection_without_a_byte_and_has_spent_the_token() {
    let (bench, token) = struck_by(&json!({"fault": "drop_after", "times": 1})).await;
    assert_eq!(bytes_until_closed(&bench, &token).await, b"");
    assert_eq!(standing(&bench, &token), Standing::Spent);
    assert_eq!(bench.sandbox.issuer().record()[0].fault, Some(FaultKind::DropAfter));
}

#[tokio::test]
async fn a_connection_dropped_before_has_spent_nothing() {
    let (bench, token) = struck_by(&json!({"fault": "drop_before", "times": 1})).await;
    assert_eq!(bytes_until_closed(&bench, &token).await, b"");
    assert_eq!(standing(&bench, &token), Standing::Live);
}

#[rstest]
#[case::before(false, Standing::Live)]
#[case::after(true, Standing::Spent)]
#[tokio::test]
async fn a_hanging_request_is_never_answered(#[case] processed: bool, #[case] expected: Standing) {
    let (bench, token) = struck_by(&json!({"fault": "hang", "times": 1, "processed": processed})).await;
    let request = bench.http.post(bench.at("/connect/token")).form(&refresh_form(token.expose()));
    let error = request.timeout(Duration::from_millis(200)).send().await.expect_err("no answer");
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(standing(&bench, &token), expected);
    bench.sandbox.stop().await;
}

#[tokio::test]
async fn garbage_is_a_success_that_cannot_be_read() {
    let (bench, token) = struck_by(&json!({"fault": "garbage", "times": 1})).await;
    assert_eq!(bench.refresh(token.expose()).await, (StatusCode::OK, Value::Null));
    assert_eq!(standing(&bench, &token), Standing::Spent);
}

#[tokio::test]
async fn a_slow_answer_comes_late_and_whole() {
    let (bench, token) = struck_by(&json!({"fault": "slow", "times": 1, "delay_ms": 50})).await;
    let (status, tokens) = bench.refresh(token.expose()).await;
    assert_eq!(status, StatusCode::OK);
    assert!(tokens["refresh_token"].is_string());
}

#[tokio::test]
async fn answers_can_be_odd_in_three_ways() {
    let (bench, token) = struck_by(&json!({"fault": "no_expires_in", "times": 1})).await;
    for fault in ["string_expires_in", "omit_refresh_token"] {
        bench.control("/sandbox/faults", &json!({"fault": fault, "times": 1})).await;
    }
    let (_, first) = bench.refresh(token.expose()).await;
    assert_eq!(first.get("expires_in"), None);
    let (_, second) = bench.refresh(first["refresh_token"].as_str().expect("a token")).await;
    assert_eq!(second["expires_in"], json!("3600"));
    let kept = second["refresh_token"].as_str().expect("a token");
    let (status, third) = bench.refresh(kept).await;
    assert_eq!((status, third.get("refresh_token")), (StatusCode::OK, None));
    assert_eq!(bench.refresh(kept).await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_outage_can_be_everywhere_and_can_be_cleared() {
    let (bench, token) = struck_by(&json!({"fault": "outage", "everywhere": true})).await;
    assert_eq!(bench.refresh(token.expose()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bench.get("/.well-known/openid-configuration", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let cleared = bench.http.delete(bench.at("/sandbox/faults")).send().await.expect("an answer");
    assert_eq!(cleared.status(), StatusCode::NO_CONTENT);
    assert_eq!(bench.refresh(token.expose()).await.0, StatusCode::OK);
}

#[rstest]
#[case::unknown(json!({"fault": "earthquake"}))]
#[case::a_misspelled_key(json!({"fault": "outage", "time": 1}))]
#[case::luck_out_of_range(json!({"fault": "outage", "probability": 1.5}))]
#[case::a_choice_that_is_not_open(json!({"fault": "outage", "processed": true}))]
#[tokio::test]
async fn a_fault_that_makes_no_sense_is_refused(#[case] fault: Value) {
    let bench = Bench::start(SandboxConfig::default()).await;
    assert_eq!(bench.control("/sandbox/faults", &fault).await.0, StatusCode::BAD_REQUEST);
    assert!(bench.sandbox.issuer().faults().is_empty());
}
