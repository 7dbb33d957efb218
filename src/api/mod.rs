//! The Unix socket: who calls is known from the kernel, what they may do from the access rules, and every answer is
//! JSON, a problem document where something is wrong.
//!
//! A caller who may not act on an organization is told so before anything is looked up, so that nobody learns which
//! organizations exist. `docs/openapi.yaml` describes every route.

mod access;
mod audit;
mod confirm;
#[cfg(test)]
mod description;
mod download;
mod enrolments;
mod events;
mod fetch;
mod link;
mod listener;
mod peer;
mod problems;
mod request;
mod routes;
mod vault;

use std::{future::Future, sync::Arc};

pub use access::{Access, Reach};
use arc_swap::ArcSwap;
pub use listener::BindError;
pub use peer::Peer;
use tokio::{net::UnixStream, runtime::Handle, sync::Semaphore, time::timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{clock::SharedClock, config::SocketConfig, keeper::Current, metrics::Metrics, serve};

/// The most connections at once, a quarter of them of one user.
const MAX_CONNECTIONS: usize = 4096;
/// They take at most one in so many of the process's descriptors.
const SHARE_OF_DESCRIPTORS: u64 = 2;

/// Answers that count over every organization and are made at once; others wait their turn.
const COUNTS_AT_ONCE: usize = 2;

/// The server of the Unix socket.
#[derive(Debug)]
pub struct ApiServer;

impl ApiServer {
    /// Makes the socket, so that connections wait from now on. Has to be called within a Tokio runtime.
    pub fn bind(config: &SocketConfig) -> Result<Bound, BindError> {
        Ok(Bound(listener::listen(config)?))
    }
}

/// A socket that is ready to be served. Its file goes when this, or the future of [`Bound::serve`], is dropped.
#[derive(Debug)]
pub struct Bound(listener::Listening);

impl Bound {
    /// Serves until `shutdown`. Then nothing new is accepted, idle connections are closed, requests under way finish
    /// within 25 s, and at last the socket's file is removed, if it is still this one's.
    ///
    /// Tokens that are at hand are given by the task that polls this; `work` is where everything else is done.
    pub fn serve(
        self,
        app: Api,
        work: Handle,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let listener::Listening { listener, file } = self.0;
        async move {
            let router = routes::router(app.clone(), shutdown.clone());
            let changes = app.0.changes.clone();
            let greet = move |stream: &UnixStream| {
                let peer = met(stream)?;
                let (api, router, work) = (app.clone(), router.clone(), work.clone());
                let caller = serve::Caller::User(peer.uid);
                Some((caller, move |request| fetch::answer(&api, &router, &work, &peer, request)))
            };
            let limits = serve::Limits::at_most(MAX_CONNECTIONS, SHARE_OF_DESCRIPTORS);
            let deadline = serve::serve(listener, limits, shutdown, greet).await;
            changes.close();
            if timeout_at(deadline, changes.wait()).await.is_err() {
                tracing::warn!(changes = changes.len(), "changes did not finish in time");
            }
            drop(file);
        }
    }
}

/// Who is at the other end.
fn met(stream: &UnixStream) -> Option<Peer> {
    Peer::of(stream)
        .inspect_err(
            |error| tracing::warn!(%error, "a connection is closed, since the kernel does not tell whose it is"),
        )
        .ok()
}

/// What the routes work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keeper: Current,
    access: ArcSwap<Access>,
    metrics: Metrics,
    clock: SharedClock,
    /// Places for streams of events.
    streams: Arc<Semaphore>,
    /// Turns at counting over every organization, which takes a thread each.
    counting: Arc<Semaphore>,
    /// Turns at enrolling many in one request: what they hold in memory is bounded by this.
    enrolling: Arc<Semaphore>,
    /// Changes under way: they finish, and are told to the audit log, also if their caller goes away.
    changes: TaskTracker,
}

impl Api {
    /// Requests are answered `starting` until `keeper` is set.
    pub fn new(keeper: Current, access: Access, metrics: Metrics, clock: SharedClock) -> Self {
        let access = ArcSwap::from_pointee(access);
        Self(Arc::new(Inner {
            keeper,
            access,
            metrics,
            clock,
            streams: Arc::new(Semaphore::new(events::MAX_STREAMS)),
            counting: Arc::new(Semaphore::new(COUNTS_AT_ONCE)),
            enrolling: Arc::new(Semaphore::new(enrolments::AT_ONCE)),
            changes: TaskTracker::new(),
        }))
    }

    /// Puts other rules in force, from the next request on.
    pub fn set_access(&self, access: Access) {
        self.0.access.store(Arc::new(access));
    }

    fn access(&self) -> Arc<Access> {
        self.0.access.load_full()
    }
}

#[cfg(test)]
mod tests;
