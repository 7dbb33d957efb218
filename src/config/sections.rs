//! From the raw configuration to the typed one, section by section. The defaults here are those that the commented
//! reference shows; a test holds them together.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    AccessRule, BoardConfig, Config, ConsentConfig, Globs, KeepWarm, LogConfig, LogFormat, RefreshConfig,
    ScheduleConfig, SocketConfig, VaultConfig, WebhookConfig, postgres,
    problem::{Problems, Unfit, shown},
    provider,
    raw::{
        List, Raw, RawAccess, RawBoard, RawConsent, RawLog, RawRefresh, RawSchedule, RawSocket, RawVault, RawWebhook,
        Scalar,
    },
    tree::Step,
    values::{self, Bounds},
};

/// How many `[[access]]` rules there may be.
const MAX_ACCESS_RULES: usize = 256;
/// How many patterns one rule may have.
const MAX_PATTERNS: usize = 1024;
/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 256;
/// How many `[[webhook]]` there may be.
const MAX_WEBHOOKS: usize = 64;
/// How many event patterns one webhook may have.
const MAX_EVENTS: usize = 64;
/// How many further recipients a vault may have.
pub const MAX_RECIPIENTS: usize = 64;
/// The longest that a consent link may hold.
pub const MAX_LINK_LIFETIME: Duration = Duration::from_secs(400 * DAY);
/// How many warnings one consent may get.
const MAX_WARNINGS: usize = 16;
/// What a claim has to last beside the request that is sent under it.
const BESIDE_REQUEST: Duration = Duration::from_secs(1);
/// How many seconds a day has.
pub(super) const DAY: u64 = 86_400;

const TIMEOUT: Bounds = Bounds::seconds(1, 120, "from 1s to 120s");
const FETCHED_WITHIN: Bounds = Bounds::seconds(1, 400 * DAY, "from 1s to 400d");
const WARN_BEFORE: Bounds = Bounds::seconds(1, 400 * DAY, "from 1s to 400d");
const LINK_LIFETIME: Bounds = Bounds::seconds(1, MAX_LINK_LIFETIME.as_secs(), "from 1s to 400d");
const CACHE: RangeInclusive<u64> = 1_000_000..=1_000_000_000_000;
const CACHE_WORDS: &str = "from 1MB to 1000GB";

/// One table of the configuration: reads its keys, and notes what is wrong with them.
#[derive(Debug)]
pub(super) struct Section<'a> {
    problems: &'a Problems<'a>,
    path: Vec<Step>,
}

impl<'a> Section<'a> {
    pub(super) fn new(problems: &'a Problems<'a>, path: impl IntoIterator<Item = Step>) -> Self {
        Self { problems, path: path.into_iter().collect() }
    }

    fn named(problems: &'a Problems<'a>, name: &str) -> Self {
        Self::new(problems, [Step::Key(name.to_owned())])
    }

    fn item(problems: &'a Problems<'a>, name: &str, index: usize) -> Self {
        Self::new(problems, [Step::Key(name.to_owned()), Step::Index(index)])
    }

    /// The value of a key, or its default; also after a problem, so that reading goes on.
    pub(super) fn value<R, T>(
        &self,
        key: &'static str,
        raw: Option<R>,
        default: T,
        parse: impl FnOnce(R) -> Result<T, Unfit>,
    ) -> T {
        match raw.map(parse) {
            None => default,
            Some(Ok(value)) => value,
            Some(Err(unfit)) => {
                self.unfit(key, unfit);
                default
            }
        }
    }

    /// The value of a key that may be left out, or left empty to say that there is none.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        raw: Option<String>,
        parse: impl FnOnce(&str) -> Result<T, Unfit>,
    ) -> Option<T> {
        self.value(key, raw.filter(|text| !text.is_empty()), None, |text| parse(&text).map(Some))
    }

    /// The value of a key that must be there.
    pub(super) fn required<R, T>(
        &self,
        key: &'static str,
        raw: Option<R>,
        advice: &str,
        parse: impl FnOnce(R) -> Result<T, Unfit>,
    ) -> Option<T> {
        if raw.is_none() {
            self.problems.missing(&self.path, key, advice);
        }
        self.value(key, raw, None, |raw| parse(raw).map(Some))
    }

    pub(super) fn unfit(&self, key: &'static str, unfit: Unfit) {
        let path: Vec<Step> = self.path.iter().cloned().chain([Step::Key(key.to_owned())]).collect();
        self.problems.unfit(&path, unfit);
    }

    pub(super) fn missing(&self, key: &'static str, advice: &str) {
        self.problems.missing(&self.path, key, advice);
    }

    /// The table as a whole makes no sense.
    pub(super) fn wrong(&self, message: String) {
        self.problems.add(&self.path, message);
    }
}

