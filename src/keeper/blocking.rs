use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::JoinError,
};

/// Runs `f`, which blocks, where it holds up nobody: on a thread of its own. A runtime that has but one thread runs it in
/// place, so that everything there happens in an order that can be repeated.
pub(super) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(f()),
        _ => tokio::task::spawn_blocking(f).await,
    }
}
