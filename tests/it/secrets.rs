//! Secrets go to the issuer and into the vault, and nowhere else: distinct ones are planted in every place where there
//! can be one, everything that can go wrong is made to, and then they are looked for wherever something is written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use aho_corasick::AhoCorasick;
use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use consentry::{
    model::{Secret, Usage},
    sandbox::{Fault, FaultKind, SandboxConfig},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::harness::{
    echo, eventually,
    http::{Headers, Response},
    sandbox::Stand,
    tap::Tap,
    worker::{Setup, Worker},
};

const JSON: Headers<'static> = &[("content-type", "application/json")];

/// Planted as they are. They have characters that are written otherwise in a form, in a URL and in JSON.
const CLIENT_SECRET: &str = "hush/client+secret=1";
const CLIENT_SECRET_OF_ONE: &str = "hush/client+secret=of-one";
const PERSONAL_SECRET: &str = "hush/personal+secret=1";
const REFUSED_TOKEN: &str = "hush/refused+token=1";
const REFUSED_KEY: &str = "hush/refused+key=1";
const ECHOED_TOKEN: &str = "hush/echoed+token=";
const ECHOED_CLIENT_SECRET: &str = "hush/echoed+client+secret=";
const BODY_SECRET: &str = "hush/in+a+wrong+body=1";
const LINE_SECRET: &str = "hush/in+a+wrong+line=1";

/// No secrets, but nobody's business who looks at the vault's files.
const CONSENTS: &str = "marked-consents-provider";
const KEYS: &str = "marked-keys-provider";
const LABEL_KEY: &str = "marked-label-key";
const LABEL_VALUE: &str = "marked-label-value";
const CONSENTED: &str = "marked-consented-organization";
const ONE_TIME: &str = "marked-one-time-organization";
const KEYED: &str = "marked-keyed-organization";
const OWN_CLIENT: &str = "marked-organization-with-its-own-client";
const USER: &str = "marked-user";

/// Everything that has come out of the worker and of the command line, with where it came from.
#[derive(Default)]
struct Out(Vec<(String, Vec<u8>)>);

impl Out {
    fn answer(&mut self, what: &str, answer: &Response) {
        self.0.push((format!("the answer to {what}"), format!("{answer:?}").into_bytes()));
    }

    fn output(&mut self, what: &str, output: Output) {
        self.0.push((format!("standard output of {what}"), output.stdout));
        self.0.push((format!("standard error of {what}"), output.stderr));
    }
}

#[test]
fn no_secret_is_found_where_it_does_not_belong() {
    search_everywhere("text");
}

#[test]
fn no_secret_is_found_where_it_does_not_belong_with_logs_in_json() {
    search_everywhere("json");
}

fn search_everywhere(format: &str) {
    let tap = Tap::start();
    let stand = Stand::start_with(3600, |config| settle(config, &tap));
    tap.lead_to(stand.addr());
    let worker = set_up(&stand, format);
    let mut out = Out::default();
    let mut planted: Vec<String> = [
        CLIENT_SECRET,
        CLIENT_SECRET_OF_ONE,
        PERSONAL_SECRET,
        REFUSED_TOKEN,
        REFUSED_KEY,
        ECHOED_TOKEN,
        ECHOED_CLIENT_SECRET,
        BODY_SECRET,
        LINE_SECRET,
    ]
    .map(str::to_owned)
    .into();

    planted.extend(use_well(&stand, &worker, &mut out));
    planted.extend(go_wrong_at_the_issuer(&stand, &worker, &mut out));
    echo_back(&worker, &mut out);
    say_it_wrong(&worker, &mut out);
    use_the_command_line(&worker, &mut out);
    for path in ["/v1/organizations?limit=1000", "/v1/status", &format!("/v1/organizations/{CONSENTED}")] {
        out.answer(path, &worker.get(path));
    }
    for path in ["/metrics", "/board", "/board?sort=id&q=marked", "/board/results?state=lost"] {
        out.answer(path, &worker.inside(path));
    }

    let (access, rotated) = (tap.tokens("access_token"), tap.tokens("refresh_token"));
    assert!(access.len() >= 5 && rotated.len() >= 4, "{} and {}", access.len(), rotated.len());
    planted.extend(access);
    planted.extend(rotated);
    planted.sort();
    planted.dedup();
    assert!(tap.heard(&written(CLIENT_SECRET)[1]), "what is looked for is how it is sent");

    out.0.extend(process_of(&worker));
    let vault = worker.file("vault");
    let files = files_below(&vault);
    assert!(files.len() >= 3, "{files:?}");
    let running: Vec<_> = files.iter().map(|file| read(file)).collect();
    out.0.extend(running.clone());
    let log = worker.file("log");
    let worker = worker.restart();
    // All that a fetch needs has come out of these files, so that they did hold it.
    assert!(stand.takes(&worker.fetch(ONE_TIME)));
    let stopped: Vec<_> = files_below(&vault).iter().map(|file| read(file)).collect();
    out.0.extend(stopped.clone());
    out.0.push(read(&log));

    let forms: Vec<String> = planted.iter().flat_map(|secret| written(secret)).collect();
    assert_in_none(&forms, out.0.iter());
    let private = [CONSENTED, ONE_TIME, KEYED, OWN_CLIENT, CONSENTS, KEYS, LABEL_KEY, LABEL_VALUE, USER];
    assert_in_none(&private.map(str::to_owned), running.iter().chain(&stopped));
    // What is looked for would be found: an organization's id is no secret, and the log names it.
    assert!(worker.log().contains(CONSENTED), "{}", worker.log());
}

fn settle(config: &mut SandboxConfig, tap: &Tap) {
    config.public_url = Some(format!("http://{}", tap.address()).parse().expect("a URL"));
    config.client_secrets = vec![Secret::new(CLIENT_SECRET), Secret::new(CLIENT_SECRET_OF_ONE)];
    config.personal_client.1 = Secret::new(PERSONAL_SECRET);
}

fn set_up(stand: &Stand, format: &str) -> Worker {
    let log = format!("format = \"{format}\"\nlevel = \"trace\"");
    let mut setup = Setup::default().log(&log).sandbox_as(stand, CONSENTS, KEYS);
    let bad = echo::start();
    for manner in echo::MANNERS {
        for auth in ["post", "basic"] {
            let lines = format!(
                "kind = \"oauth2\"\nclient_id = \"x\"\ntoken_url = \"{bad}/{manner}\"\nclient_auth = \"{auth}\"\n\
                 organizations_url = \"{bad}/{manner}\"\nrevoke_url = \"{bad}/{manner}\""
            );
            setup = setup.provider(&format!("{manner}-{auth}"), ECHOED_CLIENT_SECRET, &lines);
        }
    }
    let worker = setup.prepare();
    worker.reconfigure(|text| text + "\n[http.board]\nenabled = true\n");
    worker.restart()
}

/// Enrols one organization of each kind and fetches; gives the secrets.
fn use_well(stand: &Stand, worker: &Worker, out: &mut Out) -> Vec<String> {
    let labels = json!({ LABEL_KEY: LABEL_VALUE });
    let mut planted = Vec::new();
    let mut enrol = |organization: &str, mut body: Value, secret: &str| {
        body["labels"] = labels.clone();
        let answer = put(worker, organization, &body);
        assert_eq!(answer.status, 201, "{answer:?}");
        out.answer(organization, &answer);
        planted.push(secret.to_owned());
    };
    for (organization, usage, word) in [(CONSENTED, Usage::Reuse, "reuse"), (ONE_TIME, Usage::OneTime, "one-time")] {
        let token = stand.consent(&format!("{USER}-{word}"), usage, &[organization]);
        enrol(organization, json!({ "provider": CONSENTS, "refresh_token": token, "usage": word }), &token);
    }
    let key = stand.api_key(KEYED);
    enrol(KEYED, json!({ "provider": KEYS, "api_key": key }), &key);
    let token = stand.consent(&format!("{USER}-own"), Usage::OneTime, &[OWN_CLIENT]);
    let body = json!({
        "provider": CONSENTS, "refresh_token": token, "usage": "one-time",
        "client_id": stand.client().0, "client_secret": CLIENT_SECRET_OF_ONE,
    });
    enrol(OWN_CLIENT, body, &token);

    for organization in [CONSENTED, ONE_TIME, KEYED, OWN_CLIENT] {
        // The one place where an access token may be: it is not kept to be searched.
        worker.fetch(organization);
        let refreshed = worker.post(&format!("/v1/organizations/{organization}/token/refresh"), &[]);
        assert_eq!(refreshed.status, 200, "{refreshed:?}");
        let again = worker.post(&format!("/v1/organizations/{organization}/token/refresh"), &[]);
        assert_eq!(again.status, 429, "{again:?}");
        out.answer("a second refresh", &again);
    }
    planted
}

/// Lets the issuer refuse and fail in every way it knows.
fn go_wrong_at_the_issuer(stand: &Stand, worker: &Worker, out: &mut Out) -> Vec<String> {
    let mut planted = Vec::new();
    let mut fail = |body: Value| {
        let answer = put(worker, "marked-organization-that-fails", &body);
        assert!(answer.status >= 400, "{answer:?}");
        out.answer("an enrolment that fails", &answer);
    };
    fail(json!({ "provider": CONSENTS, "refresh_token": REFUSED_TOKEN }));
    fail(json!({ "provider": KEYS, "api_key": REFUSED_KEY }));
    let wrong = json!({
        "provider": CONSENTS, "refresh_token": REFUSED_TOKEN, "client_id": "isv_other", "client_secret": CLIENT_SECRET_OF_ONE,
    });
    fail(wrong);
    for kind in [FaultKind::Garbage, FaultKind::Html, FaultKind::DropAfter, FaultKind::Error500, FaultKind::RateLimit] {
        stand.fault(Fault::once(kind));
        let user = format!("{USER}-{kind:?}");
        let token = stand.consent(&user, Usage::OneTime, &["marked-organization-elsewhere"]);
        fail(json!({ "provider": CONSENTS, "refresh_token": token, "usage": "one-time" }));
        planted.push(token);
    }
    stand.issuer().clear_faults();
    assert!(stand.issuer().withdraw(stand.now(), &format!("{USER}-own")));
    let path = format!("/v1/organizations/{OWN_CLIENT}/token/refresh");
    let lost = eventually("it is refused", || Some(worker.post(&path, &[])).filter(|answer| answer.status != 429));
    out.answer("a refresh of what was withdrawn", &lost);
    planted
}

/// Sends secrets to the issuer that sends them back.
fn echo_back(worker: &Worker, out: &mut Out) {
    for manner in echo::MANNERS {
        for auth in ["post", "basic"] {
            let provider = format!("{manner}-{auth}");
            // Stored at once, refused by the queue, asked for, then removed with revocation. First, since the provider's
            // own client being refused would freeze the provider.
            let unproven = json!({
                "provider": provider, "refresh_token": format!("{ECHOED_TOKEN}{provider}-unproven"), "verify": false,
                "client_id": "own", "client_secret": format!("{ECHOED_CLIENT_SECRET}{provider}"),
            });
            let organization = format!("echoed-{provider}");
            assert_eq!(put(worker, &organization, &unproven).status, 201);
            let path = format!("/v1/organizations/{organization}");
            eventually("the queue has tried it", || {
                Some(worker.get(&path)).filter(|answer| answer.json()["reason"] != "unverified")
            });
            out.answer(&path, &worker.get(&path));
            out.answer(&provider, &worker.get(&format!("{path}/token")));
            out.answer(&provider, &worker.post(&format!("{path}/token/refresh"), &[]));
            out.answer(&provider, &worker.request("DELETE", &format!("{path}?revoke=true"), &[], ""));

            // And with somebody waiting for the answer.
            let body = json!({ "provider": provider, "refresh_token": format!("{ECHOED_TOKEN}{provider}") });
            let answer = put(worker, "echoed-at-once", &body);
            assert!(answer.status >= 400, "{answer:?}");
            out.answer(&provider, &answer);
        }
    }
}

/// Puts secrets into requests where they make no sense.
fn say_it_wrong(worker: &Worker, out: &mut Out) {
    let quoted = json!(BODY_SECRET).to_string();
    for body in [
        BODY_SECRET.to_owned(),
        quoted.clone(),
        format!("[{quoted}]"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":[{quoted}]}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},\"api_key\":{quoted}}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},\"refresh_token\":{quoted}}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"client_secret\":{quoted}}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},\"usage\":{quoted}}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},\"granted_at\":{quoted}}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},\"grace\":{quoted}}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},\"labels\":{quoted}}}"),
        format!("{{\"provider\":\"{CONSENTS}\",\"refresh_token\":{quoted},\"verify\":{quoted}}}"),
        format!("{{\"provider\":{quoted},\"refresh_token\":{quoted}}}"),
        json!({ "provider": CONSENTS, "refresh_token": BODY_SECRET.repeat(5000) }).to_string(),
    ] {
        let answer = worker.request("PUT", "/v1/organizations/marked-wrong", JSON, &body);
        assert!(matches!(answer.status, 400 | 413), "{answer:?}");
        out.answer("a body that makes no sense", &answer);
    }
}

fn use_the_command_line(worker: &Worker, out: &mut Out) {
    // What was provoked before has frozen the provider, and a frozen one is asked for no proof of a credential.
    let label = format!("provider=\"{CONSENTS}\"");
    eventually("the provider is thawed", || {
        (worker.metric("consentry_provider_circuit_open", &[&label]) < 0.5).then_some(())
    });
    let file = |name: &str, text: &str| {
        let path = worker.file(name);
        fs::write(&path, text).expect("the folder is ours");
        path.display().to_string()
    };
    let (token, key) = (file("refused.token", REFUSED_TOKEN), file("refused.key", REFUSED_KEY));
    let two = file("two.token", &format!("{REFUSED_TOKEN}\n{REFUSED_TOKEN}\n"));
    let lines = file(
        "wrong.jsonl",
        &format!(
            "{LINE_SECRET}\n{{\"organization\":\"1\",\"provider\":\"{CONSENTS}\",\"refresh_token\":\"{LINE_SECRET}\"\n\
             {{\"organization\":\"{LINE_SECRET}\",\"provider\":\"{CONSENTS}\"}}\n\
             {{\"organization\":\"1\",\"provider\":\"none\",\"refresh_token\":\"{LINE_SECRET}\"}}\n\
             {{\"organization\":\"1\",\"provider\":\"{CONSENTS}\",\"refresh_token\":[\"{LINE_SECRET}\"]}}\n\
             {{\"organization\":\"1\",\"provider\":\"{CONSENTS}\",\"refresh_token\":\"{REFUSED_TOKEN}\",\"verify\":true}}\n"
        ),
    );
    for (arguments, code) in [
        (&["org", "add", "marked-cli", "--provider", CONSENTS, "--refresh-token-file", &token][..], Some(1)),
        (&["org", "add", "marked-cli", "--provider", KEYS, "--api-key-file", &key], Some(1)),
        (&["org", "add", "marked-cli", "--provider", CONSENTS, "--refresh-token-file", &two], None),
        (&["org", "add", "marked-cli", "--provider", "none", "--refresh-token-file", &token], Some(2)),
        (&["import", &lines], Some(1)),
        (&["import", "--verify", "--json", &lines], Some(1)),
        (&["org", "list"], Some(0)),
        (&["org", "list", "--json"], Some(0)),
        (&["org", "list", "--csv"], Some(0)),
        (&["org", "show", CONSENTED], Some(0)),
        (&["org", "show", CONSENTED, "--json"], Some(0)),
        (&["refresh", KEYED], None),
        (&["token", "marked-nobody"], Some(3)),
        (&["token", OWN_CLIENT, "--min-ttl", "59m"], None),
        (&["status"], Some(0)),
        (&["status", "--json"], Some(0)),
        (&["check"], None),
    ] {
        let output = worker.command(arguments);
        if let Some(code) = code {
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        }
        out.output(&arguments.join(" "), output);
    }
}

/// What the machine's other users may see of the process, as far as this one may.
fn process_of(worker: &Worker) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(format!("/proc/{}", worker.pid()));
    let read = |name: &str| fs::read(folder.join(name));
    let arguments = read("cmdline").expect("everybody may read that");
    assert!(holds(&arguments, "run"));
    let mut found = vec![("the process's arguments".to_owned(), arguments)];
    // A process that must not be dumped hides its environment from all but root, and in a container from root too.
    found.extend(read("environ").ok().map(|environment| ("the process's environment".to_owned(), environment)));
    found
}

