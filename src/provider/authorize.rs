//! Where a person is sent to give consent, and what is known of the answer that comes back.

use url::Url;

use super::{ProviderError, client::Provider, profile};

/// An issuer's authorize endpoint, and how its answers are told from another issuer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizeEndpoint {
    /// Where the person is sent.
    pub url: Url,
    /// The issuer that an answer may name; `None` where none is configured.
    pub issuer: Option<String>,
    /// Whether an answer has to name it (RFC 9207 section 2.4), as the issuer's discovery promises.
    pub sends_issuer: bool,
}

impl Provider {
    /// The authorize endpoint: as configured, else as discovered, else the profile's own. Asks the issuer's discovery where
    /// that was not done lately.
    pub async fn authorize_endpoint(&self) -> Result<AuthorizeEndpoint, ProviderError> {
        let configured = self.config().authorize_url.as_ref();
        let url = self.endpoint(configured, |document| document.authorize.clone(), profile::authorize_url).await;
        let document = match &self.discovery {
            Some(discovery) => discovery.document(&self.transport).await,
            None => None,
        };
        Ok(AuthorizeEndpoint {
            url: url.ok_or_else(|| self.not_offered("authorize endpoint"))?,
            issuer: self.config().issuer.as_ref().map(|issuer| issuer.as_str().to_owned()),
            sends_issuer: document.is_some_and(|document| document.sends_issuer),
        })
    }
}
