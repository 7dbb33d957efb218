//! The worker as an operator starts it: the real binary with a configuration file, in a folder of its own.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use consentry::{
    config::{Config, VaultConfig},
    vault::{Identity, Vault},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    LOOK_EVERY, PATIENCE,
    caller::Caller,
    description, eventually,
    http::{self, Headers, Response},
    oidc::{Client, Peer},
    ports::free_port,
    sandbox::{CONSENTS, KEYS, Stand},
};

/// What a worker is to be told; [`start`](Self::start) runs it.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    refresh: String,
    access: String,
    log: String,
    for_all: bool,
    vault: Option<PathBuf>,
    identity: Option<PathBuf>,
    database: Option<String>,
    journal: Option<u64>,
    providers: Vec<(String, String, String)>,
    webhooks: Vec<(String, String, String)>,
    schedule: String,
}

impl Setup {
    /// Adds lines to `[refresh]`.
    pub(crate) fn refresh(mut self, lines: &str) -> Self {
        self.refresh.push_str(lines);
        self.refresh.push('\n');
        self
    }

    /// Adds an `[[access]]` rule; the tests' own user is always admin.
    pub(crate) fn access(mut self, lines: &str) -> Self {
        self.access.extend(["[[access]]\n", lines, "\n"]);
        self
    }

    /// Lets every user of the machine connect; who may do what is then up to the access rules alone.
    pub(crate) fn reachable_for_all(mut self) -> Self {
        self.for_all = true;
        self
    }

