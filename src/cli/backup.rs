use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Global,
    bytes::Moved,
    parse::Source,
    print::{self, Out},
    sandbox::interrupted,
};
use crate::client::Download;

#[derive(Debug, Args)]
#[command(
    after_help = "The copy is complete and of one moment, and is encrypted to all who can open the vault. Bring it back with\n\
    `consentry restore FILE`.\n\n\
    Examples:\n  consentry backup /mnt/backup/consentry.age\n  consentry backup - | ssh elsewhere 'cat > consentry.age'"
)]
pub(super) struct BackupArgs {
    /// Where it goes; - for standard output
    #[arg(value_name = "FILE")]
    file: Source,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

/// `consentry backup`
pub(super) async fn backup(global: &Global, args: BackupArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = global.client()?;
    let (mut output, path) = match args.file {
        Source::Stdin => (Output::stdout()?, None),
        Source::File(path) => (Output::beside(&path, args.force)?, Some(path)),
    };
    let mut download = client.backup().await?;
    let moved = Moved::new(None);
    let received = tokio::select! {
        received = receive(&mut download, &mut output, &moved) => received,
        signal = interrupted() => Err(signal.err().unwrap_or_else(|| Failure::failed("interrupted"))),
    };
    moved.end();
    received?;
    output.keep(args.force)?;
    let Some(path) = path else { return Ok(Exit::Done) };
    if global.json {
        out.json(&json!({ "file": path, "bytes": moved.bytes() }))?;
    } else {
        out.line(format_args!("backed up to {}, {}", path.display(), print::bytes(moved.bytes())))?;
    }
    Ok(Exit::Done)
}

async fn receive(download: &mut Download, output: &mut Output, moved: &Moved) -> Result<(), Failure> {
    while let Some(bytes) = download.next().await.map_err(|error| {
        Failure::from(error).with_hint("nothing was kept; the worker's log says why it could not go on")
    })? {
        output.write_all(&bytes)?;
        moved.add(bytes.len() as u64);
    }
    Ok(())
}

/// Where a backup goes.
enum Output {
    Stdout(io::Stdout),
    /// A file beside the one that is wanted, which takes its name when it is complete, and is gone if it never is.
    File {
        temporary: tempfile::NamedTempFile,
        path: PathBuf,
    },
}

impl Output {
    fn stdout() -> Result<Self, Failure> {
        if io::stdout().is_terminal() {
            return Err(Failure::new(Exit::Usage, "a backup is no text for a terminal")
                .with_hint("name a file, or let another command read it: consentry backup - | …"));
        }
        Ok(Self::Stdout(io::stdout()))
    }

    fn beside(path: &Path, force: bool) -> Result<Self, Failure> {
        if path.is_dir() {
            return Err(Failure::new(Exit::Usage, format!("{} is a folder; name a file in it", path.display())));
        }
        if !force && path.symlink_metadata().is_ok() {
            return Err(there_already(path));
        }
        let cannot = |error| cannot_write(path, &error);
        let name = path.file_name().ok_or_else(|| cannot(io::Error::other("it has no name")))?;
        // Nobody but its owner may read it, whatever the umask says: tempfile makes it so.
        let temporary = tempfile::Builder::new()
            .prefix(&format!("{}.", name.to_string_lossy()))
            .suffix(".tmp")
            .tempfile_in(folder_of(path))
            .map_err(cannot)?;
        Ok(Self::File { temporary, path: path.to_owned() })
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout(stdout) => Ok(stdout.write_all(bytes)?),
            Self::File { temporary, path } => temporary.write_all(bytes).map_err(|error| cannot_write(path, &error)),
        }
    }

    /// All of it is there: makes it durable, and gives it its name.
    fn keep(self, force: bool) -> Result<(), Failure> {
        let (temporary, path) = match self {
            Self::Stdout(mut stdout) => return Ok(stdout.flush()?),
            Self::File { temporary, path } => (temporary, path),
        };
        let cannot = |error| cannot_write(&path, &error);
        temporary.as_file().sync_all().map_err(cannot)?;
        let named = if force { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        named.map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => there_already(&path),
            _ => cannot(error.error),
        })?;
        File::open(folder_of(&path)).and_then(|folder| folder.sync_all()).map_err(cannot)
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn there_already(path: &Path) -> Failure {
    Failure::failed(format!("{} is there already", path.display())).with_hint("--force replaces it")
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()))
}
