//! A Unix socket in front of the primary's, which loses on purpose what passes through it.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

use tempfile::TempDir;

use super::cluster::{Cluster, DATABASE, ROLE};

/// The number in the socket's name; it is in a folder of its own.
const PORT: u16 = 5432;

/// What is to happen to what passes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Loss {
    Nothing = 0,
    /// The next request is lost, with its connection.
    Request = 1,
    /// The next answer is, once the server has given it.
    Answer = 2,
}

/// Such a socket. Connections end by themselves.
#[derive(Debug)]
pub(crate) struct Wire {
    folder: TempDir,
    loss: Arc<AtomicU8>,
}

impl Wire {
    /// Listens, and leads to the cluster's primary of now.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(folder.path().join(format!(".s.PGSQL.{PORT}"))).expect("a socket");
        let (sockets, port) = cluster.primary_socket();
        let server = sockets.join(format!(".s.PGSQL.{port}"));
        let loss = Arc::new(AtomicU8::new(Loss::Nothing as u8));
        let seen = Arc::clone(&loss);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                relay(&client, &server, &seen);
            }
        });
        Self { folder, loss }
    }

    /// Where the role reaches the primary through it.
    pub(crate) fn url(&self) -> String {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgresql://{ROLE}@{folder}:{PORT}/{DATABASE}")
    }

    /// Loses what passes next.
    pub(crate) fn lose(&self, loss: Loss) {
        self.loss.store(loss as u8, Ordering::SeqCst);
    }
}

fn relay(client: &UnixStream, server: &PathBuf, loss: &Arc<AtomicU8>) {
    let Ok(server) = UnixStream::connect(server) else { return };
    let both = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
    let (Some((from, to)), Some((back, answers))) = (both(), both()) else { return };
    let (requests, replies) = (Arc::clone(loss), Arc::clone(loss));
    thread::spawn(move || copy(from, to, &requests, Loss::Request));
    thread::spawn(move || copy(answers, back, &replies, Loss::Answer));
}

/// Hands over what comes, until it is to be lost: then both ends are closed.
fn copy(mut from: UnixStream, mut to: UnixStream, loss: &AtomicU8, mine: Loss) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let nothing = Loss::Nothing as u8;
        if loss.compare_exchange(mine as u8, nothing, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            || to.write_all(&buffer[..length]).is_err()
        {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