    /// Sets the lines of `[log]`, in place of `level = "debug"`.
    pub(crate) fn log(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.log);
        self
    }

    /// Puts the vault in this folder, in place of one in the worker's own.
    pub(crate) fn vault_at(mut self, folder: PathBuf) -> Self {
        self.vault = Some(folder);
        self
    }

    /// Keeps the vault in PostgreSQL: these are the lines of `[vault.postgres]`.
    pub(crate) fn database(mut self, lines: &str) -> Self {
        self.database = Some(lines.to_owned());
        self
    }

    /// Takes another worker's identity: both open the same vault.
    pub(crate) fn identity_of(mut self, other: &Worker) -> Self {
        self.identity = Some(other.parsed().vault.identity_file);
        self
    }

    /// Makes the vault with room for so many bytes of commits in its journal, so that checkpoints are frequent.
    pub(crate) fn journal(mut self, bytes: u64) -> Self {
        self.journal = Some(bytes);
        self
    }

    /// Adds `[providers.NAME]` with these lines and a file that holds its client secret.
    pub(crate) fn provider(mut self, name: &str, client_secret: &str, lines: &str) -> Self {
        self.providers.push((name.to_owned(), client_secret.to_owned(), lines.to_owned()));
        self
    }

    /// Adds lines to `[schedule]`.
    pub(crate) fn schedule(mut self, lines: &str) -> Self {
        self.schedule.push_str(lines);
        self.schedule.push('\n');
        self
    }

    /// Adds a `[[webhook]]` at `url` whose file holds these signing secrets, with further lines.
    pub(crate) fn webhook(mut self, url: &str, secrets: &str, lines: &str) -> Self {
        self.webhooks.push((url.to_owned(), secrets.to_owned(), lines.to_owned()));
        self
    }

    /// Adds a provider named `name`: this client at this server, with further lines.
    pub(crate) fn peer(self, name: &str, peer: &Peer, client: Client, lines: &str) -> Self {
        let issuer = peer.issuer();
        let lines = format!(
            "kind = \"oauth2\"\nissuer = \"{issuer}\"\norganizations_url = \"{issuer}/v1/organizations\"\n\
             client_id = \"{}\"\nmax_per_minute = 6000\n\
             scopes = [\"dineropublicapi:read\", \"dineropublicapi:write\", \"offline_access\"]\n{lines}",
            client.id
        );
        self.provider(name, client.secret, &lines)
    }

    /// Adds the sandbox's two providers: [`CONSENTS`] (`kind = "visma-connect"`) and [`KEYS`] (`kind = "dinero-personal"`).
    pub(crate) fn sandbox(self, stand: &Stand) -> Self {
        self.sandbox_as(stand, CONSENTS, KEYS)
    }

    /// As [`sandbox`](Self::sandbox), with names of the test's own.
    pub(crate) fn sandbox_as(self, stand: &Stand, consents: &str, keys: &str) -> Self {
        let url = stand.url();
        let common = format!("organizations_url = \"{url}/v1/organizations\"\nmax_per_minute = 6000");
        let (id, secret) = stand.client();
        let lines = format!("kind = \"visma-connect\"\nissuer = \"{url}\"\nclient_id = \"{id}\"\n{common}");
        let setup = self.provider(consents, secret, &lines);
        let (id, secret) = stand.personal_client();
        let lines = format!(
            "kind = \"dinero-personal\"\ntoken_url = \"{url}/dineroapi/oauth/token\"\nclient_id = \"{id}\"\n{common}"
        );
        setup.provider(keys, secret, &lines)
    }

    /// Writes the configuration, runs `consentry init`, starts `consentry run` and waits until it is ready.
    pub(crate) fn start(self) -> Worker {
        self.prepare().started()
    }

    /// Writes the configuration and runs `consentry init`.
    pub(crate) fn prepare(self) -> Worker {
        let folder = tempfile::Builder::new().prefix("consentry-it-").tempdir().expect("a temporary folder");
        let worker = Worker {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
            log: folder.path().join("log"),
            socket: folder.path().join("consentry.sock"),
            config: folder.path().join("consentry.toml"),
            child: None,
            planted: Mutex::default(),
            vault: self.vault.clone().unwrap_or_else(|| folder.path().join("vault")),
            folder,
        };
        for (name, secret, _) in &self.providers {
            fs::write(worker.secret_file(name), secret).expect("the folder is ours");
            worker.plant(secret);
        }
        for (index, (_, secrets, _)) in self.webhooks.iter().enumerate() {
            worker.set_signing_secrets(index, secrets);
        }
        fs::write(&worker.config, self.text(&worker)).expect("the folder is ours");

        if self.for_all {
            let all = fs::Permissions::from_mode(0o711);
            fs::set_permissions(worker.folder.path(), all).expect("the folder is ours");
        }
        if let Some(bytes) = self.journal {
            let config = Config::parse(&self.text(&worker)).expect("a configuration").vault;
            let identity = Identity::create(&config.identity_file).expect("the folder is ours");
            Vault::create_with_journal(&config, &identity, bytes).expect("the folder is ours");
        }
        let made = worker.command(&["init"]);
        assert!(made.status.success(), "consentry init: {}", String::from_utf8_lossy(&made.stderr));
        worker
    }

    fn text(&self, worker: &Worker) -> String {
        let mode = if self.for_all { "0666" } else { "0600" };
        let log = if self.log.is_empty() { "level = \"debug\"" } else { &self.log };
        // A test may write a section of its own.
        let schedule =
            if self.schedule.is_empty() { String::new() } else { format!("[schedule]\n{}\n", self.schedule) };
        let own = worker.folder.path().join("identity.txt");
        let identity = self.identity.as_ref().unwrap_or(&own).display();
        let engine = self.database.as_ref().map(|lines| format!("engine = \"postgres\"\n[vault.postgres]\n{lines}\n"));
        let mut text = format!(
            "[vault]\npath = \"{}\"\nidentity_file = \"{identity}\"\n{}\n\
             [socket]\npath = \"{}\"\nmode = \"{mode}\"\n\n[http]\nlisten = \"{}\"\n\n[log]\n{log}\n\n\
             {}[refresh]\n{}\n{}\n",
            worker.vault.display(),
            engine.unwrap_or_default(),
            worker.socket.display(),
            worker.http,
            schedule,
            self.refresh,
            self.access,
        );
        for (name, _, lines) in &self.providers {
            let file = worker.secret_file(name).display().to_string();
            text.extend(["[providers.", name, "]\nclient_secret_file = \"", &file, "\"\n", lines, "\n"]);
        }
        for (index, (url, _, lines)) in self.webhooks.iter().enumerate() {
            let file = worker.signing_file(index).display().to_string();
            text.extend(["[[webhook]]\nurl = \"", url, "\"\nsecret_file = \"", &file, "\"\n", lines, "\n"]);
        }
        text
    }
}

/// A worker that runs. When it is dropped it is killed, and its log is held to hold no planted secret and no panic.
#[derive(Debug)]
pub(crate) struct Worker {
    folder: TempDir,
    vault: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    http: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
    planted: Mutex<BTreeSet<String>>,
}

