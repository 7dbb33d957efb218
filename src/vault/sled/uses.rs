//! What was used of the engine's pages, so that it lets go of them.
//!
//! sled notes the use of a page in one of 256 queues, by the page's number, each of 64 places. Only when such a queue is full does it look
//! whether its cache is too large. Pages that are used once, as in a scan, would stay until there are 16,384 of them: 250 MB, whatever
//! the size of the cache. So whatever is used is used again a few times at once ([`AGAIN`]), which fills the queues sooner: up to 60 MB stay
//! while much goes on. When it has become quiet, or half a minute later, the latest are used so often that every queue in which they wait is full: then
//! there is left what the cache has room for.

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use ::sled::Db;

use super::{super::name::Name, caught};

/// How often a record is used again after it was used, and in a scan, where a page is used for each of its records.
pub(super) const AGAIN: usize = 3;
pub(super) const AGAIN_IN_SCAN: usize = 1;
/// Of a scan every so many records are noted: few pages have less.
pub(super) const NOTED_IN_SCAN: usize = 4;
/// How many names are remembered: four for each queue, so that nearly every queue in which anything waits is among theirs.
const MOST: usize = 1024;
/// The places of a queue: so often each is used, so that none of those before it waits any more.
const PLACES: usize = 64;
/// How long nothing must have been used, and how many times that is waited for at most.
const QUIET: Duration = Duration::from_secs(5);
const MOST_WAITS: u32 = 6;
/// The allocator keeps for a second what was freed, and then gives it back to the system when it is next asked for something large. So it is
/// asked: so long after pages were let go of, and when threads have ended that read much, as they do after ten seconds without work.
const PURGES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(7)];
/// So large, in bytes, that it gets a place of its own.
const LARGE: usize = 2 * 1024 * 1024;

/// The names that were used lately, and who lets go of their pages: a thread that is there only as long as there are any.
#[derive(Default)]
pub(super) struct Uses(Arc<Lately>);

#[derive(Default)]
struct Lately {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    names: VecDeque<Name>,
    /// Whether any was noted since this was last looked at.
    went_on: bool,
    /// Nothing is let go of any more.
    ends: bool,
    is_running: bool,
    thread: Option<JoinHandle<()>>,
}

impl Uses {
    /// Notes that records of `db` were used.
    pub(super) fn note<'a>(&self, db: &Db, names: impl IntoIterator<Item = &'a Name>) {
        let mut state = self.0.lock();
        for name in names {
            if state.names.len() >= MOST {
                state.names.pop_front();
            }
            state.names.push_back(*name);
        }
        state.went_on = true;
        if !state.is_running && !state.ends && !state.names.is_empty() {
            if let Some(over) = state.thread.take() {
                let _ = over.join();
            }
            let (lately, db) = (Arc::clone(&self.0), db.clone());
            let started = thread::Builder::new().name("vault cache".to_owned()).spawn(move || lately.let_go(&db));
            state.is_running = started.is_ok();
            state.thread = started.inspect_err(|error| tracing::debug!(%error, "the database keeps what it read")).ok();
        }
    }

    /// Ends the thread, which has the database open as well.
    pub(super) fn end(&self) {
        let thread = {
            let mut state = self.0.lock();
            state.ends = true;
            state.thread.take()
        };
        self.0.ended.notify_all();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Lately {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of what was used lately whenever it is quiet, until nothing is used any more.
    fn let_go(&self, db: &Db) {
        while let Some(names) = self.when_quiet() {
            for name in names {
                let use_it = || (0..PLACES).try_for_each(|_| db.contains_key(name.as_bytes()).map(drop));
                // What fails here was done before it, and fails again where it matters.
                if self.lock().ends || !matches!(caught(use_it), Ok(Ok(()))) {
                    break;
                }
            }
            for wait in PURGES {
                if self.ends_within(wait) {
                    break;
                }
                drop(black_box(Vec::<u8>::with_capacity(LARGE)));
            }
        }
    }

    fn ends_within(&self, wait: Duration) -> bool {
        self.ended
            .wait_timeout_while(self.lock(), wait, |state| !state.ends)
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .ends
    }

    /// The names that were used, when it has become quiet; `None` where there are none, and the thread is over.
    fn when_quiet(&self) -> Option<VecDeque<Name>> {
        let mut state = self.lock();
        for _ in 0..MOST_WAITS {
            if state.ends || state.names.is_empty() {
                break;
            }
            state.went_on = false;
            let goes_on = |state: &mut State| !state.ends;
            state = self.ended.wait_timeout_while(state, QUIET, goes_on).unwrap_or_else(PoisonError::into_inner).0;
            if !state.went_on {
                break;
            }
        }
        if state.ends || state.names.is_empty() {
            state.is_running = false;
            return None;
        }
        Some(std::mem::take(&mut state.names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::name::{Kind, Namer};

    #[test]
    fn what_was_used_is_let_go_of_when_it_is_quiet_and_no_thread_outlives_the_database() {
        let temporary = tempfile::tempdir().unwrap();
        let db = ::sled::open(temporary.path()).unwrap();
        let of_key = Namer::new(&[0; 32]);
        let names: Vec<Name> = (0..MOST + 10).map(|id| of_key.name(Kind::Grant, &id.to_be_bytes())).collect();
        let uses = Uses::default();
        uses.note(&db, &names);
        {
            let state = uses.0.lock();
            assert_eq!((state.names.len(), state.names.back()), (MOST, names.last()), "no more are remembered");
        }
        let mut tries = 0;
        while !uses.0.lock().names.is_empty() {
            tries += 1;
            assert!(tries < 3000, "nothing is let go of");
            thread::sleep(Duration::from_millis(20));
        }
        uses.end();
        assert!(!uses.0.lock().is_running);
        uses.note(&db, &names[..1]);
        assert!(uses.0.lock().thread.is_none(), "not any more");
    }
}
