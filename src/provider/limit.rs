//! Time limits that let in what has arrived.
//!
//! A process that was stopped (a signal, a suspended machine, a debugger) finds its time up when it goes on, and the answer that came
//! meanwhile unread in the kernel. An answer may hold the only token there is, so that one is read before anybody gives up.

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use tokio::time::{Sleep, sleep, timeout};

/// How often, and for how long each time, what has come is still looked for once the time is up. Each is a wait that begins when the
/// process runs, so that the tasks that read connections have their turn, also where it is stopped again in between.
const LOOKS: u32 = 2;
const LOOK: Duration = Duration::from_millis(250);

/// How long something may take.
pub(crate) struct Limit(Pin<Box<Sleep>>);

impl Limit {
    /// So long from now on.
    pub(crate) fn new(time: Duration) -> Self {
        Self(Box::pin(sleep(time)))
    }

    /// Waits for `future`; `None` where it takes longer, and what it waits for has not come either.
    pub(crate) async fn wait_for<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        tokio::select! {
            biased;
            output = &mut future => return Some(output),
            () = self.0.as_mut() => {}
        }
        for _ in 0..LOOKS {
            if let Ok(output) = timeout(LOOK, &mut future).await {
                return Some(output);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::oneshot, time::advance};

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn what_came_while_the_process_was_stopped_is_taken() {
        let mut limit = Limit::new(TIME);
        advance(TIME * 3).await;
        // Whoever reads the connection has its turn after whoever waits for the answer.
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move { tell.send("an answer") });
        assert_eq!(limit.wait_for(told).await, Some(Ok("an answer")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_is_waited_for_no_longer_than_that() {
        let mut limit = Limit::new(TIME);
        assert_eq!(limit.wait_for(std::future::pending::<()>()).await, None);
        assert_eq!(limit.wait_for(std::future::ready(())).await, Some(()), "what is there needs no time");
    }
}
