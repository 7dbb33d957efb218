//! The board's pages with a hundred thousand organizations, against a page of the API's list of the same worker.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use anyhow::{Result, ensure};
use serde_json::json;

use self::common::{
    report::{Report, Series, table},
    site::{Fleet, Options, Site},
    worker::Worker,
};

const ORGANIZATIONS: u64 = 100_000;
const ROUNDS: usize = 20;
/// As many rows as the board has on a page.
const LIST: &str = "/v1/organizations?limit=50";
/// What is asked of the board.
const PAGES: [(&str, &str); 5] = [
    ("the whole board", "/board"),
    ("a page of the table", "/board/results"),
    ("a part of an id", "/board/results?q=0012"),
    ("a state", "/board/results?state=active&sort=id"),
    ("a label that nobody has, 5,000 read", "/board/results?q=nobody"),
];

fn main() -> Result<()> {
    let mut report = Report::new("board");
    let site = Site::new(Options::default())?;
    site.fill(0, ORGANIZATIONS, Fleet::Warm)?;
    let address = free_address()?;
    let text = fs::read_to_string(site.config_file())?;
    let listen = format!("listen = \"{address}\"\n[http.board]\nenabled = true");
    fs::write(site.config_file(), text.replace("listen = \"\"", &listen))?;
    let mut worker = Worker::start(&site, None)?;
    worker.ready()?;
    report.note("nothing is pinned; each request has a connection of its own");

    let mut list = Series::default();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        ensure!(worker.get(LIST)?.is_ok, "the list was refused");
        list.push(started.elapsed().as_secs_f64());
    }
    let row = |name: &str, series: &Series, ratio: f64| {
        vec![name.to_owned(), series.scaled(1000.0).shown(1), format!("{ratio:.1}")]
    };
    let mut rows = vec![row("the API's list", &list, 1.0)];
    let mut kept = vec![json!({ "page": "list", "seconds": list.json(), "ratio": 1.0 })];
    for (name, path) in PAGES {
        let mut series = Series::default();
        for _ in 0..ROUNDS {
            let started = Instant::now();
            ensure!(is_ok(address, path)?, "{path} was refused");
            series.push(started.elapsed().as_secs_f64());
        }
        let ratio = series.median() / list.median();
        rows.push(row(name, &series, ratio));
        kept.push(json!({ "page": path, "seconds": series.json(), "ratio": ratio }));
    }
    table(&["page", "ms", "ratio"], &rows);
    report.keep("organizations", json!(ORGANIZATIONS));
    report.keep("pages", json!(kept));
    worker.process.terminate()?;
    report.finish()
}

/// A port that nobody listens on.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn is_ok(address: SocketAddr, path: &str) -> Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
