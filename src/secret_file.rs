//! A file that holds a secret, or two while one is replaced, one a line: read at start, and again when it changes.
//!
//! Client secrets of providers and signing secrets of webhooks come this way. A file that cannot be used at start is an
//! error; one that goes bad later leaves the secrets that were read before in use, and is warned of once.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::{clock::SharedClock, model::Secret, task};

/// The largest file, in bytes.
const MAX_FILE: usize = 16 * 1024;
/// The most secrets in a file: one that is going, and one that is coming.
const MAX_SECRETS: usize = 2;
/// How often the file is looked at, at most.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// What a file is to hold.
#[derive(Debug)]
pub struct Rules {
    /// What one secret is called in messages, such as `client secret`.
    pub what: &'static str,
    /// What is wrong with one secret, and what to do; without a word of it.
    pub flaw: fn(&Secret) -> Option<&'static str>,
}

/// What is wrong with a file of secrets, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileProblem {
    /// It is not there.
    #[error("there is no such file; write the {0} into it (mode 0600)")]
    Missing(&'static str),
    /// It cannot be read.
    #[error("it cannot be read ({0}); make it readable for the worker's user")]
    Unreadable(io::ErrorKind),
    /// It is a folder, a pipe or the like.
    #[error("it is not a regular file; name the file that holds the {0}")]
    NotAFile(&'static str),
    /// It holds no secret.
    #[error("it is empty; write the {0} into it, one secret a line")]
    Empty(&'static str),
    /// It is not text.
    #[error("it is not UTF-8 text; write the {0} as it was given, one secret a line")]
    NotUtf8(&'static str),
    /// It is larger than a file of secrets can be.
    #[error("it is larger than {MAX_FILE} bytes; it may hold a {0} or two only, one a line")]
    TooLarge(&'static str),
    /// It holds more than two secrets.
    #[error("it holds {lines} lines; keep at most {MAX_SECRETS}, the new {what} and the old one")]
    TooMany {
        /// What one secret is called.
        what: &'static str,
        /// How many lines are not blank.
        lines: usize,
    },
    /// One of its secrets cannot be used.
    #[error("secret {number} in it {flaw}")]
    Flawed {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it, and what to do.
        flaw: &'static str,
    },
}

/// The secrets of one file, as they were when it was last good.
pub struct SecretFile {
    rules: &'static Rules,
    /// Whose secrets they are, for the log.
    holder: String,
    path: PathBuf,
    clock: SharedClock,
    state: Mutex<State>,
}

struct State {
    secrets: Arc<[Secret]>,
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

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SecretFile {
    /// Reads the file for the first time. `holder` is whose secrets they are, for the log.
    pub fn open(
        path: &Path,
        rules: &'static Rules,
        holder: &str,
        clock: SharedClock,
    ) -> Result<Self, SecretFileProblem> {
        let (secrets, stamp) = read(path, rules)?;
        let checked_at = clock.now().boot;
        let state = Mutex::new(State { secrets: secrets.into(), stamp, checked_at, is_failing: false });
        Ok(Self { rules, holder: holder.to_owned(), path: path.to_owned(), clock, state })
    }

    /// The secrets as they are now, at least one: the file is read again where it has changed since the last look. As
    /// long as it has not, this is the same allocation.
    pub async fn current(&self) -> Arc<[Secret]> {
        if let Some(known) = self.due() {
            let (path, rules) = (self.path.clone(), self.rules);
            // A file system may hang, and must not take a thread of the runtime with it.
            if let Ok(result) = task::spawn_blocking(move || read_if_changed(&path, rules, known)).await {
                self.keep(result);
            }
        }
        Arc::clone(&self.lock().secrets)
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
        let (holder, what, file) = (&self.holder, self.rules.what, self.path.display());
        match result {
            Ok(None) => state.is_failing = false,
            Ok(Some((secrets, stamp))) => {
                tracing::info!(holder, what, %file, "secrets read again");
                *state = State { secrets: secrets.into(), stamp, checked_at: state.checked_at, is_failing: false };
            }
            Err(problem) => {
                if !state.is_failing {
                    tracing::warn!(
                        holder,
                        what,
                        %file,
                        error = %problem,
                        "secrets cannot be read again; those read before stay in use"
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

/// Who else may use a file.
#[derive(Clone, Copy, Debug)]
pub struct FileMode {
    /// Its group.
    pub group: bool,
    /// Everybody.
    pub world: bool,
}

/// Whether the file at `path` can be used, for the check of a configuration.
pub fn check(path: &Path, rules: &Rules) -> Result<FileMode, SecretFileProblem> {
    read(path, rules)?;
    let mode = path.metadata().map_err(|error| problem(&error, rules))?.mode();
    Ok(FileMode { group: mode & 0o070 != 0, world: mode & 0o007 != 0 })
}

fn read_if_changed(
    path: &Path,
    rules: &Rules,
    known: Stamp,
) -> Result<Option<(Vec<Secret>, Stamp)>, SecretFileProblem> {
    let metadata = path.metadata().map_err(|error| problem(&error, rules))?;
    if stamp(&metadata) == known { Ok(None) } else { read(path, rules).map(Some) }
}

fn read(path: &Path, rules: &Rules) -> Result<(Vec<Secret>, Stamp), SecretFileProblem> {
    // Opening a pipe would wait for a writer, so what it is is asked first.
    if !path.metadata().map_err(|error| problem(&error, rules))?.is_file() {
        return Err(SecretFileProblem::NotAFile(rules.what));
    }
    let file = File::open(path).map_err(|error| problem(&error, rules))?;
    let metadata = file.metadata().map_err(|error| problem(&error, rules))?;
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE + 64));
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut content).map_err(|error| problem(&error, rules))?;
    if content.len() > MAX_FILE {
        return Err(SecretFileProblem::TooLarge(rules.what));
    }
    let text = str::from_utf8(&content).map_err(|_| SecretFileProblem::NotUtf8(rules.what))?;
    let secrets: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Secret::new).collect();
    match secrets.len() {
        0 => return Err(SecretFileProblem::Empty(rules.what)),
        1..=MAX_SECRETS => {}
        lines => return Err(SecretFileProblem::TooMany { what: rules.what, lines }),
    }
    for (index, secret) in secrets.iter().enumerate() {
        if let Some(flaw) = (rules.flaw)(secret) {
            return Err(SecretFileProblem::Flawed { number: index + 1, flaw });
        }
    }
    Ok((secrets, stamp(&metadata)))
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    }
}

fn problem(error: &io::Error, rules: &Rules) -> SecretFileProblem {
    match error.kind() {
        io::ErrorKind::NotFound => SecretFileProblem::Missing(rules.what),
        kind => SecretFileProblem::Unreadable(kind),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::{clock::ManualClock, model::Timestamp};

    const RULES: Rules = Rules {
        what: "test secret",
        flaw: |secret| secret.expose().contains('!').then_some("holds an exclamation mark; take it away"),
    };

    async fn texts(file: &SecretFile) -> Vec<String> {
        file.current().await.iter().map(|secret| secret.expose().to_owned()).collect()
    }

    #[test]
    fn a_file_that_cannot_be_used_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        assert!(matches!(read(&path, &RULES), Err(SecretFileProblem::Missing(_))));
        assert!(matches!(read(folder.path(), &RULES), Err(SecretFileProblem::NotAFile(_))));
        let too_large = "x".repeat(MAX_FILE + 1);
        for (content, expected) in [
            (&b"\n \r\n"[..], "it is empty; write the test secret into it"),
            (b"\xff\xfe", "not UTF-8"),
            (b"a\nb\nc", "it holds 3 lines"),
            (b"a\nb!", "secret 2 in it holds an exclamation mark"),
            (too_large.as_bytes(), "it is larger"),
        ] {
            fs::write(&path, content).expect("written");
            let problem = read(&path, &RULES).map(|_| ()).expect_err("unusable").to_string();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn the_debug_form_shows_no_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "hush-marker").expect("written");
        let file = SecretFile::open(&path, &RULES, "p", ManualClock::at(Timestamp::default())).expect("usable");
        assert!(!format!("{file:?}").contains("hush"));
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
        let secrets = SecretFile::open(&path, &RULES, "p", clock.clone()).expect("usable");

        let swapped = folder.path().join("swapped");
        symlink(&two, &swapped).expect("linked");
        fs::rename(&swapped, &path).expect("swapped");
        assert_eq!(texts(&secrets).await, ["aaa"], "looked at too often");
        clock.advance(CHECK_EVERY);
        assert_eq!(texts(&secrets).await, ["bbb"]);

        fs::remove_file(&path).expect("removed");
        clock.advance(CHECK_EVERY);
        assert_eq!(texts(&secrets).await, ["bbb"]);
        for unusable in ["", "ccc!"] {
            fs::write(&path, unusable).expect("written");
            clock.advance(CHECK_EVERY);
            assert_eq!(texts(&secrets).await, ["bbb"]);
        }
        fs::write(&path, "ccc\nddd").expect("written");
        clock.advance(CHECK_EVERY);
        assert_eq!(texts(&secrets).await, ["ccc", "ddd"]);
    }
}
