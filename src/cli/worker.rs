use std::{os::unix::fs::FileTypeExt, path::Path};

use clap::Args;

use super::{Exit, Failure, Global, many_threads, print::Out};
use crate::{
    config::Config,
    daemon::{self, DaemonError},
    hardening, telemetry,
};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  consentry health\n  consentry health --live --socket /run/consentry/consentry.sock"
)]
pub(super) struct HealthArgs {
    /// Ask only whether the worker lives (/healthz), not whether it is ready (/readyz)
    #[arg(long)]
    live: bool,
}

/// `consentry run`
pub(super) fn run(global: &Global) -> Result<Exit, Failure> {
    let located = global.locate()?;
    if is_read_once(&located.file) {
        return Err(Failure::new(Exit::Configuration, format!("{} is a pipe, not a file", located.file.display()))
            .with_hint("write the configuration into a file: the worker reads it again at SIGHUP"));
    }
    // Read here as well, so that a mistake in it ends with its own exit code, before anything is opened.
    let config = Config::load(&located)?;
    telemetry::init(&config.log).map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    // Before there are threads: privileges belong to each.
    hardening::confine().map_err(|error| Failure::failed(format!("core files cannot be switched off: {error}")))?;
    if let Err(error) = hardening::raise_descriptors() {
        tracing::warn!(%error, "the limit on open files cannot be raised; fewer connections are taken");
    }
    many_threads(async {
        daemon::run(located).await.map_err(|error| failed(&error, &config))?;
        Ok(Exit::Done)
    })
}

/// A pipe gives its text once, and the worker reads the configuration again when it is told to.
fn is_read_once(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo() || metadata.file_type().is_socket())
}

fn failed(error: &DaemonError, config: &Config) -> Failure {
    match error {
        DaemonError::Config(error) => Failure::new(Exit::Configuration, error.to_string()),
        DaemonError::Vault(error) => Failure::of_vault(error, &config.vault.place()),
        error => Failure::failed(error.to_string()),
    }
}

/// `consentry health`: exit 0 or 5, whatever is wrong.
pub(super) async fn health(global: &Global, args: HealthArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = global.client()?;
    let (answer, word) = if args.live { (client.is_live().await, "live") } else { (client.is_ready().await, "ready") };
    let is_well = answer.map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
    if global.json {
        out.json(&serde_json::json!({ word: is_well }))?;
    } else if is_well {
        out.line(word)?;
    }
    if is_well {
        return Ok(Exit::Done);
    }
    if global.json {
        return Ok(Exit::Unavailable);
    }
    Err(Failure::new(Exit::Unavailable, format!("the worker is not {word}"))
        .with_hint("it is still loading, or its vault cannot be used: its log says which"))
}
