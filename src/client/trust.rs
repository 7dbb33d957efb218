use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use crate::model::OVERFLOW_ID;

/// Permission bits that let others than the owner put something in a folder's place.
const OTHERS_WRITE: u32 = 0o022;

/// Whose sockets a client believes.
///
/// What is sent can be a refresh token, and what comes back is used as an access token, so the process that listens
/// must run as one of these, as `SO_PEERCRED` tells (the file's own owner proves nothing: who can make a file there
/// owns it):
///
/// - root;
/// - the user of this process;
/// - the owner of the folder that holds the socket, if nobody but root, that owner or this user can write to any
///   folder above it: only then has that folder been put there on purpose, as `/run/consentry` is by systemd;
/// - users that were named with [`Trust::uid`], for folders that several users share, as the containers of one pod do.
///
/// The overflow uid 65534 is never believed: several users hide behind it.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    uids: Vec<u32>,
}

impl Trust {
    /// Believes `uid` too.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uids.push(uid);
        self
    }

    /// Whether a process of user `uid` that listens at `socket` is believed.
    pub(super) fn covers(&self, socket: &Path, uid: u32) -> bool {
        if uid == OVERFLOW_ID {
            return false;
        }
        let own = rustix::process::geteuid().as_raw();
        uid == 0 || uid == own || self.uids.contains(&uid) || is_owner_of_a_placed_folder(socket, uid, own)
    }
}

/// Whether `uid` owns the folder of `socket`, and nobody but root, `uid` and `own` could have put that folder there.
fn is_owner_of_a_placed_folder(socket: &Path, uid: u32, own: u32) -> bool {
    let folder = match socket.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => return false,
    };
    let Ok(folder) = folder.canonicalize() else { return false };
    let Ok(metadata) = folder.metadata() else { return false };
    metadata.uid() == uid
        && folder.ancestors().skip(1).all(|above| {
            above.metadata().is_ok_and(|above| {
                [0, uid, own].contains(&above.uid()) && above.permissions().mode() & OTHERS_WRITE == 0
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn root_and_the_own_user_are_believed_anywhere() {
        let socket = Path::new("/tmp/anything.sock");
        assert!(Trust::default().covers(socket, 0));
        assert!(Trust::default().covers(socket, own()));
    }

    #[test]
    fn a_stranger_is_believed_only_when_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s.sock");
        assert!(!Trust::default().covers(&socket, 4711));
        assert!(Trust::default().uid(4711).covers(&socket, 4711));
    }

    #[test]
    fn the_overflow_uid_is_never_believed() {
        assert!(!Trust::default().uid(OVERFLOW_ID).covers(Path::new("/run/x.sock"), OVERFLOW_ID));
    }

    #[test]
    fn a_folder_that_anybody_could_have_made_proves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        // Below /tmp: the owner fits, and still anybody could have made a folder of that name first.
        assert!(!is_owner_of_a_placed_folder(&folder.path().join("s.sock"), own(), 4711));
        // Below /: only root could have made it.
        assert!(is_owner_of_a_placed_folder(Path::new("/etc/s.sock"), 0, 4711));
        assert!(!is_owner_of_a_placed_folder(Path::new("/etc/s.sock"), 4711, 4711));
    }
}
