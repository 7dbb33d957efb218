//! The inside HTTP listener: metrics and health, which ask nobody who they are, so that they may tell no more than counts and
//! the ids of organizations that want attention; and, where it is configured, the board, which has a door of its own.

pub mod board;

use std::{fmt, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, service::Service as _};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::board::Board;
use crate::{
    keeper::Current,
    metrics::Metrics,
    serve, task,
    wire::{HEALTHZ, READYZ},
};

/// The most connections at once; a scraper and some probes need a handful.
const MAX_CONNECTIONS: usize = 512;
/// They take at most one in so many of the process's descriptors.
const SHARE_OF_DESCRIPTORS: u64 = 8;

/// Scrapes that are counted and rendered at once; others wait their turn. Each takes a thread and the memory of a thread.
const SCRAPES_AT_ONCE: usize = 2;

/// The listener cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} for metrics and health: {source}; choose another [http] listen")]
pub struct BindError {
    /// Where.
    pub addr: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// Binds the listener, so that connections wait from now on.
pub async fn bind(addr: SocketAddr) -> Result<Bound, BindError> {
    Ok(Bound(serve::bind(addr).await.map_err(|source| BindError { addr, source })?))
}

/// A listener that is ready to be served.
#[derive(Debug)]
pub struct Bound(serve::Bound);

impl Bound {
    /// Where it listens, with the port that was really bound.
    pub const fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// Serves until `shutdown`; then requests under way finish within 25 s.
    pub fn serve(self, inside: Inside, shutdown: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let routes = routes(inside);
        async move {
            let limits = serve::Limits::at_most(MAX_CONNECTIONS, SHARE_OF_DESCRIPTORS);
            serve::serve(self.0.listener, limits, shutdown, move |stream| {
                let routes = routes.clone();
                let address = stream.peer_addr().ok()?.ip();
                let answer = move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(board::Visitor(address));
                    answer(routes.clone(), request)
                };
                Some((serve::Caller::Address(address), answer))
            })
            .await;
        }
    }
}

/// The vault's figures for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaultFigures {
    /// Bytes on disk, journal included.
    pub bytes: u64,
    /// Records in it.
    pub records: u64,
    /// Answers kept that could not take their place.
    pub strays: u64,
    /// Whether it is in a database that may lose what it confirmed.
    pub asynchronous: bool,
    /// How long ago all that other workers had written was known here.
    pub news_age: Duration,
}

/// Asks the vault for its figures; `None` until it is open. It may block.
pub type AskVault = Arc<dyn Fn() -> Option<VaultFigures> + Send + Sync>;

/// What is shown inside. Cheap to clone.
#[derive(Clone)]
pub struct Inside {
    /// Set once the vault is open.
    pub keeper: Current,
    /// The metrics that are rendered.
    pub metrics: Metrics,
    /// The vault's figures.
    pub vault: AskVault,
    /// The page for people, where it is configured.
    pub board: Option<Board>,
}

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("keeper", &self.keeper).finish_non_exhaustive()
    }
}

type Routes = TowerToHyperService<Router>;

fn routes(inside: Inside) -> Routes {
    let board = inside.board.clone().map_or_else(Router::new, Board::routes);
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route(HEALTHZ, get(healthz))
        .route(READYZ, get(readyz))
        .layer(Extension(Arc::new(Semaphore::new(SCRAPES_AT_ONCE))))
        .merge(board)
        .with_state(inside);
    TowerToHyperService::new(router)
}

async fn answer(routes: Routes, request: Request<Incoming>) -> Response {
    let answered = async { routes.call(request).await.unwrap_or_else(|never| match never {}) };
    let mut response = serve::catching_panics(answered, || {
        tracing::error!("a request handler panicked; this is a fault of the worker");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
    .await;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

async fn metrics(State(inside): State<Inside>, Extension(turns): Extension<Arc<Semaphore>>) -> Response {
    let Ok(turn) = turns.acquire_owned().await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    // Counting over every organization takes too long for a thread that serves connections.
    let here = tokio::runtime::Handle::current();
    let rendered = task::spawn_blocking(move || {
        if let Some(keeper) = inside.keeper.get() {
            inside.metrics.set_census(&task::block_on(&here, keeper.census()));
            inside.metrics.set_resident(keeper.resident());
        }
        if let Some(VaultFigures { bytes, records, strays, asynchronous, news_age }) = (inside.vault)() {
            inside.metrics.set_vault(bytes, records, strays);
            inside.metrics.set_vault_shared(asynchronous, news_age);
        }
        let text = inside.metrics.render();
        // Held to here also where the caller has gone meanwhile.
        drop(turn);
        text
    });
    match rendered.await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(inside): State<Inside>) -> Response {
    let stuck = match inside.keeper.get() {
        Some(keeper) => keeper.wants_restart().await,
        None => false,
    };
    if stuck {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the vault took no writes, and its disk takes them again: restart the worker\n",
        )
            .into_response()
    } else {
        "ok\n".into_response()
    }
}

async fn readyz(State(inside): State<Inside>) -> Response {
    if inside.keeper.get().is_some_and(|keeper| keeper.is_ready()) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("listening");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("open");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("text");
        text
    }

    #[tokio::test]
    async fn metrics_and_health_are_served_before_the_vault_is_open_and_nothing_else_is() {
        let bound = bind(([127, 0, 0, 1], 0).into()).await.expect("free");
        let addr = bound.addr();
        let inside = Inside {
            keeper: Current::default(),
            metrics: Metrics::new(&[]),
            vault: Arc::new(|| {
                Some(VaultFigures {
                    bytes: 7,
                    records: 2,
                    strays: 1,
                    asynchronous: true,
                    news_age: Duration::from_millis(1500),
                })
            }),
            board: None,
        };
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(bound.serve(inside, shutdown.clone()));

        let metrics = get(addr, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4\r\n"), "{metrics}");
        assert!(metrics.contains("\nconsentry_vault_size_bytes 7\n"), "{metrics}");
        assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(addr, "/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(get(addr, "/v1/status").await.starts_with("HTTP/1.1 404"));
        assert!(get(addr, "/board").await.starts_with("HTTP/1.1 404"));

        shutdown.cancel();
        served.await.expect("no panic");
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
