//! Runs that chance decides: how long, from which seed, and what came of them.

use std::{env, thread};

/// A seed that prints itself where the test fails.
#[derive(Debug)]
pub(crate) struct Seed(pub(crate) u64, &'static str);

impl Seed {
    /// The one in `CONSENTRY_SEED`, or any.
    pub(crate) fn new(run: &'static str) -> Self {
        Self(env::var("CONSENTRY_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().expect("a seed")), run)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            tell(&format!("{}: the same choices again with CONSENTRY_SEED={}", self.1, self.0));
        }
    }
}

/// The number in an environment variable, or the one that is usual.
pub(crate) fn number(variable: &str, usual: usize) -> usize {
    env::var(variable).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Says something that is worth knowing of a run that went well, too.
#[expect(clippy::print_stderr, reason = "counts go into docs/reliability.md, and a skipped test must say so")]
pub(crate) fn tell(what: &str) {
    eprintln!("{what}");
}
