use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::FlockOperation,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::net::UnixListener;

use crate::config::SocketConfig;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is no such folder.
    #[error("the socket's folder {} does not exist; make it, owned by the worker's user", .0.display())]
    NoFolder(PathBuf),
    /// Nothing can be made in the folder.
    #[error("this user may not make the socket in {}; the folder must belong to the worker's user", .0.display())]
    Folder(PathBuf),
    /// The path cannot be a socket's.
    #[error("{} cannot be a socket's path: it needs a file name and, with {extra} bytes for a temporary one, fewer than 108 bytes", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// How much longer the temporary name is.
        extra: usize,
    },
    /// Somebody put a symbolic link there.
    #[error("{} is a symbolic link, which is not followed; remove it or name its target in [socket] path", .0.display())]
    Symlink(PathBuf),
    /// Something else is there.
    #[error("{} is there and is not a socket; remove it or choose another [socket] path", .0.display())]
    NotASocket(PathBuf),
    /// Somebody accepts connections there.
    #[error("another worker listens on {}; stop it first or choose another [socket] path", .0.display())]
    InUse(PathBuf),
    /// The group cannot be set.
    #[error("cannot give {} to group {group}: {source}; the worker's user has to be in that group", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// The group.
        group: u32,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket that listens, and the file by which it is found.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// Makes the socket as configured. It has its final mode and group before it can be found, and it takes the place of a
/// stale one at once, so that at no moment can a caller connect who should not, or find half a socket.
///
/// A lock beside it (`.NAME.lock`, which stays) makes sure that of two workers which start at the same time, one is
/// refused. Has to be called within a Tokio runtime.
pub(super) fn listen(config: &SocketConfig) -> Result<Listening, BindError> {
    let path = &config.path;
    let temporary = beside(path, "new")?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(BindError::NoFolder(folder.to_owned()));
    }
    let lock = lock(path, &beside(path, "lock")?).map_err(|error| match error {
        BindError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            BindError::Folder(folder.to_owned())
        }
        error => error,
    })?;
    ensure_free(path)?;
    // With the lock held, what is there under the temporary name was left by a worker that died half-way.
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(failed("remove", &temporary)(error));
    }
    let socket = socket().map_err(failed("make a socket for", path))?;
    rustix::net::bind(&socket, &address(&temporary)?).map_err(|error| failed("bind", &temporary)(error.into()))?;
    let made = fs::symlink_metadata(&temporary).map_err(failed("look at", &temporary))?;
    let mut file = SocketFile { path: temporary, device: made.dev(), inode: made.ino(), _lock: lock };
    if let Some(group) = config.group {
        let named = |source| BindError::Group { path: path.clone(), group, source };
        chown(&file.path, None, Some(group)).map_err(named)?;
    }
    fs::set_permissions(&file.path, fs::Permissions::from_mode(config.mode))
        .map_err(failed("set the mode of", &file.path))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| failed("listen on", path)(error.into()))?;
    fs::rename(&file.path, path).map_err(failed("move the socket to", path))?;
    file.path.clone_from(path);
    let listener =
        UnixListener::from_std(std::os::unix::net::UnixListener::from(socket)).map_err(failed("listen on", path))?;
    Ok(Listening { listener, file })
}

/// The file by which a socket is found; removed when this is dropped, if it is still the same file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Held until the file is gone, so that no other worker has put its own there in between.
    _lock: fs::File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket.path = %self.path.display(), %error, "cannot remove the socket's file");
        }
    }
}

/// The name of a file that belongs to the socket at `path`.
fn beside(path: &Path, suffix: &str) -> Result<PathBuf, BindError> {
    let extra = suffix.len() + 2;
    let name = path.file_name().ok_or_else(|| BindError::Path { path: path.to_owned(), extra })?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(suffix);
    Ok(path.with_file_name(hidden))
}

fn address(path: &Path) -> Result<SocketAddrUnix, BindError> {
    SocketAddrUnix::new(path).map_err(|_| BindError::Path { path: path.to_owned(), extra: ".new.".len() })
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Takes the lock that belongs to the socket at `path`; the kernel gives it back when the process ends.
fn lock(path: &Path, name: &Path) -> Result<fs::File, BindError> {
    let file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(name)
        .map_err(failed("open", name))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(BindError::InUse(path.to_owned())),
        Err(error) => Err(failed("lock", name)(error.into())),
    }
}

