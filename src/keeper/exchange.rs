//! One exchange: intent, call, commit, publish.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    KeeperError, Shared,
    circuit::{Change, Observation},
    lane::{InFlight, Lane},
    slot::{Brief, BriefAccess, Slot, subject_hash},
};
use crate::{
    clock::Now,
    lifecycle::{self, Ended, MAX_RETRY_AFTER, REFUSED_INTERVAL, exchange_ended},
    model::{
        AccessToken, BootMoment, Credential, DoubtReason, ExchangeOutcome, Fingerprint, Grant, Intent, State, Timestamp,
    },
    provider::Exchange,
    vault::{Change as VaultChange, Stray},
};

/// How often a commit that the vault refused is tried again while its answer is kept in memory.
const COMMIT_RETRY: Duration = Duration::from_secs(2);
/// How long a grant waits after the vault failed it; and after it failed for good, when only a restart can help.
const VAULT_PAUSE: Duration = Duration::from_secs(10);
const POISONED_PAUSE: Duration = Duration::from_mins(5);

/// What was decided before the call, and must still hold when its answer is stored.
struct Prepared {
    grant: Grant,
    sent: Fingerprint,
    one_time: bool,
    intent: Option<Intent>,
    asked: Now,
}

impl Shared {
    /// Exchanges a grant once and ends its flight. Runs as a task of its own, so that a caller who goes away does
    /// not cancel it.
    pub(super) async fn exchange(self: Arc<Self>, slot: Arc<Slot>, in_flight: InFlight) {
        let result = self.exchange_once(&slot, &in_flight).await;
        in_flight.end(result);
    }

    async fn exchange_once(&self, slot: &Arc<Slot>, in_flight: &InFlight) -> Result<(), KeeperError> {
        let prepared = match self.prepare(slot).await {
            Ok(prepared) => prepared,
            Err(error) => {
                if matches!(error, KeeperError::VaultUnavailable(_)) {
                    self.metrics.exchanged(&self.lane(slot).name, "vault_unavailable", Duration::ZERO);
                    self.hold_back(slot, self.now().wall + self.vault_pause());
                }
                return Err(error);
            }
        };
        let lane = self.lane(slot);
        let started = self.now().boot;
        let call = lane.endpoint.exchange(Exchange {
            credential: &prepared.grant.credential,
            client: prepared.grant.client.as_ref(),
            fresh_connection: prepared.one_time,
        });
        let outcome = call.await;
        let change = self.observe(lane, slot, &prepared, &outcome, started);
        if change != Some(Change::Closed) {
            self.circuit_changed(slot.provider, change);
            return self.store(slot, &prepared, &outcome, in_flight).await;
        }
        // Recovery looks at every grant, and the answer may hold the only token there is: it is stored first.
        let stored = self.store(slot, &prepared, &outcome, in_flight).await;
        self.circuit_changed(slot.provider, change);
        stored
    }

    /// Reads the grant, makes sure that it may be exchanged, and makes the intent durable before a byte of a
    /// one-time token leaves (rule 2 of the design).
    async fn prepare(&self, slot: &Arc<Slot>) -> Result<Prepared, KeeperError> {
        let _record = slot.record.lock().await;
        if slot.lock().removed {
            return Err(KeeperError::UnknownOrganization);
        }
        let mut grant = self.read(slot)?.value;
        let now = self.now();
        let one_time = grant.is_one_time();
        let open =
            if one_time { self.vault.intent(grant.id).map_err(|error| self.vault_failed(&error))? } else { None };
        if grant.paused {
            return Err(KeeperError::Paused);
        }
        // A refresh token may be rotated by any exchange, and its successor would be lost. A key cannot.
        if let (Credential::RefreshToken(_), Some(reason)) = (&grant.credential, self.vault.poisoned()) {
            return Err(KeeperError::VaultUnavailable(reason));
        }
        if let Some(intent) = &open {
            self.doubt_the_dead(slot, &mut grant, intent, now).await?;
        }
        if grant.state == State::Lost {
            return Err(lost(&grant));
        }
        self.may_try_doubtful(slot, &grant, open.as_ref())?;
        let sent = grant.fingerprint;
        let mut intent = None;
        if one_time {
            let next = match open.filter(|open| open.fingerprint == sent) {
                Some(open) => Intent { attempt: open.attempt.saturating_add(1), ..open },
                None => Intent {
                    grant: grant.id,
                    fingerprint: sent,
                    attempt: 1,
                    first_at: now.wall,
                    first_boot: now.boot,
                    boot_id: self.clock.boot_id(),
                },
            };
            let commit = self.vault.commit(vec![VaultChange::PutIntent(next.clone())]).await;
            commit.map_err(|error| self.vault_failed(&error))?;
            // That may have taken long enough for a grace to be over.
            self.may_try_doubtful(slot, &grant, Some(&next))?;
            intent = Some(next);
        }
        Ok(Prepared { grant, sent, one_time, intent, asked: self.now() })
    }

