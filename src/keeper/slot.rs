use std::{
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedMutexGuard};

pub(super) use super::brief::{
    Brief, BriefAccess, LATEST_TIMER, NOT_LIVING, Outcome, UNKNOWN_SUBJECT, living_subject, text_hash,
};
use super::brief::{PackedBrief, Rare, Second};
use super::{KeeperError, answer::CachedToken};
use crate::model::{FailingReason, Fingerprint, Grant, GrantId, State, Timestamp, Usage};

/// One grant in memory: what a fetch, the timers and the counts need, and no long-lived secret.
///
/// There may be a million, so that every byte counts: [`Slot::SIZE`] holds it to what the allocator gives anyway, and what
/// few have at a time is in a box.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: GrantId,
    /// Index of its provider among the keeper's.
    pub(super) provider: u16,
    /// In whole seconds; zero for never.
    last_fetched: AtomicU32,
    /// Never held across an await.
    state: Mutex<SlotState>,
}

/// What changes about a slot.
#[derive(Debug)]
pub(super) struct SlotState {
    packed: PackedBrief,
    /// The access token, while the bounded cache keeps it.
    pub(super) token: Option<Arc<CachedToken>>,
    busy: Option<Box<Busy>>,
}

/// What a slot has only while something happens to its grant, and what few have.
#[derive(Debug, Default)]
struct Busy {
    /// The exchange that is queued or under way.
    flight: Option<Flight>,
    /// Its place in the provider's queue, while it waits there.
    queued: Option<Place>,
    record: Option<RecordLock>,
    /// Exchanges that callers forced.
    forced: Forced,
    rare: Rare,
}

/// A place in a queue: the smallest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) urgency: Urgency,
    /// When its access token ends, in milliseconds of the boot-time clock.
    pub(super) lapses: u64,
    /// Among those that lapse at about the same time: 0 but where several processes take them.
    pub(super) turn: u64,
    pub(super) grant: GrantId,
}

/// How soon a grant should have its turn; the budget goes to the first ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// A caller waits for it.
    Awaited,
    /// It was fetched lately.
    Fetched,
    /// Neither.
    Idle,
}

/// An exchange that others may wait for. When many grants are due at once, each that waits for its turn has one.
#[derive(Debug, Clone)]
pub(super) struct Flight(Arc<Told>);

/// The end of a flight that tells: once, and nothing if it is dropped before.
#[derive(Debug)]
pub(super) struct FlightEnd(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    /// What was told; `None` where the exchange's task died without telling.
    end: OnceLock<Option<Result<(), KeeperError>>>,
    waiting: Notify,
}

impl Flight {
    pub(super) fn new() -> (FlightEnd, Self) {
        let told = Arc::new(Told::default());
        (FlightEnd(Arc::clone(&told)), Self(told))
    }

    /// Waits for the end; `None` where the exchange's task died without telling.
    pub(super) async fn ended(self) -> Option<Result<(), KeeperError>> {
        // Hears of what is told from here on.
        let told = self.0.waiting.notified();
        if self.0.end.get().is_none() {
            told.await;
        }
        self.0.end.get().cloned().flatten()
    }
}

impl FlightEnd {
    /// Tells those who wait and those who come; what was told first stays.
    pub(super) fn tell(&self, result: Result<(), KeeperError>) {
        self.0.tell(Some(result));
    }
}

impl Drop for FlightEnd {
    fn drop(&mut self) {
        self.0.tell(None);
    }
}

impl Told {
    fn tell(&self, end: Option<Result<(), KeeperError>>) {
        if self.end.set(end).is_ok() {
            self.waiting.notify_waiters();
        }
    }
}

/// How often callers have forced an exchange of one grant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Forced {
    /// The last one, on the boot-time clock.
    last: Option<Duration>,
    /// How long the next one must wait after it.
    pause: Duration,
}

impl Forced {
    const FIRST: Duration = Duration::from_secs(10);
    const LONGEST: Duration = Duration::from_mins(5);

