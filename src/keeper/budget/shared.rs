//! A provider's budget as several workers share it: each reserves turns, a quarter of a second's worth at most, and what it does not
//! use of them is lost. While the database is away there are none, since nothing that comes back could be stored either.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{BURST_SECONDS, FORCED_SHARE};
use crate::{
    clock::SharedClock,
    vault::postgres::{BudgetId, LaneId, Pace, RESERVED_AHEAD, Reserved, Store},
};

/// When turns are asked for again that could not be had since the database did not answer.
const AWAY: Duration = Duration::from_secs(1);
/// How long after the answer, besides [`RESERVED_AHEAD`], reserved turns may be used: what waits for a permit meanwhile finds
/// them, and no replica saves them up.
const KEPT: Duration = Duration::from_millis(750);
/// No sooner than this is asked again.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const MINUTE: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(in crate::keeper) struct Shared {
    store: Store,
    lane: LaneId,
    all: Pace,
    forced: Pace,
    stock: Mutex<Stock>,
    clock: SharedClock,
}

/// Turns that were reserved and not taken yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stock {
    left: u32,
    /// When the next of them may go, on the boot-time clock.
    next: Duration,
    interval: Duration,
    /// Then those that are left are lost.
    until: Duration,
}

/// What a stock gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Turn,
    After(Duration),
    Nothing,
}

impl Stock {
    /// What was reserved, by an answer that came at that moment: counted from then on, which is later than the server did.
    fn of(turns: u32, first: Duration, ago: Duration, interval: Duration, answered: Duration) -> Self {
        let next = (answered + first).saturating_sub(ago);
        Self { left: turns, next, interval, until: answered + RESERVED_AHEAD + KEPT }
    }

    fn take(&mut self, boot: Duration) -> Given {
        if self.left == 0 || boot >= self.until {
            self.left = 0;
            return Given::Nothing;
        }
        if boot < self.next {
            return Given::After(self.next.saturating_sub(boot));
        }
        self.left -= 1;
        self.next += self.interval;
        Given::Turn
    }

    /// Takes a turn back that was not used, if it may still be: those that are given here go by the same moments as before.
    fn take_back(&mut self, taken: Duration, boot: Duration) {
        let until = taken + KEPT;
        if boot >= until {
            return;
        }
        if self.left == 0 || boot >= self.until {
            *self = Self { left: 0, next: boot + self.interval, until, ..*self };
        }
        self.left += 1;
        self.next = self.next.saturating_sub(self.interval);
    }
}

impl Shared {
    pub(super) fn new(per_minute: u32, store: Store, lane: LaneId, clock: SharedClock) -> Self {
        let (all, forced) = (pace(per_minute), pace(per_minute / FORCED_SHARE));
        Self { store, lane, all, forced, stock: Mutex::default(), clock }
    }

    pub(super) async fn take(&self, wanted: usize) -> Result<(), Duration> {
        match self.in_stock() {
            Given::Turn => return Ok(()),
            Given::After(wait) => return Err(wait),
            Given::Nothing => {}
        }
        let most = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, at_once(self.all.interval));
        let (turns, first, ago) = self.reserve(false, most, self.all).await?;
        let stock = Stock::of(turns, first, ago, self.all.interval, self.clock.boot());
        *self.stock.lock().unwrap_or_else(PoisonError::into_inner) = stock;
        match self.in_stock() {
            Given::Turn => Ok(()),
            Given::After(wait) => Err(wait),
            // The process was stopped in this very moment.
            Given::Nothing => Err(SHORTEST_WAIT),
        }
    }

    pub(super) async fn take_forced(&self) -> Result<(), Duration> {
        let (_, first, _) = self.reserve(true, 1, self.forced).await?;
        // It is theirs already, and no more than a quarter of a second away.
        tokio::time::sleep(first).await;
        Ok(())
    }

    pub(super) fn give_back(&self, taken: Duration) {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner).take_back(taken, self.clock.boot());
    }

    fn in_stock(&self) -> Given {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner).take(self.clock.boot())
    }

    async fn reserve(&self, forced: bool, most: u32, pace: Pace) -> Result<(u32, Duration, Duration), Duration> {
        match self.store.reserve(BudgetId { lane: self.lane, forced }, most, pace).await {
            Ok(Reserved::Turns { turns, first, ago }) => Ok((turns, first, ago)),
            Ok(Reserved::NoneFor(wait)) => Err(wait.max(SHORTEST_WAIT)),
            Err(error) => {
                tracing::debug!(%error, "no turns can be had");
                Err(AWAY)
            }
        }
    }
}

