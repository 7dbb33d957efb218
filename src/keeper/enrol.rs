//! Enrolling: proof before anything is replaced, and no credential lost on the way.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::MutexGuard;

use super::{Keeper, KeeperError, Shared, hold::Held, operate::Enrolled, slot::Slot, store::in_doubt};
use crate::{
    lifecycle::{self, Enrolling, FROZEN_RETRY, Notice, new_grant, valid_labels},
    model::{
        ClientCredentials, Credential, FailingReason, Fingerprint, Grant, GrantId, Intent, Labels, Organization,
        OrganizationId, State,
    },
    provider::ProviderError,
    vault::{Change, Expectation, Hold, MAX_RECORD_BYTES, Stored},
    wire,
};

/// How many locks keep enrolments of one secret, or of one organization, apart.
pub(super) const LOCKS: usize = 512;

/// How much of a grant's record the ids of its organizations may fill, in bytes: half, so that the tokens of an exchange
/// always find room beside them.
pub(super) const MAX_ORGANIZATION_BYTES: usize = MAX_RECORD_BYTES / 2;

/// What a request asks for, once it makes sense.
struct Wanted {
    organization: OrganizationId,
    provider: u16,
    fingerprint: Fingerprint,
    labels: Option<Labels>,
    verify: bool,
}

impl Keeper {
    /// Enrols an organization or replaces its credential. With `verify`, the first exchange proves the credential,
    /// and where the provider lists organizations, that this one is among them, before anything is replaced. A
    /// secret that a living grant holds joins that grant.
    pub async fn enrol(
        &self,
        organization: OrganizationId,
        enrolment: wire::Enrolment,
    ) -> Result<Enrolled, KeeperError> {
        let shared = &self.shared;
        let _admitted = shared.admit()?;
        let (wanted, enrolling) = shared.wanted(organization, enrolment)?;
        // Secrets take the lower half of the locks and organizations the upper, always in this order.
        let by_secret = usize::from(wanted.fingerprint.0[15]) % (LOCKS / 2);
        let _secret = shared.enrolling[by_secret].lock().await;
        let _organization = shared.changing(&wanted.organization).await;
        let _here = shared.present(&wanted.organization).await?;
        match shared.holder(wanted.fingerprint).await? {
            Some((slot, grant)) => shared.join(&slot, &grant, wanted).await,
            None => shared.enrol_new(wanted, enrolling).await,
        }
    }

    /// What the outcome of an enrolment depends on besides its organization: its secret, and the grants that hold that secret
    /// or serve the organization now.
    pub fn touched_by(
        &self,
        organization: &OrganizationId,
        enrolment: &wire::Enrolment,
    ) -> (Option<Fingerprint>, Vec<GrantId>) {
        let index = &self.shared.index;
        let secret = enrolment.refresh_token.as_ref().or(enrolment.api_key.as_ref());
        let fingerprint = secret.map(|secret| self.shared.vault.fingerprint(secret));
        let holders = fingerprint.map(|fingerprint| index.by_fingerprint(fingerprint)).unwrap_or_default();
        let serves = index.find(organization).map(|entry| entry.slot.id);
        (fingerprint, holders.iter().map(|slot| slot.id).chain(serves).collect())
    }
}

