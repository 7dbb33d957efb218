//! A consent given by a person, from the link to the tokens of the authorization code.
//!
//! Whatever the issuer gives is stored before anything else is done with it, as a grant that serves nobody yet, together
//! with the note of what it is for ([`Awaiting`]). `swap` then puts it in its place. A process that dies in between
//! finds both when it starts again; until the one commit that swaps them the old consent serves.

use std::{sync::Arc, time::Duration};

use super::{Keeper, KeeperError, Shared, awaiting::MAX_AWAITING, lane::Lane};
use crate::{
    clock::Now,
    config::Kind,
    lifecycle::{self, Redeemed, new_consent},
    links::{Binding, Invitation, Link, MAX_ALSO},
    model::{
        Answer, AwaitReason, Awaiting, ExchangeOutcome, Grant, GrantId, Labels, NoAnswer, Organization, OrganizationId,
        Place, ProviderName, RevokedLinks, Secret, Timestamp,
    },
    provider::{Limit, OFFLINE_ACCESS, Redemption},
    task,
    vault::{Change, Stored, VaultError},
};

/// How long a person who has approved waits for a share of the provider's budget before being asked to come back.
const BUDGET_PATIENCE: Duration = Duration::from_secs(5);

/// When to come back while too many consents wait.
const FULL_RETRY: Duration = Duration::from_mins(5);

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
    /// Organizations that it may serve once an operator has confirmed that it is theirs, or once the issuer could be asked.
    pub awaiting: Vec<OrganizationId>,
    /// Further organizations of the link that its user may not speak for, or that got another consent meanwhile: nothing
    /// was changed for them.
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
    #[error("a consent came by this link and waits for an operator; `consentry status` lists it")]
    Awaiting,
    /// The provider is not configured any more, or gives no consents.
    #[error("the link is for provider {0}, which is not configured, or at which no person gives consent")]
    NotOffered(ProviderName),
    /// The issuer refused the code: it is too old, was used, or belongs to another request.
    #[error("the issuer refused the authorization code: {0}")]
    Refused(String),
    /// The issuer gave no refresh token.
    #[error("the issuer gave no refresh token; add offline_access to the scopes of provider {0}")]
    NoRefreshToken(ProviderName),
    /// The person who approved may not speak for the organization. Nothing was changed.
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
        let shared = &self.shared;
        let lane = shared.consent_lane(&invitation.provider)?;
        let stored = shared.still_good(invitation).await?;
        let grant = match &stored {
            Some(stored) => shared.vault.grant(stored.grant).await.map_err(|error| shared.vault_failed(&error))?,
            None => None,
        };
        Ok(ConsentRequest {
            organization: invitation.organization.clone(),
            renewal: stored.is_some(),
            labels: stored.map(|stored| stored.labels).unwrap_or_default(),
            provider: lane.name.clone(),
            expires_at: grant.and_then(|grant| grant.value.consent).and_then(|consent| consent.expires_at),
            also: invitation.also.clone(),
            scopes: lane.config.scopes.clone(),
        })
    }

    /// Redeems the code of a person who approved, and puts the new consent in the place of the old one. It goes on if the
    /// caller goes away. Until the one commit that swaps them the old consent serves; whatever fails before changes nothing.
    pub async fn consent(&self, consent: NewConsent) -> Result<Consented, ConsentError> {
        let admitted = self.shared.admit()?;
        let shared = Arc::clone(&self.shared);
        let task = task::spawn(async move {
            let _admitted = admitted;
            shared.consent(consent).await
        });
        task.await.unwrap_or_else(|_| Err(ConsentError::Unavailable("storing the consent failed".to_owned())))
    }

    /// A link by which the organization's user gives consent, or gives it anew. `provider` is needed for an organization
    /// that is not known, and for one that has an API key; `also` names at most [`MAX_ALSO`] further organizations of the
    /// same user.
    pub async fn link(
        &self,
        organization: &OrganizationId,
        provider: Option<&ProviderName>,
        also: Vec<OrganizationId>,
    ) -> Result<Link, KeeperError> {
        self.shared.link(organization, provider, also).await
    }

    /// The link by which the organization's consent is renewed; `None` where there are no links, or where no person gives
    /// consent. For errors, which must not fail for its sake.
    pub async fn renewal_url(&self, organization: &OrganizationId) -> Option<String> {
        self.shared.renewal_url(organization).await
    }

    /// Ends every link that was made for the organization until now.
    pub async fn revoke_links(&self, organization: &OrganizationId) -> Result<(), KeeperError> {
        let shared = &self.shared;
        let _admitted = shared.admit()?;
        let _organization = shared.changing(organization).await;
        let change = shared.links_revoked(organization).await?;
        shared.vault.commit(vec![change]).await.map(|_| ()).map_err(|error| shared.vault_failed(&error))
    }
}

