//! For simulations: what a reply proves when somebody plays the network.

use reqwest::header::HeaderValue;

use super::{
    detail::Cleaner,
    transport::{Failure, Reply},
    verdict,
};
use crate::model::{Credential, ExchangeOutcome, Timestamp, Wiped};

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Played {
    /// An answer.
    Reply { status: u16, retry_after: Option<String>, body: Vec<u8> },
    /// No byte of the request was written.
    NotSent,
    /// No answer in time.
    Timeout,
    /// The connection broke after the request had left.
    Broken,
}

/// What the real client would have made of it.
pub(crate) fn judge(played: Played, credential: &Credential, now: Timestamp) -> ExchangeOutcome {
    let words = "as the simulation asked for".to_owned();
    let reply = match played {
        Played::Reply { status, retry_after, body } => Ok(Reply {
            status,
            retry_after: retry_after.and_then(|text| HeaderValue::from_str(&text).ok()),
            body: Ok(Wiped::new(body)),
        }),
        Played::NotSent => Err(Failure::NotSent(words)),
        Played::Timeout => Err(Failure::Timeout(words)),
        Played::Broken => Err(Failure::Broken(words)),
    };
    verdict::of(reply, credential, &Cleaner::of([credential.secret()]), now, "simulated").outcome
}
