//! The vault's keys: a new data key, and who can open the vault.

use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Exit, Failure, Global,
    print::{self, Out, Tone},
};
use crate::{
    client::{Client, ClientError},
    wire::{Code, Recipients},
};

/// How often it is asked how far the records are.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The steps of the bar.
const STEPS: u32 = 1000;
/// What is said when somebody can no longer open the vault.
const AFTER_REMOVAL: &str = "Whoever kept a copy of the vault's keyring.age can still open copies of the vault, and what is \
                             written to it under today's data key. `consentry key rotate` makes what is in the vault from \
                             then on unreadable to them; for what they may have read before, get new consents.";

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Take a new data key into use, and seal every record anew under it while the worker goes on
    Rotate(RotateArgs),
    /// List, add and remove those who can open the vault
    Recipients(RecipientsArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "It may be interrupted at any point: the worker goes on, also after a restart, and destroys the old \
                        key when no record needs it."
)]
pub(super) struct RotateArgs {
    /// Do not wait until every record is sealed anew
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consentry key recipients\n  consentry key recipients add age1…\n  \
                        consentry key recipients remove age1… && consentry key rotate")]
pub(super) struct RecipientsArgs {
    #[command(subcommand)]
    change: Option<RecipientsChange>,
}

#[derive(Debug, Subcommand)]
enum RecipientsChange {
    /// Let the owners of these public keys open the vault
    Add(KeysArgs),
    /// Keep the owners of these public keys from opening the vault as it is from now on
    Remove(KeysArgs),
}

#[derive(Debug, Args)]
struct KeysArgs {
    /// Age recipients: public keys, `age1…`
    #[arg(value_name = "AGE", required = true)]
    recipients: Vec<String>,
}

/// `consentry key`
pub(super) async fn key(global: &Global, command: KeyCommand, out: &mut Out) -> Result<Exit, Failure> {
    match command {
        KeyCommand::Rotate(args) => rotate(global, &args, out).await,
        KeyCommand::Recipients(args) => recipients(global, args.change, out).await,
    }
}

async fn rotate(global: &Global, args: &RotateArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = global.client()?;
    let data_key = client.rotate_data_key().await.map_err(|error| {
        let is_under_way = error.code() == Some(Code::RotationUnderWay);
        let failure = Failure::from(error);
        if is_under_way { failure.with_hint("`consentry status` tells how far it is") } else { failure }
    })?;
    let data_key = data_key.data_key;
    if !args.detach {
        follow(&client).await.map_err(|failure| {
            failure.with_hint(format!(
                "data key {data_key} is in use and nothing is lost; the rest is sealed anew when the worker starts again"
            ))
        })?;
    }
    if global.json {
        out.json(&serde_json::json!({ "data_key": data_key, "done": !args.detach }))?;
    } else if args.detach {
        out.line(format_args!(
            "data key {data_key} is in use; older records are sealed anew in the background: `consentry status` tells how far"
        ))?;
    } else {
        out.line(format_args!("every record is sealed under data key {data_key}, and the older key is destroyed"))?;
    }
    Ok(Exit::Done)
}

/// Waits until every record is sealed anew.
async fn follow(client: &Client) -> Result<(), Failure> {
    let bar = bar();
    let followed = loop {
        match client.status().await {
            Ok(status) => match (status.vault.rekey_progress, status.vault.rekey_problem) {
                (None, _) => break Ok(()),
                (Some(_), Some(problem)) => {
                    break Err(Failure::failed(format!("sealing anew has stopped: {problem}")));
                }
                (Some(progress), None) => bar.set_position(step(progress)),
            },
            // It takes another configuration.
            Err(ClientError::Problem { problem, .. }) if problem.code == Code::Starting => {}
            Err(error) => break Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    bar.finish_and_clear();
    followed
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(STEPS.into()), ProgressDrawTarget::stderr());
    let template = "sealing anew {bar:24} {percent:>3} %  {eta} left (Ctrl-C leaves it to the worker)";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to STEPS")]
fn step(progress: f64) -> u64 {
    (progress.clamp(0.0, 1.0) * f64::from(STEPS)) as u64
}

async fn recipients(global: &Global, change: Option<RecipientsChange>, out: &mut Out) -> Result<Exit, Failure> {
    let named = match &change {
        None => &[][..],
        Some(RecipientsChange::Add(args) | RecipientsChange::Remove(args)) => &args.recipients,
    };
    if named.iter().any(|one| one.to_uppercase().contains("AGE-SECRET-KEY-")) {
        return Err(Failure::new(Exit::Usage, "that is an age identity, which is secret; its public key is wanted")
            .with_hint(
                "others may have seen it in the list of processes, or will in your shell's history: replace it",
            ));
    }
    // All of them, before anything is changed.
    if named.iter().any(|one| one.trim().parse::<age::x25519::Recipient>().is_err()) {
        return Err(ClientError::Recipient.into());
    }
    let client = global.client()?;
    let all = match &change {
        None => client.recipients().await?,
        Some(RecipientsChange::Add(args)) => {
            let mut all = None;
            for recipient in &args.recipients {
                let (recipients, is_new) = client.add_recipient(recipient).await?;
                if !is_new {
                    print::tell(&format!("{recipient} could open the vault already"));
                }
                all = Some(recipients);
            }
            all.expect("the command line asks for one at least")
        }
        Some(RecipientsChange::Remove(args)) => {
            let mut all = None;
            for recipient in &args.recipients {
                all = Some(client.remove_recipient(recipient).await?);
            }
            print::tell(AFTER_REMOVAL);
            all.expect("the command line asks for one at least")
        }
    };
    show(&all, global.json, out)?;
    Ok(Exit::Done)
}

fn show(all: &Recipients, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        return out.json(all);
    }
    let style = out.style();
    for one in &all.recipients {
        let own = if one.own { style.paint(Tone::Quiet, "  the worker's own identity") } else { String::new() };
        out.line(format_args!("{}{own}", one.recipient))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_stays_within_its_bounds() {
        assert_eq!([-1.0, 0.0, 0.5, 1.0, 7.0, f64::NAN].map(step), [0, 0, 500, 1000, 1000, 0]);
    }
}
