//! Handing out access tokens.

use std::{sync::Arc, time::Duration};

use super::{
    Keeper, KeeperError, Served, Shared,
    answer::CachedToken,
    index::Entry,
    slot::{Brief, Flight, Outcome, Slot, Urgency},
};
use crate::{
    clock::Now,
    lifecycle::{FROZEN_RETRY, MAX_RETRY_AFTER, REFUSED_INTERVAL, ServeVerdict, remaining, serve},
    model::{AccessToken, OrganizationId, State, Timestamp},
};

/// How long a caller waits for an exchange beyond its time limit: for its turn in the queue.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);

impl Keeper {
    /// The organization's access token as [`token`](Self::token) gives it, if it is in memory and may be handed out as it
    /// is. `None` says nothing: ask there. `now` is the moment of the fetch.
    pub fn token_at_once(&self, organization: OrganizationId, min_ttl: Duration, now: Now) -> Option<Served> {
        let entry = self.shared.index.find(&organization)?;
        self.shared.at_once(&entry, organization, min_ttl, now)
    }

    /// The organization's access token with at least `min_ttl` left; refreshed first where it has less. Many
    /// callers, one exchange; while refreshing fails, a token that still lives is given, marked `degraded`.
    pub async fn token(&self, organization: &OrganizationId, min_ttl: Duration) -> Result<Served, KeeperError> {
        let shared = &self.shared;
        let entry = shared.find(organization).await?;
        let served = shared.token_of(&entry, min_ttl).await;
        match shared.successor(&entry, &served).await {
            Some(entry) => shared.token_of(&entry, min_ttl).await,
            None => served,
        }
    }

    /// The API refused the token that `rejected` (an entity tag) names: exchanges, unless a newer token is there.
    pub async fn refresh(&self, organization: &OrganizationId, rejected: Option<&str>) -> Result<Served, KeeperError> {
        let shared = &self.shared;
        let entry = shared.find(organization).await?;
        let served = shared.refreshed_token_of(&entry, rejected).await;
        match shared.successor(&entry, &served).await {
            // What its new grant has is newer than anything that was refused.
            Some(entry) => shared.token_of(&entry, Duration::ZERO).await,
            None => served,
        }
    }
}

impl Shared {
    /// The organization in memory; while the vault is still being loaded, the one that is asked for is read.
    pub(super) async fn find(&self, organization: &OrganizationId) -> Result<Arc<Entry>, KeeperError> {
        // Asked first: what is loaded between the two questions is found by the second.
        let is_loaded = self.is_loaded();
        if let Some(entry) = self.index.find(organization) {
            return Ok(entry);
        }
        if is_loaded && !self.vault.is_shared() {
            return Err(KeeperError::UnknownOrganization);
        }
        self.load_one(organization).await
    }

    /// What a fetch gets where nothing has to be read, awaited or refused.
    fn at_once(&self, entry: &Entry, organization: OrganizationId, min_ttl: Duration, now: Now) -> Option<Served> {
        let seen = Glance::at(&entry.slot);
        let ServeVerdict::Serve { degraded } = self.verdict(&entry.slot, &seen.brief, min_ttl, now) else {
            return None;
        };
        if !self.news.is_fresh(now) {
            return None;
        }
        let left = seen.brief.access?.left(now);
        let token = seen.token.clone().filter(|_| !left.is_zero())?;
        entry.fetched(now.wall);
        self.refresh_behind(&entry.slot, &seen, now);
        Some(answer(organization, token, &seen.brief, left, degraded))
    }

    async fn token_of(&self, entry: &Entry, min_ttl: Duration) -> Result<Served, KeeperError> {
        let now = self.now();
        if let Some(served) = self.at_once(entry, entry.id.clone(), min_ttl, now) {
            return Ok(served);
        }
        entry.fetched(now.wall);
        let late = self.catch_up(entry, now).await?;
        let seen = entry.slot.brief().outcome();
        match self.decide(&entry.slot, min_ttl) {
            ServeVerdict::Serve { degraded } => {
                self.refresh_behind(&entry.slot, &Glance::at(&entry.slot), now);
                self.serve(entry, degraded.or(late)).await
            }
            ServeVerdict::Refresh => {
                let exchanged = self.exchange_for_caller(&entry.slot, seen).await;
                self.after_exchange(entry, min_ttl, exchanged).await
            }
            verdict => Err(self.refusal(&entry.slot, verdict)),
        }
    }