impl Worker {
    /// Remembers a secret that must never show up in the log.
    pub(crate) fn plant(&self, secret: &str) {
        assert!(secret.len() >= 8, "{secret:?} is too short to be looked for");
        self.planted.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_owned());
    }

    /// `GET path` on the socket.
    pub(crate) fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], "")
    }

    /// `POST path` on the socket, without a body.
    pub(crate) fn post(&self, path: &str, headers: Headers<'_>) -> Response {
        self.request("POST", path, headers, "")
    }

    /// Any request on the socket. The answer is held against `docs/openapi.yaml`.
    pub(crate) fn request(&self, method: &str, path: &str, headers: Headers<'_>, body: &str) -> Response {
        let answer = http::over_unix(&self.socket, method, path, headers, body);
        self.checked(method, path, answer)
    }

    /// As [`request`](Self::request), as another user; only root can do that.
    pub(crate) fn request_as(
        &self,
        caller: &Caller,
        method: &str,
        path: &str,
        headers: Headers<'_>,
        body: &str,
    ) -> Response {
        self.checked(method, path, caller.request(&self.socket, method, path, headers, body))
    }

    fn checked(&self, method: &str, path: &str, answer: std::io::Result<Response>) -> Response {
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()));
        description::check(method, path, &answer);
        answer
    }

    /// `PUT /v1/organizations/{organization}`; every secret in the body is planted.
    pub(crate) fn enrol(&self, organization: &str, body: &Value) -> Response {
        for field in ["refresh_token", "api_key", "client_secret"] {
            if let Some(secret) = body[field].as_str() {
                self.plant(secret);
            }
        }
        let headers = [("content-type", "application/json")];
        self.request("PUT", &format!("/v1/organizations/{organization}"), &headers, &body.to_string())
    }

    /// Fetches the organization's access token, which must be there; it is planted.
    pub(crate) fn fetch(&self, organization: &str) -> String {
        let answer = self.get(&format!("/v1/organizations/{organization}/token"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let token = answer.json()["access_token"].as_str().expect("a token has an access token").to_owned();
        self.plant(&token);
        token
    }

    /// The ids of the organizations that a query lists, page after page.
    pub(crate) fn listed(&self, query: &str) -> Vec<String> {
        let (mut ids, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let after = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            let answer = self.get(&format!("/v1/organizations?{query}{after}"));
            assert_eq!(answer.status, 200, "{answer:?}");
            let page = answer.json();
            let organizations = page["organizations"].as_array().expect("a list");
            ids.extend(organizations.iter().map(|one| one["organization"].as_str().expect("an id").to_owned()));
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return ids;
            }
        }
    }

    /// `GET path` on the HTTP listener.
    pub(crate) fn inside(&self, path: &str) -> Response {
        http::over_tcp(&self.http.to_string(), "GET", path, &[], "")
    }

    /// `GET /metrics` on the HTTP listener.
    pub(crate) fn metrics(&self) -> String {
        let answer = self.inside("/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// The sum of a metric's samples whose labels hold all of `labels`, as they are written (`state="active"`).
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics();
        let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        samples
            .filter(|(head, _)| head.is_empty() || head.starts_with('{'))
            .filter(|(head, _)| labels.iter().all(|label| head.contains(label)))
            .map(|(_, value)| value.parse::<f64>().expect("a sample is a number"))
            .sum()
    }

    /// The socket's file.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process, while it runs.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the worker runs").id()
    }

    /// Where the HTTP listener is.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// The memory that the process has in use, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("everybody may read that");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Changes the configuration's file; it is in force after a restart or SIGHUP.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(&self.config).expect("it was written");
        fs::write(&self.config, change(text)).expect("the folder is ours");
    }

    /// What the worker has logged so far, in all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// A file in the worker's own folder, which goes away with it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs another command of the binary with the same configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        self.command_with(arguments, &[])
    }

    /// As [`command`](Self::command), with further environment variables. What does not end in time is killed.
    pub(crate) fn command_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut child = consentry(&self.config)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                break status;
            }
            if Instant::now() > end {
                child.kill().expect("it is our child");
                child.wait().expect("it is our child");
                let err = err.join().expect("no panic");
                panic!("consentry {arguments:?} does not end: {}", String::from_utf8_lossy(&err));
            }
            thread::sleep(LOOK_EVERY);
        };
        Output { status, stdout: out.join().expect("no panic"), stderr: err.join().expect("no panic") }
    }

    /// Starts another command of the binary, whose standard output is for the test to read.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = consentry(&self.config);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("the binary starts")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the worker runs");
        kill_process(Pid::from_child(child), signal).expect("the worker is our child, and not yet waited for");
    }

    /// Ends it softly, as a service manager does, and waits.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end, to which it must have been asked.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the worker runs");
        eventually("the worker ends", || child.try_wait().expect("it is our child"))
    }

    /// Ends it as a power cut would: it learns nothing of it.
    pub(crate) fn kill9(&mut self) {
        let mut child = self.child.take().expect("the worker runs");
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
    }

    /// Stops it softly where it runs, and starts it again with the same configuration and vault.
    pub(crate) fn restart(mut self) -> Self {
        if self.child.is_some() {
            let status = self.stop();
            assert!(status.success(), "the worker ended with {status}\n{}", self.log());
        }
        self.started()
    }

    pub(crate) fn started(mut self) -> Self {
        self.launch();
        if let Some(status) = self.ready() {
            panic!("the worker ended with {status} before it was ready\n{}", self.log());
        }
        self
    }

    /// Starts it, and waits for nothing. Its log goes on where that of its last life ended.
    pub(crate) fn launch(&mut self) {
        let log = || OpenOptions::new().create(true).append(true).open(&self.log).expect("the folder is ours");
        let (out, err): (File, File) = (log(), log());
        let child = consentry(&self.config).arg("run").stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        self.child = Some(child.expect("the binary starts"));
    }

    /// Waits until it is ready, or has ended: then gives how.
    pub(crate) fn ready(&mut self) -> Option<ExitStatus> {
        eventually("the worker is ready or ends", || {
            let child = self.child.as_mut().expect("it was started");
            if let Some(status) = child.try_wait().expect("it is our child") {
                self.child = None;
                return Some(Some(status));
            }
            let answer = http::over_unix(&self.socket, "GET", "/readyz", &[], "");
            answer.ok().filter(|answer| answer.status == 200).map(|_| None)
        })
    }

    /// How it has ended by itself, if it has: told once.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("it is our child")?;
        self.child = None;
        Some(status)
    }

    /// Whether it was started and has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("it is our child").is_none())
    }

    /// Its configuration, for a worker in this process.
    pub(crate) fn parsed(&self) -> Config {
        let text = fs::read_to_string(&self.config).expect("it was written");
        Config::parse(&text).expect("a configuration")
    }

    /// The vault's configuration and the identity that opens it.
    pub(crate) fn vault_config(&self) -> (VaultConfig, Identity) {
        let config = self.parsed().vault;
        let identity = Identity::read(&config.identity_file).expect("it was made");
        (config, identity)
    }

    /// The vault's folder.
    pub(crate) fn vault(&self) -> &Path {
        &self.vault
    }

    /// Forgets what was logged so far.
    pub(crate) fn clear_log(&self) {
        fs::write(&self.log, "").expect("the folder is ours");
    }

    /// Starts another command of the binary with the same configuration; what it says is thrown away.
    pub(crate) fn spawn_unheard(&self, arguments: &[&str]) -> Child {
        let mut command = consentry(&self.config);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the binary starts")
    }

    /// Writes the file with the signing secrets of the webhook of that number, one a line; each is planted.
    pub(crate) fn set_signing_secrets(&self, index: usize, secrets: &str) {
        secrets.lines().for_each(|secret| self.plant(secret));
        let file = self.signing_file(index);
        fs::write(&file, secrets).expect("the folder is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    }

    /// The file with the signing secrets of the webhook of that number.
    pub(crate) fn signing_file(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("webhook-{index}.key"))
    }

    fn secret_file(&self, provider: &str) -> PathBuf {
        self.folder.path().join(format!("{provider}.secret"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill9();
        }
        let log = self.log();
        if thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the test has failed, and this is the best witness")]
            {
                eprintln!("--- the worker's log\n{log}---");
            }
            return;
        }
        for secret in self.planted.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            assert!(!log.contains(secret.as_str()), "a secret is in the log: {secret}");
        }
        assert!(!log.contains("panicked"), "something panicked:\n{log}");
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.expect("it is piped").read_to_end(&mut bytes).expect("a pipe of our child");
        bytes
    })
}

fn consentry(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consentry"));
    command.env("CONSENTRY_CONFIG", config).env_remove("RUST_LOG");
    command
}
