//! Answers of the database that take long, remembered.

use std::{sync::Arc, time::Duration};

use crate::vault::VaultError;

/// An answer is remembered for so long at least.
const FRESH: Duration = Duration::from_secs(2);
/// And for no longer than this, since it may be the database's absence that took long.
const LONGEST: Duration = Duration::from_mins(2);
/// A question takes one part in so many of the database's time, at most.
const SELDOM: u32 = 20;

/// The last answer to a question, and until when it is good, on the boot-time clock. Locked while it is asked for, so that one asks at a time.
#[derive(Debug)]
pub(super) struct Remembered<T>(tokio::sync::Mutex<Option<(Duration, Arc<T>)>>);

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::default())
    }
}

impl<T> Remembered<T> {
    /// The answer, asked for if the last one is not good any more. Where there is none to be had the last one stays, or is made up by
    /// `otherwise`. `boot`: the boot-time clock.
    pub(super) async fn get(
        &self,
        boot: impl Fn() -> Duration,
        asking: impl Future<Output = Result<T, VaultError>>,
        otherwise: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut last = self.0.lock().await;
        let asked = boot();
        if let Some((until, answer)) = &*last
            && asked < *until
        {
            return Arc::clone(answer);
        }
        let answer = match asking.await {
            Ok(answer) => Arc::new(answer),
            Err(error) => {
                tracing::debug!(%error, "the fleet cannot be counted");
                last.take().map_or_else(|| Arc::new(otherwise()), |(_, answer)| answer)
            }
        };
        *last = Some((good_until(asked, boot()), Arc::clone(&answer)));
        answer
    }
}

/// Until when an answer is remembered that was asked for and given then: the longer it took, the more seldom it is asked for.
fn good_until(asked: Duration, answered: Duration) -> Duration {
    answered + (answered.saturating_sub(asked) * SELDOM).clamp(FRESH, LONGEST)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_question_that_takes_long_is_asked_seldom() {
        assert_eq!(good_until(seconds(10), seconds(10)), seconds(12));
        assert_eq!(good_until(seconds(10), seconds(11)), seconds(31));
        assert_eq!(good_until(seconds(10), seconds(30)), seconds(150), "the database may be back by then");
    }

    #[tokio::test]
    async fn what_was_answered_is_asked_again_when_it_is_old_and_kept_where_nobody_answers() {
        let (remembered, boot) = (Remembered::default(), Cell::new(seconds(100)));
        let ask = async |answer: Result<u32, VaultError>| *remembered.get(|| boot.get(), async { answer }, || 0).await;
        let away = || Err(VaultError::Engine { detail: "it is away".into() });
        assert_eq!(ask(away()).await, 0);
        assert_eq!(ask(Ok(1)).await, 0, "it was asked a moment ago");
        boot.set(seconds(102));
        assert_eq!(ask(Ok(1)).await, 1);
        boot.set(seconds(104));
        assert_eq!(ask(away()).await, 1);
    }
}
