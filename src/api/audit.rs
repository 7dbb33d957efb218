use super::Peer;
use crate::model::OrganizationId;

/// What a caller tried.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Fetch,
    Refresh,
    Show,
    Enrol,
    Remove,
    Pause,
    Resume,
    Resolve,
    Confirm,
    MakeLink,
    RevokeLinks,
    RotateKey,
    ListRecipients,
    AddRecipient,
    RemoveRecipient,
    Backup,
}

impl Action {
    /// Its word in the log.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Refresh => "refresh",
            Self::Show => "show",
            Self::Enrol => "enrol",
            Self::Remove => "remove",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Resolve => "resolve",
            Self::Confirm => "confirm",
            Self::MakeLink => "make_link",
            Self::RevokeLinks => "revoke_links",
            Self::RotateKey => "rotate_key",
            Self::ListRecipients => "list_recipients",
            Self::AddRecipient => "add_recipient",
            Self::RemoveRecipient => "remove_recipient",
            Self::Backup => "backup",
        }
    }
}

/// What was tried on.
#[derive(Clone, Copy, Debug)]
pub(super) enum On<'a> {
    Organization(&'a OrganizationId),
    /// The vault, by its key of this public half.
    Recipient(&'a str),
    Vault,
}

impl<'a> From<&'a OrganizationId> for On<'a> {
    fn from(organization: &'a OrganizationId) -> Self {
        Self::Organization(organization)
    }
}

/// Writes one line of the audit log: who tried what on what, and what came of it. `outcome` is `denied`, the word of another error,
/// or what was done. Nothing that a caller sent is written but a valid organization id or public key.
pub(super) fn record<'a>(peer: &Peer, action: Action, on: impl Into<On<'a>>, outcome: &str) {
    let (organization, recipient) = match on.into() {
        On::Organization(organization) => (Some(organization.as_str()), None),
        On::Recipient(recipient) => (None, Some(recipient)),
        On::Vault => (None, None),
    };
    tracing::event!(
        target: "consentry::audit",
        tracing::Level::INFO,
        caller.uid = peer.uid,
        caller.gid = peer.gid,
        action = action.word(),
        organization,
        recipient,
        outcome,
        "audit"
    );
}