/// Fails unless nothing is at `path` but at most a socket on which nobody listens.
fn ensure_free(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if found.is_symlink() {
        return Err(BindError::Symlink(path.to_owned()));
    }
    if !found.is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    let probe = socket().map_err(failed("make a socket for", path))?;
    match rustix::net::connect(&probe, &address(path)?) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // A full queue of waiting connections, or a socket of another kind: somebody is there.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(BindError::InUse(path.to_owned())),
        Err(error) => Err(failed("find out who listens on", path)(error.into())),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError + use<> {
    let path = path.to_owned();
    move |source| BindError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use tempfile::TempDir;
    use tokio::net::UnixStream;

    use super::*;

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn at(path: PathBuf) -> SocketConfig {
        SocketConfig { path, mode: 0o640, group: None }
    }

    fn is_ours(found: &fs::Metadata) -> bool {
        found.file_type().is_socket()
    }

    #[tokio::test]
    async fn the_socket_has_its_mode_and_answers_and_goes_with_its_owner() {
        let folder = folder();
        let config = SocketConfig { group: Some(rustix::process::getegid().as_raw()), ..at(folder.path().join("s")) };
        let listening = listen(&config).expect("free");
        let found = fs::symlink_metadata(&config.path).expect("there");
        assert!(is_ours(&found));
        assert_eq!(found.permissions().mode() & 0o7777, 0o640);
        assert_eq!(found.gid(), rustix::process::getegid().as_raw());
        UnixStream::connect(&config.path).await.expect("somebody listens");
        assert!(!folder.path().join(".s.new").exists());
        drop(listening);
        assert!(!config.path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let folder = folder();
        let config = at(folder.path().join("s"));
        drop(StdListener::bind(&config.path).expect("free"));
        drop(StdListener::bind(folder.path().join(".s.new")).expect("free"));
        let _listening = listen(&config).expect("stale");
        UnixStream::connect(&config.path).await.expect("somebody listens");
    }

    #[tokio::test]
    async fn a_live_socket_is_respected() {
        let folder = folder();
        let config = at(folder.path().join("s"));
        let other = StdListener::bind(&config.path).expect("free");
        assert!(matches!(listen(&config), Err(BindError::InUse(_))));
        drop(other);
        let first = listen(&config).expect("stale");
        assert!(matches!(listen(&config), Err(BindError::InUse(_))));
        UnixStream::connect(&config.path).await.expect("the first still listens");
        drop(first);
        listen(&config).expect("free again");
    }

    #[tokio::test]
    async fn a_worker_whose_socket_was_removed_still_holds_the_place() {
        let folder = folder();
        let config = at(folder.path().join("s"));
        let _first = listen(&config).expect("free");
        fs::remove_file(&config.path).expect("there");
        assert!(matches!(listen(&config), Err(BindError::InUse(_))));
    }

    #[tokio::test]
    async fn a_symbolic_link_is_refused_and_left_alone() {
        let folder = folder();
        let (config, target) = (at(folder.path().join("s")), folder.path().join("elsewhere"));
        std::os::unix::fs::symlink(&target, &config.path).expect("free");
        assert!(matches!(listen(&config), Err(BindError::Symlink(_))));
        assert!(!target.exists());
        assert!(fs::symlink_metadata(&config.path).expect("there").is_symlink());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_refused_and_left_alone() {
        let folder = folder();
        let config = at(folder.path().join("s"));
        fs::write(&config.path, "precious").expect("free");
        assert!(matches!(listen(&config), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&config.path).expect("there"), "precious");
    }

    #[tokio::test]
    async fn a_missing_folder_and_a_path_too_long_are_named() {
        let folder = folder();
        let missing = listen(&at(folder.path().join("no/s"))).expect_err("no folder");
        assert!(missing.to_string().contains("does not exist"), "{missing}");
        let long = listen(&at(folder.path().join("s".repeat(120)))).expect_err("too long");
        assert!(matches!(long, BindError::Path { .. }), "{long}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_longer_ours_stays() {
        let folder = folder();
        let config = at(folder.path().join("s"));
        let listening = listen(&config).expect("free");
        fs::remove_file(&config.path).expect("there");
        let _other = StdListener::bind(&config.path).expect("free");
        drop(listening);
        assert!(is_ours(&fs::symlink_metadata(&config.path).expect("the other's file")));
    }
}
