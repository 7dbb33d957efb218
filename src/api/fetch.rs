//! Fetches. The usual one, of a token that is in memory and alive, is answered before the router and without waiting;
//! whatever else may be asked or come of it goes through the routes, which answer that one in the same way.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, Uri, header},
    response::{IntoResponse as _, Response},
};
use bytes::Buf;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::{Api, Peer, problems::Refusal, routes};
use crate::{
    config::Role,
    keeper::{AnswerText, Served},
    model::OrganizationId,
};

/// How many headers an answer with a token has.
const HEADERS: usize = 3;

/// Answers one request of `peer`: at once, or by a task of `work` that ends when nobody waits for it any more.
pub(super) fn answer(
    api: &Api,
    routes: &routes::Routes,
    work: &Handle,
    peer: &Peer,
    request: Request<Incoming>,
) -> Answering {
    // Nothing of what was looked at is used after a panic; the router meets the same fault, or answers.
    let at_once = catch_unwind(AssertUnwindSafe(|| at_once(api, peer, request.method(), request.uri())));
    if let Ok(Some(served)) = at_once {
        return Answering::AtOnce(Some(served));
    }
    let answering = work.spawn(routes::answer(routes.clone(), peer.clone(), request));
    Answering::Routed(AbortOnDropHandle::new(answering))
}

/// What answers `GET /v1/organizations/{org}/token` where the caller may have the token and it is at hand. `None` is no
/// answer: the router gives it, and nothing was counted or noted.
fn at_once(api: &Api, peer: &Peer, method: &Method, uri: &Uri) -> Option<Served> {
    if *method != Method::GET {
        return None;
    }
    // An id that is written with escapes is left to the router.
    let organization = uri.path().strip_prefix("/v1/organizations/")?.strip_suffix("/token")?;
    let organization: OrganizationId = organization.parse().ok()?;
    if !api.0.access.load().may(peer, Role::Fetch, &organization) {
        return None;
    }
    let min_ttl = match uri.query() {
        None => Duration::ZERO,
        Some(_) => super::request::min_ttl(uri).ok()?,
    };
    let now = api.0.clock.now();
    let served = api.0.keeper.ask(|keeper| keeper.token_at_once(organization, min_ttl, now))?;
    api.0.metrics.fetched(served.degraded().is_some(), api.0.clock.boot().saturating_sub(now.boot));
    Some(served)
}

fn respond(served: Served) -> Response<Reply> {
    let headers = headers(&served);
    let mut response = Response::new(Reply::Token(Some(served.into_text())));
    *response.headers_mut() = headers;
    response
}

/// A token as the routes answer it.
pub(super) fn routed(served: Served) -> Response {
    let headers = headers(&served);
    let mut response = Response::new(Body::from(served.into_text().into_bytes()));
    *response.headers_mut() = headers;
    response
}

fn headers(served: &Served) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(HEADERS);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(etag) = HeaderValue::from_bytes(served.etag()) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

/// A request that is being answered.
pub(super) enum Answering {
    /// The token is there. The response is made where it is sent, since it is large and would be moved several times.
    AtOnce(Option<Served>),
    /// The router makes it.
    Routed(AbortOnDropHandle<Response>),
}

impl Future for Answering {
    type Output = Response<Reply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response<Reply>> {
        match &mut *self {
            Self::AtOnce(served) => served.take().map_or(Poll::Pending, |served| Poll::Ready(respond(served))),
            Self::Routed(answer) => Pin::new(answer).poll(context).map(|answered| {
                // A panic was caught before, so that a task ends without an answer only where the runtime itself does.
                answered.unwrap_or_else(|_| Refusal::internal().into_response()).map(Reply::Routed)
            }),
        }
    }
}

/// The body of an answer.
pub(super) enum Reply {
    /// A token, until it is being sent.
    Token(Option<AnswerText>),
    /// What a route made.
    Routed(Body),
}

/// A piece of a body.
pub(super) enum Piece {
    /// All of an answer with a token.
    Token(AnswerText),
    /// Of what a route made.
    Routed(Bytes),
}

impl HttpBody for Reply {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        match &mut *self {
            Self::Token(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(Piece::Token(text))))),
            Self::Routed(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(Piece::Routed)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Token(text) => text.is_none(),
            Self::Routed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Token(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.remaining() as u64)),
            Self::Routed(body) => body.size_hint(),
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Self::Token(text) => text.remaining(),
            Self::Routed(bytes) => bytes.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Token(text) => text.chunk(),
            Self::Routed(bytes) => bytes.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        match self {
            Self::Token(text) => text.chunks_vectored(slices),
            Self::Routed(bytes) => bytes.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Token(text) => text.advance(count),
            Self::Routed(bytes) => bytes.advance(count),
        }
    }
}
