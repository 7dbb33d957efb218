//! What an exchange ends in, for every way in which a server can answer or fail to.

use rstest::rstest;
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{method, path},
};

use super::*;
use crate::{model::NoAnswer, provider::transport::MAX_TOKEN_ANSWER};

async fn outcome_of(response: ResponseTemplate) -> ExchangeOutcome {
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(response).expect(1).mount(&server).await;
    exchange(&provider(at(url_of(&server, "/token").as_str()))).await
}

fn doubt(outcome: &ExchangeOutcome) -> NoAnswer {
    match outcome {
        ExchangeOutcome::Unknown { why, .. } => *why,
        other => panic!("not in doubt: {other:?}"),
    }
}

#[tokio::test]
async fn a_grant_is_read_with_numbers_as_text_and_unknown_members() {
    let body = serde_json::json!({
        "access_token": "at", "expires_in": "3600", "token_type": "Bearer", "refresh_token": "rt2",
        "scope": "a b", "extra": {"x": [1]},
    });
    let ExchangeOutcome::Granted(answer) = outcome_of(ResponseTemplate::new(200).set_body_json(body)).await else {
        panic!("granted")
    };
    assert_eq!(answer.access_token.expose(), "at");
    assert_eq!(answer.expires_in, Some(Duration::from_hours(1)));
    assert_eq!(answer.refresh_token.expect("rotated").expose(), "rt2");
    assert_eq!(answer.scope.as_deref(), Some("a b"));
}

