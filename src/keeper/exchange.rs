//! One exchange: intent, call, and what its outcome says of the provider. `store` does the rest.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    KeeperError, Shared,
    circuit::{Change, Observation},
    hold::Held,
    join::Seat,
    lane::{InFlight, Lane},
    slot::{Brief, Slot, text_hash},
    store::{in_doubt, lost},
};
use crate::{
    clock::Now,
    lifecycle::{self, DoubtfulTry, FROZEN_RETRY, Situation},
    model::{Credential, EventKind, ExchangeOutcome, Fingerprint, Grant, Intent, NoAnswer, OrganizationId, State},
    provider::{Exchange, Limit},
    vault::{Change as VaultChange, Hold, Stored},
};

/// What an exchange may take beyond its own time limit: for discovery and for reading client secrets.
const EXCHANGE_SLACK: Duration = Duration::from_secs(15);

/// Who made an exchange that was asked for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchanged {
    /// This process, or nobody: what it costs of the budget is spent.
    Here,
    /// Another that shares the vault.
    Elsewhere,
}

/// What was decided before the call, and must still hold when its answer is stored.
pub(super) struct Prepared {
    pub(super) grant: Grant,
    /// The commit that wrote it.
    pub(super) sequence: u64,
    pub(super) sent: Fingerprint,
    pub(super) one_time: bool,
    pub(super) intent: Option<Intent>,
    /// When the request left, or a little before.
    pub(super) asked: Now,
    /// When it must have left, on the boot-time clock.
    not_after: Option<Duration>,
    /// Under which its end is committed, too.
    pub(super) hold: Hold,
}

impl Shared {
    /// Exchanges a grant once and ends its flight. Runs as a task of its own, so that a caller who goes away does
    /// not cancel it. Gives who made it.
    pub(super) async fn exchange(self: Arc<Self>, slot: Arc<Slot>, in_flight: InFlight, mut seat: Seat) -> Exchanged {
        let result = self.exchange_once(&slot, &in_flight, &mut seat).await;
        let by = result.as_ref().copied().unwrap_or(Exchanged::Here);
        in_flight.end(result.map(drop));
        by
    }

    async fn exchange_once(
        &self,
        slot: &Arc<Slot>,
        in_flight: &InFlight,
        seat: &mut Seat,
    ) -> Result<Exchanged, KeeperError> {
        let prepared = match self.prepare(slot, in_flight, seat).await {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return Ok(Exchanged::Elsewhere),
            Err(error) => {
                if matches!(error, KeeperError::VaultUnavailable(_)) {
                    self.metrics.exchanged(&self.lane(slot).name, "vault_unavailable", None);
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
            not_after: prepared.not_after,
        });
        let call = self.while_held(slot, &prepared.hold, call);
        // An endpoint keeps its own time limits; should one ever fail to, the flight must not last for ever.
        let outcome = Limit::new(self.exchange_limit()).wait_for(call).await.unwrap_or_else(|| {
            ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: "the exchange did not end in time".to_owned() }
        });
        let change = self.observe(lane, slot, &prepared, &outcome, started);
        if change != Some(Change::Closed) {
            if matches!(outcome, ExchangeOutcome::Granted(_)) && prepared.grant.client.is_none() {
                self.still_well(lane);
            }
            self.circuit_changed(slot.provider, change);
            return self.store(slot, &prepared, &outcome, in_flight).await.map(|()| Exchanged::Here);
        }
        // Recovery looks at every grant, and the answer may hold the only token there is: it is stored first.
        let stored = self.store(slot, &prepared, &outcome, in_flight).await;
        self.circuit_changed(slot.provider, change);
        stored.map(|()| Exchanged::Here)
    }