    /// Takes one forced exchange at `boot`, or says how long to wait: 10 s after the last, growing to 5 min while
    /// it goes on.
    fn take(&mut self, boot: Duration) -> Result<(), Duration> {
        if let Some(last) = self.last {
            let passed = boot.saturating_sub(last);
            if passed < self.pause {
                return Err(self.pause.saturating_sub(passed));
            }
            let calm = self.is_calm(boot);
            self.pause = if calm { Self::FIRST } else { (self.pause * 2).min(Self::LONGEST) };
        } else {
            self.pause = Self::FIRST;
        }
        self.last = Some(boot);
        Ok(())
    }

    /// Whether the last one was so long ago that the next counts as the first.
    fn is_calm(&self, boot: Duration) -> bool {
        self.last.is_some_and(|last| boot.saturating_sub(last) >= self.pause * 3)
    }
}

impl Slot {
    /// With the two counters of its `Arc` it fills 128 bytes, which is what the allocator gives for anything above 112.
    pub(super) const SIZE: usize = 112;

    pub(super) fn new(id: GrantId, provider: u16, brief: Brief, last_fetched: Option<Timestamp>) -> Self {
        const { assert!(size_of::<Self>() <= Self::SIZE) };
        let mut state = SlotState { packed: PackedBrief::default(), token: None, busy: None };
        state.set_brief(&brief);
        Self { id, provider, last_fetched: AtomicU32::new(Second::of(last_fetched).0), state: Mutex::new(state) }
    }

    /// The slot's state; a panic of another holder does not make it unusable, since every change to it is one
    /// assignment.
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn brief(&self) -> Brief {
        self.lock().brief()
    }

    pub(super) fn fetched(&self, now: Timestamp) {
        self.last_fetched.store(Second::of(Some(now)).0, Ordering::Relaxed);
    }

    /// In whole seconds, rounded down.
    pub(super) fn last_fetched(&self) -> Option<Timestamp> {
        Second(self.last_fetched.load(Ordering::Relaxed)).time()
    }

    /// Takes the right to change the stored grant, which one has at a time. An exchange holds it only around its commits,
    /// never while it waits for the issuer.
    pub(super) async fn record(self: &Arc<Self>) -> Record {
        let lock = Arc::clone(&self.lock().busy().record.get_or_insert_default().0);
        Record { held: Some(lock.lock_owned().await), slot: Arc::clone(self) }
    }
}

impl SlotState {
    pub(super) fn brief(&self) -> Brief {
        self.packed.open(self.busy.as_ref().map(|busy| busy.rare).unwrap_or_default())
    }

    pub(super) fn set_brief(&mut self, brief: &Brief) {
        let rare = self.packed.put(brief);
        if rare != Rare::default() || self.busy.is_some() {
            self.busy().rare = rare;
        }
        self.tidy();
    }

    /// Its key in the timers, on the boot-time clock in milliseconds.
    pub(super) fn timer(&self) -> Option<NonZeroU64> {
        self.packed.timer()
    }

    /// Gives it another key in the timers, of [`LATEST_TIMER`] at most.
    pub(super) fn set_timer(&mut self, timer: Option<NonZeroU64>) {
        self.packed.set_timer(timer);
    }

    /// The grant is gone from the vault: nothing may be started with this slot.
    pub(super) const fn is_removed(&self) -> bool {
        self.packed.is_removed()
    }

    pub(super) const fn remove(&mut self) {
        self.packed.remove();
    }

    /// Notes a use of the token, so that the cache spares it once.
    pub(super) const fn use_token(&mut self) {
        self.packed.set_used(true);
    }

    /// Whether the token was used since this was asked before.
    pub(super) const fn take_used(&mut self) -> bool {
        let used = self.packed.is_used();
        self.packed.set_used(false);
        used
    }

    /// The exchange that is queued or under way.
    pub(super) fn flight(&self) -> Option<&Flight> {
        self.busy.as_ref()?.flight.as_ref()
    }

    /// Its place in the provider's queue, while it waits there.
    pub(super) fn queued(&self) -> Option<Place> {
        self.busy.as_ref()?.queued
    }

    /// An exchange of the grant waits for its turn at `place`.
    pub(super) fn queue(&mut self, flight: Flight, place: Place) {
        let busy = self.busy();
        busy.flight = Some(flight);
        busy.queued = Some(place);
    }

    /// What waits has another place, or had its turn.
    pub(super) fn move_to(&mut self, place: Option<Place>) {
        if let Some(busy) = &mut self.busy {
            busy.queued = place;
        }
    }

