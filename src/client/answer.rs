use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde::de::DeserializeOwned;

use super::{ClientError, read_json};
use crate::wire;

/// An answer that was read to its end.
pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// Reads the body, at most `limit` bytes of it.
    pub(super) async fn read(response: Response<Incoming>, limit: usize) -> Result<Self, ClientError> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ClientError::Protocol(format!("the answer is longer than {limit} bytes"))
            } else {
                ClientError::Protocol("the worker hung up in the middle of its answer".into())
            }
        })?;
        Ok(Self { status: parts.status, headers: parts.headers, body: body.to_bytes() })
    }

    pub(super) const fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        read_json(&self.body)
    }

    /// The error that an answer other than a success stands for.
    pub(super) fn problem(&self) -> ClientError {
        match read_json::<wire::Problem>(&self.body) {
            Ok(problem) => ClientError::Problem { problem: Box::new(problem), retry_after: self.retry_after() },
            Err(_) => ClientError::Protocol(format!(
                "status {} with {} instead of a problem document",
                self.status,
                self.header(CONTENT_TYPE.as_str()).unwrap_or("no content type")
            )),
        }
    }

    /// `Retry-After` in seconds (RFC 9110 section 10.2.3); our server sends no dates.
    fn retry_after(&self) -> Option<Duration> {
        self.header(RETRY_AFTER.as_str())?.trim().parse().ok().map(Duration::from_secs)
    }
}
