//! The last look before a request leaves: on a connection that stands already, TLS included, right before the first byte.
//!
//! What the look is about goes with the request as the task's own, since a client's layers are the same for all its requests. It works
//! where a connection is made by the task that sends the request: where none is kept for others.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use crate::clock::SharedClock;

type Error = Box<dyn std::error::Error + Send + Sync>;

tokio::task_local! {
    static LEAVE: Leave;
}

/// Until when a request may leave.
#[derive(Clone, Debug)]
pub(super) struct Leave {
    pub(super) clock: SharedClock,
    /// On the boot-time clock.
    pub(super) not_after: Duration,
}

impl Leave {
    /// Whether it must not leave any more.
    pub(super) fn is_over(&self) -> bool {
        self.clock.boot() >= self.not_after
    }

    /// Lets `sending` look at this when its connection stands.
    pub(super) async fn within<T>(self, sending: impl Future<Output = T>) -> T {
        LEAVE.scope(self, sending).await
    }
}

/// Looks at [`Leave`] when a connection stands; one that comes too late is an error of connecting, after which nothing was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastLook;

impl<S> Layer<S> for LastLook {
    type Service = Looking<S>;

    fn layer(&self, inner: S) -> Looking<S> {
        Looking(inner)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Looking<S>(S);

impl<S, R> Service<R> for Looking<S>
where
    S: Service<R, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.0.call(request);
        Box::pin(async move {
            let connection = connecting.await?;
            if LEAVE.try_with(Leave::is_over).unwrap_or(false) {
                return Err("it took too long until the request could leave".into());
            }
            Ok(connection)
        })
    }
}
