//! The real worker, as a process of its own.

use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{
    caller::{Answer, Connection, get},
    process::{Process, trusting},
    site::Site,
};

/// How long a start may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// How often a worker that starts is asked.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// `consentry run`, the release build, on a site.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) process: Process,
    started: Instant,
    socket: std::path::PathBuf,
    log: std::path::PathBuf,
}

impl Worker {
    /// Starts it on `core`; it is not ready yet.
    pub(crate) fn start(site: &Site, core: Option<usize>) -> Result<Self> {
        Self::start_build(Path::new(env!("CARGO_BIN_EXE_consentry")), site, core)
    }

    /// As [`start`](Self::start), but another build of the worker.
    pub(crate) fn start_build(binary: &Path, site: &Site, core: Option<usize>) -> Result<Self> {
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(site.config_file());
        command.stdout(Stdio::null()).stderr(File::create(site.log())?).envs(trusting(site.authority()));
        let started = Instant::now();
        let process = Process::start(&mut command, core)?;
        Ok(Self { process, started, socket: site.socket(), log: site.log() })
    }

    /// Asks `path` until the answer is 200, and gives the time since the process was started.
    pub(crate) fn until_ok(&mut self, path: &str) -> Result<Duration> {
        loop {
            if let Ok(answer) = self.get(path)
                && answer.is_ok
            {
                return Ok(self.started.elapsed());
            }
            if !self.process.is_running()? || self.started.elapsed() > PATIENCE {
                bail!("the worker did not come up:\n{}", std::fs::read_to_string(&self.log)?);
            }
            sleep(ASK_EVERY);
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until it is ready.
    pub(crate) fn ready(&mut self) -> Result<Duration> {
        self.until_ok("/readyz")
    }

    /// One request on a connection of its own.
    pub(crate) fn get(&self, path: &str) -> Result<Answer> {
        let mut connection = Connection::new(UnixStream::connect(&self.socket)?);
        connection.ask(&get(path))?;
        connection.answer()
    }
}