impl Shared {
    /// Keeps every other enrolment and removal of the organization away: both write its record.
    pub(super) async fn changing(&self, organization: &OrganizationId) -> MutexGuard<'_, ()> {
        self.enrolling[place_of(organization)].lock().await
    }

    /// As [`changing`](Self::changing), for several: each lock is taken once, and always in the same order.
    pub(super) async fn changing_all(&self, organizations: &[&OrganizationId]) -> Vec<MutexGuard<'_, ()>> {
        let places: BTreeSet<usize> = organizations.iter().map(|organization| place_of(organization)).collect();
        let mut held = Vec::with_capacity(places.len());
        for place in places {
            held.push(self.enrolling[place].lock().await);
        }
        held
    }

    fn wanted(&self, organization: OrganizationId, body: wire::Enrolment) -> Result<(Wanted, Enrolling), KeeperError> {
        let bad = |why: String| KeeperError::BadRequest(why.into());
        let provider = *self.lane_of.get(&body.provider).ok_or_else(|| {
            let known: Vec<&str> = self.lane_of.keys().map(crate::model::ProviderName::as_str).collect();
            bad(format!("provider {} is not configured; configured are: {}", body.provider, known.join(", ")))
        })?;
        let credential = match (body.refresh_token, body.api_key) {
            (Some(token), None) => Credential::RefreshToken(token),
            (None, Some(key)) => Credential::ApiKey(key),
            _ => return Err(bad("give exactly one of refresh_token and api_key".into())),
        };
        let client = match (body.client_id, body.client_secret) {
            (Some(id), Some(secret)) => Some(ClientCredentials { id, secret }),
            (None, None) => None,
            _ => return Err(bad("client_id and client_secret go together".into())),
        };
        let grace = body.grace.as_deref().map(humantime::parse_duration).transpose();
        let grace = grace.map_err(|_| bad("grace is not a duration; write it as in \"30s\"".into()))?;
        if body.labels.as_ref().is_some_and(|labels| !valid_labels(labels)) {
            return Err(bad("labels: at most 16, each at most 256 bytes with its key, no = in a key".into()));
        }
        let fingerprint = self.vault.fingerprint(credential.secret());
        let verify = body.verify.unwrap_or(true);
        let wanted = Wanted { organization, provider, fingerprint, labels: body.labels, verify };
        let (granted_at, expires_at, usage) = (body.granted_at, body.expires_at, body.usage);
        Ok((wanted, Enrolling { credential, client, granted_at, expires_at, usage, grace }))
    }

    /// The grant that holds, or held, the secret with this fingerprint. A spent one of a grant that is gone is an error:
    /// to send it is a replay, and could end what the same person has given since.
    async fn holder(&self, fingerprint: Fingerprint) -> Result<Option<(Arc<Slot>, Grant)>, KeeperError> {
        let remembers = |grant: &Grant| grant.fingerprint == fingerprint || grant.spent.contains(&fingerprint);
        if self.vault.is_shared() {
            return self.holder_in_vault(fingerprint).await;
        }
        for slot in self.index.by_fingerprint(fingerprint) {
            if slot.lock().is_removed() {
                continue;
            }
            let stored = self.vault.grant(slot.id).await.map_err(|error| self.vault_failed(&error))?;
            if let Some(grant) = stored.map(|stored| stored.value).filter(remembers) {
                return Ok(Some((slot, grant)));
            }
        }
        if let Some(id) = self.index.grave_of(fingerprint) {
            let stored = self.vault.grant(id).await.map_err(|error| self.vault_failed(&error))?;
            if stored.is_some_and(|stored| remembers(&stored.value)) {
                return Err(KeeperError::AlreadySpent);
            }
        }
        Ok(None)
    }

    /// As [`holder`](Self::holder), where another process may have stored it a moment ago.
    async fn holder_in_vault(&self, fingerprint: Fingerprint) -> Result<Option<(Arc<Slot>, Grant)>, KeeperError> {
        let before = self.index.before();
        let stored = self.vault.holder(fingerprint).await.map_err(|error| self.vault_failed(&error))?;
        let Some(stored) = stored else { return Ok(None) };
        if lifecycle::is_grave(&stored.value) {
            return Err(KeeperError::AlreadySpent);
        }
        let slot = self.take_in(&stored, &before).await?.ok_or(KeeperError::Starting)?;
        Ok(Some((slot, stored.value)))
    }

    /// Same secret, same grant (rule 13 of the design).
    async fn join(&self, slot: &Arc<Slot>, grant: &Grant, wanted: Wanted) -> Result<Enrolled, KeeperError> {
        let there = grant.organizations.contains(&wanted.organization);
        if slot.provider != wanted.provider {
            return Err(KeeperError::BadRequest("this secret is enrolled at another provider".into()));
        }
        if there {
            return self.relabel(wanted).await;
        }
        if grant.state == State::Lost {
            return Err(KeeperError::AlreadySpent);
        }
        if wanted.verify {
            // A grant without organizations is one whose enrolment was not finished: it has no timer.
            if slot.brief().access.is_none_or(|access| access.left(self.now()).is_zero()) {
                if let State::InDoubt(reason) = grant.state {
                    return Err(in_doubt(reason, grant));
                }
                self.exchange_and_wait(slot, None).await?;
            }
            self.check_reach(slot, &wanted.organization).await?;
        }
        self.attach(slot, wanted).await
    }

    /// The organization has this very grant: at most its labels change.
    async fn relabel(&self, wanted: Wanted) -> Result<Enrolled, KeeperError> {
        let (stored, expect) = self.organization_to_change(&wanted.organization).await?;
        let mut record = stored.ok_or(KeeperError::UnknownOrganization)?;
        let changed = wanted.labels.as_ref().is_some_and(|labels| *labels != record.labels);
        if changed {
            record.labels = wanted.labels.unwrap_or_default();
            let commit = self.vault.commit(vec![Change::PutOrganization(Box::new(record)), expect]).await;
            commit.map_err(|error| self.vault_failed(&error))?;
        }
        let organization = self.view(&wanted.organization).await?;
        Ok(Enrolled { created: false, changed, organization })
    }

    async fn enrol_new(&self, wanted: Wanted, enrolling: Enrolling) -> Result<Enrolled, KeeperError> {
        let lane = &self.lanes[usize::from(wanted.provider)];
        let now = self.now().wall;
        let grant = new_grant(
            self.vault.random_grant_id(),
            wanted.fingerprint,
            enrolling,
            &lane.config,
            now,
            self.vault.epoch(),
        );
        let grant = grant.map_err(|error| KeeperError::BadRequest(error.to_string().into()))?;
        if wanted.verify
            && let Some(reason) = lane.circuit.frozen_for(grant.client.is_some())
        {
            return Err(KeeperError::ProviderUnavailable { reason, retry_after: FROZEN_RETRY });
        }
        if !wanted.verify {
            return self.store_unproven(grant, wanted).await;
        }
        // Stored without an organization first: whatever happens from here on, no rotated token is lost, and
        // whoever enrols the same secret again joins this grant.
        let before = self.index.before();
        let commit = self.vault.commit(vec![Change::PutGrant(Box::new(grant.clone())), new_secret(&grant)]).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        let stored = Stored { value: grant, sequence };
        let slot = self.take_in(&stored, &before).await?.ok_or(KeeperError::Starting)?;
        let proven = match self.exchange_and_wait(&slot, None).await {
            Ok(()) => self.check_reach(&slot, &wanted.organization).await,
            Err(KeeperError::Lost { .. }) => Err(KeeperError::Refused("it answers invalid_grant".into())),
            Err(error) => Err(error),
        };
        if let Err(error) = proven {
            self.give_up(&slot, wanted.fingerprint).await;
            return Err(error);
        }
        self.attach(&slot, wanted).await
    }

    /// `"verify": false`: grant and organization in one commit; the queue exchanges it in its turn.
    async fn store_unproven(&self, mut grant: Grant, wanted: Wanted) -> Result<Enrolled, KeeperError> {
        let left = self.leave(&wanted.organization, None).await?;
        take_over(&mut grant, &wanted.organization, left.as_ref());
        let (record, expect) = self.organization_record(&wanted, grant.id).await?;
        let labels = record.labels.clone();
        let mut changes = vec![Change::PutGrant(Box::new(grant.clone())), Change::PutOrganization(Box::new(record))];
        changes.extend([expect, new_secret(&grant)]);
        changes.extend(left.iter().flat_map(Left::changes));
        let holds: Vec<&Hold> = left.iter().map(Left::hold).collect();
        let before = self.index.before();
        let commit = self.vault.commit_held(&holds, changes).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        let stored = Stored { value: grant, sequence };
        let Ok(Some(slot)) = self.take_in(&stored, &before).await else {
            // Another worker has exchanged it already, and that cannot be read now: it is when it is asked for.
            self.index.remove(&wanted.organization);
            if let Some(left) = left.filter(|left| left.grant.organizations.is_empty()) {
                self.forget(&left.slot, &left.grant, left.grave.as_ref());
            }
            return Err(KeeperError::Starting);
        };
        Ok(self.moved(&wanted.organization, labels, &slot, &stored.value, left, sequence))
    }

    /// Gives the organization this grant, in one commit with leaving the one that it had.
    async fn attach(&self, slot: &Arc<Slot>, wanted: Wanted) -> Result<Enrolled, KeeperError> {
        let mut left = self.leave(&wanted.organization, Some(slot)).await?;
        // `leave` has taken this slot's record too where there is an old grant, in the order of their ids.
        let own = match left.as_mut().and_then(|left| left.new_record.take()) {
            Some(held) => held,
            None => self.hold(slot).await?,
        };
        let mut grant = self.read(slot).await?.value;
        // Read before the commit: what fails after it would leave the slot behind the record.
        let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
        take_over(&mut grant, &wanted.organization, left.as_ref());
        // Two bytes tell the length of each.
        let bytes: usize = grant.organizations.iter().map(|id| id.as_str().len() + 2).sum();
        if bytes > MAX_ORGANIZATION_BYTES {
            let others = grant.organizations.len() - 1;
            let why = format!("this secret serves {others} organizations, and no more fit; get another consent");
            return Err(KeeperError::BadRequest(why.into()));
        }
        let (organization, expect) = self.organization_record(&wanted, grant.id).await?;
        let labels = organization.labels.clone();
        // Until now nobody used it, and nobody was told.
        let doubtful = matches!(grant.state, State::InDoubt(_)) && grant.organizations.len() == 1;
        let mut events = if doubtful { self.notice_events(&grant, Notice::InDoubt).await } else { Vec::new() };
        // A consent in the place of what the organization had, and proven: whichever way the person gave it.
        let unproven = matches!(grant.state, State::InDoubt(_) | State::Failing(FailingReason::Unverified));
        let renews = left.is_some() && grant.consent.is_some() && !unproven;
        if renews {
            events.push(self.renewed(&grant, &organization).await);
        }
        let mut changes =
            vec![Change::PutGrant(Box::new(grant.clone())), Change::PutOrganization(Box::new(organization)), expect];
        changes.extend(left.iter().flat_map(Left::changes));
        let holds: Vec<&Hold> = left.iter().map(Left::hold).chain([&own.hold]).collect();
        let commit = self.outbox.commit_held(&holds, changes, events).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        self.publish(slot, &grant, sequence, intent.as_ref(), &[]);
        drop(own);
        if doubtful {
            self.tell(&grant, Notice::InDoubt);
        }
        if renews {
            super::swap::tell_renewed(&grant, &wanted.organization);
        }
        Ok(self.moved(&wanted.organization, labels, slot, &grant, left, sequence))
    }

    /// After the commit: the index follows. `labels` and `grant` are as they were stored.
    fn moved(
        &self,
        organization: &OrganizationId,
        labels: Labels,
        slot: &Arc<Slot>,
        grant: &Grant,
        left: Option<Left>,
        sequence: u64,
    ) -> Enrolled {
        let created = left.is_none();
        self.note_organization(organization);
        let before = self.index.insert(organization.clone(), Arc::clone(slot), None);
        if let Some(left) = left {
            if left.grant.organizations.is_empty() {
                self.forget(&left.slot, &left.grant, left.grave.as_ref());
            } else {
                self.publish(&left.slot, &left.grant, sequence, left.intent.as_ref(), &[]);
            }
        }
        let last_fetched = before.and_then(|before| before.last_fetched());
        let organization = Self::view_by(organization, &slot.brief(), last_fetched, grant, labels);
        Enrolled { created, changed: true, organization }
    }

    /// Prepares that the organization leaves the grant it has, if it has one; `new` is the slot it goes to. Both
    /// records are taken in the order of their ids.
    pub(super) async fn leave(
        &self,
        organization: &OrganizationId,
        new: Option<&Arc<Slot>>,
    ) -> Result<Option<Left>, KeeperError> {
        loop {
            let Some(entry) = self.index.find(organization) else { return Ok(None) };
            let old = Arc::clone(&entry.slot);
            if new.is_some_and(|new| Arc::ptr_eq(new, &old)) {
                return Ok(None);
            }
            // A grant that goes with its last organization: its exchange ends first, so that no answer is orphaned.
            let flight = old.lock().flight().cloned();
            if let Some(flight) = flight.filter(|_| old.brief().organizations <= 1) {
                let _ = tokio::time::timeout(self.refresh.timeout, flight.ended()).await;
            }
            let (mut new_record, first) = match new {
                Some(new) if new.id < old.id => (Some(self.hold(new).await?), true),
                _ => (None, false),
            };
            let held = self.hold(&old).await?;
            if let (Some(new), false) = (new, first) {
                new_record = Some(self.hold(new).await?);
            }
            // While this waited, the organization may have been removed or moved by somebody else.
            if !self.index.find(organization).is_some_and(|entry| Arc::ptr_eq(&entry.slot, &old)) {
                continue;
            }
            let mut grant = self.read(&old).await?.value;
            let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
            grant.organizations.retain(|other| other != organization);
            let grave = if grant.organizations.is_empty() { self.grave(&grant, intent.is_some()) } else { None };
            return Ok(Some(Left { slot: old, grant, intent, grave, new_record, held }));
        }
    }

    /// Labels and the day of enrolment stay where the request says nothing of them.
    async fn organization_record(
        &self,
        wanted: &Wanted,
        grant: GrantId,
    ) -> Result<(Organization, Change), KeeperError> {
        let (stored, expect) = self.organization_to_change(&wanted.organization).await?;
        let (labels, added_at) = match stored {
            Some(stored) => (stored.labels, stored.added_at),
            None => (Labels::new(), self.now().wall),
        };
        let labels = wanted.labels.clone().unwrap_or(labels);
        Ok((Organization { id: wanted.organization.clone(), grant, labels, added_at }, expect))
    }

    /// Whether the grant's access token reaches the organization, where the provider can tell (a key under the
    /// wrong company serves the wrong books).
    async fn check_reach(&self, slot: &Arc<Slot>, organization: &OrganizationId) -> Result<(), KeeperError> {
        let lane = self.lane(slot);
        let access = {
            // Between another task's commit and its publication the record is newer than the slot knows.
            let _record = slot.record().await;
            self.read(slot).await?.value.access
        };
        let Some(access) = access else {
            return Err(KeeperError::ProviderUnavailable { reason: "unverified", retry_after: Duration::from_secs(1) });
        };
        match lane.endpoint.organizations(&access.token).await {
            Ok(None) => Ok(()),
            Ok(Some(ids)) if ids.iter().any(|id| id == organization.as_str()) => Ok(()),
            Ok(Some(ids)) => Err(KeeperError::WrongOrganization(reach_in_words(&ids))),
            Err(error @ ProviderError::Refused { .. }) => Err(KeeperError::Refused(error.to_string())),
            Err(error) => {
                tracing::warn!(provider = lane.name.as_str(), error = %error, "cannot tell which organizations a credential reaches");
                Err(KeeperError::ProviderUnavailable {
                    reason: "provider_unavailable",
                    retry_after: Duration::from_secs(5),
                })
            }
        }
    }

    /// An enrolment that failed leaves nothing behind, unless the token that came in is spent or may be (an open
    /// intent tells that its exchange died): then its grant is kept without an organization, and whoever enrols the
    /// same token again joins it.
    async fn give_up(&self, slot: &Arc<Slot>, enrolled: Fingerprint) {
        let Ok(held) = self.hold(slot).await else { return };
        let Ok(stored) = self.read(slot).await else { return };
        let grant = stored.value;
        let open = self.vault.intent(grant.id).await.map_or(true, |intent| intent.is_some());
        let spent = open || grant.fingerprint != enrolled || matches!(grant.state, State::InDoubt(_));
        if spent || !grant.organizations.is_empty() || slot.lock().flight().is_some() {
            tracing::warn!(
                provider = grant.provider.as_str(),
                "an enrolment failed after its one-time token was sent; the grant is kept, enrol the same token again to join it"
            );
            return;
        }
        let changes = vec![Change::DeleteGrant(grant.id), Change::DeleteIntent(grant.id)];
        if self.vault.commit_held(&[&held.hold], changes).await.is_ok() {
            self.forget(slot, &grant, None);
        }
    }
}

