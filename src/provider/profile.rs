//! The fixed endpoints of the kinds that have them, for when neither configuration nor discovery knows better.

use url::Url;

use crate::config::{Kind, ProviderConfig};

/// Visma Connect's endpoints, as its documentation gives them.
const VISMA_TOKEN: &str = "https://connect.visma.com/connect/token";
const VISMA_AUTHORIZE: &str = "https://connect.visma.com/connect/authorize";
const VISMA_REVOKE: &str = "https://connect.visma.com/connect/revocation";
/// The token endpoint of Dinero's personal integrations, as its documentation gives it.
const DINERO_TOKEN: &str = "https://authz.dinero.dk/dineroapi/oauth/token";
/// The scope that Dinero's documentation asks API keys to be exchanged with.
const DINERO_SCOPE: &str = "read write";

/// The kind's token endpoint, for a provider that is the kind's own issuer.
pub(super) fn token_url(config: &ProviderConfig) -> Option<Url> {
    match config.kind {
        Kind::VismaConnect => fixed(VISMA_TOKEN, config),
        Kind::DineroPersonal => fixed(DINERO_TOKEN, config),
        Kind::Oauth2 => None,
    }
}

/// The kind's authorize endpoint, for a provider that is the kind's own issuer.
pub(super) fn authorize_url(config: &ProviderConfig) -> Option<Url> {
    if config.kind == Kind::VismaConnect { fixed(VISMA_AUTHORIZE, config) } else { None }
}

/// The kind's revocation endpoint, for a provider that is the kind's own issuer.
pub(super) fn revoke_url(config: &ProviderConfig) -> Option<Url> {
    if config.kind == Kind::VismaConnect { fixed(VISMA_REVOKE, config) } else { None }
}

/// The scope of the kind's password grant where none is configured.
pub(super) fn api_key_scope(kind: Kind) -> Option<&'static str> {
    (kind == Kind::DineroPersonal).then_some(DINERO_SCOPE)
}

/// A provider that is configured to be elsewhere, such as a sandbox, has none of the fixed endpoints: while its own
/// discovery fails, its secrets must not be sent to the real issuer.
fn fixed(url: &str, config: &ProviderConfig) -> Option<Url> {
    let url = Url::parse(url).ok()?;
    let is_elsewhere = |configured: &Option<Url>| configured.as_ref().is_some_and(|other| other.host() != url.host());
    (!is_elsewhere(&config.issuer) && !is_elsewhere(&config.token_url)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{is_safe_endpoint, tests::config};

    #[test]
    fn every_fixed_endpoint_is_a_safe_url() {
        let (visma, dinero) = (config(Kind::VismaConnect), config(Kind::DineroPersonal));
        for url in [token_url(&visma), authorize_url(&visma), revoke_url(&visma), token_url(&dinero)] {
            assert!(is_safe_endpoint(&url.expect("a URL")));
        }
    }

    #[test]
    fn a_provider_that_is_elsewhere_never_falls_back_to_the_real_issuer() {
        let sandbox: Option<Url> = Some("http://127.0.0.1:9/".parse().expect("a URL"));
        let by_issuer = ProviderConfig { issuer: sandbox.clone(), ..config(Kind::VismaConnect) };
        let by_token_url = ProviderConfig { token_url: sandbox, ..config(Kind::VismaConnect) };
        for config in [by_issuer, by_token_url] {
            assert_eq!((token_url(&config), authorize_url(&config), revoke_url(&config)), (None, None, None));
        }
        let issuer = Some("https://connect.visma.com".parse().expect("a URL"));
        assert!(token_url(&ProviderConfig { issuer, ..config(Kind::VismaConnect) }).is_some());
    }
}
