use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use axum::{body::Body, response::IntoResponse};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::{Semaphore, mpsc},
};

use super::*;

const LIMITS: Limits = Limits { all: 8, of_one: 4 };
const SOMEBODY: Caller = Caller::User(1);
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A connection whose requests are all answered with `fine`, and this side of it.
fn connected(shutdown: &CancellationToken) -> DuplexStream {
    let (ours, theirs) = duplex(4096);
    tokio::spawn(connection(theirs, place(shutdown), |_| async { "fine".into_response() }));
    ours
}

fn place(shutdown: &CancellationToken) -> Place {
    Places::new(LIMITS, shutdown.clone()).take(SOMEBODY).expect("it is the first")
}

async fn read_until(stream: &mut DuplexStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut bytes = [0; 512];
        let count = stream.read(&mut bytes).await.expect("readable");
        assert_ne!(count, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..count]).expect("text"));
    }
    text
}

/// How long the other side keeps the connection open if nothing more is sent.
async fn closed_after(stream: &mut DuplexStream) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("readable");
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_in_is_cut() {
    let mut stream = connected(&CancellationToken::new());
    let start = Instant::now();
    for byte in GET.iter().cycle() {
        if stream.write_all(&[if *byte == b'\r' { b'x' } else { *byte }]).await.is_err() {
            break;
        }
        sleep(Duration::from_secs(1)).await;
    }
    assert!(start.elapsed() <= HEAD_TIMEOUT + Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_outlives_the_head_timeout_and_is_closed_in_the_end() {
    let mut stream = connected(&CancellationToken::new());
    for _ in 0..3 {
        stream.write_all(GET).await.expect("open");
        assert!(read_until(&mut stream, "fine").await.starts_with("HTTP/1.1 200"));
        sleep(HEAD_TIMEOUT * 10).await;
    }
    let open = HEAD_TIMEOUT * 10 + closed_after(&mut stream).await;
    // The last request came at 100 s and was seen at the look of 120 s.
    assert_eq!(open.as_secs(), IDLE_TIMEOUT.as_secs() + 20);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_nothing_is_closed_after_the_idle_timeout() {
    let mut stream = connected(&CancellationToken::new());
    assert_eq!(closed_after(&mut stream).await.as_secs(), IDLE_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_second_head_that_stops_half_way_is_cut() {
    let mut stream = connected(&CancellationToken::new());
    stream.write_all(GET).await.expect("open");
    read_until(&mut stream, "fine").await;
    stream.write_all(&GET[..10]).await.expect("open");
    assert_eq!(closed_after(&mut stream).await.as_secs(), HEAD_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_never_reads_the_answer_is_cut() {
    let (mut ours, theirs) = duplex(64);
    let large = || async { Body::from(vec![b'x'; 1 << 20]).into_response() };
    let served = tokio::spawn(connection(theirs, place(&CancellationToken::new()), move |_| large()));
    let start = Instant::now();
    ours.write_all(GET).await.expect("open");
    served.await.expect("no panic");
    assert_eq!(start.elapsed().as_secs(), WRITE_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn shutdown_closes_idle_connections_at_once() {
    let shutdown = CancellationToken::new();
    let (mut fresh, mut used) = (connected(&shutdown), connected(&shutdown));
    used.write_all(GET).await.expect("open");
    read_until(&mut used, "fine").await;
    shutdown.cancel();
    assert_eq!(closed_after(&mut fresh).await, Duration::ZERO);
    assert_eq!(closed_after(&mut used).await, Duration::ZERO);
}

/// Hands out the far ends of connections that a test makes.
struct Given(tokio::sync::Mutex<mpsc::UnboundedReceiver<DuplexStream>>);

impl Listener for Given {
    type Stream = DuplexStream;

    async fn next(&self) -> io::Result<DuplexStream> {
        self.0.lock().await.recv().await.ok_or(io::ErrorKind::BrokenPipe.into())
    }
}

fn given() -> (mpsc::UnboundedSender<DuplexStream>, Given) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Given(tokio::sync::Mutex::new(receiver)))
}

#[tokio::test(start_paused = true)]
async fn a_request_under_way_is_answered_after_shutdown_and_one_that_hangs_is_cut() {
    let (sender, listener) = given();
    let (gate, shutdown) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
    let answer = {
        let gate = Arc::clone(&gate);
        move |_| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.expect("open").forget();
                "fine".into_response()
            }
        }
    };
    let served = tokio::spawn(serve(listener, LIMITS, shutdown.clone(), move |_| Some((SOMEBODY, answer.clone()))));
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (mut ours, theirs) = duplex(4096);
        sender.send(theirs).expect("accepting");
        ours.write_all(GET).await.expect("open");
        streams.push(ours);
    }
    sleep(Duration::from_secs(1)).await;
    shutdown.cancel();
    sleep(Duration::from_secs(1)).await;
    gate.add_permits(1);
    assert!(read_until(&mut streams[0], "fine").await.contains("connection: close"));
    let end = served.await.expect("no panic");
    assert_eq!(Instant::now().duration_since(end).as_millis() / 100, 0, "the second request got the whole drain");
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_takes_the_place_of_the_callers_idlest() {
    let (sender, listener) = given();
    tokio::spawn(serve(listener, LIMITS, CancellationToken::new(), |_| {
        Some((SOMEBODY, |_| async { "fine".into_response() }))
    }));
    let mut streams = Vec::new();
    for _ in 0..=LIMITS.of_one {
        let (mut ours, theirs) = duplex(4096);
        sender.send(theirs).expect("accepting");
        ours.write_all(GET).await.expect("open");
        read_until(&mut ours, "fine").await;
        streams.push(ours);
    }
    assert_eq!(closed_after(&mut streams[0]).await, Duration::ZERO);
    for stream in &mut streams[1..] {
        stream.write_all(GET).await.expect("open");
        read_until(stream, "fine").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_all_of_whose_connections_are_busy_is_told_so() {
    let (sender, listener) = given();
    tokio::spawn(serve(listener, LIMITS, CancellationToken::new(), |_| {
        Some((SOMEBODY, |_| std::future::pending::<Response>()))
    }));
    let mut streams = Vec::new();
    for _ in 0..=LIMITS.of_one {
        let (mut ours, theirs) = duplex(4096);
        sender.send(theirs).expect("accepting");
        ours.write_all(GET).await.expect("open");
        sleep(Duration::from_millis(10)).await;
        streams.push(ours);
    }
    let mut answer = String::new();
    streams[LIMITS.of_one].read_to_string(&mut answer).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("whole");
    assert!(head.starts_with("HTTP/1.1 429") && head.contains(&format!("content-length: {}", body.len())), "{head}");
    let problem: crate::wire::Problem = serde_json::from_str(body).expect("a problem");
    assert_eq!((problem.status, problem.code), (429, crate::wire::Code::TooManyRequests));
}

#[tokio::test]
async fn a_panic_becomes_an_answer() {
    let response = catching_panics(async { panic!("on purpose") }, || "otherwise".into_response()).await;
    assert_eq!(response.status(), 200);
}

/// A stream that notes how many requests had begun whenever an answer is written to it.
struct Noting {
    stream: DuplexStream,
    begun: Arc<AtomicU64>,
    at_write: Arc<Mutex<Vec<u64>>>,
}

impl AsyncRead for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.at_write.lock().expect("nobody panics").push(self.begun.load(Ordering::Relaxed));
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[tokio::test]
async fn what_several_connections_ask_is_read_before_the_first_answer_is_sent() {
    let places = Places::new(LIMITS, CancellationToken::new());
    let (begun, at_write) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let mut callers = Vec::new();
    for _ in 0..3 {
        let (ours, theirs) = duplex(4096);
        let stream = Noting { stream: theirs, begun: Arc::clone(&begun), at_write: Arc::clone(&at_write) };
        let (place, begun) = (places.take(SOMEBODY).expect("room"), Arc::clone(&begun));
        tokio::spawn(connection(stream, place, move |_| {
            begun.fetch_add(1, Ordering::Relaxed);
            async { "fine".into_response() }
        }));
        callers.push(ours);
    }
    // None of them waits, so that all requests are there before the first connection has its turn.
    for caller in &mut callers {
        caller.write_all(GET).await.expect("open");
    }
    for caller in &mut callers {
        read_until(caller, "fine").await;
    }
    let seen = at_write.lock().expect("nobody panics").clone();
    assert!(!seen.is_empty() && seen.iter().all(|begun| *begun == 3), "{seen:?}");
}
