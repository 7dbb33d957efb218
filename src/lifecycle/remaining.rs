use std::time::Duration;

use crate::{
    clock::Now,
    model::{AccessToken, Timestamp},
};

/// How far ahead of wall time an access token may seem to have been given before wall time is not believed.
const TOLERANCE: Duration = Duration::from_secs(5);

/// What is left of an access token, by the stricter of both clocks (rule 12 of the design).
///
/// In the boot in which it was given, the boot-time clock knows its age, whatever wall time did since. In another, wall
/// time alone is left to ask: a token that seems to have been given in the future was stored, or is read, by a clock that
/// was wrong, and counts as lapsed.
pub fn remaining(access: &AccessToken, now: Now, boot_id: u128) -> Duration {
    let lifetime = access.lifetime();
    let by_wall = access.expires_at.since(now.wall).min(lifetime);
    match access.issued_boot.filter(|issued| issued.boot_id == boot_id && boot_id != 0) {
        Some(issued) => by_wall.min(lifetime.saturating_sub(now.boot.saturating_sub(issued.at))),
        None if access.issued_at > now.wall + TOLERANCE => Duration::ZERO,
        None => by_wall,
    }
}

/// When an access token has surely ended, by wall time as it is now: what may be tried only then must not be tried because
/// nobody knows how old the token is.
pub fn surely_over(access: &AccessToken, now: Now, boot_id: u128) -> Timestamp {
    match access.issued_boot.filter(|issued| issued.boot_id == boot_id && boot_id != 0) {
        Some(_) => now.wall + remaining(access, now, boot_id),
        None => access.expires_at,
    }
}

/// When an access token is to be refreshed that is given up `refresh_after` after it was given: by wall time as it is now,
/// and `now` where that has passed.
pub fn refresh_moment(access: &AccessToken, refresh_after: Duration, now: Now, boot_id: u128) -> Timestamp {
    let last_part = access.lifetime().saturating_sub(refresh_after);
    now.wall + remaining(access, now, boot_id).saturating_sub(last_part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BootMoment, Secret};

    const HOUR: Duration = Duration::from_hours(1);

    fn at(wall_hours: u64, boot_hours: u64) -> Now {
        Now {
            wall: Timestamp::from_millis(0) + HOUR * u32::try_from(wall_hours).unwrap(),
            boot: HOUR * u32::try_from(boot_hours).unwrap(),
        }
    }

    /// Given at ten o'clock by the wall, two hours after boot 1, for four hours.
    fn token() -> AccessToken {
        AccessToken {
            token: Secret::new("t"),
            token_type: "Bearer".into(),
            scope: None,
            issued_at: at(10, 0).wall,
            expires_at: at(14, 0).wall,
            issued_boot: Some(BootMoment { boot_id: 1, at: HOUR * 2 }),
        }
    }

    #[test]
    fn both_clocks_agree_as_a_rule() {
        assert_eq!(remaining(&token(), at(11, 3), 1), HOUR * 3);
        assert_eq!(refresh_moment(&token(), HOUR * 3, at(11, 3), 1), at(13, 0).wall);
        assert_eq!(refresh_moment(&token(), HOUR * 3, at(13, 5), 1), at(13, 0).wall);
    }

    #[test]
    fn wall_time_that_was_ahead_when_it_was_given_makes_it_live_no_longer() {
        // The clock was eight hours ahead, and has been put right.
        assert_eq!(remaining(&token(), at(3, 3), 1), HOUR * 3);
        assert_eq!(remaining(&token(), at(6, 6), 1), Duration::ZERO);
        assert_eq!(refresh_moment(&token(), HOUR * 3, at(3, 3), 1), at(5, 0).wall);
    }

    #[test]
    fn after_another_boot_a_token_from_the_future_counts_as_lapsed() {
        assert_eq!(remaining(&token(), at(9, 1), 2), Duration::ZERO);
        assert_eq!(surely_over(&token(), at(9, 1), 2), at(14, 0).wall, "nobody knows");
        assert_eq!(surely_over(&token(), at(3, 3), 1), at(6, 0).wall);
        assert_eq!(remaining(&token(), at(12, 1), 2), HOUR * 2);
        let unnoted = AccessToken { issued_boot: None, ..token() };
        assert_eq!(remaining(&unnoted, at(9, 3), 1), Duration::ZERO);
        assert_eq!(remaining(&unnoted, at(12, 3), 1), HOUR * 2);
        let unknown_boot = AccessToken { issued_boot: Some(BootMoment { boot_id: 0, at: HOUR }), ..token() };
        assert_eq!(remaining(&unknown_boot, at(12, 40), 0), HOUR * 2);
    }
}
