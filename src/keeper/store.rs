//! The end of an exchange: merge, commit, publish; and what becomes of an answer that the vault does not take.

use std::{sync::Arc, time::Duration};

use super::{
    KeeperError, Shared,
    exchange::{Prepared, first_organization},
    lane::InFlight,
    slot::{BriefAccess, Slot},
};
use crate::{
    clock::Now,
    lifecycle::{self, Ended, MAX_RETRY_AFTER, REFUSED_INTERVAL, Verdict, closes, exchange_ended},
    model::{
        AccessToken, Answer, BootMoment, DoubtReason, ExchangeOutcome, FailingReason, Fingerprint, Grant, GrantId,
        Intent, Secret, State, Timestamp,
    },
    vault::{Change as VaultChange, Hold, MAX_RECORD_BYTES, Stray, VaultError},
};

/// How often a commit that the vault refused is tried again while its answer is kept in memory.
const COMMIT_RETRY: Duration = Duration::from_secs(2);
/// How long a grant waits after the vault failed it; and after it failed for good, when only a restart can help.
const VAULT_PAUSE: Duration = Duration::from_secs(10);
const POISONED_PAUSE: Duration = Duration::from_mins(5);

/// What an exchange makes of its grant.
#[derive(Clone)]
struct End {
    grant: Grant,
    verdict: Verdict,
}

impl Shared {
    /// Carries the outcome over into the grant as it is stored now, commits, and publishes (rules 1 and 7 of the
    /// design). While the vault takes nothing the answer is kept here and tried again: the flight goes on, so that
    /// nobody sends the spent token, and those who wait are told.
    pub(super) async fn store(
        &self,
        slot: &Arc<Slot>,
        prepared: &Prepared,
        outcome: &ExchangeOutcome,
        in_flight: &InFlight,
    ) -> Result<(), KeeperError> {
        // Until it turns out that another process has taken the grant over.
        let mut hold = Some(prepared.hold.clone());
        let mut is_lost = false;
        loop {
            let was_held = hold.is_some();
            let error = match self.store_once(slot, prepared, outcome, &mut hold, is_lost).await {
                Ok(result) => return result,
                Err(_) if was_held && hold.is_none() => {
                    // Another process has the grant, or had it: what is there now is looked at at once, and however often it takes.
                    is_lost = true;
                    continue;
                }
                Err(error) => error,
            };
            let retry_at = self.serve_unstored(slot, prepared, outcome).unwrap_or_else(|| self.unstored_retry(outcome));
            self.hold_back(slot, retry_at);
            in_flight.tell(Err(error.clone()));
            let worth_keeping = matches!(outcome, ExchangeOutcome::Granted(_)) || prepared.one_time;
            if !worth_keeping || self.vault.poisoned().is_some() || self.stopping.is_cancelled() {
                tracing::error!(
                    organization = first_organization(&prepared.grant),
                    provider = prepared.grant.provider.as_str(),
                    "the end of an exchange could not be stored"
                );
                if self.vault.is_shared() {
                    // Without the claim of its grant it can be no more than that.
                    let why = "another replica was at work on its grant when the worker stopped";
                    let _ = Box::pin(self.keep_stray(prepared, None, outcome, why)).await;
                }
                return Err(error);
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(COMMIT_RETRY) => (),
                () = self.stopping.cancelled() => (),
            }
        }
    }

