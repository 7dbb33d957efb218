//! An issuer as bad as they come: whatever it is sent, it sends back, in each place where an answer has room for it.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::json;

/// How it answers at the path of the same name.
pub(crate) const MANNERS: [&str; 7] =
    ["invalid-grant", "invalid-client", "other-error", "cut-off", "page", "header", "wrong-types"];

/// Starts it; gives its URL, below which [`MANNERS`] are. Its threads end with the test's process.
pub(crate) fn start() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback address");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
    url
}

fn answer(mut stream: TcpStream) {
    let Some(request) = read(&mut stream) else { return };
    let manner = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let line: String = request.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let error = |error: &str| json!({ "error": error, "error_description": line, "error_uri": line }).to_string();
    let (status, kind, body) = match &*manner {
        "invalid-grant" => ("400 Bad Request", "application/json", error("invalid_grant")),
        "invalid-client" => ("401 Unauthorized", "application/json", error("invalid_client")),
        "other-error" => ("400 Bad Request", "application/json", error(&line)),
        "cut-off" => ("200 OK", "application/json", format!("{{\"access_token\":\"{line}")),
        "page" => ("502 Bad Gateway", "text/html", format!("<html>{line}</html>")),
        "wrong-types" => (
            "200 OK",
            "application/json",
            json!({ "access_token": [line], "expires_in": line, "token_type": line, "scope": [line] }).to_string(),
        ),
        _ => ("503 Service Unavailable", "text/plain", line.clone()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nwww-authenticate: {line}\r\nx-echo: {line}\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    // Whoever asked may be gone.
    let _ = stream.write_all(answer.as_bytes());
}

fn read(stream: &mut TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:").map(str::to_owned));
            let length: usize = length.map_or(Some(0), |length| length.trim().parse().ok())?;
            if body.len() >= length {
                return Some(text);
            }
        }
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
