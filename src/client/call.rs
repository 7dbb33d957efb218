use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, Request, header};

use super::{ClientError, MAX_ANSWER, connection};

/// How long an answer that needs no exchange may take.
const QUICK: Duration = Duration::from_secs(30);
/// How long an answer may take that may wait for the provider: above twice the longest configurable exchange.
const EXCHANGE: Duration = Duration::from_mins(5);

/// One request, kept so that it can be sent again.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Bytes,
    pub(super) if_match: Option<String>,
    pub(super) last_event_id: Option<String>,
    /// Whether it may be sent twice although its first sending may have been carried out.
    pub(super) repeatable: bool,
    pub(super) limit: Duration,
    pub(super) max_answer: usize,
}

impl Call {
    pub(super) const fn new(method: Method, path: String) -> Self {
        let body = Bytes::new();
        Self {
            method,
            path,
            body,
            if_match: None,
            last_event_id: None,
            repeatable: false,
            limit: QUICK,
            max_answer: MAX_ANSWER,
        }
    }

    pub(super) const fn get(path: String) -> Self {
        Self::new(Method::GET, path).repeatable()
    }

    pub(super) const fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    pub(super) const fn slow(mut self) -> Self {
        self.limit = EXCHANGE;
        self
    }

    pub(super) fn request(&self) -> Result<Request<connection::Body>, ClientError> {
        let mut request = Request::builder().method(&self.method).uri(&self.path).header(header::HOST, "localhost");
        if !self.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(tag) = &self.if_match {
            request = request.header(header::IF_MATCH, tag);
        }
        if let Some(id) = &self.last_event_id {
            request = request.header("last-event-id", id);
        }
        request
            .body(connection::Body::new(self.body.clone()))
            .map_err(|_| ClientError::Protocol(format!("{} {} is not a request", self.method, self.path)))
    }
}
