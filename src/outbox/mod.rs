//! The outbox: what happened, until everybody has been told, and for a while after that.
//!
//! An event is written in the commit that makes it true ([`Outbox::commit`]), and can be seen only after that: by whoever
//! follows the stream, and by webhooks. Should the process die in between, the next one finds the row and tells it then. So
//! everybody is told at least once, and knows a repetition by the event's id.
//!
//! Rows are numbered in the order in which they may be seen. A commit that takes longer than a later one keeps that one's
//! events waiting, since whoever resumes after an event has seen every event with a lesser number.
//!
//! What is deliberately absent: nothing here sends anything, or decides when to try again.

mod follow;
mod rows;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use follow::{FellBehind, Follower};
use tokio::sync::{Notify, broadcast};

use self::rows::Rows;
use crate::{
    clock::SharedClock,
    metrics::Metrics,
    model::{Event, EventId, EventKind, OutboxRow, ReceiverId, Timestamp},
    task,
    vault::{Change, Hold, Vault, VaultError},
};

/// How many events that were told to everybody are kept for those who come back.
pub const MAX_TOLD: usize = 10_000;
/// And for how long; the newest, and the newest digest, stay in any case.
pub const TOLD_KEPT: Duration = Duration::from_hours(7 * 24);
/// How many events may wait for their deliveries, some 50 MB of memory: the oldest are given up beyond that.
pub const MAX_OPEN: usize = 50_000;
/// How far whoever follows may fall behind before it is cut off.
const MAX_BEHIND: usize = 1024;
/// The longest reason of an event, in bytes.
const MAX_REASON_BYTES: usize = 300;
/// How many locks keep two writings of one row apart.
const WRITING: usize = 16;
/// How many rows one pass of [`Outbox::prune`] forgets in one commit.
const PRUNED_AT_ONCE: usize = 500;

/// Somebody who is told of events besides the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// The same across restarts.
    pub id: ReceiverId,
    /// For the log; holds no secret.
    pub name: String,
    /// Kinds of events, or their beginnings with a `*`.
    pub events: Vec<String>,
}

impl Receiver {
    /// Whether it wants to be told of such events.
    fn wants(&self, kind: EventKind) -> bool {
        let word = kind.word();
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => word.starts_with(beginning),
            None => word == pattern,
        };
        !kind.is_live_only() && self.events.iter().any(fits)
    }
}

/// Which deliveries are meant, where several workers share the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those that all workers know of, of whom one delivers, and this worker's own.
    Everybodys,
    /// Those that this worker alone knows of: [alarms](Outbox::alarm).
    Own,
}

/// A delivery that is to be made now.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What happened.
    pub event: Arc<Event>,
    /// Who is to be told.
    pub receiver: ReceiverId,
    /// How often it was tried before.
    pub attempts: u32,
    /// Since when it is to be made.
    pub first_at: Timestamp,
    /// Only this worker knows of it.
    pub is_own: bool,
}

/// The outbox of one vault. Cheap to clone; it outlives keepers, and there is one for a vault.
#[derive(Clone)]
pub struct Outbox(Arc<Inner>);

struct Inner {
    vault: Vault,
    clock: SharedClock,
    metrics: Metrics,
    rows: Mutex<Rows>,
    /// Deliveries have come or gone.
    changed: Notify,
    told: broadcast::Sender<Arc<Event>>,
    live: broadcast::Sender<Arc<Event>>,
    /// Held while a row is written anew, by its number.
    writing: [tokio::sync::Mutex<()>; WRITING],
    vault_fails: AtomicBool,
    given_up: AtomicU64,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    /// Reads what is in the vault's outbox; to be asked for once a vault. May block. A row that cannot be read is left out, and said.
    pub async fn open(vault: &Vault, clock: SharedClock, metrics: Metrics) -> Self {
        let mut stored = Vec::new();
        let read = vault
            .for_each_row(&mut |row| {
                stored.push(row.value);
                Ok(())
            })
            .await;
        if let Err(error) = read {
            tracing::error!(%error, "not every event that is still to be told can be read");
        }
        let rows = Mutex::new(Rows::of(stored));
        let (told, live) = (broadcast::Sender::new(MAX_BEHIND), broadcast::Sender::new(MAX_BEHIND));
        let outbox = Self(Arc::new(Inner {
            vault: vault.clone(),
            clock,
            metrics,
            rows,
            changed: Notify::new(),
            told,
            live,
            writing: Default::default(),
            vault_fails: AtomicBool::new(false),
            given_up: AtomicU64::new(0),
        }));
        outbox.count(&outbox.rows());
        outbox
    }

