//! Requests of other users of the machine. Linux keeps credentials for each thread and the kernel notes those of the
//! thread that connects, so that a thread of its own is all another user takes.

use std::{path::Path, thread};

use rustix::{
    process::{Gid, Uid, geteuid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::http::{self, Headers, Response};

/// Somebody who calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl Caller {
    /// A user in a group of the same number and in no other.
    pub(crate) fn user(uid: u32) -> Self {
        Self { uid, gid: uid, groups: Vec::new() }
    }

    /// Sends a request to the socket as this user and reads the answer; an error where it could not.
    pub(crate) fn request(
        &self,
        socket: &Path,
        method: &str,
        path: &str,
        headers: Headers<'_>,
        body: &str,
    ) -> std::io::Result<Response> {
        self.act(|| http::over_unix(socket, method, path, headers, body))
    }

    /// Does something as this user, on a thread of its own; an error where this process may not become that user.
    pub(crate) fn act<T: Send>(&self, act: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
        let act = || {
            let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            set_thread_groups(&groups)?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
            act()
        };
        thread::scope(|scope| scope.spawn(act).join().expect("the caller's thread does not panic"))
    }
}

/// Whether this process may become others; says so loudly where not, since the test that asks then checks nothing.
pub(crate) fn may_become_others() -> bool {
    let may = geteuid().is_root();
    if !may {
        #[expect(clippy::print_stderr, reason = "a test that checks nothing must say so")]
        {
            eprintln!("SKIPPED: only root can call as other users; run this test as root");
        }
    }
    may
}
