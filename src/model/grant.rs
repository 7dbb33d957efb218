use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{GrantId, OrganizationId, ProviderName, Secret, Timestamp};

/// How many spent refresh tokens a grant remembers by fingerprint.
pub const MAX_SPENT: usize = 4;
/// How many labels an organization may carry.
pub const MAX_LABELS: usize = 16;
/// The longest label key or value, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

/// An operator's own key-value pairs on an organization, at most [`MAX_LABELS`].
pub type Labels = BTreeMap<String, String>;

/// A keyed hash of a secret: equal secrets have equal fingerprints, and nothing else can be learnt from one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 16]);

/// What one user, or one API key, gave us at one provider: the long-lived secret and its latest access token.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Names the grant in the vault.
    pub id: GrantId,
    /// Where it is exchanged.
    pub provider: ProviderName,
    /// The long-lived secret.
    pub credential: Credential,
    /// The credential's keyed fingerprint.
    pub fingerprint: Fingerprint,
    /// Fingerprints of the last refresh tokens that were spent, the newest last; the enrolled one stays first.
    pub spent: Vec<Fingerprint>,
    /// Client credentials of its own, where the provider's do not hold for it.
    pub client: Option<ClientCredentials>,
    /// The latest access token, living or not.
    pub access: Option<AccessToken>,
    /// How it stands.
    pub state: State,
    /// Since when it stands so.
    pub since: Timestamp,
    /// An operator's pause lies over the state.
    pub paused: bool,
    /// The issuer's name for who gave it (`sub`), once an access token has told.
    pub subject: Option<String>,
    /// What is known of the consent; `None` for an API key.
    pub consent: Option<Consent>,
    /// When the last exchange went well.
    pub refreshed_at: Option<Timestamp>,
    /// Exchanges that failed since the last that went well.
    pub failures: u32,
    /// Not to be exchanged before: back-off or `Retry-After`.
    pub retry_at: Option<Timestamp>,
    /// `invalid_grant` answers since the last exchange that went well.
    pub refusals: Option<Refusals>,
    /// When one of its organizations was last fetched, as far as a commit has carried it.
    pub last_fetched_at: Option<Timestamp>,
    /// The organizations that use it: empty only for one whose enrolment was not finished, which is kept because its token cannot be had again.
    pub organizations: Vec<OrganizationId>,
    /// The vault's epoch in which its credential was last known to be the issuer's newest.
    pub epoch: u32,
}

impl Grant {
    /// Whether its credential must be treated as one that is spent by an exchange (rule 4 of the design: one-time
    /// until an exchange has given the same one back).
    pub fn is_one_time(&self) -> bool {
        match (&self.credential, &self.consent) {
            (Credential::ApiKey(_), _) => false,
            (Credential::RefreshToken(_), Some(consent)) => consent.shown != Some(Usage::Reuse),
            (Credential::RefreshToken(_), None) => true,
        }
    }

    /// `consent` or `api-key`.
    pub const fn kind(&self) -> GrantKind {
        match self.credential {
            Credential::RefreshToken(_) => GrantKind::Consent,
            Credential::ApiKey(_) => GrantKind::ApiKey,
        }
    }
}

/// Whether a person's approval or a key stands behind a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantKind {
    /// A person's approval, which ends on a date.
    Consent,
    /// A personal API key, with no known end.
    ApiKey,
}

/// The long-lived secret.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A refresh token (RFC 6749 section 1.5).
    RefreshToken(Secret),
    /// A personal API key, exchanged by the password grant.
    ApiKey(Secret),
}

impl Credential {
    /// The secret inside.
    pub const fn secret(&self) -> &Secret {
        match self {
            Self::RefreshToken(secret) | Self::ApiKey(secret) => secret,
        }
    }
}

/// Client credentials that belong to one grant alone.
#[derive(Clone, Debug)]
pub struct ClientCredentials {
    /// The client id.
    pub id: String,
    /// The client secret.
    pub secret: Secret,
}

/// An access token as it was given.
#[derive(Clone, Debug)]
pub struct AccessToken {
    /// The token.
    pub token: Secret,
    /// `Bearer`, as a rule.
    pub token_type: String,
    /// The scope it was given with, where the issuer said.
    pub scope: Option<String>,
    /// When it was given.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was given, on the boot-time clock: what is left of it is known by that whatever wall time does, across
    /// a restart of the process too. `None`: stored before this was noted.
    pub issued_boot: Option<BootMoment>,
}

