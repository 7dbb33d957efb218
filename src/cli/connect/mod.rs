//! `consentry connect`: the links by which customers give consent, and give it anew.

mod bulk;

use clap::Args;

use super::{Exit, Failure, Global, print::Out};
use crate::{
    model::{OrganizationId, ProviderName},
    wire::ConsentLinkRequest,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consentry connect 123456\n  \
    consentry connect 123456 --provider visma-connect --also 123457\n  \
    consentry connect --all-expiring 30d --csv > invitations.csv\n  \
    consentry connect --all-expiring 90d --spread 8w --csv > invitations.csv")]
pub(super) struct ConnectArgs {
    /// The organization whose user is asked for consent
    #[arg(value_name = "ORG", required_unless_present = "all_expiring", conflicts_with = "all_expiring")]
    organization: Option<OrganizationId>,
    /// Where the consent is given; needed for an organization not yet known. With --all-expiring: only those of this provider
    #[arg(long, value_name = "NAME")]
    provider: Option<ProviderName>,
    /// Another organization of the same user, which the same consent is to serve; may be given several times
    #[arg(long, value_name = "ORG", conflicts_with = "all_expiring")]
    also: Vec<OrganizationId>,
    #[command(flatten)]
    bulk: bulk::BulkArgs,
}

/// `consentry connect`
pub(super) async fn connect(global: &Global, args: ConnectArgs, out: &mut Out) -> Result<Exit, Failure> {
    let ConnectArgs { organization, provider, also, bulk } = args;
    let Some(organization) = organization else { return bulk::bulk(global, bulk, provider, out).await };
    let link = global.client()?.consent_link(&organization, &ConsentLinkRequest { provider, also }).await?;
    if global.json {
        out.json(&link)?
    } else {
        out.line(&link.url)?
    }
    Ok(Exit::Done)
}