    /// Whether a grant may be exchanged as far as a doubt about it goes; where not, it is due when the rules say.
    fn may_try_doubtful(&self, slot: &Arc<Slot>, grant: &Grant, intent: Option<&Intent>) -> Result<(), KeeperError> {
        let State::InDoubt(reason) = grant.state else { return Ok(()) };
        let (now, policy) = (self.now(), &self.lane(slot).policy);
        let fleet = self.fleet(slot.provider, grant);
        let due = lifecycle::due(grant, intent, policy, fleet, now, self.clock.boot_id(), 0.0);
        if due.is_some_and(|due| due <= now.wall) {
            return Ok(());
        }
        // Its turn came too late for the grace, or another grant of its subject has come: due later or never.
        self.amend_brief(slot, now, |brief| brief.due = due);
        Err(in_doubt(reason, grant))
    }

    /// An intent that is open although nothing is under way: the task of that exchange died, or its end could not be
    /// stored. Its token may be spent, so the grant is in doubt as after a death of the whole process.
    async fn doubt_the_dead(
        &self,
        slot: &Arc<Slot>,
        grant: &mut Grant,
        intent: &Intent,
        now: Now,
    ) -> Result<(), KeeperError> {
        let Some(notice) = lifecycle::crashed(grant, intent, now.wall) else { return Ok(()) };
        let commit = self.vault.commit(vec![VaultChange::PutGrant(Box::new(grant.clone()))]).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        self.publish(slot, grant, sequence, Some(intent), &[]);
        self.tell(grant, notice);
        Ok(())
    }

