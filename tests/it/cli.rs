//! The command line as somebody meets it who does something wrong: what is said, in how many lines, with which exit
//! code, and that nothing was changed by it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rstest::rstest;
use tempfile::TempDir;

use crate::harness::worker::Setup;

/// Planted wherever a secret could be written by mistake; never to be seen.
const SECRET: &str = "hunter2-hunter2";

/// A folder with a configuration, an identity and a vault, and no worker.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let made = place.run(&["init"]);
        assert!(made.status.success(), "{made:?}");
        // No port, so that no other process can be in the way.
        let text = fs::read_to_string(place.config()).expect("init made it");
        let (before, after) = ("listen = \"127.0.0.1:9464\"", "listen = \"\"");
        assert!(text.contains(before));
        fs::write(place.config(), text.replace(before, after)).expect("the folder is ours");
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.file("consentry.toml")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_consentry"))
            .args(arguments)
            .env_clear()
            .env("HOME", self.file("home"))
            .env("CONSENTRY_CONFIG", self.config())
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts")
    }

    /// Every file of the vault, with its bytes.
    fn vault(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut open = vec![self.file("vault")];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    files.insert(path.clone(), fs::read(path).expect("readable"));
                }
            }
        }
        files
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// What every failure owes: its exit code, what is wrong in a line or two, no backtrace, no secret.
fn assert_fails(output: &Output, code: i32, says: &str) {
    let told: Vec<_> = stderr(output).lines().filter(|line| !is_log(line)).map(str::to_owned).collect();
    assert_eq!(output.status.code(), Some(code), "{told:#?}");
    assert!(told.join("\n").contains(says), "{says:?} in {told:#?}");
    assert!((1..=2).contains(&told.len()) && told[0].starts_with("error: "), "{told:#?}");
    let all = format!("{}{}", stderr(output), String::from_utf8_lossy(&output.stdout));
    for bad in ["panicked", "backtrace", SECRET] {
        assert!(!all.contains(bad), "{bad} in {all}");
    }
}

/// A worker logs before it fails; those lines begin with the time.
fn is_log(line: &str) -> bool {
    line.starts_with("20") && line.contains("Z ")
}

#[test]
fn a_named_configuration_stands_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (home, config) = (folder.path().join("home"), folder.path().join("trial/mine.toml"));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consentry"));
        command.args(["--config", config.to_str().expect("text")]).args(arguments).env_clear().env("HOME", &home);
        command.current_dir(folder.path()).output().expect("the binary starts")
    };
    assert!(run(&["init"]).status.success());
    for (name, mode) in [("mine.toml", 0o644), ("identity.txt", 0o600), ("vault", 0o700)] {
        let made = folder.path().join("trial").join(name).metadata().expect("beside the configuration");
        assert_eq!(made.permissions().mode() & 0o777, mode, "{name}");
    }
    assert!(!home.exists(), "nothing is made elsewhere");
    assert!(run(&["check"]).status.success());
    let again = String::from_utf8(run(&["init"]).stdout).expect("text");
    assert!(!again.contains("made") && again.matches("kept").count() == 3, "{again}");
}

