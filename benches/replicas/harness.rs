//! What the tests' cluster asks of the tests' harness.

#[path = "../../tests/it/harness/ports.rs"]
pub(crate) mod ports;

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a server may take for what it does at once, on a machine that is busy.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `look` gives something.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

pub(crate) mod chance {
    /// Says why nothing is measured.
    pub(crate) fn tell(what: &str) {
        crate::common::report::say(what);
    }
}