impl Shared {
    /// The provider, if people give consent there.
    pub(super) fn consent_lane(&self, provider: &ProviderName) -> Result<&Lane, ConsentError> {
        let lane = self.lane_of.get(provider).map(|number| &self.lanes[usize::from(*number)]);
        lane.filter(|lane| gives_consents(lane)).ok_or_else(|| ConsentError::NotOffered(provider.clone()))
    }

    /// The organization as it is stored, if the link is still good for it.
    async fn still_good(&self, invitation: &Invitation) -> Result<Option<Organization>, ConsentError> {
        let (organization, binding) = (&invitation.organization, invitation.binding);
        if self.revoked_until(organization).await?.is_some_and(|until| binding.generation <= until) {
            return Err(ConsentError::Revoked);
        }
        let stored = self.stored_organization(organization).await?;
        if stored.as_ref().map(|stored| stored.grant) != binding.grant {
            return Err(ConsentError::Used);
        }
        let came_by_it = |awaiting: &Awaiting| {
            let invited = awaiting.places.first().is_some_and(|place| place.organization == *organization);
            invited && awaiting.generation == binding.generation
        };
        if self.awaiting().values().any(came_by_it) {
            return Err(ConsentError::Awaiting);
        }
        Ok(stored)
    }

    async fn stored_organization(&self, organization: &OrganizationId) -> Result<Option<Organization>, KeeperError> {
        let stored = self.vault.organization(organization).await.map_err(|error| self.vault_failed(&error))?;
        Ok(stored.map(|stored| stored.value))
    }

    async fn revoked_until(&self, organization: &OrganizationId) -> Result<Option<u32>, KeeperError> {
        let revoked = self.vault.revoked_links(organization).await.map_err(|error| self.vault_failed(&error))?;
        Ok(revoked.map(|revoked| revoked.until))
    }

    async fn link(
        &self,
        organization: &OrganizationId,
        provider: Option<&ProviderName>,
        also: Vec<OrganizationId>,
    ) -> Result<Link, KeeperError> {
        let bad = |why: String| KeeperError::BadRequest(why.into());
        let links = self.links.as_ref();
        let links =
            links.ok_or_else(|| bad("no links can be made: set consent.public_url and consent.listen".into()))?;
        let mut further: Vec<OrganizationId> = Vec::new();
        for other in also {
            if other != *organization && !further.contains(&other) {
                further.push(other);
            }
        }
        if further.len() > MAX_ALSO {
            return Err(bad(format!("one link can name {MAX_ALSO} further organizations, not {}", further.len())));
        }
        let stored = self.stored_organization(organization).await?;
        let provider = self.provider_of_link(stored.as_ref(), provider).await?;
        let now = self.now().wall;
        let generation = lifecycle::generation(now, self.revoked_until(organization).await?);
        let binding = Binding { grant: stored.map(|stored| stored.grant), generation };
        Ok(links.make(&Invitation { organization: organization.clone(), provider, also: further, binding }, now))
    }

    /// The link by which a consent that ends, or has ended, is renewed; `None` where there are no links, or where no
    /// person gives consent there. For events and errors, which must not fail for its sake.
    pub(super) async fn renewal_url(&self, organization: &OrganizationId) -> Option<String> {
        self.links.as_ref()?;
        self.link(organization, None, Vec::new()).await.ok().map(|link| link.url)
    }

