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
        }
    }
}

/// Writes one line of the audit log: who tried what on which organization, and what came of it. `outcome` is `denied`,
/// the word of another error, or what was done. Nothing that a caller sent is written but a valid organization id.
pub(super) fn record(peer: &Peer, action: Action, organization: &OrganizationId, outcome: &str) {
    tracing::event!(
        target: "consentry::audit",
        tracing::Level::INFO,
        caller.uid = peer.uid,
        caller.gid = peer.gid,
        action = action.word(),
        organization = organization.as_str(),
        outcome,
        "audit"
    );
}