#[rstest]
#[case::unknown_key(
    "[refresh]\nconcurency = 3",
    "consentry.toml:2: refresh.concurency: unknown key; did you mean refresh.concurrency?"
)]
#[case::wrong_type("[refresh]\ntimeout = 5", "refresh.timeout: given 5; expected text in quotes")]
#[case::bad_duration("[refresh]\ntimeout = \"5m\"", "expected a duration from 1s to 120s")]
#[case::inline_secret(
    "[providers.p]\nkind = \"oauth2\"\nclient_id = \"c\"\nissuer = \"https://i.example\"\nclient_secret = \"hunter2-hunter2\"",
    "a secret must not be in the configuration"
)]
#[case::broken("[log]\nlevel = \"hunter2-hunter2", "not TOML")]
#[case::zone("[schedule]\ntimezone = \"Europe/Kopenhagen\"", "a time zone of the IANA database")]
#[case::cron("[schedule]\nsweep = \"0 8 * * *\"", "a cron pattern of six fields")]
#[case::a_rule_for_nobody("[[access]]\nrole = \"fetch\"", "give uid, user, gid or group")]
#[case::socket_too_long(
    "[socket]\npath = \"/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/123\"",
    "is 103 bytes long"
)]
fn a_bad_configuration_is_told_by_its_place(#[case] text: &str, #[case] says: &str) {
    let place = Place::new();
    fs::write(place.config(), text).expect("the folder is ours");
    assert_fails(&place.run(&["run"]), 78, says);
    assert_fails(&place.run(&["status"]), 78, says);
    let check = place.run(&["check"]);
    let told = String::from_utf8(check.stdout).expect("text");
    assert_eq!(check.status.code(), Some(78), "{told}");
    assert!(told.contains(says) && !told.contains(SECRET), "{told}");
}

#[test]
fn a_configuration_that_is_no_file_is_told_as_what_it_is() {
    let place = Place::new();
    let with = |config: &Path| place.run(&["--config", config.to_str().expect("text"), "run"]);
    assert_fails(&with(&place.file("nope.toml")), 78, "there is no such file (named by --config)");
    assert_fails(&with(place.folder.path()), 78, "it is a folder");
    fs::write(place.file("utf16.toml"), b"\xff\xfe[\0").expect("the folder is ours");
    assert_fails(&with(&place.file("utf16.toml")), 78, "not UTF-8");
    fs::remove_file(place.config()).expect("it is there");
    assert_fails(&place.run(&["run"]), 78, "named by $CONSENTRY_CONFIG");
    // What is given once cannot be read again at SIGHUP.
    let fed = Command::new("sh")
        .args(["-c", "echo | \"$0\" --config /dev/stdin run", env!("CARGO_BIN_EXE_consentry")])
        .output()
        .expect("a shell");
    assert_fails(&fed, 78, "is a pipe");
}

#[rstest]
#[case::garbage(b"hunter2-hunter2\n", "is not an age X25519 identity")]
#[case::empty(b"", "it holds no identity")]
#[case::no_text(b"\xff\xff", "not a text file")]
fn a_bad_identity_is_told_and_changes_nothing(#[case] bytes: &[u8], #[case] says: &str) {
    let place = Place::new();
    let before = place.vault();
    fs::write(place.file("identity.txt"), bytes).expect("the folder is ours");
    assert_fails(&place.run(&["run"]), 1, says);
    assert_fails(&place.run(&["init"]), 1, says);
    assert_eq!(place.run(&["check"]).status.code(), Some(1));
    assert!(place.vault() == before);
}

#[test]
fn a_missing_or_wrong_identity_is_told_and_changes_nothing() {
    let (place, other) = (Place::new(), Place::new());
    let before = place.vault();
    fs::copy(other.file("identity.txt"), place.file("identity.txt")).expect("the folder is ours");
    assert_fails(&place.run(&["run"]), 1, "does not open the vault");
    fs::remove_file(place.file("identity.txt")).expect("it is there");
    assert_fails(&place.run(&["run"]), 1, "it is not there");
    assert_fails(&place.run(&["init"]), 1, "a new one cannot open the vault");
    fs::create_dir(place.file("identity.txt")).expect("the folder is ours");
    assert_fails(&place.run(&["run"]), 1, "it is a folder");
    assert!(place.vault() == before);
}