    /// Who is told from now on, of events that come. Deliveries that are open to others are forgotten by this process; should
    /// their receiver be configured when the next one starts, they are made after all.
    pub fn set_receivers(&self, receivers: Vec<Receiver>) {
        let forgotten = {
            let mut rows = self.rows();
            let forgotten = rows.set_receivers(receivers);
            self.count(&rows);
            forgotten
        };
        if forgotten > 0 {
            tracing::warn!(
                deliveries = forgotten,
                "events are not delivered to receivers that are not configured any more"
            );
        }
        self.0.changed.notify_waiters();
    }

    /// The id of what happened: a keyed hash of its kind and of what tells it from every other of that kind.
    pub fn id(&self, kind: EventKind, parts: &[&[u8]]) -> EventId {
        let all: Vec<&[u8]> = std::iter::once(kind.word().as_bytes()).chain(parts.iter().copied()).collect();
        self.0.vault.event_id(&all)
    }

    /// Commits `changes` and what is to be told of them, all of it or nothing, and tells it then. Gives the commit's sequence
    /// number. Of an event whose id is there already nothing is told again.
    ///
    /// With events, the commit goes on and is told also where this future is dropped. It has to be called within a Tokio
    /// runtime.
    pub async fn commit(&self, changes: Vec<Change>, events: Vec<Event>) -> Result<u64, VaultError> {
        self.commit_held(&[], changes, events).await
    }

    /// As [`commit`](Self::commit), for grants that are held.
    pub async fn commit_held(
        &self,
        holds: &[&Hold],
        mut changes: Vec<Change>,
        events: Vec<Event>,
    ) -> Result<u64, VaultError> {
        if events.is_empty() {
            return self.0.vault.commit_held(holds, changes).await;
        }
        let (telling, rows) = self.prepare(events);
        changes.extend(rows);
        let vault = self.0.vault.clone();
        let holds: Vec<Hold> = holds.iter().copied().cloned().collect();
        let committing = task::spawn(async move {
            let committed = vault.commit_held(&holds.iter().collect::<Vec<_>>(), changes).await;
            if committed.is_ok() {
                telling.written();
            }
            committed
        });
        committing.await.unwrap_or(Err(VaultError::Closed))
    }

    /// Commits events that belong to no other change: a digest, a provider's failure.
    pub async fn post(&self, events: Vec<Event>) -> Result<(), VaultError> {
        self.commit(Vec::new(), events).await.map(drop)
    }

    /// Tells what concerns the vault itself, or what it does not take: from memory alone, and until the process ends.
    pub fn alarm(&self, event: Event) {
        let mut rows = self.rows();
        let number = rows.reserve(vec![cut(event)], self.0.clock.now().wall, false).number;
        self.settle(&mut rows, number, true);
    }

    /// The vault takes no more writes: an alarm, once.
    pub fn vault_failing(&self, reason: &str) {
        if self.0.vault_fails.swap(true, Ordering::Relaxed) {
            return;
        }
        let at = self.0.clock.now().wall;
        let id = self.id(EventKind::VaultFailing, &[&at.as_millis().to_le_bytes()]);
        self.alarm(Event { reason: Some(reason.to_owned().into()), ..Event::new(id, at, EventKind::VaultFailing) });
    }

