use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{Call, ClientError, answer::Answer, trust::Trust};

/// A request's body: always whole, since nothing long is ever sent.
pub(super) type Body = Full<Bytes>;

/// Idle connections that are kept for the next call.
const MAX_IDLE: usize = 64;

/// The connections of one client: none is ever shared by two calls, and none is handed on before it is idle.
#[derive(Debug)]
pub(super) struct Connections {
    path: PathBuf,
    trust: Trust,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

/// How one attempt failed.
enum Broken {
    /// Nothing of the request was taken: it may be sent again, whatever it is.
    Unsent,
    /// The worker may have acted on it.
    Sent,
}

impl Connections {
    pub(super) const fn new(path: PathBuf, trust: Trust) -> Self {
        Self { path, trust, idle: Mutex::new(Vec::new()) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends `call` on an idle connection if there is one, else on a new one. A call that met a stale connection is
    /// sent once more on a new one, if it had not left or may be repeated.
    pub(super) async fn send(&self, call: &Call) -> Result<Answer, ClientError> {
        while let Some(sender) = self.take() {
            match self.attempt(sender, call).await? {
                Ok(answer) => return Ok(answer),
                Err(Broken::Unsent) => {}
                Err(Broken::Sent) if call.repeatable => break,
                Err(Broken::Sent) => return Err(hung_up()),
            }
        }
        let sender = self.open().await?;
        match self.attempt(sender, call).await? {
            Ok(answer) => Ok(answer),
            Err(_) => Err(hung_up()),
        }
    }

    /// Sends `call` on a connection of its own, which ends with the answer, and gives the answer with its body still to
    /// be read.
    pub(super) async fn stream(&self, call: &Call) -> Result<Response<Incoming>, ClientError> {
        let mut sender = self.open().await?;
        sender.ready().await.map_err(|_| hung_up())?;
        sender.try_send_request(call.request()?).await.map_err(|_| hung_up())
    }

    async fn attempt(&self, mut sender: SendRequest<Body>, call: &Call) -> Result<Result<Answer, Broken>, ClientError> {
        if sender.ready().await.is_err() {
            return Ok(Err(Broken::Unsent));
        }
        match sender.try_send_request(call.request()?).await {
            Ok(response) => {
                let answer = Answer::read(response, call.max_answer).await?;
                self.keep(sender);
                Ok(Ok(answer))
            }
            // The message comes back exactly where none of it was written.
            Err(failed) => Ok(Err(if failed.message().is_some() { Broken::Unsent } else { Broken::Sent })),
        }
    }

    async fn open(&self) -> Result<SendRequest<Body>, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: self.path.clone() },
            _ => ClientError::NotRunning { path: self.path.clone() },
        })?;
        let uid = stream.peer_cred().map_err(|_| ClientError::NotRunning { path: self.path.clone() })?.uid();
        if !self.trust.covers(&self.path, uid) {
            return Err(ClientError::Untrusted { path: self.path.clone(), uid });
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| hung_up())?;
        // Ends by itself when the sender is dropped or the worker hangs up; whoever waits for an answer is told then.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    fn keep(&self, sender: SendRequest<Body>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
    }
}

fn hung_up() -> ClientError {
    ClientError::Protocol("it hung up before it answered".into())
}
