//! What the running worker denies others, and itself.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use consentry::model::Usage;
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{
    caller::{Caller, may_become_others},
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

const ORGANIZATION: &str = "hardened";

/// A worker that holds a secret, and the access token that was fetched from it.
fn holding(stand: &Stand) -> (Worker, String) {
    let setup = Setup::default().log("level = \"info\"").access("uid = 1001\nrole = \"fetch\"").reachable_for_all();
    let worker = setup.sandbox(stand).start();
    let token = stand.consent("somebody", Usage::Reuse, &[ORGANIZATION]);
    let body = json!({ "provider": CONSENTS, "refresh_token": token });
    assert_eq!(worker.enrol(ORGANIZATION, &body).status, 201);
    let access = worker.fetch(ORGANIZATION);
    (worker, access)
}

fn proc(worker: &Worker, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", worker.pid()))
}

/// A field of `/proc/PID/status`.
fn status(worker: &Worker, field: &str) -> String {
    let text = fs::read_to_string(proc(worker, "status")).expect("everybody may read that");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).expect("a field");
    line.trim().to_owned()
}

fn limit(worker: &Worker, name: &str) -> Vec<String> {
    let text = fs::read_to_string(proc(worker, "limits")).expect("readable");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn a_worker_that_crashes_leaves_no_core() {
    let stand = Stand::start(3600);
    for signal in [Signal::ABORT, Signal::SEGV] {
        let (mut worker, _) = holding(&stand);
        assert_eq!(limit(&worker, "Max core file size"), ["0", "0"]);
        let before = cores(Path::new("."));
        // The first of two SEGV that no instruction caused goes to the language's own handler, which then steps aside.
        for _ in 0..2 {
            worker.signal(signal);
            thread::sleep(Duration::from_millis(200));
        }
        let ended = worker.wait();
        assert_eq!(ended.signal(), Some(signal.as_raw()));
        assert!(!ended.core_dumped(), "{ended:?}");
        assert_eq!(cores(Path::new(".")), before);
    }
}

fn cores(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
    files.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"core"))).collect()
}

#[test]
fn nobody_else_looks_into_the_process_and_it_gains_no_privileges() {
    let stand = Stand::start(3600);
    let (worker, _) = holding(&stand);
    assert_eq!(status(&worker, "NoNewPrivs"), "1");
    assert_eq!(status(&worker, "Umask"), "0077");
    // What is not dumpable belongs to root, whoever runs it.
    assert_eq!(fs::metadata(proc(&worker, "mem")).expect("there").uid(), 0);
    if !may_become_others() {
        return;
    }
    let other = Caller::user(1001);
    for name in ["mem", "environ", "maps", "auxv"] {
        let read = other.act(|| fs::read(proc(&worker, name)).map(|bytes| bytes.len()));
        assert!(read.is_err(), "{name}: {read:?}");
    }
    for name in ["fd", "map_files", "task"] {
        let read = other.act(|| fs::read_dir(proc(&worker, name)).map(Iterator::count));
        assert!(name == "task" || read.is_err(), "{name}: {read:?}");
    }
}

#[test]
fn a_secret_is_in_no_file_that_the_process_has_open_or_mapped() {
    let stand = Stand::start(3600);
    let (worker, access) = holding(&stand);
    let mut files: Vec<PathBuf> = fs::read_to_string(proc(&worker, "maps"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .collect();
    let open = fs::read_dir(proc(&worker, "fd")).into_iter().flatten().flatten();
    files.extend(open.filter_map(|entry| fs::read_link(entry.path()).ok()));
    files.retain(|file| file.is_absolute() && file.is_file());
    files.sort();
    files.dedup();
    for file in files {
        // One that is gone by now holds nothing.
        let bytes = fs::read(&file).unwrap_or_default();
        let holds = bytes.windows(access.len()).any(|window| window == access.as_bytes());
        assert!(!holds, "{}", file.display());
    }
    for name in ["cmdline", "environ", "comm"] {
        let bytes = fs::read(proc(&worker, name)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&bytes).contains(&access), "{name}");
    }
}

#[test]
fn the_worker_takes_the_descriptors_that_it_may_have() {
    let worker = Setup::default().start();
    let [soft, hard] = limit(&worker, "Max open files").try_into().expect("two numbers");
    let hard: u64 = hard.parse().expect("a number");
    assert_eq!(soft.parse::<u64>().expect("a number"), hard.min(65_536));
}

#[test]
fn the_audit_log_has_one_line_for_each_denial_and_each_change_with_the_callers_uid() {
    let stand = Stand::start(3600);
    let (worker, access) = holding(&stand);
    let own = rustix::process::geteuid().as_raw();
    let path = format!("/v1/organizations/{ORGANIZATION}");
    for action in ["pause", "resume"] {
        assert_eq!(worker.post(&format!("{path}/{action}"), &[]).status, 200);
    }
    assert_eq!(worker.request("DELETE", &path, &[], "").status, 204);
    let mut expected =
        vec![(own, "enrol", "created"), (own, "pause", "done"), (own, "resume", "done"), (own, "remove", "removed")];
    if may_become_others() {
        let (stranger, fetcher) = (Caller::user(1002), Caller::user(1001));
        for (caller, method, suffix) in
            [(&stranger, "GET", "/token"), (&stranger, "POST", "/token/refresh"), (&fetcher, "DELETE", "")]
        {
            let answer = worker.request_as(caller, method, &format!("{path}{suffix}"), &[], "");
            assert_eq!(answer.status, 403, "{answer:?}");
        }
        expected.extend([(1002, "fetch", "denied"), (1002, "refresh", "denied"), (1001, "remove", "denied")]);
    }
    let log = worker.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("consentry::audit")).collect();
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (uid, action, outcome)) in lines.iter().zip(expected) {
        for part in [
            format!("caller.uid={uid} "),
            format!("action=\"{action}\""),
            format!("organization=\"{ORGANIZATION}\""),
            format!("outcome=\"{outcome}\""),
        ] {
            assert!(line.contains(&part), "{line} lacks {part}");
        }
        assert!(!line.contains(&access), "{line}");
    }
}
