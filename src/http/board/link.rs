//! Renewal links, as the keeper makes them.

use serde::Serialize;

use crate::{
    keeper::{Keeper, KeeperError},
    model::{OrganizationId, Timestamp},
};

/// A renewal link.
#[derive(Debug, Serialize)]
pub(super) struct RenewalLink {
    pub(super) url: String,
    pub(super) expires_at: Timestamp,
}

/// Whether this worker makes links at all.
pub(super) fn are_made(_: &Keeper) -> bool {
    false
}

/// Makes one.
#[expect(clippy::unused_async, reason = "the keeper's own way is not there yet")]
pub(super) async fn make(_: &Keeper, _: &OrganizationId) -> Result<RenewalLink, KeeperError> {
    Err(KeeperError::BadRequest("renewal links need [consent] public_url".into()))
}
