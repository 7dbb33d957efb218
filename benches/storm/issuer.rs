//! A stand-in issuer that can be down. While it is, every exchange is answered by 503, which spends nothing; else it
//! believes every token, keeps nothing but a count, and gives a token of the usual size and a refresh token that is one
//! exchange on.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use consentry::model::Usage;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::common::{access_token, report::say, site::refresh_token};

static EXCHANGES: AtomicU64 = AtomicU64::new(0);
static DOWN: AtomicBool = AtomicBool::new(false);

/// Serves until it is killed; says where.
pub(crate) fn serve() -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        say(&listener.local_addr()?.to_string());
        loop {
            let stream = listener.accept().await?.0;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                // A caller that goes away is no failure.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    match request.uri().path() {
        "/token" => {}
        path => {
            match path {
                "/down" => DOWN.store(true, Ordering::Relaxed),
                "/well" => DOWN.store(false, Ordering::Relaxed),
                _ => {}
            }
            return Ok(Response::new(Full::from(EXCHANGES.load(Ordering::Relaxed).to_string())));
        }
    }
    let (status, body) = if DOWN.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "{}".to_owned())
    } else {
        match exchange(request).await {
            Ok(body) => (StatusCode::OK, body),
            Err(_) => (StatusCode::BAD_REQUEST, r#"{"error":"invalid_grant"}"#.to_owned()),
        }
    };
    let response = Response::builder().status(status).header("content-type", "application/json");
    Ok(response.body(Full::from(body)).unwrap_or_default())
}

async fn exchange(request: Request<Incoming>) -> Result<String> {
    let body = request.into_body().collect().await?.to_bytes();
    let form = std::str::from_utf8(&body)?;
    let token = form.split('&').find_map(|pair| pair.strip_prefix("refresh_token=")).context("no refresh token")?;
    let mut parts = token.split('-').skip(1);
    let number: u64 = parts.next().context("its number")?.parse()?;
    let exchanged: u64 = parts.next().context("its exchanges")?.parse()?;
    let next = refresh_token(number, Usage::OneTime, exchanged + 1);
    let count = EXCHANGES.fetch_add(1, Ordering::Relaxed);
    Ok(format!(
        r#"{{"access_token":"{}","expires_in":3600,"token_type":"Bearer","refresh_token":"{next}","scope":"dineropublicapi:read dineropublicapi:write offline_access"}}"#,
        access_token(&format!("{number:036}"), count)
    ))
}
