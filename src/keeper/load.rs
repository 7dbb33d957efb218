//! From the vault into memory: everything in the background, and at once the organization that is asked for.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use super::{
    KeeperError, Shared,
    blocking::{reading, reading_in_parts},
    index::{Before, Entry, NotAdded},
    slot::{Slot, living_subject, text_hash},
};
use crate::{
    lifecycle::{self, Notice},
    model::{Grant, GrantId, Intent, OrganizationId, State},
    vault::{Change, Part, Stored, VaultError},
};

/// How many grants in doubt are told of one by one when the vault was loaded; the rest is counted.
const MOST_REMINDERS: usize = 1000;

/// The epoch of a vault that never went back in time.
pub(super) const FIRST_EPOCH: u32 = 1;

/// How many grants that have to be looked at first share a commit: so many that after a restore a million of them are
/// written in a minute, and so few that whoever asks for one meanwhile waits for milliseconds.
const DOUBTFUL_AT_ONCE: usize = 256;

/// Reads every grant and organization; readiness and whatever needs the whole follow. What cannot be read keeps nothing
/// else from being loaded, but keeps the worker from being ready.
pub(super) async fn load(shared: Arc<Shared>) {
    let read = if shared.is_bounded() {
        shared.begin_bounded().await
    } else {
        let _undisturbed = shared.vault.undisturbed();
        shared.read_everything().await
    };
    // What cannot be read may be the fault of a vault that is about to be found damaged: then the worker ends with that.
    if !shared.is_known_whole().await {
        return;
    }
    let organizations = match read {
        Ok(organizations) => organizations,
        Err(why) => return shared.load_failed(&why),
    };
    if !shared.stopping.is_cancelled() {
        shared.loaded.store(true, Ordering::Release);
        shared.hear_early();
        if !shared.is_bounded() {
            tracing::info!(organizations, grants = shared.index.slot_count(), "the vault is loaded");
        }
        shared.tell_strays().await;
        shared.tell_doubts().await;
        shared.reconsider_doubts().await;
        let Some(on_duty) = shared.sweeping.begin().await else { return };
        shared.warn(&on_duty).await;
        if on_duty.is_good() {
            shared.settle_unfinished().await;
        }
    }
}

/// Why a grant has no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// Its provider is not configured.
    Unconfigured,
    /// What was read of it may be old: it is to be read anew.
    Outdated,
}

/// Which grants have an exchange under way.
struct Intents {
    grants: HashSet<GrantId>,
    /// Why these may not be all.
    failure: Option<String>,
}

/// A grant with what start found out about it.
struct Judged {
    grant: Grant,
    /// The commit that it was read from.
    sequence: u64,
    intent: Option<Intent>,
    /// What is to be told of that, where the grant is changed by it and has to be written.
    notice: Option<Notice>,
}

impl Shared {
    fn load_failed(&self, why: &str) {
        self.metrics.vault_failed();
        tracing::error!(
            error = why,
            "the vault could not be read whole; the worker serves what it can read and is not ready. `consentry restore` brings a backup back"
        );
        let _ = self.load_failure.set(why.to_owned());
    }

    /// At start an operator is reminded of the grants in doubt: a process may die after it stored a doubt and before it
    /// told anybody.
    async fn tell_doubts(&self) {
        if let Some(bounded) = &self.bounded {
            return self.tell_doubts_counted(bounded).await;
        }
        let mut doubts = 0_usize;
        for slot in self.index.slots() {
            if !matches!(slot.brief().state, State::InDoubt(_)) {
                continue;
            }
            doubts += 1;
            if doubts <= MOST_REMINDERS
                && let Ok(stored) = self.read(&slot).await
            {
                self.tell(&stored.value, Notice::InDoubt);
            }
        }
        if doubts > 0 {
            tracing::warn!(doubts, "grants are in doubt; `consentry org list --state in_doubt` names them");
        }
    }

    /// At start an operator is reminded of every answer that could not take its place.
    async fn tell_strays(&self) {
        let strays = self.vault.stats().strays;
        if strays == 0 {
            return;
        }
        for stray in self.strays(None).await {
            let organization = stray.organization.as_ref().map(OrganizationId::as_str);
            tracing::warn!(event = "grant.stray", organization, at = %stray.at, reason = stray.why, "a stray is kept");
        }
        tracing::warn!(strays, "answers are kept that could not take their place; they are not served");
    }

