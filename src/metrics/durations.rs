use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::families::Family;

/// A histogram of durations that is counted as it is recorded: two additions, and no memory however many there are.
/// The recorder's own keep every sample until the next scrape, which at a hundred thousand fetches a second is a lot.
#[derive(Debug)]
pub(super) struct Durations<const N: usize> {
    /// Upper bounds, included, in microseconds.
    bounds: [u64; N],
    /// How many lie in each bucket and in none below; beyond the last bound at the end.
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    nanoseconds: AtomicU64,
}

impl<const N: usize> Durations<N> {
    /// An empty one with these bounds in microseconds, in order.
    pub(super) const fn new(bounds: [u64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            beyond: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    /// Counts one.
    pub(super) fn record(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.iter().position(|bound| nanoseconds <= bound * 1000);
        bucket.map_or(&self.beyond, |bucket| &self.counts[bucket]).fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Writes it in the text exposition format. The count is that of the buckets as they are read.
    pub(super) fn write(&self, family: Family, text: &mut String) {
        let Family { name, help, .. } = family;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut count = 0;
        for (bound, bucket) in self.bounds.iter().zip(&self.counts) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {count}", Duration::from_micros(*bound).as_secs_f64());
        }
        count += self.beyond.load(Ordering::Relaxed);
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}\n");
    }
}
