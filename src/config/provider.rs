use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;
use url::Url;

use super::{
    problem::{Problems, Unfit},
    raw::RawProvider,
    sections::{DAY, Section},
    tree::Step,
    values::{self, Bounds},
};
use crate::model::{ProviderName, Usage};

/// How many providers there may be.
const MAX_PROVIDERS: usize = 64;
/// How many scopes one provider may be asked for.
const MAX_SCOPES: usize = 64;

const LIFETIME: Bounds = Bounds::seconds(1, 3660 * DAY, "from 1s to 3660d");
const GRACE: Bounds = Bounds::seconds(0, 600, "from 0s to 10m");

/// Lists the organizations that an access token of Dinero's reaches.
const DINERO_ORGANIZATIONS: &str = "https://api.dinero.dk/v1/organizations";

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
    /// How the issuer is asked to send a person back; `None`: as the kind's issuer documents it.
    pub response_mode: Option<ResponseMode>,
    /// What the issuer is to ask the person, whatever it remembers; `None`: it decides.
    pub prompt: Option<String>,
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

/// How an issuer sends a person back with the authorization code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseMode {
    /// In the query of the redirect URI, as every issuer does where nothing is asked (RFC 6749 section 4.1.2).
    Query,
    /// In a form that the browser posts (OAuth 2.0 Form Post Response Mode): the code gets into no address and no log.
    FormPost,
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

/// What a kind fills in where the configuration is silent.
#[derive(Debug)]
struct Profile {
    scopes: &'static [&'static str],
    pkce: bool,
    usage: Usage,
    consent_lifetime: Option<Duration>,
    issuer: Option<&'static str>,
    token_url: Option<&'static str>,
    organizations_url: Option<&'static str>,
    client_auth: ClientAuth,
}

impl Kind {
    const fn profile(self) -> Profile {
        match self {
            // Scopes, the recommended 180 days and secrets in the body: Dinero's and Visma Connect's documentation.
            Self::VismaConnect => Profile {
                scopes: &["dineropublicapi:read", "dineropublicapi:write", "offline_access"],
                pkce: true,
                usage: Usage::Reuse,
                consent_lifetime: Some(Duration::from_secs(180 * DAY)),
                issuer: Some("https://connect.visma.com"),
                token_url: None,
                organizations_url: Some(DINERO_ORGANIZATIONS),
                client_auth: ClientAuth::Post,
            },
            // The password grant with an API key, which ends on no known date: Dinero's documentation.
            Self::DineroPersonal => Profile {
                scopes: &["read", "write"],
                pkce: false,
                usage: Usage::Reuse,
                consent_lifetime: None,
                issuer: None,
                token_url: Some("https://authz.dinero.dk/dineroapi/oauth/token"),
                organizations_url: Some(DINERO_ORGANIZATIONS),
                client_auth: ClientAuth::BasicPlain,
            },
            // Basic is what every issuer must take (RFC 6749 section 2.3.1); one-time is the assumption that kills
            // nothing where it is wrong.
            Self::Oauth2 => Profile {
                scopes: &[],
                pkce: true,
                usage: Usage::OneTime,
                consent_lifetime: None,
                issuer: None,
                token_url: None,
                organizations_url: None,
                client_auth: ClientAuth::Basic,
            },
        }
    }
}

/// Reads `[providers]`.
pub(super) fn read(
    providers: BTreeMap<String, RawProvider>,
    problems: &Problems<'_>,
) -> BTreeMap<ProviderName, ProviderConfig> {
    let all = Step::Key("providers".to_owned());
    if providers.len() > MAX_PROVIDERS {
        let message = format!("has {} providers; at most {MAX_PROVIDERS} are allowed", providers.len());
        Section::new(problems, [all]).wrong(message);
        return BTreeMap::new();
    }
    let mut read = BTreeMap::new();
    for (name, raw) in providers {
        let section = Section::new(problems, [all.clone(), Step::Key(name.clone())]);
        match name.parse::<ProviderName>() {
            Ok(name) => {
                if let Some(provider) = provider(name.clone(), raw, &section) {
                    read.insert(name, provider);
                }
            }
            Err(error) => section.wrong(error.to_string()),
        }
    }
    read
}

fn provider(name: ProviderName, raw: RawProvider, section: &Section<'_>) -> Option<ProviderConfig> {
    let kind = section.required("kind", raw.kind, "give \"visma-connect\", \"dinero-personal\" or \"oauth2\"", Ok);
    let client_id = section.required("client_id", raw.client_id, "give the id of the client registration", |text| {
        values::client_id(&text)
    });
    let kind = kind?;
    let profile = kind.profile();
    let url = |key, raw: Option<String>, default: Option<&str>, parse: fn(&str) -> Result<Url, Unfit>| match raw {
        Some(text) => section.optional(key, Some(text), parse),
        None => default.map(|text| text.parse().expect("a profile's own URL is one")),
    };
    let issuer = url("issuer", raw.issuer, profile.issuer, values::base_url);
    let token_url = url("token_url", raw.token_url, profile.token_url, values::url);
    if kind == Kind::Oauth2 && issuer.is_none() && token_url.is_none() {
        section.missing("issuer", "give issuer, where the endpoints are discovered, or token_url");
    }
    if kind == Kind::DineroPersonal && issuer.is_none() && token_url.is_none() {
        section.missing("token_url", "it was set to nothing; leave it out for Dinero's own");
    }
    Some(ProviderConfig {
        name,
        kind,
        client_id: client_id?,
        client_secret_file: section.optional("client_secret_file", raw.client_secret_file, values::path),
        scopes: section.value("scopes", raw.scopes, profile.scopes.iter().map(ToString::to_string).collect(), |list| {
            values::scopes(&values::bounded(list, 0..=MAX_SCOPES)?)
        }),
        pkce: raw.pkce.map_or(profile.pkce, |flag| flag.0),
        usage: raw.usage.unwrap_or(profile.usage),
        consent_lifetime: section.value("consent_lifetime", raw.consent_lifetime, profile.consent_lifetime, |text| {
            values::lifetime(&text, LIFETIME)
        }),
        idle_lifetime: section
            .value("idle_lifetime", raw.idle_lifetime, None, |text| values::lifetime(&text, LIFETIME)),
        grace: section.value("grace", raw.grace, Duration::ZERO, |text| values::duration(&text, GRACE)),
        in_doubt: raw.in_doubt.unwrap_or(InDoubtPolicy::RetryWhenHarmless),
        max_per_minute: section
            .value("max_per_minute", raw.max_per_minute, 600, |number| values::whole(number, 1..=1_000_000)),
        issuer,
        token_url,
        authorize_url: url("authorize_url", raw.authorize_url, None, values::url),
        revoke_url: url("revoke_url", raw.revoke_url, None, values::url),
        organizations_url: url("organizations_url", raw.organizations_url, profile.organizations_url, values::url),
        client_auth: raw.client_auth.unwrap_or(profile.client_auth),
        response_mode: raw.response_mode,
        prompt: section.optional("prompt", raw.prompt, values::prompt),
    })
}
