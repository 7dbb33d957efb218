//! As many organizations as a large customer has, in one file.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Output};

use consentry::model::Usage;
use serde_json::{Value, json};

use crate::harness::{
    eventually,
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

const ORGANIZATIONS: usize = 10_000;
/// One in so many is at an issuer that answers; of each kind of those there are the same number.
const REACHABLE_EVERY: usize = 50;
/// Nobody listens there: port 9 is for a service that throws away what it is sent.
const UNREACHABLE: &str = "kind = \"oauth2\"\ntoken_url = \"http://127.0.0.1:9/token\"\nclient_id = \"isv_nobody\"";

#[test]
fn ten_thousand_organizations_come_from_one_file_and_are_there_after_a_restart() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).provider("unreachable", "hush-unreachable", UNREACHABLE).start();
    let (lines, secrets) = lines(&stand);
    let reachable = ORGANIZATIONS / REACHABLE_EVERY;

    // A bad line is told by its number, holds nothing up and does not show what is in it.
    let mut broken = lines.clone();
    broken.insert(1234, "{\"organization\":\"org-x\",\"refresh_token\":\"hush-broken-line\"".to_owned());
    broken.insert(5678, "{\"organization\":\"no/id\",\"refresh_token\":\"hush-broken-line\"}".to_owned());
    broken.insert(
        9012,
        json!({ "organization": "org-y", "provider": "none", "api_key": "hush-broken-line" }).to_string(),
    );
    let file = worker.file("broken.jsonl");
    fs::write(&file, broken.join("\n")).expect("the folder is ours");
    let (output, counts) = import(&worker, &file);
    assert_eq!(counts, json!({ "enrolled": ORGANIZATIONS, "replaced": 0, "unchanged": 0, "failed": 3 }));
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in ["line 1235: ", "line 5679: ", "line 9013: "] {
        assert!(told.contains(line), "{told}");
    }
    assert_eq!(told.lines().count(), 3, "{told}");
    for secret in secrets.iter().map(String::as_str).chain(["hush-broken-line"]) {
        assert!(!told.contains(secret), "{told}");
    }

    // The queue exchanges what can be; one-time tokens in the file are spent from then on.
    eventually("the reachable ones are exchanged", || (states(&worker)["active"] == reachable).then_some(()));
    assert_eq!(states(&worker)["failing"], ORGANIZATIONS - reachable);

    // Again is no change, and no harm.
    let good = worker.file("fleet.jsonl");
    fs::write(&good, lines.join("\n") + "\n").expect("the folder is ours");
    let exchanges = stand.issuer().exchanges();
    let (output, counts) = import(&worker, &good);
    assert_eq!(counts, json!({ "enrolled": 0, "replaced": 0, "unchanged": ORGANIZATIONS, "failed": 0 }));
    assert_eq!((output.status.code(), stand.issuer().exchanges(), stand.issuer().replays()), (Some(0), exchanges, 0));

    let worker = worker.restart();
    eventually("the index is loaded", || (worker.get("/readyz").status == 200).then_some(()));
    let listed = worker.command(&["org", "list", "--json"]);
    assert!(listed.status.success(), "{listed:?}");
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).expect("a list");
    let ids: Vec<&str> = listed.iter().filter_map(|one| one["organization"].as_str()).collect();
    let mut expected: Vec<String> = (0..ORGANIZATIONS).map(id).collect();
    expected.sort();
    assert_eq!(ids, expected);
    assert!(listed.iter().all(|one| one["labels"]["fleet"] == "north"));

    let status = worker.command(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let expected = json!({
        "active": reachable, "failing": ORGANIZATIONS - reachable, "in_doubt": 0, "lost": 0, "paused": 0
    });
    assert_eq!(status["organizations"], expected, "{status}");
    let by_provider: BTreeMap<&str, u64> = status["providers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (one["name"].as_str().expect("a name"), one["organizations"].as_u64().expect("a count")))
        .collect();
    assert_eq!(by_provider.values().sum::<u64>(), u64::try_from(ORGANIZATIONS).expect("few"));
    assert_eq!(by_provider["unreachable"], u64::try_from(ORGANIZATIONS - reachable).expect("few"));

    // Nothing was exchanged again for the restart, and what was exchanged before is still good.
    assert_eq!((stand.issuer().exchanges(), stand.issuer().replays()), (exchanges, 0));
    for number in (0..ORGANIZATIONS).step_by(REACHABLE_EVERY * 7) {
        assert!(stand.takes(&worker.fetch(&id(number))));
    }
}

fn id(number: usize) -> String {
    format!("org-{number}")
}

/// A line for each organization, and a few of the secrets in them.
fn lines(stand: &Stand) -> (Vec<String>, Vec<String>) {
    let mut secrets = Vec::new();
    let lines = (0..ORGANIZATIONS).map(|number| {
        let organization = id(number);
        let mut line = json!({ "organization": organization, "labels": { "fleet": "north" } });
        if !number.is_multiple_of(REACHABLE_EVERY) {
            let mut token = String::from("hush-unreachable");
            write!(token, "-{number}").expect("text can be written to");
            line["provider"] = "unreachable".into();
            line["refresh_token"] = token.into();
            return line.to_string();
        }
        let secret = match number / REACHABLE_EVERY % 3 {
            0 => stand.consent(&organization, Usage::Reuse, &[&organization]),
            1 => stand.consent(&organization, Usage::OneTime, &[&organization]),
            _ => stand.api_key(&organization),
        };
        match number / REACHABLE_EVERY % 3 {
            2 => (line["provider"], line["api_key"]) = (KEYS.into(), secret.clone().into()),
            kind => {
                (line["provider"], line["refresh_token"]) = (CONSENTS.into(), secret.clone().into());
                line["usage"] = ["reuse", "one-time"][kind].into();
            }
        }
        secrets.push(secret);
        line.to_string()
    });
    (lines.collect(), secrets)
}

fn import(worker: &Worker, file: &Path) -> (Output, Value) {
    let output = worker.command(&["import", "--json", &file.display().to_string()]);
    let counts = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output, counts)
}

fn states(worker: &Worker) -> Value {
    worker.get("/v1/status").json()["organizations"].clone()
}
