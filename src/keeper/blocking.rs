use std::sync::Arc;

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::JoinError,
};

use crate::{task, vault::Part};

/// Runs `f`, which blocks, where it holds up nobody: on a thread of its own. A runtime that has but one thread runs it in
/// place, so that everything there happens in an order that can be repeated.
pub(super) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(f()),
        _ => task::spawn_blocking(f).await,
    }
}

/// As [`blocking`], for what reads much of the vault: that waits for a database, or blocks where the vault is on this machine.
pub(super) async fn reading<F>(read: impl FnOnce() -> F + Send + 'static) -> Result<F::Output, JoinError>
where
    F: Future<Output: Send + 'static> + Send,
{
    let here = Handle::current();
    match here.runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(read().await),
        _ => task::spawn_blocking(move || task::block_on(&here, read())).await,
    }
}

/// Runs `read` for every part of the names in a vault, each as [`reading`] does, all at once.
pub(super) async fn reading_in_parts<F>(
    read: impl Fn(Part) -> F + Send + Sync + 'static,
) -> Result<Vec<F::Output>, JoinError>
where
    F: Future<Output: Send + 'static> + Send,
{
    let here = Handle::current();
    let parts = match here.runtime_flavor() {
        RuntimeFlavor::CurrentThread => return Ok(vec![read(Part::ALL).await]),
        _ => Part::by_cores(),
    };
    let read = Arc::new(read);
    let run = |part| {
        let (read, here) = (Arc::clone(&read), here.clone());
        task::spawn_blocking(move || task::block_on(&here, read(part)))
    };
    let running: Vec<_> = parts.into_iter().map(run).collect();
    let mut done = Vec::with_capacity(running.len());
    for part in running {
        done.push(part.await?);
    }
    Ok(done)
}
