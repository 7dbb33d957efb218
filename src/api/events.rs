//! `GET /v1/events`: what happens, as server-sent events (the WHATWG HTML standard, section 9.2).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, Uri, header},
    response::{IntoResponse, Response},
};
use hyper::body::{Body as HttpBody, Frame};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Api, Peer, Reach,
    problems::Refusal,
    request,
    routes::{Answer, reach_to_operate},
};
use crate::{
    config::Role,
    model::{Event, EventId, EventKind},
    outbox::Follower,
    serve::{Endless, Streamed},
    task,
    wire::{self, Code},
};

/// How many streams there may be at once.
pub(super) const MAX_STREAMS: usize = 64;
/// How often something is sent where nothing happens, so that either side notices that the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How many events may wait for one caller; who is slower still falls behind, and is cut off.
const MAX_WAITING: usize = 16;
/// What a client may send for an id to get everything that is kept; any id that is not known does.
const LAST_EVENT_ID: &str = "last-event-id";

/// What streams end with: they have no end of their own, and must not keep the worker from stopping.
#[derive(Clone, Debug)]
pub(super) struct Stopping(pub(super) CancellationToken);

/// `GET /v1/events`
pub(super) async fn follow(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    Extension(Stopping(stopping)): Extension<Stopping>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    reach_to_operate(api.access().scope(&peer, Role::Operate), &peer)?;
    let stays = request::follow(&uri)?;
    let after = last_event_id(&headers);
    let outbox = api.keeper()?.outbox();
    if !stays {
        let kept = outbox.after(after.as_ref()).into_iter().filter(|event| may_see(&api, &peer, event) == Some(true));
        let text: Vec<u8> = kept.flat_map(|event| written(&event)).collect();
        return Ok(response(Body::from(text)));
    }
    let too_many = || Refusal::again(Code::TooManyRequests, "too many streams of events are open; close some");
    let place = Arc::clone(&api.0.streams).try_acquire_owned().map_err(|_| too_many())?;
    let (pieces, waiting) = mpsc::channel(MAX_WAITING);
    // What is told from here on is seen; whoever loses the connection before that comes back with this id.
    let newest = if after.is_none() { outbox.newest() } else { None };
    let stream = Stream { follower: outbox.follow(after.as_ref()), api, peer, pieces, stopping, _place: place };
    task::spawn(stream.run(newest));
    let mut response = response(Body::new(Pieces(waiting)));
    response.extensions_mut().insert(Streamed);
    response.extensions_mut().insert(Endless);
    Ok(response)
}

fn response(body: Body) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// The event that the caller has seen last. What is no id is one that nobody knows.
fn last_event_id(headers: &HeaderMap) -> Option<EventId> {
    let value = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty())?;
    let known = value.to_str().ok().and_then(|text| text.parse().ok());
    Some(known.unwrap_or(EventId::from_bytes([0; 16])))
}

/// Whether the caller may see an event; `None`: it may see none any more.
fn may_see(api: &Api, peer: &Peer, event: &Event) -> Option<bool> {
    let access = api.access();
    let reach = access.scope(peer, Role::Operate);
    match (&reach, &event.organization) {
        (Reach::None, _) => None,
        (reach, Some(organization)) => Some(reach.covers(organization)),
        // It counts over every organization.
        (reach, None) if event.kind == EventKind::ConsentsDigest => Some(matches!(reach, Reach::All)),
        (_, None) => Some(true),
    }
}

/// One event as a block of lines. A live one has no id: nobody can come back to it.
fn written(event: &Event) -> Vec<u8> {
    let Ok(data) = serde_json::to_string(&wire::Event::from(event)) else { return Vec::new() };
    let id = if event.kind.is_live_only() { String::new() } else { format!("id: {}\n", event.id) };
    format!("{id}event: {}\ndata: {data}\n\n", event.kind.word()).into_bytes()
}

/// A caller who follows.
struct Stream {
    follower: Follower,
    api: Api,
    peer: Peer,
    pieces: mpsc::Sender<Bytes>,
    stopping: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    /// Sends events until the caller goes away, is too slow, or may see none any more, or the worker stops.
    async fn run(mut self, newest: Option<EventId>) {
        let (stopping, pieces) = (self.stopping.clone(), self.pieces.clone());
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            () = pieces.closed() => {}
            () = self.send_all(newest) => {}
        }
    }

    async fn send_all(&mut self, newest: Option<EventId>) {
        let greeting = newest.map_or_else(|| ": following\n\n".to_owned(), |id| format!("id: {id}\n\n"));
        if self.pieces.send(greeting.into()).await.is_err() {
            return;
        }
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let piece = tokio::select! {
                biased;
                event = self.follower.next() => match event {
                    Ok(event) => match may_see(&self.api, &self.peer, &event) {
                        Some(true) => written(&event).into(),
                        Some(false) => continue,
                        None => return,
                    },
                    Err(error) => {
                        tracing::warn!(caller.uid = self.peer.uid, %error, "a stream of events is cut");
                        return;
                    }
                },
                _ = heartbeat.tick() => Bytes::from_static(b":\n\n"),
            };
            if self.pieces.send(piece).await.is_err() {
                return;
            }
        }
    }
}

/// The body of the answer.
struct Pieces(mpsc::Receiver<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn an_event_is_one_block_whatever_is_in_it() {
        let id = EventId::from_bytes([1; 16]);
        let event = Event {
            organization: Some("org-1".parse().unwrap()),
            provider: Some("p".parse().unwrap()),
            labels: [("name".to_owned(), "two\nlines\r\n\nid: forged".to_owned())].into(),
            ..Event::new(id, Timestamp::default(), EventKind::ConsentExpiring)
        };
        let text = String::from_utf8(written(&event)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], [format!("id: {id}").as_str(), "event: consent.expiring"]);
        assert!(lines[2].starts_with("data: {\"id\":\"evt_") && lines[3].is_empty() && lines.len() == 4, "{text}");
        let live = Event { kind: EventKind::TokenRefreshed, ..event };
        assert!(String::from_utf8(written(&live)).unwrap().starts_with("event: token.refreshed\n"));
    }

    #[test]
    fn what_is_no_id_is_one_that_nobody_knows() {
        let of = |text: &'static str| {
            last_event_id(&[(LAST_EVENT_ID.parse().unwrap(), text.parse().unwrap())].into_iter().collect())
        };
        assert_eq!(of("evt_01010101010101010101010101010101"), Some(EventId::from_bytes([1; 16])));
        assert_eq!(of("all"), Some(EventId::from_bytes([0; 16])));
        assert_eq!(of(""), None);
        assert_eq!(last_event_id(&HeaderMap::new()), None);
    }
}
