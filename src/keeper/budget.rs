mod shared;

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock as GovernorClock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};

use self::shared::Shared;
use crate::{
    clock::SharedClock,
    vault::postgres::{LaneId, Store},
};

/// Callers may force one exchange in five.
const FORCED_SHARE: u32 = 5;
/// How much of a minute's budget may go at once after a quiet time, in seconds' worth.
const BURST_SECONDS: u32 = 2;

type Limiter = RateLimiter<NotKeyed, InMemoryState, BootClock, NoOpMiddleware<Duration>>;

/// How many exchanges a provider may be asked for: by this process, or by all that share a vault with it.
#[derive(Debug)]
pub(super) enum Budget {
    Own(Own),
    Shared(Shared),
}

/// A budget that nobody else takes from.
#[derive(Debug)]
pub(super) struct Own {
    all: Limiter,
    forced: Limiter,
    clock: SharedClock,
}

/// The boot-time clock as governor reads one.
#[derive(Debug, Clone)]
struct BootClock(SharedClock);

impl GovernorClock for BootClock {
    type Instant = Duration;
    fn now(&self) -> Duration {
        self.0.now().boot
    }
}

impl Budget {
    /// A budget of `per_minute` exchanges, spread evenly; together with those that share the vault, if any do.
    pub(super) fn new(per_minute: u32, shared: Option<(LaneId, Store)>, clock: SharedClock) -> Self {
        match shared {
            None => Self::Own(Own::new(per_minute, clock)),
            Some((lane, store)) => Self::Shared(Shared::new(per_minute, store, lane, clock)),
        }
    }

    /// Takes one exchange of `wanted`, or says how long to wait for it. To be called by one at a time.
    pub(super) async fn take(&self, wanted: usize) -> Result<(), Duration> {
        match self {
            Self::Own(own) => own.take(),
            Self::Shared(shared) => shared.take(wanted).await,
        }
    }

    /// Gives one back that was taken at that moment of the boot-time clock and came to nothing, since another process was first.
    pub(super) fn give_back(&self, taken: Duration) {
        match self {
            Self::Own(_) => {}
            Self::Shared(shared) => shared.give_back(taken),
        }
    }

    /// Takes one exchange from what callers may force.
    pub(super) async fn take_forced(&self) -> Result<(), Duration> {
        match self {
            Self::Own(own) => own.take_forced(),
            Self::Shared(shared) => shared.take_forced().await,
        }
    }
}

impl Own {
    fn new(per_minute: u32, clock: SharedClock) -> Self {
        let limiter = |per_minute: u32| {
            let burst = (per_minute.saturating_mul(BURST_SECONDS) / 60).max(1);
            let quota = Quota::per_minute(at_least_one(per_minute)).allow_burst(at_least_one(burst));
            RateLimiter::direct_with_clock(quota, BootClock(clock.clone()))
        };
        Self { all: limiter(per_minute), forced: limiter(per_minute / FORCED_SHARE), clock }
    }

    fn take(&self) -> Result<(), Duration> {
        self.all.check().map_err(|not_until| not_until.wait_time_from(self.clock.now().boot))
    }

    fn take_forced(&self) -> Result<(), Duration> {
        self.forced.check().map_err(|not_until| not_until.wait_time_from(self.clock.now().boot))
    }
}

fn at_least_one(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::ManualClock, model::Timestamp};

    #[test]
    fn a_minute_gives_a_minutes_worth_and_callers_a_fifth() {
        let clock = ManualClock::at(Timestamp::from_millis(0));
        let budget = Own::new(600, clock.clone());
        let (mut all, mut forced) = (0, 0);
        for _ in 0..6000 {
            all += u32::from(budget.take().is_ok());
            forced += u32::from(budget.take_forced().is_ok());
            clock.advance(Duration::from_millis(10));
        }
        assert!((600..=621).contains(&all), "{all}");
        assert!((120..=125).contains(&forced), "{forced}");
    }

    #[test]
    fn an_empty_budget_says_how_long_to_wait() {
        let budget = Own::new(1, ManualClock::at(Timestamp::from_millis(0)));
        assert_eq!(budget.take(), Ok(()));
        let wait = budget.take().expect_err("spent");
        assert!(wait > Duration::from_secs(59) && wait <= Duration::from_mins(1), "{wait:?}");
    }
}
