//! `[vault.postgres]`: where the vault is when several workers share it.

use std::{path::PathBuf, time::Duration};

use super::{
    problem::Unfit,
    raw::{RawPostgres, Whole},
    sections::Section,
    values::{self, Bounds},
};

/// The longest URL, in bytes: a dozen hosts fit in.
const MAX_URL: usize = 4096;
/// What PostgreSQL cuts names to, less one.
const MAX_SCHEMA: usize = 63;

const STATEMENT_TIMEOUT: Bounds = Bounds::seconds(1, 120, "from 1s to 120s");
/// The fewest are for tests: docs/replicas.md says how many are wise.
const FEWEST_RESIDENT: i64 = 10;
const MOST_RESIDENT: i64 = 100_000_000;
const LEASE: Bounds = Bounds::seconds(5, 120, "from 5s to 120s");
const POLL: Bounds = Bounds::millis(50, 10_000, "from 50ms to 10s");

/// `[vault.postgres]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Where the database is, without a password; `None`: `url_file` says.
    pub url: Option<String>,
    /// The file that says where the database is, password included.
    pub url_file: Option<PathBuf>,
    /// Certificate authorities that sign servers' certificates, in PEM, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How many commits are under way at once: 1 to 256. There are three connections more.
    pub pool_size: u16,
    /// How long anything but a commit may take: 1 s to 120 s.
    pub statement_timeout: Duration,
    /// The schema in which everything is kept.
    pub schema: String,
    /// Whether a database is taken that may lose what it confirmed.
    pub allow_asynchronous: bool,
    /// How often it is asked what other workers have written: 50 ms to 10 s.
    pub poll: Duration,
    /// How long a claim lasts: 5 s to 120 s.
    pub lease: Duration,
    /// Where it is listened for hints that others have written, without a password; `None`: polling does.
    pub listen_url: Option<String>,
    /// How many grants this worker keeps in memory at most: 10 or more; `None`: all of them.
    pub resident: Option<usize>,
}

/// Reads the section. Its keys are looked at whatever the engine is, and needed where it is PostgreSQL.
pub(super) fn read(raw: RawPostgres, is_used: bool, section: &Section<'_>) -> PostgresConfig {
    let config = PostgresConfig {
        url: section.optional("url", raw.url, url),
        url_file: section.optional("url_file", raw.url_file, values::path),
        ca_file: section.optional("ca_file", raw.ca_file, values::path),
        pool_size: section.value("pool_size", raw.pool_size, 8, |number| values::whole(number, 1..=256)),
        statement_timeout: section.value("statement_timeout", raw.statement_timeout, Duration::from_secs(10), |text| {
            values::duration(&text, STATEMENT_TIMEOUT)
        }),
        schema: section.value("schema", raw.schema, "consentry".to_owned(), schema),
        allow_asynchronous: section.value("allow_asynchronous", raw.allow_asynchronous, false, |flag| Ok(flag.0)),
        poll: section.value("poll", raw.poll, Duration::from_millis(500), |text| values::duration(&text, POLL)),
        lease: section.value("lease", raw.lease, Duration::from_secs(30), |text| values::duration(&text, LEASE)),
        listen_url: section.optional("listen_url", raw.listen_url, url),
        resident: section.value("resident", raw.resident, None, resident),
    };
    match (&config.url, &config.url_file) {
        (Some(_), Some(_)) => section.wrong("says twice where the database is; give url or url_file".to_owned()),
        (None, None) if is_used => section.missing(
            "url_file",
            "vault.engine is \"postgres\": give the file that holds postgresql://USER:PASSWORD@HOST/DATABASE, or url where no \
             password is needed",
        ),
        _ => {}
    }
    config
}

/// A URL as PostgreSQL's own programs take it. It is never repeated: it may hold what should not be there.
fn url(text: &str) -> Result<String, Unfit> {
    let because = |why: &str| Err(Unfit::Because(why.to_owned()));
    let rest = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
    let Some(rest) = rest.filter(|_| text.len() <= MAX_URL && !text.chars().any(char::is_control)) else {
        return because("expected postgresql://USER@HOST/DATABASE; several servers are HOST,HOST");
    };
    let (address, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = address.split('/').next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    if user.contains(':') || parameters.split('&').any(|parameter| parameter.starts_with("password=")) {
        return because(
            "a password must not be in the configuration; put the URL into a file and name that in url_file",
        );
    }
    Ok(text.to_owned())
}

/// Zero stands for all of them.
fn resident(number: Whole) -> Result<Option<usize>, Unfit> {
    if number.0 != 0 && number.0 < FEWEST_RESIDENT {
        return Err(Unfit::Expected(format!("0 for all, or a whole number from {FEWEST_RESIDENT}")));
    }
    values::whole(number, 0..=MOST_RESIDENT).map(|most| Some(most).filter(|most| *most > 0))
}

fn schema(text: String) -> Result<String, Unfit> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=MAX_SCHEMA).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with("pg_") {
        return Ok(text);
    }
    Err(Unfit::Expected(format!("a name of 1 to {MAX_SCHEMA} of a-z, 0-9 and _, not beginning with pg_")))
}