    /// Waits until the vault is known to hold what it should; false if it does not, or if the keeper stops before.
    async fn is_known_whole(&self) -> bool {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => false,
            judged = self.vault.judged() => judged.is_ok(),
        }
    }

    /// Gives the number of organizations, or the first thing that could not be read when all else had been.
    async fn read_everything(self: &Arc<Self>) -> Result<usize, String> {
        let died = |_| "the loader died".to_owned();
        let reader = Arc::clone(self);
        let intents = reading(async move || reader.read_intents().await).await.map_err(died)?;
        let (reader, mut failure) = (Arc::clone(self), intents.failure.clone());
        let intents = Arc::new(intents);
        let load_grants = move |part| {
            let (reader, intents) = (Arc::clone(&reader), Arc::clone(&intents));
            async move { reader.load_grants(part, &intents).await }
        };
        let grants = reading_in_parts(load_grants).await;
        for (doubtful, read) in grants.map_err(died)? {
            failure = failure.or(read.err().map(|error| error.to_string()));
            // What start finds out is written: not before it is known what it was found in.
            if !doubtful.is_empty() && !self.is_known_whole().await {
                return Ok(0);
            }
            for ids in doubtful.chunks(DOUBTFUL_AT_ONCE) {
                if self.stopping.is_cancelled() {
                    return Ok(0);
                }
                if let Err(error) = self.make_slots(ids).await {
                    failure = failure.or(Some(error.to_string()));
                }
            }
        }
        // Organizations come last: each finds its grant's slot made.
        let (reader, mut organizations) = (Arc::clone(self), 0);
        let load_organizations = move |part| {
            let reader = Arc::clone(&reader);
            async move { reader.load_organizations(part).await }
        };
        let read = reading_in_parts(load_organizations).await;
        for read in read.map_err(died)? {
            match read {
                Ok(count) => organizations += count,
                Err(error) => return Err(failure.unwrap_or_else(|| error.to_string())),
            }
        }
        if let Err(error) = self.list_the_unlisted().await {
            failure = failure.or(Some(error.to_string()));
        }
        if let Err(error) = self.load_awaiting().await {
            failure = failure.or(Some(error.to_string()));
        }
        failure.map_or(Ok(organizations), Err)
    }

    async fn read_intents(&self) -> Intents {
        let mut grants = HashSet::new();
        let read = self
            .vault
            .for_each_intent(&mut |stored| {
                grants.insert(stored.value.grant);
                Ok(())
            })
            .await;
        Intents { grants, failure: read.err().map(|error| error.to_string()) }
    }

    /// Makes a slot of every grant of a part that is as it should be, and gives back those that must be looked at first.
    async fn load_grants(&self, part: Part, intents: &Intents) -> (Vec<GrantId>, Result<(), VaultError>) {
        let mut doubtful = Vec::new();
        let read = self
            .vault
            .for_each_grant_of(part, &mut |stored| {
                let grant = &stored.value;
                if self.stopping.is_cancelled() || !self.lane_of.contains_key(&grant.provider) {
                    return Ok(());
                }
                if lifecycle::is_grave(grant) {
                    self.index.bury(grant);
                    return Ok(());
                }
                // An intent that cannot be read is somebody's, too: then each one-time grant is asked for its own.
                let perhaps = intents.failure.is_some() && grant.is_one_time();
                let outdated = grant.epoch < self.vault.epoch() && grant.is_one_time();
                if perhaps || intents.grants.contains(&grant.id) || outdated {
                    doubtful.push(grant.id);
                } else {
                    let _ = self.add(grant, stored.sequence, None);
                }
                Ok(())
            })
            .await;
        (doubtful, read)
    }

    async fn load_organizations(&self, part: Part) -> Result<usize, VaultError> {
        let mut count = 0;
        self.vault
            .for_each_organization_of(part, &mut |stored| {
                if self.stopping.is_cancelled() {
                    return Ok(());
                }
                let organization = stored.value;
                if let Some(slot) = self.index.slot(organization.grant) {
                    count += 1;
                    let last_fetched = slot.last_fetched();
                    self.index.insert_new(organization.id, slot, last_fetched);
                } else {
                    tracing::error!(
                        organization = organization.id.as_str(),
                        "its grant is of a provider that is not configured, or is missing; it is not served"
                    );
                }
                Ok(())
            })
            .await?;
        Ok(count)
    }

    /// After a vault went back in time an organization's record and its grant's may be of different times. One that its
    /// grant does not list is written back into the list, or else the grant would go with the last one that it does list.
    async fn list_the_unlisted(&self) -> Result<(), KeeperError> {
        if self.vault.epoch() <= FIRST_EPOCH {
            return Ok(());
        }
        let mut listed = HashSet::new();
        let read = self
            .vault
            .for_each_grant(&mut |stored| {
                let grant = stored.value;
                listed.extend(grant.organizations.iter().map(|id| (grant.id, text_hash(id.as_str()))));
                Ok(())
            })
            .await;
        read.map_err(|error| self.vault_failed(&error))?;
        let mut unlisted = Vec::new();
        self.index.for_each(&mut |entry| {
            if !listed.contains(&(entry.slot.id, text_hash(entry.id.as_str()))) {
                unlisted.push(Arc::clone(entry));
            }
        });
        for entry in unlisted {
            self.list_again(&entry).await?;
        }
        Ok(())
    }

    /// Writes an organization back into its grant's list, unless it is there.
    pub(super) async fn list_again(&self, entry: &Entry) -> Result<(), KeeperError> {
        let slot = &entry.slot;
        let held = self.hold(slot).await?;
        let mut grant = self.read(slot).await?.value;
        if grant.organizations.contains(&entry.id) {
            return Ok(());
        }
        let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
        grant.organizations.push(entry.id.clone());
        let changes = vec![Change::PutGrant(Box::new(grant.clone()))];
        let commit = self.vault.commit_held(&[&held.hold], changes).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        self.publish(slot, &grant, sequence, intent.as_ref(), &[]);
        tracing::warn!(organization = entry.id.as_str(), "its grant did not list it any more, and does again");
        Ok(())
    }

    /// The one organization that is asked for while the rest is still being loaded.
    pub(super) async fn load_one(&self, organization: &OrganizationId) -> Result<Arc<Entry>, KeeperError> {
        if let Some(bounded) = &self.bounded {
            return Box::pin(self.bring_in(bounded, organization)).await;
        }
        // Making a slot may write its grant: not any more once this keeper is drained and another may be at work.
        let _token = self.tasks.token();
        if self.stopping.is_cancelled() {
            return Err(KeeperError::Starting);
        }
        let failed = |error: VaultError| self.vault_failed(&error);
        let stored = self.vault.organization(organization).await.map_err(failed)?;
        let found = stored.ok_or(KeeperError::UnknownOrganization)?.value;
        let slot =
            if let Some(slot) = self.index.slot(found.grant) { slot } else { self.make_slot(found.grant).await? };
        let last_fetched = slot.last_fetched();
        self.index.insert_new(found.id, slot, last_fetched);
        self.index.find(organization).ok_or(KeeperError::Starting)
    }

    /// Makes the slot of a grant, after what start found out about it is durable: a crash in the middle of an
    /// exchange, or a vault that went back in time.
    async fn make_slot(&self, id: GrantId) -> Result<Arc<Slot>, KeeperError> {
        self.make_slots(&[id]).await?;
        self.index.slot(id).ok_or(KeeperError::Starting)
    }

    /// As [`make_slot`](Self::make_slot), for several in as few commits as they fit in. One that cannot be made keeps none
    /// of the others from it.
    async fn make_slots(&self, ids: &[GrantId]) -> Result<(), KeeperError> {
        let _making = self.making.lock().await;
        let (mut judged, mut failure) = (Vec::with_capacity(ids.len()), None);
        for id in ids.iter().filter(|id| self.index.slot(**id).is_none()) {
            match self.judge(*id).await {
                Ok(one) => judged.push(one),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let (outdated, as_stored): (Vec<_>, Vec<_>) = judged.into_iter().partition(|one| one.notice.is_some());
        for Judged { grant, sequence, intent, .. } in as_stored {
            let _ = self.add(&grant, sequence, intent.as_ref());
        }
        if !outdated.is_empty() && !self.vault.is_judged() {
            return Err(KeeperError::Starting);
        }
        // A commit holds only so much: what does not fit is halved until it does.
        let mut parts = vec![outdated];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let changes = part.iter().map(|one| Change::PutGrant(Box::new(one.grant.clone()))).collect();
            let mut events = Vec::new();
            for one in &part {
                if let Some(notice) = one.notice {
                    events.extend(self.notice_events(&one.grant, notice).await);
                }
            }
            match self.outbox.commit(changes, events).await {
                Ok(sequence) => self.add_judged(part, sequence),
                Err(VaultError::TooLarge { .. }) if part.len() > 1 => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
                Err(error) => failure = failure.or_else(|| Some(self.vault_failed(&error))),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// What start finds out about a grant. Read here and not before, so that what is written is never older than what
    /// is there.
    async fn judge(&self, id: GrantId) -> Result<Judged, KeeperError> {
        let stored = self.vault.grant(id).await.map_err(|error| self.vault_failed(&error))?;
        let stored = stored.ok_or_else(|| KeeperError::VaultUnavailable("a grant is missing".into()))?;
        let Stored { value: mut grant, sequence } = stored;
        if !self.lane_of.contains_key(&grant.provider) {
            return Err(KeeperError::BadRequest(format!("provider {} is not configured", grant.provider).into()));
        }
        let intent = self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))?;
        if self.vault.is_shared() {
            // Another process may be at work on it. Whoever holds it before its next exchange finds out.
            if intent.is_some() {
                self.news.opened(grant.id, self.now());
            }
            return Ok(Judged { grant, sequence, intent, notice: None });
        }
        let now = self.now().wall;
        let crashed = intent.as_ref().and_then(|intent| lifecycle::crashed(&mut grant, intent, now));
        let outdated = lifecycle::out_of_date(&mut grant, self.vault.epoch(), self.vault.epoch_reason(), now);
        Ok(Judged { grant, sequence, intent, notice: outdated.or(crashed) })
    }

    /// What was found out about these grants is durable.
    fn add_judged(&self, judged: Vec<Judged>, sequence: u64) {
        for Judged { grant, intent, .. } in judged {
            let _ = self.add(&grant, sequence, intent.as_ref());
        }
    }

    /// Puts a stored grant's slot in the index, and gives it; the one that is there already stays. `None` where its provider is not
    /// configured. For where all are in memory, and news of a grant that is not there yet add it.
    pub(super) fn add(&self, grant: &Grant, sequence: u64, intent: Option<&Intent>) -> Option<Arc<Slot>> {
        self.add_as_of(grant, sequence, intent, None).ok()
    }

    /// The same of a grant that was read, or written, after `before`; nothing is added of one that others may have changed since.
    pub(super) fn add_as_of(
        &self,
        grant: &Grant,
        sequence: u64,
        intent: Option<&Intent>,
        before: Option<&Before>,
    ) -> Result<Arc<Slot>, NoSlot> {
        let provider = self.lane_of.get(&grant.provider).copied().ok_or(NoSlot::Unconfigured)?;
        if let Some(bounded) = &self.bounded {
            self.make_room(bounded);
        }
        let now = self.now();
        // Counted first, so that two grants of one subject see each other.
        let subject = living_subject(grant);
        self.count_subject(provider, subject, true);
        let brief = self.brief(provider, grant, sequence, intent, now);
        let slot = Arc::new(Slot::new(grant.id, provider, brief, grant.last_fetched_at));
        if let Err(why) = self.index.admit_slot(Arc::clone(&slot), before) {
            self.count_subject(provider, subject, false);
            return match why {
                NotAdded::There(there) => Ok(there),
                NotAdded::Outdated => Err(NoSlot::Outdated),
            };
        }
        if !self.is_bounded() {
            self.lanes[usize::from(provider)].grants.fetch_add(1, Ordering::Relaxed);
        }
        self.know_fingerprints(grant);
        self.set_timer(&slot, now);
        Ok(slot)
    }
}
