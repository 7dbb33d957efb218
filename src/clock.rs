//! The one place that reads a clock for a decision. Everything else is handed a [`Now`] or asks a [`Clock`]; clippy's
//! `disallowed-methods` keeps the wall clock from being read elsewhere. Tokio's timers, which only sleep and end waits,
//! are not meant by this.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::model::Timestamp;

/// What the clocks said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall time: decides about everything that was said in wall time, and can jump.
    pub wall: Timestamp,
    /// Time since the machine was booted, suspended or not (`CLOCK_BOOTTIME`): never jumps within one boot.
    pub boot: Duration,
}

/// A source of time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The time now.
    fn now(&self) -> Now;

    /// The boot-time clock alone, for how long something took.
    fn boot(&self) -> Duration {
        self.now().boot
    }

    /// Which boot of the machine `Now::boot` belongs to; 0 if that cannot be told, and then it equals no other.
    fn boot_id(&self) -> u128;
}

/// A clock that is shared.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    boot_id: u128,
}

impl SystemClock {
    /// Reads the boot's id once.
    pub fn new() -> Self {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        Self { boot_id: u128::from_str_radix(&hex, 16).unwrap_or(0) }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    fn now(&self) -> Now {
        let wall = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(_) => 0,
        };
        Now { wall: Timestamp::from_millis(wall), boot: self.boot() }
    }

    fn boot(&self) -> Duration {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(boot.tv_sec).unwrap_or(0), u32::try_from(boot.tv_nsec).unwrap_or(0))
    }

    fn boot_id(&self) -> u128 {
        self.boot_id
    }
}

/// A clock that stands still until it is moved; for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Now>,
}

impl ManualClock {
    /// A clock that shows `wall`, an hour after boot.
    pub fn at(wall: Timestamp) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new(Now { wall, boot: Duration::from_hours(1) }) })
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.wall = now.wall + by;
        now.boot += by;
    }

    /// Sets wall time alone, as an operator or NTP would.
    pub fn set_wall(&self, wall: Timestamp) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).wall = wall;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn boot_id(&self) -> u128 {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clocks_run() {
        let clock = SystemClock::new();
        let (first, second) = (clock.now(), clock.now());
        assert!(second.boot >= first.boot);
        assert!(first.wall > Timestamp::from_millis(1_600_000_000_000));
    }

    #[test]
    fn a_manual_clock_can_jump_back_on_the_wall_only() {
        let clock = ManualClock::at(Timestamp::from_millis(10_000));
        clock.advance(Duration::from_secs(5));
        clock.set_wall(Timestamp::from_millis(0));
        assert_eq!(clock.now(), Now { wall: Timestamp::from_millis(0), boot: Duration::from_secs(3605) });
    }
}