    /// Tells those who follow in this moment, if anybody does; nothing is kept of it.
    pub async fn live<F: Future<Output = Vec<Event>>>(&self, make: impl FnOnce() -> F) {
        if self.0.live.receiver_count() > 0 {
            for event in make().await {
                let _nobody_left = self.0.live.send(Arc::new(event));
            }
        }
    }

    /// Every event that is kept and was told after the one with that id, in the order in which they were told: all of them
    /// where that one is not known, or not named.
    pub fn after(&self, id: Option<&EventId>) -> Vec<Arc<Event>> {
        self.rows().after(id)
    }

    /// The id of the newest event that everybody may resume from.
    pub fn newest(&self) -> Option<EventId> {
        self.rows().newest()
    }

    /// The newest kept event of a kind.
    pub fn last(&self, kind: EventKind) -> Option<Arc<Event>> {
        self.rows().last(kind)
    }

    /// Follows events from now on; with `after`, from what came after that one, or from the first that is kept where it is
    /// not known.
    pub fn follow(&self, after: Option<&EventId>) -> Follower {
        // Under the lock, so that nothing is told between what is kept and what comes.
        let rows = self.rows();
        let past = if after.is_some() { rows.after(after) } else { Vec::new() };
        Follower::new(past, self.0.told.subscribe(), self.0.live.subscribe())
    }

    /// Deliveries to make now, the longest due first, at most `max`. Each is handed out once: until it is answered, or for
    /// `rows::LEASE` where it never is.
    pub fn due(&self, now: Timestamp, max: usize, whose: Whose) -> Vec<Delivery> {
        self.rows().due(now, max, whose)
    }

    /// When the next delivery is to be made.
    pub fn next_due(&self, whose: Whose) -> Option<Timestamp> {
        self.rows().next_due(whose)
    }

    /// Whether that delivery is still to be made.
    pub fn is_open(&self, event: &EventId, receiver: ReceiverId) -> bool {
        self.rows().is_open(event, receiver)
    }

    /// Takes in what other workers that share the vault have written, in the order in which it is heard: their events may be seen from
    /// now on, and what they have delivered is delivered. To hear of something twice, or of what this worker wrote itself, changes
    /// nothing.
    pub fn heard(&self, heard: Vec<OutboxRow>) {
        let now = self.0.clock.now().wall;
        let mut rows = self.rows();
        for row in heard {
            if let Some(number) = rows.heard(row, now) {
                self.settle(&mut rows, Some(number), true);
            }
        }
        self.count(&rows);
        drop(rows);
        self.0.changed.notify_waiters();
    }

    /// Told when deliveries have come, or when they are due may have changed. Only who waits already is told: make the future, enable
    /// it, then look.
    pub fn changed(&self) -> &Notify {
        &self.0.changed
    }

    /// A receiver has taken an event.
    pub async fn delivered(&self, event: &EventId, receiver: ReceiverId) {
        self.rewrite(event, |rows| rows.close(event, receiver)).await;
    }

    /// A delivery was tried in vain, and is to be tried again.
    pub async fn put_off(&self, event: &EventId, receiver: ReceiverId, until: Timestamp) {
        self.rewrite(event, |rows| rows.put_off(event, receiver, until)).await;
        self.0.changed.notify_waiters();
    }

    /// A delivery is not tried any more.
    pub async fn give_up(&self, event: &EventId, receiver: ReceiverId) {
        self.count_given_up(1);
        self.rewrite(event, |rows| rows.close(event, receiver)).await;
    }

    /// How many deliveries are still to be made.
    pub fn pending(&self) -> u64 {
        self.rows().pending()
    }

    /// How many deliveries were given up since this process began.
    pub fn given_up(&self) -> u64 {
        self.0.given_up.load(Ordering::Relaxed)
    }

    fn count_given_up(&self, deliveries: u64) {
        self.0.given_up.fetch_add(deliveries, Ordering::Relaxed);
        self.0.metrics.webhooks_given_up(deliveries);
    }

