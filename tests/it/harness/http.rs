//! The least HTTP/1.1 that a test needs: one request a connection, over TCP or a Unix socket.

use std::{
    io::{Error, ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::Value;
use url::form_urlencoded;

use super::PATIENCE;

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// Names in lower case, in the order they came.
    headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub(crate) body: String,
}

impl Response {
    /// The first header of this name, which must be in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The name of every header, in the order they came.
    pub(crate) fn header_names(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().map(|(name, _)| name.as_str())
    }

    /// Every header of this name, which must be in lower case.
    pub(crate) fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The events of a `text/event-stream`, in order.
    pub(crate) fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error} in {data}"))).collect()
    }

    /// The body as JSON; null where it is empty.
    pub(crate) fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in the answer {self:?}"))
    }
}

/// A request's headers.
pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

/// Sends a request to `address` (`127.0.0.1:80`) and reads the answer.
pub(crate) fn over_tcp(address: &str, method: &str, path: &str, headers: Headers<'_>, body: &str) -> Response {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit that is not zero");
    converse(stream, address, method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// As [`over_tcp`], asking for `host`, as a browser does that was led to `address` by a name.
pub(crate) fn over_tcp_for(
    host: &str,
    address: &str,
    method: &str,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> Response {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit that is not zero");
    converse(stream, host, method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// Sends a request to the Unix socket at `socket` and reads the answer; an error where nobody listens.
pub(crate) fn over_unix(
    socket: &Path,
    method: &str,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> std::io::Result<Response> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    converse(stream, "localhost", method, path, headers, body)
}

/// A form body (`application/x-www-form-urlencoded`).
pub(crate) fn form(fields: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

fn converse(
    mut stream: impl Read + Write,
    host: &str,
    method: &str,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> std::io::Result<Response> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    if !body.is_empty() || matches!(method, "POST" | "PUT") {
        request.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
    }
    request.push_str("\r\n");
    request.push_str(body);
    // A body that is too large is refused before it was read; the answer is there nevertheless.
    let closed = |error: &Error| matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
    if let Err(error) = stream.write_all(request.as_bytes())
        && !closed(&error)
    {
        return Err(error);
    }
    let mut answer = Vec::new();
    match read(&mut stream, &mut answer) {
        Err(error) if answer.is_empty() || !closed(&error) => Err(error),
        _ if answer.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
        _ => parse(&answer),
    }
}

/// Reads until the peer closes; or until the answer is whole by its announced length, since a peer may keep the connection
/// whatever it was asked for.
fn read(stream: &mut impl Read, answer: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let mut whole = None;
    while whole.is_none_or(|length| answer.len() < length) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        whole = whole.or_else(|| announced(answer));
    }
    Ok(())
}

/// How many bytes the answer has by its own account, once its head is there and says so.
fn announced(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Some(end + 4 + lengths.next()?.1.trim().parse::<usize>().ok()?)
}

/// An answer that was cut short, as by a peer that died, is an error; one that makes no sense is a panic.
fn parse(answer: &[u8]) -> std::io::Result<Response> {
    let cut_short = || Error::from(ErrorKind::UnexpectedEof);
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(cut_short)?;
    let (head, rest) = (std::str::from_utf8(&answer[..end]).expect("heads are text"), &answer[end + 4..]);
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status in {head:?}"));
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, headers, body: String::new() };
    let body = if response.header("transfer-encoding") == Some("chunked") { dechunk(rest) } else { rest.to_owned() };
    if response.header("content-length").is_some_and(|length| length != body.len().to_string()) {
        return Err(cut_short());
    }
    // But for a backup, of which no test looks at a byte here, every body is text.
    response.body = match String::from_utf8(body) {
        Err(bytes) if response.header("content-type") == Some("application/octet-stream") => {
            String::from_utf8_lossy(bytes.as_bytes()).into_owned()
        }
        text => text.expect("answers are text"),
    };
    Ok(response)
}

/// Undoes the chunked transfer coding (RFC 9112 section 7.1).
fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|bytes| bytes == b"\r\n").expect("a chunk begins with its size");
        let size = std::str::from_utf8(&rest[..line]).expect("a size is text");
        let size = usize::from_str_radix(size.split(';').next().unwrap_or(size), 16).expect("a chunk's size is hex");
        if size == 0 {
            return body;
        }
        let chunk = &rest[line + 2..];
        body.extend_from_slice(&chunk[..size]);
        rest = &chunk[size + 2..];
    }
}

#[test]
fn a_chunked_answer_is_put_together() {
    let answer =
        parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n")
            .expect("it is whole");
    assert_eq!((answer.status, answer.body.as_str()), (200, "abc0123456789"));
}

#[test]
fn an_answer_that_was_cut_short_is_told_from_a_whole_one() {
    let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345";
    assert!(parse(whole).is_ok());
    for cut in [1, 20, whole.len() - 1] {
        assert!(parse(&whole[..cut]).is_err(), "{cut}");
    }
}
