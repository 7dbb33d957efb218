mod fuzz;

use std::{ffi::OsString, path::Path, time::Duration};

use rstest::rstest;

use super::{load::read, *};
use crate::model::Usage;

const FILE: &str = "config/consentry.toml";
const DAY: Duration = Duration::from_hours(24);

fn with(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    read(FILE, text, environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

fn good(text: &str) -> Config {
    with(text, &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn problems(text: &str) -> String {
    with(text, &[]).expect_err("it is wrong").to_string()
}

/// The reference with its examples made real: a setting that is commented out begins with `#` and no blank.
fn reference_with_examples() -> String {
    let example = |line: &str| {
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c == '[' || c.is_alphabetic()))
    };
    REFERENCE.lines().map(|line| if example(line) { &line[1..] } else { line }).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_reference_says_what_the_defaults_are() {
    assert_eq!(format!("{:?}", good(REFERENCE)), format!("{:?}", good("")));
}

#[test]
fn the_reference_shows_every_key() {
    let table: toml::de::DeTable<'_> = toml::de::DeTable::parse(REFERENCE).expect("TOML").into_inner();
    let shown = |section: &str| {
        let table = table.get(section).and_then(|section| section.get_ref().as_table()).expect("a section");
        table.keys().map(|key| key.get_ref().to_string()).collect::<Vec<_>>()
    };
    for section in ["vault", "socket", "http", "log", "refresh", "consent", "schedule", "metrics"] {
        // A key that nobody knows makes the reader list those that it does know.
        let message = problems(&format!("[{section}]\nqqqqqqqqqqqq = 1"));
        let known = message.split_once("known here: ").expect("a list").1;
        let mut known: Vec<&str> = known.split(", ").collect();
        known.sort_unstable();
        assert_eq!(shown(section), known, "{section}");
    }
}

#[test]
fn the_examples_of_the_reference_are_right_and_show_the_defaults_of_their_kinds() {
    let config = good(&reference_with_examples());
    assert_eq!(config.access.len(), 1);
    assert_eq!(config.webhooks.len(), 1);
    assert_eq!(config.providers.len(), 3);
    let bare = good(
        r#"
        [providers.visma-connect]
        kind = "visma-connect"
        client_id = "isv_example"
        client_secret_file = "/etc/consentry/visma.secret"
        [providers.dinero-personal]
        kind = "dinero-personal"
        client_id = "example"
        client_secret_file = "/etc/consentry/dinero.secret"
        [providers.other]
        kind = "oauth2"
        client_id = "example"
        client_secret_file = "/etc/consentry/other.secret"
        issuer = "https://id.example.com"
        "#,
    );
    assert_eq!(format!("{:?}", config.providers), format!("{:?}", bare.providers));
}

#[test]
fn a_database_is_told_where_it_is_and_only_then_used() {
    let text = "[vault]\nengine = \"postgres\"\n[vault.postgres]\n";
    let message = problems(text);
    assert!(message.contains("vault.postgres") && message.contains("url_file"), "{message}");
    let config = good(&format!("{text}url_file = \"/etc/consentry/database.url\"\npoll = \"50ms\""));
    let postgres = config.vault.postgres.expect("it is used");
    assert_eq!((postgres.poll, postgres.lease), (Duration::from_millis(50), Duration::from_secs(30)));
    assert!(!postgres.allow_asynchronous && postgres.url.is_none());
    let resident =
        |lines: &str| good(&format!("{text}url_file = \"x\"\n{lines}")).vault.postgres.expect("it is used").resident;
    assert_eq!([resident(""), resident("resident = 0"), resident("resident = 50000")], [None, None, Some(50_000)]);
    assert_eq!(good("[vault.postgres]\nurl = \"postgresql://a@h1:5432,h2/v?connect_timeout=3\"").vault.postgres, None);
    let twice = format!("{text}url = \"postgresql://h/v\"\nurl_file = \"x\"");
    assert!(problems(&twice).contains("give url or url_file"));
    let hidden = problems(&format!("{text}url = \"postgresql://h/v?user=a&password=hush\""));
    assert!(hidden.contains("url_file") && !hidden.contains("hush"), "{hidden}");
    let environment =
        [("CONSENTRY__VAULT__ENGINE", "postgres"), ("CONSENTRY__VAULT__POSTGRES__URL", "postgresql://h/v")];
    assert_eq!(with("", &environment).unwrap().vault.postgres.unwrap().url.as_deref(), Some("postgresql://h/v"));
}

#[test]
fn the_lines_that_init_rewrites_are_in_the_reference_once() {
    for line in [
        r#"path = "/var/lib/consentry/vault""#,
        r#"identity_file = "/etc/consentry/identity.txt""#,
        r#"path = "/run/consentry/consentry.sock""#,
    ] {
        assert_eq!(REFERENCE.lines().filter(|known| *known == line).count(), 1, "{line}");
    }
}

#[test]
fn a_full_configuration_is_understood() {
    let config = good(
        r#"
        [vault]
        cache = "64MiB"
        backup_dir = "backups"
        [socket]
        mode = "0600"
        group = 0
        [[access]]
        user = "root"
        gid = 2000
        role = "operate"
        organizations = ["dk-*", "7"]
        [http]
        listen = ""
        [refresh]
        keep_warm = "fetched-within 24h"
        timeout = "1s"
        [consent]
        warn_before = ["1d", "4w", "24h", "12h"]
        listen = "[::1]:0"
        public_url = "https://connect.example.com/base"
        [[webhook]]
        url = "http://127.0.0.1:9/hook?x=1"
        secret_file = "key"
        [schedule]
        backup = "0 30 2 * * *"
        digest = ""
        timezone = "utc"
        [providers.p]
        kind = "oauth2"
        client_id = "a"
        token_url = "http://localhost:1/token"
        consent_lifetime = "90d"
        idle_lifetime = "30d"
        grace = "30s"
        in_doubt = "hold"
        client_auth = "basic-plain"
        usage = "reuse"
        pkce = false
        [providers.v]
        kind = "visma-connect"
        client_id = "isv_a"
        consent_lifetime = "none"
        organizations_url = ""
        "#,
    );
    assert_eq!(config.vault.cache_bytes, 64 << 20);
    assert_eq!(config.vault.backup_dir.as_deref(), Some(Path::new("backups")));
    assert_eq!((config.socket.mode, config.socket.group), (0o600, Some(0)));
    let rule = &config.access[0];
    assert_eq!((rule.uid, rule.gid, rule.role), (Some(0), Some(2000), Role::Operate));
    assert!(rule.organizations.covers_text("dk-12") && !rule.organizations.covers_text("77"));
    assert_eq!(config.http_listen, None);
    assert_eq!(config.refresh.keep_warm, KeepWarm::FetchedWithin(DAY));
    assert_eq!(config.consent.warn_before, [28 * DAY, DAY, DAY / 2]);
    assert_eq!(config.webhooks[0].events, ["*"]);
    assert_eq!((config.schedule.timezone.as_str(), config.schedule.digest.as_str()), ("UTC", ""));
    let provider = &config.providers["p"];
    assert_eq!((provider.consent_lifetime, provider.idle_lifetime), (Some(90 * DAY), Some(30 * DAY)));
    assert_eq!((provider.in_doubt, provider.client_auth), (InDoubtPolicy::Hold, ClientAuth::BasicPlain));
    assert_eq!((provider.usage, provider.pkce, provider.client_secret_file.clone()), (Usage::Reuse, false, None));
    let provider = &config.providers["v"];
    assert_eq!((provider.consent_lifetime, provider.organizations_url.clone()), (None, None));
    assert_eq!(provider.issuer.as_ref().map(Url::as_str), Some("https://connect.visma.com/"));
}

#[rstest]
#[case::unknown_key(
    "[refresh]\nconcurency = 5",
    "2: refresh.concurency: unknown key; did you mean refresh.concurrency?"
)]
#[case::unknown_section("[refesh]\nat = 0.5", "1: refesh: unknown key; did you mean refresh?")]
#[case::nothing_near("[socket]\n\nowner = 5", "3: socket.owner: unknown key; known here: path, mode, group")]
#[case::in_a_provider(
    "[providers.a]\nkind = \"visma-connect\"\nclient_id = \"a\"\nclient-secret-file = \"x\"",
    "4: providers.a.client-secret-file: unknown key; did you mean providers.a.client_secret_file?"
)]
#[case::in_a_list(
    "[[access]]\nuid = 1\nrole = \"fetch\"\n[[access]]\nuidd = 1\nrole = \"fetch\"",
    "5: access[1].uidd: unknown key; did you mean access[1].uid?"
)]
#[case::too_few(
    "[vault.postgres]\nresident = 9",
    "2: vault.postgres.resident: given 9; expected 0 for all, or a whole number from 10"
)]
#[case::engine("[vault]\nengine = \"mysql\"", "2: vault.engine: given \"mysql\"; expected \"sled\" or \"postgres\"")]
#[case::database_with_a_password(
    "[vault.postgres]\nurl = \"postgresql://a:hush@h/v\"",
    "2: vault.postgres.url: a password must not be in the configuration; put the URL into a file and name that in url_file"
)]
#[case::no_database(
    "[vault.postgres]\nurl = \"mysql://a:hush@h/v\"",
    "2: vault.postgres.url: expected postgresql://USER@HOST/DATABASE; several servers are HOST,HOST"
)]
#[case::schema(
    "[vault.postgres]\nschema = \"Mine\"",
    "2: vault.postgres.schema: given \"Mine\"; expected a name of 1 to 63 of a-z, 0-9 and _, not beginning with pg_"
)]
#[case::short_lease(
    "[vault]\nengine = \"postgres\"\n[vault.postgres]\nurl = \"postgresql://h/v\"\nlease = \"10s\"",
    "5: vault.postgres.lease: a claim of 10s is over before an exchange may be, which refresh.timeout lets last 10s; make it longer"
)]
#[case::size(
    "[vault]\ncache = \"lots\"",
    "2: vault.cache: given \"lots\"; expected a size such as \"64MB\" or \"256MiB\", from 1MB to 1000GB"
)]
#[case::size_too_small(
    "[vault]\ncache = 5",
    "2: vault.cache: given 5; expected a size such as \"64MB\" or \"256MiB\", from 1MB to 1000GB"
)]
#[case::mode(
    "[socket]\nmode = \"0770\"",
    "2: socket.mode: given \"0770\"; expected octal permissions such as \"0660\": read and write bits only, and both for the owner"
)]
#[case::mode_as_a_number("[socket]\nmode = 660", "2: socket.mode: given 660; expected text in quotes")]
#[case::group(
    "[socket]\ngroup = \"no-such-group\"",
    "2: socket.group: no group is called \"no-such-group\" on this machine; its number works everywhere"
)]
#[case::rule_for_all(
    "[[access]]\nrole = \"admin\"",
    "1: access[0]: is for nobody, or for everybody; give uid, user, gid or group"
)]
#[case::rule_twice(
    "[[access]]\nuid = 0\nuser = \"root\"\nrole = \"admin\"",
    "1: access[0]: names its user twice; give uid or user"
)]
#[case::overflow_uid(
    "[[access]]\nuid = 65534\nrole = \"admin\"",
    "2: access[0].uid: 65534 is what the kernel shows for every unknown caller; a rule for it is refused"
)]
#[case::no_role("[[access]]\nuid = 1", "1: access[0].role: missing; give \"fetch\", \"operate\" or \"admin\"")]
#[case::role(
    "[[access]]\nuid = 1\nrole = \"amdin\"",
    "3: access[0].role: given \"amdin\"; did you mean \"admin\"? Allowed: fetch, operate, admin"
)]
#[case::no_pattern(
    "[[access]]\nuid = 1\nrole = \"fetch\"\norganizations = []",
    "4: access[0].organizations: has 0 patterns; 1 to 1024 are allowed, and [\"*\"] covers every organization"
)]
#[case::glob(
    "[[access]]\nuid = 1\nrole = \"fetch\"\norganizations = [\"a[\"]",
    "4: access[0].organizations: \"a[\" is not a glob: unclosed character class; missing ']'"
)]
#[case::listen(
    "[http]\nlisten = \"localhost\"",
    "2: http.listen: given \"localhost\"; expected an IP address and a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\""
)]
#[case::format("[log]\nformat = \"xml\"", "2: log.format: given \"xml\"; expected one of text, json")]
#[case::level(
    "[log]\nlevel = \"consentry=loud\"",
    "2: log.level: given \"consentry=loud\"; expected off, error, warn, info, debug, trace, or a filter such as \"info,consentry::vault=debug\""
)]
#[case::level_slip(
    "[log]\nlevel = \"inof\"",
    "2: log.level: given \"inof\"; expected off, error, warn, info, debug, trace, or a filter such as \"info,consentry::vault=debug\""
)]
#[case::share("[refresh]\nat = 1", "2: refresh.at: given 1; expected a number from 0.1 to 0.95")]
#[case::not_a_number("[refresh]\nat = nan", "2: refresh.at: given NaN; expected a number from 0.1 to 0.95")]
#[case::keep_warm(
    "[refresh]\nkeep_warm = \"fetched-within\"",
    "2: refresh.keep_warm: given \"fetched-within\"; expected \"always\" or \"fetched-within 24h\" with a duration from 1s to 400d"
)]
#[case::concurrency(
    "[refresh]\nconcurrency = 0",
    "2: refresh.concurrency: given 0; expected a whole number from 1 to 4096"
)]
#[case::fraction("[refresh]\nconcurrency = 1.5", "2: refresh.concurrency: given 1.5; expected a whole number")]
#[case::timeout("[refresh]\ntimeout = \"5m\"", "2: refresh.timeout: given \"5m\"; expected a duration from 1s to 120s")]
#[case::no_unit("[refresh]\ntimeout = \"10\"", "2: refresh.timeout: given \"10\"; expected a duration from 1s to 120s")]
#[case::section_is_no_table("refresh = 5", "1: refresh: given 5; expected a table")]
#[case::table_for_a_list("[access]\nuid = 1", "1: access: given a table; expected a list")]
#[case::warn_before(
    "[consent]\nwarn_before = [\"30d\", \"soon\"]",
    "2: consent.warn_before: expected durations from 1s to 400d; one of \"30d\", \"soon\" is not"
)]
#[case::pages_without_url(
    "[consent]\nlisten = \"127.0.0.1:1\"",
    "1: consent.public_url: missing; consent.listen is set, and links need the address by which the world reaches it"
)]
#[case::one_listener_for_two(
    "[consent]\nlisten = \"127.0.0.1:9464\"\npublic_url = \"https://a.example\"",
    "2: consent.listen: is http.listen too; metrics and the public consent pages need a listener each"
)]
#[case::board_for_the_world(
    "[http]\nlisten = \"0.0.0.0:9464\"\n[http.board]\nenabled = true",
    "3: http.board.token_file: missing; the board shows every organization, and http.listen 0.0.0.0:9464 can be reached from \
     other machines: give a file with a token of at least 16 characters (`openssl rand -hex 32`), or listen on 127.0.0.1"
)]
#[case::board_for_nobody(
    "[http]\nlisten = \"\"\n[http.board]\nenabled = true",
    "4: http.board.enabled: needs http.listen, the address at which the board is served"
)]
#[case::plain_http(
    "[consent]\npublic_url = \"http://a.example/x\"",
    "2: consent.public_url: given http://a.example…; expected an https URL (http for a loopback address only)"
)]
#[case::webhook_without_secret(
    "[[webhook]]\nurl = \"https://a.example\"",
    "1: webhook[0].secret_file: missing; give the file with the signing secret"
)]
#[case::event(
    "[[webhook]]\nurl = \"https://a.example\"\nsecret_file = \"k\"\nevents = [\"consent.lots\"]",
    "4: webhook[0].events: no event is called \"consent.lots\"; did you mean \"consent.lost\"?"
)]
#[case::a_receiver_twice(
    "[[webhook]]\nurl = \"https://a.example/x\"\nsecret_file = \"k\"\n[[webhook]]\nurl = \"https://a.example/x\"\nsecret_file = \"l\"",
    "5: webhook[1].url: is that of webhook[0] too; give that one the events of both"
)]
#[case::timezone(
    "[schedule]\ntimezone = \"Europe/Kobenhavn\"",
    "2: schedule.timezone: given \"Europe/Kobenhavn\"; expected a time zone of the IANA database, such as \"Europe/Copenhagen\" or \"UTC\""
)]
#[case::cron(
    "[schedule]\nsweep = \"* * * * *\"",
    "2: schedule.sweep: given \"* * * * *\"; expected a cron pattern of six fields (second, minute, hour, day of month, month, day of week), such as \"0 0 8 * * Mon-Fri\""
)]
#[case::sweep_is_needed(
    "[schedule]\nsweep = \"\"",
    "2: schedule.sweep: given \"\"; expected a cron pattern of six fields (second, minute, hour, day of month, month, day of week), such as \"0 0 8 * * Mon-Fri\""
)]
#[case::backup_to_nowhere(
    "[schedule]\nbackup = \"0 30 2 * * *\"",
    "2: schedule.backup: needs vault.backup_dir, the folder that backups go to"
)]
#[case::series(
    "[metrics]\norganization_series = -1",
    "2: metrics.organization_series: given -1; expected a whole number from 0 to 100000"
)]
#[case::provider_name(
    "[providers.Visma]\nkind = \"visma-connect\"\nclient_id = \"a\"",
    "1: providers.Visma: not a provider name: it needs 1 to 64 of lower-case letters, digits and -"
)]
#[case::no_kind(
    "[providers.a]\nclient_id = \"a\"",
    "1: providers.a.kind: missing; give \"visma-connect\", \"dinero-personal\" or \"oauth2\""
)]
#[case::kind(
    "[providers.a]\nclient_id = \"a\"\nkind = \"visma\"",
    "3: providers.a.kind: given \"visma\"; expected one of visma-connect, dinero-personal, oauth2"
)]
#[case::no_client(
    "[providers.a]\nkind = \"dinero-personal\"",
    "1: providers.a.client_id: missing; give the id of the client registration"
)]
#[case::no_issuer(
    "[providers.a]\nkind = \"oauth2\"\nclient_id = \"a\"",
    "1: providers.a.issuer: missing; give issuer, where the endpoints are discovered, or token_url"
)]
#[case::scopes(
    "[providers.a]\nkind = \"visma-connect\"\nclient_id = \"a\"\nscopes = [\"a b\"]",
    "4: providers.a.scopes: \"a b\" is not one scope; write each as an item of its own, without spaces"
)]
#[case::pkce(
    "[providers.a]\nkind = \"visma-connect\"\nclient_id = \"a\"\npkce = 1",
    "4: providers.a.pkce: given 1; expected true or false"
)]
#[case::lifetime(
    "[providers.a]\nkind = \"visma-connect\"\nclient_id = \"a\"\nconsent_lifetime = \"never\"",
    "4: providers.a.consent_lifetime: given \"never\"; expected a duration from 1s to 3660d, or \"none\""
)]
#[case::budget(
    "[providers.a]\nkind = \"visma-connect\"\nclient_id = \"a\"\nmax_per_minute = 1000001",
    "4: providers.a.max_per_minute: given 1000001; expected a whole number from 1 to 1000000"
)]
#[case::client_id(
    "[providers.a]\nkind = \"visma-connect\"\nclient_id = 7",
    "3: providers.a.client_id: given 7; expected text in quotes"
)]
fn a_problem_is_one_line_that_names_the_place_and_the_way_out(#[case] text: &str, #[case] problem: &str) {
    assert_eq!(problems(text), format!("{FILE}:{problem}"));
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = "[schedule]\nsweep = \"x\"\n[refresh]\ntimeuot = \"5s\"\nat = 7\n[vault]\ncache = true\n";
    let error = with(text, &[("CONSENTRY__LOG__FORMAT", "xml")]).expect_err("wrong").to_string();
    let places: Vec<&str> = error.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(places, ["schedule.sweep", "refresh.timeuot", "refresh.at", "vault.cache", "log.format"], "{error}");
}

