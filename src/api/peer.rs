use std::{io, sync::Arc};

use tokio::net::UnixStream;

use crate::model::OVERFLOW_ID;

/// The most supplementary groups that Linux lets a process have (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;
/// How many groups are asked for at first; nearly nobody has more.
const FIRST_GROUPS: usize = 32;

/// Who is at the other end of a connection, as the kernel knew it when the connection was made.
///
/// Never the process id: it is 0 across pid namespaces, and may belong to another process by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The effective user id.
    pub uid: u32,
    /// The effective group id.
    pub gid: u32,
    /// The supplementary group ids.
    pub groups: Arc<[u32]>,
}

impl Peer {
    /// Asks the kernel who made this connection.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self { uid: credentials.uid(), gid: credentials.gid(), groups: groups(stream)?.into() })
    }

    /// Whether the caller belongs to the group, by its effective or a supplementary group id.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the kernel could not name the caller in our user namespace, so that the ids could be anybody's.
    pub const fn is_unknown(&self) -> bool {
        self.uid == OVERFLOW_ID || self.gid == OVERFLOW_ID
    }
}

/// The supplementary groups of a connection's other end (`SO_PEERGROUPS`, Linux 4.13).
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut room = FIRST_GROUPS;
    loop {
        match groups_within(stream, room) {
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && room < MAX_GROUPS => {
                room = (room * 8).min(MAX_GROUPS);
            }
            result => return result,
        }
    }
}

/// As [`groups`], but fails with `ERANGE` where there are more than `room`.
fn groups_within(stream: &UnixStream, room: usize) -> io::Result<Vec<u32>> {
    use std::os::fd::AsRawFd as _;

    let mut groups: Vec<libc::gid_t> = vec![0; room];
    let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(libc::socklen_t::MAX);
    #[expect(unsafe_code, reason = "no safe wrapper offers SO_PEERGROUPS")]
    // SAFETY: the descriptor is open, since `stream` is borrowed. `groups` is writable for `bytes` bytes and every bit
    // pattern is a gid; the kernel writes at most `bytes` bytes and then sets `bytes` to how many it wrote.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(bytes as usize / size_of::<libc::gid_t>());
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use rustix::process::getgroups;

    use super::*;

    #[tokio::test]
    async fn this_process_is_seen_as_it_sees_itself() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&ours).expect("readable");
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        let groups: Vec<u32> = getgroups().expect("readable").iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(*peer.groups, *groups);
    }

    #[tokio::test]
    async fn too_little_room_for_the_groups_is_told_apart() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let all = groups(&ours).expect("readable");
        if let Some(less) = all.len().checked_sub(1) {
            assert_eq!(groups_within(&ours, less).expect_err("no room").raw_os_error(), Some(libc::ERANGE));
        }
        assert_eq!(groups_within(&ours, all.len()).expect("just enough room"), all);
    }

    #[test]
    fn a_group_counts_whether_effective_or_supplementary() {
        let peer = Peer { uid: 1, gid: 2, groups: [3, 4].into() };
        assert!(peer.is_in(2) && peer.is_in(4) && !peer.is_in(1));
    }
}