    async fn refreshed_token_of(&self, entry: &Entry, rejected: Option<&str>) -> Result<Served, KeeperError> {
        let slot = &entry.slot;
        entry.fetched(self.now().wall);
        self.catch_up(entry, self.now()).await?;
        let seen = slot.brief().outcome();
        let verdict = self.decide(slot, Duration::ZERO);
        if let (ServeVerdict::Serve { degraded }, Some(rejected)) = (verdict, rejected) {
            let served = self.serve(entry, degraded).await?;
            if served.etag() != rejected.as_bytes() {
                return Ok(served);
            }
        }
        match verdict {
            ServeVerdict::Serve { .. } | ServeVerdict::Refresh => {}
            refusal => return Err(self.refusal(slot, refusal)),
        }
        self.may_force(slot).await?;
        self.exchange_for_caller(slot, seen).await?;
        match self.decide(slot, Duration::ZERO) {
            ServeVerdict::Serve { degraded } => self.serve(entry, degraded).await,
            verdict => Err(self.refusal(slot, verdict)),
        }
    }

    /// The organization as it is now, where it was given another grant while somebody was refused its old one's token, or what he
    /// wanted to do with it: nobody must notice that a consent is renewed.
    pub(super) async fn successor<T>(&self, entry: &Entry, outcome: &Result<T, KeeperError>) -> Option<Arc<Entry>> {
        let refusal = outcome.as_ref().err()?;
        if matches!(refusal, KeeperError::UnknownOrganization) {
            // Whoever gives it another grant has the old one's record until that is known here, and may have committed it a moment ago.
            drop(self.record(&entry.slot).await);
            if self.vault.is_shared() {
                // Of what another process did to it, it may be known so far that its old grant is gone, and no more.
                let _ = Box::pin(self.look_now(&entry.id)).await;
            }
        }
        let now = match self.index.find(&entry.id) {
            None if self.is_bounded() => self.present(&entry.id).await.ok().flatten()?,
            found => found?,
        };
        (!Arc::ptr_eq(&now.slot, &entry.slot)).then_some(now)
    }

