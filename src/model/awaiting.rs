use super::{GrantId, OrganizationId, Timestamp};

/// How many organizations one consent may wait for: what a link can name.
pub const MAX_PLACES: usize = 64;

/// A consent that a person has given and that has not taken its place yet. Written together with its grant, so that it is
/// never lost that somebody approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaiting {
    /// The consent: a grant that serves none of these organizations yet.
    pub grant: GrantId,
    /// The organizations that it may be for, the invited one first; at most [`MAX_PLACES`].
    pub places: Vec<Place>,
    /// The generation of the link by which it came.
    pub generation: u32,
    /// When the person approved.
    pub since: Timestamp,
    /// What it waits for.
    pub reason: AwaitReason,
}

/// An organization that a consent may be for, as it was when the consent was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The organization.
    pub organization: OrganizationId,
    /// The grant that it had. Where it has another by now, this consent comes too late.
    pub replaces: Option<GrantId>,
}

/// Why a consent has not taken its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AwaitReason {
    /// Which organizations it reaches has not been compared yet: the issuer could not be asked, or the process ended.
    /// It is tried again.
    Unfinished,
    /// The organization has no consent yet, and the provider lists no organizations: an operator must say that it is its.
    FirstConnection,
    /// Somebody else gave it than the one before, and the provider lists no organizations.
    AnotherPerson,
    /// Nobody knows who gave it, or the one before, and the provider lists no organizations.
    UnknownPerson,
}

impl AwaitReason {
    /// Its word in the API and the log.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unfinished => "unfinished",
            Self::FirstConnection => "first_connection",
            Self::AnotherPerson => "another_person",
            Self::UnknownPerson => "unknown_person",
        }
    }
}

/// That every link made for an organization until some moment is good for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedLinks {
    /// The organization; it need not be known.
    pub organization: OrganizationId,
    /// Links of this generation and of those before it.
    pub until: u32,
}
