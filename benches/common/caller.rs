//! The calling side: HTTP/1.1 on connections that are kept, as cheap as it can be made, so that the served side is the
//! one that is measured.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// A request for `path`.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// One connection, with at most one request under way.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    buffer: Box<[u8]>,
    asked: Instant,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Whether its status was 200.
    pub(crate) is_ok: bool,
    /// The head as it came.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    /// A connection over a stream that blocks.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; MAX_ANSWER].into(), asked: Instant::now() }
    }

    /// Sends a request.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<()> {
        self.asked = Instant::now();
        Ok(self.stream.write_all(request)?)
    }

    /// Reads the answer, whatever it is.
    pub(crate) fn answer(&mut self) -> Result<Answer> {
        let (head, end) = self.read()?;
        Ok(Answer {
            is_ok: is_ok(&self.buffer),
            head: String::from_utf8_lossy(&self.buffer[..head]).into_owned(),
            body: self.buffer[head..end].to_vec(),
        })
    }

    /// Reads an answer that has to be 200; gives its size and how long it took.
    fn expect_ok(&mut self) -> Result<(usize, Duration)> {
        let (_, end) = self.read()?;
        if !is_ok(&self.buffer) {
            bail!("an answer was not 200: {}", String::from_utf8_lossy(&self.buffer[..end]));
        }
        Ok((end, self.asked.elapsed()))
    }

    /// Reads one whole answer into the buffer; gives where its head and its body end.
    fn read(&mut self) -> Result<(usize, usize)> {
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            if read == 0 {
                bail!("the connection was closed, or the answer is larger than {MAX_ANSWER} bytes");
            }
            filled += read;
            let Some(head) = find(&self.buffer[..filled], b"\r\n\r\n").map(|at| at + 4) else { continue };
            let end = head + content_length(&self.buffer[..head])?;
            if filled == end {
                return Ok((head, end));
            }
        }
    }
}

/// What a caller saw in one round.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) answers: usize,
    pub(crate) bytes: usize,
    pub(crate) took: Duration,
    latencies: Vec<Duration>,
}

impl Load {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64()
    }

    /// The latency below which `percent` of the answers came, in microseconds.
    pub(crate) fn percentile(&mut self, percent: usize) -> f64 {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// Keeps one request under way on every connection for `length`, and takes the answers in turn. Each must be 200.
pub(crate) fn load<S: Read + Write>(
    connections: &mut [Connection<S>],
    requests: &[Vec<u8>],
    length: Duration,
) -> Result<Load> {
    let mut requests = requests.iter().cycle();
    let mut next = || requests.next().context("there is something to ask");
    let (mut bytes, mut latencies) = (0, Vec::with_capacity(1 << 20));
    let started = Instant::now();
    for connection in &mut *connections {
        connection.ask(next()?)?;
    }
    while started.elapsed() < length {
        for connection in &mut *connections {
            let (size, latency) = connection.expect_ok()?;
            bytes += size;
            latencies.push(latency);
            connection.ask(next()?)?;
        }
    }
    let took = started.elapsed();
    for connection in connections {
        connection.expect_ok()?;
    }
    Ok(Load { answers: latencies.len(), bytes, took, latencies })
}

fn is_ok(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/1.1 200 ")
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn content_length(head: &[u8]) -> Result<usize> {
    const NAME: &[u8] = b"content-length: ";
    let at = find(head, NAME).context("an answer without a length")? + NAME.len();
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Ok(digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0')))
}
