//! Records at rest: sealed, durable, and refused when anything about them is wrong.

use crate::model::{Grant, GrantId, Intent, Organization, OrganizationId, Secret, Timestamp};

/// One change to the vault; a batch of them is committed whole or not at all.
#[derive(Debug)]
pub enum Change {
    /// Writes a grant over whatever was there.
    PutGrant(Box<Grant>),
    /// Forgets a grant.
    DeleteGrant(GrantId),
    /// Writes an organization over whatever was there.
    PutOrganization(Box<Organization>),
    /// Forgets an organization.
    DeleteOrganization(OrganizationId),
    /// Notes that a one-time token is about to be sent.
    PutIntent(Intent),
    /// The exchange of that grant has ended.
    DeleteIntent(GrantId),
    /// Keeps an answer that could not be stored as its grant's newest: reported, never served.
    PutStray(Box<Stray>),
}

/// An answer that must not be lost and must not be served (rule 7 of the design).
#[derive(Debug, Clone)]
pub struct Stray {
    /// The grant whose exchange it answered.
    pub grant: GrantId,
    /// When it came.
    pub at: Timestamp,
    /// Why it could not take its place, in words.
    pub why: String,
    /// The refresh token in it.
    pub refresh_token: Option<Secret>,
    /// The access token in it.
    pub access_token: Secret,
}

/// A record as it was read, with the commit that wrote it.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    /// The record.
    pub value: T,
    /// The sequence number of the commit that wrote it; bound into its seal, and higher for every later commit.
    pub sequence: u64,
}
