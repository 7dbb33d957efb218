//! One provider, over the network.

use std::{borrow::Cow, fmt, time::Duration};

use reqwest::{Method, header::HeaderValue};
use url::Url;

use super::{
    BoxFuture, Exchange, ProviderError, Redemption, SetupError, TokenEndpoint,
    client_secrets::{Candidates, ClientSecrets},
    detail::Cleaner,
    discovery::{Discovery, Document},
    last_look::Leave,
    organizations, profile,
    request::{Client, Form, bearer},
    transport::{Failure, MAX_TOKEN_ANSWER, Outgoing, Reply, Transport, is_safe_endpoint, without_secrets},
    verdict::{self, OauthError, Verdict},
};
use crate::{
    clock::SharedClock,
    config::{ClientAuth, Kind, ProviderConfig},
    model::{ClientCredentials, Credential, ExchangeOutcome, Secret},
};

/// One configured OAuth client registration at one authorization server, reached by HTTPS.
///
/// It holds the client secrets, two pools of connections and what discovery has told; it keeps no credential. Its
/// `Debug` names the provider and nothing else.
pub struct Provider {
    config: ProviderConfig,
    clock: SharedClock,
    pub(super) transport: Transport,
    secrets: Option<ClientSecrets>,
    pub(super) discovery: Option<Discovery>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.config.name)
            .field("kind", &self.config.kind)
            .finish_non_exhaustive()
    }
}

impl Provider {
    /// Reads the client secrets and makes the HTTP clients; nothing is sent. One request may take at most `timeout`;
    /// `clock` tells when files and discovery are to be looked at again, and what a `Retry-After` date means.
    pub fn new(config: ProviderConfig, timeout: Duration, clock: SharedClock) -> Result<Self, SetupError> {
        let name = config.name.to_string();
        for (key, url) in configured_urls(&config) {
            if !is_safe_endpoint(url) {
                return Err(SetupError::UnsafeEndpoint { provider: name, key, url: without_secrets(url) });
            }
        }
        let secrets =
            match &config.client_secret_file {
                None => None,
                Some(path) => Some(ClientSecrets::open(&name, path, clock.clone()).map_err(|problem| {
                    SetupError::SecretFile { provider: name.clone(), path: path.clone(), problem }
                })?),
            };
        let discovery = config.issuer.clone().map(|issuer| Discovery::new(&name, issuer, clock.clone()));
        let transport = Transport::new(timeout).map_err(|detail| SetupError::Https { provider: name, detail })?;
        Ok(Self { config, clock, transport, secrets, discovery })
    }

    /// What it was configured with.
    pub const fn config(&self) -> &ProviderConfig {
        &self.config
    }

    /// The token endpoint; `None` where neither configuration nor discovery nor the profile names one.
    pub(super) async fn token_endpoint(&self) -> Option<Url> {
        self.endpoint(self.config.token_url.as_ref(), |document| document.token.clone(), profile::token_url).await
    }

    async fn revoke_endpoint(&self) -> Option<Url> {
        self.endpoint(self.config.revoke_url.as_ref(), |document| document.revoke.clone(), profile::revoke_url).await
    }

    pub(super) async fn endpoint(
        &self,
        configured: Option<&Url>,
        discovered: impl Fn(&Document) -> Option<Url>,
        fixed: impl Fn(&ProviderConfig) -> Option<Url>,
    ) -> Option<Url> {
        if let Some(url) = configured {
            return Some(url.clone());
        }
        if let Some(discovery) = &self.discovery
            && let Some(document) = discovery.document(&self.transport).await
            && let Some(url) = discovered(&document)
        {
            return Some(url);
        }
        fixed(&self.config)
    }

    /// Posts a form to an endpoint of the authorization server.
    pub(super) async fn post(&self, url: Url, form: Form, fresh: bool, timeout: Duration) -> Result<Reply, Failure> {
        self.post_until(url, form, fresh, timeout, None).await
    }

    async fn post_until(
        &self,
        url: Url,
        form: Form,
        fresh: bool,
        timeout: Duration,
        leave: Option<Leave>,
    ) -> Result<Reply, Failure> {
        let (body, authorization) = form.into_parts();
        let outgoing = Outgoing {
            method: Method::POST,
            url,
            authorization,
            form: Some(body),
            fresh,
            timeout,
            max_body: MAX_TOKEN_ANSWER,
            leave,
        };
        self.transport.send(outgoing).await
    }

