//! The composition root: the one function that builds a worker, for production, demo and tests alike.

use std::net::SocketAddr;

use crate::config::{Config, Located};

/// A worker that runs in this process.
#[derive(Debug)]
pub struct Running {
    /// Where metrics and health are served, with the port that was really bound.
    pub http: Option<SocketAddr>,
}

/// Why a worker could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {}

/// Opens the vault, binds the sockets and starts every task; returns when requests are accepted.
#[expect(clippy::unused_async, unused_variables, reason = "stub")]
pub async fn start(config: Config) -> Result<Running, DaemonError> {
    Ok(Running { http: None })
}

impl Running {
    /// Stops softly: no new work, exchanges under way finish, the vault is closed; hard after 30 s.
    #[expect(clippy::unused_async, reason = "stub")]
    pub async fn stop(self) {}
}

/// `consentry run`: a worker in the foreground until SIGTERM or SIGINT; SIGHUP re-reads configuration and secrets.
#[expect(clippy::unused_async, unused_variables, reason = "stub")]
pub async fn run(located: Located) -> Result<(), DaemonError> {
    Ok(())
}
