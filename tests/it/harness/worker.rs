//! The worker as an operator starts it: the real binary with a configuration file, in a folder of its own.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    eventually,
    http::{self, Headers, Response},
    oidc::{Client, Peer},
};

/// What a worker is to be told; [`start`](Self::start) runs it.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    refresh: String,
    access: String,
    providers: Vec<(String, String, String)>,
}

impl Setup {
    /// Adds lines to `[refresh]`.
    pub(crate) fn refresh(mut self, lines: &str) -> Self {
        self.refresh.push_str(lines);
        self.refresh.push('\n');
        self
    }

    /// Adds an `[[access]]` rule; the tests' own user is always admin.
    #[expect(dead_code, reason = "every test so far calls as the worker's own user")]
    pub(crate) fn access(mut self, lines: &str) -> Self {
        self.access.extend(["[[access]]\n", lines, "\n"]);
        self
    }

    /// Adds `[providers.NAME]` with these lines and a file that holds its client secret.
    pub(crate) fn provider(mut self, name: &str, client_secret: &str, lines: &str) -> Self {
        self.providers.push((name.to_owned(), client_secret.to_owned(), lines.to_owned()));
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

    /// Writes the configuration, runs `consentry init`, starts `consentry run` and waits until it is ready.
    pub(crate) fn start(self) -> Worker {
        let folder = tempfile::Builder::new().prefix("consentry-it-").tempdir().expect("a temporary folder");
        let worker = Worker {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
            log: folder.path().join("log"),
            socket: folder.path().join("consentry.sock"),
            config: folder.path().join("consentry.toml"),
            child: None,
            planted: Mutex::default(),
            folder,
        };
        for (name, secret, _) in &self.providers {
            fs::write(worker.secret_file(name), secret).expect("the folder is ours");
            worker.plant(secret);
        }
        fs::write(&worker.config, self.text(&worker)).expect("the folder is ours");

        let made = worker.command(&["init"]);
        assert!(made.status.success(), "consentry init: {}", String::from_utf8_lossy(&made.stderr));
        worker.started()
    }

    fn text(&self, worker: &Worker) -> String {
        let folder = worker.folder.path().display();
        let mut text = format!(
            "[vault]\npath = \"{folder}/vault\"\nidentity_file = \"{folder}/identity.txt\"\n\n\
             [socket]\npath = \"{}\"\n\n[http]\nlisten = \"{}\"\n\n[log]\nlevel = \"debug\"\n\n\
             [refresh]\n{}\n{}\n",
            worker.socket.display(),
            worker.http,
            self.refresh,
            self.access,
        );
        for (name, _, lines) in &self.providers {
            let file = worker.secret_file(name).display().to_string();
            text.extend(["[providers.", name, "]\nclient_secret_file = \"", &file, "\"\n", lines, "\n"]);
        }
        text
    }
}

/// A worker that runs. When it is dropped it is killed, and its log is held to hold no planted secret and no panic.
#[derive(Debug)]
pub(crate) struct Worker {
    folder: TempDir,
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

    /// Any request on the socket.
    pub(crate) fn request(&self, method: &str, path: &str, headers: Headers<'_>, body: &str) -> Response {
        http::over_unix(&self.socket, method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
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

    /// `GET /metrics` on the HTTP listener.
    pub(crate) fn metrics(&self) -> String {
        let answer = http::over_tcp(&self.http.to_string(), "GET", "/metrics", &[], "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
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
        consentry(&self.config).args(arguments).stdin(Stdio::null()).output().expect("the binary starts")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the worker runs");
        kill_process(Pid::from_child(child), signal).expect("the worker is our child, and not yet waited for");
    }

    /// Ends it softly, as a service manager does, and waits.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("the worker runs");
        eventually("the worker ends after SIGTERM", || child.try_wait().expect("it is our child"))
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

    fn started(mut self) -> Self {
        let log = || OpenOptions::new().create(true).append(true).open(&self.log).expect("the folder is ours");
        let (out, err): (File, File) = (log(), log());
        let child = consentry(&self.config).arg("run").stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        self.child = Some(child.expect("the binary starts"));
        eventually("the worker is ready", || {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("it is our child") {
                panic!("the worker ended with {status} before it was ready");
            }
            http::over_unix(&self.socket, "GET", "/readyz", &[], "").ok().filter(|answer| answer.status == 200)
        });
        self
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
        if std::thread::panicking() {
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

fn consentry(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consentry"));
    command.env("CONSENTRY_CONFIG", config).env_remove("RUST_LOG");
    command
}

/// A port that nobody listens on. Another process could take it before the worker does; it then says so and ends.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback address");
    listener.local_addr().expect("it is bound").port()
}