/// What is done to the vault.
enum Harm {
    Remove(&'static str),
    Write(&'static str, &'static [u8]),
    Cut(&'static str, usize),
}

#[rstest]
#[case::no_format(Harm::Remove("format"), "no `format` file")]
#[case::newer_format(Harm::Write("format", b"{\"format\":99}"), "has format 99")]
#[case::garbled_format(Harm::Write("format", b"x"), "its format file")]
#[case::no_keyring(Harm::Remove("keyring.age"), "its keyring: it is missing")]
#[case::garbled_keyring(Harm::Write("keyring.age", b"x"), "its keyring: it is not an age file")]
#[case::no_journal(Harm::Remove("journal"), "its journal: it is missing")]
#[case::cut_journal(Harm::Cut("journal", 100), "its journal")]
#[case::no_database(Harm::Remove("db/db"), "is missing")]
#[case::garbled_database(Harm::Write("db/db", &[7; 4096]), "database")]
fn a_damaged_vault_is_told_and_not_a_byte_of_it_changes(#[case] harm: Harm, #[case] says: &str) {
    let place = Place::new();
    match harm {
        Harm::Remove(name) => fs::remove_file(place.file("vault").join(name)).expect("it is there"),
        Harm::Write(name, bytes) => fs::write(place.file("vault").join(name), bytes).expect("it is there"),
        Harm::Cut(name, length) => {
            let path = place.file("vault").join(name);
            let bytes = fs::read(&path).expect("it is there");
            fs::write(path, &bytes[..length]).expect("the folder is ours");
        }
    }
    let before = place.vault();
    let run = place.run(&["run"]);
    assert_fails(&run, 1, says);
    assert!(stderr(&run).contains(place.file("vault").to_str().expect("text")), "it says which vault: {run:?}");
    let check = place.run(&["check"]);
    let told = String::from_utf8(check.stdout).expect("text");
    assert_eq!(check.status.code(), Some(1), "{told}");
    assert!(told.contains(says), "{told}");
    assert!(place.vault() == before);
}

#[test]
fn check_looks_where_the_socket_will_be() {
    let place = Place::new();
    fs::write(place.file("consentry.sock"), "not a socket").expect("the folder is ours");
    let check = place.run(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&check.stdout).contains("is not a socket"), "{check:?}");
    assert_fails(&place.run(&["run"]), 1, "is not a socket");
}

#[rstest]
#[case(&["org", "list"])]
#[case(&["org", "show", "1"])]
#[case(&["org", "remove", "--yes", "1"])]
#[case(&["org", "pause", "1"])]
#[case(&["org", "resume", "1"])]
#[case(&["org", "resolve", "1", "--abandon"])]
#[case(&["import", "/dev/null"])]
#[case(&["connect", "1"])]
#[case(&["connect", "--all-expiring", "30d", "--csv"])]
#[case(&["token", "1"])]
#[case(&["refresh", "1"])]
#[case(&["exec", "1", "--", "true"])]
#[case(&["status"])]
#[case(&["health"])]
#[case(&["--socket", "/nonexistent/consentry.sock", "health", "--live"])]
fn without_a_worker_every_command_says_how_to_start_one(#[case] arguments: &[&str]) {
    assert_fails(&Place::new().run(arguments), 5, "`consentry run`");
}

#[rstest]
#[case(&["stauts"], "'status'")]
#[case(&["token"], "<ORG>")]
#[case(&["token", "a/b"], "not an organization id")]
#[case(&["org", "add", "1", "--provider", "p", "--refresh-token", "hunter2-hunter2"], "--refresh-token-file")]
#[case(&["org", "add", "1", "--provider", "p", "--refresh-token-file", "a", "--granted-at", "soon"], "2026-01-31")]
#[case(&["exec", "1"], "<CMD>")]
fn wrong_usage_is_told_in_two_lines(#[case] arguments: &[&str], #[case] says: &str) {
    assert_fails(&Place::new().run(arguments), 2, says);
}

#[rstest]
#[case::nothing(b"", "it is empty")]
#[case::two_lines(b"hunter2-hunter2\nhunter2-hunter2\n", "a secret is one line")]
#[case::a_space(b" hunter2-hunter2\n", "begins or ends with a space")]
#[case::no_text(b"hunter2-hunter2\xff", "not UTF-8")]
fn a_secret_that_cannot_be_one_is_refused_before_it_is_sent(#[case] bytes: &[u8], #[case] says: &str) {
    let place = Place::new();
    fs::write(place.file("secret"), bytes).expect("the folder is ours");
    let file = place.file("secret");
    let add = ["org", "add", "1", "--provider", "p", "--api-key-file", file.to_str().expect("text")];
    assert_fails(&place.run(&add), 1, says);
}

#[test]
fn a_credential_that_cannot_be_proved_now_is_told_with_the_way_around_it() {
    let provider = "kind = \"oauth2\"\nclient_id = \"c\"\ntoken_url = \"http://127.0.0.1:9/token\"";
    let worker = Setup::default().provider("p", "a-client-secret", provider).start();
    worker.plant(SECRET);
    let file = worker.file("token");
    fs::write(&file, SECRET).expect("the folder is ours");
    let add = ["org", "add", "1", "--provider", "p", "--refresh-token-file", file.to_str().expect("text")];
    let refused = worker.command(&add);
    assert_fails(&refused, 5, "1 is not enrolled");
    assert!(stderr(&refused).contains("--no-verify"), "{refused:?}");
    assert_fails(&worker.command(&["token", "1"]), 3, "no such organization");
}

#[test]
fn bad_lines_of_an_import_are_told_by_number_and_without_their_secrets() {
    let provider = "kind = \"oauth2\"\nclient_id = \"c\"\ntoken_url = \"http://127.0.0.1:9/token\"";
    let worker = Setup::default().provider("p", "a-client-secret", provider).start();
    worker.plant(SECRET);
    let good = |id: u32| format!(r#"{{"organization":"{id}","provider":"p","refresh_token":"{SECRET}-{id}"}}"#);
    let lines = [
        good(1),
        format!("{{{SECRET}"),
        format!(r#"{{"organization":"3","provider":"p","refresh_token":["{SECRET}"]}}"#),
        format!(r#"{{"organization":"4","provider":"p","refresh_tokn":"{SECRET}"}}"#),
        format!(r#"{{"organization":"5","provider":"p","api_key":"{SECRET}","api_key":"{SECRET}"}}"#),
        format!(r#"{{"organization":"6","provider":"q","refresh_token":"{SECRET}"}}"#),
        format!(r#"{{"organization":"7","provider":"p","refresh_token":"{SECRET}{}"}}"#, "x".repeat(70_000)),
        format!("{SECRET}\0"),
        good(9),
        good(1),
    ];
    let file = worker.file("fleet.jsonl");
    fs::write(&file, lines.join("\n")).expect("the folder is ours");
    let import = worker.command(&["import", file.to_str().expect("text")]);
    let told = stderr(&import);
    assert_eq!(import.status.code(), Some(1), "{told}");
    for says in [
        "line 2: it is not JSON",
        "line 3: refresh_token must be text",
        "line 4: the key \"refresh_tokn\" is not known",
        "line 5: api_key is given twice",
        "line 6: 6: provider q is not configured",
        "line 7: it is longer than",
        "line 8: it is not JSON",
    ] {
        assert!(told.contains(says), "{says} in {told}");
    }
    assert_eq!(told.lines().count(), 7, "{told}");
    assert!(!told.contains(SECRET), "{told}");
    let counts = String::from_utf8(import.stdout).expect("text");
    assert_eq!(counts, "2 enrolled, 0 replaced, 1 unchanged, 7 failed\n");
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let place = Place::new();
    let piped = Command::new("sh")
        .args(["-c", "{ \"$0\" man; echo $? >&2; } | head -n 1", env!("CARGO_BIN_EXE_consentry")])
        .output()
        .expect("a shell");
    assert_eq!(stderr(&piped), "0\n", "no complaint and no failure");
    assert!(place.run(&["completions", "bash"]).status.success());
}
