//! How much of a long copy is done, drawn on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::print;

/// How often the bar moves although nothing happened.
const TICK: Duration = Duration::from_millis(250);
/// How wide a terminal is taken to be that does not tell, in characters.
const USUAL_WIDTH: usize = 80;
/// What stands beside the bar, in characters.
const BESIDE_BAR: usize = 54;
/// The longest bar, in characters.
const MAX_BAR: usize = 32;

/// Counts bytes.
#[derive(Debug)]
pub(super) struct Moved {
    bar: ProgressBar,
}

impl Moved {
    /// A bar over `length` bytes, or a spinner where nobody knows the length; nothing where no terminal is.
    pub(super) fn new(length: Option<u64>) -> Self {
        let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let width = print::width_of_stderr().unwrap_or(USUAL_WIDTH).saturating_sub(BESIDE_BAR).clamp(4, MAX_BAR);
        let template = if length.is_some() {
            format!("{{bar:{width}}} {{percent:>3}} %  {{binary_bytes_per_sec}}  {{eta}} left")
        } else {
            "{spinner} {binary_bytes}  {binary_bytes_per_sec}  {elapsed}".to_owned()
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// How many there were.
    pub(super) fn bytes(&self) -> u64 {
        self.bar.position()
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