    async fn provider_of_link(
        &self,
        stored: Option<&Organization>,
        named: Option<&ProviderName>,
    ) -> Result<ProviderName, KeeperError> {
        let bad = |why: String| KeeperError::BadRequest(why.into());
        let of_grant = async || -> Result<Option<ProviderName>, KeeperError> {
            let Some(stored) = stored else { return Ok(None) };
            let grant = self.vault.grant(stored.grant).await.map_err(|error| self.vault_failed(&error))?;
            Ok(grant.map(|grant| grant.value.provider))
        };
        let provider = match named {
            Some(named) => named.clone(),
            None => {
                of_grant().await?.ok_or_else(|| bad("this organization is not known yet: name its provider".into()))?
            }
        };
        self.consent_lane(&provider).map(|lane| lane.name.clone()).map_err(|_| {
            let known: Vec<&str> =
                self.lanes.iter().filter(|lane| gives_consents(lane)).map(|lane| lane.name.as_str()).collect();
            bad(format!("no person gives consent at provider {provider}; name one of: {}", known.join(", ")))
        })
    }

    /// What ends every link of an organization that was made until now.
    pub(super) async fn links_revoked(&self, organization: &OrganizationId) -> Result<Change, KeeperError> {
        let until = lifecycle::generation(self.now().wall, self.revoked_until(organization).await?);
        Ok(Change::PutRevokedLinks(RevokedLinks { organization: organization.clone(), until }))
    }

    async fn consent(&self, consent: NewConsent) -> Result<Consented, ConsentError> {
        let invitation = &consent.invitation;
        let lane = self.consent_lane(&invitation.provider)?;
        let organizations: Vec<&OrganizationId> =
            std::iter::once(&invitation.organization).chain(&invitation.also).collect();
        // Held to the end: of two who come back at once with the same link the second finds it used up, and its code,
        // which is never sent, harms nobody.
        let _organizations = self.changing_all(&organizations).await;
        self.still_good(invitation).await?;
        if let Some(reason) = self.vault.poisoned() {
            return Err(KeeperError::VaultUnavailable(reason).into());
        }
        if self.awaiting().len() >= MAX_AWAITING {
            tracing::error!(most = MAX_AWAITING, "so many consents wait to be confirmed that no more are taken");
            return Err(KeeperError::TooManyRequests { retry_after: FULL_RETRY }.into());
        }
        let answer = self.redeem(lane, &consent).await?;
        let id = self.store_candidate(lane, invitation, &answer).await?;
        match self.settle(id, None).await {
            // It is stored, and goes on when the sweep or a start comes by.
            Err(ConsentError::Keeper(error)) if self.awaiting().contains_key(&id) => {
                Ok(self.left_for_later(id, &error.to_string()))
            }
            settled => settled,
        }
    }

    /// Sends the code as soon as the budget allows, and counts what came of it.
    async fn redeem(&self, lane: &Lane, consent: &NewConsent) -> Result<Granted, ConsentError> {
        while let Err(wait) = lane.budget.take_forced().await {
            if wait > BUDGET_PATIENCE {
                return Err(KeeperError::TooManyRequests { retry_after: wait }.into());
            }
            tokio::time::sleep(wait).await;
        }
        let granted = self.send_code(lane, consent).await;
        self.metrics.redeemed(&lane.name, granted.is_ok());
        granted
    }

    /// Sends the code, once.
    async fn send_code(&self, lane: &Lane, consent: &NewConsent) -> Result<Granted, ConsentError> {
        let asked = self.now();
        let redemption = Redemption {
            code: &consent.code,
            verifier: consent.verifier.as_ref(),
            redirect_uri: &consent.redirect_uri,
        };
        let answered = Limit::new(self.exchange_limit()).wait_for(lane.endpoint.redeem(redemption)).await;
        let outcome = answered.unwrap_or_else(|| ExchangeOutcome::Unknown {
            why: NoAnswer::Timeout,
            detail: "it did not answer in time".to_owned(),
        });
        let (organization, provider) = (consent.invitation.organization.as_str(), lane.name.as_str());
        let answer = match outcome {
            ExchangeOutcome::Granted(answer) => answer,
            refused => {
                let reason = refused.label();
                let detail = detail_of(&refused);
                tracing::warn!(
                    event = "consent.not_given",
                    organization,
                    provider,
                    reason,
                    detail,
                    "the issuer gave nothing for an authorization code"
                );
                return Err(match refused {
                    ExchangeOutcome::Refused { .. } => ConsentError::Refused(detail),
                    _ => ConsentError::Unavailable(detail),
                });
            }
        };
        let Some(refresh_token) = answer.refresh_token.clone() else {
            tracing::error!(
                event = "consent.not_given",
                organization,
                provider,
                "the issuer gave no refresh token: add offline_access to the provider's scopes"
            );
            return Err(ConsentError::NoRefreshToken(lane.name.clone()));
        };
        if answer.client_id.as_deref().is_some_and(|id| id != lane.config.client_id) {
            tracing::error!(
                event = "consent.not_given",
                organization,
                provider,
                "the answer to an authorization code names another client; it is not used"
            );
            return Err(ConsentError::Unavailable("its answer names another client".to_owned()));
        }
        tell_missing_scopes(lane, organization, answer.scope.as_deref());
        Ok(Granted { answer, refresh_token, asked })
    }

