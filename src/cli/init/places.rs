use std::{env, ffi::OsString, path::PathBuf};

use crate::cli::{Exit, Failure};

/// Where the things of a worker are, for a configuration that is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) vault: PathBuf,
    pub(super) identity: PathBuf,
    pub(super) socket: PathBuf,
}

impl Places {
    /// The system's folders for root, else the user's own (XDG Base Directory Specification).
    pub(super) fn of_this_user() -> Result<Self, Failure> {
        Self::of(rustix::process::geteuid().is_root(), |name| env::var_os(name))
    }

    fn of(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        if root {
            return Ok(Self {
                vault: "/var/lib/consentry/vault".into(),
                identity: "/etc/consentry/identity.txt".into(),
                socket: "/run/consentry/consentry.sock".into(),
            });
        }
        // The specification has relative paths ignored.
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let Some(home) = absolute("HOME") else {
            return Err(Failure::new(Exit::Failed, "HOME is not set, so there is no place for the vault")
                .with_hint("set HOME, or write a configuration of your own and name it with --config"));
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

    fn places(root: bool, set: &[(&str, &str)]) -> Result<Places, Failure> {
        Places::of(root, |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn a_users_things_are_in_the_users_folders() {
        let found = places(false, &[("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/7")]).expect("places");
        assert_eq!(found.vault, PathBuf::from("/home/me/.local/share/consentry/vault"));
        assert_eq!(found.identity, PathBuf::from("/home/me/.config/consentry/identity.txt"));
        assert_eq!(found.socket, PathBuf::from("/run/user/7/consentry/consentry.sock"));
    }

    #[test]
    fn a_relative_xdg_folder_is_ignored_and_without_any_home_it_says_so() {
        let found = places(false, &[("HOME", "/home/me"), ("XDG_DATA_HOME", "data")]).expect("places");
        assert_eq!(found.vault, PathBuf::from("/home/me/.local/share/consentry/vault"));
        assert_eq!(found.socket, PathBuf::from("/home/me/.local/state/consentry/consentry.sock"));
        assert!(places(false, &[]).is_err());
        assert!(places(true, &[]).is_ok());
    }
}