    /// Reads the grant, makes sure that it may be exchanged, and makes the intent durable before a byte of a
    /// one-time token leaves (rule 2 of the design). `None`: another process has exchanged it meanwhile.
    async fn prepare(
        &self,
        slot: &Arc<Slot>,
        in_flight: &InFlight,
        seat: &mut Seat,
    ) -> Result<Option<Prepared>, KeeperError> {
        let Some((held, stored)) = self.hold_to_exchange(slot, in_flight, seat).await? else { return Ok(None) };
        let Stored { value: mut grant, mut sequence } = stored;
        let now = self.now();
        let one_time = grant.is_one_time();
        let open =
            if one_time { self.vault.intent(grant.id).await.map_err(|error| self.vault_failed(&error))? } else { None };
        if grant.paused {
            return Err(KeeperError::Paused);
        }
        // A refresh token may be rotated by any exchange, and its successor would be lost. A key cannot.
        if let (Credential::RefreshToken(_), Some(reason)) = (&grant.credential, self.vault.poisoned()) {
            return Err(KeeperError::VaultUnavailable(reason));
        }
        sequence = self.doubt_the_dead(slot, &held, &mut grant, open.as_ref(), now).await?.unwrap_or(sequence);
        let at_risk = in_flight.is_at_risk(now.boot);
        if grant.state == State::Lost && !at_risk {
            return Err(lost(&grant));
        }
        if at_risk && grant.spent.contains(&grant.fingerprint) {
            return Err(KeeperError::AlreadySpent);
        }
        let frozen = self.lane(slot).circuit.frozen_for(grant.client.is_some());
        if let Some(reason) = frozen.filter(|_| one_time) {
            // It had its turn in the moment of the freeze; no probe is made with a one-time token.
            let again = now.wall + FROZEN_RETRY;
            self.amend_brief(slot, now, |brief| brief.due = brief.due.and(Some(again)));
            return Err(KeeperError::ProviderUnavailable { reason, retry_after: FROZEN_RETRY });
        }
        let mut not_after = self.may_try_doubtful(slot, &grant, open.as_ref(), at_risk).await?;
        let fingerprint = grant.fingerprint;
        let mut intent = None;
        if one_time {
            let next = self.next_attempt(&grant, open, now);
            let commit = self.vault.commit_held(&[&held.hold], vec![VaultChange::PutIntent(next.clone())]).await;
            commit.map_err(|error| self.vault_failed(&error))?;
            // That may have taken long enough for a grace to be over.
            not_after = self.may_try_doubtful(slot, &grant, Some(&next), at_risk).await?;
            intent = Some(next);
        }
        // Whoever takes the claim over finds the intent open, and sends nothing.
        let not_after = not_after.into_iter().chain(held.hold.good_until()).min();
        Ok(Some(Prepared {
            grant,
            sequence,
            sent: fingerprint,
            one_time,
            intent,
            asked: self.now(),
            not_after,
            hold: held.hold.clone(),
        }))
    }

    /// The intent of the next attempt: with the same token it goes on counting from the first one.
    fn next_attempt(&self, grant: &Grant, open: Option<Intent>, now: Now) -> Intent {
        match open.filter(|open| open.fingerprint == grant.fingerprint) {
            Some(open) => Intent { attempt: open.attempt.saturating_add(1), ..open },
            None => Intent {
                grant: grant.id,
                fingerprint: grant.fingerprint,
                attempt: 1,
                first_at: now.wall,
                first_boot: now.boot,
                boot_id: self.clock.boot_id(),
            },
        }
    }

    /// Whether a grant may be exchanged as far as a doubt about it goes, and when its request must have left; where not,
    /// it is due when the rules say.
    async fn may_try_doubtful(
        &self,
        slot: &Arc<Slot>,
        grant: &Grant,
        intent: Option<&Intent>,
        at_risk: bool,
    ) -> Result<Option<Duration>, KeeperError> {
        let State::InDoubt(reason) = grant.state else { return Ok(None) };
        if at_risk {
            return Ok(None);
        }
        let fleet = self.fleet_now(slot.provider, grant).await;
        let (now, policy, boot_id) = (self.now(), &self.lane(slot).policy, self.clock.boot_id());
        let situation = Situation { grant, intent, policy, fleet, now, boot_id };
        match lifecycle::may_try(situation) {
            DoubtfulTry::Before(moment) => Ok(Some(moment)),
            DoubtfulTry::Harmless => Ok(None),
            // Its turn came too late for the grace, or another grant of its subject has come: due later or never.
            DoubtfulTry::No => {
                let due = lifecycle::due(situation, 0.0);
                self.amend_brief(slot, now, |brief| brief.due = due);
                Err(in_doubt(reason, grant))
            }
        }
    }

    /// The longest that the call of one exchange may take.
    pub(super) fn exchange_limit(&self) -> Duration {
        self.refresh.timeout + EXCHANGE_SLACK
    }

