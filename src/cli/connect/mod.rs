//! `consentry connect`: the link by which a customer gives consent, or gives it anew; or links for all that end soon.

mod bulk;
mod wait;

use clap::Args;

use super::{
    Exit, Failure, Global,
    print::{self, Out},
};
use crate::{
    client::Client,
    model::{OrganizationId, ProviderName},
    wire::{self, Confirmation},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  consentry connect 123456\n  consentry connect 123456 --provider visma-connect --also 123457\n  \
    consentry connect 123456 --wait && echo renewed\n  consentry connect 123456 --revoke\n  \
    consentry connect --all-expiring 30d --csv > invitations.csv\n  \
    consentry connect --all-expiring 90d --spread 4w --csv > invitations.csv\n\n\
    The link needs no login here and is used up once a consent has been stored, not when it is opened. Exit codes with \
    --wait: 0 stored; 1 given up, or an operator has to confirm first."
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
pub(super) struct ConnectArgs {
    /// The organization
    #[arg(value_name = "ORG", required_unless_present = "all_expiring")]
    organization: Option<OrganizationId>,
    /// The provider; needed for an organization that is not known yet. With --all-expiring: only those of this one
    #[arg(long, value_name = "NAME")]
    provider: Option<ProviderName>,
    /// A further organization of the same user, which the same consent is to serve; may be given several times
    #[arg(long, value_name = "ORG")]
    also: Vec<OrganizationId>,
    /// Wait until the consent is stored
    #[arg(long)]
    wait: bool,
    /// End every link that was made for the organization until now
    #[arg(long, conflicts_with_all = ["provider", "also", "wait"])]
    revoke: bool,
    /// A consent waits for an operator: it is the organization's
    #[arg(long, conflicts_with_all = ["provider", "also", "wait", "revoke"])]
    confirm: bool,
    /// A consent waits for an operator: it is not the organization's, and is forgotten
    #[arg(long, conflicts_with_all = ["provider", "also", "wait", "revoke", "confirm"])]
    decline: bool,
    #[command(flatten)]
    bulk: bulk::BulkArgs,
}

/// `consentry connect`
pub(super) async fn connect(global: &Global, args: ConnectArgs, out: &mut Out) -> Result<Exit, Failure> {
    let Some(organization) = &args.organization else { return bulk::bulk(global, args.bulk, args.provider, out).await };
    let client = global.client()?;
    if args.revoke {
        client.revoke_links(organization).await?;
        return told(global.json, out, "revoked", organization, "every link made for it until now has ended");
    }
    if args.confirm || args.decline {
        let action = if args.confirm { Confirmation::Accept } else { Confirmation::Decline };
        client.confirm(organization, action).await?;
        return if args.confirm {
            told(global.json, out, "confirmed", organization, "the consent that waited is in force")
        } else {
            told(global.json, out, "declined", organization, "the consent that waited is forgotten")
        };
    }
    let before = if args.wait { Some(wait::Before::look(&client, organization).await?) } else { None };
    let link = client.consent_link(organization, args.provider.as_ref(), &args.also).await?;
    show(&link, global.json, out)?;
    match before {
        None => Ok(Exit::Done),
        Some(before) => waited(global, &client, organization, before, &link, out).await,
    }
}

fn show(link: &wire::ConsentLink, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        return out.json(link);
    }
    out.line(&link.url)?;
    // Beside the link, so that the link alone can be piped on.
    print::tell(&format!("good until {}, for one consent", print::time(Some(link.expires_at))));
    Ok(())
}

async fn waited(
    global: &Global,
    client: &Client,
    organization: &OrganizationId,
    before: wait::Before,
    link: &wire::ConsentLink,
    out: &mut Out,
) -> Result<Exit, Failure> {
    match before.changed(client, organization, link.expires_at).await? {
        wait::Came::Stored(stored) => {
            let ends = stored.consent.as_ref().and_then(|consent| consent.expires_at);
            let ends = ends
                .map_or_else(|| "does not end by itself".to_owned(), |end| format!("ends {}", print::time(Some(end))));
            if global.json {
                out.json(&stored)?;
            } else {
                out.line(format_args!("{organization}: the consent is stored; it {ends}"))?;
            }
            Ok(Exit::Done)
        }
        wait::Came::Awaiting => {
            Err(Failure::failed(format!("{organization}: a consent came and waits to be confirmed"))
                .with_hint("look at `consentry status`, then `consentry connect ORG --confirm` or `--decline`"))
        }
        wait::Came::Ended => Err(Failure::failed(format!("{organization}: the link ended and no consent came"))),
    }
}

fn told(json: bool, out: &mut Out, what: &str, organization: &OrganizationId, words: &str) -> Result<Exit, Failure> {
    if json {
        out.json(&serde_json::json!({ what: organization }))?;
    } else {
        out.line(format_args!("{organization}: {words}"))?;
    }
    Ok(Exit::Done)
}
