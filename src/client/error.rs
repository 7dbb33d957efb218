use std::{path::PathBuf, time::Duration};

use crate::wire;

/// Why a call to the worker came to nothing. `Display` says what is wrong and what to do, and holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error(
        "no worker answers at {}: start one with `consentry run`, or name the socket of one that runs with --socket",
        path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's file may not be opened.
    #[error(
        "no permission to open {}: it takes the worker's user or the socket's group (`group` in [socket])",
        path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody listens who must not be told a secret.
    #[error(
        "user {uid} listens at {}, who is neither root, nor you, nor the owner of a folder that only root could have \
         made; where this is the worker's user, say so with --server-uid {uid}",
        path.display()
    )]
    Untrusted {
        /// The socket.
        path: PathBuf,
        /// The effective uid of the process that listens.
        uid: u32,
    },
    /// The worker said no.
    #[error("{}", problem.detail)]
    Problem {
        /// What it said.
        problem: Box<wire::Problem>,
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// What was named as a recipient is none.
    #[error(
        "that is no age recipient, a public key that starts with `age1`; an identity is secret and never wanted here"
    )]
    Recipient,
    /// No answer in time. What was asked for may still be carried out.
    #[error("the worker at {} did not answer within {seconds} seconds; its log says what it waits for", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What came back is no answer of a worker of this version.
    #[error("the worker's answer makes no sense: {0}; is it of the same version, and is this its socket?")]
    Protocol(String),
}

impl ClientError {
    /// The stable word of the worker's refusal, where it was one.
    pub fn code(&self) -> Option<wire::Code> {
        match self {
            Self::Problem { problem, .. } => Some(problem.code),
            _ => None,
        }
    }
}
