use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    clock::{Clock, Now},
    model::Timestamp,
    vault::Fate,
};

/// When it all begins: 2027-01-15T08:00:00Z.
const BEGINNING: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// The computer that the worker runs on. It knows the true time, and shows the worker the clock that it has.
#[derive(Debug)]
pub(super) struct Machine {
    state: Mutex<State>,
    died: Notify,
}

#[derive(Debug)]
struct State {
    /// The true time, and the boot-time clock, when the present life began or time was moved last.
    truth: Timestamp,
    boot: Duration,
    /// Which boot this is.
    boots: u128,
    /// By how much the shown wall time is off, in milliseconds.
    skew: i64,
    /// What wall time was off by, and which boot it was, from which moment on.
    past: Vec<(Timestamp, i64, u128)>,
    /// When the present life began on the runtime's clock; `None` between two lives.
    began: Option<Instant>,
    /// How many steps this life has left; `None`: enough.
    steps_left: Option<u64>,
    dead: bool,
    /// Whether wall time was off when the present life began.
    began_off: bool,
}

impl Machine {
    pub(super) fn new() -> Self {
        let state = State {
            truth: BEGINNING,
            boot: Duration::from_mins(1),
            boots: 1,
            skew: 0,
            past: vec![(BEGINNING, 0, 1)],
            began: None,
            steps_left: None,
            dead: false,
            began_off: false,
        };
        Self { state: Mutex::new(state), died: Notify::new() }
    }

    /// A process begins, which dies after so many steps.
    pub(super) fn begin(&self, steps: Option<u64>) {
        let mut state = self.state();
        state.began = Some(Instant::now());
        state.steps_left = steps;
        state.dead = false;
        state.began_off = state.skew != 0;
    }

    /// Somebody works on the disk while no process runs.
    pub(super) fn begin_outside(&self) {
        let mut state = self.state();
        (state.steps_left, state.dead) = (None, false);
    }

    /// The process has ended, one way or the other.
    pub(super) fn end(&self) {
        let mut state = self.state();
        let elapsed = state.elapsed();
        state.truth = state.truth + elapsed;
        state.boot += elapsed;
        state.began = None;
        state.dead = true;
    }

    /// Time passes that the process does not see pass: it is down, or the machine is suspended.
    pub(super) fn pass(&self, time: Duration) {
        let mut state = self.state();
        state.truth = state.truth + time;
        state.boot += time;
    }

    /// The machine starts anew.
    pub(super) fn reboot(&self) {
        let mut state = self.state();
        state.boot = Duration::from_secs(20);
        state.boots += 1;
        state.remember();
    }

    /// Wall time is off by so many milliseconds from now on.
    pub(super) fn set_skew(&self, skew: i64) {
        let mut state = self.state();
        state.skew = skew;
        state.remember();
    }

    /// The true time.
    pub(super) fn truth(&self) -> Timestamp {
        let state = self.state();
        state.truth + state.elapsed()
    }

    /// Whether nothing can tell how old something is that was given then: the machine was started anew since, so that wall
    /// time alone is left to ask, and that was off then, or is now.
    pub(super) fn forgot_since(&self, given: Timestamp) -> bool {
        let state = self.state();
        let then = state.past.iter().rev().find(|(from, ..)| *from <= given);
        then.is_some_and(|(_, skew, boot)| *boot != state.boots && (*skew != 0 || state.began_off))
    }

    /// Since the simulation began.
    pub(super) fn age(&self) -> Duration {
        self.truth().since(BEGINNING)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Waits for the death of the process.
    pub(super) async fn death(&self) {
        while !self.is_dead() {
            self.died.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn elapsed(&self) -> Duration {
        self.began.map(|began| began.elapsed()).unwrap_or_default()
    }

    fn remember(&mut self) {
        self.past.push((self.truth + self.elapsed(), self.skew, self.boots));
    }
}

impl Clock for Machine {
    fn now(&self) -> Now {
        let state = self.state();
        let truth = state.truth + state.elapsed();
        let wall = Timestamp::from_millis(truth.as_millis() + state.skew);
        Now { wall, boot: state.boot + state.elapsed() }
    }

    fn boot_id(&self) -> u128 {
        self.state().boots
    }
}

impl Fate for Machine {
    fn step(&self) -> io::Result<()> {
        let mut state = self.state();
        if !state.dead && state.steps_left == Some(0) {
            state.dead = true;
            self.died.notify_one();
        }
        if state.dead {
            return Err(io::Error::other("the process is dead"));
        }
        state.steps_left = state.steps_left.map(|left| left - 1);
        Ok(())
    }
}
