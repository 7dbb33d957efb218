//! Starting tasks, with what they do and what they give in boxes.
//!
//! For each type of future and of what it gives a runtime makes forty functions, twice, since there are two kinds of runtime: it was a
//! tenth of what there is to compile. In boxes all are of one type, for the price of two allocations. What is started for each request
//! of a caller is a type of its own still.

use std::{
    any::Any,
    marker::PhantomData,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::{
    runtime::Handle,
    task::{JoinError, JoinHandle},
};
use tokio_util::task::TaskTracker;

/// A future in a box.
pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type Output = Box<dyn Any + Send>;

/// Puts a future into a box.
pub(crate) fn boxed<T>(future: impl Future<Output = T> + Send + 'static) -> Boxed<T> {
    Box::pin(future)
}

/// A task that runs; what it gives when it is waited for. Dropping this lets it run on.
#[derive(Debug)]
pub(crate) struct Task<T> {
    running: JoinHandle<Output>,
    gives: PhantomData<fn() -> T>,
}

impl<T> Task<T> {
    const fn of(running: JoinHandle<Output>) -> Self {
        Self { running, gives: PhantomData }
    }
}

impl<T: 'static> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = ready!(Pin::new(&mut self.running).poll(context));
        Poll::Ready(ended.map(|output| *output.downcast().expect("a task gives what it was started with")))
    }
}

/// As [`tokio::spawn`].
pub(crate) fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task::of(tokio::spawn(boxed(async { Box::new(future.await) as Output })))
}

/// As [`TaskTracker::spawn`].
pub(crate) fn spawn_on<T: Send + 'static>(
    tasks: &TaskTracker,
    future: impl Future<Output = T> + Send + 'static,
) -> Task<T> {
    Task::of(tasks.spawn(boxed(async { Box::new(future.await) as Output })))
}

/// As [`tokio::task::spawn_blocking`].
pub(crate) fn spawn_blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let f: Box<dyn FnOnce() -> Output + Send> = Box::new(|| Box::new(f()));
    Task::of(tokio::task::spawn_blocking(f))
}

/// As [`Handle::block_on`].
pub(crate) fn block_on<T>(runtime: &Handle, future: impl Future<Output = T>) -> T {
    let mut output = None;
    {
        let future: Pin<&mut dyn Future<Output = ()>> = pin!(async { output = Some(future.await) });
        runtime.block_on(future);
    }
    output.expect("it has run to its end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_gives_what_it_was_started_with_or_how_it_died() {
        assert_eq!(spawn(async { "text".to_owned() }).await.unwrap(), "text");
        spawn(async {}).await.unwrap();
        assert_eq!(spawn_blocking(|| 7).await.unwrap(), 7);
        assert!(spawn(async { panic!("as a test") }).await.is_err_and(|error: JoinError| error.is_panic()));
        let tasks = TaskTracker::new();
        assert_eq!(spawn_on(&tasks, async { 'c' }).await.unwrap(), 'c');
        assert!(tasks.is_empty());
    }

    #[test]
    fn blocking_gives_what_the_future_gave() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        assert_eq!(block_on(runtime.handle(), async { "text".to_owned() }), "text");
    }
}
