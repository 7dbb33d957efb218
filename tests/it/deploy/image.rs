//! The image: built by buildah, without a registry, and run.

use std::{
    env, fs,
    os::unix::{fs::chown, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::Signal;

use super::{Process, installed, is_root, output, path, run, skipped, text};
use crate::harness::{eventually, http};

/// The image's user, who is nobody else's.
const USER: u32 = 10_001;
/// The largest that an image may be, in bytes.
const LARGEST: u64 = 25_000_000;

#[test]
fn an_image_is_built_of_nothing_but_the_binary_runs_as_nobody_and_answers_its_health_check() {
    if !installed("buildah") || !is_root("build images with --isolation chroot") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store(folder.path().join("store"));
    let packed = built_before();
    let static_binary = packed.is_some();
    let (context, binary) = packed.unwrap_or_else(|| {
        skipped("there is no static binary (`make image` builds one): neither its size nor that it needs no libraries is shown");
        (dynamic_context(folder.path()), "consentry".to_owned())
    });
    store.run(|buildah| {
        buildah.args(["bud", "--isolation", "chroot", "--quiet", "--file"]).arg(path("deploy/Dockerfile.scratch"));
        buildah.args(["--build-arg", &format!("BINARY={binary}"), "--tag", "consentry"]).arg(&context);
    });
    let told = store.run(|buildah| {
        buildah.args(["inspect", "--type", "image", "--format", "{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}}"]);
        buildah.arg("consentry");
    });
    assert_eq!(told.trim(), format!("{USER}:{USER} [/usr/bin/consentry]"));

    let container = store.run(|buildah| {
        buildah.args(["from", "consentry"]);
    });
    let container = container.trim().to_owned();
    let root = PathBuf::from(
        store
            .run(|buildah| {
                buildah.args(["mount", &container]);
            })
            .trim(),
    );
    let files = files(&root);
    let names: Vec<String> =
        files.iter().map(|file| format!("/{}", file.strip_prefix(&root).expect("below it").display())).collect();
    assert_eq!(
        names,
        ["/etc/group", "/etc/nsswitch.conf", "/etc/passwd", "/usr/bin/consentry"],
        "no shell, no library"
    );
    // The roots of the certificate authorities are in the binary.
    let bytes = fs::read(root.join("usr/bin/consentry")).expect("it was copied");
    assert!(bytes.windows(12).any(|found| found == b"ISRG Root X1"), "no public roots are in the binary");
    if static_binary {
        let size: u64 = files.iter().map(|file| file.metadata().expect("it is there").len()).sum();
        assert!(size < LARGEST, "{size} bytes");
    } else {
        with_libraries(&root);
    }
    runs(&store, &container, folder.path());
}

/// Starts the worker in the container, with its volumes, and asks after its health as Kubernetes does.
fn runs(store: &Store, container: &str, folder: &Path) {
    let volumes = ["etc/consentry", "var/lib/consentry", "run/consentry"].map(|mounted| {
        let volume = folder.join(mounted.replace('/', "-"));
        fs::create_dir(&volume).expect("the folder is ours");
        chown(&volume, Some(USER), Some(USER)).expect("root may");
        format!("{}:/{mounted}", volume.display())
    });
    let configuration = "[http]\nlisten = \"\"\n\n[vault]\nidentity_file = \"/var/lib/consentry/identity.txt\"\n";
    fs::write(folder.join("etc-consentry/consentry.toml"), configuration).expect("the folder is ours");
    let command = |arguments: &[&str]| {
        let mut command = store.buildah();
        command.args(["run", "--isolation", "chroot"]);
        for volume in &volumes {
            command.args(["--volume", volume]);
        }
        command.arg(container).arg("--").arg("/usr/bin/consentry").args(arguments);
        command
    };
    run(&mut command(&["init"]));
    let mut worker = Process(command(&["run"]).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    let socket = folder.join("run-consentry/consentry.sock");
    eventually("the worker in the container is ready", || {
        assert!(worker.0.try_wait().expect("it is our child").is_none(), "the worker ended");
        http::over_unix(&socket, "GET", "/readyz", &[], "").ok().filter(|answer| answer.status == 200)
    });
    assert_eq!(run(&mut command(&["health"])).trim(), "ready");
    run(&mut command(&["health", "--live"]));
    let owner = std::os::unix::fs::MetadataExt::uid(&socket.metadata().expect("it is there"));
    assert_eq!(owner, USER);
    let shell =
        output(store.buildah().args(["run", "--isolation", "chroot", container, "--", "/bin/sh", "-c", "true"]));
    assert!(!shell.status.success(), "there is a shell in the image");
    // It is asked itself: where whoever started it is killed, it lives on.
    let stream = UnixStream::connect(&socket).expect("it listens");
    let pid = rustix::net::sockopt::socket_peercred(&stream).expect("the kernel knows").pid;
    rustix::process::kill_process(pid, Signal::TERM).expect("root may");
    eventually("it stops", || worker.0.try_wait().expect("it is our child").map(drop));
}

#[test]
fn both_dockerfiles_pack_the_same_and_ignore_what_is_no_source() {
    let packs = |file: &str| {
        let text = text(file);
        let last = text.rsplit("FROM scratch").next().expect("a last stage").to_owned();
        let lines = last.lines().filter(|line| !line.is_empty() && !line.starts_with("ARG ") && !line.starts_with('#'));
        lines.map(|line| line.replace("--from=build /packed/consentry", "${BINARY}")).collect::<Vec<_>>()
    };
    assert_eq!(packs("deploy/Dockerfile"), packs("deploy/Dockerfile.scratch"));
    let ignored = text(".dockerignore");
    assert!(["target", "**/node_modules", ".git"].iter().all(|line| ignored.lines().any(|ignored| ignored == *line)));
}

/// Buildah's own storage for this test, which is gone afterwards.
struct Store(PathBuf);

impl Store {
    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.0.join("root")).arg("--runroot").arg(self.0.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    }

    fn run(&self, arguments: impl FnOnce(&mut Command)) -> String {
        let mut command = self.buildah();
        arguments(&mut command);
        run(&mut command)
    }
}

/// The repository as context with the static binary in it, where somebody has built one.
fn built_before() -> Option<(PathBuf, String)> {
    let binary = format!("target/{}-unknown-linux-gnu/release/consentry", env::consts::ARCH);
    path(&binary).is_file().then(|| (path(""), binary))
}

/// The tests' own binary, stripped, and what the Dockerfile takes besides.
fn dynamic_context(folder: &Path) -> PathBuf {
    let context = folder.join("context");
    fs::create_dir_all(context.join("deploy/image")).expect("the folder is ours");
    for file in ["deploy/image/passwd", "deploy/image/group", "deploy/image/nsswitch.conf"] {
        fs::copy(path(file), context.join(file)).expect("it is there");
    }
    run(Command::new("strip").arg("-o").arg(context.join("consentry")).arg(env!("CARGO_BIN_EXE_consentry")));
    context
}

/// Puts what the tests' binary is linked to beside it.
fn with_libraries(root: &Path) {
    let told = run(Command::new("ldd").arg(env!("CARGO_BIN_EXE_consentry")));
    for library in told.split_whitespace().filter(|word| word.starts_with('/')) {
        let here = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(here.parent().expect("it has a folder")).expect("the folder is ours");
        fs::copy(library, here).expect("it is there");
    }
}

/// Every file below a folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one").path()).collect();
    entries.sort();
    entries.into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
