//! What other processes write into a vault that they share with this one: the index, the slots and the cached tokens follow.
//!
//! One task polls. What it hears is put where a commit of this process would have put it, and a slot takes nothing that is older than
//! what it has, so that it does not matter in which order the two come by.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{KeeperError, Shared, slot::Slot, timers::boot_millis};
use crate::{
    clock::Now,
    lifecycle,
    model::{DoubtReason, Grant, GrantId, Organization, OrganizationId, State},
    task,
    vault::{Gone, Item, Stored, VaultError},
};

/// How often it is polled while somebody waits for what another process does.
const POLL_SOON: Duration = Duration::from_millis(50);
/// However many hints come that others have written, it is polled no more often than with so much in between.
const HINTED: Duration = Duration::from_millis(20);
/// How long a poll may take on top of the interval before what is in memory counts as old: then a fetch looks into the vault first.
const POLL_TAKES: Duration = Duration::from_secs(1);
/// How long a fetch waits for that look; then it goes by what is in memory.
const LOOK_TAKES: Duration = Duration::from_secs(1);
/// How long an exchange that another process began may last, in leases, before it is looked at whether that process still holds it.
const TAKE_OVER_AFTER: f64 = 1.5;
/// How many exchanges are taken over by one poll, at most.
const TAKEN_AT_ONCE: usize = 64;

/// How far this process has followed the others.
#[derive(Debug)]
pub(super) struct News {
    /// When everything that had been written was known, in milliseconds of the boot-time clock; `u64::MAX` where nobody else writes.
    heard_at: AtomicU64,
    /// How old that may be for a token to be handed out without a look into the vault.
    fresh_for: u64,
    /// The last poll failed.
    is_away: AtomicBool,
    /// How many wait for another process.
    joining: AtomicUsize,
    /// Goes up with each poll.
    polls: watch::Sender<u64>,
    /// Exchanges that other processes have under way, as far as known, with the moment of the boot-time clock at which that was seen.
    open: Mutex<HashMap<GrantId, Duration>>,
    /// What was deleted while the vault was being loaded, which may still add it.
    early: Mutex<Vec<(Gone, u64)>>,
}

/// Waits for the end of the next poll.
pub(super) struct Heard(watch::Receiver<u64>);

impl Heard {
    pub(super) async fn next(mut self) {
        // An error: the keeper is gone, and nobody waits.
        let _ = self.0.changed().await;
    }
}

/// While it lives, the news are asked for more often.
pub(super) struct Joining<'a>(&'a News);

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        self.0.joining.fetch_sub(1, Ordering::Relaxed);
    }
}

impl News {
    /// `interval`: how often it is polled; `None` where this process alone has the vault.
    pub(super) fn new(interval: Option<Duration>) -> Self {
        Self {
            heard_at: AtomicU64::new(if interval.is_some() { 0 } else { u64::MAX }),
            fresh_for: interval.map_or(0, |interval| boot_millis(interval + POLL_TAKES)),
            is_away: AtomicBool::new(false),
            joining: AtomicUsize::new(0),
            polls: watch::Sender::new(0),
            open: Mutex::default(),
            early: Mutex::default(),
        }
    }

    /// Whether all that others wrote until a moment ago is known here.
    pub(super) fn is_fresh(&self, now: Now) -> bool {
        let heard_at = self.heard_at.load(Ordering::Acquire);
        heard_at == u64::MAX || boot_millis(now.boot).saturating_sub(heard_at) <= self.fresh_for
    }

    /// The end of the next poll.
    pub(super) fn heard(&self) -> Heard {
        Heard(self.polls.subscribe())
    }

