//! What the integration tests share: the worker as a process of its own, and the peers it talks to.
//!
//! Everything here blocks and panics: a test is a thread, and what it cannot do ends it. Every wait has an end.

pub(crate) mod caller;
pub(crate) mod chance;
mod description;
pub(crate) mod disk;
pub(crate) mod echo;
pub(crate) mod hooks;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod oidc;
pub(crate) mod ports;
pub(crate) mod sandbox;
pub(crate) mod tap;
pub(crate) mod worker;

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a test waits for something that should happen at once, on a machine that is slow and busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// How often it looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `look` gives something; panics with `what` when that does not come.
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
