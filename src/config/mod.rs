//! The configuration: a raw serde form that mirrors the file, parsed into typed values that cannot hold a
//! contradiction. `config/consentry.toml` in the repository is the commented reference and is embedded here.

mod access;
mod load;
mod postgres;
mod problem;
mod provider;
mod raw;
mod remarks;
mod sections;
mod suggest;
#[cfg(test)]
mod tests;
mod tree;
mod values;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

pub use access::{AccessRule, Globs, Role};
pub use load::{ConfigError, FILE_VARIABLE, Located, locate};
pub use postgres::PostgresConfig;
pub use problem::Problem;
pub use provider::{ClientAuth, InDoubtPolicy, Kind, ProviderConfig, ResponseMode};
pub use sections::{MAX_LINK_LIFETIME, MAX_RECIPIENTS};
use url::Url;
pub use values::is_loopback;

use crate::model::ProviderName;

/// The commented reference configuration, which `consentry init` writes.
pub const REFERENCE: &str = include_str!("../../config/consentry.toml");

/// Everything the worker is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from; `None` for one made in code.
    pub file: Option<PathBuf>,
    /// `[vault]`
    pub vault: VaultConfig,
    /// `[socket]`
    pub socket: SocketConfig,
    /// `[[access]]`, in order; rules add up.
    pub access: Vec<AccessRule>,
    /// `[http] listen`; `None` if empty.
    pub http_listen: Option<SocketAddr>,
    /// `[http.board]`
    pub board: BoardConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[refresh]`
    pub refresh: RefreshConfig,
    /// `[consent]`
    pub consent: ConsentConfig,
    /// `[[webhook]]`
    pub webhooks: Vec<WebhookConfig>,
    /// `[schedule]`
    pub schedule: ScheduleConfig,
    /// `metrics.organization_series`: how many series named by organization may be shown.
    pub organization_series: usize,
    /// `[providers.NAME]`
    pub providers: BTreeMap<ProviderName, ProviderConfig>,
}

/// `[vault]`
#[derive(Clone, Debug)]
pub struct VaultConfig {
    /// The vault's folder.
    pub path: PathBuf,
    /// The age identity that opens it.
    pub identity_file: PathBuf,
    /// Further age recipients.
    pub recipients: Vec<String>,
    /// The engine's cache, in bytes.
    pub cache_bytes: u64,
    /// Where scheduled backups go.
    pub backup_dir: Option<PathBuf>,
    /// How many of them are kept there: 1 to 10,000.
    pub backup_keep: usize,
    /// `[vault.postgres]`, where `engine` is `"postgres"`; else the records are in the folder.
    pub postgres: Option<PostgresConfig>,
}

impl VaultConfig {
    /// Where the vault is, in words: its folder, or the database's schema.
    pub fn place(&self) -> PathBuf {
        self.postgres.as_ref().map_or_else(|| self.path.clone(), |postgres| place_of(&postgres.schema))
    }
}

/// Where a vault is that is in that schema of a database, in words, for where else a folder is named.
pub fn place_of(schema: &str) -> PathBuf {
    PathBuf::from(format!("PostgreSQL's schema {schema}"))
}

/// `[socket]`
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Where the socket is made.
    pub path: PathBuf,
    /// Its permission bits, e.g. `0o660`.
    pub mode: u32,
    /// Its group, by number; `None` leaves the worker's own.
    pub group: Option<u32>,
}

/// `[http.board]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoardConfig {
    /// Whether the page for people is served on `http.listen`.
    pub enabled: bool,
    /// Holds what people log in with, one token a line. `None`: nobody has to log in, which is allowed on loopback only.
    pub token_file: Option<PathBuf>,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Text for people or JSON for machines.
    pub format: LogFormat,
    /// A level or a filter as `tracing_subscriber::EnvFilter` reads it.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[refresh]`
#[derive(Clone, Debug)]
pub struct RefreshConfig {
    /// Share of an access token's life after which it is refreshed: 0.1 to 0.95.
    pub at: f64,
    /// Which organizations are refreshed ahead of time.
    pub keep_warm: KeepWarm,
    /// Exchanges under way at once at one provider: 1 to 4096.
    pub concurrency: usize,
    /// The longest one exchange may take: 1 s to 120 s.
    pub timeout: Duration,
    /// Access tokens kept in memory, in bytes.
    pub token_cache_bytes: u64,
}

/// Which organizations are refreshed ahead of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepWarm {
    /// All.
    Always,
    /// Those fetched within this time; others when they are asked for.
    FetchedWithin(Duration),
}

/// `[consent]`
#[derive(Clone, Debug)]
pub struct ConsentConfig {
    /// Times before a consent's end at which it is warned of; the longest first, no two equal.
    pub warn_before: Vec<Duration>,
    /// The public pages' listener; `None`: no pages.
    pub listen: Option<SocketAddr>,
    /// How the world reaches it.
    pub public_url: Option<Url>,
    /// How long a consent link holds.
    pub link_lifetime: Duration,
    /// Whether a consent that another has taken the place of is revoked at the issuer.
    pub revoke_old: bool,
    /// Who asks, as the pages call it; `None`: the host of `public_url` stands for it.
    pub name: Option<String>,
}

/// `[[webhook]]`
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// Where events are posted: https, or http on loopback.
    pub url: Url,
    /// The signing secret's file.
    pub secret_file: PathBuf,
    /// Event types, `*` allowed at the end.
    pub events: Vec<String>,
}

/// `[schedule]`
#[derive(Clone, Debug)]
pub struct ScheduleConfig {
    /// IANA name of the operator's time zone.
    pub timezone: String,
    /// Cron of the digest; empty: none.
    pub digest: String,
    /// Cron of the backup; empty: none.
    pub backup: String,
    /// Cron of the sweep.
    pub sweep: String,
}

impl Config {
    /// Reads the file and the environment (`CONSENTRY__SECTION__KEY`), and checks every value.
    pub fn load(located: &Located) -> Result<Self, ConfigError> {
        load::load(located)
    }

    /// Reads `text` alone, with no file and no environment: for the demo and for tests, which then need not spell out
    /// every default.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        load::read("configuration", text, [])
    }

    /// What is allowed and yet deserves a second look; one sentence each.
    pub fn remarks(&self) -> Vec<String> {
        remarks::remarks(self)
    }
}

/// The redirect URI that has to be registered at a provider, for pages that the world reaches at `public_url`.
pub fn redirect_uri(public_url: &Url, provider: &ProviderName) -> String {
    format!("{}/callback/{provider}", public_url.as_str().trim_end_matches('/'))
}