/// That no other grant has the secret of this new one: another process may enrol it at the same time.
fn new_secret(grant: &Grant) -> Change {
    Change::Expect(Expectation::NewSecret(grant.fingerprint))
}

/// Which lock keeps changes of the organization apart.
fn place_of(organization: &OrganizationId) -> usize {
    let half = LOCKS / 2;
    half + usize::try_from(super::slot::text_hash(organization.as_str()) % 256).unwrap_or(0) % half
}

/// Gives the grant the organization. An operator's pause of the grant that it had goes with it, unless the new one
/// serves others already: nobody said that it is over.
fn take_over(grant: &mut Grant, organization: &OrganizationId, left: Option<&Left>) {
    grant.paused |= grant.organizations.is_empty() && left.is_some_and(|left| left.grant.paused);
    grant.organizations.push(organization.clone());
}

/// A grant that an organization leaves; its record is held until that is published.
pub(super) struct Left {
    pub(super) slot: Arc<Slot>,
    /// The grant without that organization.
    pub(super) grant: Grant,
    /// The grant's open intent.
    pub(super) intent: Option<Intent>,
    /// What is remembered of the grant if it goes.
    pub(super) grave: Option<Grant>,
    new_record: Option<Held>,
    held: Held,
}

impl Left {
    /// A grant without the organizations that leave it, whose record is held.
    pub(super) const fn new(
        slot: Arc<Slot>,
        grant: Grant,
        intent: Option<Intent>,
        grave: Option<Grant>,
        held: Held,
    ) -> Self {
        Self { slot, grant, intent, grave, new_record: None, held }
    }

    /// Under which it is changed.
    pub(super) const fn hold(&self) -> &Hold {
        &self.held.hold
    }

    /// The grant goes with its last organization, and a doubt about it with the grant.
    pub(super) fn changes(&self) -> Vec<Change> {
        if self.grant.organizations.is_empty() {
            gone(self.grant.id, self.grave.as_ref())
        } else {
            vec![Change::PutGrant(Box::new(self.grant.clone()))]
        }
    }
}

/// A grant goes, with its intent, and leaves its grave if it has one.
pub(super) fn gone(grant: GrantId, grave: Option<&Grant>) -> Vec<Change> {
    let mut changes = vec![Change::DeleteGrant(grant), Change::DeleteIntent(grant)];
    changes.extend(grave.map(|grave| Change::PutGrant(Box::new(grave.clone()))));
    changes
}

pub(super) fn reach_in_words(ids: &[String]) -> String {
    match ids {
        [] => "none".into(),
        [one] => one.chars().take(64).collect(),
        many => format!("{} others", many.len()),
    }
}
