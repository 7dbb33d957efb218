//! What `consentry check` has to say of a provider.

use serde::Serialize;
use url::Url;

use super::{
    Exchange, OFFLINE_ACCESS, TokenEndpoint as _,
    client::{Provider, configured_urls},
    client_secrets,
    discovery::Document,
    profile,
    request::Form,
    transport::{Failure, Reply, is_safe_endpoint, without_secrets},
    verdict::OauthError,
};
use crate::{
    config::{ClientAuth, Kind, ProviderConfig},
    model::{Credential, ExchangeOutcome, Secret},
    secret_file,
};

/// What every client id of Visma Connect begins with.
const VISMA_CLIENT_PREFIX: &str = "isv_";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, or may; somebody should look.
    Warn,
    /// It cannot work.
    Error,
}

/// One line of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do; empty where nothing needs to be done.
    pub hint: String,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, what: what.into(), hint: String::new() }
    }

    fn warn(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { severity: Severity::Warn, what: what.into(), hint: hint.into() }
    }

    fn error(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { severity: Severity::Error, what: what.into(), hint: hint.into() }
    }
}

impl Provider {
    /// What can be seen of a provider without sending anything; good news is left out. Reads the secret file.
    pub fn offline_findings(config: &ProviderConfig) -> Vec<Finding> {
        let mut findings = Vec::new();
        check_client(config, &mut findings);
        check_scopes(config, &mut findings);
        check_secret_file(config, &mut findings);
        check_urls(config, &mut findings);
        findings
    }

    /// What the provider itself says: its discovery, its token endpoint asked without any credential, and whether it
    /// knows our client, asked with a made-up credential that it refuses if it does. Good news is included; [`offline_findings`](Self::offline_findings) are not.
    pub async fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(discovery) = &self.discovery {
            match discovery.fetch(&self.transport).await {
                Ok(document) => {
                    findings.push(Finding::ok(format!("discovery answers at {}", without_secrets(&discovery.url()))));
                    compare(self.config(), &document, &mut findings);
                }
                Err(problem) => findings.push(discovery_problem(self.config(), &problem)),
            }
        }
        match self.token_endpoint().await {
            None => findings.push(Finding::error(
                "no token endpoint is known",
                "set token_url, or correct the issuer so that its discovery answers",
            )),
            Some(url) => {
                let shown = without_secrets(&url);
                let reply = self.post(url, Form::harmless(), true, self.transport.timeout()).await;
                let endpoint = token_endpoint_finding(&shown, reply);
                let answers = endpoint.severity == Severity::Ok;
                findings.push(endpoint);
                if answers && self.config().client_secret_file.is_some() {
                    findings.extend(self.client_finding().await);
                }
            }
        }
        findings
    }

    /// Whether the issuer knows our client: then it refuses a made-up credential as such.
    async fn client_finding(&self) -> Option<Finding> {
        let made_up = Secret::new("consentry-check");
        let credential = match self.config().kind {
            Kind::DineroPersonal => Credential::ApiKey(made_up),
            Kind::VismaConnect | Kind::Oauth2 => Credential::RefreshToken(made_up),
        };
        let exchange = Exchange { credential: &credential, client: None, fresh_connection: true, not_after: None };
        match self.exchange(exchange).await {
            ExchangeOutcome::Refused { .. } => Some(Finding::ok("the issuer knows client_id and client secret")),
            ExchangeOutcome::ClientRefused { detail } => Some(Finding::error(
                format!("the issuer refuses this client: {detail}"),
                "compare client_id and the client secret with the registration, and client_auth with what the issuer takes",
            )),
            _ => None,
        }
    }
}

fn check_client(config: &ProviderConfig, findings: &mut Vec<Finding>) {
    if config.client_id.trim().is_empty() {
        findings.push(Finding::error("client_id is empty", "set it to the id of your registration at the issuer"));
    } else if config.kind == Kind::VismaConnect && !config.client_id.starts_with(VISMA_CLIENT_PREFIX) {
        findings.push(Finding::warn(
            format!("client_id does not begin with {VISMA_CLIENT_PREFIX}"),
            "Visma Connect's client ids do; copy it from My Applications in the developer portal",
        ));
    }
}

