use std::sync::Arc;

use super::{due::last_due, turns::Turns};
use crate::{
    clock::SharedClock,
    config::Config,
    metrics::Metrics,
    model::Timestamp,
    task,
    vault::{Duty, OnDuty, ScheduledBackups, Singular, Vault, VaultError},
};

/// Makes backups when they are due. Cheap to clone.
///
/// The newest file in the folder tells when the last one was made, and nothing else is remembered: one that was missed is
/// made as soon as somebody looks, and looking twice makes one. Of workers that share a vault one makes each, in its own folder, and
/// the vault tells the others.
#[derive(Clone, Debug)]
pub struct BackupSchedule(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backups: ScheduledBackups,
    pattern: String,
    timezone: String,
    vault: Vault,
    clock: SharedClock,
    metrics: Metrics,
    /// One is made at a time,
    turns: Turns,
    /// by one worker of those that share the vault.
    duty: Duty,
}

impl BackupSchedule {
    /// The schedule of the configuration; `None` where it has none. The newest backup in the folder counts as the last that
    /// was made.
    pub fn of(config: &Config, vault: &Vault, clock: &SharedClock, metrics: &Metrics) -> Option<Self> {
        let folder = config.vault.backup_dir.clone()?;
        let backups = ScheduledBackups::new(folder, config.vault.backup_keep);
        if let Ok(Some(newest)) = backups.newest(clock.now().wall) {
            vault.backed_up(newest);
            metrics.backed_up(newest);
        }
        if config.schedule.backup.is_empty() {
            return None;
        }
        Some(Self(Arc::new(Inner {
            backups,
            pattern: config.schedule.backup.clone(),
            timezone: config.schedule.timezone.clone(),
            vault: vault.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            turns: Turns::default(),
            duty: vault.duty(Singular::Backup, clock),
        })))
    }

    /// Looks whether a backup is due, and makes it, in the background. Has to be called within a Tokio runtime.
    pub fn wake(&self) {
        let Some(turn) = self.0.turns.take() else { return };
        let inner = Arc::clone(&self.0);
        let tasks = self.0.turns.tasks().clone();
        task::spawn_on(self.0.turns.tasks(), async move {
            if let Some(on_duty) = inner.duty.begin().await {
                let made = tasks.spawn_blocking(move || {
                    let _given_back_at_its_end = turn;
                    inner.make_if_due(&on_duty);
                });
                let _ = made.await;
            }
        });
    }

    /// Gives up a backup that is being made, and makes no other.
    pub async fn stop(&self) {
        self.0.turns.stop().await;
    }
}

impl Inner {
    fn make_if_due(&self, on_duty: &OnDuty) {
        let now = self.clock.now().wall;
        let folder = self.backups.folder().display();
        match self.make(now, on_duty) {
            // One that is given up because the worker stops is made after the next start, and one that somebody else is
            // taking just now is waited for.
            Ok(()) | Err(VaultError::BackupUnderWay) => {}
            Err(_) if self.turns.is_stopping() || !on_duty.is_good() => {}
            Err(error) => {
                tracing::error!(%folder, %error, "the scheduled backup could not be made; it is tried again at the next sweep");
            }
        }
    }

    /// Whether the newest backup is older than it should be.
    fn is_due(&self, now: Timestamp) -> Result<bool, VaultError> {
        let Some(due) = last_due(&self.pattern, &self.timezone, now) else { return Ok(false) };
        let shared = self.vault.last_scheduled_backup()?.filter(|at| *at <= now);
        Ok(self.backups.newest(now)?.max(shared).is_none_or(|newest| newest < due))
    }

    fn make(&self, now: Timestamp, on_duty: &OnDuty) -> Result<(), VaultError> {
        // Another worker may have made it in a folder that they share.
        if !self.is_due(now)? {
            return Ok(());
        }
        let over = || self.turns.is_stopping() || !on_duty.is_good();
        let (file, made) = self.backups.write(&self.vault, now, &over)?;
        self.vault.backed_up(now);
        self.metrics.backed_up(now);
        if let Err(error) = self.vault.made_scheduled_backup(now) {
            tracing::warn!(%error, "the other workers do not know of the backup, and one of them will make it once more");
        }
        tracing::info!(file = %file.display(), vault.records = made.records, "a backup was made");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{clock::ManualClock, vault::Identity};

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn names(folder: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text"));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    async fn woken(schedule: &BackupSchedule) {
        schedule.wake();
        while schedule.0.turns.is_taken() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_is_made_when_it_is_due_or_was_missed_and_never_two() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = temporary.path().join("backups");
        let mut config =
            Config::parse("[schedule]\nbackup = \"0 30 2 * * *\"\n[vault]\nbackup_dir = \"x\"\n").expect("good");
        config.vault.path = temporary.path().join("vault");
        config.vault.backup_dir = Some(folder.clone());
        config.vault.backup_keep = 2;
        let identity = Identity::create(&temporary.path().join("identity")).expect("made");
        Vault::create(&config.vault, &identity).expect("made");
        let metrics = Metrics::new(&[]);
        let vault = Vault::open(&config.vault, &identity, metrics.clone()).expect("opened");
        let clock = ManualClock::at(at("2026-11-22T12:00:00Z"));
        let shared: SharedClock = clock.clone();
        let schedule = BackupSchedule::of(&config, &vault, &shared, &metrics).expect("one is configured");

        woken(&schedule).await;
        assert_eq!(names(&folder), ["consentry-20261122T120000Z.age"], "there was none");
        assert_eq!(vault.last_backup_at(), Some(at("2026-11-22T12:00:00Z")));
        let shown =
            format!("consentry_backup_last_success_timestamp_seconds {}", at("2026-11-22T12:00:00Z").as_seconds());
        assert!(metrics.render().contains(&shown), "{}", metrics.render());
        clock.set_wall(at("2026-11-23T01:29:59Z"));
        woken(&schedule).await;
        woken(&schedule).await;
        assert_eq!(names(&folder).len(), 1, "none is due yet");
        clock.set_wall(at("2026-11-25T09:00:00Z"));
        woken(&schedule).await;
        woken(&schedule).await;
        assert_eq!(names(&folder).len(), 2, "three were missed, and one makes up for them");

        // What is not complete is not there, and is tried again.
        clock.set_wall(at("2026-11-26T09:00:00Z"));
        fs::rename(&folder, temporary.path().join("elsewhere")).expect("moved");
        fs::write(&folder, "not a folder").expect("written");
        woken(&schedule).await;
        assert_eq!(vault.last_backup_at(), Some(at("2026-11-25T09:00:00Z")));
        fs::remove_file(&folder).expect("removed");
        fs::rename(temporary.path().join("elsewhere"), &folder).expect("moved");
        woken(&schedule).await;
        assert_eq!(names(&folder), ["consentry-20261125T090000Z.age", "consentry-20261126T090000Z.age"]);

        // After a restart the folder tells.
        let later = BackupSchedule::of(&config, &vault, &shared, &Metrics::new(&[])).expect("configured");
        woken(&later).await;
        assert_eq!(names(&folder).len(), 2);
        schedule.stop().await;
        clock.set_wall(at("2026-11-29T09:00:00Z"));
        schedule.wake();
        assert_eq!(names(&folder).len(), 2);
    }
}
