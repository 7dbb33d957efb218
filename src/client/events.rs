use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{ClientError, MAX_ANSWER, read_json};
use crate::wire;

/// How long nothing may come: the worker sends a heartbeat every 15 s.
const SILENCE: Duration = Duration::from_mins(1);

/// A worker's events one after the other, from [`Client::events`](super::Client::events).
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    /// What has come and is no whole line yet.
    rest: BytesMut,
    block: Block,
    last_id: Option<String>,
}

/// The lines of one event so far.
#[derive(Debug, Default)]
struct Block {
    id: Option<String>,
    data: Option<String>,
}

impl Events {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, rest: BytesMut::new(), block: Block::default(), last_id: None }
    }

    /// The next event; `None` once the worker has ended the stream: it stops, or events come faster than they are taken.
    pub async fn next(&mut self) -> Result<Option<wire::Event>, ClientError> {
        loop {
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end);
                self.rest.advance(1);
                if let Some(event) = self.take(&line)? {
                    return Ok(Some(event));
                }
            }
            if self.rest.len() > MAX_ANSWER {
                return Err(ClientError::Protocol("an event is too long".into()));
            }
            let silent = |_| ClientError::Protocol("it fell silent among its events".into());
            match tokio::time::timeout(SILENCE, self.body.frame()).await.map_err(silent)? {
                None => return Ok(None),
                Some(Err(_)) => return Err(ClientError::Protocol("it hung up among its events".into())),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.rest.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }

    /// The id to come back with: of the last event that was taken, or of the newest that there was when the stream began.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// Takes a line; an empty one ends an event. Comments, and fields that are not known, mean nothing.
    fn take(&mut self, line: &[u8]) -> Result<Option<wire::Event>, ClientError> {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            let Block { id, data } = std::mem::take(&mut self.block);
            self.last_id = id.or(self.last_id.take());
            return data.map(|data| read_json(data.as_bytes())).transpose();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.block.id = Some(value.to_owned()),
            "data" => match &mut self.block.data {
                Some(data) => data.extend(["\n", value]),
                None => self.block.data = Some(value.to_owned()),
            },
            _ => {}
        }
        Ok(None)
    }
}
