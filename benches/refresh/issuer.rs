//! A stand-in issuer that costs next to nothing: it believes every token, keeps nothing but counts, and gives a JWT of
//! the usual size. A one-time token comes back with its number of exchanges raised, a re-use token as it was. It is there twice: with
//! TLS, as every issuer is asked but one on the same machine, and without.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use consentry::{model::Usage, provider::install_tls_provider};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring::Ticketer,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::common::{access_token, report::say, site::refresh_token};

static EXCHANGES: AtomicU64 = AtomicU64::new(0);
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// The certificate of the one with TLS.
pub(crate) const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/refresh/issuer.pem");

/// Serves until it is killed; says where, without TLS and with it.
pub(crate) fn serve() -> Result<()> {
    install_tls_provider();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let (plain, encrypted) = (TcpListener::bind(any).await?, TcpListener::bind(any).await?);
        let acceptor = acceptor()?;
        say(&format!("{} {}", plain.local_addr()?, encrypted.local_addr()?));
        loop {
            tokio::select! {
                stream = plain.accept() => {
                    tokio::spawn(connection(accepted(stream?.0)?));
                }
                stream = encrypted.accept() => {
                    let (stream, acceptor) = (accepted(stream?.0)?, acceptor.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            connection(stream).await;
                        }
                    });
                }
            }
        }
    })
}

fn accepted(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    Ok(stream)
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin) {
    // A caller that goes away is no failure.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// TLS as most issuers have it: whoever comes again need not look at the certificate once more.
fn acceptor() -> Result<TlsAcceptor> {
    let pem = fs::read(CERTIFICATE)?;
    let (certificate, key) = (CertificateDer::from_pem_slice(&pem)?, PrivateKeyDer::from_pem_slice(&pem)?);
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    config.ticketer = Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let answer = match *request.method() {
        Method::POST => exchange(request).await,
        _ => Ok(format!("{} {}", EXCHANGES.load(Ordering::Relaxed), CONNECTIONS.load(Ordering::Relaxed))),
    };
    Ok(match answer {
        Ok(body) => {
            let response = Response::builder().header("content-type", "application/json").body(Full::from(body));
            response.unwrap_or_default()
        }
        Err(error) => {
            let mut response = Response::new(Full::from(error.to_string()));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    })
}

async fn exchange(request: Request<Incoming>) -> Result<String> {
    let body = request.into_body().collect().await?.to_bytes();
    let form = std::str::from_utf8(&body)?;
    let token = form.split('&').find_map(|pair| pair.strip_prefix("refresh_token=")).context("no refresh token")?;
    let mut parts = token.split('-');
    let usage = parts.next().context("its kind")?;
    let number: u64 = parts.next().context("its number")?.parse()?;
    let exchanged: u64 = parts.next().context("its exchanges")?.parse()?;
    let next = match usage {
        "o" => refresh_token(number, Usage::OneTime, exchanged + 1),
        _ => token.to_owned(),
    };
    let count = EXCHANGES.fetch_add(1, Ordering::Relaxed);
    Ok(format!(
        r#"{{"access_token":"{}","expires_in":3600,"token_type":"Bearer","refresh_token":"{next}","scope":"dineropublicapi:read dineropublicapi:write offline_access"}}"#,
        access_token(&format!("{number:036}"), count)
    ))
}