    async fn get(&self, url: Url, authorization: Option<HeaderValue>, max_body: usize) -> Result<Reply, Failure> {
        let timeout = self.transport.timeout();
        let outgoing = Outgoing {
            method: Method::GET,
            url,
            authorization,
            form: None,
            fresh: false,
            timeout,
            max_body,
            leave: None,
        };
        self.transport.send(outgoing).await
    }

    async fn call_exchange(&self, exchange: Exchange<'_>) -> ExchangeOutcome {
        let Some(url) = self.token_endpoint().await else {
            let detail = "no token endpoint is known: set token_url, or see why the issuer's discovery does not answer";
            return ExchangeOutcome::NotSent { detail: detail.to_owned() };
        };
        let mut attempts = match self.attempts(exchange.client).await {
            Ok(attempts) => attempts,
            Err(detail) => return ExchangeOutcome::NotSent { detail },
        };
        let scope = self.api_key_scope();
        loop {
            let Attempt { client, timeout } = attempts.current();
            let form = Form::exchange(exchange.credential, &scope).authenticated(&client, self.config.client_auth);
            let cleaner = form.cleaner([exchange.credential.secret()], &client);
            let leave = exchange.not_after.map(|not_after| Leave { clock: self.clock.clone(), not_after });
            if leave.as_ref().is_some_and(Leave::is_over) {
                let detail = "the time for its token was over before the request could leave";
                return ExchangeOutcome::NotSent { detail: detail.to_owned() };
            }
            let reply = self.post_until(url.clone(), form, exchange.fresh_connection, timeout, leave).await;
            let now = self.clock.now().wall;
            let Verdict { outcome, is_wrong_secret } =
                verdict::of(reply, exchange.credential, &cleaner, now, self.config.name.as_str());
            // Whoever hears of the credential has authenticated the client first.
            if matches!(outcome, ExchangeOutcome::Granted(_) | ExchangeOutcome::Refused { .. }) {
                attempts.accepted();
            }
            if !is_wrong_secret || !attempts.next() {
                return outcome;
            }
        }
    }

    async fn call_redeem(&self, redemption: Redemption<'_>) -> ExchangeOutcome {
        let Some(url) = self.token_endpoint().await else {
            let detail = "no token endpoint is known: set token_url, or see why the issuer's discovery does not answer";
            return ExchangeOutcome::NotSent { detail: detail.to_owned() };
        };
        let mut attempts = match self.attempts(None).await {
            Ok(attempts) => attempts,
            Err(detail) => return ExchangeOutcome::NotSent { detail },
        };
        // Its answers are read as strictly as those to a refresh token: a code, too, is spent by being sent.
        let code = Credential::RefreshToken(redemption.code.clone());
        loop {
            let Attempt { client, timeout } = attempts.current();
            let form = Form::redemption(&redemption).authenticated(&client, self.config.client_auth);
            let cleaner = form.cleaner([redemption.code].into_iter().chain(redemption.verifier), &client);
            let reply = self.post(url.clone(), form, true, timeout).await;
            let now = self.clock.now().wall;
            let Verdict { outcome, is_wrong_secret } =
                verdict::of(reply, &code, &cleaner, now, self.config.name.as_str());
            if matches!(outcome, ExchangeOutcome::Granted(_) | ExchangeOutcome::Refused { .. }) {
                attempts.accepted();
            }
            if !is_wrong_secret || !attempts.next() {
                return outcome;
            }
        }
    }

