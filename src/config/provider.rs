use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use url::Url;

use crate::model::{ProviderName, Usage};

/// One configured OAuth client registration at one authorization server.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// Its name: the key below `[providers]`.
    pub name: ProviderName,
    /// Which profile fills what is not set.
    pub kind: Kind,
    /// The client id.
    pub client_id: String,
    /// The file with one client secret a line, the first tried first; `None`: a public client, or every grant has its own.
    pub client_secret_file: Option<PathBuf>,
    /// Scopes asked for.
    pub scopes: Vec<String>,
    /// Whether consents use PKCE (RFC 7636).
    pub pkce: bool,
    /// What a new consent is expected to get.
    pub usage: Usage,
    /// How long a consent holds; `None`: it does not end by itself.
    pub consent_lifetime: Option<Duration>,
    /// A refresh token unused for longer ends; `None`: it does not.
    pub idle_lifetime: Option<Duration>,
    /// How long a spent one-time token may be exchanged again.
    pub grace: Duration,
    /// What to do with a grant in doubt.
    pub in_doubt: InDoubtPolicy,
    /// Exchanges a minute, at most.
    pub max_per_minute: u32,
    /// Where discovery is found (`/.well-known/openid-configuration` is added); `None`: no discovery.
    pub issuer: Option<Url>,
    /// The token endpoint as configured; wins over discovery.
    pub token_url: Option<Url>,
    /// The authorize endpoint as configured; wins over discovery.
    pub authorize_url: Option<Url>,
    /// The revocation endpoint as configured; wins over discovery.
    pub revoke_url: Option<Url>,
    /// Lists the organizations that an access token reaches; `None`: the provider cannot.
    pub organizations_url: Option<Url>,
    /// How the client authenticates at the token endpoint.
    pub client_auth: ClientAuth,
}

/// Which profile a provider follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Visma Connect: authorization-code consents.
    VismaConnect,
    /// Dinero's personal integration: API keys by the password grant.
    DineroPersonal,
    /// Any other OAuth 2.0 issuer.
    Oauth2,
}

impl Kind {
    /// Its word in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::VismaConnect => "visma-connect",
            Self::DineroPersonal => "dinero-personal",
            Self::Oauth2 => "oauth2",
        }
    }
}

/// How the client authenticates at the token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAuth {
    /// `client_id` and `client_secret` in the form body (`client_secret_post`).
    Post,
    /// HTTP Basic with both parts form-encoded first (RFC 6749 section 2.3.1).
    Basic,
    /// HTTP Basic with both parts as they are, as Dinero documents for personal integrations.
    BasicPlain,
}

/// What to do by itself with a grant in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InDoubtPolicy {
    /// Try again when that can harm nobody.
    RetryWhenHarmless,
    /// Wait for an operator.
    Hold,
}
