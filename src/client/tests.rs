use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::*;
use crate::model::Labels;

/// A worker that answers each request on a connection with the next of `answers`, and then hangs up.
fn serve(path: &Path, answers: Vec<Vec<String>>) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(path).expect("bound");
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        for answers in answers {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            for answer in answers {
                if read_request(&mut stream).await {
                    counted.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(answer.as_bytes()).await.expect("written");
                }
            }
        }
    });
    requests
}

async fn read_request(stream: &mut UnixStream) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.expect("read") == 0 {
            return false;
        }
        seen.push(byte[0]);
    }
    true
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"e1\"\r\nretry-after: 7\r\n\r\n{body}", body.len())
}

const TOKEN: &str = r#"{"organization":"1","provider":"p","access_token":"a","token_type":"Bearer","scope":null,
    "expires_at":"2026-01-01T00:00:00Z","expires_in":5,"consent_expires_at":null,"degraded":null}"#;

fn id() -> OrganizationId {
    "1".parse().expect("an id")
}

#[tokio::test]
async fn one_connection_serves_many_calls_and_a_stale_one_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.sock");
    let requests =
        serve(&path, vec![vec![answer("200 OK", TOKEN), answer("200 OK", TOKEN)], vec![answer("200 OK", TOKEN)]]);
    let client = Client::new(&path);
    for _ in 0..3 {
        let fetched = client.token(&id(), Duration::ZERO).await.expect("a token");
        assert_eq!((fetched.token.access_token.as_str(), fetched.etag.as_str()), ("a", "\"e1\""));
    }
    assert_eq!(requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_problem_is_told_with_its_code_and_when_to_try_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.sock");
    let body = r#"{"type":"t","title":"x","status":409,"detail":"paused by you","code":"paused"}"#;
    serve(&path, vec![vec![answer("409 Conflict", body)]]);
    let error = Client::new(&path).token(&id(), Duration::ZERO).await.expect_err("refused");
    assert_eq!((error.code(), error.to_string().as_str()), (Some(wire::Code::Paused), "paused by you"));
    assert!(matches!(error, ClientError::Problem { retry_after: Some(after), .. } if after == Duration::from_secs(7)));
}

#[tokio::test]
async fn an_answer_beyond_the_cap_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.sock");
    serve(&path, vec![vec![answer("200 OK", &"x".repeat(MAX_ANSWER + 1))]]);
    let error = Client::new(&path).status().await.expect_err("too long");
    assert!(matches!(error, ClientError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_quoted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.sock");
    serve(&path, vec![vec![answer("200 OK", r#"{"organization":1,"access_token":"hunter2"}"#)]]);
    let error = Client::new(&path).token(&id(), Duration::ZERO).await.expect_err("nonsense");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_socket_without_a_worker_says_how_to_start_one() {
    let error = Client::new("/nonexistent/consentry.sock").status().await.expect_err("nobody");
    assert!(matches!(&error, ClientError::NotRunning { .. }) && error.to_string().contains("consentry run"), "{error}");
}

#[tokio::test]
async fn a_forced_refresh_is_not_sent_twice_after_it_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.sock");
    // The first connection answers a fetch, takes the refresh and hangs up without an answer.
    let requests = serve(&path, vec![vec![answer("200 OK", TOKEN), String::new()], vec![answer("200 OK", TOKEN)]]);
    let client = Client::new(&path);
    client.token(&id(), Duration::ZERO).await.expect("a token");
    client.refresh(&id(), None).await.expect_err("hung up");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[test]
fn a_list_asks_with_every_filter_that_is_set() {
    let client = Client::new("/x");
    let pages = client.list(ListFilter {
        state: Some("failing".into()),
        provider: Some("visma-connect".parse().expect("a name")),
        expires_within: Some(Duration::from_mins(1)),
        unused_for: Some(Duration::from_secs(5)),
        labels: Labels::from([("plan".into(), "big & small".into())]),
        page: Some(2),
    });
    assert_eq!(
        pages.query(),
        "limit=2&state=failing&provider=visma-connect&expires_within=60s&unused_for=5s&label=plan%3Dbig+%26+small"
    );
}
