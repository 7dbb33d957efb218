use std::{
    cmp::Ordering,
    collections::BTreeSet,
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::slot::{LATEST_TIMER, Slot, SlotState};
use crate::{clock::Now, model::Timestamp};

/// No sleep is longer, so that a suspended machine or a changed clock is noticed.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Who is due when: in order on the boot-time clock, which no change of wall time moves.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: Mutex<BTreeSet<Timer>>,
    sooner: Notify,
}

/// One slot's turn, in milliseconds of the boot-time clock.
#[derive(Debug)]
struct Timer {
    due: NonZeroU64,
    slot: Arc<Slot>,
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        self.due.cmp(&other.due).then_with(|| self.slot.id.cmp(&other.slot.id))
    }
}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timer {}

impl Timers {
    /// Sets or clears the slot's timer. What `due` makes of the slot's state is in milliseconds of the boot-time
    /// clock; it is asked with the timers locked, so that of two who set a timer the one who sees the later state wins.
    pub(super) fn set(&self, slot: &Arc<Slot>, due: impl FnOnce(&SlotState) -> Option<u64>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, due) = {
            let mut state = slot.lock();
            let due = due(&state).filter(|_| !state.is_removed());
            let due = due.map(|due| NonZeroU64::new(due.min(LATEST_TIMER)).unwrap_or(NonZeroU64::MIN));
            let before = state.timer();
            state.set_timer(due);
            (before, due)
        };
        if before == due {
            return;
        }
        if let Some(before) = before {
            queue.remove(&Timer { due: before, slot: Arc::clone(slot) });
        }
        if let Some(due) = due {
            let first = queue.first().is_none_or(|first| due < first.due);
            queue.insert(Timer { due, slot: Arc::clone(slot) });
            if first {
                self.sooner.notify_one();
            }
        }
    }

    /// Takes up to `most` slots whose time has come.
    pub(super) fn take_due(&self, now: Now, most: usize) -> Vec<Arc<Slot>> {
        let now = boot_millis(now.boot);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        while due.len() < most
            && queue.first().is_some_and(|first| first.due.get() <= now)
            && let Some(Timer { slot, .. }) = queue.pop_first()
        {
            slot.lock().set_timer(None);
            due.push(slot);
        }
        due
    }

    /// Looks again at once: a clock was moved by hand.
    #[cfg(test)]
    pub(super) fn wake(&self) {
        self.sooner.notify_one();
    }

    /// Sleeps until the first is due, one is added that is due sooner, or [`LONGEST_SLEEP`] is over.
    pub(super) async fn sleep(&self, now: Now) {
        let first = self.queue.lock().unwrap_or_else(PoisonError::into_inner).first().map(|first| first.due.get());
        let wait = first.map_or(LONGEST_SLEEP, |due| {
            Duration::from_millis(due.saturating_sub(boot_millis(now.boot))).min(LONGEST_SLEEP)
        });
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait) => (),
            () = self.sooner.notified() => (),
        }
    }
}

/// A moment of the wall clock as one of the boot-time clock, in milliseconds; at once for one that has passed.
pub(super) fn boot_moment(moment: Timestamp, now: Now) -> u64 {
    boot_millis(now.boot + moment.since(now.wall))
}

/// A boot-time moment in whole milliseconds.
pub(super) fn boot_millis(boot: Duration) -> u64 {
    u64::try_from(boot.as_millis()).unwrap_or(u64::MAX)
}