    fn observe(
        &self,
        lane: &Lane,
        slot: &Slot,
        prepared: &Prepared,
        outcome: &ExchangeOutcome,
        started: Duration,
    ) -> Option<Change> {
        let now = self.now();
        let took = now.boot.saturating_sub(started);
        self.metrics.exchanged(&lane.name, outcome.label(), took);
        log_outcome(&prepared.grant, outcome, took);
        let grant = &prepared.grant;
        let id = grant.id.as_bytes();
        let unknown_subject = u64::from_be_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]]);
        lane.circuit.observe(&Observation {
            outcome,
            grant: slot.id,
            subject: grant.subject.as_deref().map_or(unknown_subject, subject_hash),
            own_client: grant.client.is_some(),
            candidate: grant.organizations.is_empty(),
            grants: lane.grants.load(Ordering::Relaxed),
            boot: now.boot,
        })
    }

    /// Carries the outcome over into the grant as it is stored now, commits, and publishes (rules 1 and 7 of the
    /// design). While the vault takes nothing the answer is kept here and tried again: the flight goes on, so that
    /// nobody sends the spent token, and those who wait are told.
    async fn store(
        &self,
        slot: &Arc<Slot>,
        prepared: &Prepared,
        outcome: &ExchangeOutcome,
        in_flight: &InFlight,
    ) -> Result<(), KeeperError> {
        loop {
            let error = match self.store_once(slot, prepared, outcome).await {
                Ok(result) => return result,
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
    ) -> Result<Result<(), KeeperError>, KeeperError> {
        let record = slot.record.lock().await;
        let lane = self.lane(slot);
        let now = self.now();
        let mut grant = match self.read(slot) {
            Ok(stored) => stored.value,
            Err(KeeperError::UnknownOrganization) => {
                self.keep_stray(prepared, outcome, "its grant had been removed when the answer came").await?;
                return Ok(Err(KeeperError::UnknownOrganization));
            }
            Err(error) => return Err(error),
        };
        let before: Vec<Fingerprint> = grant.spent.iter().copied().chain([grant.fingerprint]).collect();
        let given = match outcome {
            ExchangeOutcome::Granted(answer) => {
                answer.refresh_token.as_ref().map(|token| self.vault.fingerprint(token))
            }
            _ => None,
        };
        let ended = Ended {
            asked: prepared.asked,
            outcome,
            sent: prepared.sent,
            one_time: prepared.one_time,
            given,
            client_id: prepared.grant.client.as_ref().map_or(lane.config.client_id.as_str(), |client| &client.id),
            provider_answers_others: lane.circuit.answers_others(slot.id, now.boot),
            frozen: lane.circuit.frozen().is_some(),
            epoch: self.vault.epoch(),
            intent: prepared.intent.as_ref(),
            boot_id: self.clock.boot_id(),
            chance: self.chance(),
        };
        let verdict = exchange_ended(&mut grant, &ended, &lane.policy, now);
        grant.last_fetched_at = slot.last_fetched().or(grant.last_fetched_at);
        let mut changes = vec![VaultChange::PutGrant(Box::new(grant.clone()))];
        if prepared.one_time && verdict.close_intent {
            changes.push(VaultChange::DeleteIntent(grant.id));
        }
        if let (Some(why), ExchangeOutcome::Granted(answer)) = (verdict.stray, outcome) {
            tracing::error!(
                organization = first_organization(&grant),
                provider = grant.provider.as_str(),
                reason = why,
                "an answer is kept as a stray and not served"
            );
            changes.push(VaultChange::PutStray(Box::new(Stray {
                grant: grant.id,
                at: now.wall,
                why: why.into(),
                refresh_token: answer.refresh_token.clone(),
                access_token: answer.access_token.clone(),
            })));
        }
        let sequence = self.vault.commit(changes).await.map_err(|error| self.vault_failed(&error))?;
        let intent = prepared.intent.as_ref().filter(|_| !verdict.close_intent);
        self.publish(slot, &grant, sequence, intent, &before);
        drop(record);
        if let Some(notice) = verdict.notice {
            self.tell(&grant, notice);
        }
        Ok(result_of(&grant, outcome, verdict.stray.is_some(), now.wall))
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
            expires_boot: now.boot + lifecycle::remaining(&access, now, self.clock.boot_id()),
            refresh_after: lifecycle::refresh_after(&access, &self.lane(slot).policy, self.chance()),
        };
        self.amend_brief(slot, now, |brief| brief.access = Some(times));
        self.cache.put(slot, Arc::new(self.cacheable(access)), |_| true);
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

    fn vault_pause(&self) -> Duration {
        if self.vault.poisoned().is_some() { POISONED_PAUSE } else { VAULT_PAUSE }
    }

    async fn keep_stray(&self, prepared: &Prepared, outcome: &ExchangeOutcome, why: &str) -> Result<(), KeeperError> {
        let ExchangeOutcome::Granted(answer) = outcome else { return Ok(()) };
        let stray = Stray {
            grant: prepared.grant.id,
            at: self.now().wall,
            why: why.into(),
            refresh_token: answer.refresh_token.clone(),
            access_token: answer.access_token.clone(),
        };
        let changes = vec![VaultChange::PutStray(Box::new(stray)), VaultChange::DeleteIntent(prepared.grant.id)];
        self.vault.commit(changes).await.map(|_| ()).map_err(|error| self.vault_failed(&error))
    }

    /// The vault takes nothing: the slot says so and waits; nothing of that can be stored.
    fn hold_back(&self, slot: &Arc<Slot>, retry_at: Timestamp) {
        let now = self.now();
        self.amend_brief(slot, now, |brief| {
            if matches!(brief.state, State::Active | State::Failing(_)) {
                brief.state = State::Failing(crate::model::FailingReason::VaultUnavailable);
            }
            brief.retry_at = Some(retry_at);
            // A grant that is not due by itself (paused, held, without organizations) does not become so by this.
            brief.due = brief.due.and(brief.retry_at);
        });
    }

    /// Announces a change of a provider's circuit, once, and brings back what waited for it.
    pub(super) fn circuit_changed(&self, provider: u16, change: Option<Change>) {
        let lane = &self.lanes[usize::from(provider)];
        match change {
            None => {}
            Some(Change::Opened(reason)) => {
                lane.froze();
                tracing::error!(
                    event = "provider.failing",
                    provider = lane.name.as_str(),
                    reason,
                    "the provider fails as a whole: its grants' states are frozen and only single probes are sent"
                );
            }
            Some(Change::Closed) => {
                tracing::info!(
                    event = "provider.recovered",
                    provider = lane.name.as_str(),
                    "the provider answers again"
                );
                self.bring_back(provider);
            }
        }
    }

    /// After an outage: grants that wait in their back-off for this provider are due soon, at random moments of a
    /// few seconds; the budget spreads them further.
    fn bring_back(&self, provider: u16) {
        use crate::model::FailingReason::{ClientRefused, ProviderUnavailable};
        const SPREAD: Duration = Duration::from_secs(5);
        let now = self.now();
        let waits = |brief: &Brief| {
            let outage = matches!(brief.state, State::Failing(ProviderUnavailable | ClientRefused));
            outage && !brief.paused && brief.organizations > 0
        };
        for slot in self.index.slots() {
            if slot.provider != provider || !waits(&slot.brief()) {
                continue;
            }
            let due = now.wall + SPREAD.mul_f64(self.chance());
            self.amend_brief(&slot, now, |brief| {
                if waits(brief) {
                    brief.retry_at = None;
                    brief.due = Some(due);
                }
            });
        }
    }
}

fn result_of(grant: &Grant, outcome: &ExchangeOutcome, stray: bool, now: Timestamp) -> Result<(), KeeperError> {
    match outcome {
        ExchangeOutcome::Granted(_) if !stray => Ok(()),
        ExchangeOutcome::Refused { detail } if grant.state != State::Lost => Err(KeeperError::Refused(detail.clone())),
        _ => Err(standing_error(grant, now)),
    }
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

fn lost(grant: &Grant) -> KeeperError {
    KeeperError::Lost { reason: State::Lost.reason().unwrap_or("refused"), since: grant.since }
}

pub(super) fn in_doubt(reason: DoubtReason, grant: &Grant) -> KeeperError {
    KeeperError::InDoubt { reason: State::InDoubt(reason).reason().unwrap_or("no_answer"), since: grant.since }
}

fn first_organization(grant: &Grant) -> &str {
    grant.organizations.first().map_or("", |id| id.as_str())
}

fn log_outcome(grant: &Grant, outcome: &ExchangeOutcome, took: Duration) {
    let organization = first_organization(grant);
    let provider = grant.provider.as_str();
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match outcome {
        ExchangeOutcome::Granted(_) => {
            tracing::info!(event = "token.refreshed", organization, provider, took.ms = ms, "refreshed");
        }
        ExchangeOutcome::RateLimited { retry_after } | ExchangeOutcome::Unavailable { retry_after } => {
            let retry_after = retry_after.map_or(0, |wait| wait.as_secs());
            let reason = outcome.label();
            tracing::warn!(organization, provider, reason, retry_after.s = retry_after, took.ms = ms, "refresh failed");
        }
        ExchangeOutcome::Refused { detail }
        | ExchangeOutcome::ClientRefused { detail }
        | ExchangeOutcome::NotSent { detail }
        | ExchangeOutcome::Unknown { detail, .. } => {
            let reason = outcome.label();
            tracing::warn!(organization, provider, reason, detail, took.ms = ms, "refresh failed");
        }
    }
}
