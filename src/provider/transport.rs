//! HTTP with no surprises: no redirect followed, nothing sent twice, no proxy, every wait and every body bounded.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    ClientBuilder, Method, RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use rustls::{ClientConfig, RootCertStore, client::Resumption, crypto::ring};
use url::Url;

use super::{
    detail,
    last_look::{LastLook, Leave},
    limit::Limit,
    sessions::Sessions,
};
use crate::{config::is_loopback, model::Wiped};

/// The largest answer of a token endpoint that is read, in bytes.
pub(super) const MAX_TOKEN_ANSWER: usize = 256 * 1024;
/// The longest that connecting may take, name look-up and TLS included; never more than a third of the whole.
const MAX_CONNECT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// Unused connections kept for each host: as many as there are exchanges under way by default, since they end in waves,
/// and each connection that is thrown away costs a TLS handshake.
pub(super) const POOL_SIZE: usize = 64;
/// The first buffer for a body whose length was not announced, in bytes.
const FIRST_BUFFER: usize = 8 * 1024;
/// How the worker names itself.
const USER_AGENT: &str = concat!("consentry/", env!("CARGO_PKG_VERSION"));

/// Two clients: one that keeps connections, and one for one-time tokens, where a connection that has gone stale
/// would leave in doubt whether the token was spent.
pub(super) struct Transport {
    pooled: reqwest::Client,
    fresh: reqwest::Client,
    timeout: Duration,
}

/// One request as it leaves.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) authorization: Option<HeaderValue>,
    /// A form body.
    pub(super) form: Option<Bytes>,
    /// Whether it must not reuse a connection.
    pub(super) fresh: bool,
    /// The whole time it may take, at most the transport's.
    pub(super) timeout: Duration,
    /// The largest body that is read, in bytes.
    pub(super) max_body: usize,
    /// Until when it may leave, where there is such a moment; on a fresh connection that is looked at when the connection stands.
    pub(super) leave: Option<Leave>,
}

/// An answer that came, at least its head.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<HeaderValue>,
    /// The body, or why it could not be read whole. Empty where the status alone says everything: 429, 5xx and 3xx.
    pub(super) body: Result<Wiped<Vec<u8>>, Failure>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No byte of the request was written.
    NotSent(String),
    /// The time was up after the connection stood.
    Timeout(String),
    /// The connection broke after the request may have left.
    Broken(String),
    /// The body is larger than what is read.
    TooLarge(String),
}

impl Failure {
    /// What went wrong, as text.
    pub(super) fn into_detail(self) -> String {
        let (Self::NotSent(detail) | Self::Timeout(detail) | Self::Broken(detail) | Self::TooLarge(detail)) = self;
        detail
    }
}

impl Transport {
    /// Clients whose requests take at most `timeout`: [`send`](Self::send) sees to it, since the client's own limits would drop an
    /// answer that came while the process was stopped.
    pub(super) fn new(timeout: Duration) -> Result<Self, String> {
        let client = |idle| built(client(timeout, idle)?);
        Ok(Self { pooled: client(POOL_SIZE)?, fresh: client(0)?, timeout })
    }

    /// The whole time that a request may take.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends `outgoing` once and reads what comes back.
    pub(super) async fn send(&self, outgoing: Outgoing) -> Result<Reply, Failure> {
        if !is_safe_endpoint(&outgoing.url) {
            return Err(Failure::NotSent(format!("{} is neither https nor loopback", without_secrets(&outgoing.url))));
        }
        let (max_body, leave) = (outgoing.max_body, outgoing.leave.clone());
        let mut limit = Limit::new(outgoing.timeout.min(self.timeout));
        let sending = self.request(outgoing).send();
        let response = match leave {
            Some(leave) => limit.wait_for(leave.within(sending)).await,
            None => limit.wait_for(sending).await,
        };
        let response = response.ok_or_else(|| Failure::Timeout("no answer came in time".to_owned()))?;
        let response = response.map_err(failure)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).cloned();
        let body = match status {
            429 | 500.. | 300..=399 => Ok(Wiped::default()),
            _ => {
                let body = limit.wait_for(read_body(response, max_body)).await;
                body.unwrap_or_else(|| Err(Failure::Timeout("the answer did not end in time".to_owned())))
            }
        };
        Ok(Reply { status, retry_after, body })
    }

    fn request(&self, outgoing: Outgoing) -> RequestBuilder {
        let client = if outgoing.fresh { &self.fresh } else { &self.pooled };
        let mut request =
            client.request(outgoing.method, outgoing.url).header(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = outgoing.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(form) = outgoing.form {
            request =
                request.header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")).body(form);
        }
        request
    }
}

