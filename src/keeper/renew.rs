//! A consent given by a person, from the authorization code to the organizations that it serves.

use super::{Keeper, KeeperError};
use crate::{
    links::{Invitation, Link},
    model::{Labels, OrganizationId, ProviderName, Secret, Timestamp},
    wire,
};

/// What a person who opened a link is asked for.
#[derive(Debug, Clone)]
pub struct ConsentRequest {
    /// The organization that the link invites.
    pub organization: OrganizationId,
    /// Its labels; none where it is not known yet.
    pub labels: Labels,
    /// Where the consent is given.
    pub provider: ProviderName,
    /// Whether it has a consent or key that this one takes the place of.
    pub renewal: bool,
    /// When the consent that it has ends, as far as known.
    pub expires_at: Option<Timestamp>,
    /// Further organizations that the same consent is to serve.
    pub also: Vec<OrganizationId>,
    /// What the issuer will be asked to allow.
    pub scopes: Vec<String>,
}

/// What the issuer sent back with a person who approved.
#[derive(Debug)]
pub struct NewConsent {
    /// What the link asked for.
    pub invitation: Invitation,
    /// The authorization code.
    pub code: Secret,
    /// The verifier of its PKCE challenge, where one was made.
    pub verifier: Option<Secret>,
    /// The redirect URI of the authorization request.
    pub redirect_uri: String,
}

/// What became of a consent that the issuer gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consented {
    /// Organizations that it serves from now on.
    pub connected: Vec<OrganizationId>,
    /// Whether the invited organization had a consent or key before.
    pub renewed: bool,
    /// Organizations for which an operator must confirm first that it is theirs.
    pub awaiting: Vec<OrganizationId>,
    /// Further organizations of the link that its user may not speak for: nothing was changed for them.
    pub beyond: Vec<OrganizationId>,
    /// When the consent ends, as far as known.
    pub expires_at: Option<Timestamp>,
}

/// Why a link or a consent came to nothing. `Display` is for operators and the log; what a person reads is the pages' own.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConsentError {
    /// A consent has been stored since the link was made.
    #[error("the link is used up: the organization has got another consent since it was made")]
    Used,
    /// The organization's links were revoked.
    #[error("the link was revoked; make a new one with `consentry connect`")]
    Revoked,
    /// A consent came by this link, and an operator has to confirm it.
    #[error("a consent came by this link and waits for an operator; see `consentry status`")]
    Awaiting,
    /// The provider is not configured any more, or gives no consents.
    #[error("the link is for provider {0}, which is not configured, or to which no person gives consent")]
    NotOffered(ProviderName),
    /// The issuer refused the code: it is too old, was used, or belongs to another request.
    #[error("the issuer refused the authorization code: {0}")]
    Refused(String),
    /// The issuer gave no refresh token.
    #[error("the issuer gave no refresh token; add offline_access to the scopes of provider {0}")]
    NoRefreshToken(ProviderName),
    /// The person who approved may not speak for the organization.
    #[error("the consent does not reach organization {organization}; it reaches {reach}")]
    WrongOrganization {
        /// The organization that was invited.
        organization: OrganizationId,
        /// What it reaches, in a few words, for operators only: it may name another customer.
        reach: String,
    },
    /// The issuer did not answer, or not sensibly; the link is still good.
    #[error("the issuer gave no tokens: {0}; the link is still good")]
    Unavailable(String),
    /// The worker cannot store a consent now; the link is still good.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl Keeper {
    /// Whether the link is still good, and what its page is to say. Changes nothing.
    pub async fn begin_consent(&self, invitation: &Invitation) -> Result<ConsentRequest, ConsentError> {
        let _ = invitation;
        Err(KeeperError::Starting.into())
    }

    /// Redeems the code of a person who approved, and puts the new consent in the place of the old one. It goes on if the
    /// caller goes away. Until the one commit that swaps them the old consent serves; whatever fails before changes nothing.
    pub async fn consent(&self, consent: NewConsent) -> Result<Consented, ConsentError> {
        let _ = consent;
        Err(KeeperError::Starting.into())
    }

    /// A link by which the organization's user gives consent, or gives it anew. `provider` is needed for an organization
    /// that is not known, and for one that has an API key; `also` names further organizations of the same user.
    pub async fn link(
        &self,
        organization: &OrganizationId,
        provider: Option<&ProviderName>,
        also: Vec<OrganizationId>,
    ) -> Result<Link, KeeperError> {
        let _ = (organization, provider, also);
        Err(KeeperError::Starting)
    }

    /// Ends every link that was made for the organization until now.
    pub async fn revoke_links(&self, organization: &OrganizationId) -> Result<(), KeeperError> {
        let _ = organization;
        Err(KeeperError::Starting)
    }

    /// An operator confirms that the consent which waits for the organization is its own.
    pub async fn confirm(&self, organization: &OrganizationId) -> Result<wire::Organization, KeeperError> {
        let _ = organization;
        Err(KeeperError::Starting)
    }

    /// An operator says that the consent which waits for the organization is not its own: it is forgotten.
    pub async fn decline(&self, organization: &OrganizationId) -> Result<(), KeeperError> {
        let _ = organization;
        Err(KeeperError::Starting)
    }
}
