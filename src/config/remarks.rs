//! What is allowed and yet deserves a second look.

use std::time::Duration;

use super::Config;
use crate::model::Usage;

/// What must be left of a grace after an exchange has taken its longest, for a second attempt to be safe (rule 6 of
/// the design).
const GRACE_MARGIN: Duration = Duration::from_secs(2);

pub(super) fn remarks(config: &Config) -> Vec<String> {
    let mut remarks = Vec::new();
    if config.providers.is_empty() {
        remarks.push("no provider is configured, so nothing can be enrolled: add [providers.NAME]".to_owned());
    }
    if config.socket.mode & 0o006 != 0 {
        remarks.push(format!(
            "socket.mode {:04o} lets every local user connect; [[access]] alone decides who is served",
            config.socket.mode
        ));
    }
    if let Some(listen) = config.http_listen.filter(|listen| !listen.ip().is_loopback()) {
        remarks.push(format!(
            "http.listen {listen} can be reached from other machines, and it shows organizations' ids: keep it inside"
        ));
    }
    if config.vault.backup_dir.is_some() && config.schedule.backup.is_empty() {
        remarks.push(
            "vault.backup_dir is set and schedule.backup is not, so no backups are made by themselves".to_owned(),
        );
    }
    if config.vault.backup_dir.as_ref().is_some_and(|folder| folder.starts_with(&config.vault.path)) {
        remarks
            .push("vault.backup_dir is inside vault.path: what is lost with the vault would be its backups".to_owned());
    }
    let least = config.refresh.timeout + GRACE_MARGIN;
    for provider in config.providers.values() {
        if provider.usage == Usage::OneTime && !provider.grace.is_zero() && provider.grace <= least {
            remarks.push(format!(
                "providers.{}: a grace of {} is of no use with refresh.timeout {}: it must be longer than {}",
                provider.name,
                humantime::format_duration(provider.grace),
                humantime::format_duration(config.refresh.timeout),
                humantime::format_duration(least)
            ));
        }
    }
    remarks
}
