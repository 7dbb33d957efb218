//! Receivers of webhooks that verify with a library nobody here wrote: `tests/peers/webhooks/receiver.mjs`, in a process of
//! its own for each test.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{eventually, http, node::Node};

/// Signing secrets as a receiver has them; markers that must show up in no log.
pub(crate) const SECRET: &str = "whsec_aHVzaC1zaWduaW5nLXNlY3JldC1udW1iZXItb25l";
pub(crate) const NEXT_SECRET: &str = "whsec_aHVzaC1zaWduaW5nLXNlY3JldC1udW1iZXItdHdv";

/// The process in which receivers live; ends when dropped. What they got outlives it.
#[derive(Debug)]
pub(crate) struct Hooks {
    node: Node,
    folder: TempDir,
}

/// One request as a receiver saw it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Got {
    /// Which receiver.
    pub(crate) receiver: String,
    /// `webhook-id`.
    pub(crate) id: String,
    /// The positions of the receiver's secrets by which the library verified it.
    pub(crate) verified_by: Vec<usize>,
    /// What the library said where none did.
    pub(crate) problem: Option<String>,
    /// How many signatures it bore.
    pub(crate) signatures: usize,
    /// `content-type`.
    pub(crate) content_type: String,
    /// The status it was answered with; none where that took its time.
    pub(crate) answered: Option<u16>,
    /// The body, byte for byte.
    pub(crate) body: String,
}

impl Got {
    /// The event in it.
    pub(crate) fn event(&self) -> Value {
        serde_json::from_str(&self.body).expect("a webhook's body is JSON")
    }

    /// Its type, and whose it is where it is an organization's.
    pub(crate) fn what(&self) -> (String, String) {
        let event = self.event();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["data"]["organization"]))
    }
}

impl Hooks {
    /// Starts it on a free port.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let node = launch(0, folder.path());
        Self { node, folder }
    }

    /// Is not there while `between` goes on, and then again at the same address; its receivers have forgotten what they were
    /// told.
    pub(crate) fn away_while(&mut self, between: impl FnOnce()) {
        self.node.end();
        between();
        let port = self.node.address().rsplit(':').next().and_then(|port| port.parse().ok()).expect("it had one");
        self.node = launch(port, self.folder.path());
    }

    /// The URL of a receiver.
    pub(crate) fn url(&self, receiver: &str) -> String {
        format!("http://{}/hooks/{receiver}", self.node.address())
    }

    /// Tells a receiver how to be from now on; the script's head lists the fields.
    pub(crate) fn set(&self, receiver: &str, terms: &Value) {
        self.put(&format!("/control/{receiver}"), terms);
    }

    /// Lets the library believe that it is that moment, in milliseconds since 1970.
    pub(crate) fn set_now(&self, millis: i64) {
        self.put("/control", &json!({ "now_ms": millis }));
    }

    fn put(&self, path: &str, body: &Value) {
        let answer = http::over_tcp(self.node.address(), "PUT", path, &[], &body.to_string());
        assert_eq!(answer.status, 204, "{answer:?}");
    }

    /// What a receiver got so far, in the order in which it came.
    pub(crate) fn got(&self, receiver: &str) -> Vec<Got> {
        let text = fs::read_to_string(self.folder.path().join("got.jsonl")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let all = whole.map(|line| serde_json::from_str::<Got>(line).expect("the script writes what we read"));
        all.filter(|got| got.receiver == receiver).collect()
    }

    /// Waits until a receiver has got something of that type about that organization, and gives it: the first that was.
    pub(crate) fn wait_for(&self, receiver: &str, kind: &str, organization: &str) -> Got {
        eventually("the webhook arrives", || {
            self.got(receiver).into_iter().find(|got| got.what() == (kind.to_owned(), organization.to_owned()))
        })
    }
}

/// Starts the process.
fn launch(port: u16, folder: &Path) -> Node {
    Node::start("webhooks", |command| command.arg("receiver.mjs").arg(port.to_string()).arg(folder.join("got.jsonl")))
}
