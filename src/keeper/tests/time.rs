//! Clocks that jump, and machines that sleep. Wall time is UTC and timers run on the clock since boot, so that daylight
//! saving changes neither; what is scheduled in a zone is decided elsewhere.

use super::*;
use crate::clock::Clock as _;

const DAY: Duration = Duration::from_hours(24);
const ALL: [(&str, &str); 3] = [("a", "key-a"), ("b", "one-b"), ("c", "reuse-c")];

impl World {
    /// A world with one organization of each kind.
    async fn of_all() -> Self {
        let world = Self::new().await;
        for (id, secret) in ALL {
            world.enrol(id, secret).await.expect("enrolled");
        }
        assert_eq!(world.issuer.count(), 3);
        world
    }

    /// Moves wall time alone.
    fn wall_jumps(&self, forwards: Duration, back: Duration) {
        let wall = self.clock.now().wall;
        self.clock.set_wall((wall + forwards) - back);
        self.keeper.shared.timers.wake();
    }

    /// Every organization is served with a token that lives, and is called what it is.
    async fn all_are_served(&self) {
        for (id, _) in ALL {
            let served = self.fetch(id).await.expect("served");
            assert_eq!(served.token.degraded, None, "{id}");
            assert!((1..=3600).contains(&served.token.expires_in), "{id}: {}", served.token.expires_in);
            assert_eq!(self.state(id).await, "active/-", "{id}");
        }
    }

    /// However often everything is looked at again, nothing more is exchanged than `exchanges` in all.
    async fn there_is_no_storm(&self, exchanges: u32) {
        self.until(|world| world.issuer.count() >= exchanges).await;
        for _ in 0..5 {
            self.keeper.sweep();
            self.keeper.shared.timers.wake();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.all_are_served().await;
        assert_eq!(self.issuer.count(), exchanges);
        assert_eq!(self.issuer.replays.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_wall_clock_set_back_lapses_nothing_and_delays_no_refresh() {
    let world = World::of_all().await;
    for jump in [HOUR, DAY, DAY * 400] {
        world.wall_jumps(Duration::ZERO, jump);
        world.all_are_served().await;
    }
    world.there_is_no_storm(3).await;
    world.advance(HOUR.mul_f64(0.83));
    world.there_is_no_storm(6).await;
}

#[tokio::test]
async fn a_wall_clock_set_forwards_costs_one_exchange_each_at_most_and_setting_it_right_none() {
    let world = World::of_all().await;
    world.wall_jumps(DAY * 3, Duration::ZERO);
    world.all_are_served().await;
    let after = world.issuer.count();
    assert!(after <= 6, "{after}");
    world.there_is_no_storm(after).await;
    world.wall_jumps(Duration::ZERO, DAY * 3);
    world.all_are_served().await;
    world.there_is_no_storm(after).await;
    world.advance(HOUR.mul_f64(0.83));
    world.there_is_no_storm(after + 3).await;
}

#[tokio::test]
async fn a_machine_that_slept_refreshes_everything_once_and_calls_nothing_lost() {
    let world = World::of_all().await;
    for nights in 1..=3_u32 {
        world.advance(HOUR * 10);
        world.there_is_no_storm(3 * (nights + 1)).await;
    }
}

#[tokio::test]
async fn a_clock_that_wavers_costs_no_more_than_one_that_is_right() {
    let world = World::of_all().await;
    for _ in 0..20 {
        world.wall_jumps(Duration::from_mins(5), Duration::ZERO);
        world.keeper.sweep();
        world.wall_jumps(Duration::ZERO, Duration::from_mins(5));
        world.keeper.sweep();
    }
    world.there_is_no_storm(3).await;
}

#[tokio::test]
async fn a_restart_after_the_clock_was_set_back_serves_what_lives() {
    let world = World::of_all().await;
    world.wall_jumps(Duration::ZERO, DAY);
    let world = world.restarted().await;
    world.all_are_served().await;
    assert!(world.issuer.count() <= 6, "{}", world.issuer.count());
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_consent_whose_end_date_a_jump_has_passed_lives_on() {
    let world = World::of_all().await;
    world.wall_jumps(DAY * 400, Duration::ZERO);
    world.all_are_served().await;
    world.wall_jumps(Duration::ZERO, DAY * 400);
    world.all_are_served().await;
}
