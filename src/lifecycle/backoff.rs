use std::time::Duration;

/// The longest a failing grant waits by its own back-off.
pub const MAX_BACKOFF: Duration = Duration::from_mins(15);
/// The longest `Retry-After` that is honoured.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

const BASE: Duration = Duration::from_secs(2);
/// No wait is shorter, whatever chance says: a dead connection must not be hammered.
const FLOOR: Duration = Duration::from_millis(500);

/// How long to wait after the `failures`-th failure in a row: exponential with full jitter, so that grants that
/// failed together do not come back together. `chance` is uniform in `[0, 1)`.
pub fn backoff(failures: u32, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    let ceiling = BASE.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    ceiling.mul_f64(chance.clamp(0.0, 1.0)).max(FLOOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_a_quarter_of_an_hour() {
        let most: Vec<u64> = (1..=12).map(|failures| backoff(failures, 1.0).as_secs()).collect();
        assert_eq!(most, [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert_eq!(backoff(u32::MAX, 1.0), MAX_BACKOFF);
    }

    #[test]
    fn jitter_is_full_but_never_hammers() {
        assert_eq!(backoff(8, 0.5), Duration::from_secs(128));
        assert_eq!(backoff(8, 0.0), FLOOR);
        assert_eq!(backoff(0, 0.0), FLOOR);
    }
}
