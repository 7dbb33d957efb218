mod places;
mod reference;

use std::{
    fs::{DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::Serialize;

use self::places::Places;
use super::{
    Exit, Failure, Global, parse,
    print::{Out, Tone},
};
use crate::{
    config::{self, Config, PostgresConfig, VaultConfig},
    vault::{
        Identity, Vault, VaultError,
        postgres::{Settings, Store},
    },
};

/// A configuration holds no secrets, and `consentry token` of other users reads it.
const CONFIG_MODE: u32 = 0o644;
/// Others must be able to pass the socket's folder; the socket's own mode says who may connect.
const SOCKET_FOLDER_MODE: u32 = 0o755;

/// What `init` made and what it left as it was.
#[derive(Debug, Default, Serialize)]
struct Report {
    made: Vec<Thing>,
    kept: Vec<Thing>,
    /// The public key of the identity.
    #[serde(skip_serializing_if = "String::is_empty")]
    recipient: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Thing {
    what: &'static str,
    path: PathBuf,
}

/// `consentry init`
pub(super) fn init(global: &Global, out: &mut Out) -> Result<Exit, Failure> {
    let named = global.named_config();
    let file = match &named {
        Some(file) => file.clone(),
        // What is there is used wherever it is found.
        None => config::locate(None).map_or_else(|_| places::usual_configuration(), |located| located.file),
    };
    let mut report = Report::default();
    let result = make(&file, || Places::of(&file, named.is_some()), &mut report);
    // Also where a later step failed: what was made stays, and the next run goes on from there.
    tell(&report, global.json, out)?;
    let config = result?;
    if !global.json {
        let flag = if named.is_some() { format!(" --config {}", file.display()) } else { String::new() };
        let provider =
            if config.providers.is_empty() { format!("add a provider to {}, ", file.display()) } else { String::new() };
        out.line(format_args!(
            "\nNext: keep a copy of the identity somewhere else, {provider}and then\n  \
             consentry{flag} check\n  consentry{flag} run"
        ))?;
    }
    Ok(Exit::Done)
}

/// Makes what is missing of: the configuration, the identity, the vault, the socket's folder.
fn make(file: &Path, places: impl FnOnce() -> Result<Places, Failure>, report: &mut Report) -> Result<Config, Failure> {
    let is_there = file.try_exists().unwrap_or(true);
    if !is_there {
        let text = reference::with_places(config::REFERENCE, &places()?)?;
        write_new(file, &text).map_err(cannot_make("configuration", file))?;
        report.made("configuration", file);
    }
    let config = Config::load(&parse::located(file.to_owned()))?;
    if is_there {
        report.kept("configuration", file);
    }
    make_keys(&config.vault, report)?;
    if let Some(folder) = missing_folder_of(&config.socket.path) {
        make_folder(folder, SOCKET_FOLDER_MODE).map_err(cannot_make("folder of the socket", folder))?;
        report.made("folder of the socket", folder);
    }
    Ok(config)
}

/// Makes the identity and the vault that it opens.
fn make_keys(vault: &VaultConfig, report: &mut Report) -> Result<(), Failure> {
    let file = &vault.identity_file;
    let place = vault.place();
    // What is in a database is only known with the identity.
    let there = vault.postgres.is_none() && Vault::exists(&vault.path);
    let failed = |error: VaultError| Failure::of_vault(&error, &place);
    let identity = if file.try_exists().unwrap_or(true) {
        let identity = Identity::read(file).map_err(failed)?;
        report.kept("identity", file);
        identity
    } else if there {
        // A new one could not open the vault, and would hide that the right one is missing.
        return Err(Failure::failed(format!(
            "the vault in {} is there, and the identity that opens it is not: {}",
            vault.path.display(),
            file.display()
        ))
        .with_hint("put the identity file back from its copy; a new one cannot open the vault"));
    } else {
        if let Some(folder) = missing_folder_of(file) {
            make_folder(folder, folder_mode()).map_err(cannot_make("folder of the identity", folder))?;
        }
        let identity = Identity::create(file).map_err(failed)?;
        report.made("identity", file);
        identity
    };
    report.recipient = identity.recipient();
    if let Some(postgres) = &vault.postgres {
        if make_in_database(vault, postgres, &identity).map_err(failed)? {
            report.kept("vault", &place);
        } else {
            report.made("vault", &place);
        }
    } else if there {
        report.kept("vault", &vault.path);
    } else {
        if let Some(folder) = missing_folder_of(&vault.path) {
            make_folder(folder, folder_mode()).map_err(cannot_make("folder of the vault", folder))?;
        }
        Vault::create(vault, &identity).map_err(failed)?;
        report.made("vault", &vault.path);
    }
    Ok(())
}

/// Makes a vault in a database, unless one is there that the identity opens; gives whether one is.
fn make_in_database(vault: &VaultConfig, postgres: &PostgresConfig, identity: &Identity) -> Result<bool, VaultError> {
    let settings = Settings::of(postgres)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| VaultError::Engine { detail: error.to_string() })?;
    runtime.block_on(Store::create(&settings, identity, &vault.recipients))
}

/// The folder that `path` is in, where it still has to be made.
fn missing_folder_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
}

/// For the folders around vault and identity, which guard themselves by their own modes: the system's are passed by
/// others, who read the configuration there; a user's are the user's.
fn folder_mode() -> u32 {
    if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 }
}

impl Report {
    fn made(&mut self, what: &'static str, path: &Path) {
        self.made.push(Thing { what, path: path.to_owned() });
    }

    fn kept(&mut self, what: &'static str, path: &Path) {
        self.kept.push(Thing { what, path: path.to_owned() });
    }
}

fn tell(report: &Report, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        return out.json(report);
    }
    let style = out.style();
    for Thing { what, path } in &report.made {
        out.line(format_args!("{} {what}  {}", style.paint(Tone::Good, "made"), path.display()))?;
    }
    for Thing { what, path } in &report.kept {
        out.line(format_args!("{} {what}  {}", style.paint(Tone::Quiet, "kept"), path.display()))?;
    }
    if !report.recipient.is_empty() {
        out.line(format_args!("     public key  {}", report.recipient))?;
    }
    Ok(())
}

fn cannot_make<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Failure + 'a {
    move |error| {
        let failure =
            |why: &dyn std::fmt::Display| Failure::failed(format!("cannot make the {what} {}: {why}", path.display()));
        if error.kind() == io::ErrorKind::PermissionDenied {
            failure(&"this user may not write there").with_hint(
                "name a configuration in a folder of your own with --config, or run this as the worker's user",
            )
        } else {
            failure(&error)
        }
    }
}

/// Writes a file whole or not at all, durably, and never over another.
fn write_new(file: &Path, text: &str) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.exists() {
        make_folder(folder, 0o755)?;
    }
    let mut written = tempfile::NamedTempFile::new_in(folder)?;
    written.write_all(text.as_bytes())?;
    written.as_file().set_permissions(Permissions::from_mode(CONFIG_MODE))?;
    written.as_file().sync_all()?;
    written.persist_noclobber(file).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Makes a folder and what is missing above it, durably. The mode holds whatever the umask says.
fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    if let Some(above) = missing_folder_of(folder) {
        make_folder(above, mode)?;
    }
    DirBuilder::new().mode(0o700).create(folder)?;
    std::fs::set_permissions(folder, Permissions::from_mode(mode))?;
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above)?.sync_all()
}

#[cfg(test)]
mod tests;
