//! The provider against servers: well-behaved ones by wiremock, ugly ones by a bare socket.

mod calls;
mod fuzz;
mod outcomes;
mod secrecy;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use url::Url;
use wiremock::MockServer;

use super::{Exchange, Provider, TokenEndpoint as _};
use crate::{
    clock::ManualClock,
    config::{ClientAuth, InDoubtPolicy, Kind, ProviderConfig},
    model::{Credential, ExchangeOutcome, Secret, Timestamp, Usage},
};

/// Sun, 06 Nov 1994 08:48:37 GMT, the example date of RFC 9110.
const NOW: Timestamp = Timestamp::from_millis(784_111_717_000);
/// Long enough for a slow machine where an answer is to come.
const PATIENT: Duration = Duration::from_mins(1);
/// For servers that never answer.
const IMPATIENT: Duration = Duration::from_secs(2);

/// A public `oauth2` client, or the like of another kind, without any endpoint.
pub(super) fn config(kind: Kind) -> ProviderConfig {
    ProviderConfig {
        name: "test".parse().expect("a name"),
        kind,
        client_id: "client".into(),
        client_secret_file: None,
        scopes: Vec::new(),
        pkce: true,
        usage: Usage::Reuse,
        consent_lifetime: None,
        idle_lifetime: None,
        grace: Duration::ZERO,
        in_doubt: InDoubtPolicy::RetryWhenHarmless,
        max_per_minute: 600,
        issuer: None,
        token_url: None,
        authorize_url: None,
        revoke_url: None,
        organizations_url: None,
        client_auth: ClientAuth::Post,
        response_mode: None,
        prompt: None,
    }
}

fn provider(config: ProviderConfig) -> Provider {
    provider_at(config, PATIENT, &ManualClock::at(NOW))
}

fn provider_at(config: ProviderConfig, timeout: Duration, clock: &Arc<ManualClock>) -> Provider {
    Provider::new(config, timeout, clock.clone()).expect("a provider")
}

/// A public client whose token endpoint is `url`.
fn at(url: &str) -> ProviderConfig {
    ProviderConfig { token_url: Some(url.parse().expect("a URL")), ..config(Kind::Oauth2) }
}

fn with_secrets(config: ProviderConfig, folder: &Path, secrets: &str) -> ProviderConfig {
    let path = folder.join("secret");
    std::fs::write(&path, secrets).expect("written");
    ProviderConfig { client_secret_file: Some(path), ..config }
}

fn url_of(server: &MockServer, path: &str) -> Url {
    format!("{}{path}", server.uri()).parse().expect("a URL")
}

/// Exchanges a one-time refresh token.
async fn exchange(provider: &Provider) -> ExchangeOutcome {
    exchange_of(provider, &Credential::RefreshToken(Secret::new("rt-sent"))).await
}

async fn exchange_of(provider: &Provider, credential: &Credential) -> ExchangeOutcome {
    provider.exchange(Exchange { credential, client: None, fresh_connection: true, not_after: None }).await
}

/// A server that hands every connection to `treat`, and its `http` URL.
async fn bare_server<F, R>(treat: F) -> String
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream));
        }
    });
    format!("http://{address}/token")
}

/// Reads a request to the end of its body.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some(head) = text.find("\r\n\r\n") {
            let length = text[..head].lines().find_map(|line| line.strip_prefix("content-length: "));
            if request.len() >= head + 4 + length.map_or(0, |length| length.parse().expect("a length")) {
                return String::from_utf8_lossy(&request).into_owned();
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(read @ 1..) => request.extend_from_slice(&chunk[..read]),
            _ => return String::from_utf8_lossy(&request).into_owned(),
        }
    }
}

/// A server that answers every request with exactly these bytes and closes.
async fn answering(bytes: &'static str) -> String {
    bare_server(move |mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(bytes.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await
}
