use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::Service as _, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};
use url::Url;

use super::{
    config::SandboxConfig,
    http::{self, App, DropConnection},
    issuer::Issuer,
};
use crate::clock::SharedClock;

/// How many connections are open at once; others wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after `accept` failed, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The stand-in issuer behind HTTP. It stops when it is dropped.
#[derive(Debug)]
pub struct Sandbox {
    addr: SocketAddr,
    url: Url,
    issuer: Issuer,
    task: JoinHandle<()>,
}

impl Sandbox {
    /// Starts to listen; returns when requests are accepted. It refuses an address that others can reach unless
    /// `allow_remote` is set.
    pub async fn start(config: SandboxConfig, clock: SharedClock) -> io::Result<Self> {
        if !config.listen.ip().is_loopback() && !config.allow_remote {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the sandbox hands out tokens to everybody who reaches it, so it listens on loopback only; {} is not, \
                     and needs to be allowed explicitly",
                    config.listen.ip()
                ),
            ));
        }
        let listener = TcpListener::bind(config.listen).await?;
        let addr = listener.local_addr()?;
        let url = match &config.public_url {
            Some(url) => url.clone(),
            None => Url::parse(&format!("http://{addr}")).map_err(io::Error::other)?,
        };
        let issuer = Issuer::named(&config, Arc::clone(&clock), url.as_str().trim_end_matches('/'))?;
        let router = http::router(App::new(issuer.clone(), clock, &url, config.latency));
        let task = tokio::spawn(accept(listener, router));
        Ok(Self { addr, url, issuer, task })
    }

    /// Where it listens.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How clients reach it; also the base of the endpoints in its discovery document.
    pub fn url(&self) -> Url {
        self.url.clone()
    }

    /// The issuer behind it.
    pub const fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Stops at once: connections are closed, answered or not.
    pub async fn stop(mut self) {
        self.task.abort();
        let _cancelled = (&mut self.task).await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts until it is aborted; the connections go with it, because the set that holds them does.
async fn accept(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let router = router.clone();
                connections.spawn(async move {
                    serve(stream, router).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the sandbox could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The error that makes hyper close a connection without writing a byte of an answer.
#[derive(Debug, thiserror::Error)]
#[error("a fault closes the connection")]
struct Dropped;

async fn serve(stream: TcpStream, router: Router) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let answer = router.call(request);
        async move {
            let response: Result<Response, Infallible> = answer.await;
            let Ok(response) = response;
            if response.extensions().get::<DropConnection>().is_some() { Err(Dropped) } else { Ok(response) }
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the sandbox ended early");
    }
}