fn check_scopes(config: &ProviderConfig, findings: &mut Vec<Finding>) {
    if config.kind == Kind::DineroPersonal {
        return;
    }
    if let Some(scope) = config.scopes.iter().find(|scope| scope.to_ascii_lowercase().contains("internal")) {
        findings.push(Finding::warn(
            format!("the scope {scope} is an Internal one"),
            "integrators are not granted it; use dineropublicapi:read and dineropublicapi:write",
        ));
    }
    // A plain OAuth 2.0 issuer may give refresh tokens without being asked by this scope.
    let is_openid = config.kind == Kind::VismaConnect || config.scopes.iter().any(|scope| scope == "openid");
    if is_openid && !config.scopes.iter().any(|scope| scope == OFFLINE_ACCESS) {
        findings.push(Finding::warn(
            format!("scopes lack {OFFLINE_ACCESS}"),
            "without it a new consent brings no refresh token; add it, and allow offline access in the portal",
        ));
    }
}

fn check_secret_file(config: &ProviderConfig, findings: &mut Vec<Finding>) {
    let Some(path) = &config.client_secret_file else {
        if config.kind != Kind::Oauth2 {
            findings.push(Finding::warn(
                "no client_secret_file is set",
                "every grant then needs its own client_id and client_secret; name the file with the provider's",
            ));
        }
        return;
    };
    let shown = path.display();
    match secret_file::check(path, &client_secrets::RULES) {
        Err(problem) => findings.push(Finding::error(
            format!("client_secret_file {shown}: {problem}"),
            "no exchange can be made before this file can be used",
        )),
        Ok(mode) if mode.world => findings.push(Finding::warn(
            format!("client_secret_file {shown} is open to every user of the machine"),
            "chmod 0600 it, or set defaultMode: 0400 on a Kubernetes secret",
        )),
        Ok(mode) if mode.group => findings.push(Finding::warn(
            format!("client_secret_file {shown} is open to its group"),
            "chmod 0600 it, unless the worker reads it through that group (fsGroup)",
        )),
        Ok(_) => {}
    }
}

fn check_urls(config: &ProviderConfig, findings: &mut Vec<Finding>) {
    for (key, url) in configured_urls(config).filter(|(_, url)| !is_safe_endpoint(url)) {
        findings.push(Finding::error(
            format!("{key} is {}", without_secrets(url)),
            "secrets are sent there: use https without user name and password; plain http is for loopback only",
        ));
    }
    if config.issuer.is_none() && config.token_url.is_none() && profile::token_url(config).is_none() {
        findings.push(Finding::error(
            "neither issuer nor token_url is set",
            "set issuer, where discovery is found, or token_url",
        ));
    }
}

fn discovery_problem(config: &ProviderConfig, problem: &str) -> Finding {
    let what = format!("discovery does not answer: {problem}");
    if config.token_url.is_some() || profile::token_url(config).is_some() {
        Finding::warn(
            what,
            "the configured or documented endpoints are used; check issuer, DNS, firewall and egress rules",
        )
    } else {
        Finding::error(what, "check issuer, DNS, firewall and egress rules, or set token_url")
    }
}

/// What the document says against what is configured or documented.
fn compare(config: &ProviderConfig, document: &Document, findings: &mut Vec<Finding>) {
    let endpoints = [
        ("token_url", &config.token_url, &document.token, profile::token_url(config)),
        ("authorize_url", &config.authorize_url, &document.authorize, profile::authorize_url(config)),
        ("revoke_url", &config.revoke_url, &document.revoke, profile::revoke_url(config)),
    ];
    for (key, configured, discovered, documented) in endpoints {
        findings.extend(compare_endpoint(key, configured.as_ref(), discovered.as_ref(), documented.as_ref()));
    }
    let method = match config.client_auth {
        ClientAuth::Post => "client_secret_post",
        ClientAuth::Basic | ClientAuth::BasicPlain => "client_secret_basic",
    };
    let has_secret = config.client_secret_file.is_some();
    if has_secret && !document.auth_methods.is_empty() && !document.auth_methods.iter().any(|known| known == method) {
        findings.push(Finding::warn(
            format!("discovery does not list {method} among the client authentication methods"),
            "set client_auth to one that it lists, if exchanges answer invalid_client",
        ));
    }
}

