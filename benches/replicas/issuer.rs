//! A stand-in issuer of one-time tokens that costs next to nothing and knows of each how often it was exchanged: one that comes
//! a second time, or before its time, is refused and counted.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use consentry::model::Usage;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::common::{
    access_token,
    caller::{Connection, get},
    process::Process,
    report::say,
    site::refresh_token,
};

/// How often it is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Seen {
    /// How often each consent's token was exchanged.
    exchanged: HashMap<u64, u64>,
    exchanges: u64,
    refused: u64,
}

impl Seen {
    fn counts(&self) -> String {
        format!("{} {}", self.exchanges, self.refused)
    }
}

/// Serves until it is killed; says where.
pub(crate) fn serve() -> Result<()> {
    let seen: &'static Mutex<Seen> = Box::leak(Box::default());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        say(&listener.local_addr()?.to_string());
        loop {
            let stream = listener.accept().await?.0;
            stream.set_nodelay(true)?;
            let service = service_fn(|request| answer(seen, request));
            tokio::spawn(async move {
                // A caller that goes away is no failure.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

async fn answer(seen: &Mutex<Seen>, request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, body) = match request.uri().path() {
        "/token" => {
            if let Ok(body) = exchange(seen, request).await {
                (StatusCode::OK, body)
            } else {
                lock().refused += 1;
                (StatusCode::BAD_REQUEST, r#"{"error":"invalid_grant"}"#.to_owned())
            }
        }
        "/anew" => {
            *lock() = Seen::default();
            (StatusCode::OK, "0 0".to_owned())
        }
        _ => (StatusCode::OK, lock().counts()),
    };
    let response = Response::builder().status(status).header("content-type", "application/json");
    Ok(response.body(Full::from(body)).unwrap_or_default())
}

async fn exchange(seen: &Mutex<Seen>, request: Request<Incoming>) -> Result<String> {
    let body = request.into_body().collect().await?.to_bytes();
    let form = std::str::from_utf8(&body)?;
    let token = form.split('&').find_map(|pair| pair.strip_prefix("refresh_token=")).context("no refresh token")?;
    let mut parts = token.split('-').skip(1);
    let number: u64 = parts.next().context("its number")?.parse()?;
    let exchanged: u64 = parts.next().context("its exchanges")?.parse()?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let times = seen.exchanged.entry(number).or_default();
    if *times != exchanged {
        bail!("it was exchanged {times} times");
    }
    *times += 1;
    seen.exchanges += 1;
    Ok(format!(
        r#"{{"access_token":"{}","expires_in":3600,"token_type":"Bearer","refresh_token":"{}","scope":"dineropublicapi:read dineropublicapi:write offline_access"}}"#,
        access_token(&format!("{number:036}"), seen.exchanges),
        refresh_token(number, Usage::OneTime, exchanged + 1),
    ))
}

/// Its process.
pub(crate) struct Issuer {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Issuer {
    pub(crate) fn start() -> Result<Self> {
        let mut process = Process::role("issuer", &[], None)?;
        let address = process.line()?.parse()?;
        Ok(Self { process, address })
    }

    pub(crate) fn end(self) -> Result<()> {
        self.process.kill()
    }

    /// It forgets every token.
    pub(crate) fn begin(&self) -> Result<()> {
        self.tell("/anew").map(drop)
    }

    /// Waits until it has made at least so many exchanges; gives how many. None may have been refused.
    pub(crate) fn reaches(&self, count: u64, patience: Duration) -> Result<u64> {
        let end = Instant::now() + patience;
        loop {
            let (exchanges, refused) = self.tell("/count")?;
            ensure!(refused == 0, "{refused} tokens were sent twice");
            if exchanges >= count {
                return Ok(exchanges);
            }
            ensure!(Instant::now() < end, "after {patience:?} there are {exchanges} of {count} exchanges");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn tell(&self, path: &str) -> Result<(u64, u64)> {
        let mut connection = Connection::new(std::net::TcpStream::connect(self.address)?);
        connection.ask(&get(path))?;
        let answer = connection.answer()?;
        let (exchanges, refused) = std::str::from_utf8(&answer.body)?.split_once(' ').context("two counts")?;
        Ok((exchanges.parse()?, refused.parse()?))
    }
}