    /// The outer error: the vault took nothing, and trying again may help.
    async fn store_once(
        &self,
        slot: &Arc<Slot>,
        prepared: &Prepared,
        outcome: &ExchangeOutcome,
        hold: &mut Option<Hold>,
        is_lost: bool,
    ) -> Result<Result<(), KeeperError>, KeeperError> {
        let record = slot.record().await;
        let lane = self.lane(slot);
        let now = self.now();
        let under = match hold {
            Some(hold) => hold,
            None => hold.insert(self.claim(slot.id).await?),
        };
        let under = &under.clone();
        let stored = match self.as_stored_now(slot, prepared, is_lost).await {
            Ok(stored) => stored,
            Err(KeeperError::UnknownOrganization) => {
                let why = "its grant had been removed when the answer came";
                let kept = Box::pin(self.keep_stray(prepared, Some(under), outcome, why)).await;
                kept.map_err(|error| self.not_committed(&error, hold))?;
                return Ok(Err(KeeperError::UnknownOrganization));
            }
            Err(error) => return Err(error),
        };
        // Another process may have an exchange under way since.
        let open = if is_lost {
            self.vault.intent(slot.id).await.map_err(|error| self.not_committed(&error, hold))?
        } else {
            prepared.intent.clone()
        };
        let ended = self.ended(slot, prepared, outcome, (&stored, open.as_ref()), now);
        let mut grant = stored.clone();
        let mut verdict = exchange_ended(&mut grant, &ended, &lane.policy, now);
        verdict.close_intent = closes(&verdict, prepared.intent.as_ref(), open.as_ref());
        grant.last_fetched_at = slot.last_fetched().or(grant.last_fetched_at);
        let mut end = End { grant, verdict };
        let committed = match self.commit_end(prepared, under, outcome, &end, true).await {
            Err(VaultError::TooLarge { .. }) => {
                Box::pin(self.commit_less(prepared, under, &ended, &stored, &mut end)).await
            }
            committed => committed,
        };
        let sequence = committed.map_err(|error| self.not_committed(&error, hold))?;
        let End { grant, verdict } = end;
        let before: Vec<Fingerprint> = stored.spent.iter().copied().chain([stored.fingerprint]).collect();
        let intent = open.as_ref().filter(|_| !verdict.close_intent);
        self.publish(slot, &grant, sequence, intent, &before);
        bound_by_boot_time(slot, &grant, prepared.asked);
        drop(record);
        if let Some(why) = verdict.stray {
            tell_stray(&grant, why);
        }
        if let Some(notice) = verdict.notice {
            self.tell(&grant, notice);
        }
        if matches!(outcome, ExchangeOutcome::Granted(_)) && grant.state == State::Active {
            self.tell_refreshed(&grant).await;
        }
        Ok(result_of(&grant, outcome, now.wall))
    }

    /// What a commit that failed means for the hold under which it was to be made: once another process has taken the grant over, it is to
    /// be held and read anew.
    fn not_committed(&self, error: &VaultError, hold: &mut Option<Hold>) -> KeeperError {
        if matches!(error, VaultError::Fenced) {
            self.metrics.claimed("fenced");
            *hold = None;
        }
        self.vault_failed(error)
    }

    /// The grant as it is stored now, to be asked for with its record's lock held. It is read again only where a commit has
    /// changed or removed it since the exchange began: each tells the slot before it lets go of the lock, unless another process made
    /// it after the hold was lost.
    async fn as_stored_now(&self, slot: &Arc<Slot>, prepared: &Prepared, is_lost: bool) -> Result<Grant, KeeperError> {
        let is_unchanged = !is_lost && {
            let state = slot.lock();
            !state.is_removed() && state.brief().sequence == prepared.sequence
        };
        if is_unchanged { Ok(prepared.grant.clone()) } else { Ok(self.read(slot).await?.value) }
    }

