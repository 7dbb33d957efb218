use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Sees to it that something is done by one task at a time, and by none after [`stop`](Self::stop).
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Arc<AtomicBool>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Turns {
    /// The turn; `None` while somebody has it, and once it has ended.
    pub(super) fn take(&self) -> Option<Turn> {
        let free = !self.is_stopping() && !self.taken.swap(true, Ordering::AcqRel);
        free.then(|| Turn(Arc::clone(&self.taken)))
    }

    /// Where the tasks run that have a turn.
    pub(super) const fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Whether nobody is to go on.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Gives no other turn, and waits for the task that has the last.
    pub(super) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    #[cfg(test)]
    pub(super) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }
}

/// Given back when it is dropped: also where its task panics, so that the next one has its turn.
#[derive(Debug)]
pub(super) struct Turn(Arc<AtomicBool>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