    /// The exchange has ended.
    pub(super) fn land(&mut self) {
        if let Some(busy) = &mut self.busy {
            busy.flight = None;
        }
        self.tidy();
    }

    /// Takes one forced exchange at `boot`, or says how long to wait. Gives how it was before.
    pub(super) fn force(&mut self, boot: Duration) -> Result<Forced, Duration> {
        let forced = &mut self.busy().forced;
        let before = *forced;
        forced.take(boot).map(|()| before)
    }

    /// The exchange that was forced at `boot` was not made: all is as it was `before`, unless another was forced since.
    pub(super) fn unforce(&mut self, boot: Duration, before: Forced) {
        if let Some(busy) = &mut self.busy
            && busy.forced.last == Some(boot)
        {
            busy.forced = before;
            self.tidy();
        }
    }

    /// Forgets forced exchanges that were so long ago that they make no difference.
    pub(super) fn calm_down(&mut self, boot: Duration) {
        if let Some(busy) = &mut self.busy
            && busy.forced.is_calm(boot)
        {
            busy.forced = Forced::default();
            self.tidy();
        }
    }

    /// Whether nothing is lost where the grant is forgotten here, but that it has to be read once more: nothing happens to it, no
    /// caller forced an exchange of it lately, and the vault took all that became of it.
    pub(super) fn has_nothing_to_remember(&mut self, boot: Duration) -> bool {
        self.calm_down(boot);
        let is_stored = self.brief().state != State::Failing(FailingReason::VaultUnavailable);
        // What is rare is in its record, too; when it was refused first, by one clock only.
        is_stored && self.busy.as_ref().is_none_or(|busy| busy.is_at_rest())
    }

    fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Gives the room back that nothing needs any more.
    fn tidy(&mut self) {
        let Some(busy) = &mut self.busy else { return };
        busy.record.take_if(|record| record.is_free());
        if busy.is_idle() {
            self.busy = None;
        }
    }
}

impl Busy {
    fn is_idle(&self) -> bool {
        self.is_at_rest() && self.rare == Rare::default()
    }

    /// Nothing goes on, and no caller has forced anything.
    fn is_at_rest(&self) -> bool {
        let nothing_goes_on = self.flight.is_none() && self.queued.is_none() && self.record.is_none();
        nothing_goes_on && self.forced.last.is_none()
    }
}

/// Who may change a stored grant; made when somebody wants to, and gone after the last who did.
#[derive(Debug, Default)]
struct RecordLock(Arc<tokio::sync::Mutex<()>>);

impl RecordLock {
    /// Nobody holds it and nobody waits: others come by it only with the slot's state locked, as whoever asks this has.
    fn is_free(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// The right to change a stored grant; ends when this is dropped.
#[derive(Debug)]
pub(super) struct Record {
    /// `None` only while it is dropped.
    held: Option<OwnedMutexGuard<()>>,
    slot: Arc<Slot>,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.held = None;
        self.slot.lock().tidy();
    }
}

/// The first eight bytes of a fingerprint, as a key; a match is verified against the stored grant.
pub(super) fn fingerprint_key(fingerprint: Fingerprint) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&fingerprint.0[..8]);
    u64::from_be_bytes(first)
}

