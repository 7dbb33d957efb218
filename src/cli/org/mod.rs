mod add;
mod list;
mod show;

use std::io::{self, BufRead, IsTerminal};

use clap::{Args, Subcommand};

use super::{Exit, Failure, Global, print, print::Out};
use crate::{model::OrganizationId, wire::Resolution};

#[derive(Debug, Subcommand)]
pub(super) enum OrgCommand {
    /// Enrol an organization, or replace its credential
    Add(Box<add::AddArgs>),
    /// List organizations
    List(list::ListArgs),
    /// Show one organization
    Show(OneArgs),
    /// Forget an organization, and its credential with the last organization that uses it
    Remove(RemoveArgs),
    /// Neither refresh nor hand out until resumed; holds for every organization of the same grant
    Pause(OneArgs),
    /// Lift a pause
    Resume(OneArgs),
    /// Decide about a grant that is in doubt or lost: try it again, or give it up
    #[command(long_about = RESOLVE_ABOUT)]
    Resolve(ResolveArgs),
}

const RESOLVE_ABOUT: &str = "Decide about a grant that is in doubt or lost; for every organization of the same grant.

A grant is in doubt when its one-time refresh token was sent and nobody knows whether the issuer spent it (the answer \
never came, the process died, or the vault came back from a backup). The issuer takes a token that it has spent as \
stolen: sending it again is a replay, and ends the whole authorization, that is every access of your client for that \
person, also what the same person has given since.

--retry takes that risk: the token is sent once, now. If it was not spent, all is well again. If it was, the customer \
has to give consent anew, and other grants of the same person may end with it.

--abandon gives the credential up: the grant is lost at once, nothing is sent, and the customer has to give consent \
anew. It keeps its secret, so that --retry can still be chosen later.";

#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// The organization
    #[arg(value_name = "ORG")]
    organization: OrganizationId,
    /// Send the token once more, though it may be spent: that is a replay, and can end all that the person has given
    #[arg(long, required_unless_present = "abandon", conflicts_with = "abandon")]
    retry: bool,
    /// Give the credential up: lost at once, without sending anything
    #[arg(long)]
    abandon: bool,
}

#[derive(Debug, Args)]
pub(super) struct OneArgs {
    /// The organization
    #[arg(value_name = "ORG")]
    organization: OrganizationId,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The organization
    #[arg(value_name = "ORG")]
    organization: OrganizationId,
    /// Also revoke the refresh token at the issuer, if no other organization uses it
    #[arg(long)]
    revoke: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// `consentry org`
pub(super) async fn org(global: &Global, command: OrgCommand, out: &mut Out) -> Result<Exit, Failure> {
    match command {
        OrgCommand::Add(args) => add::add(global, *args, out).await?,
        OrgCommand::List(args) => list::list(global, args, out).await?,
        OrgCommand::Show(args) => {
            let organization = global.client()?.show(&args.organization).await?;
            show::tell(&organization, global.json, out)?;
        }
        OrgCommand::Remove(args) => return remove(global, &args, out).await,
        OrgCommand::Pause(args) => {
            let organization = global.client()?.pause(&args.organization).await?;
            show::tell(&organization, global.json, out)?;
        }
        OrgCommand::Resume(args) => {
            let organization = global.client()?.resume(&args.organization).await?;
            show::tell(&organization, global.json, out)?;
        }
        OrgCommand::Resolve(args) => {
            let action = if args.retry { Resolution::Retry } else { Resolution::Abandon };
            let organization = global.client()?.resolve(&args.organization, action).await?;
            show::tell(&organization, global.json, out)?;
        }
    }
    Ok(Exit::Done)
}

async fn remove(global: &Global, args: &RemoveArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = global.client()?;
    let organization = &args.organization;
    if !args.yes && io::stdin().is_terminal() && !confirmed(organization, args.revoke)? {
        return Err(Failure::failed(format!("{organization} was not removed")));
    }
    client.delete(organization, args.revoke).await?;
    if global.json {
        out.json(&serde_json::json!({ "removed": organization }))?;
    } else {
        out.line(format_args!("{organization} is removed"))?;
    }
    Ok(Exit::Done)
}

fn confirmed(organization: &OrganizationId, revoke: bool) -> Result<bool, Failure> {
    let what = if revoke { "forgotten and revoked" } else { "forgotten" };
    print::tell(&format!(
        "Remove {organization}? If no other organization uses its credential, that is {what} for good. [y/N]"
    ));
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
