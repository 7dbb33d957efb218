//! The authorization request (RFC 6749 section 4.1.1).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use url::Url;

use crate::{
    config::{Kind, ProviderConfig, ResponseMode},
    model::Secret,
    provider::OFFLINE_ACCESS,
};

/// What is in a request beside what the provider's configuration says.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    /// Where the issuer sends the person back to.
    pub(super) redirect_uri: &'a str,
    /// The flow's own random name.
    pub(super) state: &'a str,
    /// PKCE's verifier, where one is used.
    pub(super) verifier: Option<&'a Secret>,
    /// Whether the browser reaches us by https.
    pub(super) is_https: bool,
    /// The language that the issuer is asked to speak.
    pub(super) locale: Option<&'a str>,
    /// Whether the issuer is to ask who signs in, whoever is signed in already.
    pub(super) another_user: bool,
}

/// Where the person is sent. What the endpoint's own query holds stays.
pub(super) fn url(endpoint: &Url, provider: &ProviderConfig, asked: &Asked<'_>) -> Url {
    let mut url = endpoint.clone();
    {
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &provider.client_id)
            .append_pair("redirect_uri", asked.redirect_uri)
            .append_pair("state", asked.state);
        if !provider.scopes.is_empty() {
            query.append_pair("scope", &provider.scopes.join(" "));
        }
        if let Some(verifier) = asked.verifier {
            query.append_pair("code_challenge", &challenge(verifier)).append_pair("code_challenge_method", "S256");
        }
        if response_mode(provider, asked.is_https) == ResponseMode::FormPost {
            query.append_pair("response_mode", "form_post");
        }
        if let Some(locale) = asked.locale {
            query.append_pair("ui_locales", locale);
        }
        if let Some(prompt) = prompt(provider, asked.another_user) {
            query.append_pair("prompt", &prompt);
        }
    }
    url
}

/// How the person comes back: as configured, else as Dinero's own example has it, else by query, which every issuer knows
/// and which needs not be asked for. On a laptop a form from another site would come without the cookie.
fn response_mode(provider: &ProviderConfig, is_https: bool) -> ResponseMode {
    let usual = match provider.kind {
        Kind::VismaConnect if is_https => ResponseMode::FormPost,
        _ => ResponseMode::Query,
    };
    provider.response_mode.unwrap_or(usual)
}

/// As configured; else an issuer that follows `OpenID` Connect gives offline access only where it asks for consent.
fn prompt(provider: &ProviderConfig, another_user: bool) -> Option<String> {
    let offline = || provider.scopes.iter().any(|scope| scope == OFFLINE_ACCESS);
    let usual = (provider.kind == Kind::Oauth2 && offline()).then(|| "consent".to_owned());
    match (provider.prompt.clone().or(usual), another_user) {
        (Some(prompt), true) if !prompt.contains("login") => Some(format!("login {prompt}")),
        (None, true) => Some("login".to_owned()),
        (prompt, _) => prompt,
    }
}

/// `BASE64URL(SHA256(verifier))` (RFC 7636 section 4.2).
fn challenge(verifier: &Secret) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.expose().as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::consent::tests::provider;

    const ASKED: Asked<'_> = Asked {
        redirect_uri: "https://c.example/callback/p",
        state: "s",
        verifier: None,
        is_https: true,
        locale: Some("da-DK"),
        another_user: false,
    };

    fn sent(provider: &ProviderConfig, asked: &Asked<'_>) -> BTreeMap<String, String> {
        let endpoint: Url = "https://id.example/authorize?tenant=a%20b".parse().expect("a URL");
        let url = url(&endpoint, provider, asked);
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let sent: BTreeMap<_, _> = pairs.iter().cloned().collect();
        assert_eq!(sent.len(), pairs.len(), "nothing is there twice: {url}");
        assert_eq!(sent["tenant"], "a b");
        sent
    }

    #[test]
    fn the_challenge_is_that_of_the_specifications_example() {
        // RFC 7636 appendix B.
        let verifier = Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(challenge(&verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn everything_that_dineros_example_has_is_sent() {
        let verifier = Secret::new("v".repeat(43));
        let sent = sent(&provider("visma-connect", ""), &Asked { verifier: Some(&verifier), ..ASKED });
        for (key, value) in [
            ("response_type", "code"),
            ("client_id", "isv_x"),
            ("redirect_uri", "https://c.example/callback/p"),
            ("scope", "dineropublicapi:read dineropublicapi:write offline_access"),
            ("state", "s"),
            ("code_challenge_method", "S256"),
            ("response_mode", "form_post"),
            ("ui_locales", "da-DK"),
        ] {
            assert_eq!(sent[key], value, "{key}");
        }
        assert!(!sent["code_challenge"].contains(verifier.expose()) && !sent.contains_key("prompt"));
    }

    #[rstest]
    #[case("visma-connect", "", true, Some("form_post"), None)]
    #[case("visma-connect", "", false, None, None)]
    #[case("visma-connect", "response_mode = 'query'", true, None, None)]
    #[case("visma-connect", "prompt = 'select_account'", true, Some("form_post"), Some("select_account"))]
    #[case("oauth2", "", true, None, None)]
    #[case("oauth2", "scopes = ['a', 'offline_access']", true, None, Some("consent"))]
    #[case("oauth2", "response_mode = 'form_post'", false, Some("form_post"), None)]
    fn a_kind_is_asked_as_its_issuer_expects_unless_configured_otherwise(
        #[case] kind: &str,
        #[case] more: &str,
        #[case] is_https: bool,
        #[case] mode: Option<&str>,
        #[case] prompt: Option<&str>,
    ) {
        let sent = sent(&provider(kind, more), &Asked { is_https, ..ASKED });
        assert_eq!(sent.get("response_mode").map(String::as_str), mode);
        assert_eq!(sent.get("prompt").map(String::as_str), prompt);
    }

    #[test]
    fn another_user_is_asked_to_sign_in() {
        let again = Asked { another_user: true, ..ASKED };
        assert_eq!(sent(&provider("visma-connect", ""), &again)["prompt"], "login");
        assert_eq!(sent(&provider("oauth2", "scopes = ['offline_access']"), &again)["prompt"], "login consent");
        assert_eq!(sent(&provider("oauth2", "prompt = 'login'"), &again)["prompt"], "login");
    }
}