/// Reads every section. What comes back is only good if there are no problems.
pub(super) fn read(raw: Raw, problems: &Problems<'_>) -> Config {
    let http = Section::named(problems, "http");
    let metrics = Section::named(problems, "metrics");
    let http_default = Some(([127, 0, 0, 1], 9464).into());
    let config = Config {
        file: None,
        vault: vault(raw.vault, problems),
        socket: socket(raw.socket, &Section::named(problems, "socket")),
        access: access(raw.access, problems),
        http_listen: match raw.http.listen {
            Some(text) => http.optional("listen", Some(text), values::listen),
            None => http_default,
        },
        board: board(raw.http.board, &Section::new(problems, ["http", "board"].map(|key| Step::Key(key.to_owned())))),
        log: log(raw.log, &Section::named(problems, "log")),
        refresh: refresh(raw.refresh, &Section::named(problems, "refresh")),
        consent: consent(raw.consent, &Section::named(problems, "consent")),
        webhooks: webhooks(raw.webhook, problems),
        schedule: schedule(raw.schedule, &Section::named(problems, "schedule")),
        organization_series: metrics.value("organization_series", raw.metrics.organization_series, 1000, |number| {
            values::whole(number, 0..=100_000)
        }),
        providers: provider::read(raw.providers, problems),
    };
    agree(&config, problems);
    config
}

fn vault(raw: RawVault, problems: &Problems<'_>) -> VaultConfig {
    let section = &Section::named(problems, "vault");
    let in_postgres = section.value("engine", raw.engine, false, |engine| match engine.as_str() {
        "sled" => Ok(false),
        "postgres" => Ok(true),
        _ => Err(Unfit::Expected("\"sled\" or \"postgres\"".to_owned())),
    });
    let inner = Section::new(problems, ["vault", "postgres"].map(|key| Step::Key(key.to_owned())));
    let postgres = postgres::read(raw.postgres, in_postgres, &inner);
    VaultConfig {
        path: section.value("path", raw.path, "/var/lib/consentry/vault".into(), |text| values::path(&text)),
        identity_file: section.value(
            "identity_file",
            raw.identity_file,
            "/etc/consentry/identity.txt".into(),
            |text| values::path(&text),
        ),
        recipients: section.value("recipients", raw.recipients, Vec::new(), |list| {
            values::recipients(&values::bounded(list, 0..=MAX_RECIPIENTS)?)
        }),
        cache_bytes: section.value("cache", raw.cache, 16_000_000, |text| values::size(&text, CACHE, CACHE_WORDS)),
        backup_dir: section.optional("backup_dir", raw.backup_dir, values::path),
        backup_keep: section.value("backup_keep", raw.backup_keep, 14, |number| values::whole(number, 1..=10_000)),
        postgres: in_postgres.then_some(postgres),
    }
}

fn socket(raw: RawSocket, section: &Section<'_>) -> SocketConfig {
    SocketConfig {
        path: section
            .value("path", raw.path, "/run/consentry/consentry.sock".into(), |text| values::socket_path(&text)),
        mode: section.value("mode", raw.mode, 0o660, |text| values::mode(&text)),
        group: section
            .value("group", raw.group.filter(|text| !text.0.is_empty()), None, |text| values::group(&text).map(Some)),
    }
}

fn access(rules: Vec<RawAccess>, problems: &Problems<'_>) -> Vec<AccessRule> {
    if rules.len() > MAX_ACCESS_RULES {
        let section = Section::named(problems, "access");
        section.wrong(format!("has {} rules; at most {MAX_ACCESS_RULES} are allowed", rules.len()));
        return Vec::new();
    }
    let rules = rules.into_iter().enumerate();
    rules.filter_map(|(index, raw)| access_rule(raw, &Section::item(problems, "access", index))).collect()
}