    /// Who to be: the grant's own client, else the provider's with each of its secrets, else a public client.
    async fn attempts(&self, own: Option<&ClientCredentials>) -> Result<Attempts<'_>, String> {
        let who = match (own, &self.secrets) {
            (Some(own), _) => {
                let secret = (!own.secret.expose().is_empty()).then(|| own.secret.clone());
                Who::One(Client { id: own.id.clone(), secret })
            }
            (None, Some(secrets)) => Who::Provider { secrets, candidates: secrets.current().await, tried: 0 },
            (None, None) if self.config.kind == Kind::Oauth2 => {
                Who::One(Client { id: self.config.client_id.clone(), secret: None })
            }
            (None, None) => {
                return Err(format!(
                    "no client secret: set client_secret_file of provider {}, or give this grant its own client_id \
                     and client_secret",
                    self.config.name
                ));
            }
        };
        let limit = self.transport.timeout();
        Ok(Attempts { provider: self, who, started_at: self.clock.now().boot, left: limit })
    }

    fn api_key_scope(&self) -> Cow<'static, str> {
        match profile::api_key_scope(self.config.kind) {
            Some(scope) if self.config.scopes.is_empty() => Cow::Borrowed(scope),
            _ => Cow::Owned(self.config.scopes.join(" ")),
        }
    }

    async fn list_organizations(&self, access_token: &Secret) -> Result<Option<Vec<String>>, ProviderError> {
        let Some(url) = self.config.organizations_url.clone() else { return Ok(None) };
        let authorization =
            bearer(access_token).map_err(|_| self.unavailable("the access token fits no header".to_owned()))?;
        let reply = self.get(url, Some(authorization), organizations::MAX_LIST).await;
        let reply = reply.map_err(|failure| self.unavailable(failure.into_detail()))?;
        match reply.status {
            200..=299 => {}
            status @ (401 | 403) => {
                return Err(self.refused(status, "the access token may not list organizations".to_owned()));
            }
            status => return Err(self.unavailable(format!("status {status} instead of a list of organizations"))),
        }
        let body = reply.body.map_err(|failure| self.unavailable(failure.into_detail()))?;
        match organizations::read(&body) {
            Some(ids) => Ok(Some(ids)),
            None => Err(self.unavailable("the list of organizations holds no ids that can be read".to_owned())),
        }
    }

    async fn call_revoke(&self, token: &Secret, own: Option<&ClientCredentials>) -> Result<(), ProviderError> {
        let Some(url) = self.revoke_endpoint().await else {
            return Err(self.not_offered("revocation endpoint"));
        };
        let mut attempts = self.attempts(own).await.map_err(|detail| self.unavailable(detail))?;
        // Visma Connect documents the body for tokens and HTTP Basic for revocation.
        let method = if self.config.kind == Kind::VismaConnect { ClientAuth::Basic } else { self.config.client_auth };
        loop {
            let Attempt { client, timeout } = attempts.current();
            let form = Form::revocation(token).authenticated(&client, method);
            let cleaner = form.cleaner([token], &client);
            let reply = self.post(url.clone(), form, true, timeout).await;
            match self.revocation(reply, &cleaner) {
                Revocation::Done => {
                    attempts.accepted();
                    return Ok(());
                }
                Revocation::WrongSecret(_) if attempts.next() => {}
                Revocation::Failed(error) | Revocation::WrongSecret(error) => return Err(error),
            }
        }
    }

    /// RFC 7009 section 2.2: 200 also for a token that was not known, so that all else is a failure.
    fn revocation(&self, reply: Result<Reply, Failure>, cleaner: &Cleaner) -> Revocation {
        let reply = match reply {
            Ok(reply) => reply,
            Err(failure) => return Revocation::Failed(self.unavailable(failure.into_detail())),
        };
        let status = reply.status;
        match (status, reply.body.ok().and_then(|body| OauthError::read(&body))) {
            (200..=299, _) => Revocation::Done,
            (429, _) => Revocation::Failed(self.unavailable(format!("status {status}"))),
            (400..=499, Some(error)) => {
                let description = error.description.unwrap_or_default();
                let detail = cleaner.clean(format!("{} {description}", error.code).trim_end());
                let refused = self.refused(status, detail);
                if error.code == "invalid_client" {
                    Revocation::WrongSecret(refused)
                } else {
                    Revocation::Failed(refused)
                }
            }
            (400..=499, None) => Revocation::Failed(self.refused(status, "no OAuth error".to_owned())),
            _ => Revocation::Failed(self.unavailable(format!("status {status}"))),
        }
    }

    async fn call_reachable(&self) -> Result<(), ProviderError> {
        let url = match (&self.discovery, &self.config.token_url) {
            (Some(discovery), None) => discovery.url(),
            _ => self.token_endpoint().await.ok_or_else(|| self.not_offered("token endpoint"))?,
        };
        match self.get(url, None, MAX_TOKEN_ANSWER).await {
            Ok(reply) if reply.status < 500 => Ok(()),
            Ok(reply) => Err(self.unavailable(format!("status {}", reply.status))),
            Err(failure) => Err(self.unavailable(failure.into_detail())),
        }
    }

    fn unavailable(&self, detail: String) -> ProviderError {
        ProviderError::Unavailable { provider: self.config.name.to_string(), detail }
    }

    fn refused(&self, status: u16, detail: String) -> ProviderError {
        ProviderError::Refused { provider: self.config.name.to_string(), status, detail }
    }

    pub(super) fn not_offered(&self, what: &'static str) -> ProviderError {
        ProviderError::NotOffered { provider: self.config.name.to_string(), what }
    }
}