#[test]
fn no_more_than_twenty_problems_are_told() {
    let text = (0..500).map(|index| format!("key{index} = 1")).collect::<Vec<_>>().join("\n");
    let error = problems(&text);
    assert_eq!(error.lines().count(), 21);
    assert!(error.ends_with("\nthere may be more: mend these first"), "{error}");
}

#[test]
fn what_is_not_toml_is_told_with_its_line_and_without_its_text() {
    for text in ["[vault]\nx = s3cret", "\n\"s3cret", "a = \"s3cret\"\na = \"s3cret\"", "x = 99999999999999999999"] {
        let error = problems(text);
        assert!(error.starts_with(FILE) && !error.contains("s3cret") && error.lines().count() == 1, "{error}");
    }
    assert!(problems("[vault]\nx = = 1").starts_with("config/consentry.toml:2: not TOML: "));
}

#[rstest]
#[case(
    "[providers.a]\nclient_secret = \"s3cret\"",
    "2: providers.a.client_secret: a secret must not be in the configuration; put it into a file and name that with client_secret_file"
)]
#[case(
    "[[webhook]]\nsecret = \"s3cret\"",
    "2: webhook[0].secret: a secret must not be in the configuration; put it into a file and name that with secret_file"
)]
#[case(
    "[vault]\nidentity = \"AGE-SECRET-KEY-1S3CRET\"",
    "2: vault.identity: a secret must not be in the configuration; put it into a file and name that with identity_file"
)]
#[case(
    "[providers.a]\napi_key = \"s3cret\"",
    "2: providers.a.api_key: a secret must not be in the configuration; `consentry org add` enrols it"
)]
#[case(
    "[vault]\nidentity_file = \"AGE-SECRET-KEY-1S3CRET\"",
    "2: vault.identity_file: a secret must not be in the configuration; put it into a file and give that file's path"
)]
#[case(
    "[vault]\nrecipients = [\"AGE-SECRET-KEY-1S3CRET\"]",
    "2: vault.recipients: holds an age identity, which is secret; expected recipients, which begin with age1"
)]
#[case("[vault]\nidentity_file = [\"s3cret\"]", "2: vault.identity_file: expected text in quotes")]
#[case(
    "[[webhook]]\nsecret_file = \"k\"\nurl = \"https://a:s3cret@b.example\"",
    "3: webhook[0].url: expected an https URL (http for a loopback address only) without a user name, a password or a #fragment"
)]
#[case(
    "[[webhook]]\nsecret_file = \"k\"\nurl = \"http://b.example/s3cret\"",
    "3: webhook[0].url: given http://b.example…; expected an https URL (http for a loopback address only)"
)]
fn a_secret_in_the_file_is_refused_and_not_repeated(#[case] text: &str, #[case] problem: &str) {
    let error = problems(text);
    assert!(error.lines().any(|line| line == format!("{FILE}:{problem}")), "{error}");
    assert!(!error.to_lowercase().contains("s3cret"), "{error}");
    let debug = format!("{:?}", with(text, &[]));
    assert!(!debug.to_lowercase().contains("s3cret"), "{debug}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = with(
        "[refresh]\nat = 0.5\nconcurrency = 1\n[consent]\nwarn_before = [\"1d\"]",
        &[
            ("CONSENTRY__REFRESH__CONCURRENCY", "128"),
            ("CONSENTRY__CONSENT__WARN_BEFORE", "2d, 1w"),
            ("CONSENTRY__HTTP__LISTEN", ""),
            ("CONSENTRY__METRICS__ORGANIZATION_SERIES", "7"),
            ("CONSENTRY__PROVIDERS__VISMA_CONNECT__KIND", "visma-connect"),
            ("CONSENTRY__PROVIDERS__VISMA-CONNECT__CLIENT_ID", "007"),
            ("CONSENTRY__PROVIDERS__VISMA_CONNECT__PKCE", "false"),
            ("CONSENTRY__PROVIDERS__VISMA_CONNECT__SCOPES", "a,b"),
        ],
    )
    .unwrap_or_else(|error| panic!("{error}"));
    assert!((config.refresh.at - 0.5).abs() < f64::EPSILON);
    assert_eq!(config.refresh.concurrency, 128);
    assert_eq!(config.consent.warn_before, [7 * DAY, 2 * DAY]);
    assert_eq!(config.http_listen, None);
    assert_eq!(config.organization_series, 7);
    let provider = &config.providers["visma-connect"];
    assert_eq!((provider.client_id.as_str(), provider.pkce), ("007", false));
    assert_eq!(provider.scopes, ["a", "b"]);
}

