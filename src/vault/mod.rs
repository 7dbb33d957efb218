//! Records at rest: sealed, durable, and refused when anything about them is wrong.
//!
//! A commit is sealed record by record (`cipher`), written to the journal and synced there (`journal`): that sync
//! *is* the commit. The engine (`engine`, `sled`) follows behind in larger steps (`backlog`) and is brought to the disk at
//! checkpoints, after which the journal starts over. Every write goes through one thread (`writer`), which gives out
//! sequence numbers and lets the commits that wait share one sync; reads go to the backlog and then to the engine, from any
//! thread (`handle`).
//!
//! The folder of a vault:
//!
//! | file | what it holds |
//! | --- | --- |
//! | `format` | the number of this layout and the vault's id, as JSON: read first, so that a newer layout is told as such |
//! | `keyring.age` | the keys, encrypted by age to every recipient; only ever replaced whole (`rekey`, `recipients`) |
//! | `recipients.txt` | the public keys of those recipients, for people |
//! | `journal` | the latest commits |
//! | `db/` | the engine's files, and `outline`, which says what they have to have |
//! | `db.trial-…/` | a copy of them that is tried out, or their successor being written (`compact`); what a process left is removed at the next start |
//! | `LOCK` | locked while a process has the vault open; holds that process's id |
//!
//! `moving` takes all of it to another place or engine. `backup` takes a copy of all of it while it is used. `restore` brings one back, or accepts a vault of which an older
//! copy was put back; both begin a new epoch, which the vault keeps and of which it draws no conclusions.
//!
//! Where several processes share a vault, its records are in PostgreSQL instead (`postgres`), sealed in the same way and under a
//! keyring of the same form; of the folder there is then nothing.
//!
//! What is deliberately absent: nothing here decides about a grant, reads a clock, retries after a failed sync, or
//! repairs a file whose contents do not add up.

mod backlog;
mod backup;
mod cipher;
mod codec;
mod compact;
mod derived;
mod duty;
mod engine;
mod error;
mod folder;
mod handle;
mod identity;
mod journal;
mod keyring;
#[cfg(test)]
mod memory;
mod moving;
mod name;
mod open;
mod panics;
pub mod postgres;
mod recipients;
mod rekey;
mod restore;
mod shared;
#[cfg(test)]
mod simulated;
mod sled;
mod writer;

#[cfg(test)]
mod tests;

pub use backup::{BackedUp, ScheduledBackups};
pub use compact::Undisturbed;
pub use duty::{Duty, OnDuty, Singular};
pub use error::VaultError;
pub use handle::{Hold, Vault, VaultStats};
pub use identity::Identity;
pub use moving::{End, Moved, Progress};
pub use name::Part;
pub use open::Inspection;
pub use postgres::{Feed, Gone, Item};
pub use recipients::{Recipient, RecipientsDiffer, recipients_differ};
pub use rekey::Rekeying;
pub use restore::{Accepted, Gap, Restored};
#[cfg(test)]
pub(crate) use simulated::{Disk, DiskFault, Fate, Snapshot};

use crate::model::{
    Awaiting, EventId, Fingerprint, Grant, GrantId, Intent, Organization, OrganizationId, OutboxRow, RevokedLinks,
    Secret, Timestamp,
};

/// The longest plaintext of one record, in bytes. The engine keeps larger values in files of their own, which is slow;
/// a record of a grant with long tokens and a hundred organizations is a fifth of this.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

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
    /// Writes an event of the outbox, with who is still to be told of it, over whatever was there.
    PutRow(OutboxRow),
    /// Forgets an event of the outbox.
    DeleteRow(EventId),
    /// Notes what a consent is for that has not taken its place; written with its grant.
    PutAwaiting(Box<Awaiting>),
    /// The consent of that grant has taken its place, or never will.
    DeleteAwaiting(GrantId),
    /// Notes that an organization's links were revoked.
    PutRevokedLinks(RevokedLinks),
    /// Those links have ended by themselves.
    DeleteRevokedLinks(OrganizationId),
    /// Changes nothing, and has to hold: else nothing is committed, and it is [`VaultError::Conflict`].
    Expect(Expectation),
}

/// What whoever commits has seen, where another process may have changed it since. A vault that one process holds has no such process:
/// there it holds by the locks of whoever commits, and is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// The organization's record is of that commit ([`Stored::sequence`]); `None`: there is none.
    Organization(OrganizationId, Option<u64>),
    /// No grant but those that are written remembers this long-lived secret.
    NewSecret(Fingerprint),
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
