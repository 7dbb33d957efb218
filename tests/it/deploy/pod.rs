//! The pod, acted out on one machine: its containers as processes with the users, groups, mounts, commands and probes that
//! the rendered manifest says, and a root that cannot be written to.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use consentry::{
    model::Usage,
    sandbox::{Fault, FaultKind},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    Process, installed, is_root,
    kubernetes::{container, find, rendered},
    output, path, text,
};
use crate::harness::{caller::Caller, eventually, http, ports::free_port, sandbox::Stand};

/// What the manifest's image has there, is there under this name here: `/usr` is the machine's.
const BINARY: &str = "/consentry";
const IMAGE_BINARY: &str = "/usr/bin/consentry";
/// How many wait for an exchange when the worker is told to stop.
const WAITING: usize = 8;

#[test]
fn a_pod_starts_serves_and_stops_as_kubernetes_would_have_it_and_no_fetch_fails() {
    if !is_root("act as the users of a pod")
        || !["unshare", "setpriv", "chroot", "curl"].iter().all(|tool| installed(tool))
    {
        return;
    }
    let Some(objects) = rendered("sidecar") else { return };
    let stand = Stand::start(3600);
    let pod = Pod::of(&find(&objects, "Deployment", "application")["spec"]["template"]["spec"], &stand);

    // The vault is made, then the sidecar starts; the application is not started before it is ready.
    let made = pod.output("consentry-init", None);
    assert!(made.status.success(), "{made:?}");
    let again = pod.output("consentry-init", None);
    assert!(again.status.success(), "a vault that is there is left alone: {again:?}");
    let mut sidecar = pod.spawn("consentry", "sidecar.log");
    eventually("the startup probe succeeds", || {
        assert!(sidecar.0.try_wait().expect("it is our child").is_none(), "{}", pod.log("sidecar.log"));
        pod.output("consentry", Some(&pod.probe("startupProbe"))).status.success().then_some(())
    });
    for probe in ["readinessProbe", "livenessProbe"] {
        assert!(pod.output("consentry", Some(&pod.probe(probe))).status.success(), "{probe}");
    }
    let log = pod.log("sidecar.log");
    assert!(!log.contains("others than its owner may read"), "a mounted secret is as it should be: {log}");
    pod.enrol(&stand, "123456");
    for number in 0..WAITING {
        pod.enrol(&stand, &format!("waits-{number}"));
    }

    let enrolled = u64::try_from(WAITING + 1).expect("few");
    eventually("each has its first token", || (stand.issuer().exchanges() == enrolled).then_some(()));

    // The application's own command fetches by the socket, as another user, through a mount that cannot be written to.
    let mut application = pod.spawn("application", "application.log");
    eventually("the application has fetched", || pod.log("application.log").contains("fetched").then_some(()));
    pod.keeps_the_application_out();

    // Fetches run on and on while the application is told to stop, and then the sidecar.
    let (stop, fetches) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(pod.fetch("GET", "/v1/organizations/123456/token"), 200);
                    fetches.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        eventually("fetches run", || (fetches.load(Ordering::SeqCst) > 100).then_some(()));
        terminate(&application);
        assert!(application.0.wait().expect("it is our child").success(), "{}", pod.log("application.log"));
        stop.store(true, Ordering::SeqCst);
    });

    // The sidecar is told to stop while callers wait for exchanges that take long.
    stand.fault(Fault { delay_ms: Some(3000), ..Fault::always(FaultKind::Slow) });
    thread::scope(|scope| {
        let callers: Vec<_> = (0..WAITING)
            .map(|number| {
                let (pod, path) = (&pod, format!("/v1/organizations/waits-{number}/token/refresh"));
                scope.spawn(move || pod.fetch("POST", &path))
            })
            .collect();
        let all = enrolled + u64::try_from(WAITING).expect("few");
        eventually("all exchanges are under way", || (stand.issuer().exchanges() == all).then_some(()));
        terminate(&sidecar);
        for caller in callers {
            assert_eq!(caller.join().expect("no panic"), 200);
        }
    });
    let ended = sidecar.0.wait().expect("it is our child");
    let log = pod.log("sidecar.log");
    assert!(ended.success() && log.contains("\"stopped\""), "{ended}: {log}");
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(stand.issuer().replays(), 0);
}

/// One pod: its folders, and what the manifest says.
struct Pod {
    spec: Value,
    folder: TempDir,
    environment: Vec<(String, String)>,
    /// The application, as the kernel sees it.
    application: Caller,
}