#[test]
fn variables_that_set_no_key_are_left_alone() {
    let environment = [
        ("CONSENTRY_CONFIG", "x"),
        ("CONSENTRY_ACCESS_TOKEN", "x"),
        ("CONSENTRY", "x"),
        ("HOME", "/root"),
        ("A__B", "c"),
    ];
    assert!(with("", &environment).is_ok());
}

#[rstest]
#[case(
    "CONSENTRY__REFRESH__CONCURENCY",
    "5",
    "CONSENTRY__REFRESH__CONCURENCY: refresh.concurency: unknown key; did you mean refresh.concurrency?"
)]
#[case(
    "CONSENTRY__REFRESH__CONCURRENCY",
    "many",
    "CONSENTRY__REFRESH__CONCURRENCY: refresh.concurrency: given \"many\"; expected a whole number"
)]
#[case(
    "CONSENTRY__PROVIDERS__A__CLIENT_SECRET",
    "s3cret",
    "CONSENTRY__PROVIDERS__A__CLIENT_SECRET: providers.a.client_secret: a secret must not be in the configuration; put it into a file and name that with client_secret_file"
)]
#[case(
    "CONSENTRY__REFRESH",
    "x",
    "CONSENTRY__REFRESH: names no key; write CONSENTRY__SECTION__KEY, with two underscores between the parts"
)]
#[case(
    "CONSENTRY__REFRESH__",
    "x",
    "CONSENTRY__REFRESH__: names no key; write CONSENTRY__SECTION__KEY, with two underscores between the parts"
)]
#[case(
    "CONSENTRY__A[0]__B",
    "x",
    "CONSENTRY__A[0]__B: names no key; write CONSENTRY__SECTION__KEY, with two underscores between the parts"
)]
#[case("CONSENTRY__ACCESS__0__UID", "x", "CONSENTRY__ACCESS__0__UID: access: given a table; expected a list")]
#[case("CONSENTRY__REFRESH__AT__X", "x", "CONSENTRY__REFRESH__AT__X: refresh.at: given a table; expected a number")]
#[case(
    "CONSENTRY__PROVIDERS__A__PKCE",
    "yes",
    "CONSENTRY__PROVIDERS__A__PKCE: providers.a.pkce: given \"yes\"; expected true or false"
)]
fn a_wrong_variable_is_named(#[case] name: &str, #[case] value: &str, #[case] problem: &str) {
    let error = with("", &[(name, value)]).expect_err("wrong").to_string();
    assert_eq!(error.lines().find(|line| line.starts_with(name)), Some(problem), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn a_key_set_by_two_variables_is_a_problem() {
    let environment = [
        ("CONSENTRY__PROVIDERS__A-B__KIND", "visma-connect"),
        ("CONSENTRY__PROVIDERS__A_B__KIND", "dinero-personal"),
        ("CONSENTRY__PROVIDERS__A_B__CLIENT_ID", "a"),
    ];
    let error = with("", &environment).expect_err("wrong").to_string();
    assert_eq!(
        error,
        "CONSENTRY__PROVIDERS__A_B__KIND: sets the same key as CONSENTRY__PROVIDERS__A-B__KIND; keep one of them"
    );
}

#[test]
fn globs_cover_what_they_match_and_nothing_else() {
    let globs = |patterns: &[&str]| Globs::parse(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>());
    let some = globs(&["7", "dk-*", "no-{1,2}", "se-[0-9]?"]).expect("globs");
    for (id, covered) in [
        ("7", true),
        ("77", false),
        ("dk-", true),
        ("dk-a:b", true),
        ("DK-1", false),
        ("no-2", true),
        ("no-3", false),
        ("se-42", true),
        ("se-4", false),
        ("", false),
    ] {
        assert_eq!(some.covers_text(id), covered, "{id}");
    }
    assert!(!some.covers_all());
    assert!(globs(&["a", "*"]).expect("globs").covers_all());
    assert!(!globs(&[]).expect("globs").covers_text("a"));
}

#[test]
fn what_is_allowed_and_odd_is_remarked() {
    let config = good(
        r#"
        [socket]
        mode = "0666"
        [http]
        listen = "0.0.0.0:9464"
        [providers.a]
        kind = "visma-connect"
        client_id = "a"
        usage = "one-time"
        grace = "12s"
        "#,
    );
    let remarks = config.remarks();
    assert_eq!(remarks.len(), 3, "{remarks:?}");
    assert_eq!(
        remarks[2],
        "providers.a: a grace of 12s is of no use with refresh.timeout 10s: it must be longer than 12s"
    );
}

#[test]
fn backups_that_nobody_makes_or_that_go_with_the_vault_are_remarked() {
    let config = good("[vault]\npath = \"/v\"\nbackup_dir = \"/v/backups\"\n");
    let remarks = config.remarks();
    assert!(remarks.iter().any(|remark| remark.contains("schedule.backup is not")), "{remarks:?}");
    assert!(remarks.iter().any(|remark| remark.contains("inside vault.path")), "{remarks:?}");
    let config = good("[vault]\npath = \"/v\"\nbackup_dir = \"/b\"\n[schedule]\nbackup = \"0 30 2 * * *\"\n");
    assert!(!config.remarks().iter().any(|remark| remark.contains("backup")));
}

proptest::proptest! {
    #[test]
    fn no_text_and_no_variable_makes_the_reader_panic(
        text in "(\\[{1,2}(vault|access|refresh|webhook|providers\\.a|\"x y\")\\]{1,2}\n)?([a-z_]{1,9}|path|role|at|kind|\"a.b\") = (\".{0,9}\"|[0-9.x_-]{1,9}|\\[.{0,5}\\])\n?",
        name in "CONSENTRY__[A-Z0-9_.-]{0,12}(__[A-Z0-9_-]{0,8})?",
        value in ".{0,12}",
    ) {
        if let Err(error) = with(&text, &[(&name, &value)]) {
            proptest::prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_value_makes_its_reader_panic(value in "[*/,?#LW+@0-9A-Za-z \\[\\]{}=:.æ-]{0,24}") {
        for (section, key) in [
            ("schedule", "SWEEP"),
            ("schedule", "TIMEZONE"),
            ("log", "LEVEL"),
            ("socket", "MODE"),
            ("socket", "GROUP"),
            ("vault", "CACHE"),
            ("vault", "RECIPIENTS"),
            ("refresh", "KEEP_WARM"),
            ("refresh", "AT"),
            ("consent", "WARN_BEFORE"),
            ("consent", "PUBLIC_URL"),
            ("http", "LISTEN"),
        ] {
            let name = format!("CONSENTRY__{}__{key}", section.to_uppercase());
            if let Err(error) = with("", &[(&name, &value)]) {
                proptest::prop_assert!(error.to_string().starts_with(&format!("{name}: {section}.")), "{error}");
            }
        }
        let rule = format!("[[access]]\nuid = 1\nrole = 'fetch'\norganizations = ['{value}']");
        if let Err(error) = with(&rule, &[]) {
            proptest::prop_assert!(error.to_string().starts_with("config/consentry.toml:4: "), "{error}");
        }
    }
}