/// Even, but for what a quiet time leaves.
fn pace(per_minute: u32) -> Pace {
    let interval = MINUTE / per_minute.max(1);
    Pace { interval, burst: Duration::from_secs(BURST_SECONDS.into()).saturating_sub(interval) }
}

/// A quarter of a second's worth, and one at least.
fn at_once(interval: Duration) -> u32 {
    let turns = RESERVED_AHEAD.as_micros() / interval.as_micros().max(1);
    u32::try_from(turns).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn reserved_turns_go_at_their_moments() {
        let mut stock = Stock::of(3, ms(40), Duration::ZERO, ms(100), ms(1000));
        assert_eq!(stock.take(ms(1000)), Given::After(ms(40)));
        assert_eq!(stock.take(ms(1040)), Given::Turn);
        assert_eq!(stock.take(ms(1040)), Given::After(ms(100)));
        assert_eq!(stock.take(ms(1500)), Given::Turn, "a little late");
        assert_eq!((stock.take(ms(1500)), stock.take(ms(1500))), (Given::Turn, Given::Nothing));
    }

    #[test]
    fn what_a_quiet_time_left_goes_at_once() {
        let mut stock = Stock::of(5, Duration::ZERO, ms(400), ms(100), ms(1000));
        let given: Vec<_> = (0..6).map(|_| stock.take(ms(1000))).collect();
        assert_eq!(given[..5], [Given::Turn; 5]);
        assert_eq!(given[5], Given::Nothing);
    }

    #[test]
    fn turns_that_were_not_used_are_lost() {
        let mut stock = Stock::of(5, Duration::ZERO, Duration::ZERO, ms(50), ms(1000));
        assert_eq!(stock.take(ms(1000)), Given::Turn);
        assert_eq!(stock.take(ms(9000)), Given::Nothing, "a process that was stopped has saved nothing");
        assert_eq!(stock.take(ms(1001)), Given::Nothing);
    }

    #[test]
    fn a_turn_that_was_not_used_goes_to_the_next_if_it_is_given_back_soon() {
        let mut stock = Stock::of(1, Duration::ZERO, Duration::ZERO, ms(100), ms(1000));
        assert_eq!((stock.take(ms(1000)), stock.take(ms(1000))), (Given::Turn, Given::Nothing));
        stock.take_back(ms(1000), ms(1200));
        assert_eq!((stock.take(ms(1200)), stock.take(ms(1200))), (Given::Turn, Given::Nothing));
        stock.take_back(ms(1000), ms(1000) + KEPT);
        assert_eq!(stock.take(ms(1000) + KEPT), Given::Nothing, "it is lost by now");

        let mut stock = Stock::of(2, Duration::ZERO, Duration::ZERO, ms(100), ms(1000));
        assert_eq!(stock.take(ms(1000)), Given::Turn);
        stock.take_back(ms(1000), ms(1010));
        assert_eq!((stock.take(ms(1010)), stock.take(ms(1010))), (Given::Turn, Given::After(ms(90))));
    }

    #[test]
    fn a_quarter_of_a_second_is_reserved_at_once_and_one_turn_at_least() {
        assert_eq!([60_000, 600, 240, 1].map(|per_minute| at_once(pace(per_minute).interval)), [250, 2, 1, 1]);
        assert_eq!(pace(600).burst, ms(1900));
        assert_eq!(pace(1).burst, Duration::ZERO);
        assert_eq!(pace(0).interval, MINUTE, "as for one a minute");
    }
}
