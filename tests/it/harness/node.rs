//! A peer that is a Node program of `tests/peers`, in a process of its own.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::Value;

/// The running program; ends when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    address: String,
}

impl Node {
    /// Runs a script of `tests/peers/{peer}` as `with` says, and waits until it has told its port.
    pub(crate) fn start(peer: &str, with: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(peer);
        assert!(
            folder.join("node_modules").is_dir(),
            "{} has no node_modules: run `make test` (or `make peers` once), which fetches them",
            folder.display()
        );
        let mut command = Command::new("node");
        command.current_dir(folder).stderr(Stdio::inherit());
        let mut child = with(&mut command)
            .stdin(Stdio::piped()) // It ends when this does, even where the test is killed.
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts: `make test` says what is missing");
        let mut lines = BufReader::new(child.stdout.take().expect("it was piped")).lines().map_while(Result::ok);
        let port = lines
            .by_ref()
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            .find_map(|line| line["port"].as_u64())
            .expect("the peer says its port before it ends");
        // What it says later must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        Self { child, address: format!("127.0.0.1:{port}") }
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Ends it; again changes nothing.
    pub(crate) fn end(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}
