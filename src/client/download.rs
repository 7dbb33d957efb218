use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::ClientError;

/// How long the next piece may take: the worker gives up a caller that takes nothing for half a minute, and makes the
/// next piece in far less.
const PIECE: Duration = Duration::from_mins(2);

/// A long answer that is read piece by piece, from [`Client::backup`](super::Client::backup).
#[derive(Debug)]
pub struct Download(Incoming);

impl Download {
    pub(super) const fn new(body: Incoming) -> Self {
        Self(body)
    }

    /// The next piece; `None` once all of it is there. A part of it is worth nothing: where the worker cannot send the
    /// rest, this is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let broken = |what: &str| ClientError::Protocol(format!("it {what} in the middle of its answer"));
        loop {
            let frame = tokio::time::timeout(PIECE, self.0.frame()).await.map_err(|_| broken("fell silent"))?;
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(broken("hung up")),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}
