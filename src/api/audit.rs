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

/// Writes one line of the audit log: who tried what on which organization, or on the vault where none is given, and what
/// came of it. `outcome` is `denied`, the word of another error, or what was done. Nothing that a caller sent is written but a valid organization id.
pub(super) fn record<'a>(
    peer: &Peer,
    action: Action,
    organization: impl Into<Option<&'a OrganizationId>>,
    outcome: &str,
) {
    tracing::event!(
        target: "consentry::audit",
        tracing::Level::INFO,
        caller.uid = peer.uid,
        caller.gid = peer.gid,
        action = action.word(),
        organization = organization.into().map(OrganizationId::as_str),
        outcome,
        "audit"
    );
}

/// As [`record`], of what concerns the whole vault; `recipient` is the public key that it was about, if it was about one.
pub(super) fn record_vault(peer: &Peer, action: Action, recipient: Option<&str>, outcome: &str) {
    tracing::event!(
        target: "consentry::audit",
        tracing::Level::INFO,
        caller.uid = peer.uid,
        caller.gid = peer.gid,
        action = action.word(),
        recipient,
        outcome,
        "audit"
    );
}
