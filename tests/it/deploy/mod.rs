//! What is under `deploy/` and in the pages that go with it: held against the tools that will read it, and acted out with
//! the real worker.

mod alerts;
mod clients;
mod dashboard;
mod image;
mod kubernetes;
mod pod;
mod replicated;
mod rules;
mod runbooks;
mod systemd;
mod watched;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::geteuid;
use serde_json::Value;

/// A file of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A text of the repository.
fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Whether a command is there; says so loudly where not, since the test that asks then checks nothing.
fn installed(command: &str) -> bool {
    let found =
        env::var_os("PATH").is_some_and(|paths| env::split_paths(&paths).any(|folder| folder.join(command).is_file()));
    if !found {
        skipped(&format!("{command} is not installed; tests/peers/deploy/need fetches it"));
    }
    found
}

/// Whether this process may act as others and mount; says so loudly where not.
fn is_root(why: &str) -> bool {
    let is = geteuid().is_root();
    if !is {
        skipped(&format!("only root can {why}; run this test as root"));
    }
    is
}

fn skipped(why: &str) {
    #[expect(clippy::print_stderr, reason = "a test that checks nothing must say so")]
    {
        eprintln!("SKIPPED: {why}");
    }
}

/// Where `tests/peers/deploy/need` puts what comes from the registries of Python and Node; nothing where it has not run.
fn tools(name: &str) -> Option<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| path("target"), PathBuf::from);
    let found = Some(target.join("tools/deploy").join(name)).filter(|folder| folder.exists());
    if found.is_none() {
        skipped(&format!("{name} is not below target/tools/deploy; tests/peers/deploy/need fetches it"));
    }
    found
}

/// Runs a command to its end and gives what it printed; panics with all of that where it fails.
fn run(command: &mut Command) -> String {
    let output = output(command);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}\n{told}{complained}", output.status);
    told
}

/// Runs a command to its end, whatever that is.
fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A process that ends with this value, however the test does.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A YAML text as JSON; of several documents all.
fn documents(yaml: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    let documents = serde_yaml_ng::Deserializer::from_str(yaml);
    documents.map(|document| Value::deserialize(document).expect("it is YAML")).collect()
}

/// The one document of a YAML text.
fn document(yaml: &str) -> Value {
    documents(yaml).pop().expect("a document")
}

/// The code blocks of a page in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in page.lines() {
        match (line.trim_start().strip_prefix("```"), &mut block) {
            (Some(_), Some(_)) => blocks.extend(block.take()),
            (Some(named), None) if named == language => block = Some(String::new()),
            (None, Some(block)) => block.extend([line.trim(), "\n"]),
            _ => {}
        }
    }
    blocks
}
