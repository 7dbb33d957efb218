use std::{io, net::SocketAddr};

use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::{Pages, answer};
use crate::serve;

/// The most connections at once. A person needs one or two, for a minute.
const MAX_CONNECTIONS: usize = 1024;
/// They take at most one in so many of the process's descriptors: strangers must not keep the worker from its issuers.
const SHARE_OF_DESCRIPTORS: u64 = 8;

/// The listener cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} for the consent pages: {source}; choose another [consent] listen")]
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

    /// Serves until `shutdown`; then requests under way, and consents that are being stored, finish within 25 s.
    pub async fn serve(self, pages: Pages, shutdown: CancellationToken) {
        let limits = serve::Limits::at_most(MAX_CONNECTIONS, SHARE_OF_DESCRIPTORS);
        let greeted = pages.clone();
        let deadline = serve::serve(self.0.listener, limits, shutdown, move |stream| {
            let (pages, address) = (greeted.clone(), stream.peer_addr().ok()?.ip());
            Some((serve::Caller::Address(address), move |request| answer::answer(pages.clone(), address, request)))
        })
        .await;
        pages.0.ending.close();
        if timeout_at(deadline, pages.0.ending.wait()).await.is_err() {
            tracing::warn!(consents = pages.0.ending.len(), "consents were still being stored");
        }
    }
}
