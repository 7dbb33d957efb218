//! Three real PostgreSQL servers with quorum commit, from Debian's packages, in a temporary folder: one primary and two
//! standbys, of which one has to confirm every commit. The primary can be killed as a machine that loses its power is, a
//! standby promoted as Patroni would, and the lost server brought back as a standby.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::{chance::tell, eventually, ports::free_port};

/// The database that the tests use, and the role that owns it: no superuser.
pub(crate) const DATABASE: &str = "vault";
pub(crate) const ROLE: &str = "keeper";
/// The servers' own superuser.
const SUPERUSER: &str = "postgres";
/// What Debian calls the version that is wanted.
const BINARIES: &str = "/usr/lib/postgresql/15/bin";
/// The servers by name; each is known to the others by it.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// One cluster; its servers end when it is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    servers: Vec<Server>,
    primary: usize,
    account: Account,
    /// Last, since the servers live in it.
    folder: TempDir,
}

#[derive(Debug)]
struct Server {
    name: &'static str,
    port: u16,
    process: Option<Child>,
}

/// Under whose account servers run: PostgreSQL refuses to run as root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account(Option<(u32, u32)>);

/// Whether the packages are there; says so where they are not, and fails in CI.
pub(crate) fn is_installed() -> bool {
    let missing: Vec<_> = [format!("{BINARIES}/postgres"), "/usr/sbin/pgbouncer".to_owned()]
        .into_iter()
        .filter(|path| !Path::new(path).exists())
        .collect();
    if !missing.is_empty() {
        tell(&format!("SKIPPED: tests on PostgreSQL: {} missing; run tests/peers/need", missing.join(", ")));
        assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI nothing is skipped");
    }
    missing.is_empty()
}

impl Account {
    /// This process's own, or that of Debian's package where this is root.
    fn new() -> Self {
        Self(rustix::process::geteuid().is_root().then(|| {
            let user = uzers::get_user_by_name("postgres").expect("Debian's package made the user postgres");
            (user.uid(), user.primary_group_id())
        }))
    }

    /// A command under that account.
    pub(crate) fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("LC_ALL", "C").env_remove("PGHOST").current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Makes a file or folder that account's own.
    pub(crate) fn give(self, path: &Path) {
        if let Some((uid, gid)) = self.0 {
            chown(path, Some(uid), Some(gid)).expect("root may give a file away");
        }
    }
}