    /// An intent that is open although nothing is under way: the task of that exchange died, or its end could not be
    /// stored. Its token may be spent, so the grant is in doubt as after a death of the whole process. Gives the commit that
    /// says so, where there was one to make.
    pub(super) async fn doubt_the_dead(
        &self,
        slot: &Arc<Slot>,
        held: &Held,
        grant: &mut Grant,
        intent: Option<&Intent>,
        now: Now,
    ) -> Result<Option<u64>, KeeperError> {
        let crashed = intent.and_then(|intent| lifecycle::crashed(grant, intent, now.wall));
        // A shared vault is not looked through at start.
        let outdated = lifecycle::out_of_date(grant, self.vault.epoch(), self.vault.epoch_reason(), now.wall);
        let Some(notice) = outdated.or(crashed) else { return Ok(None) };
        // Boxed, as in `store` what is seldom needed: every exchange is moved into its task, with room for all that it may have to do.
        let events = Box::pin(self.notice_events(grant, notice)).await;
        let changes = vec![VaultChange::PutGrant(Box::new(grant.clone()))];
        let commit = Box::pin(self.outbox.commit_held(&[&held.hold], changes, events)).await;
        let sequence = commit.map_err(|error| self.vault_failed(&error))?;
        self.publish(slot, grant, sequence, intent, &[]);
        self.tell(grant, notice);
        Ok(Some(sequence))
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
        self.metrics.exchanged(&lane.name, outcome.label(), Some(took));
        log_outcome(&prepared.grant, outcome, took);
        let grant = &prepared.grant;
        let id = grant.id.as_bytes();
        let unknown_subject = u64::from_be_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]]);
        lane.circuit.observe(&Observation {
            outcome,
            grant: slot.id,
            subject: grant.subject.as_deref().map_or(unknown_subject, text_hash),
            own_client: grant.client.is_some(),
            doubtful: grant.organizations.is_empty() || matches!(grant.state, State::InDoubt(_) | State::Lost),
            grants: lane.grants.load(Ordering::Relaxed),
            boot: now.boot,
        })
    }

    /// Announces a change of a provider's circuit, once, and brings back what waited for it.
    pub(super) fn circuit_changed(&self, provider: u16, change: Option<Change>) {
        let lane = &self.lanes[usize::from(provider)];
        // Where others are to hear of it, whoever they hear tells.
        let is_told = self.vault.sharing().is_none();
        if !is_told && lane.circuit.standing() != lane.heard.standing() {
            self.circuits_changed.notify_one();
        }
        match change {
            None => {}
            Some(Change::Opened(reason)) => {
                lane.froze();
                if is_told {
                    self.tell_provider(lane, EventKind::ProviderFailing, Some(reason));
                }
                tracing::error!(
                    event = "provider.failing",
                    provider = lane.name.as_str(),
                    reason,
                    "the provider fails as a whole: its grants' states are frozen and only single probes are sent"
                );
            }
            Some(Change::Closed) => {
                if is_told {
                    self.tell_provider(lane, EventKind::ProviderRecovered, None);
                }
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
    pub(super) fn bring_back(&self, provider: u16) {
        use crate::model::FailingReason::{ClientRefused, ProviderUnavailable};
        const SPREAD: Duration = Duration::from_secs(5);
        self.bring_forward(provider, SPREAD);
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

pub(super) fn first_organization(grant: &Grant) -> &str {
    grant.organizations.first().map_or("", |id| id.as_str())
}

/// One line for each exchange. Of an enrolment that is under way, the organization is not the grant's yet: its own
/// lines are the audit log's.
fn log_outcome(grant: &Grant, outcome: &ExchangeOutcome, took: Duration) {
    let organization = grant.organizations.first().map(OrganizationId::as_str);
    let enrolling = grant.organizations.is_empty().then_some(true);
    let provider = grant.provider.as_str();
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let reason = outcome.label();
    match outcome {
        ExchangeOutcome::Granted(_) => {
            tracing::info!(event = "token.refreshed", organization, enrolling, provider, took.ms = ms, "refreshed");
        }
        ExchangeOutcome::RateLimited { retry_after } | ExchangeOutcome::Unavailable { retry_after } => {
            let retry_after = retry_after.map(|wait| wait.as_secs());
            tracing::warn!(
                organization,
                enrolling,
                provider,
                reason,
                retry_after.s = retry_after,
                took.ms = ms,
                "refresh failed"
            );
        }
        ExchangeOutcome::Refused { detail }
        | ExchangeOutcome::ClientRefused { detail }
        | ExchangeOutcome::NotSent { detail }
        | ExchangeOutcome::Unknown { detail, .. } => {
            tracing::warn!(organization, enrolling, provider, reason, detail, took.ms = ms, "refresh failed");
        }
    }
}
