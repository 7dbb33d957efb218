//! A fleet that is larger than the worker's memory: some of its grants are in memory, and the rest is asked of the database.
//!
//! Only where the vault is shared, and where `vault.postgres.resident` says how many. What is asked for is brought in (`present`) and
//! leaves again when room is needed (`room`); what is due is claimed from the database (`due`), which knows the dates that each commit
//! writes beside its grant (`dating`); and whatever is told of the whole, lists and counts, is read from there (`list`, `count`,
//! `sweeping`).
//!
//! What stays: all that changes a grant takes its slot's record and its claim, and there is never more than one slot of a grant.

mod count;
mod dating;
mod due;
mod list;
mod present;
mod remembered;
mod room;
mod sweeping;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI64, AtomicUsize, Ordering},
};

use self::remembered::Remembered;
pub(super) use self::{
    count::whole,
    dating::{Dating, UNKNOWN_LIFE},
    due::follow_due,
    room::keep_room,
};
use super::Shared;
use crate::{
    metrics::Census,
    model::{GrantId, Timestamp},
    vault::postgres::{Ends, Store},
};

/// How many fetches are noted at most until they are written; of more, some are forgotten, which only makes a grant look idle
/// sooner.
const MOST_UNWRITTEN: usize = 100_000;

/// What a worker that keeps some of the grants in memory has besides.
#[derive(Debug)]
pub(super) struct Bounded {
    store: Store,
    /// How many grants are kept in memory at most.
    most: usize,
    /// With how many room is made next: more than `most` where so many were in use that no room could be made.
    make_room_at: AtomicUsize,
    dating: Arc<Dating>,
    /// When grants that left were fetched last.
    unwritten: Mutex<Vec<(GrantId, Timestamp)>>,
    /// When it was last looked which of those in memory were fetched, in seconds since 1970: as exact as these times are.
    looked_at: AtomicI64,
    /// The last count over everything.
    counted: Remembered<Census>,
    /// What ends when.
    ends: Remembered<Ends>,
    /// Held by who reads through everything to count a part of it, so that one does it at a time.
    reading_through: tokio::sync::Mutex<()>,
}

impl Bounded {
    pub(super) fn new(store: Store, most: usize, dating: Arc<Dating>) -> Self {
        Self {
            store,
            most,
            make_room_at: AtomicUsize::new(most),
            dating,
            unwritten: Mutex::default(),
            looked_at: AtomicI64::new(0),
            counted: Remembered::default(),
            ends: Remembered::default(),
            reading_through: tokio::sync::Mutex::default(),
        }
    }

    fn looked_at(&self) -> Timestamp {
        Timestamp::from_millis(self.looked_at.load(Ordering::Relaxed) * 1000)
    }

    fn set_looked_at(&self, at: Timestamp) {
        self.looked_at.store(at.as_seconds(), Ordering::Relaxed);
    }

    /// Notes fetches, to be written with the next batch.
    fn note_fetched(&self, fetched: impl IntoIterator<Item = (GrantId, Timestamp)>) {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_UNWRITTEN.saturating_sub(unwritten.len());
        unwritten.extend(fetched.into_iter().take(room));
    }

    fn take_unwritten(&self) -> Vec<(GrantId, Timestamp)> {
        std::mem::take(&mut *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    /// Whether only some of the grants are in memory.
    pub(super) const fn is_bounded(&self) -> bool {
        self.bounded.is_some()
    }
}