    /// Where what others have written may be unknown here, looks into the vault first. While that cannot be done, what lives is served,
    /// and why it may be old is given.
    async fn catch_up(&self, entry: &Entry, now: Now) -> Result<Option<&'static str>, KeeperError> {
        if self.news.is_fresh(now) {
            return Ok(None);
        }
        match Box::pin(self.look_again(&entry.id)).await {
            Ok(true) => match self.index.find(&entry.id) {
                Some(now) if Arc::ptr_eq(&now.slot, &entry.slot) => Ok(None),
                // Whoever asked looks whether it has another grant.
                _ => Err(KeeperError::UnknownOrganization),
            },
            Ok(false) => Ok(Some("vault_unavailable")),
            Err(error) => Err(error),
        }
    }

    fn decide(&self, slot: &Slot, min_ttl: Duration) -> ServeVerdict {
        self.verdict(slot, &slot.brief(), min_ttl, self.now())
    }

    fn verdict(&self, slot: &Slot, brief: &Brief, min_ttl: Duration, now: Now) -> ServeVerdict {
        let mut standing = brief.standing(now, None);
        if standing.may_need_provider(min_ttl) {
            standing.frozen = self.lane(slot).circuit.frozen_for(brief.own_client);
        }
        serve(&standing, now.wall, min_ttl)
    }

    async fn serve(&self, entry: &Entry, degraded: Option<&'static str>) -> Result<Served, KeeperError> {
        let slot = &entry.slot;
        let now = self.now();
        let Glance { brief, token, .. } = Glance::at(slot);
        let (token, left) = match (token, brief.access) {
            (Some(token), Some(times)) => (token, times.left(now)),
            _ => self.read_token(slot, now).await?,
        };
        if left.is_zero() {
            return Err(self.refusal(slot, ServeVerdict::Refresh));
        }
        Ok(answer(entry.id.clone(), token, &brief, left, degraded))
    }

    /// The token was dropped from the bounded cache: one read of the vault brings it back. Gives what is left of it too.
    async fn read_token(&self, slot: &Arc<Slot>, now: Now) -> Result<(Arc<CachedToken>, Duration), KeeperError> {
        let brief = slot.brief();
        let stored = self.vault.grant(slot.id).await.map_err(|error| self.vault_failed(&error))?;
        let stored = stored.filter(|stored| stored.sequence >= brief.sequence);
        let newer = stored.as_ref().filter(|stored| self.vault.is_shared() && stored.sequence > brief.sequence);
        if let Some(stored) = newer {
            Box::pin(self.learn(slot, stored)).await;
        }
        let access = stored.and_then(|stored| stored.value.access);
        let access = access.ok_or_else(|| KeeperError::VaultUnavailable("it gave back an outdated record".into()))?;
        let token = Arc::new(self.cacheable(slot, &access, brief.consent_ends));
        // Another task may have stored a newer one since; that one stays.
        self.cache.put(slot, Arc::clone(&token), |state| fits(&state.brief(), &token));
        // What the vault gave may be of another exchange than the brief: newer, or older than one that was not stored.
        let left = match brief.access.filter(|times| token.is_of(times)) {
            Some(times) => times.left(now),
            None => remaining(&access, now, self.clock.boot_id()),
        };
        Ok((token, left))
    }

    /// An access token ready to be handed out, with the entity tag that names it.
    pub(super) fn cacheable(&self, slot: &Slot, access: &AccessToken, consent_ends: Option<Timestamp>) -> CachedToken {
        let etag = format!("\"{}\"", self.vault.entity_tag(&access.token));
        CachedToken::new(&self.lane(slot).name, access, consent_ends, &etag)
    }

    /// A grant that was left to idle and is fetched again past its refresh moment is refreshed behind the answer.
    fn refresh_behind(&self, slot: &Arc<Slot>, seen: &Glance, now: Now) {
        let brief = &seen.brief;
        let overdue = brief.access.is_some_and(|access| access.is_overdue(now));
        if overdue && seen.is_idle && brief.state == State::Active && brief.due.is_some() {
            self.lane(slot).enqueue(slot, Urgency::Fetched, Some(brief.outcome()));
        }
    }

    /// What a fetch gets after the exchange that it waited for. A token that lives but is shorter than wished is still
    /// better than none.
    async fn after_exchange(
        &self,
        entry: &Entry,
        min_ttl: Duration,
        exchanged: Result<(), KeeperError>,
    ) -> Result<Served, KeeperError> {
        let failed = exchanged.as_ref().err().map(|_| "provider_unavailable");
        for wished in [min_ttl, Duration::ZERO] {
            match (self.decide(&entry.slot, wished), &exchanged) {
                (ServeVerdict::Serve { degraded }, _) => return self.serve(entry, degraded.or(failed)).await,
                (ServeVerdict::Refresh, _) => {}
                (_, Err(error @ KeeperError::VaultUnavailable(_))) => return Err(error.clone()),
                (verdict, _) => return Err(self.refusal(&entry.slot, verdict)),
            }
        }
        exchanged.and_then(|()| Err(self.refusal(&entry.slot, ServeVerdict::Refresh)))
    }

    /// As [`exchange_and_wait`](Self::exchange_and_wait), for one who fetches: a refused credential is his operator's
    /// concern, and for him no more than a provider that gives nothing.
    async fn exchange_for_caller(&self, slot: &Arc<Slot>, seen: Outcome) -> Result<(), KeeperError> {
        self.exchange_and_wait(slot, Some(seen)).await.map_err(|error| match error {
            KeeperError::Refused(_) => {
                KeeperError::ProviderUnavailable { reason: "refused", retry_after: REFUSED_INTERVAL }
            }
            // The grant went while it was waited for, and the organization most likely with it.
            KeeperError::UnknownOrganization => {
                KeeperError::ProviderUnavailable { reason: "provider_unavailable", retry_after: Duration::from_secs(1) }
            }
            error => error,
        })
    }

    /// Queues an exchange before all that nobody waits for, and waits for its end, bounded. Where `seen` is given and
    /// an exchange has ended since, that one is enough.
    pub(super) async fn exchange_and_wait(&self, slot: &Arc<Slot>, seen: Option<Outcome>) -> Result<(), KeeperError> {
        let Some(flight) = self.lane(slot).enqueue(slot, Urgency::Awaited, seen) else { return Ok(()) };
        self.wait_for(slot, flight).await
    }

    /// How long anybody waits for an exchange.
    pub(super) fn patience(&self) -> Duration {
        self.refresh.timeout + QUEUE_PATIENCE
    }

    /// Waits for the end of an exchange that is queued or under way.
    pub(super) async fn wait_for(&self, slot: &Slot, flight: Flight) -> Result<(), KeeperError> {
        let patience = self.patience();
        let waited = tokio::select! {
            biased;
            waited = tokio::time::timeout(patience, flight.clone().ended()) => waited,
            () = self.stopping.cancelled() => {
                // What is still queued has no turn any more; what is under way ends.
                if slot.lock().queued().is_some() {
                    return Err(KeeperError::Starting);
                }
                tokio::time::timeout(patience, flight.ended()).await
            }
        };
        match waited {
            Ok(Some(result)) => result,
            Ok(None) | Err(_) => Err(KeeperError::ProviderUnavailable {
                reason: "provider_unavailable",
                retry_after: Duration::from_secs(1),
            }),
        }
    }

    /// Whether a caller may force an exchange now.
    async fn may_force(&self, slot: &Slot) -> Result<(), KeeperError> {
        let now = self.now();
        let (brief, flying) = {
            let state = slot.lock();
            (state.brief(), state.flight().is_some())
        };
        if flying {
            return Ok(());
        }
        if let State::InDoubt(reason) = brief.state {
            let reason = State::InDoubt(reason).reason().unwrap_or("no_answer");
            return Err(KeeperError::InDoubt { reason, since: brief.since });
        }
        if let Some(wait) = brief.retry_at.map(|at| at.since(now.wall)).filter(|wait| !wait.is_zero()) {
            let reason = brief.state.reason().unwrap_or("provider_unavailable");
            return Err(KeeperError::ProviderUnavailable { reason, retry_after: wait.min(MAX_RETRY_AFTER) });
        }
        if let Some(reason) = self.lane(slot).circuit.frozen_for(brief.own_client) {
            return Err(KeeperError::ProviderUnavailable { reason, retry_after: FROZEN_RETRY });
        }
        let too_many = |retry_after| KeeperError::TooManyRequests { retry_after };
        // First, so that a thousand callers of one grant ask the budget once.
        let before = slot.lock().force(now.boot).map_err(too_many)?;
        self.lane(slot).budget.take_forced().await.map_err(|retry_after| {
            slot.lock().unforce(now.boot, before);
            too_many(retry_after)
        })
    }

    fn refusal(&self, slot: &Slot, verdict: ServeVerdict) -> KeeperError {
        let Now { wall, .. } = self.now();
        let brief = slot.brief();
        match verdict {
            ServeVerdict::Paused => KeeperError::Paused,
            ServeVerdict::Lost => {
                KeeperError::Lost { reason: brief.state.reason().unwrap_or("refused"), since: brief.since }
            }
            ServeVerdict::InDoubt => {
                KeeperError::InDoubt { reason: brief.state.reason().unwrap_or("no_answer"), since: brief.since }
            }
            ServeVerdict::MinTtlTooLong { limit } => KeeperError::MinTtlTooLong { limit: limit.as_secs() },
            ServeVerdict::Unavailable { reason, retry_at } => {
                let retry_after = retry_at.since(wall).min(MAX_RETRY_AFTER);
                if reason == "vault_unavailable" {
                    return KeeperError::VaultUnavailable("the last exchange could not be stored".into());
                }
                KeeperError::ProviderUnavailable { reason, retry_after }
            }
            ServeVerdict::Serve { .. } | ServeVerdict::Refresh => {
                KeeperError::ProviderUnavailable { reason: "provider_unavailable", retry_after: Duration::from_secs(1) }
            }
        }
    }
}

