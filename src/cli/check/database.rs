//! What `check` says of a vault that is in a database.

use std::sync::Arc;

use super::{Findings, check_recipients};
use crate::{
    cli::Failure,
    clock::{SharedClock, SystemClock},
    config::{Config, PostgresConfig},
    vault::{
        Identity, VaultError,
        postgres::{DatabaseInspection, Settings, Store},
    },
};

/// The database that the vault is in, whoever else uses it; with every record of it where no worker here has it open.
pub(super) async fn check(config: &Config, postgres: &PostgresConfig, every_record: bool, findings: &mut Findings) {
    // Why it cannot be read has been told already.
    let Ok(identity) = Identity::read(&config.vault.identity_file) else { return };
    let place = config.vault.place();
    let clock: SharedClock = Arc::new(SystemClock::new());
    let inspected = async {
        let settings = Settings::of(postgres)?;
        Store::inspect(&settings, &identity, &clock, every_record).await
    };
    let found = match inspected.await {
        Ok(found) => found,
        Err(error) => return findings.error(Failure::of_vault(&error, &place).to_string(), ""),
    };
    tell_server(&found, postgres, findings);
    let Some(schema) = found.schema else {
        return findings.warn(
            format!("{}: it is not there yet", place.display()),
            "`consentry init` or the first worker makes it, where its role may create schemas in that database",
        );
    };
    let Some(vault) = &found.vault else {
        return findings.warn(
            format!("{}: it has no vault yet", place.display()),
            "`consentry init` or the first worker makes it",
        );
    };
    let opened = if every_record { ", and all of its records" } else { "" };
    findings.ok(format!(
        "the vault in {} (version {schema}) opens{opened}: {} records; workers that wrote within the hour: {}",
        place.display(),
        vault.records,
        found.replicas
    ));
    if vault.data_keys > 1 {
        findings.warn("not all records are sealed under the new data key yet", "that goes on when a worker runs");
    }
    check_recipients(config, &vault.recipients, findings);
}

/// Whether the server keeps what it confirms.
fn tell_server(found: &DatabaseInspection, postgres: &PostgresConfig, findings: &mut Findings) {
    let latency = found.latency.as_secs_f64() * 1000.0;
    findings.ok(format!("PostgreSQL {} answers within {latency:.1} ms", found.server));
    if !found.synchronous_standbys.is_empty() {
        let (names, standbys) = (&found.synchronous_standbys, found.standbys);
        findings.ok(format!("commits are confirmed by standbys ({names}); connected: {standbys}"));
        if found.standbys == 0 {
            findings.error(
                "no standby is connected: commits wait, and nothing is refreshed".to_owned(),
                "look at the standbys; the worker goes on by itself once one is back",
            );
        }
    } else if postgres.allow_asynchronous {
        findings.warn(
            "the database confirms commits alone, and loses the latest credentials with its server; that is allowed",
            "set synchronous_standby_names, and take allow_asynchronous away",
        );
    } else {
        findings.error(VaultError::Asynchronous.to_string(), "");
    }
    for (setting, value) in &found.unsafe_settings {
        let what = format!("the database's setting {setting} is {value}");
        match (setting.as_str(), postgres.allow_asynchronous) {
            ("data_checksums", _) => {
                findings
                    .warn(what, "damaged pages would not be noticed; pg_checksums can add them while it is stopped");
            }
            (_, true) => findings.warn(what, "it does not keep what it confirms"),
            (_, false) => findings.error(what, "it does not keep what it confirms, and the worker does not start"),
        }
    }
}
