//! Starting tasks, with what they do in a box.
//!
//! For each type of future a runtime makes forty functions, twice, since there are two kinds of runtime: it was a tenth of what
//! there is to compile. In a box there is one type for each type of result, for the price of an allocation. What is started for each
//! request is a type of its own still.

use std::pin::{Pin, pin};

use tokio::{runtime::Handle, task::JoinHandle};

/// A future in a box.
pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Puts a future into a box.
pub(crate) fn boxed<T>(future: impl Future<Output = T> + Send + 'static) -> Boxed<T> {
    Box::pin(future)
}

/// As [`tokio::spawn`].
pub(crate) fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(boxed(future))
}

/// As [`tokio::task::spawn_blocking`].
pub(crate) fn spawn_blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let f: Box<dyn FnOnce() -> T + Send> = Box::new(f);
    tokio::task::spawn_blocking(f)
}

/// As [`Handle::block_on`].
pub(crate) fn block_on<T>(runtime: &Handle, future: impl Future<Output = T>) -> T {
    let future: Pin<&mut dyn Future<Output = T>> = pin!(future);
    runtime.block_on(future)
}
