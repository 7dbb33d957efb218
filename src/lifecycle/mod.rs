//! Pure rules: what becomes of a grant when something happens to it, and when it is due next.
//!
//! Nothing here does I/O, reads a clock or draws a random number: times, chance and facts about other grants are
//! passed in, so that every rule can be tested by table and by property. The code around it only carries out what
//! is decided here.

mod backoff;
mod due;
mod ended;
mod enrolment;
mod farewell;
#[cfg(test)]
mod properties;
mod remaining;
mod renewal;
#[cfg(test)]
mod replicas;
mod serve;
mod warning;

use std::time::Duration;

#[cfg(test)]
pub(crate) use self::ended::tests as fixtures;
pub use backoff::{MAX_BACKOFF, MAX_RETRY_AFTER, backoff};
pub use due::{DoubtfulTry, Fleet, REFUSED_INTERVAL, Situation, due, may_try, refresh_after, retry_in_grace, warm};
pub use ended::{
    Ended, LOST_AFTER, LOST_REFUSALS, Notice, REFUSALS_APART, REFUSED_AGAIN, Verdict, abandoned, closes, crashed,
    exchange_ended, out_of_date, paused, set_aside, without_new_access,
};
pub use enrolment::{Enrolling, EnrolmentError, new_grant, valid_labels};
pub use farewell::{GRAVE_KEPT, UNFINISHED_KEPT, UNSPENT_KEPT, grave, is_grave, may_go};
pub use remaining::{refresh_moment, remaining, surely_over};
pub use renewal::{
    AWAITING_KEPT, Judgement, Reach, Redeemed, Standing as PlaceStanding, generation, judge, new_consent,
};
pub use serve::{FROZEN_RETRY, Standing, Verdict as ServeVerdict, serve};
pub use warning::{Warning, days_left, warn, warns_at};

use crate::config::{InDoubtPolicy, KeepWarm};

/// What the configuration says that the rules depend on; one for each provider.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Share of an access token's life after which it is refreshed.
    pub refresh_at: f64,
    /// Which organizations are refreshed ahead of time.
    pub keep_warm: KeepWarm,
    /// The longest an exchange may take.
    pub timeout: Duration,
    /// A refresh token unused for longer ends.
    pub idle_lifetime: Option<Duration>,
    /// What to do by itself with a grant in doubt.
    pub in_doubt: InDoubtPolicy,
}
