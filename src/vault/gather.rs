//! Commits that are about to come, so that they share one sync.
//!
//! A sync costs the same for one commit and for sixty. So whoever has an exchange under way says so, and the writer, before it
//! syncs a group, stands back until half of those who will commit have done so, or for a moment that nobody notices beside
//! an exchange over a network. A commit that nobody else is about to follow does not wait at all.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering, fence},
    },
    thread::{self, Thread},
    time::Duration,
};

use tokio::sync::Semaphore;

/// How many commits may be under way or wait; more wait for a place.
pub(super) const MAX_WAITING: usize = 4096;
/// The longest that a commit waits for others, of whom each waits for its issuer for tens of milliseconds.
const LONGEST: Duration = Duration::from_millis(1);
/// So many share a sync well enough: each further one would save less than a fiftieth of it.
const ENOUGH: usize = 32;

/// Who is about to commit, and the writer while it waits for some of them.
#[derive(Debug)]
pub(super) struct Gathering {
    /// A place for each commit that is under way or waits.
    pub(super) places: Arc<Semaphore>,
    /// How many will commit before long, or have and wait for it.
    announced: AtomicUsize,
    /// With how many commits the writer goes on; 0 while it does not wait.
    wanted: AtomicUsize,
    /// The writer's thread. A writer that has none waits for nobody.
    writer: OnceLock<Thread>,
    /// The longest that a commit waits.
    longest: Duration,
}

impl Default for Gathering {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_WAITING)),
            announced: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            writer: OnceLock::new(),
            longest: LONGEST,
        }
    }
}

impl Gathering {
    /// This thread is the writer.
    pub(super) fn begin(&self) {
        let _ = self.writer.set(thread::current());
    }

    /// One more will commit, until [`done`](Self::done).
    pub(super) fn announce(&self) {
        self.announced.fetch_add(1, Ordering::Relaxed);
    }

    /// One of those who were announced has committed, or never will.
    pub(super) fn done(&self) {
        self.announced.fetch_sub(1, Ordering::Relaxed);
    }

    /// A commit was put into the queue. Lets the writer go on where enough have come.
    pub(super) fn came(&self) {
        // Either this sees that the writer waits, or the writer sees that this has come.
        fence(Ordering::SeqCst);
        let wanted = self.wanted.load(Ordering::Relaxed);
        if wanted > 0
            && self.waiting() >= wanted
            // Of several that see this at once, one wakes it.
            && self.wanted.swap(0, Ordering::Relaxed) > 0
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// With how many commits a sync is worth it now; `None` where it is already, or nobody else is about to commit.
    fn worth_waiting_for(&self) -> Option<usize> {
        // Half of them: the others wait for their issuers, and some of those for long.
        let wanted = self.announced.load(Ordering::Relaxed).div_ceil(2).min(ENOUGH);
        (wanted > self.waiting()).then_some(wanted)
    }

    /// The writer has taken every commit that is there. Lets others go on until enough of them have come, or [`LONGEST`] is over; a
    /// wake-up that is late, and ends the next wait at once, costs a smaller group.
    pub(super) fn stand_back(&self) {
        if let Some(wanted) = self.worth_waiting_for().filter(|_| self.writer.get().is_some()) {
            self.wanted.store(wanted, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.waiting() < wanted {
                thread::park_timeout(self.longest);
            }
            self.wanted.store(0, Ordering::Relaxed);
        } else {
            // Where cores are scarce, whoever makes commits was put aside when the first of them woke this thread: they go on for
            // once. Where a core is free, this takes no time.
            thread::yield_now();
        }
    }

    fn waiting(&self) -> usize {
        MAX_WAITING.saturating_sub(self.places.available_permits())
    }
}

#[cfg(test)]
impl Gathering {
    /// One whose writer waits until enough have come, however long that takes.
    pub(super) fn patient() -> Self {
        Self { longest: Duration::from_hours(1), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(announced: usize, waiting: usize) -> Option<usize> {
        let gathering = Gathering::default();
        (0..announced).for_each(|_| gathering.announce());
        let _places = Arc::clone(&gathering.places).try_acquire_many_owned(u32::try_from(waiting).unwrap()).unwrap();
        gathering.worth_waiting_for()
    }

    #[test]
    fn a_commit_waits_for_half_of_those_that_are_about_to_come_and_alone_for_nobody() {
        assert_eq!(with(0, 1), None);
        assert_eq!(with(1, 1), None);
        assert_eq!(with(2, 1), None);
        assert_eq!(with(3, 1), Some(2));
        assert_eq!(with(40, 19), Some(20));
        assert_eq!(with(40, 20), None);
        assert_eq!(with(64, 31), Some(32));
        assert_eq!(with(4000, 32), None, "enough is enough");
    }

    #[test]
    fn whoever_is_done_is_not_waited_for() {
        let gathering = Gathering::default();
        (0..9).for_each(|_| gathering.announce());
        (0..8).for_each(|_| gathering.done());
        let _place = gathering.places.try_acquire().unwrap();
        assert_eq!(gathering.worth_waiting_for(), None);
    }

    #[test]
    fn the_writer_goes_on_once_enough_have_come() {
        let gathering = Arc::new(Gathering::patient());
        (0..6).for_each(|_| gathering.announce());
        let come = || {
            gathering.places.try_acquire().unwrap().forget();
            gathering.came();
        };
        come();
        let writer = {
            let gathering = Arc::clone(&gathering);
            thread::spawn(move || {
                gathering.begin();
                gathering.stand_back();
            })
        };
        while gathering.wanted.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        come();
        assert_eq!(gathering.wanted.load(Ordering::SeqCst), 3, "it waits for one more");
        come();
        writer.join().unwrap();
    }
}