    /// Another worker that shares the vault has forgotten an event, in the vault, too.
    pub fn forgotten(&self, event: &EventId) {
        let mut rows = self.rows();
        rows.forget(event);
        self.count(&rows);
    }

    /// Forgets what is older than [`TOLD_KEPT`] and was told to everybody. Of several workers that share the vault one does it for all.
    pub async fn prune(&self) {
        loop {
            let now = self.0.clock.now().wall;
            let old = self.rows().prune(now, PRUNED_AT_ONCE);
            let last = old.len() < PRUNED_AT_ONCE;
            let changes: Vec<Change> = old.into_iter().map(Change::DeleteRow).collect();
            if changes.is_empty() || self.0.vault.commit(changes).await.is_err() || last {
                return;
            }
        }
    }

    /// Changes a row in memory, then in the vault. Where the vault does not take it, the next process makes the delivery once
    /// more: its receiver knows the event by its id.
    async fn rewrite(&self, event: &EventId, change: impl FnOnce(&mut Rows)) {
        let Some(number) = self.rows().number(event) else { return };
        let place = usize::try_from(number).unwrap_or(0) % WRITING;
        let _writing = self.0.writing[place].lock().await;
        let row = {
            let mut rows = self.rows();
            change(&mut rows);
            self.count(&rows);
            rows.stored(number)
        };
        if let Some(row) = row
            && let Err(error) = self.0.vault.commit(vec![Change::PutRow(row)]).await
        {
            tracing::warn!(%error, event.id = %event, "the end of a delivery could not be stored; it may be made again after a restart");
        }
    }

    /// Gives events their numbers, and what has to be committed of them; they are visible once [`Telling::written`] is called.
    fn prepare(&self, events: Vec<Event>) -> (Telling, Vec<Change>) {
        let now = self.0.clock.now().wall;
        let mut rows = self.rows();
        let reserved = rows.reserve(events.into_iter().map(cut).collect(), now, true);
        if reserved.given_up > 0 {
            self.count_given_up(reserved.given_up);
            tracing::error!(
                deliveries = reserved.given_up,
                "too many events wait for their deliveries; the oldest are given up"
            );
        }
        self.count(&rows);
        let mut changes: Vec<Change> = reserved.rows.into_iter().map(Change::PutRow).collect();
        changes.extend(reserved.forgotten.into_iter().map(Change::DeleteRow));
        (Telling { outbox: self.clone(), number: reserved.number, settled: false }, changes)
    }

    /// What was reserved under that number is written, or never will be; tells what may be seen now. Called with the lock
    /// held, so that what is told has the order of the numbers.
    fn settle(&self, rows: &mut Rows, number: Option<u64>, written: bool) {
        let Some(number) = number else { return };
        let told = rows.settle(number, written);
        self.count(rows);
        if told.is_empty() {
            return;
        }
        for event in told {
            let _nobody_follows = self.0.told.send(event);
        }
        self.0.changed.notify_waiters();
    }

    fn count(&self, rows: &Rows) {
        self.0.metrics.set_webhook_pending(rows.pending());
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events that have their numbers and wait for their commit. Dropped without that, they never happened, and what waits
/// behind them goes on.
struct Telling {
    outbox: Outbox,
    number: Option<u64>,
    settled: bool,
}

impl Telling {
    /// The commit is durable.
    fn written(mut self) {
        self.settle(true);
    }

    fn settle(&mut self, written: bool) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.outbox.settle(&mut self.outbox.rows(), self.number, written);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.settle(false);
    }
}

/// A reason comes from elsewhere and may be long.
fn cut(mut event: Event) -> Event {
    if let Some(reason) = event.reason.as_mut().filter(|reason| reason.len() > MAX_REASON_BYTES) {
        let end = reason.floor_char_boundary(MAX_REASON_BYTES);
        *reason = reason[..end].to_owned().into();
    }
    event
}