    /// The end of the exchange as the rules are to see it.
    fn ended<'a>(
        &'a self,
        slot: &Slot,
        prepared: &'a Prepared,
        outcome: &'a ExchangeOutcome,
        (stored, open): (&Grant, Option<&'a Intent>),
        now: Now,
    ) -> Ended<'a> {
        let lane = self.lane(slot);
        let given = match outcome {
            ExchangeOutcome::Granted(answer) => answer.refresh_token.as_ref(),
            _ => None,
        };
        let since_refusal = stored.refusals.map(|refusals| {
            let remembered = slot.brief().first_refusal.filter(|first| first.at == refusals.first_at);
            remembered.map_or_else(|| now.wall.since(refusals.first_at), |first| first.ago(now))
        });
        Ended {
            asked: prepared.asked,
            outcome,
            sent: prepared.sent,
            one_time: prepared.one_time,
            given: given.map(|token| self.vault.fingerprint(token)),
            client_id: prepared.grant.client.as_ref().map_or(lane.config.client_id.as_str(), |client| &client.id),
            others_answered: lane.circuit.answered_others(slot.id, now.boot),
            since_refusal: since_refusal.unwrap_or_default(),
            frozen: lane.circuit.frozen().is_some(),
            epoch: self.vault.epoch(),
            intent: prepared.intent.as_ref(),
            open,
            boot_id: self.clock.boot_id(),
            chance: self.chance(),
        }
    }

    /// Commits the end of an exchange, with what is to be told of it.
    async fn commit_end(
        &self,
        prepared: &Prepared,
        hold: &Hold,
        outcome: &ExchangeOutcome,
        end: &End,
        with_access: bool,
    ) -> Result<u64, VaultError> {
        let events = match end.verdict.notice {
            Some(notice) => Box::pin(self.notice_events(&end.grant, notice)).await,
            None => Vec::new(),
        };
        self.outbox.commit_held(&[hold], self.changes(prepared, outcome, end, with_access), events).await
    }

    /// What is written at the end of an exchange, all of it or nothing.
    fn changes(
        &self,
        prepared: &Prepared,
        outcome: &ExchangeOutcome,
        end: &End,
        with_access: bool,
    ) -> Vec<VaultChange> {
        let mut changes = vec![VaultChange::PutGrant(Box::new(end.grant.clone()))];
        if prepared.one_time && end.verdict.close_intent {
            changes.push(VaultChange::DeleteIntent(end.grant.id));
        }
        if let (Some(why), ExchangeOutcome::Granted(answer)) = (end.verdict.stray, outcome) {
            changes.push(self.stray(end.grant.id, answer, why, with_access));
        }
        changes
    }

    /// The end of the exchange is more than the vault takes, and will be however often it is tried. Keeps of it what can
    /// be kept: the refresh token without the access token that came with it, else all of the answer as a stray, else
    /// the refresh token as one.
    async fn commit_less(
        &self,
        prepared: &Prepared,
        hold: &Hold,
        ended: &Ended<'_>,
        stored: &Grant,
        end: &mut End,
    ) -> Result<u64, VaultError> {
        let now = self.now().wall;
        let organization = first_organization(stored);
        let provider = stored.provider.as_str();
        let mut tries = Vec::new();
        let mut too_large = VaultError::TooLarge { what: "a record", bytes: MAX_RECORD_BYTES, limit: MAX_RECORD_BYTES };
        if end.verdict.stray.is_none() {
            for access in [stored.access.clone(), None] {
                let before = Grant { access, ..stored.clone() };
                let mut grant = end.grant.clone();
                lifecycle::without_new_access(&mut grant, &before, ended.chance, now);
                tries.push((End { grant, verdict: end.verdict.clone() }, false));
            }
        }
        if matches!(ended.outcome, ExchangeOutcome::Granted(_)) {
            let mut grant = stored.clone();
            let verdict = lifecycle::set_aside(&mut grant, ended, "the answer is larger than a record can be", now);
            let end = End { grant, verdict };
            tries.extend([(end.clone(), true), (end.clone(), false)]);
            // Nothing of it fits. That its token is spent must be known all the same.
            let grant = Grant { access: None, ..end.grant };
            tries.push((End { verdict: Verdict { stray: None, ..end.verdict }, grant }, false));
        }
        for (less, with_access) in tries {
            match self.commit_end(prepared, hold, ended.outcome, &less, with_access).await {
                Err(error @ VaultError::TooLarge { .. }) => too_large = error,
                committed => {
                    let sequence = committed?;
                    tracing::error!(
                        organization,
                        provider,
                        kept = if less.verdict.stray.is_some() { "as a stray" } else { "without its access token" },
                        "the issuer's answer is larger than a record can be; not all of it is kept"
                    );
                    *end = less;
                    return Ok(sequence);
                }
            }
        }
        Err(too_large)
    }

    /// An access token whose answer rotated nothing may be served while the vault takes nothing (rule 1 of the
    /// design): losing it costs one exchange and no credential. Gives the moment of its refresh if it is served.
    fn serve_unstored(&self, slot: &Arc<Slot>, prepared: &Prepared, outcome: &ExchangeOutcome) -> Option<Timestamp> {
        let ExchangeOutcome::Granted(answer) = outcome else { return None };
        let given = answer.refresh_token.as_ref().map(|token| self.vault.fingerprint(token));
        if prepared.one_time || given.is_some_and(|given| given != prepared.sent) {
            return None;
        }
        let lifetime = answer.expires_in?;
        let now = self.now();
        let access = AccessToken {
            token: answer.access_token.clone(),
            token_type: answer.token_type.clone(),
            scope: answer.scope.clone(),
            issued_at: prepared.asked.wall,
            expires_at: prepared.asked.wall + lifetime,
            issued_boot: Some(BootMoment { boot_id: self.clock.boot_id(), at: prepared.asked.boot }),
        };
        let times = BriefAccess {
            issued_at: access.issued_at,
            expires_at: access.expires_at,
            expires_boot: prepared.asked.boot + lifetime,
            refresh_after: lifecycle::refresh_after(&access, &self.lane(slot).policy, self.chance()),
        };
        self.amend_brief(slot, now, |brief| brief.access = Some(times));
        let token = self.cacheable(slot, &access, slot.brief().consent_ends);
        self.cache.put(slot, Arc::new(token), |_| true);
        Some(times.issued_at + times.refresh_after)
    }

    /// When to try again what could not be stored: what the issuer asks for holds all the same.
    fn unstored_retry(&self, outcome: &ExchangeOutcome) -> Timestamp {
        let asked_for = match outcome {
            ExchangeOutcome::Refused { .. } => REFUSED_INTERVAL,
            ExchangeOutcome::RateLimited { retry_after } | ExchangeOutcome::Unavailable { retry_after } => {
                retry_after.unwrap_or_default().min(MAX_RETRY_AFTER)
            }
            _ => Duration::ZERO,
        };
        self.now().wall + asked_for.max(self.vault_pause())
    }

    pub(super) fn vault_pause(&self) -> Duration {
        if self.vault.poisoned().is_some() { POISONED_PAUSE } else { VAULT_PAUSE }
    }

    async fn keep_stray(
        &self,
        prepared: &Prepared,
        hold: Option<&Hold>,
        outcome: &ExchangeOutcome,
        why: &str,
    ) -> Result<(), VaultError> {
        let ExchangeOutcome::Granted(answer) = outcome else { return Ok(()) };
        let id = prepared.grant.id;
        for with_access in [true, false] {
            let mut changes = vec![self.stray(id, answer, why, with_access)];
            changes.extend(hold.map(|_| VaultChange::DeleteIntent(id)));
            match self.vault.commit_held(hold.as_slice(), changes).await {
                Err(VaultError::TooLarge { .. }) => {}
                committed => {
                    tell_stray(&prepared.grant, why);
                    return committed.map(|_| ());
                }
            }
        }
        tracing::error!(
            organization = first_organization(&prepared.grant),
            provider = prepared.grant.provider.as_str(),
            "an answer to a grant that is gone is larger than a record can be; it is not kept"
        );
        Ok(())
    }

    fn stray(&self, grant: GrantId, answer: &Answer, why: &str, with_access: bool) -> VaultChange {
        VaultChange::PutStray(Box::new(Stray {
            grant,
            at: self.now().wall,
            why: why.into(),
            refresh_token: answer.refresh_token.clone(),
            access_token: if with_access { answer.access_token.clone() } else { Secret::new("") },
        }))
    }

    /// The vault takes nothing: the slot says so and waits; nothing of that can be stored.
    pub(super) fn hold_back(&self, slot: &Arc<Slot>, retry_at: Timestamp) {
        let now = self.now();
        self.amend_brief(slot, now, |brief| {
            if matches!(brief.state, State::Active | State::Failing(_)) {
                brief.state = State::Failing(FailingReason::VaultUnavailable);
            }
            brief.retry_at = Some(retry_at);
            // A grant that is not due by itself (paused, held, without organizations) does not become so by this.
            brief.due = brief.due.and(brief.retry_at);
        });
    }
}

