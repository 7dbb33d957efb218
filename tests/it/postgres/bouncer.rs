//! PgBouncer in transaction mode in front of a cluster, from Debian's package: after every transaction its clients may find
//! themselves on another connection to the server.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::cluster::{Cluster, DATABASE, ROLE};
use crate::harness::{eventually, ports::free_port};

/// So few that clients have to share them.
const SERVER_CONNECTIONS: usize = 2;

/// A running PgBouncer; ends when dropped.
#[derive(Debug)]
pub(crate) struct Bouncer {
    process: Child,
    port: u16,
    folder: PathBuf,
    connections: usize,
}

impl Bouncer {
    /// Starts one that leads to the cluster's primary.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, SERVER_CONNECTIONS)
    }

    /// Starts one that has so many connections to the primary.
    pub(crate) fn start_with(cluster: &Cluster, connections: usize) -> Self {
        let (account, folder) = cluster.account();
        let port = free_port();
        let folder = folder.join(format!("bouncer-{port}"));
        fs::create_dir(&folder).expect("a folder for PgBouncer");
        account.give(&folder);
        write_settings(cluster, &folder, port, connections);
        let process = run(cluster, &folder, port);
        Self { process, port, folder, connections }
    }

    /// Stops it where it is: nothing passes any more, in either direction.
    pub(crate) fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).expect("a child can be signalled");
    }

    /// Kills it, with what has not passed, and starts another in its place.
    pub(crate) fn replace(&mut self, cluster: &Cluster) {
        self.process.kill().expect("a child can be killed");
        self.process.wait().expect("it was killed");
        let _ = fs::remove_file(self.folder.join(format!(".s.PGSQL.{}", self.port)));
        self.process = run(cluster, &self.folder, self.port);
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().expect("a process's id")).expect("it is not 0")
    }

    /// Where the role reaches the primary through it.
    pub(crate) fn url(&self) -> String {
        let folder = self.folder.display().to_string().replace('/', "%2F");
        format!("postgresql://{ROLE}@{folder}:{}/{DATABASE}", self.port)
    }

    /// The cluster has another primary.
    pub(crate) fn follow(&self, cluster: &Cluster) {
        write_settings(cluster, &self.folder, self.port, self.connections);
        kill_process(self.pid(), Signal::HUP).expect("a child can be signalled");
    }
}

fn run(cluster: &Cluster, folder: &Path, port: u16) -> Child {
    let (account, _) = cluster.account();
    let log = fs::File::create(folder.join("log")).expect("a file for its log");
    let process = account
        .command("/usr/sbin/pgbouncer")
        .arg(folder.join("pgbouncer.ini"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("PgBouncer starts");
    let socket = folder.join(format!(".s.PGSQL.{port}"));
    eventually("PgBouncer listens", || socket.exists().then_some(()));
    process
}

fn write_settings(cluster: &Cluster, folder: &Path, port: u16, connections: usize) {
    let (sockets, primary) = cluster.primary_socket();
    let (sockets, folder_name) = (sockets.display(), folder.display());
    let settings = format!(
        "[databases]\n\
         {DATABASE} = host={sockets} port={primary}\n\
         [pgbouncer]\n\
         pool_mode = transaction\n\
         listen_addr =\n\
         listen_port = {port}\n\
         unix_socket_dir = {folder_name}\n\
         auth_type = trust\n\
         auth_file = {folder_name}/users\n\
         default_pool_size = {connections}\n\
         max_client_conn = 200\n\
         server_login_retry = 0.1\n"
    );
    let (account, _) = cluster.account();
    for (name, text) in [("users", format!("\"{ROLE}\" \"\"\n")), ("pgbouncer.ini", settings)] {
        fs::write(folder.join(name), text).expect("a setting can be written");
        account.give(&folder.join(name));
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
