//! A consent takes its place: what it reaches is compared, and it is swapped for the old one in one commit (rule 14 of
//! the design).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    ConsentError, Consented, KeeperError, Shared,
    enrol::{Left, MAX_ORGANIZATION_BYTES, reach_in_words},
    hold::Held,
    resolve::under_way,
    slot::Slot,
};
use crate::{
    lifecycle::{Judgement, PlaceStanding, Reach, judge},
    model::{
        AwaitReason, Awaiting, Credential, Event, EventKind, Grant, GrantId, Intent, Organization, OrganizationId,
        Place, Secret, State,
    },
    provider::ProviderError,
    task,
    vault::{Change, Hold},
};

/// How often a provider is asked what a consent reaches while its person waits, and how long after each other.
const REACH_TRIES: usize = 3;
const REACH_PAUSE: Duration = Duration::from_secs(1);
/// How often an exchange of the old consent that began in the last moment is waited for.
const FLIGHT_TRIES: usize = 3;

/// What a consent may do for each organization that it may be for.
#[derive(Default)]
struct Sorted {
    connect: Vec<OrganizationId>,
    confirm: Vec<(Place, AwaitReason)>,
    beyond: Vec<OrganizationId>,
}

/// A list of what a consent reaches, or that there is none.
enum Told {
    List(Vec<String>),
    Nothing,
}