fn result_of(grant: &Grant, outcome: &ExchangeOutcome, now: Timestamp) -> Result<(), KeeperError> {
    match (outcome, grant.state) {
        (ExchangeOutcome::Granted(_), State::Active) => Ok(()),
        (ExchangeOutcome::Refused { detail }, State::Failing(_)) => Err(KeeperError::Refused(detail.clone())),
        // Tried once more for an operator, and no answer about the credential came.
        (outcome, State::Lost) if !matches!(outcome, ExchangeOutcome::Refused { .. }) => {
            Err(KeeperError::ProviderUnavailable { reason: outcome.label(), retry_after: COMMIT_RETRY })
        }
        _ => Err(standing_error(grant, now)),
    }
}

/// An access token's life is counted from when its request left, also where wall time went back meanwhile.
fn bound_by_boot_time(slot: &Slot, grant: &Grant, asked: Now) {
    let Some(stored) = grant.access.as_ref().filter(|access| access.issued_at == asked.wall) else { return };
    let mut state = slot.lock();
    let mut brief = state.brief();
    if let Some(access) = &mut brief.access {
        access.expires_boot = access.expires_boot.min(asked.boot + stored.lifetime());
    }
    state.set_brief(&brief);
}

fn tell_stray(grant: &Grant, why: &str) {
    tracing::error!(
        event = "grant.stray",
        organization = first_organization(grant),
        provider = grant.provider.as_str(),
        reason = why,
        "an answer is kept as a stray and not served"
    );
}

/// What a caller is told of a grant that gives no token.
fn standing_error(grant: &Grant, now: Timestamp) -> KeeperError {
    match grant.state {
        State::Lost => lost(grant),
        State::InDoubt(reason) => in_doubt(reason, grant),
        state => KeeperError::ProviderUnavailable {
            reason: state.reason().unwrap_or("provider_unavailable"),
            retry_after: grant.retry_at.map_or(COMMIT_RETRY, |at| at.since(now)),
        },
    }
}

pub(super) fn lost(grant: &Grant) -> KeeperError {
    KeeperError::Lost { reason: State::Lost.reason().unwrap_or("refused"), since: grant.since }
}

pub(super) fn in_doubt(reason: DoubtReason, grant: &Grant) -> KeeperError {
    KeeperError::InDoubt { reason: State::InDoubt(reason).reason().unwrap_or("no_answer"), since: grant.since }
}
