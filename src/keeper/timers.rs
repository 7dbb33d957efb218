use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::slot::{Slot, SlotState};
use crate::{
    clock::Now,
    model::{GrantId, Timestamp},
};

/// No sleep is longer, so that a suspended machine or a changed clock is noticed.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Who is due when: an ordered map on the boot-time clock, which no change of wall time moves.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: Mutex<BTreeMap<(u64, GrantId), Arc<Slot>>>,
    sooner: Notify,
}

impl Timers {
    /// Sets or clears the slot's timer. What `due` makes of the slot's state is in milliseconds of the boot-time
    /// clock; it is asked with the timers locked, so that of two who set a timer the one who sees the later state wins.
    pub(super) fn set(&self, slot: &Arc<Slot>, due: impl FnOnce(&SlotState) -> Option<u64>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, due) = {
            let mut state = slot.lock();
            let due = due(&state).filter(|_| !state.removed);
            (std::mem::replace(&mut state.timer, due), due)
        };
        if before == due {
            return;
        }
        if let Some(before) = before {
            queue.remove(&(before, slot.id));
        }
        if let Some(due) = due {
            let first = queue.keys().next().is_none_or(|(first, _)| due < *first);
            queue.insert((due, slot.id), Arc::clone(slot));
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
            && let Some(first) = queue.first_entry()
            && first.key().0 <= now
        {
            let slot = first.remove();
            slot.lock().timer = None;
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
        let first = self.queue.lock().unwrap_or_else(PoisonError::into_inner).keys().next().map(|(due, _)| *due);
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