/// What a fetch sees of a slot.
struct Glance {
    brief: Brief,
    /// As the bounded cache has it, if it is the one which the brief is about; this use spares it once.
    token: Option<Arc<CachedToken>>,
    /// No exchange is under way or about to begin: its timer may be set to a moment before an idle limit, far behind the end
    /// of this token, and where it waits in a backlog it may be moved before those that nobody fetches.
    is_idle: bool,
}

impl Glance {
    fn at(slot: &Slot) -> Self {
        let mut state = slot.lock();
        state.use_token();
        let brief = state.brief();
        let waits = state.queued().is_some_and(|place| place.urgency > Urgency::Fetched);
        let token = state.token.as_ref().filter(|token| fits(&brief, token)).map(Arc::clone);
        Self { brief, token, is_idle: state.flight().is_none() || waits }
    }
}

/// Whether this is the token that the slot's brief is about.
fn fits(brief: &Brief, token: &CachedToken) -> bool {
    brief.access.is_some_and(|times| token.is_of(&times))
}

fn answer(
    organization: OrganizationId,
    token: Arc<CachedToken>,
    brief: &Brief,
    left: Duration,
    degraded: Option<&'static str>,
) -> Served {
    Served { token, organization, expires_in: left.as_secs(), consent_ends: brief.consent_ends, degraded }
}
