//! The issuer's door for one worker: every call of the token endpoint goes through it. It knows of each refresh token that the worker was
//! given whether its answer arrived, which the kernel tells that acknowledges it, and can hold answers back.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::PATIENCE;

/// How often the kernel is asked what has become of an answer.
const LOOK: Duration = Duration::from_millis(1);
/// How many of the last calls may be under way at once.
const LATELY: usize = 20;
/// About as long as it takes to store an answer.
const A_COMMIT: Duration = Duration::from_millis(15);

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The request is here, whole.
    Asked,
    /// The issuer has answered; nothing of that was passed on.
    Answered,
    /// The worker's kernel has acknowledged all of the answer, on a connection that the worker had not given up.
    Arrived,
    /// The worker had given the connection up.
    Missed,
}

/// One call of the token endpoint.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) sent: String,
    /// The refresh token in the answer.
    pub(super) given: Option<String>,
    pub(super) stage: Stage,
    arrived: Option<Instant>,
    /// The ports of the connection: the door's and the worker's.
    ports: (u16, u16),
}

/// One worker's door. Its threads end with the test's process.
#[derive(Clone, Debug)]
pub(super) struct Door {
    address: SocketAddr,
    calls: Arc<(Mutex<Calls>, Condvar)>,
}

#[derive(Debug, Default)]
struct Calls {
    all: Vec<Call>,
    /// The tokens whose answers are held back.
    held: BTreeSet<String>,
}

impl Door {
    /// Listens, and leads to the issuer.
    pub(super) fn to(issuer: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback address");
        let door = Self { address: listener.local_addr().expect("it is bound"), calls: Arc::default() };
        let behind = door.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let door = behind.clone();
                // A worker that is gone is no failure.
                thread::spawn(move || door.pass_on(stream, issuer));
            }
        });
        door
    }

    /// Where the worker finds the token endpoint.
    pub(super) fn token_url(&self) -> String {
        format!("http://{}/connect/token", self.address)
    }

    /// Every call until now.
    pub(super) fn calls(&self) -> Vec<Call> {
        self.lock().all.clone()
    }

    /// Holds the answer to this token back.
    pub(super) fn hold(&self, token: &str) {
        self.lock().held.insert(token.to_owned());
    }

    /// Lets the answer to this token through.
    pub(super) fn let_through(&self, token: &str) {
        self.lock().held.remove(token);
        self.calls.1.notify_all();
    }

    /// How far the call that sent this token is; `None`: it was not sent.
    pub(super) fn stage(&self, token: &str) -> Option<Stage> {
        self.lock().all.iter().find(|call| call.sent == token).map(|call| call.stage)
    }

    /// Whether the process has taken the answer to this token out of its kernel's hands.
    pub(super) fn was_read(&self, token: &str) -> bool {
        let found = self.lock().all.iter().find(|call| call.sent == token).map(|call| (call.stage, call.ports));
        found.is_some_and(|(stage, (door, worker))| {
            stage == Stage::Arrived && queues(worker, door).is_none_or(|queues| queues.unread == 0)
        })
    }

    /// Waits until a call that begins from now on is so far.
    pub(super) fn wait_for_next(&self, stage: Stage) {
        let known = self.lock().all.len();
        let end = Instant::now() + PATIENCE;
        while !self.lock().all[known..].iter().any(|call| call.stage >= stage) {
            assert!(Instant::now() < end, "an exchange is made");
            thread::sleep(LOOK);
        }
    }

    /// What the worker, which was stopped just now, is in the middle of.
    pub(super) fn under_way(&self) -> &'static str {
        let calls = self.calls();
        let is_unread = |call: &&Call| {
            let (door, worker) = call.ports;
            call.stage == Stage::Arrived && queues(worker, door).is_some_and(|queues| queues.unread > 0)
        };
        if calls.iter().rev().take(LATELY).any(|call| is_unread(&call)) {
            "the answer is there and not read"
        } else if calls.iter().any(|call| call.stage < Stage::Arrived) {
            "an answer is to come"
        } else if calls.last().is_some_and(|call| call.arrived.is_some_and(|at| at.elapsed() < A_COMMIT)) {
            "an answer was read just now"
        } else {
            "no exchange, or one before its request"
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, index: usize, change: impl FnOnce(&mut Call)) {
        change(&mut self.lock().all[index]);
    }

    fn pass_on(&self, mut worker: TcpStream, issuer: SocketAddr) -> Option<()> {
        let ports = (worker.local_addr().ok()?.port(), worker.peer_addr().ok()?.port());
        let request = message(&mut worker)?;
        let sent = field(&request);
        let index = {
            let mut calls = self.lock();
            calls.all.push(Call { sent: sent.clone(), given: None, stage: Stage::Asked, arrived: None, ports });
            calls.all.len() - 1
        };
        let mut issuer = TcpStream::connect(issuer).ok()?;
        issuer.write_all(&request).ok()?;
        let answer = message(&mut issuer)?;
        let given = given(&answer);
        self.set(index, |call| (call.given, call.stage) = (given, Stage::Answered));
        let held = |calls: &mut Calls| calls.held.contains(&sent);
        drop(self.calls.1.wait_timeout_while(self.lock(), 2 * PATIENCE, held));
        let stage =
            if has_gone(&worker) || worker.write_all(&answer).is_err() { Stage::Missed } else { arrival(ports) };
        let arrived = (stage == Stage::Arrived).then(Instant::now);
        self.set(index, |call| (call.stage, call.arrived) = (stage, arrived));
        // The connection is the worker's to end.
        let _ = worker.read(&mut [0]);
        Some(())
    }
}

/// Waits until the kernel at the other end has acknowledged all, or the connection is gone.
fn arrival((door, worker): (u16, u16)) -> Stage {
    let end = Instant::now() + PATIENCE;
    while let Some(queues) = queues(door, worker) {
        if queues.unacknowledged == 0 {
            return Stage::Arrived;
        }
        assert!(Instant::now() < end, "a kernel takes what is sent to it");
        thread::sleep(LOOK);
    }
    Stage::Missed
}

/// Whether the other end has closed the connection already.
fn has_gone(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let peeked = stream.peek(&mut [0]);
    let _ = stream.set_nonblocking(false);
    !peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// What the kernel has of a connection, in bytes.
struct Queues {
    unacknowledged: u64,
    unread: u64,
}

/// Of the end with the first port, on the loopback; `None` where it is closed.
fn queues(own: u16, other: u16) -> Option<Queues> {
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel tells");
    let ends = [format!(":{own:04X}"), format!(":{other:04X}")];
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&ends[0]) && fields.get(2)?.ends_with(&ends[1]);
        let (unacknowledged, unread) = fields.get(4)?.split_once(':')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        is_it.then_some(Queues { unacknowledged: number(unacknowledged)?, unread: number(unread)? })
    })
}

/// One request or answer with its body, whose length is announced.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    let (mut message, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(head) = message.windows(END.len()).position(|window| window == END) {
            let text = String::from_utf8_lossy(&message[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if message.len() >= head + END.len() + length.unwrap_or(0_usize) {
                return Some(message);
            }
        }
        let count @ 1.. = stream.read(&mut buffer).ok()? else { return None };
        message.extend_from_slice(&buffer[..count]);
    }
}

/// The refresh token of a form. Those of the sandbox need no escaping.
fn field(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request);
    let token = text.split(['&', '\n']).find_map(|part| part.strip_prefix("refresh_token="));
    token.unwrap_or_default().to_owned()
}

fn given(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
    body["refresh_token"].as_str().map(str::to_owned)
}
