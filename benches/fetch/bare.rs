//! The baseline: hyper on a Unix socket that answers with the worker's bytes. It takes the answer by the number in the path from a
//! table, and does nothing else.

use std::{convert::Infallible, fs, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::common::{caller::Answer, report::say, site};

/// What is sent of one answer.
type Kept = (HeaderMap, Bytes);

/// Writes down answers of the worker for [`serve`], those of the first organizations in order.
pub(crate) fn write(file: &Path, answers: &[Answer]) -> Result<()> {
    let parts = answers.iter().flat_map(|answer| [answer.head.as_bytes(), &answer.body]);
    Ok(fs::write(file, parts.collect::<Vec<_>>().concat())?)
}

/// Serves until it is killed. `arguments`: the socket, and the file with the answers.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    let [socket, file, ..] = arguments else { bail!("it takes a socket and a file") };
    let answers: Arc<[Kept]> = read(&fs::read(file)?)?.into();
    // As many threads as the worker has: one, where it is pinned.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = UnixListener::bind(socket)?;
        say("ready");
        loop {
            let stream = listener.accept().await?.0;
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let (headers, body) = &answers[number(request.uri().path())];
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

/// Which organization a path is about, counted from the first.
fn number(path: &str) -> usize {
    let number = path.split('/').nth(3).and_then(site::number).and_then(|number| number.try_into().ok());
    number.expect("nothing but organizations is asked for")
}

/// Each answer's headers that hyper does not write by itself, and its body.
fn read(mut answers: &[u8]) -> Result<Vec<Kept>> {
    let mut kept = Vec::new();
    while !answers.is_empty() {
        let end = answers.windows(4).position(|window| window == b"\r\n\r\n").context("an answer")?;
        let mut headers = HeaderMap::new();
        for line in std::str::from_utf8(&answers[..end])?.lines().skip(1) {
            let (name, value) = line.split_once(": ").context("a header")?;
            headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        headers.remove(DATE);
        let length = headers.remove(CONTENT_LENGTH).context("a length")?.to_str()?.parse()?;
        let (body, rest) = answers[end + 4..].split_at_checked(length).context("a whole answer")?;
        kept.push((headers, Bytes::copy_from_slice(body)));
        answers = rest;
    }
    Ok(kept)
}
