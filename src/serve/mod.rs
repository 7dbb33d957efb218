//! The accept loop and the connections of both listeners: HTTP/1.1, every wait and every size bounded, and a drain
//! that lets requests under way finish.
//!
//! hyper's own header timeout is not used: it runs on an idle keep-alive connection too, so that a short one would cut
//! callers who fetch twice a minute. [`Watched`] tells the two apart.

mod places;
mod seldom;
mod tcp;
mod thread;
mod watched;

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{http::Request, response::Response};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    places::{Caller, Limits},
    tcp::{Bound, bind},
    thread::OwnThread,
};
use self::{
    places::{Place, Places, Why},
    seldom::Seldom,
    watched::{Activity, Watched},
};

/// Connections that are being ended for others, beyond the most of a listener; further ones wait in the kernel's queue.
const LEAVING: usize = 64;
/// How long a caller who cannot be served may take to read why.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// What a caller is told each of whose connections is busy: a problem document, as the API would write it.
const REFUSAL: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/problem+json\r\n\
    cache-control: no-store\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 195\r\n\r\n\
    {\"type\":\"urn:consentry:problem:too_many_requests\",\"title\":\"Too many requests\",\"status\":429,\
    \"detail\":\"this caller has too many connections, all of them busy; use fewer\",\"code\":\"too_many_requests\"}";
/// The largest head of a request, and the largest read buffer, in bytes. hyper allows 100 header fields.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// From the first byte of a request's head to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// From the beginning of one request on a connection to the next, at least; a tenth more at most.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// How long a caller may take none of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests under way may take once the worker stops.
const DRAIN: Duration = Duration::from_secs(25);
/// How long the rest of an answer that has no end may take then.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long no connection is accepted after the first failure to; doubled each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What connections are accepted from.
pub(crate) trait Listener: Send + 'static {
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection. Nothing is lost if the future is dropped.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        let stream = self.accept().await?.0;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Serves until `shutdown`, then drains: nothing new is accepted, idle connections are closed at once, requests under
/// way get [`DRAIN`], and what is left then is cut. Returns the moment by which the caller should be done too.
///
/// `greet` looks at a new connection and gives who made it and what answers its requests, or `None` to close it.
pub(crate) async fn serve<L, G, A, F, B>(listener: L, limits: Limits, shutdown: CancellationToken, greet: G) -> Instant
where
    L: Listener,
    G: Fn(&L::Stream) -> Option<(Caller, A)>,
    A: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let (mut connections, places) = (JoinSet::new(), Places::new(limits, shutdown.clone()));
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.next(), if connections.len() < limits.all + LEAVING => match accepted {
                Ok(stream) => {
                    pause = FIRST_PAUSE;
                    let Some((caller, answer)) = greet(&stream) else { continue };
                    match places.take(caller) {
                        Some(place) => connections.spawn(connection(stream, place, answer)),
                        None => connections.spawn(refuse(stream)),
                    };
                }
                Err(error) if is_the_callers(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, pause.ms = pause.as_millis(), "cannot accept connections; waiting");
                    tokio::select! { () = sleep(pause) => {} () = shutdown.cancelled() => break }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            },
        }
    }
    drop(listener);
    let deadline = Instant::now() + DRAIN;
    if timeout_at(deadline, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests did not finish in time and are cut");
        connections.shutdown().await;
    }
    deadline
}

/// Whether only that one connection failed, before it was accepted.
fn is_the_callers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Tells a caller that it has too many connections.
async fn refuse(mut stream: impl AsyncWrite + Unpin) {
    // Whether it listens is its own matter.
    let _ = timeout(REFUSAL_TIMEOUT, stream.write_all(REFUSAL)).await;
}

/// Answers one connection's requests until either side closes it, a limit is passed, or its place is given to another.
async fn connection<S, A, F, B>(stream: S, place: Place, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let activity = Arc::clone(place.activity());
    let service = service_fn(|request| {
        activity.request_began();
        let answered = answer(request);
        let activity = &activity;
        async move {
            activity.others_first().await;
            let response = answered.await;
            if response.extensions().get::<Endless>().is_some() {
                activity.never_ends();
            }
            let streamed = response.extensions().get::<Streamed>().is_some();
            if !streamed {
                activity.request_ended();
            }
            let activity = streamed.then(|| Arc::clone(activity));
            Ok::<_, Infallible>(response.map(|body| UntilWritten { body, activity }))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(Watched::new(stream, Arc::clone(&activity))), service)
    );
    let end = Seldom::new(Box::pin(place.ends()));
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        why = end => {
            if why == Why::GivenAway && !activity.is_busy() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            if why == Why::GivenAway {
                connection.await
            } else {
                let patience = if activity.has_no_end() { LAST_WORDS } else { DRAIN };
                match timeout(patience, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Marks a response whose body is made while it is sent: the request ends with its last byte, and until then the caller need send
/// nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streamed;

/// Marks a response whose body has no end but the worker's: whoever takes none of it does not keep the worker from stopping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endless;

/// What a body may fail with.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body whose request ends when it is dropped, where it has not ended before.
struct UntilWritten<B> {
    body: B,
    activity: Option<Arc<Activity>>,
}

impl<B: Body + Unpin> Body for UntilWritten<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for UntilWritten<B> {
    fn drop(&mut self) {
        if let Some(activity) = &self.activity {
            activity.request_ended();
        }
    }
}

/// Runs `answer`; if it panics, `otherwise` makes the answer, so that the connection and all others go on.
pub(crate) async fn catching_panics(
    answer: impl Future<Output = Response>,
    otherwise: impl FnOnce() -> Response,
) -> Response {
    let mut answer = pin!(answer);
    // Nothing of the future is looked at after a panic, so that no broken state can be seen.
    let outcome = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    });
    outcome.await.unwrap_or_else(otherwise)
}

#[cfg(test)]
mod tests;
