//! Renewal links, as the board gives them out.

use serde::Serialize;

use crate::{
    keeper::{Keeper, KeeperError},
    model::{OrganizationId, Timestamp},
};

/// A renewal link, as the page's script reads it.
#[derive(Debug, Serialize)]
pub(super) struct RenewalLink {
    pub(super) url: String,
    pub(super) expires_at: Timestamp,
}

/// Makes a link by which the organization's user gives its consent anew. Nothing is stored by that.
pub(super) async fn make(keeper: &Keeper, organization: &OrganizationId) -> Result<RenewalLink, KeeperError> {
    // Who is not there has no row, and so no form: a link for a first connection is an operator's to make.
    keeper.show(organization).await?;
    let link = keeper.link(organization, None, Vec::new()).await?;
    Ok(RenewalLink { url: link.url, expires_at: link.expires_at })
}