/// The calls of one request, one for each client secret that is worth a try.
struct Attempts<'a> {
    provider: &'a Provider,
    who: Who<'a>,
    /// When the first began, on the boot-time clock.
    started_at: Duration,
    /// What is left of the time limit.
    left: Duration,
}

/// Where a client comes from.
enum Who<'a> {
    /// A grant's own client, or a public one: there is no other to try.
    One(Client),
    /// The provider's id with the secrets of its file.
    Provider { secrets: &'a ClientSecrets, candidates: Candidates, tried: usize },
}

/// One call with one client.
struct Attempt {
    client: Client,
    timeout: Duration,
}

impl Attempts<'_> {
    fn current(&self) -> Attempt {
        let client = match &self.who {
            Who::One(client) => client.clone(),
            Who::Provider { candidates, tried, .. } => {
                Client { id: self.provider.config.client_id.clone(), secret: candidates.get(*tried).cloned() }
            }
        };
        Attempt { client, timeout: self.left }
    }

    /// The client was authenticated, so its secret is tried first from now on.
    fn accepted(&self) {
        if let Who::Provider { secrets, candidates, tried } = &self.who {
            secrets.accepted(candidates, *tried);
        }
    }

    /// Turns to the next secret, where there is one and time for it.
    fn next(&mut self) -> bool {
        let limit = self.provider.transport.timeout();
        self.left = limit.saturating_sub(self.provider.clock.now().boot.saturating_sub(self.started_at));
        match &mut self.who {
            // With less time, a connection that hangs could not be told from an answer that does not come.
            Who::Provider { candidates, tried, .. } if self.left >= limit / 2 => {
                *tried += 1;
                candidates.get(*tried).is_some()
            }
            _ => false,
        }
    }
}

/// What a revocation ended in.
enum Revocation {
    Done,
    /// Our client secret was refused: another may be tried.
    WrongSecret(ProviderError),
    Failed(ProviderError),
}

/// Every URL of the configuration to which something is sent, with its key.
pub(super) fn configured_urls(config: &ProviderConfig) -> impl Iterator<Item = (&'static str, &Url)> {
    [
        ("issuer", &config.issuer),
        ("token_url", &config.token_url),
        ("authorize_url", &config.authorize_url),
        ("revoke_url", &config.revoke_url),
        ("organizations_url", &config.organizations_url),
    ]
    .into_iter()
    .filter_map(|(key, url)| Some((key, url.as_ref()?)))
}

impl TokenEndpoint for Provider {
    fn exchange<'a>(&'a self, exchange: Exchange<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        Box::pin(self.call_exchange(exchange))
    }

    fn redeem<'a>(&'a self, redemption: Redemption<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        Box::pin(self.call_redeem(redemption))
    }

    fn organizations<'a>(
        &'a self,
        access_token: &'a Secret,
    ) -> BoxFuture<'a, Result<Option<Vec<String>>, ProviderError>> {
        Box::pin(self.list_organizations(access_token))
    }

    fn revoke<'a>(
        &'a self,
        refresh_token: &'a Secret,
        client: Option<&'a ClientCredentials>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(self.call_revoke(refresh_token, client))
    }

    fn reachable(&self) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(self.call_reachable())
    }
}