impl Pod {
    /// Makes the volumes as the kubelet does: root's, of the pod's group, and writable for it where they are no secrets.
    fn of(spec: &Value, stand: &Stand) -> Self {
        let folder = tempfile::Builder::new().prefix("consentry-pod-").tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("the folder is ours");
        let group = number(&spec["securityContext"]["fsGroup"]);
        for volume in spec["volumes"].as_array().expect("volumes") {
            let name = volume["name"].as_str().expect("a name");
            let (mode, files): (u32, Vec<(&str, String)>) = match name {
                "consentry-socket" => (0o2777, Vec::new()),
                "consentry-vault" | "consentry-backups" => (0o2775, Vec::new()),
                "consentry-config" => (0o2755, vec![("consentry.toml", text("deploy/kubernetes/base/consentry.toml"))]),
                "consentry-identity" => (0o2750, vec![("identity.txt", identity())]),
                "consentry-clients" => (0o2750, vec![("visma-connect", stand.client().1.to_owned())]),
                other => panic!("what is the volume {other}?"),
            };
            let here = folder.path().join(name);
            fs::create_dir(&here).expect("the folder is ours");
            for (file, content) in files {
                // Kubernetes swaps the whole of a mounted secret by a link.
                let data = here.join("..data");
                fs::create_dir(&data).expect("the folder is ours");
                fs::write(data.join(file), content).expect("the folder is ours");
                chown(&data, None, Some(group)).expect("root may");
                chown(data.join(file), None, Some(group)).expect("root may");
                let secret = if name == "consentry-config" { 0o644 } else { number(&volume["secret"]["defaultMode"]) };
                fs::set_permissions(data.join(file), fs::Permissions::from_mode(secret)).expect("root may");
                fs::set_permissions(&data, fs::Permissions::from_mode(mode)).expect("root may");
                symlink(format!("..data/{file}"), here.join(file)).expect("the folder is ours");
            }
            chown(&here, None, Some(group)).expect("root may");
            fs::set_permissions(&here, fs::Permissions::from_mode(mode)).expect("root may");
        }
        for name in ["consentry-init", "consentry", "application"] {
            let root = folder.path().join("roots").join(name);
            fs::create_dir_all(root.join("etc")).expect("the folder is ours");
            for file in ["passwd", "group", "nsswitch.conf"] {
                fs::copy(path("deploy/image").join(file), root.join("etc").join(file)).expect("it is there");
            }
            fs::copy(env!("CARGO_BIN_EXE_consentry"), root.join(&BINARY[1..])).expect("the folder is ours");
            // Here, where it is done once: a container and its probes begin at the same time.
            for link in ["bin", "sbin", "lib", "lib64"] {
                if let Ok(target) = fs::read_link(Path::new("/").join(link)) {
                    symlink(target, root.join(link)).expect("the folder is ours");
                }
            }
        }
        let url = stand.url();
        let of = |key: &str, value: &str| (format!("CONSENTRY__{key}"), value.to_owned());
        // What is different here: the issuer, what it allows, and a port that is free on this machine.
        let environment = vec![
            of("HTTP__LISTEN", &format!("127.0.0.1:{}", free_port())),
            of("PROVIDERS__VISMA_CONNECT__CLIENT_ID", stand.client().0),
            of("PROVIDERS__VISMA_CONNECT__ISSUER", &url),
            // A fifth of it is for what callers force, which is all that they do here.
            of("PROVIDERS__VISMA_CONNECT__MAX_PER_MINUTE", "6000"),
            of("PROVIDERS__VISMA_CONNECT__ORGANIZATIONS_URL", &format!("{url}/v1/organizations")),
        ];
        let security = &container(spec, "application")["securityContext"];
        let application =
            Caller { uid: number(&security["runAsUser"]), gid: number(&security["runAsGroup"]), groups: vec![group] };
        Self { spec: spec.clone(), folder, environment, application }
    }

    /// A container's command, or another one in it.
    fn command(&self, name: &str, other: Option<&[String]>) -> Command {
        let container = container(&self.spec, name);
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh"]).arg(path("tests/it/deploy/container.sh"));
        command.arg(self.folder.path().join("roots").join(name));
        command.arg(format!("{}:{}", number(&security["runAsUser"]), number(&security["runAsGroup"])));
        command.arg(self.spec["securityContext"]["fsGroup"].to_string());
        for mount in container["volumeMounts"].as_array().expect("mounts") {
            let field = |field: &str| mount[field].as_str().expect("a text");
            let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
            let volume = self.folder.path().join(field("name"));
            command.arg(format!("{}:{}:{mode}", volume.display(), field("mountPath")));
        }
        command.arg("--");
        let own: Vec<String> = if container["command"].is_array() { Vec::new() } else { vec![BINARY.to_owned()] };
        match other {
            Some(other) => command.args(other),
            None => command.args(own).args(texts(&container["command"])).args(texts(&container["args"])),
        };
        command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").envs(self.environment.iter().cloned());
        for variable in container["env"].as_array().into_iter().flatten() {
            command.env(variable["name"].as_str().expect("a name"), variable["value"].as_str().expect("a value"));
        }
        command.stdin(Stdio::null());
        command
    }

