//! Who has how many of a listener's connections, and whose connection ends so that another caller is served.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Resource, getrlimit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::watched::Activity;

/// One caller has at most this part of a listener's connections.
const PART_OF_ONE: usize = 4;
/// The fewest connections that a listener takes, however few descriptors the process may have.
const FEWEST: usize = 16;
/// How often it is logged that connections are ended.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// Who connects. The connections of one caller are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Caller {
    /// A user of this machine.
    User(u32),
    /// Whoever calls from there.
    Address(IpAddr),
}

/// The most connections at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Of all callers together.
    pub(super) all: usize,
    /// Of one caller.
    pub(super) of_one: usize,
}

impl Limits {
    /// At most `most`, and at most one in `share` of the descriptors that the process may have: what callers open must
    /// leave some for exchanges and for the vault.
    pub(crate) fn at_most(most: usize, share: u64) -> Self {
        Self::within(getrlimit(Resource::Nofile).current, most, share)
    }

    fn within(descriptors: Option<u64>, most: usize, share: u64) -> Self {
        let room = descriptors.and_then(|descriptors| usize::try_from(descriptors / share).ok()).unwrap_or(most);
        let all = room.clamp(FEWEST, most);
        Self { all, of_one: all / PART_OF_ONE }
    }
}

/// The connections of one listener. Cheap to clone.
///
/// There is a place for everybody: a caller who has as many connections as it may loses the one that it has not used for
/// longest to the new one, and where all places are taken, whoever has most of them loses one in the same way. So an
/// application that forgets its connections is still answered, and starves nobody. A connection on which a request is
/// being answered is never taken.
#[derive(Clone, Debug)]
pub(super) struct Places {
    limits: Limits,
    taken: Arc<Mutex<Taken>>,
    shutdown: CancellationToken,
}

#[derive(Debug, Default)]
struct Taken {
    by: HashMap<Caller, Vec<Arc<Seat>>>,
    all: usize,
    /// How many connections were ended or refused since that was last logged, and when it was.
    told: (u64, Option<Instant>),
}

#[derive(Debug)]
struct Seat {
    activity: Arc<Activity>,
    /// Cancelled when the place is given away, and when the listener stops: a connection asks one thing whenever it is woken.
    ends: CancellationToken,
}

/// Why a connection is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Why {
    /// Its place was given to another.
    GivenAway,
    /// The worker stops.
    Shutdown,
}

/// One connection's place, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    caller: Caller,
    seat: Arc<Seat>,
    places: Places,
}

impl Places {
    /// No connection yet; all of them are to end at `shutdown`.
    pub(super) fn new(limits: Limits, shutdown: CancellationToken) -> Self {
        Self { limits, taken: Arc::default(), shutdown }
    }

    /// A place for a new connection of `caller`; `None` where every connection that could end for it is busy.
    pub(super) fn take(&self, caller: Caller) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.by.get(&caller).map_or(0, Vec::len);
        let loser = if own >= self.limits.of_one {
            Some(caller)
        } else if taken.all >= self.limits.all {
            taken.by.iter().max_by_key(|(_, seats)| seats.len()).map(|(caller, _)| *caller)
        } else {
            None
        };
        if let Some(loser) = loser {
            taken.tell(loser);
            taken.end_idlest(loser)?;
        }
        let seat = Arc::new(Seat { activity: Arc::default(), ends: self.shutdown.child_token() });
        taken.by.entry(caller).or_default().push(Arc::clone(&seat));
        taken.all += 1;
        Some(Place { caller, seat, places: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Ends the connection of `caller` that was not used for longest; `None` where each of them is busy.
    fn end_idlest(&mut self, caller: Caller) -> Option<()> {
        let seats = self.by.get(&caller)?.iter().filter(|seat| !seat.activity.is_busy());
        let idlest = Arc::clone(seats.min_by_key(|seat| seat.activity.used_at())?);
        idlest.ends.cancel();
        self.remove(caller, &idlest);
        Some(())
    }

    fn remove(&mut self, caller: Caller, seat: &Arc<Seat>) {
        let Some(seats) = self.by.get_mut(&caller) else { return };
        let Some(at) = seats.iter().position(|other| Arc::ptr_eq(other, seat)) else { return };
        seats.swap_remove(at);
        self.all -= 1;
        if seats.is_empty() {
            self.by.remove(&caller);
        }
    }

    /// Logs, not too often, that `caller` has more connections than it may.
    fn tell(&mut self, caller: Caller) {
        let (count, last) = &mut self.told;
        *count += 1;
        if last.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
            tracing::warn!(
                ?caller,
                connections = count,
                "a caller has more connections than it may; those that it has not used for longest are ended"
            );
            self.told = (0, Some(Instant::now()));
        }
    }
}

impl Place {
    /// What the connection's requests are up to.
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.seat.activity
    }

    /// Waits until the connection is to end. While a request is answered its place is not given to another, but one may have
    /// begun just then.
    pub(super) async fn ends(&self) -> Why {
        self.seat.ends.cancelled().await;
        if self.places.shutdown.is_cancelled() { Why::Shutdown } else { Why::GivenAway }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.caller, &self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { all: 6, of_one: 4 };
    const GREEDY: Caller = Caller::User(1);

    fn is_given_away(place: &Place) -> bool {
        place.seat.ends.is_cancelled()
    }

    #[test]
    fn who_has_too_many_loses_the_one_not_used_for_longest() {
        let places = Places::new(LIMITS, CancellationToken::new());
        let mut own: Vec<Place> = (0..4).map(|_| places.take(GREEDY).expect("room")).collect();
        own[0].activity().request_began();
        own[0].activity().request_ended();
        own[1].activity().request_began();
        own.push(places.take(GREEDY).expect("in place of the third"));
        let lost: Vec<bool> = own.iter().map(is_given_away).collect();
        assert_eq!(lost, [false, false, true, false, false], "the second is busy, the first was used since");
    }

    #[test]
    fn nobody_is_kept_out_by_whoever_has_most() {
        let places = Places::new(LIMITS, CancellationToken::new());
        let greedy: Vec<Place> = (0..4).map(|_| places.take(GREEDY).expect("room")).collect();
        let others: Vec<Place> = (2..5).map(|user| places.take(Caller::User(user)).expect("room")).collect();
        assert_eq!(greedy.iter().filter(|place| is_given_away(place)).count(), 1);
        assert!(!others.iter().any(is_given_away));
        assert_eq!(places.lock().all, LIMITS.all);
        drop((greedy, others));
        assert_eq!(places.lock().all, 0);
        assert!(places.lock().by.is_empty());
    }

    #[test]
    fn a_busy_connection_is_never_ended_for_another() {
        let places = Places::new(LIMITS, CancellationToken::new());
        let busy: Vec<Place> = (0..4).map(|_| places.take(GREEDY).expect("room")).collect();
        for place in &busy {
            place.activity().request_began();
        }
        assert!(places.take(GREEDY).is_none());
        busy[3].activity().request_ended();
        assert!(places.take(GREEDY).is_some());
        assert!(is_given_away(&busy[3]) && !is_given_away(&busy[0]));
    }

    #[test]
    fn callers_leave_descriptors_for_exchanges() {
        assert_eq!(Limits::within(Some(20_000), 4096, 2), Limits { all: 4096, of_one: 1024 });
        assert_eq!(Limits::within(Some(1024), 4096, 2), Limits { all: 512, of_one: 128 });
        assert_eq!(Limits::within(Some(0), 4096, 2).all, FEWEST);
        assert_eq!(Limits::within(None, 4096, 2).all, 4096);
    }
}