    /// The consent is durable before anything else is done with it, with what it is for.
    async fn store_candidate(
        &self,
        lane: &Lane,
        invitation: &Invitation,
        granted: &Granted,
    ) -> Result<GrantId, ConsentError> {
        let Granted { answer, refresh_token, asked } = granted;
        let redeemed = Redeemed {
            answer,
            refresh_token,
            fingerprint: self.vault.fingerprint(refresh_token),
            asked: *asked,
            boot_id: self.clock.boot_id(),
            epoch: self.vault.epoch(),
        };
        let id = self.vault.random_grant_id();
        let grant = new_consent(id, &redeemed, &lane.config)
            .map_err(|error| ConsentError::Unavailable(format!("what it gave cannot be used: {error}")))?;
        let mut places = Vec::new();
        for organization in std::iter::once(&invitation.organization).chain(&invitation.also) {
            let replaces = self.stored_organization(organization).await?.map(|stored| stored.grant);
            places.push(Place { organization: organization.clone(), replaces });
        }
        let awaiting = Awaiting {
            grant: id,
            places,
            generation: invitation.binding.generation,
            since: asked.wall,
            reason: AwaitReason::Unfinished,
        };
        let before = self.index.before();
        let (grant, sequence) = self.commit_candidate(grant, &awaiting).await?;
        self.awaiting().insert(id, awaiting);
        // It is stored: where it cannot be read anew, that is done when it is to take its place.
        let _ = self.take_in(&Stored { value: grant, sequence }, &before).await;
        Ok(id)
    }

    async fn commit_candidate(&self, mut grant: Grant, awaiting: &Awaiting) -> Result<(Grant, u64), KeeperError> {
        loop {
            let changes =
                vec![Change::PutGrant(Box::new(grant.clone())), Change::PutAwaiting(Box::new(awaiting.clone()))];
            match self.vault.commit(changes).await {
                // The access token can be had again by the refresh token.
                Err(VaultError::TooLarge { .. }) if grant.access.take().is_some() => {}
                Err(error) => return Err(self.vault_failed(&error)),
                Ok(sequence) => return Ok((grant, sequence)),
            }
        }
    }
}

/// What the issuer gave for a code.
struct Granted {
    answer: Box<Answer>,
    refresh_token: Secret,
    asked: Now,
}

/// Whether people give consent at a provider, rather than keys.
fn gives_consents(lane: &Lane) -> bool {
    lane.config.kind != Kind::DineroPersonal
}

fn detail_of(outcome: &ExchangeOutcome) -> String {
    match outcome {
        ExchangeOutcome::Refused { detail }
        | ExchangeOutcome::ClientRefused { detail }
        | ExchangeOutcome::NotSent { detail }
        | ExchangeOutcome::Unknown { detail, .. } => detail.clone(),
        ExchangeOutcome::RateLimited { .. } => "it answers: too many requests".to_owned(),
        ExchangeOutcome::Unavailable { .. } | ExchangeOutcome::Granted(_) => "it is not available".to_owned(),
    }
}

/// A person may untick what was asked for; what then fails at the API should not be a riddle.
fn tell_missing_scopes(lane: &Lane, organization: &str, given: Option<&str>) {
    let Some(given) = given else { return };
    let given: Vec<&str> = given.split_ascii_whitespace().collect();
    // A refresh token came, whatever the issuer says of its scope.
    let lacks = |scope: &&str| *scope != OFFLINE_ACCESS && !given.contains(scope);
    let missing: Vec<&str> = lane.config.scopes.iter().map(String::as_str).filter(lacks).collect();
    if !missing.is_empty() {
        let missing = missing.join(" ");
        tracing::warn!(
            organization,
            provider = lane.name.as_str(),
            missing,
            "the consent is for less than was asked for"
        );
    }
}
