//! An exchange among several processes: one makes it, and the others get what it stored.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{KeeperError, Shared, hold::Held, lane::InFlight, resolve::under_way, slot::Slot};
use crate::{
    model::Grant,
    vault::{Hold, Stored, VaultError},
};

/// How often whoever waits for another process asks for the claim again, while the news tell nothing of its end.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How often a claim is looked after while the issuer is waited for; it is prolonged when half of it is over.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A place among the exchanges that a provider is asked for at once. Whoever waits for another process leaves it to others meanwhile.
pub(super) struct Seat {
    permits: Arc<Semaphore>,
    /// `None`: it is left, or none is needed.
    taken: Option<OwnedSemaphorePermit>,
    is_needed: bool,
}

impl Seat {
    pub(super) fn new(permits: &Arc<Semaphore>, taken: Option<OwnedSemaphorePermit>) -> Self {
        Self { permits: Arc::clone(permits), is_needed: taken.is_some(), taken }
    }

    fn leave(&mut self) {
        self.taken = None;
    }

    async fn take(&mut self) {
        if self.is_needed && self.taken.is_none() {
            // An error: nothing is exchanged any more, and that is seen elsewhere.
            self.taken = Arc::clone(&self.permits).acquire_owned().await.ok();
        }
    }
}

impl Shared {
    /// Takes the right to exchange a grant, and reads it. `None`: another process has exchanged it meanwhile, and what came of that is known here by now.
    pub(super) async fn hold_to_exchange(
        &self,
        slot: &Arc<Slot>,
        in_flight: &InFlight,
        seat: &mut Seat,
    ) -> Result<Option<(Held, Stored<Grant>)>, KeeperError> {
        if !self.vault.is_shared() {
            let held = self.hold(slot).await?;
            if slot.lock().is_removed() {
                return Err(KeeperError::UnknownOrganization);
            }
            return Ok(Some((held, self.read(slot).await?)));
        }
        Box::pin(self.claim_to_exchange(slot, in_flight, seat)).await
    }

    /// The same where others may be at it.
    async fn claim_to_exchange(
        &self,
        slot: &Arc<Slot>,
        in_flight: &InFlight,
        seat: &mut Seat,
    ) -> Result<Option<(Held, Stored<Grant>)>, KeeperError> {
        let until = self.now().boot + self.patience();
        let mut joining = None;
        loop {
            seat.take().await;
            {
                let record = self.record(slot).await?;
                if self.is_done(slot, in_flight) {
                    // Heard while this waited in its queue.
                    return Ok(None);
                }
                match self.vault.hold(slot.id, Duration::ZERO).await {
                    Ok(claim) => {
                        self.metrics.claimed("won");
                        let held = Held::new(claim, record);
                        // Learns what others have made of it until now.
                        let stored = self.read(slot).await?;
                        return Ok(if self.is_done(slot, in_flight) { None } else { Some((held, stored)) });
                    }
                    Err(VaultError::Held) => self.metrics.claimed("held"),
                    Err(error) => return Err(self.vault_failed(&error)),
                }
            }
            seat.leave();
            // Somebody waits: the news are asked for more often.
            joining.get_or_insert_with(|| self.news.join());
            let _ = tokio::time::timeout(ASK_AGAIN, self.hear_of_the_end(slot, in_flight)).await;
            if slot.lock().is_removed() {
                return Err(KeeperError::UnknownOrganization);
            }
            if self.is_done(slot, in_flight) {
                return Ok(None);
            }
            if self.now().boot >= until || self.stopping.is_cancelled() {
                return Err(KeeperError::VaultUnavailable(VaultError::Held.to_string()));
            }
        }
    }

    /// Waits until the news tell that the exchange is over. Only then, or after a while, the claim is asked for again: whoever asks costs the
    /// database a statement.
    async fn hear_of_the_end(&self, slot: &Slot, in_flight: &InFlight) {
        loop {
            let heard = self.news.heard();
            if self.is_done(slot, in_flight) || slot.lock().is_removed() {
                return;
            }
            heard.next().await;
        }
    }

    /// Whether an exchange has ended since this one was asked for. One for which an operator takes a risk is asked for all the same.
    fn is_done(&self, slot: &Slot, in_flight: &InFlight) -> bool {
        !in_flight.is_at_risk(self.now().boot) && in_flight.is_over(&slot.brief())
    }

    /// Waits for the issuer, and keeps the grant's claim meanwhile.
    pub(super) async fn while_held<T>(&self, slot: &Slot, hold: &Hold, call: impl Future<Output = T>) -> T {
        if hold.good_until().is_none() {
            return call.await;
        }
        let prolonging = async {
            loop {
                tokio::time::sleep(LOOK_AFTER).await;
                // Where that fails the answer is merged into what another has made of the grant.
                drop(self.vault.hold(slot.id, Duration::ZERO).await);
            }
        };
        tokio::select! {
            biased;
            done = call => done,
            never = prolonging => { let never: Infallible = never; match never {} }
        }
    }

    /// Takes over a grant whose exchange another process began and does not end: its token may be spent. Gives whether that is settled.
    pub(super) async fn take_over(&self, slot: &Arc<Slot>) -> Result<bool, KeeperError> {
        let record = self.record(slot).await?;
        if under_way(slot).is_some() || slot.lock().is_removed() {
            return Ok(true);
        }
        let claim = match self.vault.hold(slot.id, Duration::ZERO).await {
            Ok(claim) => claim,
            Err(VaultError::Held) => return Ok(false),
            Err(error) => return Err(self.vault_failed(&error)),
        };
        let held = Held::new(claim, record);
        let mut grant = self.read(slot).await?.value;
        let intent = self.vault.intent(slot.id).await.map_err(|error| self.vault_failed(&error))?;
        if let Some(intent) = &intent {
            tracing::warn!(
                organization = super::exchange::first_organization(&grant),
                provider = grant.provider.as_str(),
                "another replica began an exchange and did not end it"
            );
            self.doubt_the_dead(slot, &held, &mut grant, Some(intent), self.now()).await?;
        }
        Ok(true)
    }
}