    fn output(&self, name: &str, other: Option<&[String]>) -> std::process::Output {
        output(&mut self.command(name, other))
    }

    fn spawn(&self, name: &str, log: &str) -> Process {
        let log = fs::File::create(self.folder.path().join(log)).expect("the folder is ours");
        let err = log.try_clone().expect("a descriptor");
        Process(self.command(name, None).stdout(log).stderr(err).spawn().expect("it starts"))
    }

    fn log(&self, name: &str) -> String {
        let mut text = String::new();
        let file = fs::File::open(self.folder.path().join(name));
        let _ = file.and_then(|mut file| file.read_to_string(&mut text));
        text
    }

    /// The command of a probe of the sidecar.
    fn probe(&self, probe: &str) -> Vec<String> {
        let mut command = texts(&container(&self.spec, "consentry")[probe]["exec"]["command"]);
        assert_eq!(command[0], IMAGE_BINARY);
        BINARY.clone_into(&mut command[0]);
        command
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("consentry-socket/consentry.sock")
    }

    fn enrol(&self, stand: &Stand, organization: &str) {
        let token = stand.consent(organization, Usage::Reuse, &[organization]);
        let body = json!({ "provider": "visma-connect", "refresh_token": token }).to_string();
        let (path, headers) = (format!("/v1/organizations/{organization}"), [("content-type", "application/json")]);
        let answer = http::over_unix(&self.socket(), "PUT", &path, &headers, &body).expect("the worker answers");
        assert_eq!(answer.status, 201, "{answer:?}");
    }

    /// A call of the application's; its status. Whatever goes wrong on the way is a panic.
    fn fetch(&self, method: &str, path: &str) -> u16 {
        self.application.request(&self.socket(), method, path, &[], "").expect("it is answered").status
    }

    /// In the application's container there is neither vault nor secret, nothing can be written, and its role is to fetch.
    fn keeps_the_application_out(&self) {
        let tries = |script: &str| {
            self.output("application", Some(&["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]))
                .status
                .success()
        };
        assert!(tries("test -S /run/consentry/consentry.sock"));
        for script in [
            "test -e /etc/consentry/identity/identity.txt",
            "test -e /var/lib/consentry/vault",
            "touch /run/consentry/mine",
            "rm -f /run/consentry/consentry.sock",
            "touch /mine",
        ] {
            assert!(!tries(script), "the application can: {script}");
        }
        assert_eq!(self.fetch("GET", "/v1/organizations"), 403);
        assert_eq!(self.fetch("GET", "/v1/vault/backup"), 403);
        let stranger = Caller { uid: 10_003, ..self.application.clone() };
        let refused = stranger.request(&self.socket(), "GET", "/v1/organizations/123456/token", &[], "");
        assert_eq!(refused.expect("it is in the group of the socket").status, 403);
        let outsider = Caller::user(10_004);
        assert!(
            outsider.request(&self.socket(), "GET", "/healthz", &[], "").is_err(),
            "who is not in fsGroup is not let in"
        );
        let vault = self.folder.path().join("consentry-vault/vault");
        assert_eq!(mode(&vault), 0o700, "the group that the volume has gets nothing of the vault");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the test has failed, and this is the best witness")]
            for log in ["sidecar.log", "application.log"] {
                eprintln!("--- {log}\n{}---", self.log(log));
            }
        }
    }
}

/// A new identity, as `consentry init` makes one.
fn identity() -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("identity.txt");
    consentry::vault::Identity::create(&file).expect("the folder is ours");
    fs::read_to_string(file).expect("it was made")
}

/// SIGTERM to a container's process, which is the child itself: each step on the way to it became the next.
fn terminate(process: &Process) {
    kill_process(Pid::from_child(&process.0), Signal::TERM).expect("it is our child");
    thread::sleep(Duration::from_millis(50));
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).expect("it is there").permissions().mode() & 0o777
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| number.try_into().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().expect("a text").to_owned()).collect()
}