fn access_rule(raw: RawAccess, section: &Section<'_>) -> Option<AccessRule> {
    if raw.uid.is_some() && raw.user.is_some() {
        section.wrong("names its user twice; give uid or user".to_owned());
    }
    if raw.gid.is_some() && raw.group.is_some() {
        section.wrong("names its group twice; give gid or group".to_owned());
    }
    // A name may be left empty, as socket.group may, and then names nobody.
    let named = |text: &Scalar| !text.0.is_empty();
    let user = raw.user.filter(named);
    let group = raw.group.filter(named);
    if raw.uid.is_none() && raw.gid.is_none() && user.is_none() && group.is_none() {
        section.wrong("is for nobody, or for everybody; give uid, user, gid or group".to_owned());
    }
    let uid = section.value("uid", raw.uid, None, |number| someone(values::account_number(number)?));
    let user = section.value("user", user, None, |text| someone(values::user(&text)?));
    let gid = section.value("gid", raw.gid, None, |number| someone(values::account_number(number)?));
    let group = section.value("group", group, None, |text| someone(values::group(&text)?));
    let role = section.required("role", raw.role, "give \"fetch\", \"operate\" or \"admin\"", Ok);
    let organizations = raw.organizations.unwrap_or_else(|| List(vec!["*".to_owned()]));
    let organizations = section.value("organizations", Some(organizations), None, |list| globs(&list).map(Some));
    Some(AccessRule { uid: uid.or(user), gid: gid.or(group), role: role?, organizations: organizations? })
}

fn someone(number: u32) -> Result<Option<u32>, Unfit> {
    if number == crate::model::OVERFLOW_ID {
        return Err(Unfit::Because(format!(
            "{number} is what the kernel shows for every unknown caller; a rule for it is refused"
        )));
    }
    Ok(Some(number))
}

fn globs(list: &List) -> Result<Globs, Unfit> {
    if list.0.is_empty() || list.0.len() > MAX_PATTERNS {
        return Err(Unfit::Because(format!(
            "has {} patterns; 1 to {MAX_PATTERNS} are allowed, and [\"*\"] covers every organization",
            list.0.len()
        )));
    }
    if let Some(odd) = list.0.iter().find(|pattern| pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES) {
        return Err(Unfit::Because(format!("{} is not a pattern of 1 to {MAX_PATTERN_BYTES} bytes", shown(odd))));
    }
    Globs::parse(&list.0).map_err(|error| {
        let pattern = error.glob().map(shown).unwrap_or_default();
        Unfit::Because(format!("{pattern} is not a glob: {}", error.kind()))
    })
}

fn board(raw: RawBoard, section: &Section<'_>) -> BoardConfig {
    BoardConfig {
        enabled: raw.enabled.is_some_and(|flag| flag.0),
        token_file: section.optional("token_file", raw.token_file, values::path),
    }
}

fn log(raw: RawLog, section: &Section<'_>) -> LogConfig {
    LogConfig {
        format: raw.format.unwrap_or(LogFormat::Text),
        level: section.value("level", raw.level, "info".to_owned(), |text| values::log_level(&text)),
    }
}

fn refresh(raw: RawRefresh, section: &Section<'_>) -> RefreshConfig {
    RefreshConfig {
        at: section.value("at", raw.at, 0.75, |number| values::real(number, 0.1..=0.95)),
        keep_warm: section
            .value("keep_warm", raw.keep_warm, KeepWarm::Always, |text| values::keep_warm(&text, FETCHED_WITHIN)),
        concurrency: section.value("concurrency", raw.concurrency, 64, |number| values::whole(number, 1..=4096)),
        timeout: section
            .value("timeout", raw.timeout, Duration::from_secs(10), |text| values::duration(&text, TIMEOUT)),
        token_cache_bytes: section
            .value("token_cache", raw.token_cache, 256_000_000, |text| values::size(&text, CACHE, CACHE_WORDS)),
    }
}

fn consent(raw: RawConsent, section: &Section<'_>) -> ConsentConfig {
    let days = |days: u64| Duration::from_secs(days * DAY);
    ConsentConfig {
        warn_before: section.value("warn_before", raw.warn_before, [30, 14, 7, 3, 1].map(days).to_vec(), |list| {
            values::durations(&values::bounded(list, 0..=MAX_WARNINGS)?, WARN_BEFORE)
        }),
        listen: section.optional("listen", raw.listen, values::listen),
        public_url: section.optional("public_url", raw.public_url, values::base_url),
        link_lifetime: section
            .value("link_lifetime", raw.link_lifetime, days(14), |text| values::duration(&text, LINK_LIFETIME)),
        revoke_old: raw.revoke_old.is_some_and(|flag| flag.0),
        name: section.optional("name", raw.name, values::shown_name),
    }
}

