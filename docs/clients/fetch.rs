//! Calls the API for one organization with the client of the `consentry` library.

use std::{future::Future, path::Path, time::Duration};

use consentry::{
    client::{Client, ClientError},
    model::OrganizationId,
};

/// What the API answered: its status, and whatever there was to read.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Calls with a living token, and once more with a newer one where the API rejects it. Make one [`Client`] for the whole
/// program: it keeps connections and uses them again.
pub async fn call_for<F: Future<Output = Answer>>(
    client: &Client,
    organization: &OrganizationId,
    call: impl Fn(String) -> F,
) -> Result<Answer, ClientError> {
    let mut fetched = client.token(organization, Duration::ZERO).await?;
    let answer = call(fetched.token.access_token.clone()).await;
    if answer.status != 401 {
        return Ok(answer);
    }
    // The tag names the rejected token, so that many callers cause one exchange.
    fetched = client.refresh(organization, Some(&fetched.etag)).await?;
    Ok(call(fetched.token.access_token).await)
}

/// A client of the worker that listens there.
pub fn worker(socket: &Path) -> Client {
    Client::new(socket)
}
