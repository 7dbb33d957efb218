use clap::CommandFactory;
use rstest::rstest;

use super::*;

#[test]
fn the_command_line_holds_together() {
    Cli::command().debug_assert();
}

#[rstest]
#[case::add(
    "org add 1 --provider p --refresh-token-file t --granted-at 2026-01-31 --usage one-time --grace 30s --label a=b --label c=d"
)]
#[case::add_key("org add 1 --provider p --api-key-file - --client-id x --client-secret-file s --no-verify")]
#[case::list("org list --state in_doubt --expires-within 30d --unused-for 60d --provider p --label k=v --csv")]
#[case::remove("org remove 1 --revoke --yes")]
#[case::import("import - --verify")]
#[case::connect("connect 1 --provider p --also 2 --also 3")]
#[case::connect_many("connect --all-expiring 30d --csv --spread 4w --provider p --label a=b --label c=d")]
#[case::connect_many_as_json("connect --all-expiring 30d --json")]
#[case::token("token 1 --min-ttl 5m --header")]
#[case::exec("exec 1 -- sh -c true --json")]
#[case::health("health --live --socket /s")]
#[case::globals_after_the_command("status --json --config c --socket s --server-uid 7")]
#[case::globals_before_the_command("--json --config c status")]
#[case::watch("watch --since all --once --count 3 --json")]
#[case::rotate("key rotate --detach --json")]
#[case::recipients("key recipients")]
#[case::recipients_add("key recipients add age1a age1b")]
#[case::recipients_remove("key recipients remove age1a --json")]
#[case::demo("demo --for 30s")]
#[case::sandbox("sandbox --listen 127.0.0.1:0 --consent-lifetime none --usage reuse --latency 10ms")]
#[case::completions("completions zsh")]
#[case::man("man")]
fn these_arguments_are_understood(#[case] arguments: &str) {
    let arguments = std::iter::once("consentry").chain(arguments.split(' '));
    Cli::try_parse_from(arguments).expect("understood");
}

#[rstest]
#[case::nothing("")]
#[case::no_credential("org add 1 --provider p")]
#[case::two_credentials("org add 1 --provider p --refresh-token-file a --api-key-file b")]
#[case::a_key_has_no_end("org add 1 --provider p --api-key-file b --expires-at 2026-01-01")]
#[case::a_client_secret_alone("org add 1 --provider p --api-key-file b --client-secret-file c")]
#[case::a_secret_in_argv("org add 1 --provider p --refresh-token secret")]
#[case::no_id("token a/b")]
#[case::no_state("org list --state well")]
#[case::no_duration("token 1 --min-ttl soon")]
#[case::csv_and_json("org list --csv --json")]
#[case::nobody_to_connect("connect --provider p")]
#[case::one_and_all("connect 1 --all-expiring 30d")]
#[case::csv_of_one("connect 1 --csv")]
#[case::a_spread_of_an_hour("connect --all-expiring 30d --spread 1h")]
#[case::csv_and_json_of_links("connect --all-expiring 30d --csv --json")]
#[case::no_events("watch --count 0")]
#[case::nobody_to_add("key recipients add")]
#[case::no_command("exec 1")]
#[case::an_unknown_command("wtach")]
fn these_arguments_are_wrong_usage(#[case] arguments: &str) {
    let arguments = std::iter::once("consentry").chain(arguments.split(' ').filter(|word| !word.is_empty()));
    let error = Cli::try_parse_from(arguments).expect_err("refused");
    assert!(error.use_stderr() && error.exit_code() == 2, "{error}");
}

#[test]
fn help_is_complete_and_promises_nothing_that_is_not_there() {
    let mut help = Vec::new();
    for command in Cli::command().get_subcommands() {
        assert!(command.get_about().is_some(), "{} says what it does", command.get_name());
        help.push(command.get_name().to_owned());
    }
    assert_eq!(
        help,
        [
            "demo",
            "init",
            "run",
            "check",
            "health",
            "org",
            "import",
            "connect",
            "token",
            "refresh",
            "exec",
            "status",
            "watch",
            "key",
            "backup",
            "restore",
            "vault",
            "sandbox",
            "completions",
            "man"
        ]
    );
}

/// The fenced blocks of a document in that language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).expect("text");
    let opening = format!("```{language}\n");
    let blocks = text.split(&opening).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned);
    blocks.collect()
}

#[test]
fn every_command_in_the_guide_to_consents_is_understood() {
    let lines: Vec<String> = blocks("docs/consents.md", "sh").concat().lines().map(str::to_owned).collect();
    let commands =
        lines.iter().filter_map(|line| line.split(['#', '>']).next()).filter(|line| line.starts_with("consentry "));
    let commands: Vec<&str> = commands.map(str::trim).collect();
    assert!(commands.len() > 10, "{commands:?}");
    for command in commands {
        Cli::try_parse_from(command.split(' ')).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

#[test]
fn every_example_in_the_guide_to_consents_is_what_it_says() {
    for toml in blocks("docs/consents.md", "toml") {
        Config::parse(&toml).unwrap_or_else(|error| panic!("{toml}: {error}"));
    }
    let events: Vec<serde_json::Value> = blocks("docs/consents.md", "json")
        .iter()
        .map(|json| serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}")))
        .collect();
    let mut digests = 0;
    for event in events.into_iter().filter(|json| json.get("type").is_some()) {
        let read: crate::wire::Event = serde_json::from_value(event.clone()).expect("an event");
        digests += usize::from(matches!(read.data, crate::wire::EventData::Digest(_)));
        assert_eq!(serde_json::to_value(&read).expect("JSON"), event);
    }
    assert_eq!(digests, 1);
}

#[derive(Clone, Default)]
struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let pages = Shared::default();
    shell::man(&mut Out::of(pages.clone())).expect("rendered");
    let pages = String::from_utf8(pages.0.lock().expect("not poisoned").clone()).expect("text");
    for title in ["consentry-org-add", "consentry-import", "consentry-demo", "consentry-exec"] {
        assert!(pages.contains(&format!(".TH {title}")), "{title}");
    }
}

#[tokio::test]
async fn with_a_socket_no_configuration_is_needed() {
    let global = Global {
        config: Some("/nonexistent/consentry.toml".into()),
        socket: Some("/nonexistent/consentry.sock".into()),
        server_uid: None,
        json: false,
    };
    let mut out = Out::of(Shared::default());
    assert_eq!(status::status(&global, &mut out).await.expect_err("no worker").exit(), Exit::Unavailable);
    let global = Global { socket: None, ..global };
    let failure = status::status(&global, &mut out).await.expect_err("no configuration");
    assert_eq!(failure.exit(), Exit::Configuration);
    assert!(failure.lines().is_some_and(|(_, hint)| hint.is_some_and(|hint| hint.contains("--socket"))));
}
