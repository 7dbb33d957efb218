use clap::Args;

use super::{Exit, Failure, Global, many_threads, print::Out};
use crate::{config::Config, daemon, telemetry};

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
    // Read here as well, so that a mistake in it ends with its own exit code, before anything is opened.
    let config = Config::load(&located)?;
    telemetry::init(&config.log).map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    drop(config);
    many_threads(async {
        daemon::run(located).await.map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Exit::Done)
    })
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
