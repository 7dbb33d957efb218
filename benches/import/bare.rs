//! The baselines: records that become durable, and nothing else.

use std::{fs::OpenOptions, os::unix::fs::FileExt as _, path::PathBuf};

use anyhow::{Context as _, Result};
use consentry::{
    clock::{Clock as _, SystemClock},
    config::{Config, locate},
    vault::Change,
};
use tokio::task::JoinSet;

use crate::common::{
    report::say,
    site::{Fleet, open, records},
};
use consentry::model::Usage;

/// What an enrolment takes in the journal, in bytes: its frame, a sealed grant and a sealed organization.
const FRAME: usize = 480;
/// Commits under way at once, as many as `consentry import` has requests.
const IN_FLIGHT: usize = 32;
/// What begins a measurement.
const BEGIN: &str = "begin";

/// Writes `count` records of the size of an enrolment into a file whose space is taken already, each synced before the
/// next. `arguments`: a configuration, beside which the file is made.
pub(crate) fn journal(arguments: &[String], count: u64) -> Result<()> {
    let path = PathBuf::from(arguments.first().context("a configuration")?).with_file_name("bare");
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let record = [7; FRAME];
    let length = FRAME as u64;
    file.write_all_at(&vec![0; usize::try_from(count * length)?], 0)?;
    file.sync_all()?;
    say(BEGIN);
    for number in 0..count {
        file.write_all_at(&record, number * length)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Commits `count` organizations and their grants as an import leaves them, one pair in each commit. `arguments`: a
/// configuration.
pub(crate) fn vault(arguments: &[String], count: u64) -> Result<()> {
    let file = PathBuf::from(arguments.first().context("a configuration")?);
    let config = Config::load(&locate(Some(&file))?)?;
    let vault = open(&config)?;
    let now = SystemClock::new().now().wall;
    say(BEGIN);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut under_way = JoinSet::new();
        for number in 0..count {
            let mut changes = Vec::from(records(&vault, number, Fleet::Due(Usage::OneTime), now));
            if let Some(Change::PutGrant(grant)) = changes.first_mut() {
                grant.access = None;
            }
            let vault = vault.clone();
            under_way.spawn(async move { vault.commit(changes).await });
            if under_way.len() >= IN_FLIGHT
                && let Some(committed) = under_way.join_next().await
            {
                committed??;
            }
        }
        while let Some(committed) = under_way.join_next().await {
            committed??;
        }
        Ok(())
    })
}
