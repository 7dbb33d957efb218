//! HTTP over the Unix socket, for the command line and for any Rust program.
//!
//! [`Client`] speaks the API of a running worker in the types of [`crate::wire`]. It never sends a byte before it
//! knows who listens: [`Trust`] says whose sockets are believed. It keeps a few idle connections, opens another when
//! all are busy, and sends a request a second time only where that can change nothing: when no byte of it had been
//! taken, or when the call is one that may be repeated and the connection had gone stale.

mod answer;
mod call;
mod connection;
mod download;
mod enrolment;
mod error;
mod events;
mod list;
mod trust;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use hyper::{Method, StatusCode, body::Incoming, header};
use serde::de::DeserializeOwned;

use self::{answer::Answer, call::Call, connection::Connections, enrolment::EnrolmentBody};
pub use self::{
    download::Download,
    error::ClientError,
    events::Events,
    list::{ListFilter, Pages},
    trust::Trust,
};
use crate::{
    model::{OrganizationId, ProviderName},
    wire,
};

/// The longest answer that is read, in bytes.
pub const MAX_ANSWER: usize = 1 << 20;
/// The longest page of a list that is read, in bytes: [`PAGE`] organizations with all the labels they may carry.
pub const MAX_PAGE: usize = 8 << 20;
/// How many organizations a page holds where the filter sets no limit.
pub const PAGE: usize = 500;

/// A worker's API. Every method takes `&self`: calls made at the same time each get a connection of their own.
///
/// ```no_run
/// use std::time::Duration;
/// use consentry::client::Client;
///
/// # async fn call_the_api(_: &str) -> u16 { 200 }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::new("/run/consentry/consentry.sock");
/// let organization = "123456".parse()?;
/// let mut fetched = client.token(&organization, Duration::from_secs(60)).await?;
/// if call_the_api(&fetched.token.access_token).await == 401 {
///     // The entity tag says which token was rejected, so that many callers cause one exchange.
///     fetched = client.refresh(&organization, Some(&fetched.etag)).await?;
///     call_the_api(&fetched.token.access_token).await;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    connections: Connections,
}

/// An access token and the entity tag that names it without revealing it.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The answer.
    pub token: wire::Token,
    /// Hand it to [`Client::refresh`] when the API rejects the token; empty where the worker sent none.
    pub etag: String,
}

/// What an enrolment did.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Whether the organization is new (status 201).
    pub created: bool,
    /// Whether anything was changed; `None` where the worker did not say.
    pub changed: Option<bool>,
    /// The organization as it is now.
    pub organization: wire::Organization,
}