#[tokio::test]
async fn too_many_requests_carry_their_wait() {
    for (header, seconds) in [("30", 30), ("Sun, 06 Nov 1994 08:49:37 GMT", 60), ("86400", 3600)] {
        let response = ResponseTemplate::new(429).insert_header("Retry-After", header);
        match outcome_of(response).await {
            ExchangeOutcome::RateLimited { retry_after } => {
                assert_eq!(retry_after, Some(Duration::from_secs(seconds)), "{header}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_unavailable_server_carries_its_wait_whatever_its_body() {
    let response = ResponseTemplate::new(503).insert_header("Retry-After", "7").set_body_string("<html>busy</html>");
    let outcome = outcome_of(response).await;
    assert!(
        matches!(outcome, ExchangeOutcome::Unavailable { retry_after: Some(wait) } if wait.as_secs() == 7),
        "{outcome:?}"
    );
}

#[rstest]
#[case(500, NoAnswer::ServerError)]
#[case(502, NoAnswer::ServerError)]
#[case(504, NoAnswer::ServerError)]
#[case(200, NoAnswer::Nonsense)]
#[case(404, NoAnswer::Nonsense)]
#[case(403, NoAnswer::Nonsense)]
#[tokio::test]
async fn a_page_for_people_leaves_a_doubt(#[case] status: u16, #[case] why: NoAnswer) {
    let response = ResponseTemplate::new(status).set_body_raw("<html>oops</html>", "text/html");
    assert_eq!(doubt(&outcome_of(response).await), why);
}

#[tokio::test]
async fn an_issuers_no_is_sorted_by_its_code() {
    let refusal = |status, code| ResponseTemplate::new(status).set_body_json(serde_json::json!({"error": code}));
    assert!(matches!(outcome_of(refusal(400, "invalid_grant")).await, ExchangeOutcome::Refused { .. }));
    assert!(matches!(outcome_of(refusal(400, "invalid_client")).await, ExchangeOutcome::ClientRefused { .. }));
    assert!(matches!(outcome_of(refusal(401, "invalid_client")).await, ExchangeOutcome::ClientRefused { .. }));
    assert_eq!(doubt(&outcome_of(refusal(400, "server_error")).await), NoAnswer::ServerError);
}

#[rstest]
#[tokio::test]
async fn a_redirect_is_not_followed(#[values(301, 302, 303, 307, 308)] status: u16) {
    let server = MockServer::start().await;
    let elsewhere = ResponseTemplate::new(status).insert_header("Location", url_of(&server, "/elsewhere").as_str());
    Mock::given(path("/token")).respond_with(elsewhere).expect(1).mount(&server).await;
    Mock::given(path("/elsewhere")).respond_with(ResponseTemplate::new(200)).expect(0).mount(&server).await;
    let outcome = exchange(&provider(at(url_of(&server, "/token").as_str()))).await;
    assert_eq!(doubt(&outcome), NoAnswer::Nonsense);
}

#[tokio::test]
async fn a_body_over_the_cap_is_nonsense_announced_or_not() {
    let padding = " ".repeat(MAX_TOKEN_ANSWER);
    let body = format!(r#"{{"access_token":"a"}}{padding}"#);
    assert_eq!(doubt(&outcome_of(ResponseTemplate::new(200).set_body_string(body)).await), NoAnswer::Nonsense);

    let url = bare_server(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        // Endless: only the cap ends it.
        while stream.write_all(&[b' '; 4096]).await.is_ok() {}
    })
    .await;
    assert_eq!(doubt(&exchange(&provider(at(&url))).await), NoAnswer::Nonsense);
}

#[tokio::test]
async fn a_truncated_body_is_a_broken_answer() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"access_token\":\"a\"",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"acc",
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{\"error\":\"invalid_grant\"}",
        "HTTP/1.1 200 OK\r\nContent-",
        "",
    ] {
        let url = answering(bytes).await;
        assert_eq!(doubt(&exchange(&provider(at(&url))).await), NoAnswer::Broken, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_status_that_says_enough_needs_no_body() {
    let url = answering("HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\ncut").await;
    assert!(matches!(exchange(&provider(at(&url))).await, ExchangeOutcome::Unavailable { .. }));
    let url = answering("HTTP/1.1 429 Slow\r\nContent-Length: 100\r\n\r\ncut").await;
    assert!(matches!(exchange(&provider(at(&url))).await, ExchangeOutcome::RateLimited { .. }));
}

#[tokio::test]
async fn what_is_not_http_is_a_broken_answer() {
    let url = answering("SSH-2.0-OpenSSH_9.2\r\n").await;
    assert_eq!(doubt(&exchange(&provider(at(&url))).await), NoAnswer::Broken);
}

#[tokio::test]
async fn a_reset_after_the_request_is_a_broken_answer() {
    let url = bare_server(|mut stream| async move {
        read_request(&mut stream).await;
        reset(stream);
    })
    .await;
    assert_eq!(doubt(&exchange(&provider(at(&url))).await), NoAnswer::Broken);
}

#[tokio::test]
async fn a_connection_that_closes_before_the_request_is_read_leaves_a_doubt() {
    let url = bare_server(|stream| async move { reset(stream) }).await;
    let provider = provider(at(&url));
    // The connection stood, so nobody can tell what was written to it. Where the reset came before even that, the
    // connection failed and nothing was sent.
    let outcome = exchange(&provider).await;
    let is_honest =
        matches!(outcome, ExchangeOutcome::Unknown { why: NoAnswer::Broken, .. } | ExchangeOutcome::NotSent { .. });
    assert!(is_honest, "{outcome:?}");
}

/// Closes with RST instead of FIN.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("set");
    drop(stream);
}

#[tokio::test]
async fn an_answer_that_never_comes_or_never_ends_is_a_timeout() {
    for start in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"access_token\":"] {
        let url = bare_server(move |mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(start.as_bytes()).await;
            std::future::pending::<()>().await;
        })
        .await;
        let provider = provider_at(at(&url), IMPATIENT, &ManualClock::at(NOW));
        assert_eq!(doubt(&exchange(&provider).await), NoAnswer::Timeout, "{start:?}");
    }
}

#[tokio::test]
async fn nothing_is_sent_where_nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let outcome = exchange(&provider(at(&format!("http://{address}/token")))).await;
    assert!(matches!(outcome, ExchangeOutcome::NotSent { .. }), "{outcome:?}");
}

#[tokio::test]
async fn nothing_is_sent_where_a_name_does_not_resolve() {
    let outcome = exchange(&provider(at("https://does-not-exist.invalid/token"))).await;
    assert!(matches!(outcome, ExchangeOutcome::NotSent { .. }), "{outcome:?}");
}

#[tokio::test]
async fn nothing_is_sent_where_tls_fails_or_hangs() {
    let plain = answering("HTTP/1.1 200 OK\r\n\r\n").await.replace("http:", "https:");
    let silent = bare_server(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let silent = silent.await.replace("http:", "https:");
    for url in [plain, silent] {
        let provider = provider_at(at(&url), IMPATIENT, &ManualClock::at(NOW));
        let outcome = exchange(&provider).await;
        assert!(matches!(outcome, ExchangeOutcome::NotSent { .. }), "{url}: {outcome:?}");
    }
}

#[tokio::test]
async fn nothing_is_sent_without_an_endpoint_or_a_needed_secret() {
    for config in [config(Kind::Oauth2), config(Kind::VismaConnect), config(Kind::DineroPersonal)] {
        let kind = config.kind;
        let outcome = exchange(&provider(config)).await;
        assert!(matches!(outcome, ExchangeOutcome::NotSent { .. }), "{kind:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_request_is_sent_once_even_if_its_connection_dies() {
    let (count, mut counted) = tokio::sync::mpsc::unbounded_channel();
    let url = bare_server(move |mut stream| {
        let count = count.clone();
        async move {
            let request = read_request(&mut stream).await;
            count.send(request).expect("counted");
        }
    })
    .await;
    let provider = provider(at(&url));
    assert_eq!(doubt(&exchange(&provider).await), NoAnswer::Broken);
    assert!(counted.try_recv().expect("one request").contains("refresh_token=rt-sent"));
    assert!(counted.try_recv().is_err());
}