impl Cluster {
    /// The one that tests share which do not harm it; each uses a schema of its own. It ends with the last of them.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// Starts three servers, the first of them as the primary.
    pub(crate) fn start() -> Self {
        let (folder, account) = (tempfile::tempdir().expect("a temporary folder"), Account::new());
        account.give(folder.path());
        let servers = NAMES.map(|name| Server { name, port: free_port(), process: None }).into();
        let mut cluster = Self { servers, primary: 0, account, folder };
        cluster.make_certificates();
        let initialized = cluster
            .tool("initdb")
            .args(["--no-sync", "--data-checksums", "--auth=trust", "--encoding=UTF8", "--locale=C", "-U", SUPERUSER])
            // In megabytes: whoever is promoted copies the segment that the old primary wrote last.
            .arg("--wal-segsize=1")
            .arg("-D")
            .arg(cluster.data(0))
            .output();
        succeeded("initdb", &initialized.expect("initdb runs"));
        cluster.configure(0, "");
        cluster.run(0);
        let role = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'");
        cluster.sql(0, "postgres", &role);
        cluster.sql(0, "postgres", &format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"));
        cluster.join(1);
        cluster.join(2);
        cluster.set_synchronous_standbys(&cluster.others(0));
        cluster.sql(0, DATABASE, "CHECKPOINT");
        cluster
    }

    /// Where the role reaches every server, whichever is the primary: by the Unix sockets' folder.
    pub(crate) fn url(&self) -> String {
        let folder = self.sockets().display().to_string().replace('/', "%2F");
        let hosts: Vec<_> = self.servers.iter().map(|server| format!("{folder}:{}", server.port)).collect();
        format!("postgresql://{ROLE}@{}/{DATABASE}", hosts.join(","))
    }

    /// Where it reaches the primary over TCP, under that host's name; only TLS is let in there, with a password.
    pub(crate) fn tcp_url(&self, host: &str) -> String {
        format!("postgresql://{ROLE}:{PASSWORD}@{host}:{}/{DATABASE}", self.servers[self.primary].port)
    }

    /// The authority that signed the servers' certificate, which names `localhost` alone.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The folder of the Unix sockets, and the primary's port: that is how its socket is named.
    pub(crate) fn primary_socket(&self) -> (PathBuf, u16) {
        (self.sockets(), self.servers[self.primary].port)
    }

    /// A URL of one standby alone.
    pub(crate) fn standby_url(&self) -> String {
        let folder = self.sockets().display().to_string().replace('/', "%2F");
        let standby = (self.primary + 1) % self.servers.len();
        format!("postgresql://{ROLE}@{folder}:{}/{DATABASE}", self.servers[standby].port)
    }

    /// Under whose account the servers run, and a place for more files of that account.
    pub(crate) fn account(&self) -> (Account, &Path) {
        (self.account, self.folder.path())
    }

    /// Runs SQL on the primary as its superuser; gives what it answers, without alignment.
    pub(crate) fn on_primary(&self, sql: &str) -> String {
        self.sql(self.primary, DATABASE, sql)
    }

    /// The primary's timeline.
    pub(crate) fn timeline(&self) -> u32 {
        let file = self.on_primary("SELECT pg_walfile_name(pg_current_wal_lsn())");
        u32::from_str_radix(&file[..8], 16).expect("a file's name begins with its timeline")
    }

    /// Which standbys have to confirm a commit: any one of those named; none at all for none.
    pub(crate) fn set_synchronous_standbys(&self, names: &[&str]) {
        let wanted = any_one_of(names);
        self.configure(self.primary, &wanted);
        self.signal(self.primary, Signal::HUP);
        eventually("the primary has taken its settings", || {
            (self.sql(self.primary, DATABASE, "SHOW synchronous_standby_names") == wanted).then_some(())
        });
        if !names.is_empty() {
            self.standbys_stream(names.len());
        }
    }

    /// Waits until so many standbys confirm commits.
    fn standbys_stream(&self, count: usize) {
        let standbys = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum' AND state = 'streaming'";
        eventually("the standbys stream", || (self.on_primary(standbys) == count.to_string()).then_some(()));
    }

    /// Stops what is sent to the standbys, or lets it go on: commits that wait for standbys wait meanwhile.
    pub(crate) fn hold_standbys(&self, hold: bool) {
        let senders = self.sql(self.primary, "postgres", "SELECT string_agg(pid::text, ' ') FROM pg_stat_replication");
        for sender in senders.split(' ') {
            let sender = pid(sender.parse().expect("a process's id"));
            kill_process(sender, if hold { Signal::STOP } else { Signal::CONT }).expect("a server's process");
        }
    }

    /// Kills the primary with everything it runs, at once.
    pub(crate) fn kill_primary(&mut self) {
        let mut process = self.servers[self.primary].process.take().expect("the primary runs");
        // Stopped first, so that it starts nothing more while its family is looked for.
        self.signal_process(&process, Signal::STOP);
        for pid in family(process.id()) {
            let _ = kill_process(pid, Signal::KILL);
        }
        process.wait().expect("a killed server ends");
    }

    /// Makes a standby the primary: the one that has received most, which alone is sure to have every confirmed commit. The other
    /// follows it.
    pub(crate) fn promote(&mut self) {
        for index in self.others_than(self.primary) {
            // What was on its way still arrives.
            eventually("the standby receives nothing more", || {
                (self.sql(index, "postgres", "SELECT count(*) FROM pg_stat_wal_receiver") == "0").then_some(())
            });
        }
        let lsn = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn";
        let standbys = self.others_than(self.primary);
        let received = |index: &usize| -> u64 {
            self.sql(*index, "postgres", lsn).parse().expect("a position in the write-ahead log")
        };
        let next = standbys.iter().copied().max_by_key(received).expect("two standbys");
        assert_eq!(self.sql(next, "postgres", "SELECT pg_promote(true, 60)"), "t");
        let old = std::mem::replace(&mut self.primary, next);
        for index in standbys.into_iter().filter(|index| *index != next) {
            self.configure(index, &any_one_of(&self.others(index)));
            self.signal(index, Signal::HUP);
        }
        assert!(self.servers[old].process.is_none(), "a primary that is not dead must not be given a rival");
    }

    /// Brings back the server that was killed, as a standby made anew.
    pub(crate) fn rejoin(&mut self) {
        let dead = (0..self.servers.len()).find(|index| self.servers[*index].process.is_none());
        let dead = dead.expect("a server is dead");
        fs::remove_dir_all(self.data(dead)).expect("its folder can go");
        self.join(dead);
        self.standbys_stream(2);
    }

    /// Copies the primary and starts the copy as a standby.
    fn join(&mut self, index: usize) {
        let copied = self
            .tool("pg_basebackup")
            .args(["--no-sync", "--checkpoint=fast", "--wal-method=stream", "-U", SUPERUSER, "-h"])
            .arg(self.sockets())
            .args(["-p", &self.servers[self.primary].port.to_string(), "-D"])
            .arg(self.data(index))
            .output();
        succeeded("pg_basebackup", &copied.expect("pg_basebackup runs"));
        self.write(&self.data(index).join("standby.signal"), "");
        let synchronous = any_one_of(&self.others(index));
        self.configure(index, &synchronous);
        // A copy is synced file by file when it starts, which takes most of the time that it takes to join. That guards from
        // nothing here: what is killed are processes.
        let settings = self.data(index).join("postgresql.conf");
        let text = fs::read_to_string(&settings).expect("its settings");
        self.write(&settings, &format!("{text}fsync = off\n"));
        self.run(index);
        self.configure(index, &synchronous);
        self.signal(index, Signal::HUP);
        eventually("it syncs what it commits", || (self.sql(index, "postgres", "SHOW fsync") == "on").then_some(()));
    }

    /// Starts a server and waits until it answers.
    fn run(&mut self, index: usize) {
        let log = fs::File::create(self.folder.path().join(format!("{}.log", self.servers[index].name)));
        let log = log.expect("a file for its log");
        let again = log.try_clone().expect("the same file");
        let process = self.tool("postgres").arg("-D").arg(self.data(index)).stdout(log).stderr(again).spawn();
        self.servers[index].process = Some(process.expect("the server starts"));
        eventually("the server answers", || self.try_sql(index, "postgres", "SELECT 1").ok());
    }

    /// Writes the settings of a server, whatever it was copied from.
    fn configure(&self, index: usize, synchronous_standbys: &str) {
        let (server, sockets, folder) = (&self.servers[index], self.sockets(), self.folder.path().display());
        let primary = self.servers[self.primary].port;
        let sockets = sockets.display();
        let settings = format!(
            "cluster_name = '{name}'\n\
             listen_addresses = '127.0.0.1'\n\
             port = {port}\n\
             unix_socket_directories = '{sockets}'\n\
             ssl = on\n\
             ssl_cert_file = '{folder}/server.pem'\n\
             ssl_key_file = '{folder}/server.key'\n\
             max_connections = 150\n\
             shared_buffers = 16MB\n\
             max_wal_senders = 8\n\
             wal_keep_size = 128MB\n\
             wal_retrieve_retry_interval = 100ms\n\
             autovacuum_naptime = 1s\n\
             primary_conninfo = 'host={sockets} port={primary} user={SUPERUSER} application_name={name}'\n\
             synchronous_standby_names = '{synchronous_standbys}'\n",
            name = server.name,
            port = server.port,
        );
        self.write(&self.data(index).join("postgresql.conf"), &settings);
        let access = "local all all trust\nlocal replication all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        self.write(&self.data(index).join("pg_hba.conf"), access);
    }

    /// An authority, and a certificate of it for `localhost`.
    fn make_certificates(&self) {
        fs::create_dir(self.sockets()).expect("a folder for the sockets");
        self.account.give(&self.sockets());
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let (ca, ca_key, cert, key) = (path("ca.pem"), path("ca.key"), path("server.pem"), path("server.key"));
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let runs: [&[&str]; 2] = [
            &["-subj", "/CN=test authority", "-keyout", &ca_key, "-out", &ca],
            &[
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-CA",
                &ca,
                "-CAkey",
                &ca_key,
                "-keyout",
                &key,
                "-out",
                &cert,
            ],
        ];
        for run in runs {
            let made = self.account.command("/usr/bin/openssl").args(new).args(run).output();
            succeeded("openssl", &made.expect("openssl runs"));
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the key can be made private");
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder can be read");
    }

    fn write(&self, path: &Path, text: &str) {
        fs::write(path, text).expect("a setting can be written");
        self.account.give(path);
    }

    fn sql(&self, index: usize, database: &str, sql: &str) -> String {
        self.try_sql(index, database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_sql(&self, index: usize, database: &str, sql: &str) -> Result<String, String> {
        let port = self.servers[index].port.to_string();
        let mut psql = self.tool("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-p", &port, "-d", database, "-c", sql, "-h"]);
        let output = psql.arg(self.sockets()).output().expect("psql runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn tool(&self, name: &str) -> Command {
        self.account.command(Path::new(BINARIES).join(name))
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path().join(self.servers[index].name)
    }

    fn sockets(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn others(&self, index: usize) -> Vec<&'static str> {
        self.others_than(index).into_iter().map(|other| self.servers[other].name).collect()
    }

    fn others_than(&self, index: usize) -> Vec<usize> {
        (0..self.servers.len()).filter(|other| *other != index).collect()
    }

    fn signal(&self, index: usize, signal: Signal) {
        if let Some(process) = &self.servers[index].process {
            self.signal_process(process, signal);
        }
    }

    #[expect(clippy::unused_self, reason = "only a cluster has processes to signal")]
    fn signal_process(&self, process: &Child, signal: Signal) {
        kill_process(pid(process.id()), signal).expect("a child can be signalled");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let Some(mut process) = server.process.take() else { continue };
            for pid in family(process.id()) {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = process.wait();
        }
    }
}

/// The role's password, for TCP.
const PASSWORD: &str = "hush-database-password";

fn any_one_of(names: &[&str]) -> String {
    if names.is_empty() { String::new() } else { format!("ANY 1 ({})", names.join(", ")) }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.try_into().expect("a process's id")).expect("it is not 0")
}

/// A process and its children: each of PostgreSQL's processes is a child of the first.
fn family(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("/proc is there").filter_map(Result::ok);
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = ids.filter(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // After the name, which is in parentheses and may hold anything: the state, and then the parent.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after_name.split(' ').nth(1) == Some(parent.to_string().as_str())
    });
    [parent].into_iter().chain(children).map(pid).collect()
}

fn succeeded(what: &str, output: &std::process::Output) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
