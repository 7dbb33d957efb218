//! How many requests one address may make: a bound on what a flood costs, not a guard of anything secret.
//!
//! Behind a proxy all of them come from the proxy's address, and what it says of others is not believed. So the limit is
//! one that a large mailing, with every scanner that opens its links, stays below.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How many requests an address may make at once after a while of silence.
const BURST: u32 = 500;
/// How many more it may make in a second.
const PER_SECOND: u32 = 50;
/// How many addresses are kept apart. Where there are more, all begin anew: nobody is kept out by the number of others.
const MAX_ADDRESSES: usize = 10_000;
/// The longest time after which an address has its whole burst again.
const FORGET: Duration = Duration::from_secs((BURST / PER_SECOND) as u64 + 1);

/// The requests of every address.
#[derive(Debug, Default)]
pub(super) struct Rate(Mutex<HashMap<IpAddr, Bucket>>);

#[derive(Debug)]
struct Bucket {
    /// Requests it may still make, in thousandths.
    left: u64,
    at: Duration,
}

impl Rate {
    /// Whether `address` may make one more request now, on the boot-time clock.
    pub(super) fn admits(&self, address: IpAddr, now: Duration) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_ADDRESSES {
            buckets.retain(|_, bucket| now.saturating_sub(bucket.at) < FORGET);
            if buckets.len() >= MAX_ADDRESSES {
                tracing::warn!(addresses = buckets.len(), "more addresses than are kept apart ask for consent pages");
                buckets.clear();
            }
        }
        let full = u64::from(BURST) * 1000;
        let bucket = buckets.entry(network(address)).or_insert(Bucket { left: full, at: now });
        let passed = u64::try_from(now.saturating_sub(bucket.at).as_millis()).unwrap_or(u64::MAX);
        bucket.left = full.min(bucket.left.saturating_add(passed.saturating_mul(u64::from(PER_SECOND))));
        bucket.at = now;
        let admitted = bucket.left >= 1000;
        if admitted {
            bucket.left -= 1000;
        }
        admitted
    }
}

/// Of IPv6 the first 64 bits: one customer of a network has all of the rest.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(rate: &Rate, address: &str, now: Duration) -> u32 {
        let address = address.parse().expect("an address");
        (0..2 * BURST).map(|_| u32::from(rate.admits(address, now))).sum()
    }

    #[test]
    fn an_address_has_a_burst_and_then_what_time_gives_it() {
        let rate = Rate::default();
        let now = Duration::from_secs(100);
        assert_eq!(admitted(&rate, "192.0.2.1", now), BURST);
        assert_eq!(admitted(&rate, "192.0.2.1", now + Duration::from_secs(2)), 2 * PER_SECOND);
        assert_eq!(admitted(&rate, "192.0.2.2", now), BURST, "another is not held to account");
        assert_eq!(admitted(&rate, "::ffff:192.0.2.2", now), 0, "it is the same, written otherwise");
        assert_eq!(admitted(&rate, "192.0.2.1", now + Duration::from_hours(9)), BURST);
    }

    #[test]
    fn one_network_of_ipv6_is_one_address() {
        let rate = Rate::default();
        assert_eq!(admitted(&rate, "2001:db8::1", Duration::ZERO), BURST);
        assert_eq!(admitted(&rate, "2001:db8::ffff:1", Duration::ZERO), 0);
        assert_eq!(admitted(&rate, "2001:db8:0:1::1", Duration::ZERO), BURST);
    }

    #[test]
    fn however_many_addresses_there_are_the_table_stays_small() {
        let rate = Rate::default();
        for number in 0..2 * u32::try_from(MAX_ADDRESSES).expect("small") {
            assert!(rate.admits(IpAddr::V4(number.into()), Duration::ZERO));
        }
        assert!(rate.0.lock().expect("whole").len() <= MAX_ADDRESSES);
    }
}
