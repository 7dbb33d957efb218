//! Wake-ups by the clock on the wall. They only wake: what is due is decided from stored state, so that a missed
//! tick is caught up and a double one does nothing.

mod backup;
mod digest;
mod due;
mod turns;

pub use backup::BackupSchedule;
pub use digest::{Count, DigestSchedule};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

/// Wakes that go on until it is stopped.
pub struct Cron {
    scheduler: JobScheduler,
}

impl std::fmt::Debug for Cron {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cron")
    }
}

/// A schedule that cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("schedule.sweep = {schedule:?} cannot be used: {source}")]
pub struct CronError {
    schedule: String,
    source: JobSchedulerError,
}

impl Cron {
    /// Calls `sweep` by `schedule`, a cron expression with seconds, in UTC.
    pub async fn start(schedule: &str, sweep: impl Fn() + Send + Sync + Clone + 'static) -> Result<Self, CronError> {
        let wrong = |source| CronError { schedule: schedule.to_owned(), source };
        let scheduler = JobScheduler::new().await.map_err(wrong)?;
        let job = Job::new_async(schedule, move |_, _| {
            let sweep = sweep.clone();
            Box::pin(async move { sweep() })
        });
        scheduler.add(job.map_err(wrong)?).await.map_err(wrong)?;
        scheduler.start().await.map_err(wrong)?;
        Ok(Self { scheduler })
    }

    /// Stops waking.
    pub async fn stop(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!(error = %error, "the cron scheduler did not stop");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn it_wakes_by_its_schedule_and_stops() {
        let woken = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&woken);
        let cron = Cron::start("* * * * * *", move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let cron = cron.await.expect("every second");
        while woken.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        cron.stop().await;
    }

    #[tokio::test]
    async fn nonsense_is_named() {
        let error = Cron::start("whenever", || ()).await.expect_err("nonsense");
        assert!(error.to_string().contains("schedule.sweep = \"whenever\""), "{error}");
    }
}
