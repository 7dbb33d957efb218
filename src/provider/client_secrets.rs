//! The file with the client secrets: read at start, and again when it changes.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::{clock::SharedClock, model::Secret};

/// The largest file, in bytes.
const MAX_FILE: usize = 16 * 1024;
/// The most secrets in a file: one that is going, and one that is coming.
const MAX_SECRETS: usize = 2;
/// How often the file is looked at, at most.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// What is wrong with a file of client secrets, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileProblem {
    /// It is not there.
    #[error("there is no such file; write the client secret into it (mode 0600)")]
    Missing,
    /// It cannot be read.
    #[error("it cannot be read ({0}); make it readable for the worker's user")]
    Unreadable(io::ErrorKind),
    /// It is a folder, a pipe or the like.
    #[error("it is not a regular file; name the file that holds the client secret")]
    NotAFile,
    /// It holds no secret.
    #[error("it is empty; write the client secret into it, one secret a line")]
    Empty,
    /// It is not text.
    #[error("it is not UTF-8 text; write the client secret as it was given, one secret a line")]
    NotUtf8,
    /// It is larger than a file of secrets can be.
    #[error("it is larger than {MAX_FILE} bytes; it may hold client secrets only, one a line")]
    TooLarge,
    /// It holds more than two secrets.
    #[error("it holds {0} lines; keep at most {MAX_SECRETS}, the new client secret and the old one")]
    TooMany(usize),
}

/// The client secrets of one provider.
pub(super) struct ClientSecrets {
    provider: String,
    path: PathBuf,
    clock: SharedClock,
    state: Mutex<State>,
}

struct State {
    secrets: Arc<[Secret]>,
    /// The one that was accepted last, and so is tried first.
    preferred: usize,
    /// Which version of the file they are from.
    stamp: Stamp,
    /// When the file was looked at last, on the boot-time clock.
    checked_at: Duration,
    /// Whether the last look found it unusable, and that was said.
    is_failing: bool,
}

/// What tells one version of a file from another. The inode is among it because Kubernetes replaces a mounted secret by
/// turning a symbolic link to another file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// The secrets at one moment, in the order in which they are to be tried.
pub(super) struct Candidates {
    secrets: Arc<[Secret]>,
    preferred: usize,
}

impl Candidates {
    /// The secret to try after `tried` others.
    pub(super) fn get(&self, tried: usize) -> Option<&Secret> {
        (tried < self.secrets.len()).then(|| &self.secrets[self.position(tried)])
    }

    fn position(&self, tried: usize) -> usize {
        (self.preferred + tried) % self.secrets.len()
    }
}

impl ClientSecrets {
    /// Reads the file for the first time.
    pub(super) fn open(provider: &str, path: &Path, clock: SharedClock) -> Result<Self, SecretFileProblem> {
        let (secrets, stamp) = read(path)?;
        let checked_at = clock.now().boot;
        let state = State { secrets: secrets.into(), preferred: 0, stamp, checked_at, is_failing: false };
        Ok(Self { provider: provider.to_owned(), path: path.to_owned(), clock, state: Mutex::new(state) })
    }

    /// The secrets as they are now: the file is read again where it has changed since the last look.
    pub(super) async fn current(&self) -> Candidates {
        if let Some(known) = self.due() {
            let path = self.path.clone();
            // A file system may hang, and must not take a thread of the runtime with it.
            if let Ok(result) = tokio::task::spawn_blocking(move || read_if_changed(&path, known)).await {
                self.keep(result);
            }
        }
        let state = self.lock();
        Candidates { secrets: Arc::clone(&state.secrets), preferred: state.preferred }
    }

    /// Remembers that of `candidates` the one after `tried` others was accepted.
    pub(super) fn accepted(&self, candidates: &Candidates, tried: usize) {
        let mut state = self.lock();
        if Arc::ptr_eq(&state.secrets, &candidates.secrets) {
            state.preferred = candidates.position(tried);
        }
    }

    /// The version that is known, if it is time to look at the file again; only one caller is told so.
    fn due(&self) -> Option<Stamp> {
        let now = self.clock.now().boot;
        let mut state = self.lock();
        if now.saturating_sub(state.checked_at) < CHECK_EVERY {
            return None;
        }
        state.checked_at = now;
        Some(state.stamp)
    }

