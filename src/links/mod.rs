//! Consent links: what an organization's user opens to give its consent, or to give it anew.
//!
//! A link carries all that is needed to act on it, sealed (`seal`), so that nothing has to be stored for it, it holds
//! across restarts and backups, and whoever reads it learns nothing. What makes it one that is used once is its
//! [`Binding`]: it names the grant that the organization had when the link was made, and storing a new consent gives the
//! organization another grant. Opening a link changes nothing, as scanners of mail open every one.
//!
//! What is deliberately absent: whether a link was revoked or used up is not decided here but by the keeper, which
//! knows what the organization has now.

mod seal;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use url::Url;

use self::seal::Seal;
use crate::model::{GrantId, OrganizationId, ProviderName, Timestamp};

/// The most organizations that one link may name beside its first. One person rarely keeps the books of more, and a link
/// must fit into the line of a mail and the head of a request.
pub const MAX_ALSO: usize = 32;
/// The longest token that is looked at, in bytes: what [`MAX_ALSO`] of the longest ids come to, and no more.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// What comes before the token in a link's path.
const PATH: &str = "/c/";

/// Whom a link invites, and to what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invitation {
    /// The organization whose consent is asked for.
    pub organization: OrganizationId,
    /// The provider at which it is given.
    pub provider: ProviderName,
    /// Further organizations that the same consent is to serve, where its user may speak for them; at most [`MAX_ALSO`].
    pub also: Vec<OrganizationId>,
    /// What must still be so for the link to be good.
    pub binding: Binding,
}

/// What was so when the link was made; once it is not so any more, the link is good for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The grant that the organization had; `None` where it had none. Storing a new consent gives it another.
    pub grant: Option<GrantId>,
    /// The organization's `link_generation`, which revoking its links raises.
    pub generation: u32,
}

/// A link as it is given away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// What the person opens. Whoever has it can ask for consent in the organization's name, and learn its name.
    pub url: String,
    /// When it stops working; whole seconds.
    pub expires_at: Timestamp,
}

/// Why a token opens no link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// It was cut, altered, made up, or made by another vault.
    #[error("this is not a link of ours: it was cut off or altered, or another worker made it; ask for a new one")]
    Unreadable,
    /// Its time is over.
    #[error("the link ended at {at}; ask for a new one")]
    Expired {
        /// When it ended.
        at: Timestamp,
    },
}

/// Makes links and opens them. Cheap to clone.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    seal: Seal,
    /// Without a slash at its end.
    public_url: String,
    lifetime: Duration,
}

impl Links {
    /// Links below `public_url`, which may have a path, that hold for `lifetime`. `key` never changes in a vault's life;
    /// links outlive a change of the two others, but for the address they lead to.
    pub fn new(key: &[u8; 32], public_url: &Url, lifetime: Duration) -> Self {
        let public_url = public_url.as_str().trim_end_matches('/').to_owned();
        Self(Arc::new(Inner { seal: Seal::new(key), public_url, lifetime }))
    }

    /// A link for `invitation`, made at `now`. Made twice in the same second, it is the same.
    pub fn make(&self, invitation: &Invitation, now: Timestamp) -> Link {
        let expires_at = Timestamp::from_millis((now + self.0.lifetime).as_seconds().saturating_mul(1000));
        let token = self.0.seal.close(invitation, expires_at);
        Link { url: format!("{}{PATH}{token}", self.0.public_url), expires_at }
    }

    /// What the link whose token this is asks for. That it opens says that we made it and that its time is not over;
    /// whether it is still wanted, its [`Binding`] tells the keeper.
    pub fn open(&self, token: &str, now: Timestamp) -> Result<Invitation, LinkError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(LinkError::Unreadable);
        }
        let (invitation, expires_at) = self.0.seal.open(token).ok_or(LinkError::Unreadable)?;
        if now >= expires_at {
            return Err(LinkError::Expired { at: expires_at });
        }
        Ok(invitation)
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("public_url", &self.0.public_url).finish_non_exhaustive()
    }
}