    /// Somebody waits for another process.
    pub(super) fn join(&self) -> Joining<'_> {
        self.joining.fetch_add(1, Ordering::Relaxed);
        // Not in the middle of a long pause.
        Joining(self)
    }

    /// Until the next poll is due: sooner where somebody waits for another process.
    async fn pause(&self, interval: Duration) {
        let mut waited = Duration::ZERO;
        while waited < interval {
            tokio::time::sleep(POLL_SOON.min(interval)).await;
            waited += POLL_SOON;
            if self.joining.load(Ordering::Relaxed) > 0 {
                break;
            }
        }
    }

    /// Another process has an exchange under way.
    pub(super) fn opened(&self, grant: GrantId, now: Now) {
        self.open().insert(grant, now.boot);
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<GrantId, Duration>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn early(&self) -> std::sync::MutexGuard<'_, Vec<(Gone, u64)>> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the other processes until the keeper stops.
pub(super) async fn follow(shared: Arc<Shared>) {
    let (Some(mut feed), Some(interval)) = (shared.vault.news(), shared.vault.news_interval()) else { return };
    loop {
        let asked = shared.now();
        match feed.poll().await {
            Ok(polled) => {
                if shared.news.is_away.swap(false, Ordering::Relaxed) {
                    tracing::info!("the vault's database answers again");
                }
                shared.hear(polled.items).await;
                if !polled.is_all {
                    continue;
                }
                shared.news.heard_at.store(boot_millis(asked.boot), Ordering::Release);
                shared.news.polls.send_modify(|polls| *polls += 1);
                shared.take_over_the_dead();
            }
            Err(error) if shared.news.is_away.swap(true, Ordering::Relaxed) => {
                tracing::debug!(%error, "the vault's database is still away");
            }
            Err(error) => {
                tracing::error!(
                    event = "vault.away",
                    %error,
                    "what other replicas write cannot be followed; tokens that live are served, and no one-time token is exchanged"
                );
            }
        }
        tokio::select! {
            () = shared.news.pause(interval) => {}
            // What is written together is heard together.
            () = feed.hinted() => tokio::time::sleep(HINTED.min(interval)).await,
        }
    }
}

impl Shared {
    /// Takes in what others have written, in the order in which they did.
    async fn hear(self: &Arc<Self>, items: Vec<Item>) {
        let (mut gone, mut rows) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Item::Grant(stored) => self.hear_grant(&stored).await,
                Item::Organization(stored) => self.hear_organization(stored.value).await,
                Item::Intent(stored) => self.news.opened(stored.value.grant, self.now()),
                Item::Awaiting(stored) => {
                    self.awaiting().insert(stored.value.grant, stored.value);
                }
                Item::Row(stored) => rows.push(stored.value),
                // Read when they are asked for.
                Item::RevokedLinks(_) => {}
                Item::Gone(what, sequence) => gone.extend(self.hear_gone(what, sequence)),
            }
        }
        if !rows.is_empty() {
            self.outbox.heard(rows);
        }
        self.forget_slots(&gone);
    }

    async fn hear_grant(&self, stored: &Stored<Grant>) {
        let grant = &stored.value;
        if lifecycle::is_grave(grant) {
            self.bury(grant);
            return;
        }
        self.note_grant(grant.id);
        match self.index.slot(grant.id) {
            Some(slot) if slot.brief().sequence >= stored.sequence => {}
            Some(slot) => self.learn(&slot, stored).await,
            // Where only some are in memory, it is none of them.
            None if self.is_bounded() => {}
            None => _ = self.add(grant, stored.sequence, None),
        }
    }

    async fn hear_organization(self: &Arc<Self>, organization: Organization) {
        self.note_organization(&organization.id);
        match self.index.find(&organization.id) {
            None if self.is_bounded() => {}
            None => self.learn_organization(&organization.id, Some(&organization)).await,
            Some(entry) if entry.slot.id == organization.grant => {}
            Some(_) => self.look_into_change(organization.id),
        }
    }

    /// An organization was given another grant, or removed. A change that goes on here meanwhile may be newer than what was heard: so it
    /// is looked at again when none does.
    fn look_into_change(self: &Arc<Self>, id: OrganizationId) {
        let shared = Arc::clone(self);
        task::spawn(async move {
            let _organization = shared.changing(&id).await;
            if let Ok(stored) = shared.vault.organization(&id).await {
                shared.learn_organization(&id, stored.as_ref().map(|stored| &stored.value)).await;
            }
        });
    }

    /// Gives the slot that is to be forgotten, if it is one.
    fn hear_gone(self: &Arc<Self>, what: Gone, sequence: u64) -> Option<Arc<Slot>> {
        if !self.is_loaded() {
            self.news.early().push((what.clone(), sequence));
        }
        match what {
            Gone::Grant(id) => {
                self.note_grant(id);
                return self.index.slot(id).filter(|slot| slot.brief().sequence < sequence);
            }
            Gone::Organization(id) => {
                self.note_organization(&id);
                if !self.is_bounded() || self.index.find(&id).is_some() {
                    self.look_into_change(id);
                }
            }
            Gone::Intent(id) => _ = self.news.open().remove(&id),
            Gone::Awaiting(id) => _ = self.awaiting().remove(&id),
            Gone::Row(id) => self.outbox.forgotten(&id),
            Gone::RevokedLinks(_) => {}
        }
        None
    }

    /// After the vault was loaded: what was deleted meanwhile goes, should it have been added after that was heard.
    pub(super) fn hear_early(self: &Arc<Self>) {
        let early = std::mem::take(&mut *self.news.early());
        let mut gone = Vec::new();
        for (what, sequence) in early {
            gone.extend(self.hear_gone(what, sequence));
        }
        self.forget_slots(&gone);
    }

    /// The slot follows what is stored, if that is newer.
    pub(super) async fn learn(&self, slot: &Arc<Slot>, stored: &Stored<Grant>) {
        let may_be_retried = matches!(stored.value.state, State::InDoubt(DoubtReason::NoAnswer | DoubtReason::Crashed));
        let intent = if may_be_retried { self.vault.intent(slot.id).await.ok().flatten() } else { None };
        self.publish(slot, &stored.value, stored.sequence, intent.as_ref(), &[]);
    }

    /// The index follows what is stored of an organization; `None`: it is not there any more. Where it has it at another grant, the
    /// organization's lock is held.
    pub(super) async fn learn_organization(&self, id: &OrganizationId, stored: Option<&Organization>) {
        let Some(organization) = stored else { return self.index.remove(id) };
        let there = self.index.find(id);
        if there.as_ref().is_some_and(|entry| entry.slot.id == organization.grant) {
            return;
        }
        if self.is_bounded() {
            // Whoever asks for it brings it in as it is then.
            if let Some(entry) = there {
                self.index.leave(&entry);
            }
            return;
        }
        let slot = match self.index.slot(organization.grant) {
            Some(slot) => Some(slot),
            None => match self.vault.grant(organization.grant).await {
                Ok(Some(stored)) => self.add(&stored.value, stored.sequence, None),
                _ => None,
            },
        };
        if let Some(slot) = slot {
            let last_fetched = slot.last_fetched();
            self.index.insert(id.clone(), slot, last_fetched);
        }
    }

    /// Brings what is known of an organization up to date, where the news are late. `false`: the vault does not say, or not soon.
    pub(super) async fn look_again(&self, id: &OrganizationId) -> Result<bool, KeeperError> {
        if self.news.is_away.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.look_now(id).await
    }

    /// The same, also where the latest poll failed: whoever was just answered by the vault need not wait for the next.
    pub(super) async fn look_now(&self, id: &OrganizationId) -> Result<bool, KeeperError> {
        let looking = async {
            let stored = self.vault.organization(id).await?;
            let known = self.index.find(id).map(|entry| entry.slot.id);
            if known != stored.as_ref().map(|stored| stored.value.grant) {
                let _organization = self.changing(id).await;
                let stored = self.vault.organization(id).await?;
                self.learn_organization(id, stored.as_ref().map(|stored| &stored.value)).await;
            }
            Ok::<_, VaultError>(self.index.find(id))
        };
        let entry = match tokio::time::timeout(LOOK_TAKES, looking).await {
            Ok(Ok(entry)) => entry,
            Ok(Err(VaultError::Away { .. })) | Err(_) => return Ok(false),
            Ok(Err(error)) => return Err(self.vault_failed(&error)),
        };
        let Some(entry) = entry else { return Ok(true) };
        match tokio::time::timeout(LOOK_TAKES, self.read(&entry.slot)).await {
            Ok(Ok(_) | Err(KeeperError::UnknownOrganization)) => Ok(true),
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    /// Exchanges that other processes began and should have ended are looked at, each by a task of its own.
    fn take_over_the_dead(self: &Arc<Self>) {
        let Some(lease) = self.vault.lease() else { return };
        let now = self.now().boot;
        if !self.is_loaded() || self.stopping.is_cancelled() {
            return;
        }
        let overdue: Vec<GrantId> = {
            let open = self.news.open();
            let overdue = open.iter().filter(|(_, since)| now.saturating_sub(**since) > lease.mul_f64(TAKE_OVER_AFTER));
            overdue.map(|(id, _)| *id).take(TAKEN_AT_ONCE).collect()
        };
        for id in overdue {
            // Should it not be settled, it is looked at again as late.
            self.news.open().insert(id, now);
            let slot = self.index.slot(id);
            if slot.is_none() && !self.is_bounded() {
                self.news.open().remove(&id);
                continue;
            }
            let shared = Arc::clone(self);
            task::spawn_on(&self.tasks, async move {
                let settled = match slot.map_or(shared.slot_of(id).await, |slot| Ok(Some(slot))) {
                    Ok(Some(slot)) => shared.take_over(&slot).await.unwrap_or(false),
                    Ok(None) => true,
                    Err(_) => false,
                };
                if settled {
                    shared.news.open().remove(&id);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn at(boot: u64) -> Now {
        Now { wall: Timestamp::default(), boot: Duration::from_millis(boot) }
    }

    #[test]
    fn what_is_known_is_fresh_until_a_poll_should_have_ended() {
        let news = News::new(Some(Duration::from_millis(500)));
        assert!(!news.is_fresh(at(100_000)), "nothing was heard yet");
        news.heard_at.store(100_000, Ordering::Release);
        assert!(news.is_fresh(at(100_000)) && news.is_fresh(at(101_500)));
        assert!(!news.is_fresh(at(101_501)));
    }

    #[test]
    fn where_nobody_else_writes_everything_is_known() {
        assert!(News::new(None).is_fresh(at(u64::MAX)));
    }

    #[test]
    fn the_news_are_asked_for_more_often_only_as_long_as_somebody_waits() {
        let news = News::new(Some(Duration::from_millis(500)));
        let waiting = || news.joining.load(Ordering::Relaxed);
        let (one, two) = (news.join(), news.join());
        assert_eq!(waiting(), 2);
        drop(one);
        assert_eq!(waiting(), 1);
        drop(two);
        assert_eq!(waiting(), 0);
    }
}
