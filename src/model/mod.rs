//! The words of the project as types: ids, times, secrets, grants, events and what an exchange can end in.
//!
//! Nothing here does I/O or reads a clock, and nothing here that holds a secret can be serialized: records at rest are
//! written by the vault's codec, answers by [`crate::wire`].

mod awaiting;
mod event;
mod grant;
mod id;
mod outcome;
mod secret;
mod time;
mod wiped;

pub use awaiting::{AwaitReason, Awaiting, MAX_PLACES, Place, RevokedLinks};
pub use event::{EndingWeek, Event, EventId, EventKind, InvalidEventId, OpenDelivery, OutboxRow, Outlook, ReceiverId};
pub use grant::{
    AccessToken, BootMoment, ClientCredentials, Consent, Credential, DoubtReason, FailingReason, Fingerprint, Grant,
    GrantKind, Intent, Labels, MAX_LABEL_BYTES, MAX_LABELS, MAX_SPENT, Organization, Refusals, State, Usage,
};
pub use id::{GrantId, InvalidId, MAX_ORGANIZATION_ID, OVERFLOW_ID, OrganizationId, ProviderName};
pub use outcome::{Answer, ExchangeOutcome, NoAnswer};
pub use secret::Secret;
pub use time::{InvalidTimestamp, Timestamp, in_largest_unit};
pub use wiped::{Wipe, Wiped, wipe};