impl Shared {
    /// Consents that have not taken their place.
    pub(super) fn awaiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<GrantId, Awaiting>> {
        self.awaiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Compares what the consent reaches with what it is for, and swaps it in where it may serve. With `confirmed`, an
    /// operator has said that it is for that organization, and nothing else is looked at. Its organizations' locks are
    /// held. Doing it again after a death in between does the rest.
    pub(super) async fn settle(
        &self,
        id: GrantId,
        confirmed: Option<&OrganizationId>,
    ) -> Result<Consented, ConsentError> {
        let Some(awaiting) = self.awaiting().get(&id).cloned() else { return Err(ConsentError::Used) };
        let Some(slot) = self.slot_of(id).await? else { return Err(ConsentError::Used) };
        let ids: Vec<&OrganizationId> = awaiting.places.iter().map(|place| &place.organization).collect();
        let _here = self.present_all(&ids).await?;
        let renewed = is_renewal(&awaiting);
        let sorted = match confirmed {
            Some(organization) => confirmed_alone(&awaiting, organization),
            None => match self.sort(&slot, &awaiting).await {
                Ok(sorted) => sorted,
                Err(Unsettled::Later) => {
                    return Ok(self.left_for_later(id, "the provider cannot be asked what it reaches"));
                }
                Err(Unsettled::Never(error)) => {
                    // Where that fails it is tried again, and comes to the same.
                    let _ = self.withdraw(&slot, &awaiting).await;
                    return Err(error);
                }
                Err(Unsettled::Failed(error)) => return Err(error.into()),
            },
        };
        let swapped = self.swap(&slot, &awaiting, &sorted).await;
        if let Err(KeeperError::BadRequest(_)) = &swapped {
            let _ = self.withdraw(&slot, &awaiting).await;
        }
        let (grant, rest) = swapped?;
        Ok(Consented {
            connected: sorted.connect,
            renewed,
            awaiting: rest.map(|rest| organizations_of(&rest)).unwrap_or_default(),
            beyond: sorted.beyond,
            expires_at: grant.consent.and_then(|consent| consent.expires_at),
        })
    }

    /// The consent is stored, and takes its place when what keeps it from that is over.
    pub(super) fn left_for_later(&self, id: GrantId, why: &str) -> Consented {
        let awaiting = self.awaiting().get(&id).cloned();
        let slot = self.index.slot(id);
        tracing::warn!(
            event = "consent.awaiting",
            organization = awaiting.as_ref().map(first_of),
            provider = slot.as_ref().map(|slot| self.lane(slot).name.as_str()),
            why,
            "a consent is stored and has not taken its place yet; that is tried again"
        );
        Consented {
            connected: Vec::new(),
            renewed: awaiting.as_ref().is_some_and(is_renewal),
            awaiting: awaiting.as_ref().map(organizations_of).unwrap_or_default(),
            beyond: Vec::new(),
            expires_at: slot.and_then(|slot| slot.brief().consent_ends),
        }
    }

    /// Which of the organizations the consent may serve.
    async fn sort(&self, slot: &Arc<Slot>, awaiting: &Awaiting) -> Result<Sorted, Unsettled> {
        let told = self.reach(slot).await?;
        let subject = self.read_settled(slot).await?.subject;
        let mut sorted = Sorted::default();
        for place in &awaiting.places {
            let current = self.index.find(&place.organization).map(|entry| Arc::clone(&entry.slot));
            if current.as_ref().map(|current| current.id) != place.replaces {
                // It has got another consent meanwhile, which is newer.
                sorted.beyond.push(place.organization.clone());
                continue;
            }
            let before = match current.filter(|current| current.provider == slot.provider) {
                Some(current) => Some(self.read_settled(&current).await?),
                None => None,
            };
            let standing = before
                .as_ref()
                .map_or(PlaceStanding::New, |before| PlaceStanding::Connected { subject: before.subject.as_deref() });
            let reach = match &told {
                Told::List(ids) => Reach::Listed(ids),
                Told::Nothing => Reach::Untold,
            };
            match judge(&place.organization, reach, subject.as_deref(), standing) {
                Judgement::Connect => sorted.connect.push(place.organization.clone()),
                Judgement::Confirm(reason) => sorted.confirm.push((place.clone(), reason)),
                Judgement::Beyond => sorted.beyond.push(place.organization.clone()),
            }
        }
        self.judge_invited(slot, awaiting, &told, sorted)
    }

    /// A consent that is not for whom it was asked does nothing for the others of its link either: somebody else approved
    /// than was meant.
    fn judge_invited(
        &self,
        slot: &Slot,
        awaiting: &Awaiting,
        told: &Told,
        sorted: Sorted,
    ) -> Result<Sorted, Unsettled> {
        let Some(invited) = awaiting.places.first() else { return Err(Unsettled::Never(ConsentError::Used)) };
        if !sorted.beyond.contains(&invited.organization) {
            return Ok(sorted);
        }
        let listed = match told {
            Told::List(ids) if !ids.iter().any(|id| id == invited.organization.as_str()) => ids,
            _ => return Err(Unsettled::Never(ConsentError::Used)),
        };
        let (organization, reach) = (invited.organization.clone(), reach_in_words(listed));
        tracing::warn!(
            event = "consent.wrong_organization",
            organization = organization.as_str(),
            provider = self.lane(slot).name.as_str(),
            reaches = reach,
            "somebody gave a consent that does not reach the organization of the link; nothing was changed"
        );
        Err(Unsettled::Never(ConsentError::WrongOrganization { organization, reach }))
    }

    /// What the consent reaches, as the provider tells.
    async fn reach(&self, slot: &Arc<Slot>) -> Result<Told, Unsettled> {
        let access_token = self.living_token(slot).await?;
        let lane = self.lane(slot);
        for tried in 1..=REACH_TRIES {
            if self.stopping.is_cancelled() {
                return Err(Unsettled::Later);
            }
            match lane.endpoint.organizations(&access_token).await {
                Ok(Some(ids)) => return Ok(Told::List(ids)),
                Ok(None) => return Ok(Told::Nothing),
                Err(ProviderError::Unavailable { detail, .. }) => {
                    tracing::warn!(
                        provider = lane.name.as_str(),
                        detail,
                        "cannot tell which organizations a consent reaches"
                    );
                    if tried < REACH_TRIES {
                        tokio::time::sleep(REACH_PAUSE).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(provider = lane.name.as_str(), error = %error, "the provider does not tell which organizations a consent reaches");
                    return Ok(Told::Nothing);
                }
            }
        }
        Err(Unsettled::Later)
    }

    /// The consent's access token; exchanged first where it has lapsed while the consent waited. One that died meanwhile, or
    /// whose token is in doubt, will take no place: what serves now must not be replaced by what may be dead, and the
    /// link is good again.
    pub(super) async fn living_token(&self, slot: &Arc<Slot>) -> Result<Secret, Unsettled> {
        let lost = || Unsettled::Never(ConsentError::Refused("it has ended since it was given".to_owned()));
        let in_doubt = || {
            let why = "whether the consent still works cannot be known; it has to be given once more";
            Unsettled::Never(ConsentError::Unavailable(why.to_owned()))
        };
        if slot.brief().access.is_none_or(|access| access.left(self.now()).is_zero()) {
            match self.exchange_and_wait(slot, None).await {
                Ok(()) => {}
                Err(KeeperError::Lost { .. }) => return Err(lost()),
                Err(KeeperError::InDoubt { .. }) => return Err(in_doubt()),
                Err(error) => return Err(Unsettled::Failed(error)),
            }
        }
        let grant = self.read_settled(slot).await?;
        match grant.state {
            State::InDoubt(_) => Err(in_doubt()),
            State::Lost => Err(lost()),
            _ => grant.access.map(|access| access.token).ok_or(Unsettled::Later),
        }
    }

    /// The stored grant. Between another task's commit and its publication the record is newer than the slot knows, so its
    /// lock is taken.
    async fn read_settled(&self, slot: &Arc<Slot>) -> Result<Grant, Unsettled> {
        let _record = slot.record().await;
        self.read(slot).await.map(|stored| stored.value).map_err(Unsettled::Failed)
    }

    /// The one commit: every organization that may be served moves to the consent, the grants that they had go with their
    /// last one, and what still waits stays noted. Gives the consent's grant, and that note if there is one left.
    async fn swap(
        &self,
        slot: &Arc<Slot>,
        awaiting: &Awaiting,
        sorted: &Sorted,
    ) -> Result<(Grant, Option<Awaiting>), KeeperError> {
        let connect = &sorted.connect[..];
        let mut held = self.take_records(slot, connect).await?;
        let own = held.remove(&slot.id);
        let mut grant = self.read(slot).await?.value;
        let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
        let mut lefts = Vec::new();
        for (_, (old, held)) in held {
            lefts.push(self.left_by(connect, old, held).await?);
        }
        take_over(&mut grant, connect, &lefts);
        check_room(&grant)?;
        let (records, expected) = self.records_of(connect, grant.id).await?;
        let rest = rest_of(awaiting, sorted);
        let mut changes = vec![Change::PutGrant(Box::new(grant.clone()))];
        changes.extend(records.iter().map(|record| Change::PutOrganization(Box::new(record.clone()))));
        changes.extend(expected);
        changes.extend(lefts.iter().flat_map(Left::changes));
        changes.push(match &rest {
            Some(rest) => Change::PutAwaiting(Box::new(rest.clone())),
            None => Change::DeleteAwaiting(grant.id),
        });
        let mut events = Vec::with_capacity(records.len());
        for record in &records {
            events.push(self.renewed(&grant, record).await);
        }
        let holds: Vec<&Hold> = lefts.iter().map(Left::hold).chain(own.as_ref().map(|(_, held)| &held.hold)).collect();
        let commit = self.outbox.commit_held(&holds, changes, events).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        self.swapped(slot, &grant, sequence, intent.as_ref(), connect, lefts);
        match &rest {
            Some(rest) => self.awaiting().insert(grant.id, rest.clone()),
            None => self.awaiting().remove(&grant.id),
        };
        drop(own);
        tell_swapped(&grant, connect, rest.as_ref());
        Ok((grant, rest))
    }

    /// Takes the records of the consent's slot and of all that the organizations leave, in the order of their ids, at a
    /// moment when no grant that goes has an exchange under way: its answer would have nowhere to go.
    async fn take_records(&self, slot: &Arc<Slot>, connect: &[OrganizationId]) -> Result<Records, KeeperError> {
        // The organizations' locks are held, so that none of them moves meanwhile.
        let mut all = BTreeMap::from([(slot.id, Arc::clone(slot))]);
        let mut leaving: BTreeMap<GrantId, u32> = BTreeMap::new();
        for entry in connect.iter().filter_map(|organization| self.index.find(organization)) {
            all.insert(entry.slot.id, Arc::clone(&entry.slot));
            *leaving.entry(entry.slot.id).or_default() += 1;
        }
        let goes =
            |old: &Slot| old.id != slot.id && leaving.get(&old.id).is_some_and(|n| old.brief().organizations <= *n);
        let mut tried = 0;
        loop {
            tried += 1;
            let flights: Vec<_> = all.values().filter(|old| goes(old)).filter_map(|old| under_way(old)).collect();
            for flight in flights {
                let _ = tokio::time::timeout(self.exchange_limit(), flight.ended()).await;
            }
            let mut held = BTreeMap::new();
            for (id, one) in &all {
                held.insert(*id, (Arc::clone(one), self.hold(one).await?));
            }
            let began = all.values().any(|old| goes(old) && under_way(old).is_some());
            if !began || tried >= FLIGHT_TRIES {
                return Ok(held);
            }
        }
    }

    /// What stays of a grant that some organizations leave.
    async fn left_by(&self, connect: &[OrganizationId], old: Arc<Slot>, held: Held) -> Result<Left, KeeperError> {
        let mut grant = self.read(&old).await?.value;
        let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
        grant.organizations.retain(|organization| !connect.contains(organization));
        let grave = if grant.organizations.is_empty() { self.grave(&grant, intent.is_some()) } else { None };
        Ok(Left::new(old, grant, intent, grave, held))
    }

    /// The records of the organizations that move; labels and the day of enrolment stay.
    async fn records_of(
        &self,
        connect: &[OrganizationId],
        grant: GrantId,
    ) -> Result<(Vec<Organization>, Vec<Change>), KeeperError> {
        let now = self.now().wall;
        let mut expected = Vec::with_capacity(connect.len());
        let mut records = Vec::with_capacity(connect.len());
        for id in connect {
            let (stored, expect) = self.organization_to_change(id).await?;
            expected.push(expect);
            records.push(match stored {
                Some(stored) => Organization { grant, ..stored },
                None => Organization { id: id.clone(), grant, labels: crate::model::Labels::new(), added_at: now },
            });
        }
        Ok((records, expected))
    }

    /// After the commit: first the new consent is ready to serve, then it is found, and only then the old one goes.
    fn swapped(
        &self,
        slot: &Arc<Slot>,
        grant: &Grant,
        sequence: u64,
        intent: Option<&Intent>,
        connect: &[OrganizationId],
        lefts: Vec<Left>,
    ) {
        self.publish(slot, grant, sequence, intent, &[]);
        if let Some(at) = grant.last_fetched_at {
            slot.fetched(at);
        }
        for organization in connect {
            self.note_organization(organization);
            self.index.insert(organization.clone(), Arc::clone(slot), None);
        }
        for left in lefts {
            if left.grant.organizations.is_empty() {
                self.revoke_behind(&left.slot, &left.grant);
                self.forget(&left.slot, &left.grant, left.grave.as_ref());
            } else {
                self.publish(&left.slot, &left.grant, sequence, left.intent.as_ref(), &[]);
            }
        }
    }

    /// What is told of an organization that a new consent serves; its labels as they will be stored.
    pub(super) async fn renewed(&self, grant: &Grant, organization: &Organization) -> Event {
        let granted_at = grant.consent.as_ref().map(|consent| consent.granted_at).unwrap_or_default();
        let moment = granted_at.as_millis().to_le_bytes();
        let event = self.event(EventKind::ConsentRenewed, grant, &organization.id, &moment).await;
        Event { labels: organization.labels.clone(), ..event }
    }

    /// Revokes a consent that is not used any more, where the configuration says so and nothing else can be harmed. Called
    /// while it is still counted as living; the call itself goes on behind.
    pub(super) fn revoke_behind(&self, slot: &Arc<Slot>, grant: &Grant) {
        let is_consent = matches!(grant.credential, Credential::RefreshToken(_)) && grant.state != State::Lost;
        if !self.revoke_old || !is_consent {
            return;
        }
        let provider = grant.provider.clone();
        let is_shared = self.is_someones_else(slot, grant);
        let endpoint = Arc::clone(&self.lane(slot).endpoint);
        let (secret, client) = (grant.credential.secret().clone(), grant.client.clone());
        task::spawn_on(&self.tasks, async move {
            if is_shared.await {
                tracing::info!(
                    provider = provider.as_str(),
                    "an old consent is forgotten and not revoked: another grant is, or may be, of the same person"
                );
                return;
            }
            match endpoint.revoke(&secret, client.as_ref()).await {
                Ok(()) => tracing::info!(provider = provider.as_str(), "an old consent is revoked"),
                Err(error) => {
                    tracing::warn!(provider = provider.as_str(), error = %error, "an old consent could not be revoked; it is forgotten");
                }
            }
        });
    }
}

/// The log's lines of a swap.
fn tell_swapped(grant: &Grant, connect: &[OrganizationId], rest: Option<&Awaiting>) {
    let provider = grant.provider.as_str();
    for organization in connect {
        tell_renewed(grant, organization);
    }
    if let Some(rest) = rest {
        for place in &rest.places {
            tracing::warn!(
                event = "consent.awaiting",
                organization = place.organization.as_str(),
                provider,
                reason = rest.reason.word(),
                "a consent waits for an operator: `consentry connect ORG --confirm`"
            );
        }
    }
}

/// The log's line of a consent that serves an organization from now on.
pub(super) fn tell_renewed(grant: &Grant, organization: &OrganizationId) {
    tracing::info!(
        event = "consent.renewed",
        organization = organization.as_str(),
        provider = grant.provider.as_str(),
        state = grant.state.word(),
        "a person gave consent, and it serves from now on"
    );
}

/// Records that are held, with their slots, in the order of their grants' ids.
type Records = BTreeMap<GrantId, (Arc<Slot>, Held)>;

/// Why a consent did not take its place.
pub(super) enum Unsettled {
    /// The provider could not be asked; it is tried again.
    Later,
    /// It never will.
    Never(ConsentError),
    /// The vault failed, or an exchange did.
    Failed(KeeperError),
}

/// An operator has said that the consent is for that organization.
fn confirmed_alone(awaiting: &Awaiting, organization: &OrganizationId) -> Sorted {
    let others = awaiting.places.iter().filter(|place| place.organization != *organization);
    Sorted {
        connect: vec![organization.clone()],
        confirm: others.map(|place| (place.clone(), awaiting.reason)).collect(),
        beyond: Vec::new(),
    }
}

/// What still waits after the swap.
fn rest_of(awaiting: &Awaiting, sorted: &Sorted) -> Option<Awaiting> {
    let reason = sorted.confirm.first()?.1;
    let places = sorted.confirm.iter().map(|(place, _)| place.clone()).collect();
    Some(Awaiting { places, reason, ..awaiting.clone() })
}

/// Gives the grant these organizations. An operator's pause of a grant that one of them had goes with it, unless the new
/// one serves others already: nobody said that it is over.
fn take_over(grant: &mut Grant, connect: &[OrganizationId], lefts: &[Left]) {
    grant.paused |= grant.organizations.is_empty() && lefts.iter().any(|left| left.grant.paused);
    grant.last_fetched_at = lefts.iter().filter_map(|left| left.slot.last_fetched()).chain(grant.last_fetched_at).max();
    for organization in connect {
        if !grant.organizations.contains(organization) {
            grant.organizations.push(organization.clone());
        }
    }
}

fn check_room(grant: &Grant) -> Result<(), KeeperError> {
    let bytes: usize = grant.organizations.iter().map(|id| id.as_str().len() + 2).sum();
    if bytes > MAX_ORGANIZATION_BYTES {
        return Err(KeeperError::BadRequest("this consent serves as many organizations as fit; get another".into()));
    }
    Ok(())
}

fn is_renewal(awaiting: &Awaiting) -> bool {
    awaiting.places.first().is_some_and(|place| place.replaces.is_some())
}

fn organizations_of(awaiting: &Awaiting) -> Vec<OrganizationId> {
    awaiting.places.iter().map(|place| place.organization.clone()).collect()
}

pub(super) fn first_of(awaiting: &Awaiting) -> &str {
    awaiting.places.first().map_or("", |place| place.organization.as_str())
}
