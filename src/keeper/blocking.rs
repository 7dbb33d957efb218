use std::sync::Arc;

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::JoinError,
};

use crate::vault::Part;

/// Runs `f`, which blocks, where it holds up nobody: on a thread of its own. A runtime that has but one thread runs it in
/// place, so that everything there happens in an order that can be repeated.
pub(super) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(f()),
        _ => tokio::task::spawn_blocking(f).await,
    }
}

/// Runs `f` for every part of the names in a vault, each as [`blocking`] does, all at once.
pub(super) async fn blocking_in_parts<T: Send + 'static>(
    f: impl Fn(Part) -> T + Send + Sync + 'static,
) -> Result<Vec<T>, JoinError> {
    let parts = match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => return Ok(vec![f(Part::ALL)]),
        _ => Part::by_cores(),
    };
    let f = Arc::new(f);
    let run = |part| {
        let f = Arc::clone(&f);
        tokio::task::spawn_blocking(move || f(part))
    };
    let running: Vec<_> = parts.into_iter().map(run).collect();
    let mut done = Vec::with_capacity(running.len());
    for part in running {
        done.push(part.await?);
    }
    Ok(done)
}
