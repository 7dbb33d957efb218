//! The JSON of the Unix-socket API, shared by the server and the client. `docs/openapi.yaml` describes the same
//! shapes, and the tests hold every answer against it.

mod enrolment;
mod event;
mod link;
mod organization;
mod problem;
mod status;
mod token;
mod vault;

pub use self::{
    enrolment::{ENROLMENT_CHANGED, Enrolment},
    event::{Digest, EndingWithin, Event, EventData, OrganizationEvent},
    link::{ConsentLink, LinkRequest},
    organization::{Confirm, Confirmation, Consent, Organization, OrganizationPage, Resolution, Resolve},
    problem::{Code, Problem},
    status::{Awaiting, ForecastWeek, ProviderStatus, Status, Stray, VaultStatus, WebhookStatus},
    token::Token,
    vault::{DataKey, Recipient, Recipients},
};

/// Where both listeners say whether the worker lives.
pub const HEALTHZ: &str = "/healthz";
/// Where both listeners say whether the vault is open and loaded.
pub const READYZ: &str = "/readyz";
