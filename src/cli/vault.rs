//! The vault as a whole, while no worker runs: moving it to another engine or place.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::{Exit, Failure, Global, print::Out};
use crate::{
    config::{self, Config},
    vault::{End, Identity, Moved, Progress, Vault, VaultError},
};

/// How often the bar moves although nothing happened.
const TICK: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub(super) enum VaultCommand {
    /// Move the vault to another engine or place, e.g. from a folder to PostgreSQL, or back
    Move(MoveArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "No worker may run, neither on the one vault nor on the other. Everything is moved, under the same keys, and no token is put in\n\
    doubt. It can be interrupted at any point: until it is done neither vault can be used, and the same command goes on. The vault\n\
    that is left keeps everything, and refuses to be used from then on.\n\n\
    Examples:\n  consentry vault move --to replicas.toml     # whose [vault] says engine = \"postgres\"\n  \
    consentry --config replicas.toml vault move --to single.toml\n  \
    consentry vault move --to replicas.toml --give-up"
)]
pub(super) struct MoveArgs {
    /// The configuration that the worker has from then on: its [vault] says where to
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Give an unfinished move up: what was made is removed, and the vault can be used again where it is
    #[arg(long)]
    give_up: bool,
}

/// `consentry vault`
pub(super) async fn vault(global: &Global, command: VaultCommand, out: &mut Out) -> Result<Exit, Failure> {
    match command {
        VaultCommand::Move(args) => move_to(global, &args, out).await,
    }
}

async fn move_to(global: &Global, args: &MoveArgs, out: &mut Out) -> Result<Exit, Failure> {
    let from = global.load()?;
    let to = Config::load(&config::locate(Some(&args.to))?)?;
    let identity = |config: &Config| {
        Identity::read(&config.vault.identity_file).map_err(|error| Failure::of_vault(&error, &config.vault.path))
    };
    let (own, other) = (identity(&from)?, identity(&to)?);
    let (from, to) = (End { config: &from.vault, identity: &own }, End { config: &to.vault, identity: &other });
    if args.give_up {
        Vault::stay(from, to).await.map_err(|error| failed(&error, from))?;
        return tell_stayed(from, global.json, out);
    }
    let bar = bar();
    let mut told = |progress| {
        show(&bar, progress);
        Ok(())
    };
    let moved = Vault::move_to(from, to, &mut told).await;
    bar.finish_and_clear();
    tell_moved(&moved.map_err(|error| failed(&error, from))?, args, global.json, out)
}

fn failed(error: &VaultError, from: End<'_>) -> Failure {
    Failure::of_vault(error, &from.config.path)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template =
        "moving {bar:24} {percent:>3} %  {pos} of {len} records  {eta} left (Ctrl-C stops; the same command goes on)";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if !bar.is_hidden() {
        bar.enable_steady_tick(TICK);
    }
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    if let Progress::Copied { records, of } = progress {
        bar.set_length(of);
        bar.set_position(records);
    }
}

fn tell_moved(moved: &Moved, args: &MoveArgs, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let Moved { to: place, records, grants, organizations, intents } = moved;
    if json {
        out.json(&json!({
            "to": place, "records": records, "grants": grants, "organizations": organizations, "intents": intents,
        }))?;
        return Ok(Exit::Done);
    }
    out.line(format_args!(
        "moved to {place}: {organizations} organizations, {grants} grants; the old vault refuses from now on"
    ))?;
    if *intents > 0 {
        out.line(format_args!("{intents} exchanges were cut off by an earlier end; those grants will be in doubt"))?;
    }
    let file = args.to.display();
    out.line(format_args!("next: consentry --config {file} check && consentry --config {file} run"))?;
    Ok(Exit::Done)
}

fn tell_stayed(from: End<'_>, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let place = from.config.path.display();
    if json {
        out.json(&json!({ "vault": place.to_string(), "given_up": true }))?;
    } else {
        out.line(format_args!("the move was given up; the vault in {place} can be used again"))?;
    }
    Ok(Exit::Done)
}
