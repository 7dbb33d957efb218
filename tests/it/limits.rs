//! Callers who ask for too much, or for nonsense: they are refused or cut off, and everybody else is answered as before.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{
    PATIENCE,
    caller::{Caller, may_become_others},
    eventually,
    worker::{Setup, Worker},
};

/// The most memory that the worker may use, whatever callers do, in bytes. A debug build that holds nothing uses 40 MB; the
/// 1,024 connections of one caller add less than 100.
const MOST_MEMORY: u64 = 256 * 1024 * 1024;
/// How many connections one caller forgets.
const FORGOTTEN: usize = 10_000;
/// So long may a head take, and a little more on a busy machine.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

fn start() -> Worker {
    Setup::default().log("level = \"warn\"").access("uid = 1001\nrole = \"fetch\"").reachable_for_all().start()
}

/// The worker answers on both listeners, and is as large as it may be.
fn is_well(worker: &Worker) {
    assert_eq!(worker.get("/healthz").status, 200);
    assert_eq!(worker.inside("/healthz").status, 200);
    let memory = worker.memory();
    assert!(memory <= MOST_MEMORY, "the worker uses {memory} bytes");
}

/// A connection of either listener.
trait Connection: Read + Write + Send {}

impl Connection for UnixStream {}
impl Connection for TcpStream {}

