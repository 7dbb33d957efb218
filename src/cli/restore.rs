use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use clap::Args;
use serde_json::json;
use tokio::runtime::Runtime;

use super::{
    Exit, Failure, Global,
    bytes::Moved,
    parse::{self, Source},
    print::Out,
};
use crate::{
    config::{Config, PostgresConfig},
    vault::{
        Accepted, End, Gap, Identity, Restored, Vault, VaultError,
        postgres::{Settings, Store},
    },
};

#[derive(Debug, Args)]
#[command(
    after_help = "No worker may run. On a new machine it takes the configuration, the identity that it names (one that the backup is\n\
    encrypted to) and the backup. Every one-time grant is in doubt afterwards, reason restored: its token may have been\n\
    spent since the backup, and spending it again would end the consent. It is served while its access token lives; then\n\
    `consentry org resolve` says what to do with it. Others just go on.\n\n\
    Examples:\n  consentry restore /mnt/backup/consentry.age\n  ssh elsewhere cat consentry.age | consentry restore -\n  \
    consentry restore --in-place      # after a snapshot of the volume was put back"
)]
pub(super) struct RestoreArgs {
    /// The backup; - for standard input
    #[arg(value_name = "FILE", required_unless_present = "in_place")]
    file: Option<Source>,
    /// Take the vault that is there as it is, after an older copy of its files was put back
    #[arg(long, conflicts_with = "file")]
    in_place: bool,
}

/// `consentry restore`
pub(super) fn restore(global: &Global, args: &RestoreArgs, out: &mut Out) -> Result<Exit, Failure> {
    let config = global.load()?;
    let vault = &config.vault;
    let identity = Identity::read(&vault.identity_file).map_err(|error| Failure::of_vault(&error, &vault.path))?;
    let place = vault.place();
    if let Some(file) = &args.file {
        let restored = bring_back(&config, &identity, file)?;
        tell_restored(&restored, &place, global.json, out)?;
    } else {
        let accepted = match &vault.postgres {
            Some(postgres) => accept_database(postgres, &identity),
            None => Vault::accept(vault, &identity),
        };
        let accepted = accepted.map_err(|error| Failure::of_vault(&error, &place))?;
        tell_accepted(&accepted, &place, global.json, out)?;
    }
    if !global.json {
        if vault.postgres.is_none()
            && let Some(owner) = other_owner(&vault.path)
        {
            let path = vault.path.display();
            out.line(format_args!("its files are root's, in a folder of user {owner}'s: chown -R {owner} {path}"))?;
        }
        out.line("next: consentry check && consentry run")?;
    }
    Ok(Exit::Done)
}

/// Takes the database as it is.
fn accept_database(postgres: &PostgresConfig, identity: &Identity) -> Result<Accepted, VaultError> {
    let settings = Settings::of(postgres)?;
    runtime()?.block_on(Store::accept(&settings, identity))
}

fn runtime() -> Result<Runtime, VaultError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| VaultError::Engine { detail: error.to_string() })
}

/// Whom the folder around the vault belongs to, where root has made a vault that is as a rule not root's to use.
fn other_owner(vault: &Path) -> Option<u32> {
    let owner = |path: &Path| path.metadata().ok().map(|about| about.uid());
    let around = vault.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    owner(around).filter(|around| owner(vault) == Some(0) && *around != 0)
}

fn bring_back(config: &Config, identity: &Identity, file: &Source) -> Result<Restored, Failure> {
    let path = &config.vault.place();
    let (input, length): (Box<dyn Read>, _) = match file {
        Source::Stdin => (Box::new(io::stdin().lock()), None),
        Source::File(file) => {
            let cannot = |error| Failure::failed(format!("cannot read {}: {error}", file.display()));
            let opened = parse::open(file).map_err(cannot)?;
            let metadata = opened.metadata().map_err(cannot)?;
            (Box::new(opened), metadata.is_file().then_some(metadata.len()))
        }
    };
    let moved = Moved::new(length);
    let mut read = |bytes| moved.add(bytes);
    let restored = if config.vault.postgres.is_some() {
        let to = End { config: &config.vault, identity };
        runtime().and_then(|runtime| runtime.block_on(Vault::restore_into_database(to, input, &mut read)))
    } else {
        Vault::restore(&config.vault, identity, input, &mut read)
    };
    moved.end();
    restored.map_err(|error| match error {
        VaultError::AlreadyThere { .. } => Failure::of_vault(&error, path).with_hint(
            "none is ever overwritten: move its folder away first; where it is itself an older copy that was put back, use \
             consentry restore --in-place",
        ),
        VaultError::BackupUnusable { .. } => Failure::failed(error.to_string()),
        _ => Failure::of_vault(&error, path),
    })
}

fn tell_restored(restored: &Restored, path: &Path, json: bool, out: &mut Out) -> Result<(), Failure> {
    let Restored { begun_at, grants, organizations, .. } = restored;
    if json {
        return out.json(&json!({
            "vault": path, "backed_up_at": begun_at, "grants": grants, "organizations": organizations,
        }));
    }
    out.line(format_args!(
        "restored {} as of {begun_at}: {organizations} organizations, {grants} grants; those with one-time tokens are in doubt",
        path.display()
    ))
}

fn tell_accepted(accepted: &Accepted, path: &Path, json: bool, out: &mut Out) -> Result<(), Failure> {
    let Accepted { gap, grants, .. } = accepted;
    if json {
        let missing = match gap {
            Gap::Unknown => json!(null),
            Gap::Commits(first, last) => json!({ "first": first, "last": last }),
            Gap::After(last) => json!({ "first": last + 1, "last": null }),
        };
        return out.json(&json!({ "vault": path, "grants": grants, "missing_commits": missing }));
    }
    out.line(format_args!(
        "accepted {} as it is: {grants} grants; those with one-time tokens are in doubt",
        path.display()
    ))?;
    let gone = match gap {
        Gap::Unknown => "whatever was committed after this copy was made is gone".to_owned(),
        Gap::Commits(first, last) if first == last => format!("commit {first} is gone"),
        Gap::Commits(first, last) => format!("commits {first} to {last} are gone"),
        Gap::After(last) => format!("commits after {last}, if there were any, are gone"),
    };
    out.line(format_args!("{gone}; organizations enrolled since then have to be enrolled again"))
}