fn webhooks(webhooks: Vec<RawWebhook>, problems: &Problems<'_>) -> Vec<WebhookConfig> {
    if webhooks.len() > MAX_WEBHOOKS {
        let section = Section::named(problems, "webhook");
        section.wrong(format!("has {} receivers; at most {MAX_WEBHOOKS} are allowed", webhooks.len()));
        return Vec::new();
    }
    let webhooks = webhooks.into_iter().enumerate();
    webhooks.filter_map(|(index, raw)| webhook(raw, &Section::item(problems, "webhook", index))).collect()
}

fn webhook(raw: RawWebhook, section: &Section<'_>) -> Option<WebhookConfig> {
    let url = section.required("url", raw.url, "give the address that events are posted to", |text| values::url(&text));
    let secret_file =
        section.required("secret_file", raw.secret_file, "give the file with the signing secret", |text| {
            values::path(&text)
        });
    let events = section.value("events", raw.events, vec!["*".to_owned()], |list| {
        values::events(&values::bounded(list, 1..=MAX_EVENTS)?)
    });
    Some(WebhookConfig { url: url?, secret_file: secret_file?, events })
}

fn schedule(raw: RawSchedule, section: &Section<'_>) -> ScheduleConfig {
    let or_never = |text: String| if text.is_empty() { Ok(text) } else { values::cron(&text) };
    ScheduleConfig {
        timezone: section
            .value("timezone", raw.timezone, "Europe/Copenhagen".to_owned(), |text| values::time_zone(&text)),
        digest: section.value("digest", raw.digest, "0 0 8 * * Mon-Fri".to_owned(), or_never),
        backup: section.value("backup", raw.backup, String::new(), or_never),
        sweep: section.value("sweep", raw.sweep, "0 */5 * * * *".to_owned(), |text| values::cron(&text)),
    }
}

/// What no single key can say: that they make sense together.
fn agree(config: &Config, problems: &Problems<'_>) {
    let because = |message: &str| Unfit::Because(message.to_owned());
    for (index, webhook) in config.webhooks.iter().enumerate() {
        // What is still to be delivered is kept by URL.
        if let Some(first) = config.webhooks[..index].iter().position(|other| other.url == webhook.url) {
            let message = format!("is that of webhook[{first}] too; give that one the events of both");
            Section::item(problems, "webhook", index).unfit("url", Unfit::Because(message));
        }
    }
    if config.consent.listen.is_some() && config.consent.public_url.is_none() {
        Section::named(problems, "consent")
            .missing("public_url", "consent.listen is set, and links need the address by which the world reaches it");
    }
    if let (Some(inside), Some(public)) = (config.http_listen, config.consent.listen)
        && inside == public
        && inside.port() != 0
    {
        let message = "is http.listen too; metrics and the public consent pages need a listener each";
        Section::named(problems, "consent").unfit("listen", because(message));
    }
    let board = Section::new(problems, ["http", "board"].map(|key| Step::Key(key.to_owned())));
    match config.http_listen {
        _ if !config.board.enabled => {}
        None => board.unfit("enabled", because("needs http.listen, the address at which the board is served")),
        Some(listen) if !listen.ip().is_loopback() && config.board.token_file.is_none() => board.missing(
            "token_file",
            &format!(
                "the board shows every organization, and http.listen {listen} can be reached from other machines: \
                 give a file with a token of at least 16 characters (`openssl rand -hex 32`), or listen on 127.0.0.1"
            ),
        ),
        Some(_) => {}
    }
    if let Some(postgres) = &config.vault.postgres
        && holder_counts(postgres.lease) < config.refresh.timeout + BESIDE_REQUEST
    {
        let message = format!(
            "a claim of {:?} is over before an exchange may be, which refresh.timeout lets last {:?}; make it longer",
            postgres.lease, config.refresh.timeout
        );
        let section = Section::new(problems, ["vault", "postgres"].map(|key| Step::Key(key.to_owned())));
        section.unfit("lease", Unfit::Because(message));
    }
    if !config.schedule.backup.is_empty() && config.vault.backup_dir.is_none() {
        let message = "needs vault.backup_dir, the folder that backups go to";
        Section::named(problems, "schedule").unfit("backup", because(message));
    }
}

/// For how long a claim is good for its holder: a tenth less than for the database.
fn holder_counts(lease: Duration) -> Duration {
    lease.mul_f64(0.9)
}
