//! The systemd unit: what systemd says of it, and what the worker tells systemd.

use std::{fs, os::unix::net::UnixDatagram, process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use super::{Process, installed, path, run, text};
use crate::harness::{PATIENCE, worker::Setup};

const UNIT: &str = "deploy/systemd/consentry.service";
/// Where the unit looks for the binary.
const INSTALLED: &str = "/usr/bin/consentry";
/// The worst exposure that is acceptable, from 0 (none) to 10.
const MOST_EXPOSED: f64 = 2.0;

#[test]
fn systemd_takes_the_unit_and_calls_it_little_exposed() {
    if !installed("systemd-analyze") {
        return;
    }
    let unit = text(UNIT);
    assert!(unit.contains("\nType=notify\n") && unit.contains("\nWatchdogSec="), "{unit}");
    for credential in ["LoadCredential=identity.txt:", "LoadCredential=clients:"] {
        assert!(unit.contains(credential), "{credential}");
    }
    // The binary is elsewhere here, and the rest is as it is shipped.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path().join("consentry.service");
    fs::write(&here, unit.replace(INSTALLED, env!("CARGO_BIN_EXE_consentry"))).expect("the folder is ours");
    run(Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(&here));

    let told = run(Command::new("systemd-analyze").args(["security", "--offline=yes", "--no-pager"]).arg(&here));
    let exposure: f64 = told
        .rsplit("service: ")
        .next()
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no exposure in {told}"));
    assert!(exposure <= MOST_EXPOSED, "{told}");
}

#[test]
fn the_users_and_groups_are_ones_that_sysusers_can_make() {
    if !installed("systemd-sysusers") {
        return;
    }
    let root = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(root.path().join("etc")).expect("the folder is ours");
    let file = path("deploy/systemd/consentry.sysusers.conf");
    run(Command::new("systemd-sysusers").arg("--root").arg(root.path()).arg(file));
    let groups = fs::read_to_string(root.path().join("etc/group")).expect("it was written");
    let users = fs::read_to_string(root.path().join("etc/passwd")).expect("it was written");
    assert!(users.contains("consentry:") && users.contains("nologin"), "{users}");
    assert!(
        groups.lines().any(|line| line.starts_with("consentry-clients:") && line.ends_with(":consentry")),
        "{groups}"
    );
}

#[test]
fn systemd_is_told_when_the_worker_is_ready_that_it_lives_and_that_it_stops() {
    let worker = Setup::default().prepare();
    let listens = worker.file("notify");
    let systemd = UnixDatagram::bind(&listens).expect("the folder is ours");
    systemd.set_read_timeout(Some(PATIENCE)).expect("a time limit that is not zero");
    let log = fs::File::create(worker.file("notified.log")).expect("the folder is ours");
    let child = Command::new(env!("CARGO_BIN_EXE_consentry"))
        .arg("run")
        .env("CONSENTRY_CONFIG", worker.file("consentry.toml"))
        .env("NOTIFY_SOCKET", &listens)
        .env("WATCHDOG_USEC", Duration::from_millis(300).as_micros().to_string())
        .stderr(log)
        .spawn()
        .expect("the binary starts");
    let mut child = Process(child);
    let next = || {
        let mut message = [0; 256];
        let length = systemd.recv(&mut message).expect("the worker tells something");
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    for _ in 0..5 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    let pid = Pid::from_child(&child.0);
    kill_process(pid, Signal::TERM).expect("it is our child");
    let mut last = next();
    while last == "WATCHDOG=1" {
        last = next();
    }
    assert_eq!(last, "STOPPING=1");
    assert!(child.0.wait().expect("it is our child").success());
}
