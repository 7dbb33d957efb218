use std::{future::Future, io, thread};

use tokio::{
    runtime::{Builder, EnterGuard, Runtime},
    sync::oneshot,
};

/// A runtime of one thread, for a listener whose callers must not wait for turns of other tasks: a core is given to a thread that
/// wants it for microseconds long before a busy one has ended what it does.
#[derive(Debug)]
pub(crate) struct OwnThread(Option<Runtime>);

impl OwnThread {
    /// A runtime that does nothing yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Some(Builder::new_current_thread().enable_all().build()?)))
    }

    /// What is bound while this is held belongs to the runtime.
    pub(crate) fn enter(&self) -> Option<EnterGuard<'_>> {
        self.0.as_ref().map(Runtime::enter)
    }

    /// Starts the thread, which runs `serving` to its end. What is given back is done then, or when the thread died.
    pub(crate) fn run(
        self,
        name: &str,
        serving: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let (running, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _running = running;
            // All of it, so that it goes away as it should also where no thread can be started.
            let own = self;
            if let Some(runtime) = &own.0 {
                runtime.block_on(serving);
            }
        })?;
        Ok(async {
            // Nothing is ever sent: the other end is dropped.
            let _ = ended.await;
        })
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        // Tokio forbids to wait for a runtime within another, as dropping it would.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn what_it_runs_is_on_another_thread_and_its_end_is_told() {
        let own = OwnThread::new().expect("a runtime");
        let (here, stop) = (thread::current().id(), CancellationToken::new());
        let (told, heard) = oneshot::channel();
        let stopped = stop.clone();
        let serving = async move {
            let _ = told.send((thread::current().id(), thread::current().name().map(str::to_owned)));
            stopped.cancelled().await;
        };
        let ended = own.run("serve", serving).expect("a thread");
        let (id, name) = heard.await.expect("it runs");
        assert_ne!(id, here);
        assert_eq!(name.as_deref(), Some("serve"));
        stop.cancel();
        ended.await;
    }

    #[tokio::test]
    async fn whoever_waits_for_a_thread_that_dies_is_told_too() {
        let own = OwnThread::new().expect("a runtime");
        own.run("serve", async { panic!("on purpose") }).expect("a thread").await;
    }

    #[tokio::test]
    async fn one_that_was_never_started_goes_away_within_another_runtime() {
        let own = OwnThread::new().expect("a runtime");
        assert!(own.enter().is_some());
    }
}