fn compare_endpoint(
    key: &str,
    configured: Option<&Url>,
    discovered: Option<&Url>,
    documented: Option<&Url>,
) -> Option<Finding> {
    let discovered_text = discovered.map(without_secrets);
    match (configured, discovered, documented) {
        (Some(configured), Some(discovered), _) if configured != discovered => Some(Finding::warn(
            format!("{key} is {}, but discovery says {}", without_secrets(configured), discovered_text?),
            format!("the configured one is used; remove {key} to follow discovery"),
        )),
        (None, Some(discovered), Some(documented)) if discovered != documented => Some(Finding::warn(
            format!("discovery says {} where {} is documented", discovered_text?, without_secrets(documented)),
            format!("the discovered one is used; set {key} if that is wrong"),
        )),
        (None, None, None) if key == "token_url" => {
            Some(Finding::error("the discovery document names no token endpoint", "set token_url"))
        }
        _ => None,
    }
}

/// A token endpoint that was sent neither client nor token has to refuse, in OAuth's words.
fn token_endpoint_finding(shown: &str, reply: Result<Reply, Failure>) -> Finding {
    let reply = match reply {
        Ok(reply) => reply,
        Err(failure) => {
            return Finding::error(
                format!("the token endpoint {shown} does not answer: {}", failure.into_detail()),
                "check DNS, firewall and egress rules, and the machine's certificate authorities",
            );
        }
    };
    let status = reply.status;
    let error = reply.body.ok().filter(|_| (400..=499).contains(&status)).and_then(|body| OauthError::read(&body));
    match (status, error) {
        (_, Some(error)) => Finding::ok(format!("the token endpoint {shown} answers ({})", error.code)),
        (429, None) => Finding::warn(
            format!("the token endpoint {shown} answers 429"),
            "the issuer limits requests; try again later, and see max_per_minute",
        ),
        (500.., None) => Finding::error(
            format!("the token endpoint {shown} answers status {status}"),
            "the issuer has a problem; try again later",
        ),
        (300..=399, None) => Finding::error(
            format!("the token endpoint {shown} redirects (status {status})"),
            "redirects are never followed; set token_url to where the endpoint is now",
        ),
        // Dinero's own shape: an error that is not OAuth's.
        (400 | 401, None) => Finding::warn(
            format!("the token endpoint {shown} answers status {status}, not in OAuth's words"),
            "as Dinero's personal endpoint does; elsewhere check token_url",
        ),
        (_, None) => Finding::error(
            format!("{shown} answers status {status}, and not as a token endpoint"),
            "check token_url or issuer",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::provider::tests::config;

    fn whats(config: &ProviderConfig) -> Vec<(Severity, String)> {
        Provider::offline_findings(config).into_iter().map(|finding| (finding.severity, finding.what)).collect()
    }

    #[test]
    fn a_sound_configuration_leaves_nothing_to_say() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "s").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        let mut config = config(Kind::VismaConnect);
        config.client_id = "isv_x".into();
        config.client_secret_file = Some(path);
        config.scopes = vec!["dineropublicapi:read".into(), "offline_access".into()];
        assert_eq!(whats(&config), []);
    }

    #[test]
    fn each_mistake_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let mut config = config(Kind::VismaConnect);
        config.client_id = "x".into();
        config.scopes = vec!["DineroPublicApi:Internal".into()];
        config.token_url = Some("http://user:marker@example.com/token".parse().expect("a URL"));
        config.client_secret_file = Some(path.clone());
        let found = whats(&config);
        let expected = [
            (Severity::Warn, "isv_"),
            (Severity::Warn, "Internal"),
            (Severity::Warn, "offline_access"),
            (Severity::Error, "no such file"),
            (Severity::Error, "token_url is http://example.com/token"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((severity, what), (expected_severity, part)) in found.iter().zip(expected) {
            assert!(*severity == expected_severity && what.contains(part), "{severity:?} {what}");
        }

        fs::write(&path, "s").expect("written");
        for (mode, part) in [(0o640, "its group"), (0o644, "every user")] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            assert!(whats(&config).iter().any(|(_, what)| what.contains(part)), "{mode:o}");
        }
    }

    #[test]
    fn a_provider_without_any_endpoint_is_an_error() {
        let found = whats(&config(Kind::Oauth2));
        assert_eq!(found, [(Severity::Error, "neither issuer nor token_url is set".to_owned())]);
    }
}
