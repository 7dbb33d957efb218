use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::cli::{Exit, Failure};

/// Below this folder a configuration is the machine's, and the rest then goes into the system's folders too.
const SYSTEM: &str = "/etc";
/// The configuration that root makes where none is found: where every command finds it, from any working directory.
const SYSTEM_CONFIG: &str = "/etc/consentry/consentry.toml";
/// The configuration that others make where none is found, below the working directory.
const USER_CONFIG: &str = "config/consentry.toml";
/// The longest path of a socket that the configuration takes, in bytes.
const MAX_SOCKET_PATH: usize = 102;

/// Where the things of a worker are, for a configuration that is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) vault: PathBuf,
    pub(super) identity: PathBuf,
    pub(super) socket: PathBuf,
}

/// The configuration that is made where none was named and none is found.
pub(super) fn usual_configuration() -> PathBuf {
    if rustix::process::geteuid().is_root() { SYSTEM_CONFIG.into() } else { USER_CONFIG.into() }
}

impl Places {
    /// The places that go with a new configuration at `file`: the system's folders for one below `/etc`; beside it
    /// for one that somebody named, so that nothing is made elsewhere than where they pointed; else the user's own
    /// folders.
    pub(super) fn of(file: &Path, named: bool) -> Result<Self, Failure> {
        let cannot = |error| Failure::failed(format!("cannot tell where {} is: {error}", file.display()));
        let file = std::path::absolute(file).map_err(cannot)?;
        if file.starts_with(SYSTEM) {
            Ok(Self::of_the_system())
        } else if named {
            Self::beside(&file)
        } else {
            Self::of_a_user(|name| env::var_os(name))
        }
    }

    fn of_the_system() -> Self {
        Self {
            vault: "/var/lib/consentry/vault".into(),
            identity: "/etc/consentry/identity.txt".into(),
            socket: "/run/consentry/consentry.sock".into(),
        }
    }

    fn beside(file: &Path) -> Result<Self, Failure> {
        let folder = file.parent().unwrap_or(Path::new("/"));
        // Without `..` and links where that can be told already; a folder that is still to be made stays as given.
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let socket = folder.join("consentry.sock");
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(Failure::failed(format!(
                "the socket beside the configuration would be {}, which is {length} bytes long: at most \
                 {MAX_SOCKET_PATH} can be had",
                socket.display()
            ))
            .with_hint(
                "name a configuration in a folder with a shorter path, or write one with a [socket] path of your own",
            ));
        }
        Ok(Self { vault: folder.join("vault"), identity: folder.join("identity.txt"), socket })
    }

    /// The user's own folders (XDG Base Directory Specification).
    fn of_a_user(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        // The specification has relative paths ignored.
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let Some(home) = absolute("HOME") else {
            return Err(Failure::new(Exit::Failed, "HOME is not set, so there is no place for the vault")
                .with_hint("set HOME, or name a configuration with --config: the rest is then made beside it"));
        };
        let below = |name: &str, usual: &str| absolute(name).unwrap_or_else(|| home.join(usual)).join("consentry");
        let socket = absolute("XDG_RUNTIME_DIR")
            .map_or_else(|| below("XDG_STATE_HOME", ".local/state"), |folder| folder.join("consentry"));
        Ok(Self {
            vault: below("XDG_DATA_HOME", ".local/share").join("vault"),
            identity: below("XDG_CONFIG_HOME", ".config").join("identity.txt"),
            socket: socket.join("consentry.sock"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(set: &[(&str, &str)]) -> Result<Places, Failure> {
        Places::of_a_user(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn a_users_things_are_in_the_users_folders() {
        let found = users(&[("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/7")]).expect("places");
        assert_eq!(found.vault, PathBuf::from("/home/me/.local/share/consentry/vault"));
        assert_eq!(found.identity, PathBuf::from("/home/me/.config/consentry/identity.txt"));
        assert_eq!(found.socket, PathBuf::from("/run/user/7/consentry/consentry.sock"));
    }

    #[test]
    fn a_relative_xdg_folder_is_ignored_and_without_any_home_it_says_so() {
        let found = users(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "data")]).expect("places");
        assert_eq!(found.vault, PathBuf::from("/home/me/.local/share/consentry/vault"));
        assert_eq!(found.socket, PathBuf::from("/home/me/.local/state/consentry/consentry.sock"));
        assert!(users(&[]).is_err());
    }

    #[test]
    fn a_configuration_that_was_named_has_everything_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().canonicalize().expect("there");
        let found = Places::of(&folder.path().join("mine.toml"), true).expect("places");
        assert_eq!(found.vault, real.join("vault"));
        assert_eq!(found.identity, real.join("identity.txt"));
        assert_eq!(found.socket, real.join("consentry.sock"));
        let later = Places::of(Path::new("/srv/not/yet/there/c.toml"), true).expect("places");
        assert_eq!(later.vault, PathBuf::from("/srv/not/yet/there/vault"));
    }

    #[test]
    fn a_configuration_below_etc_goes_with_the_systems_folders_whoever_named_it() {
        for named in [true, false] {
            let found = Places::of(Path::new("/etc/consentry/consentry.toml"), named).expect("places");
            assert_eq!(found, Places::of_the_system());
        }
        assert_ne!(Places::of(Path::new("/etcetera/c.toml"), true).expect("places"), Places::of_the_system());
    }

    #[test]
    fn a_folder_too_deep_for_a_socket_is_told_before_anything_is_made() {
        let file = PathBuf::from("/").join("x".repeat(90)).join("c.toml");
        let failure = Places::of(&file, true).expect_err("too long");
        assert!(failure.to_string().contains("bytes long"), "{failure}");
    }
}