/// The ways in which a secret may be written: as it is, in a form or URL, in JSON, and in Base64, where it begins at any of three
/// places and is the name or the password of Basic authentication.
fn written(secret: &str) -> Vec<String> {
    let escaped = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
    let escaped_less = escaped.replace("%2D", "-").replace("%5F", "_").replace("%2E", ".");
    let mut forms = vec![secret.to_owned(), escaped_less.clone(), escaped, secret.replace('/', "\\/")];
    for text in [secret, &escaped_less] {
        for before in 0..3 {
            let encoded = BASE64_STANDARD_NO_PAD.encode(["x".repeat(before).as_bytes(), text.as_bytes()].concat());
            // The first and the last characters depend on what stands beside it.
            forms.push(encoded[before + usize::from(before > 0)..encoded.len() - 1].to_owned());
        }
    }
    forms.sort();
    forms.dedup();
    forms.sort_by_key(|form| (form != secret, !form.contains('%')));
    forms
}

fn put(worker: &Worker, organization: &str, body: &Value) -> Response {
    worker.request("PUT", &format!("/v1/organizations/{organization}"), JSON, &body.to_string())
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Fails where one of the texts is in one of the places.
fn assert_in_none<'a>(texts: &[String], places: impl Iterator<Item = &'a (String, Vec<u8>)>) {
    // All at once: there are hundreds of forms, and megabytes to look through.
    let search = AhoCorasick::new(texts).expect("not too many");
    for (place, bytes) in places {
        if let Some(found) = search.find(bytes) {
            panic!("{:?} is in {place}", texts[found.pattern().as_usize()]);
        }
    }
}

fn read(file: &Path) -> (String, Vec<u8>) {
    (file.display().to_string(), fs::read(file).expect("a file of ours"))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of ours") {
        let path = entry.expect("a folder of ours").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