impl Client {
    /// A client of the worker that listens at `socket`. Nothing is opened before the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::with_trust(socket, Trust::default())
    }

    /// A client that also believes the users whom `trust` names.
    pub fn with_trust(socket: impl Into<PathBuf>, trust: Trust) -> Self {
        Self { connections: Connections::new(socket.into(), trust) }
    }

    /// The socket it was made for.
    pub fn socket(&self) -> &Path {
        self.connections.path()
    }

    /// An access token with at least `min_ttl` left; whole seconds count.
    pub async fn token(&self, organization: &OrganizationId, min_ttl: Duration) -> Result<Fetched, ClientError> {
        let path = format!("/v1/organizations/{organization}/token?min_ttl={}", min_ttl.as_secs());
        fetched(&self.call(Call::get(path).slow()).await?)
    }

    /// The API refused the token that `rejected` names (an [`etag`](Fetched::etag)): exchanges, unless a newer one is
    /// there already. Without `rejected` it exchanges in any case.
    pub async fn refresh(&self, organization: &OrganizationId, rejected: Option<&str>) -> Result<Fetched, ClientError> {
        let mut call = Call::new(Method::POST, format!("/v1/organizations/{organization}/token/refresh")).slow();
        call.if_match = rejected.filter(|tag| !tag.is_empty()).map(ToOwned::to_owned);
        fetched(&self.call(call).await?)
    }

    /// All organizations that fit, page by page, in the order of the worker.
    pub fn list(&self, filter: ListFilter) -> Pages<'_> {
        Pages { client: self, filter, cursor: None, ended: false }
    }

    /// One organization.
    pub async fn show(&self, organization: &OrganizationId) -> Result<wire::Organization, ClientError> {
        self.call(Call::get(format!("/v1/organizations/{organization}"))).await?.json()
    }

    /// Enrols an organization or replaces its credential.
    pub async fn put(
        &self,
        organization: &OrganizationId,
        enrolment: &wire::Enrolment,
    ) -> Result<Enrolled, ClientError> {
        let body = serde_json::to_vec(&EnrolmentBody::from(enrolment))
            .map_err(|_| ClientError::Protocol("the enrolment cannot be written as JSON".into()))?;
        self.put_json(organization, body.into()).await
    }

    /// As [`put`](Self::put), with the body's JSON as it is: what an import has read from a line.
    pub async fn put_json(&self, organization: &OrganizationId, body: Bytes) -> Result<Enrolled, ClientError> {
        let mut call = Call::new(Method::PUT, format!("/v1/organizations/{organization}")).slow().repeatable();
        call.body = body;
        let answer = self.call(call).await?;
        let changed = answer.header(wire::ENROLMENT_CHANGED).and_then(|word| match word {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        });
        Ok(Enrolled { created: answer.status() == StatusCode::CREATED, changed, organization: answer.json()? })
    }

    /// Enrols many organizations that nothing is exchanged for now; `lines` holds a [`wire::EnrolmentLine`] in each line, with
    /// `"verify": false`, and at most [`wire::MAX_ENROLMENT_LINES`] of them in [`wire::MAX_ENROLMENTS`] bytes. Gives what became of
    /// each. An error is about all of them; whether any was enrolled is then not known, and sending them again does no harm.
    pub async fn enrol_lines(&self, lines: Bytes) -> Result<Vec<wire::EnrolmentResult>, ClientError> {
        let mut call = Call::new(Method::POST, "/v1/organizations".into()).slow().repeatable();
        (call.body, call.content_type, call.max_answer) = (lines, wire::ENROLMENT_LINES, MAX_PAGE);
        Ok(self.call(call).await?.json::<wire::EnrolmentResults>()?.results)
    }

    /// Forgets an organization, and its grant with the last one; `revoke` then revokes the refresh token first.
    pub async fn delete(&self, organization: &OrganizationId, revoke: bool) -> Result<(), ClientError> {
        let query = if revoke { "?revoke=true" } else { "" };
        self.call(Call::new(Method::DELETE, format!("/v1/organizations/{organization}{query}")).slow()).await?;
        Ok(())
    }

    /// Pauses the organization's grant: it is neither exchanged nor handed out.
    pub async fn pause(&self, organization: &OrganizationId) -> Result<wire::Organization, ClientError> {
        let path = format!("/v1/organizations/{organization}/pause");
        self.call(Call::new(Method::POST, path).repeatable()).await?.json()
    }

    /// Lifts a pause.
    pub async fn resume(&self, organization: &OrganizationId) -> Result<wire::Organization, ClientError> {
        let path = format!("/v1/organizations/{organization}/resume");
        self.call(Call::new(Method::POST, path).repeatable()).await?.json()
    }

    /// What to do with a grant in doubt or lost; for every organization that it serves. Trying again may be a replay,
    /// which can end all that the same person has given.
    pub async fn resolve(
        &self,
        organization: &OrganizationId,
        action: wire::Resolution,
    ) -> Result<wire::Organization, ClientError> {
        let body = serde_json::to_vec(&wire::Resolve { action })
            .map_err(|_| ClientError::Protocol("the action cannot be written as JSON".into()))?;
        let mut call = Call::new(Method::POST, format!("/v1/organizations/{organization}/resolve")).slow();
        call.body = body.into();
        self.call(call).await?.json()
    }

    /// What to do with a consent that waits for an operator. Gives the organization where it was accepted.
    pub async fn confirm(
        &self,
        organization: &OrganizationId,
        action: wire::Confirmation,
    ) -> Result<Option<wire::Organization>, ClientError> {
        let body = serde_json::to_vec(&wire::Confirm { action })
            .map_err(|_| ClientError::Protocol("the action cannot be written as JSON".into()))?;
        let mut call = Call::new(Method::POST, format!("/v1/organizations/{organization}/confirm")).slow();
        call.body = body.into();
        let answer = self.call(call).await?;
        match action {
            wire::Confirmation::Accept => answer.json().map(Some),
            wire::Confirmation::Decline => Ok(None),
        }
    }

    /// A link by which the organization's user gives consent, or gives it anew; `provider` is needed for an organization that
    /// is not known yet, and `also` names further organizations of the same user.
    pub async fn consent_link(
        &self,
        organization: &OrganizationId,
        provider: Option<&ProviderName>,
        also: &[OrganizationId],
    ) -> Result<wire::ConsentLink, ClientError> {
        let wanted = wire::LinkRequest { provider: provider.cloned(), also: also.to_vec() };
        let body = serde_json::to_vec(&wanted)
            .map_err(|_| ClientError::Protocol("the request cannot be written as JSON".into()))?;
        let mut call = Call::new(Method::POST, format!("/v1/organizations/{organization}/consent-link")).repeatable();
        call.body = body.into();
        self.call(call).await?.json()
    }

    /// Ends every link that was made for the organization until now.
    pub async fn revoke_links(&self, organization: &OrganizationId) -> Result<(), ClientError> {
        let path = format!("/v1/organizations/{organization}/consent-link");
        self.call(Call::new(Method::DELETE, path).repeatable()).await?;
        Ok(())
    }

    /// The state of the whole.
    pub async fn status(&self) -> Result<wire::Status, ClientError> {
        self.call(Call::get("/v1/status".into())).await?.json()
    }

    /// Makes a new data key; every record is sealed anew under it in the background. [`status`](Self::status) tells how far
    /// that has come.
    pub async fn rotate_data_key(&self) -> Result<wire::DataKey, ClientError> {
        self.call(Call::new(Method::POST, "/v1/vault/keys".into())).await?.json()
    }

    /// Who can open the vault.
    pub async fn recipients(&self) -> Result<wire::Recipients, ClientError> {
        self.call(Call::get("/v1/vault/recipients".into())).await?.json()
    }

    /// Lets the owner of this public key (`age1…`) open the vault; gives all who then can, and whether this one is new.
    pub async fn add_recipient(&self, recipient: &str) -> Result<(wire::Recipients, bool), ClientError> {
        let call = Call::new(Method::PUT, path_of_recipient(recipient)?).repeatable();
        let answer = self.call(call).await?;
        Ok((answer.json()?, answer.status() == StatusCode::CREATED))
    }

    /// Keeps the owner of this public key from opening the vault as it is from now on; gives all who still can.
    pub async fn remove_recipient(&self, recipient: &str) -> Result<wire::Recipients, ClientError> {
        self.call(Call::new(Method::DELETE, path_of_recipient(recipient)?)).await?.json()
    }

    /// A backup of the vault, encrypted to its recipients. The worker makes it while it is read; whoever reads nothing of it for
    /// half a minute is cut off.
    pub async fn backup(&self) -> Result<Download, ClientError> {
        Ok(Download::new(self.stream(Call::get("/v1/vault/backup".into())).await?))
    }

    /// Events after the one with the id `last`, or from now on; an id that the worker does not know: every one that it keeps. It ends
    /// with what has happened so far where they are not to be followed, and without `last` that is all that is kept, too.
    pub async fn events(&self, last: Option<&str>, follow: bool) -> Result<Events, ClientError> {
        let mut call = Call::get(format!("/v1/events?follow={follow}"));
        call.last_event_id = last.map(ToOwned::to_owned);
        Ok(Events::new(self.stream(call).await?))
    }

    /// An answer whose body is read piece by piece.
    async fn stream(&self, call: Call) -> Result<Incoming, ClientError> {
        let seconds = call.limit.as_secs();
        let answer = tokio::time::timeout(call.limit, self.connections.stream(&call));
        let timed_out = |_| ClientError::Timeout { path: self.socket().to_owned(), seconds };
        let answer = answer.await.map_err(timed_out)??;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let refusal = tokio::time::timeout(call.limit, Answer::read(answer, call.max_answer));
        Err(refusal.await.map_err(timed_out)??.problem())
    }

    /// `/healthz`: whether the worker says that it lives.
    pub async fn is_live(&self) -> Result<bool, ClientError> {
        self.probe(wire::HEALTHZ).await
    }

    /// `/readyz`: whether its vault is open and its index loaded.
    pub async fn is_ready(&self) -> Result<bool, ClientError> {
        self.probe(wire::READYZ).await
    }

    async fn probe(&self, path: &str) -> Result<bool, ClientError> {
        let answer = self.send(Call::get(path.into())).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::SERVICE_UNAVAILABLE => Ok(false),
            _ => Err(answer.problem()),
        }
    }

    /// Sends a call; an answer that is no success is an error.
    async fn call(&self, call: Call) -> Result<Answer, ClientError> {
        let answer = self.send(call).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(answer.problem()) }
    }

    async fn send(&self, call: Call) -> Result<Answer, ClientError> {
        let limit = call.limit;
        let seconds = limit.as_secs();
        match tokio::time::timeout(limit, self.connections.send(&call)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout { path: self.socket().to_owned(), seconds }),
        }
    }
}

fn fetched(answer: &Answer) -> Result<Fetched, ClientError> {
    let etag = answer.header(header::ETAG.as_str()).unwrap_or_default().to_owned();
    Ok(Fetched { token: answer.json::<wire::Token>()?, etag })
}

/// Refuses, without repeating it, what is no public key and may be a secret: it is not sent anywhere.
fn path_of_recipient(recipient: &str) -> Result<String, ClientError> {
    let recipient: age::x25519::Recipient = recipient.trim().parse().map_err(|_| ClientError::Recipient)?;
    Ok(format!("/v1/vault/recipients/{recipient}"))
}

/// Reads JSON without ever quoting it: an answer may hold an access token.
fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| {
        ClientError::Protocol(format!(
            "the answer is not what this version of consentry expects (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

#[cfg(test)]
mod tests;
