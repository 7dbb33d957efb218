//! What has come of the lines so far: counted, drawn on a terminal, and told line by line where it went wrong.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::print;

/// How often the bar moves although nothing happened.
const TICK: Duration = Duration::from_millis(250);

/// How wide a terminal is taken to be that does not tell, in characters.
const USUAL_WIDTH: usize = 80;
/// What stands beside the bar, with counts of millions and a `^C`, in characters.
const BESIDE_BAR: usize = 54;
/// The longest bar, in characters.
const MAX_BAR: usize = 32;

/// Counts of an import, shared by all who work on it.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    tells: bool,
    enrolled: AtomicU64,
    replaced: AtomicU64,
    unchanged: AtomicU64,
    failed: AtomicU64,
}

/// The summary of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) enrolled: u64,
    pub(super) replaced: u64,
    pub(super) unchanged: u64,
    pub(super) failed: u64,
}

/// What became of a line that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Enrolled,
    Replaced,
    Unchanged,
}

impl Progress {
    /// A bar over `length` bytes, or a spinner where nobody knows the length; nothing where no terminal is.
    pub(super) fn new(length: Option<u64>) -> Self {
        Self::drawn(length, ProgressDrawTarget::stderr(), true)
    }

    /// Counts only.
    #[cfg(test)]
    pub(super) fn silent() -> Self {
        Self::drawn(None, ProgressDrawTarget::hidden(), false)
    }

    fn drawn(length: Option<u64>, target: ProgressDrawTarget, tells: bool) -> Self {
        let bar = ProgressBar::with_draw_target(length, target);
        // A line that wraps cannot be drawn over, also with the `^C` that the terminal adds to it.
        let width = print::width_of_stderr().unwrap_or(USUAL_WIDTH).saturating_sub(BESIDE_BAR).clamp(4, MAX_BAR);
        let template = if length.is_some() {
            format!("{{bar:{width}}} {{percent:>3}} %  {{msg}}  {{eta}} left")
        } else {
            "{spinner} {binary_bytes}  {msg}  {elapsed}".to_owned()
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        let zero = || AtomicU64::new(0);
        Self { bar, tells, enrolled: zero(), replaced: zero(), unchanged: zero(), failed: zero() }
    }

    /// So many bytes of the input are read.
    pub(super) fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    pub(super) fn taken(&self, taken: Taken) {
        let counter = match taken {
            Taken::Enrolled => &self.enrolled,
            Taken::Replaced => &self.replaced,
            Taken::Unchanged => &self.unchanged,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.show();
    }

    /// Line `number` was not taken.
    pub(super) fn failed(&self, number: u64, why: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if self.tells {
            self.bar.suspend(|| print::tell(&format!("line {number}: {why}")));
        }
        self.show();
    }

    pub(super) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            enrolled: read(&self.enrolled),
            replaced: read(&self.replaced),
            unchanged: read(&self.unchanged),
            failed: read(&self.failed),
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
        // Whoever still reads or sends must not draw it again.
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
    }

    fn show(&self) {
        if !self.bar.is_hidden() {
            let counts = self.counts();
            let taken = counts.enrolled + counts.replaced + counts.unchanged;
            self.bar.set_message(format!("{taken} taken, {} failed", counts.failed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_nothing_is_drawn() {
        let progress = Progress::silent();
        progress.read(10);
        progress.taken(Taken::Enrolled);
        progress.failed(2, "why");
        progress.end();
        assert!(progress.bar.is_hidden());
        assert_eq!(progress.counts(), Counts { enrolled: 1, replaced: 0, unchanged: 0, failed: 1 });
    }
}
