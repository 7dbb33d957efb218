use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A future that is polled only when it has asked for that, however often the task that waits for it wakes for something else: a
/// connection wakes for each request, and what ends it comes once.
#[derive(Debug)]
pub(super) struct Seldom<F> {
    future: F,
    /// What the future was polled with last, and the same as a waker.
    asked: Option<(Arc<Asked>, Waker)>,
}

/// Whether the future asked to be polled, and the task that polls it.
#[derive(Debug)]
struct Asked {
    is_asked: AtomicBool,
    task: Waker,
}

impl Wake for Asked {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_asked.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<F: Future + Unpin> Seldom<F> {
    pub(super) const fn new(future: F) -> Self {
        Self { future, asked: None }
    }

    /// The future, to be changed: it is polled the next time.
    pub(super) fn change(&mut self) -> &mut F {
        self.asked = None;
        &mut self.future
    }
}

impl<F: Future + Unpin> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, asked } = &mut *self;
        let (asked, waker) = match asked {
            Some(asked) if asked.0.task.will_wake(context.waker()) => asked,
            // It was never polled, or by another task, or was changed.
            other => {
                let asked = Arc::new(Asked { is_asked: AtomicBool::new(true), task: context.waker().clone() });
                other.insert((Arc::clone(&asked), Waker::from(asked)))
            }
        };
        if !asked.is_asked.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        // Before it is polled: what it asks for meanwhile counts.
        asked.is_asked.swap(false, Ordering::Acquire);
        Pin::new(future).poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, sync::atomic::AtomicUsize};

    use tokio::sync::Notify;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn it_ends_when_its_future_does_also_where_that_is_told_by_another_thread() {
        let token = CancellationToken::new();
        let mut waiting = Seldom::new(Box::pin(token.clone().cancelled_owned()));
        assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut waiting).poll(context))).await.is_pending());
        let canceller = std::thread::spawn(move || token.cancel());
        waiting.await;
        canceller.join().expect("no panic");
    }

    #[tokio::test]
    async fn its_future_is_polled_only_when_it_asked_for_that() {
        let (polls, bell) = (AtomicUsize::new(0), Notify::new());
        let mut rung = pin!(bell.notified());
        let mut waiting = Seldom::new(poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            rung.as_mut().poll(context)
        }));
        for _ in 0..3 {
            assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut waiting).poll(context))).await.is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        bell.notify_waiters();
        waiting.await;
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn whoever_waits_for_it_later_is_woken_and_not_who_waited_before() {
        let token = CancellationToken::new();
        let mut waiting = Seldom::new(Box::pin(token.clone().cancelled_owned()));
        // Of a task that is gone.
        let mut gone = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut waiting).poll(&mut gone).is_pending());
        let waited = tokio::spawn(waiting);
        tokio::task::yield_now().await;
        token.cancel();
        waited.await.expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_was_changed_is_polled_again() {
        let hour = std::time::Duration::from_hours(1);
        let mut waiting = Seldom::new(Box::pin(tokio::time::sleep(hour)));
        assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut waiting).poll(context))).await.is_pending());
        let started = tokio::time::Instant::now();
        waiting.change().as_mut().reset(started + hour * 2);
        waiting.await;
        assert_eq!(started.elapsed().as_secs(), 7200);
    }
}
