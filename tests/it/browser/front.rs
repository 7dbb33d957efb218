//! The proxy that ends TLS for the tests' host names: `tests/peers/front.mjs`, in a process of its own for each test.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// One host name, and where its requests go.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The host name, without a port: browsers come to 443.
    pub(super) host: &'static str,
    /// Who answers.
    pub(super) to: To,
}

/// Who answers a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// A listener.
    Listener(SocketAddr),
    /// A listener that does not know of this beginning of the path, which is taken away on the way.
    Below(&'static str, SocketAddr),
    /// The front itself: the browser is sent on to the same path at that host.
    Host(&'static str),
}

impl To {
    fn json(self) -> Value {
        match self {
            Self::Listener(address) => json!({ "to": address.to_string() }),
            Self::Below(strip, address) => json!({ "to": address.to_string(), "strip": strip }),
            Self::Host(host) => json!({ "onward": host }),
        }
    }
}

/// A request that went through.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Seen {
    /// The host that was asked for.
    pub(super) host: String,
    /// Its method.
    pub(super) method: String,
    /// Path and query as the browser sent them.
    pub(super) path: String,
    /// How it was answered.
    pub(super) status: u16,
    /// `Referer`.
    pub(super) referer: Option<String>,
    /// `Sec-Fetch-Site`: what the browser itself says of where the request came from.
    pub(super) site: Option<String>,
    /// `Accept-Language`.
    pub(super) language: Option<String>,
    /// The names of the cookies that came along.
    pub(super) cookies: Vec<String>,
}

/// The running proxy; ends when dropped.
#[derive(Debug)]
pub(super) struct Front {
    child: Child,
    names: Vec<&'static str>,
    address: SocketAddr,
    spki: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Front {
    /// Starts it with these routes.
    pub(super) fn start(routes: &[Route]) -> Self {
        let table: Map<String, Value> = routes.iter().map(|route| (route.host.to_owned(), route.to.json())).collect();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/front.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .arg(Value::Object(table).to_string())
            .stdin(Stdio::piped()) // It ends when this does, even where the test is killed.
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node starts: `make test` says what is missing");
        let mut lines = BufReader::new(child.stdout.take().expect("it was piped")).lines().map_while(Result::ok);
        let first = lines.next().expect("the front says where it listens; it needs openssl for its certificate");
        let first: Value = serde_json::from_str(&first).expect("the front speaks JSON");

        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let into = Arc::clone(&seen);
        thread::spawn(move || {
            for line in lines {
                let request = serde_json::from_str(&line).expect("the front speaks as we do");
                into.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            }
        });
        Self {
            child,
            names: routes.iter().map(|route| route.host).collect(),
            address: format!("127.0.0.1:{}", first["port"]).parse().expect("a port is a number"),
            spki: first["spki"].as_str().expect("the front has a key").to_owned(),
            seen,
        }
    }

    /// The host names that lead to it.
    pub(super) fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The hash by which a browser knows its key.
    pub(super) fn spki(&self) -> &str {
        &self.spki
    }

    /// Every request so far, in the order in which they were answered.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
