//! One attempt: a signed request, and what its answer means ("Delivery success and failure" of Standard Webhooks 1.0.0).

use std::time::Duration;

use reqwest::{
    Client, Response,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use url::Url;

use super::{receiver::Receiver, signature};
use crate::{
    clock::SharedClock,
    model::Event,
    provider::{error_detail, https_client, retry_after},
    wire,
};

/// The whole time that an attempt may take; the specification recommends 15 to 30 seconds.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
/// Unused connections kept for each receiver.
const POOL_SIZE: usize = 2;
/// How much of an answer's body is read before the connection is thrown away instead, in bytes. Nothing is made of it.
const MAX_ANSWER: usize = 64 * 1024;
/// How long that may take: the answer is known from its head.
const MAX_READING: Duration = Duration::from_secs(1);

/// The specification's headers ("Webhook headers").
const ID: &str = "webhook-id";
const TIMESTAMP: &str = "webhook-timestamp";
const SIGNATURE: &str = "webhook-signature";

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver has it: a status of the 200s.
    Delivered,
    /// The receiver wants nothing more, ever: status 410.
    Gone,
    /// Anything else.
    Failed {
        /// What the receiver answered, if it did.
        status: Option<u16>,
        /// What went wrong, where nothing was answered.
        detail: String,
        /// How long the receiver wants to be left alone; at most an hour.
        retry_after: Option<Duration>,
    },
}

/// The client that every receiver is reached by: no redirects, no proxy, nothing sent twice. The error says why there
/// can be none.
pub(super) fn client() -> Result<Client, String> {
    https_client(TIMEOUT, POOL_SIZE)
}

/// Posts `event` to `receiver` once. The body is the same at every attempt, moment and signature are not.
pub(super) async fn post(client: &Client, clock: &SharedClock, receiver: &Receiver, event: &Event) -> Outcome {
    let secrets = receiver.secrets.current().await;
    let body = match serde_json::to_vec(&wire::Event::from(event)) {
        Ok(body) => body,
        Err(error) => return failed(None, format!("the event cannot be written as JSON: {error}"), None),
    };
    let now = clock.now().wall;
    let request = client
        .post(receiver.url.clone())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(ID, event.id.to_string())
        .header(TIMESTAMP, now.as_seconds().to_string())
        .header(SIGNATURE, signature::header(&secrets, &event.id, now, &body))
        .body(body);
    match request.send().await {
        Ok(response) => {
            let status = response.status().as_u16();
            let asked = retry_after(response.headers().get(RETRY_AFTER), clock.now().wall);
            read_out(response).await;
            of_status(status, asked)
        }
        Err(error) => failed(None, error_detail(&error.without_url()), None),
    }
}

/// Whether a receiver's host can be reached, TLS included. It is asked for nothing but the head of its front page, so that no
/// receiver takes this for an event; any answer will do. The error says what is in the way.
pub async fn connect(url: &Url) -> Result<(), String> {
    let mut front = url.clone();
    front.set_path("/");
    front.set_query(None);
    match client()?.head(front).send().await {
        Ok(_) => Ok(()),
        Err(error) => Err(error_detail(&error.without_url())),
    }
}

fn of_status(status: u16, retry_after: Option<Duration>) -> Outcome {
    match status {
        200..=299 => Outcome::Delivered,
        410 => Outcome::Gone,
        _ => failed(Some(status), String::new(), retry_after),
    }
}

fn failed(status: Option<u16>, detail: String, retry_after: Option<Duration>) -> Outcome {
    Outcome::Failed { status, detail, retry_after }
}

/// Reads a body away, so that its connection can be used again; a long or slow one costs the connection and nothing else.
async fn read_out(mut response: Response) {
    let read = async {
        let mut left = MAX_ANSWER;
        while let Ok(Some(chunk)) = response.chunk().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whether it ended in time or not, there is nothing more to do.
    let _ = tokio::time::timeout(MAX_READING, read).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_hundreds_are_success_and_only_410_is_for_good() {
        for status in [200, 201, 204, 299] {
            assert_eq!(of_status(status, None), Outcome::Delivered, "{status}");
        }
        assert_eq!(of_status(410, None), Outcome::Gone);
        for status in [100, 301, 307, 400, 401, 404, 409, 429, 500, 503] {
            assert!(matches!(of_status(status, None), Outcome::Failed { status: Some(_), .. }), "{status}");
        }
    }
}
