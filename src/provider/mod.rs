//! The wire: token endpoints and what their answers mean.
//!
//! [`TokenEndpoint`] is the seam that the keeper sees; [`Provider`] is the one implementation that uses a network.
//! A call goes through these files from top to bottom: `client` carries it out with what `discovery`, `profile` and
//! `client_secrets` know, `request` writes it, `transport` sends it, `verdict` decides what the reply proves (rule 5
//! of the design), and `answer` reads a granted token. `detail` cleans every text of an issuer before it may be seen.

mod answer;
mod authorize;
mod client;
mod client_secrets;
mod detail;
mod discovery;
mod findings;
mod last_look;
mod limit;
mod organizations;
#[cfg(test)]
pub(crate) mod played;
mod profile;
mod request;
mod sessions;
#[cfg(test)]
mod tests;
mod transport;
mod verdict;

use std::{future::Future, path::PathBuf, pin::Pin, time::Duration};

pub use authorize::AuthorizeEndpoint;
pub use client::Provider;
pub use detail::of_error as error_detail;
pub use findings::{Finding, Severity};
pub(crate) use limit::Limit;
pub use transport::{https_client, install_tls_provider, is_safe_endpoint};
pub use verdict::retry_after;

use crate::{
    model::{ClientCredentials, Credential, ExchangeOutcome, Secret},
    secret_file::SecretFileProblem,
};

/// The scope without which there is no refresh token (`OpenID` Connect Core section 11).
pub const OFFLINE_ACCESS: &str = "offline_access";

/// What an issuer wrote, fit for a log or a page: on one line, cut, without anything as long as a token.
pub fn cleaned(text: &str) -> String {
    detail::Cleaner::of([]).clean(text)
}

/// A future that is boxed so that a trait object can return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One call of the token endpoint.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// What is exchanged.
    pub credential: &'a Credential,
    /// The grant's own client credentials, where it has them.
    pub client: Option<&'a ClientCredentials>,
    /// Whether it must not reuse a connection: true for a one-time token, so that a stale connection causes no doubt.
    pub fresh_connection: bool,
    /// The moment of the boot-time clock from which on no request may leave any more, since a grace is over by then, or another
    /// process may take the grant over. What comes first (discovery, reading a client secret, connecting) takes its time: it is
    /// looked at last when a fresh connection stands.
    pub not_after: Option<Duration>,
}

/// An authorization code with all that goes with it (RFC 6749 section 4.1.3).
#[derive(Debug)]
pub struct Redemption<'a> {
    /// The code, which is good for one request.
    pub code: &'a Secret,
    /// The verifier of its PKCE challenge (RFC 7636 section 4.5); `None` where none was made.
    pub verifier: Option<&'a Secret>,
    /// The redirect URI exactly as the authorization request had it.
    pub redirect_uri: &'a str,
}

/// One provider as the keeper needs it; the seam at which a simulation takes the network's place.
pub trait TokenEndpoint: Send + Sync {
    /// Calls the token endpoint once (twice where the first of two client secrets is refused as such), within the
    /// configured time limit. Never panics, never retries by itself.
    fn exchange<'a>(&'a self, exchange: Exchange<'a>) -> BoxFuture<'a, ExchangeOutcome>;

    /// Exchanges an authorization code for the tokens of a new consent, once (twice where the first of two client secrets
    /// is refused as such). A code is good for one request: after [`ExchangeOutcome::Unknown`] nobody knows whether it was
    /// taken, and trying again could end what it has given. `Refused` is about the code, its verifier or its redirect URI.
    fn redeem<'a>(&'a self, redemption: Redemption<'a>) -> BoxFuture<'a, ExchangeOutcome>;

    /// The ids of the organizations that an access token reaches; `Ok(None)` where the provider cannot list them.
    fn organizations<'a>(
        &'a self,
        access_token: &'a Secret,
    ) -> BoxFuture<'a, Result<Option<Vec<String>>, ProviderError>>;

    /// Revokes a refresh token (RFC 7009).
    fn revoke<'a>(
        &'a self,
        refresh_token: &'a Secret,
        client: Option<&'a ClientCredentials>,
    ) -> BoxFuture<'a, Result<(), ProviderError>>;

    /// Whether the provider can be reached at all, asked with what harms nobody: its discovery document or token
    /// endpoint without credentials.
    fn reachable(&self) -> BoxFuture<'_, Result<(), ProviderError>>;
}

/// A call beside the token endpoint that did not work.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Nothing sensible came back.
    #[error("{provider} did not answer: {detail}")]
    Unavailable {
        /// The provider's name.
        provider: String,
        /// What went wrong.
        detail: String,
    },
    /// It answered no.
    #[error("{provider} refused with status {status}: {detail}")]
    Refused {
        /// The provider's name.
        provider: String,
        /// The HTTP status.
        status: u16,
        /// What it wrote, cut and cleaned.
        detail: String,
    },
    /// The provider offers no such thing.
    #[error("{provider} has no {what}")]
    NotOffered {
        /// The provider's name.
        provider: String,
        /// What is missing, e.g. `revocation endpoint`.
        what: &'static str,
    },
}

/// Why a provider cannot be set up; each is the configuration's or the machine's fault.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file with the client secrets cannot be used.
    #[error("provider {provider}: client_secret_file {}: {problem}", path.display())]
    SecretFile {
        /// The provider's name.
        provider: String,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: SecretFileProblem,
    },
    /// An endpoint to which no secret may be sent.
    #[error(
        "provider {provider}: {key} must be an https URL without user name and password (plain http only on \
         loopback), not {url}"
    )]
    UnsafeEndpoint {
        /// The provider's name.
        provider: String,
        /// The configuration key.
        key: &'static str,
        /// The URL without user name, password, query and fragment.
        url: String,
    },
    /// TLS or the HTTP client could not be made.
    #[error("provider {provider}: the HTTPS client cannot be made: {detail}")]
    Https {
        /// The provider's name.
        provider: String,
        /// What went wrong.
        detail: String,
    },
}
