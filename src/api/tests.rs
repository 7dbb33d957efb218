mod fuzz;

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::*;
use crate::clock::SystemClock;

/// A served socket without a keeper, as it is while the vault is being opened.
struct Starting {
    path: PathBuf,
    metrics: Metrics,
    api: Api,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
    _folder: TempDir,
}

/// Serves with rules that trust nobody but `own_uid` and root.
fn starting(own_uid: u32) -> Starting {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let bound = ApiServer::bind(&SocketConfig { path: path.clone(), mode: 0o600, group: None }).expect("free");
    let metrics = Metrics::new(&[]);
    let access = Access::new(Vec::new(), own_uid);
    let api = Api::new(Current::default(), access, metrics.clone(), Arc::new(SystemClock::new()));
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(bound.serve(api.clone(), Handle::current(), shutdown.clone()));
    Starting { path, metrics, api, shutdown, served, _folder: folder }
}

impl Starting {
    async fn ask(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.path).await.expect("listening");
        let head = format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("open");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("text");
        text
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[tokio::test]
async fn a_starting_worker_is_alive_but_gives_nothing() {
    let starting = starting(own_uid());
    assert!(starting.ask("GET /healthz").await.starts_with("HTTP/1.1 200"));
    for request in ["GET /readyz", "GET /v1/status", "GET /v1/organizations", "GET /v1/organizations/1/token"] {
        let answer = starting.ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{request}: {answer}");
        assert!(answer.contains("retry-after: 1\r\n") && answer.contains("\"code\":\"starting\""), "{answer}");
        assert!(answer.contains("cache-control: no-store\r\n"), "{answer}");
    }
    assert!(starting.metrics.render().contains("consentry_fetch_requests_total{outcome=\"starting\"} 1\n"));
}

#[tokio::test]
async fn what_does_not_exist_is_said_in_problem_documents() {
    let starting = starting(own_uid());
    for path in
        ["/", "/v1", "/v1/organizations/", "/v1/organizations/1/nothing", "/v1/eventz", "/v1/organizations/1/token/"]
    {
        let answer = starting.ask(&format!("GET {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("\"code\":\"not_found\""), "{path}: {answer}");
    }
    let answer = starting.ask("POST /v1/organizations/1").await;
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("\"code\":\"method_not_allowed\""), "{answer}");
    let allow = answer.lines().find_map(|line| line.strip_prefix("allow: ")).expect("an Allow header");
    assert_eq!(allow, "GET,HEAD,PUT,DELETE");
    let answer = starting.ask("GET /v1/organizations/a%2Fb/token").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("\"code\":\"bad_request\""), "{answer}");
}

#[tokio::test]
async fn a_shutdown_ends_idle_connections_and_removes_the_socket() {
    let starting = starting(own_uid());
    let mut idle = UnixStream::connect(&starting.path).await.expect("listening");
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("open");
    let mut byte = [0];
    idle.read_exact(&mut byte).await.expect("an answer");
    starting.shutdown.cancel();
    starting.served.await.expect("no panic");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.expect("closed in order");
    assert!(!starting.path.exists());
}

#[tokio::test]
async fn a_change_goes_on_without_its_caller_and_is_waited_for() {
    let starting = starting(own_uid());
    let (begin, under_way) = tokio::sync::oneshot::channel();
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let api = starting.api.clone();
    let (done, ended) = tokio::sync::oneshot::channel();
    let caller = tokio::spawn(async move {
        api.change(async move {
            begin.send(()).expect("awaited");
            finished.await.expect("told");
            done.send(()).expect("awaited");
            Ok::<_, problems::Refusal>(())
        })
        .await
    });
    under_way.await.expect("begun");
    caller.abort();
    starting.shutdown.cancel();
    tokio::task::yield_now().await;
    assert!(!starting.served.is_finished());
    finish.send(()).expect("awaited");
    ended.await.expect("done without its caller");
    tokio::time::timeout(Duration::from_secs(20), starting.served).await.expect("ends").expect("no panic");
}