fn to_socket(worker: &Worker) -> Box<dyn Connection> {
    let stream = UnixStream::connect(worker.socket()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
    Box::new(stream)
}

fn to_http(worker: &Worker) -> Box<dyn Connection> {
    let stream = TcpStream::connect(worker.http()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
    Box::new(stream)
}

type Connect = fn(&Worker) -> Box<dyn Connection>;
const LISTENERS: [(&str, Connect); 2] = [("the socket", to_socket), ("the HTTP listener", to_http)];

/// Sends all of `parts` unless the worker closes before, and reads to the end; what was answered. The worker has to end it:
/// a caller who ends his side first is taken for one who has gone, and what he still waits for is not sent.
fn say<'a>(mut connection: Box<dyn Connection>, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    for part in parts {
        if connection.write_all(part).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    match connection.read_to_end(&mut answer) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        read => drop(read.expect("the worker ends what it refuses")),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// Takes as many descriptors as this process may have; whether they are enough for `wanted` connections.
fn may_have(wanted: usize) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let enough = limit.maximum.is_none_or(|maximum| maximum >= wanted as u64 + 1000);
    if !enough {
        #[expect(clippy::print_stderr, reason = "a test that checks less must say so")]
        {
            eprintln!("SKIPPED: {wanted} connections need more open files than this process may have");
        }
    }
    enough
}

#[test]
fn ten_thousand_idle_connections_of_one_caller_keep_nobody_out() {
    if !may_have(FORGOTTEN) || !may_become_others() {
        return;
    }
    let worker = start();
    let greedy = Caller::user(1001);
    let connect = || (0..FORGOTTEN).map(|_| UnixStream::connect(worker.socket())).collect::<Result<Vec<_>, _>>();
    let forgotten = greedy.act(connect).expect("every one is accepted, or its predecessor is ended for it");
    is_well(&worker);
    assert!(worker.command(&["status"]).status.success());
    for caller in [Caller::user(1002), greedy] {
        assert_eq!(worker.request_as(&caller, "GET", "/healthz", &[], "").status, 200);
    }
    // What is left is the newest, and can be used.
    let mut newest = forgotten.last().expect("many");
    newest.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").expect("it is open");
    let mut answer = [0; 15];
    newest.read_exact(&mut answer).expect("it is answered");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert!(worker.log().contains("more connections than it may"), "{}", worker.log());
}

#[test]
fn the_http_listener_too_outlives_callers_who_forget_their_connections() {
    if !may_have(2000) {
        return;
    }
    let worker = start();
    let _forgotten: Vec<_> = (0..2000).map(|_| TcpStream::connect(worker.http()).expect("accepted")).collect();
    is_well(&worker);
}

#[test]
fn heads_that_come_byte_by_byte_are_cut_off() {
    let worker = start();
    let mut slow: Vec<_> = (0..100).flat_map(|_| LISTENERS.map(|(_, connect)| Some(connect(&worker)))).collect();
    let start = Instant::now();
    let head = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ".iter().chain(std::iter::repeat(&b'x'));
    for byte in head {
        for connection in &mut slow {
            if connection.as_mut().is_some_and(|connection| connection.write_all(&[*byte]).is_err()) {
                *connection = None;
            }
        }
        if slow.iter().all(Option::is_none) {
            break;
        }
        is_well(&worker);
        assert!(start.elapsed() < HEAD_TIMEOUT + PATIENCE, "{} live on", slow.iter().flatten().count());
        thread::sleep(Duration::from_millis(200));
    }
    assert!(start.elapsed() >= HEAD_TIMEOUT, "a head has its time");
}

#[test]
fn bodies_without_end_are_refused() {
    let worker = start();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for (name, connect) in LISTENERS {
        let put = "PUT /v1/organizations/1 HTTP/1.1\r\nhost: x\r\n";
        let endless = || std::iter::repeat(chunk.as_bytes());
        let expected = if name == "the socket" { 413 } else { 404 };
        let long = format!("{put}content-length: 1000000000000\r\n\r\n");
        let answer = say(connect(&worker), std::iter::once(long.as_bytes()).chain(endless()));
        assert_eq!(status(&answer), Some(expected), "{name}: {answer}");
        let chunked = format!("{put}transfer-encoding: chunked\r\n\r\n");
        let answer = say(connect(&worker), std::iter::once(chunked.as_bytes()).chain(endless()));
        assert_eq!(status(&answer), Some(expected), "{name}: {answer}");
        is_well(&worker);
    }
}

#[test]
fn ids_that_are_none_are_refused_as_described() {
    let worker = start();
    let long = "a".repeat(10 * 1024);
    let encoded = "%41".repeat(10 * 1024);
    for id in [
        "%00",
        "a%00b",
        "a%2Fb",
        "%2e%2e",
        "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd",
        "..",
        ".%2e",
        "%252e%252e",
        "%",
        "%4",
        "%zz",
        "%c0%ae",
        "%ff",
        "%C3%A6",
        "%F0%9F%92%A9",
        "%E2%80%AE",
        "%EF%BC%8E",
        "a+b",
        "a%20b",
        "a;b",
        "a'b",
        "a\"b",
        "*",
        "%0d%0aset-cookie:x",
        "~",
        "$",
        &long,
        &encoded,
    ] {
        for suffix in ["", "/token", "/pause"] {
            let path = format!("/v1/organizations/{id}{suffix}");
            let method = if suffix == "/pause" { "POST" } else { "GET" };
            let answer = worker.request(method, &path, &[], "");
            let fine = match id {
                // Valid ids, of nobody.
                ".." | "%2e%2e" | ".%2e" => answer.status == 404,
                _ => answer.status == 400,
            };
            assert!(fine, "{path}: {answer:?}");
            assert!(answer.body.len() < 1000, "{answer:?}");
        }
    }
    for path in ["/v1/organizations/a/b", "/v1/organizations/a/../b", "//v1/status", "/v1/organizations//token", "/v1/"]
    {
        let answer = worker.get(path);
        assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
    }
    let twice = ["/v1/organizations/a/token?min_ttl=1&min_ttl=1", "/v1/organizations?limit=1&limit=1"];
    for path in twice {
        assert_eq!(worker.get(path).status, 400, "{path}");
    }
    is_well(&worker);
}

#[test]
fn what_is_no_request_ends_the_connection_and_nothing_else() {
    let worker = start();
    let header = |name: &str, value: &str| format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{name}: {value}\r\n\r\n");
    let many = |count: usize| {
        let headers = "x-one-of-many: 1\r\n".repeat(count - 2);
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n")
    };
    for (name, connect) in LISTENERS {
        for (what, expected) in [
            (b"\0\0\0\0\r\n\r\n".to_vec(), 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
            (b"GET /v1/organizations/a\0b HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), 400),
            (b"GET /healthz HTTP/9.9\r\nhost: x\r\n\r\n".to_vec(), 400),
            (b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_vec(), 400),
            (b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_vec(), 400),
            (header("x-control", "a\0b").into_bytes(), 400),
            (header("x-huge", &"x".repeat(1 << 20)).into_bytes(), 431),
            (header(&"x".repeat(1 << 20), "1").into_bytes(), 431),
            (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(1 << 20)).into_bytes(), 431),
            (many(101).into_bytes(), 431),
            (many(5000).into_bytes(), 431),
        ] {
            let answer = say(connect(&worker), [&what[..]]);
            let shown = String::from_utf8_lossy(&what[..what.len().min(60)]).into_owned();
            assert!(
                status(&answer).is_some_and(|status| status == expected || (status == 414 && expected == 431)),
                "{name}, {shown:?}: {answer:?}"
            );
        }
        assert_eq!(status(&say(connect(&worker), [many(100).as_bytes()])), Some(200), "{name}");
        is_well(&worker);
    }
}

#[test]
fn requests_in_a_row_are_answered_in_their_order_and_answers_that_nobody_takes_cost_no_memory() {
    let worker = start();
    for (name, connect) in LISTENERS {
        let good = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
        let bad = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n";
        let close = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let row = [&good[..], bad, good, bad, bad, close].concat();
        let answers = say(connect(&worker), [&row[..]]);
        let found: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].to_owned()).collect();
        assert_eq!(found, ["200", "404", "200", "404", "404", "200"], "{name}");
    }
    let mut unread = Vec::new();
    for _ in 0..50 {
        let stream = TcpStream::connect(worker.http()).expect("it listens");
        stream.set_nonblocking(true).expect("a socket");
        let many = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2000);
        // As much as the kernel takes.
        let _ = (&stream).write(&many);
        unread.push(stream);
    }
    for _ in 0..10 {
        is_well(&worker);
        thread::sleep(Duration::from_millis(100));
    }
    drop(unread);
    eventually("the worker has time again", || (worker.inside("/readyz").status == 200).then_some(()));
    is_well(&worker);
}
