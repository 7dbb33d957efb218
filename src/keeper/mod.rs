//! The heart: one handle, [`Keeper`], through which everything acts on grants.

mod census;
mod error;

use std::time::Duration;

pub use census::{Census, ExpiringSeries, ProviderCensus};
pub use error::KeeperError;

use crate::{
    model::{Labels, OrganizationId, ProviderName},
    wire,
};

/// The heart of the worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper;

/// An access token that may be handed out now.
#[derive(Debug, Clone)]
pub struct Served {
    /// The answer.
    pub token: wire::Token,
    /// Names the token without revealing it: a quoted strong entity tag (RFC 9110 section 8.8.3).
    pub etag: String,
}

/// What an enrolment did.
#[derive(Debug)]
pub struct Enrolled {
    /// Whether the organization was not there before.
    pub created: bool,
    /// Whether anything was changed at all; false where the same secret was enrolled again.
    pub changed: bool,
    /// The organization as it is now.
    pub organization: wire::Organization,
}

/// Which organizations a list is about; every field that is set must fit.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// `active`, `failing`, `in_doubt`, `lost` or `paused`.
    pub state: Option<String>,
    /// The provider.
    pub provider: Option<ProviderName>,
    /// The consent ends within this time, or has ended.
    pub expires_within: Option<Duration>,
    /// Labels it carries.
    pub labels: Labels,
    /// How many at most: 1 to 1000.
    pub limit: usize,
    /// Only those with a greater id.
    pub after: Option<OrganizationId>,
}

/// Which organizations a caller may see.
pub type Scope<'a> = &'a (dyn Fn(&OrganizationId) -> bool + Send + Sync);

#[expect(clippy::unused_async, clippy::unused_self, unused_variables, reason = "stub")]
impl Keeper {
    /// The organization's access token with at least `min_ttl` left; refreshed first where it has less.
    pub async fn token(&self, organization: &OrganizationId, min_ttl: Duration) -> Result<Served, KeeperError> {
        Err(KeeperError::Starting)
    }

    /// The API refused the token that `rejected` (an entity tag) names: exchanges, unless a newer one is there.
    pub async fn refresh(&self, organization: &OrganizationId, rejected: Option<&str>) -> Result<Served, KeeperError> {
        Err(KeeperError::Starting)
    }

    /// Enrols an organization or replaces its credential.
    pub async fn enrol(
        &self,
        organization: OrganizationId,
        enrolment: wire::Enrolment,
    ) -> Result<Enrolled, KeeperError> {
        Err(KeeperError::Starting)
    }

    /// One organization as operators see it.
    pub async fn show(&self, organization: &OrganizationId) -> Result<wire::Organization, KeeperError> {
        Err(KeeperError::Starting)
    }

    /// Organizations in order of their ids.
    pub async fn list(&self, filter: Filter, scope: Scope<'_>) -> Result<wire::OrganizationPage, KeeperError> {
        Err(KeeperError::Starting)
    }

    /// Forgets an organization, and its grant with the last one; `revoke` then revokes the refresh token first.
    pub async fn remove(&self, organization: &OrganizationId, revoke: bool) -> Result<(), KeeperError> {
        Err(KeeperError::Starting)
    }

    /// Pauses or resumes the organization's grant.
    pub async fn set_paused(
        &self,
        organization: &OrganizationId,
        paused: bool,
    ) -> Result<wire::Organization, KeeperError> {
        Err(KeeperError::Starting)
    }

    /// The state of the whole, counted over what `scope` allows.
    pub fn status(&self, scope: Option<Scope<'_>>) -> wire::Status {
        unimplemented!()
    }

    /// Counts over everything, for the metrics; remembered for a second.
    pub fn census(&self) -> std::sync::Arc<Census> {
        unimplemented!()
    }

    /// Whether the vault is open and the index complete.
    pub fn is_ready(&self) -> bool {
        false
    }
}
