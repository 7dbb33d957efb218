//! A real Prometheus and a real Alertmanager that watch a worker, each a process of its own on loopback.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Process, path, text};
use crate::harness::{eventually, http, ports::free_port};

/// A Prometheus that scrapes one worker every second, as the job that the rules expect.
pub(super) struct Prometheus {
    address: String,
    _process: Process,
    folder: TempDir,
}

impl Prometheus {
    /// Starts it, with rules and somebody to tell where these are given, and waits until it has seen the worker.
    pub(super) fn start(worker: SocketAddr, rules: Option<&str>, alertmanager: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             scrape_configs: [{{job_name: consentry, static_configs: [{{targets: ['{worker}']}}]}}]\n"
        );
        if let Some(rules) = rules {
            fs::write(folder.path().join("rules.yaml"), rules).expect("the folder is ours");
            configuration.push_str("rule_files: [rules.yaml]\n");
        }
        if let Some(address) = alertmanager {
            let targets = format!("alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{address}']}}]}}]}}\n");
            configuration.push_str(&targets);
        }
        fs::write(folder.path().join("prometheus.yaml"), configuration).expect("the folder is ours");
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", folder.path().join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--rules.alert.resend-delay=1s", "--log.level=warn"]);
        let process = spawn(&mut command, folder.path());
        let prometheus = Self { address, _process: process, folder };
        eventually("Prometheus scrapes the worker", || {
            let up = prometheus.query("sum(up{job=\"consentry\"})").ok()?;
            (up[0]["value"][1] == "1").then_some(())
        });
        prometheus
    }

    /// What a query gives now; else what is wrong with it.
    pub(super) fn query(&self, query: &str) -> Result<Value, String> {
        if std::net::TcpStream::connect(&self.address).is_err() {
            return Err("it does not listen yet".to_owned());
        }
        let form = http::form(&[("query", query)]);
        let answer = http::over_tcp(&self.address, "GET", &format!("/api/v1/query?{form}"), &[], "");
        if answer.header("content-type") != Some("application/json") {
            return Err(format!("it is not ready yet: {}", answer.body));
        }
        let answer = answer.json();
        if answer["status"] == "success" { Ok(answer["data"]["result"].clone()) } else { Err(answer.to_string()) }
    }

    /// What it has logged.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// What Alertmanager tells whoever is to hear of alerts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Told {
    /// `firing` or `resolved`.
    pub(super) status: String,
    /// The alert's name.
    pub(super) alert: String,
    /// What it is about: an organization, else a provider, else nothing.
    pub(super) about: String,
}

/// A real Alertmanager, and the receiver that it tells.
pub(super) struct Alertmanager {
    /// Where it listens.
    pub(super) address: String,
    told: Arc<Mutex<Vec<Told>>>,
    _process: Process,
    _folder: TempDir,
}

impl Alertmanager {
    /// Starts both.
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let told: Arc<Mutex<Vec<Told>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address");
        let receiver = listener.local_addr().expect("it is bound");
        let heard = Arc::clone(&told);
        // Lives as long as the test's process; nobody speaks to it after that.
        thread::spawn(move || receive(&listener, &heard));
        let configuration = format!(
            "route: {{receiver: test, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}\n\
             receivers: [{{name: test, webhook_configs: [{{url: 'http://{receiver}/', send_resolved: true}}]}}]\n"
        );
        let file = folder.path().join("alertmanager.yaml");
        fs::write(&file, configuration).expect("the folder is ours");
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new("prometheus-alertmanager");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=");
        let process = spawn(&mut command, folder.path());
        Self { address, told, _process: process, _folder: folder }
    }

    /// Waits until the receiver was told this.
    pub(super) fn wait(&self, status: &str, alert: &str, about: &str) {
        // A refusal is proven after a minute, and a provider thaws within another.
        let end = Instant::now() + Duration::from_mins(4);
        let wanted = Told { status: status.to_owned(), alert: alert.to_owned(), about: about.to_owned() };
        while !self.told().contains(&wanted) {
            assert!(Instant::now() < end, "nobody was told {wanted:?}, but {:#?}", self.told());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Everything the receiver was told.
    pub(super) fn told(&self) -> HashSet<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// The shipped rules with every duration made short. What they ask, and from which value on, stays as it is.
pub(super) fn impatient_rules() -> String {
    let rules = text("deploy/prometheus/consentry.rules.yaml");
    let shortened = rules.lines().map(|line| {
        let Some((head, _)) = line.split_once("for: ") else {
            return ["[5m]", "[10m]", "[15m]", "[1h]"]
                .iter()
                .fold(line.to_owned(), |line, window| line.replace(window, "[5s]"));
        };
        if head.trim().is_empty() { format!("{head}for: 1s") } else { line.to_owned() }
    });
    shortened.collect::<Vec<_>>().join("\n")
}

fn spawn(command: &mut Command, folder: &Path) -> Process {
    let log = File::create(folder.join("log")).expect("the folder is ours");
    let err = log.try_clone().expect("a descriptor");
    command.current_dir(path("")).stdin(Stdio::null()).stdout(log).stderr(err);
    Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// Takes what Alertmanager posts (its webhook format, version 4), one request a connection.
fn receive(listener: &TcpListener, told: &Mutex<Vec<Told>>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let mut reader = BufReader::new(&stream);
        let mut length = 0;
        for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            continue;
        }
        let body: Value = serde_json::from_slice(&body).expect("Alertmanager posts JSON");
        let alerts = body["alerts"].as_array().cloned().unwrap_or_default().into_iter().map(|alert| {
            let label = |name: &str| alert["labels"][name].as_str().map(str::to_owned);
            Told {
                status: alert["status"].as_str().unwrap_or_default().to_owned(),
                alert: label("alertname").unwrap_or_default(),
                about: label("organization").or_else(|| label("provider")).unwrap_or_default(),
            }
        });
        told.lock().unwrap_or_else(PoisonError::into_inner).extend(alerts);
        let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
}