/// A client without surprises, as the head of this file says, whose requests take at most `timeout` and which keeps up to
/// `idle_connections` for each host. The error says why none can be made.
///
/// The limits are nested so that what runs out first tells where it hung: connecting takes at most a third of the whole,
/// and a request that ends there was never sent. Unacknowledged bytes give up at three quarters, a silent peer at nine
/// tenths.
pub fn https_client(timeout: Duration, idle_connections: usize) -> Result<reqwest::Client, String> {
    built(client(timeout, idle_connections)?.timeout(timeout).read_timeout(timeout / 10 * 9))
}

/// As [`https_client`], without a limit on the whole or on silence.
fn client(timeout: Duration, idle_connections: usize) -> Result<ClientBuilder, String> {
    install_tls_provider();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls_config()?)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .user_agent(USER_AGENT)
        .connect_timeout(MAX_CONNECT.min(timeout / 3))
        .tcp_user_timeout(timeout / 4 * 3)
        .connector_layer(LastLook)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(idle_connections);
    Ok(client)
}

fn built(client: ClientBuilder) -> Result<reqwest::Client, String> {
    client.build().map_err(|error| detail::of_error(&error.without_url()))
}

/// Makes rustls with ring the process's provider of ciphers, unless it has one. Idempotent.
pub fn install_tls_provider() {
    // The only error is that another one was installed before, which then stays.
    let _ = ring::default_provider().install_default();
}

/// Whether a secret may be sent to `url`: https, or plain http to this machine; and no user name or password in it,
/// since a secret comes as a file only.
pub fn is_safe_endpoint(url: &Url) -> bool {
    let has_userinfo = !url.username().is_empty() || url.password().is_some();
    url.has_host() && !has_userinfo && (url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url)))
}

/// `url` without user name, password, query and fragment.
pub(super) fn without_secrets(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    detail::Cleaner::of([]).clean(&format!("{}://{host}{port}{}", url.scheme(), url.path()))
}

/// The machine's certificate authorities, or Mozilla's where it has none (a container from scratch).
fn tls_config() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| detail::of_error(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::store(Arc::new(Sessions::new()));
    Ok(config)
}

/// Sorts an error by what it proves: one of connecting, or of making the request, means that nothing was sent.
fn failure(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let detail = detail::of_error(&error);
    if error.is_connect() || error.is_builder() {
        Failure::NotSent(detail)
    } else if error.is_timeout() {
        Failure::Timeout(detail)
    } else {
        Failure::Broken(detail)
    }
}

async fn read_body(mut response: Response, max: usize) -> Result<Wiped<Vec<u8>>, Failure> {
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
    if announced.is_some_and(|length| length > max) {
        return Err(too_large(max));
    }
    let mut body = Wiped::new(Vec::with_capacity(announced.unwrap_or(FIRST_BUFFER)));
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(body),
            // The head has come, so the request was sent, whatever the error says of itself.
            Err(error) if error.is_timeout() => return Err(Failure::Timeout(detail::of_error(&error.without_url()))),
            Err(error) => return Err(Failure::Broken(detail::of_error(&error.without_url()))),
        };
        if chunk.len() > max - body.len() {
            return Err(too_large(max));
        }
        if chunk.len() > body.capacity() - body.len() {
            // A growing `Vec` would leave tokens behind in memory.
            let mut larger = Wiped::new(Vec::with_capacity(2 * (body.len() + chunk.len())));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
}

fn too_large(max: usize) -> Failure {
    Failure::TooLarge(format!("the answer is larger than {max} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_by_https_or_stays_on_the_machine() {
        for safe in ["https://connect.visma.com/x", "http://127.8.9.1:1/x", "http://[::1]/x", "http://localhost:80/"] {
            assert!(is_safe_endpoint(&safe.parse().expect("a URL")), "{safe}");
        }
        for bad in [
            "http://connect.visma.com/x",
            "http://127.0.0.1.example.com/",
            "http://localhost.example.com/",
            "https://user:pass@example.com/",
            "ftp://localhost/",
            "data:text/plain,x",
        ] {
            assert!(!is_safe_endpoint(&bad.parse().expect("a URL")), "{bad}");
        }
    }

    #[test]
    fn a_shown_url_has_neither_userinfo_nor_query() {
        let url = "https://user:marker@example.com:8443/token?key=marker#marker".parse().expect("a URL");
        assert_eq!(without_secrets(&url), "https://example.com:8443/token");
    }
}