    fn keep(&self, result: Result<Option<(Vec<Secret>, Stamp)>, SecretFileProblem>) {
        let mut state = self.lock();
        match result {
            Ok(None) => state.is_failing = false,
            Ok(Some((secrets, stamp))) => {
                tracing::info!(provider.name = self.provider, file = %self.path.display(), "client secrets read again");
                *state = State {
                    secrets: secrets.into(),
                    preferred: 0,
                    stamp,
                    checked_at: state.checked_at,
                    is_failing: false,
                };
            }
            Err(problem) => {
                if !state.is_failing {
                    tracing::warn!(
                        provider.name = self.provider,
                        file = %self.path.display(),
                        error = %problem,
                        "the client secrets cannot be read again; those read before stay in use"
                    );
                }
                state.is_failing = true;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing can panic between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the file at `path` can be used, for the check of a configuration.
pub(super) fn check(path: &Path) -> Result<FileMode, SecretFileProblem> {
    read(path)?;
    let mode = path.metadata().map_err(|error| problem(&error))?.mode();
    Ok(FileMode { group: mode & 0o070 != 0, world: mode & 0o007 != 0 })
}

/// Who else may use a file.
pub(super) struct FileMode {
    /// Its group.
    pub(super) group: bool,
    /// Everybody.
    pub(super) world: bool,
}

fn read_if_changed(path: &Path, known: Stamp) -> Result<Option<(Vec<Secret>, Stamp)>, SecretFileProblem> {
    let metadata = path.metadata().map_err(|error| problem(&error))?;
    if stamp(&metadata) == known { Ok(None) } else { read(path).map(Some) }
}

fn read(path: &Path) -> Result<(Vec<Secret>, Stamp), SecretFileProblem> {
    // Opening a pipe would wait for a writer, so what it is is asked first.
    if !path.metadata().map_err(|error| problem(&error))?.is_file() {
        return Err(SecretFileProblem::NotAFile);
    }
    let file = File::open(path).map_err(|error| problem(&error))?;
    let metadata = file.metadata().map_err(|error| problem(&error))?;
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE + 64));
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut content).map_err(|error| problem(&error))?;
    if content.len() > MAX_FILE {
        return Err(SecretFileProblem::TooLarge);
    }
    let text = str::from_utf8(&content).map_err(|_| SecretFileProblem::NotUtf8)?;
    let secrets: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Secret::new).collect();
    match secrets.len() {
        0 => Err(SecretFileProblem::Empty),
        1..=MAX_SECRETS => Ok((secrets, stamp(&metadata))),
        count => Err(SecretFileProblem::TooMany(count)),
    }
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    }
}

fn problem(error: &io::Error) -> SecretFileProblem {
    match error.kind() {
        io::ErrorKind::NotFound => SecretFileProblem::Missing,
        kind => SecretFileProblem::Unreadable(kind),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::{clock::ManualClock, model::Timestamp};

    fn texts(candidates: &Candidates) -> Vec<String> {
        (0..).map_while(|tried| candidates.get(tried)).map(|secret| secret.expose().to_owned()).collect()
    }

    #[test]
    fn a_file_that_cannot_be_used_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        assert!(matches!(read(&path), Err(SecretFileProblem::Missing)));
        assert!(matches!(read(folder.path()), Err(SecretFileProblem::NotAFile)));
        let too_large = "x".repeat(MAX_FILE + 1);
        for (content, expected) in [
            (&b"\n \r\n"[..], "it is empty"),
            (b"\xff\xfe", "not UTF-8"),
            (b"a\nb\nc", "it holds 3 lines"),
            (too_large.as_bytes(), "it is larger"),
        ] {
            fs::write(&path, content).expect("written");
            let problem = read(&path).map(|_| ()).expect_err("unusable").to_string();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[tokio::test]
    async fn the_secret_that_was_accepted_is_tried_first_from_then_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "new\r\n\nold \n").expect("written");
        let clock = ManualClock::at(Timestamp::default());
        let secrets = ClientSecrets::open("p", &path, clock).expect("usable");
        let candidates = secrets.current().await;
        assert_eq!(texts(&candidates), ["new", "old"]);
        secrets.accepted(&candidates, 1);
        assert_eq!(texts(&secrets.current().await), ["old", "new"]);
    }

    #[tokio::test]
    async fn a_swapped_link_is_noticed_within_a_second_and_a_lost_file_keeps_the_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::write(&one, "aaa").expect("written");
        fs::write(&two, "bbb").expect("written");
        symlink(&one, &path).expect("linked");
        let clock = ManualClock::at(Timestamp::default());
        let secrets = ClientSecrets::open("p", &path, clock.clone()).expect("usable");

        let swapped = folder.path().join("swapped");
        symlink(&two, &swapped).expect("linked");
        fs::rename(&swapped, &path).expect("swapped");
        assert_eq!(texts(&secrets.current().await), ["aaa"], "looked at too often");
        clock.advance(CHECK_EVERY);
        assert_eq!(texts(&secrets.current().await), ["bbb"]);

        fs::remove_file(&path).expect("removed");
        clock.advance(CHECK_EVERY);
        assert_eq!(texts(&secrets.current().await), ["bbb"]);
        fs::write(&path, "").expect("written");
        clock.advance(CHECK_EVERY);
        assert_eq!(texts(&secrets.current().await), ["bbb"]);
        fs::write(&path, "ccc").expect("written");
        clock.advance(CHECK_EVERY);
        assert_eq!(texts(&secrets.current().await), ["ccc"]);
    }

    #[tokio::test]
    async fn an_acceptance_does_not_outlive_the_file_it_belongs_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "a\nb").expect("written");
        let clock = ManualClock::at(Timestamp::default());
        let secrets = ClientSecrets::open("p", &path, clock.clone()).expect("usable");
        let old = secrets.current().await;
        fs::write(&path, "only-one").expect("written");
        clock.advance(CHECK_EVERY);
        secrets.current().await;
        secrets.accepted(&old, 1);
        assert_eq!(texts(&secrets.current().await), ["only-one"]);
    }
}
