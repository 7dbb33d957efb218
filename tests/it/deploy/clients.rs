//! The examples of docs/clients.md, run against the real worker: each fetches, is answered 401 by the API, refreshes, and is
//! answered well.

use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::json;

use super::{installed, output, path, run, text};
use crate::harness::{
    sandbox::{KEYS, Stand},
    worker::{Setup, Worker},
};

// What the page shows is compiled as it is, and run below.
#[path = "../../../docs/clients/fetch.rs"]
#[expect(unreachable_pub, reason = "it is an example of a program's own file")]
mod example;

/// What the API answers to a token that it takes.
const CONTACTS: &str = "{\"contacts\":[]}";

#[test]
fn curl_fetches_and_refreshes() {
    // Each call of curl is a process, and so a connection, of its own.
    converses("curl", &["docs/clients/fetch.sh"], 2);
}

#[test]
fn python_fetches_and_refreshes_on_one_connection() {
    converses("python3", &["python3", "docs/clients/fetch.py"], 1);
}

#[test]
fn node_fetches_and_refreshes_on_one_connection() {
    converses("node", &["node", "docs/clients/fetch.mjs"], 1);
}

#[test]
fn php_fetches_and_refreshes_on_one_connection() {
    converses("php", &["php", "docs/clients/fetch.php"], 1);
}

/// There is no .NET to be had from the registries that the tests use, so that this looks at the syntax alone.
#[test]
fn csharp_is_at_least_csharp() {
    if installed("mcs") {
        run(Command::new("mcs").arg("--parse").arg(path("docs/clients/Fetch.cs")));
    }
}

#[test]
fn the_rust_client_fetches_and_refreshes_on_one_connection() {
    let api = Api::start();
    let (stand, worker) = enrolled();
    let wire = Wire::to(worker.socket(), &worker.file("wire.sock"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = example::worker(&worker.file("wire.sock"));
    let organization = ORGANIZATION.parse().expect("an id");
    let call = plain_call(&api.url);
    let answer = runtime.block_on(example::call_for(&client, &organization, call)).expect("the worker answers");
    assert_eq!((answer.status, answer.body.as_str()), (200, CONTACTS));
    drop(client);
    assert_eq!((api.seen(), wire.connections(), stand.issuer().exchanges()), (2, 1, 2));
}

#[test]
fn the_page_shows_every_example_as_it_is_and_names_no_other() {
    let page = text("docs/clients.md");
    for file in ["fetch.sh", "fetch.py", "fetch.mjs", "fetch.php", "Fetch.cs", "fetch.rs"] {
        assert!(page.contains(&format!("](clients/{file})")), "{file}");
        assert!(path("docs/clients").join(file).is_file(), "{file}");
    }
    assert_eq!(page.matches("](clients/").count(), 6);
}

const ORGANIZATION: &str = "481001";

fn enrolled() -> (Stand, Worker) {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    let body = json!({ "provider": KEYS, "api_key": stand.api_key(ORGANIZATION) });
    assert_eq!(worker.enrol(ORGANIZATION, &body).status, 201);
    (stand, worker)
}

fn converses(needed: &str, command: &[&str], connections: usize) {
    if !installed(needed) {
        return;
    }
    let api = Api::start();
    let (stand, worker) = enrolled();
    let wire = Wire::to(worker.socket(), &worker.file("wire.sock"));
    let run = |organization: &str| {
        let (program, arguments) = command.split_first().expect("a program");
        let mut command = Command::new(program);
        command.current_dir(path("")).args(arguments).args([organization, &api.url]);
        output(command.env("CONSENTRY_SOCKET", worker.file("wire.sock")))
    };
    let ended = run(ORGANIZATION);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(String::from_utf8_lossy(&ended.stdout), CONTACTS);
    assert_eq!(api.seen(), 2, "two tokens");
    assert_eq!(wire.connections(), connections);
    // Enrolling made one exchange, and the 401 another.
    assert_eq!(stand.issuer().exchanges(), 2);

    let unknown = run("no-such-one");
    assert!(!unknown.status.success(), "{unknown:?}");
}

/// A stand-in for Dinero's API that rejects the first token it sees, and takes every other.
struct Api {
    url: String,
    tokens: Arc<Mutex<HashSet<String>>>,
}

impl Api {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address");
        let url = format!("http://{}/v1/{ORGANIZATION}/contacts", listener.local_addr().expect("it is bound"));
        let tokens: Arc<Mutex<HashSet<String>>> = Arc::default();
        let (seen, mut rejected) = (Arc::clone(&tokens), None);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                let bearer = lines.filter_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    name.eq_ignore_ascii_case("authorization").then(|| value.trim_start_matches("Bearer ").to_owned())
                });
                let token = bearer.last().unwrap_or_default();
                let takes = *rejected.get_or_insert_with(|| token.clone()) != token && !token.is_empty();
                seen.lock().unwrap_or_else(PoisonError::into_inner).insert(token);
                let (status, body) = if takes { ("200 OK", CONTACTS) } else { ("401 Unauthorized", "{}") };
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        Self { url, tokens }
    }

    /// How many different tokens it has seen.
    fn seen(&self) -> usize {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A call of the API with nothing but the standard library, on the thread that is at hand.
fn plain_call(url: &str) -> impl Fn(String) -> std::future::Ready<example::Answer> {
    let (address, path) = url.trim_start_matches("http://").split_once('/').expect("a URL has a path");
    let (address, path) = (address.to_owned(), format!("/{path}"));
    move |token| {
        let bearer = format!("Bearer {token}");
        let answer = crate::harness::http::over_tcp(&address, "GET", &path, &[("authorization", &bearer)], "");
        std::future::ready(example::Answer { status: answer.status, body: answer.body })
    }
}

/// A socket before the worker's own that counts connections.
struct Wire(Arc<AtomicUsize>);

impl Wire {
    fn to(worker: &Path, here: &Path) -> Self {
        let listener = UnixListener::bind(here).expect("the folder is ours");
        let count: Arc<AtomicUsize> = Arc::default();
        let (counted, worker) = (Arc::clone(&count), worker.to_owned());
        thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::SeqCst);
                let Ok(behind) = UnixStream::connect(&worker) else { continue };
                let both = [(caller.try_clone(), behind.try_clone()), (behind.try_clone(), caller.try_clone())];
                for (from, to) in both {
                    let (Ok(mut from), Ok(mut to)) = (from, to) else { continue };
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(read @ 1..) = from.read(&mut buffer) {
                            if to.write_all(&buffer[..read]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Self(count)
    }

    fn connections(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}