/// A moment on the boot-time clock, which counts through suspension and never jumps, of one boot of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootMoment {
    /// Which boot it was; 0: unknown.
    pub boot_id: u128,
    /// Since that boot.
    pub at: Duration,
}

impl AccessToken {
    /// Its whole life.
    pub fn lifetime(&self) -> Duration {
        self.expires_at.since(self.issued_at)
    }
}

/// What is known of a consent.
#[derive(Clone, Debug)]
pub struct Consent {
    /// When the person approved.
    pub granted_at: Timestamp,
    /// The last moment it can be used: an upper bound, never told by the server. `None`: it does not end by itself.
    pub expires_at: Option<Timestamp>,
    /// No date was given at enrolment, so that `granted_at` is the moment of enrolment.
    pub assumed: bool,
    /// What it was said to be at enrolment or by the configuration: a hint.
    pub expected: Usage,
    /// What exchanges have shown it to be; one-time is for good.
    pub shown: Option<Usage>,
    /// How long a spent token may be exchanged again.
    pub grace: Duration,
    /// Warnings already given, as the time before the end that they belong to.
    pub warned: Vec<Duration>,
}

/// Whether a refresh token outlives its exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Usage {
    /// The same token again and again.
    Reuse,
    /// Each exchange spends the token and gives another.
    OneTime,
}

/// `invalid_grant` answers in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusals {
    /// How many.
    pub count: u32,
    /// When the first came.
    pub first_at: Timestamp,
}

/// How a grant stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// The last exchange went well.
    Active,
    /// Exchanges fail; the credential is not known to be dead.
    Failing(FailingReason),
    /// A one-time token was sent and the outcome is unknown.
    InDoubt(DoubtReason),
    /// The issuer says it is dead, and that is proven.
    Lost,
}

/// Why exchanges fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FailingReason {
    /// Stored, never exchanged.
    Unverified,
    /// The issuer refuses the credential; not yet proven.
    Refused,
    /// The provider does not answer, or not sensibly.
    ProviderUnavailable,
    /// The provider says: too many requests.
    RateLimited,
    /// The provider refuses our client id or secret.
    ClientRefused,
    /// The vault could not take the result.
    VaultUnavailable,
}

/// Why nobody knows whether a one-time token was spent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DoubtReason {
    /// The answer never came, or made no sense.
    NoAnswer,
    /// The process ended during the exchange.
    Crashed,
    /// It came back from a backup.
    Restored,
    /// The vault's files went back to an earlier state.
    RolledBack,
}

impl State {
    /// The state's word in the contract.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Failing(_) => "failing",
            Self::InDoubt(_) => "in_doubt",
            Self::Lost => "lost",
        }
    }

    /// The reason's word in the contract; `None` for an active grant.
    pub const fn reason(self) -> Option<&'static str> {
        Some(match self {
            Self::Active => return None,
            Self::Lost | Self::Failing(FailingReason::Refused) => "refused",
            Self::Failing(FailingReason::Unverified) => "unverified",
            Self::Failing(FailingReason::ProviderUnavailable) => "provider_unavailable",
            Self::Failing(FailingReason::RateLimited) => "rate_limited",
            Self::Failing(FailingReason::ClientRefused) => "client_refused",
            Self::Failing(FailingReason::VaultUnavailable) => "vault_unavailable",
            Self::InDoubt(DoubtReason::NoAnswer) => "no_answer",
            Self::InDoubt(DoubtReason::Crashed) => "crashed",
            Self::InDoubt(DoubtReason::Restored) => "restored",
            Self::InDoubt(DoubtReason::RolledBack) => "rolled_back",
        })
    }
}

/// The durable note that a one-time token is about to be sent (rule 2 of the design).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The grant that is exchanged.
    pub grant: GrantId,
    /// The token that is sent.
    pub fingerprint: Fingerprint,
    /// 1 for the first attempt with this token, and so on.
    pub attempt: u32,
    /// Wall time of the first attempt with this token.
    pub first_at: Timestamp,
    /// Boot-time clock at the first attempt.
    pub first_boot: Duration,
    /// Which boot of the machine that clock belongs to.
    pub boot_id: u128,
}

/// A customer's company, and the grant that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Organization {
    /// The issuer's id of it.
    pub id: OrganizationId,
    /// The grant it uses.
    pub grant: GrantId,
    /// The operator's labels.
    pub labels: Labels,
    /// When it was enrolled.
    pub added_at: Timestamp,
}