/// Whether a consent is one-time as far as anybody knows.
pub(super) fn shown_usage(grant: &Grant) -> Option<Usage> {
    grant.consent.as_ref().map(|consent| consent.shown.unwrap_or(consent.expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Now,
        keeper::{brief::FirstRefusal, tests::new_slot},
    };

    const fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn callers_that_keep_forcing_wait_ever_longer() {
        let mut forced = Forced::default();
        assert_eq!(forced.take(seconds(100)), Ok(()));
        assert_eq!(forced.take(seconds(104)), Err(seconds(6)));
        assert_eq!(forced.take(seconds(110)), Ok(()));
        assert_eq!(forced.take(seconds(120)), Err(seconds(10)));
        assert_eq!(forced.take(seconds(130)), Ok(()));
        assert_eq!(forced.take(seconds(131)), Err(seconds(39)));
        assert_eq!(forced.take(seconds(1000)), Ok(()), "calm again");
        assert_eq!(forced.take(seconds(1010)), Ok(()));
    }

    #[test]
    fn a_forced_exchange_that_the_budget_does_not_allow_does_not_count() {
        let slot = slot();
        let before = slot.lock().force(seconds(100)).expect("the first");
        slot.lock().unforce(seconds(100), before);
        assert!(slot.lock().busy.is_none());
        let before = slot.lock().force(seconds(101)).expect("nothing was forced");
        slot.lock().force(seconds(111)).expect("ten seconds later");
        slot.lock().unforce(seconds(101), before);
        assert_eq!(slot.lock().force(seconds(112)), Err(seconds(19)), "another was forced since");
    }

    fn slot() -> Arc<Slot> {
        new_slot([1; 16])
    }

    #[test]
    fn what_happens_to_a_grant_takes_room_only_as_long_as_it_happens() {
        let slot = slot();
        let is_small = || slot.lock().busy.is_none();
        assert!(is_small());
        let (_end, flight) = Flight::new();
        slot.lock().queue(flight, Place { urgency: Urgency::Idle, lapses: 1, turn: 0, grant: slot.id });
        assert!(slot.lock().queued().is_some() && slot.lock().flight().is_some());
        slot.lock().move_to(None);
        assert!(slot.lock().queued().is_none() && slot.lock().flight().is_some());
        slot.lock().land();
        assert!(is_small());

        assert_eq!(slot.lock().force(seconds(100)), Ok(Forced::default()));
        slot.lock().calm_down(seconds(129));
        assert_eq!(slot.lock().force(seconds(109)), Err(seconds(1)), "it is remembered while it makes a difference");
        slot.lock().calm_down(seconds(130));
        assert!(is_small());

        let at = Timestamp::from_millis(5);
        let refused = FirstRefusal::new(at, Now { wall: at, boot: seconds(1) });
        let brief = Brief { first_refusal: Some(refused), ..slot.brief() };
        slot.lock().set_brief(&brief);
        assert_eq!(slot.brief().first_refusal, Some(refused));
        slot.lock().set_brief(&Brief { first_refusal: None, ..brief });
        assert!(is_small());
    }

    #[tokio::test]
    async fn one_at_a_time_may_change_a_record_and_who_waits_comes_next() {
        let slot = slot();
        let held = slot.record().await;
        let mut waiting = Box::pin(slot.record());
        assert!(is_pending(&mut waiting).await);
        let mut gives_up = Box::pin(slot.record());
        assert!(is_pending(&mut gives_up).await);
        drop(gives_up);
        drop(held);
        let next = waiting.await;
        assert!(is_pending(&mut Box::pin(slot.record())).await, "it is the same lock that whoever waited holds now");
        drop(next);
        drop(slot.record().await);
        assert!(slot.lock().busy.is_none());
    }

    #[tokio::test]
    async fn whoever_waits_for_a_flight_is_told_what_was_told_first_or_that_nobody_will() {
        let (end, flight) = Flight::new();
        let mut waiting = Box::pin(flight.clone().ended());
        assert!(is_pending(&mut waiting).await);
        end.tell(Err(KeeperError::Starting));
        end.tell(Ok(()));
        assert!(matches!(waiting.await, Some(Err(KeeperError::Starting))));
        drop(end);
        assert!(matches!(flight.ended().await, Some(Err(KeeperError::Starting))), "also who comes later");

        let (end, flight) = Flight::new();
        let mut waiting = Box::pin(flight.clone().ended());
        assert!(is_pending(&mut waiting).await);
        drop(end);
        assert!(waiting.await.is_none() && flight.ended().await.is_none());
    }

    /// Whether it is not done when it is asked once.
    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = std::future::ready(()) => true,
        }
    }

    #[test]
    fn who_is_awaited_goes_first_then_who_was_fetched_then_who_lapses_sooner() {
        let place =
            |urgency, lapses, grant| Place { urgency, lapses, turn: 0, grant: GrantId::from_bytes([grant; 16]) };
        let in_order = [
            place(Urgency::Awaited, 9, 9),
            place(Urgency::Fetched, 8, 8),
            place(Urgency::Idle, 1, 7),
            place(Urgency::Idle, 2, 1),
        ];
        assert!(in_order.is_sorted());
    }
}
