//! The baseline: hyper on a Unix socket that answers everything with the same bytes.

use std::{convert::Infallible, fs, path::Path};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response,
    header::{CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::common::{caller::Answer, report::say};

/// Writes down an answer of the worker for [`serve`].
pub(crate) fn write(file: &Path, answer: &Answer) -> Result<()> {
    Ok(fs::write(file, [answer.head.as_bytes(), &answer.body].concat())?)
}

/// Serves until it is killed. `arguments`: the socket, and the file with the answer.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    let [socket, file, ..] = arguments else { anyhow::bail!("it takes a socket and a file") };
    let (headers, body) = read(&fs::read(file)?)?;
    // As many threads as the worker has: one, where it is pinned.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = UnixListener::bind(socket)?;
        say("ready");
        loop {
            let stream = listener.accept().await?.0;
            let (headers, body) = (headers.clone(), body.clone());
            tokio::spawn(async move {
                let service = service_fn(|_| {
                    let mut response = Response::new(Full::new(body.clone()));
                    *response.headers_mut() = headers.clone();
                    async { Ok::<_, Infallible>(response) }
                });
                // A caller that goes away is no failure.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

/// The headers that hyper does not write by itself, and the body.
fn read(answer: &[u8]) -> Result<(HeaderMap, Bytes)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("an answer")?;
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(&answer[..end])?.lines().skip(1) {
        let (name, value) = line.split_once(": ").context("a header")?;
        headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    headers.remove(DATE);
    headers.remove(CONTENT_LENGTH);
    Ok((headers, Bytes::copy_from_slice(&answer[end + 4..])))
}
