//! A place for a worker: a configuration, an identity, and a vault that is filled with organizations.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use consentry::{
    clock::{Clock as _, SystemClock},
    config::{Config, PostgresConfig},
    metrics::Metrics,
    model::{
        AccessToken, Consent, Credential, Grant, GrantId, Labels, Organization, OrganizationId, Secret, State,
        Timestamp, Usage,
    },
    vault::{
        Change, Identity, Vault,
        postgres::{Settings, Store},
    },
};
use tempfile::TempDir;

use super::{CLIENT_ID, access_token};

/// Organizations in one commit: large enough that the sync costs little, small enough for the journal's groups.
const BATCH: u64 = 250;
/// Commits that are under way at once.
const AT_ONCE: usize = 4;
/// The number of the first organization.
const FIRST: u64 = 10_000_000;
/// How long the access tokens of a warm fleet live: no benchmark lasts as long.
const WARM: Duration = Duration::from_hours(48);
/// How long a warm fleet is kept: while none of it is due to be refreshed.
const KEPT: Duration = Duration::from_hours(24);

/// What may differ between benchmarks.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The engine's cache.
    pub(crate) vault_cache: &'static str,
    /// The cache of access tokens.
    pub(crate) token_cache: &'static str,
    /// Where the issuer listens; `None`: nobody is asked.
    pub(crate) issuer: Option<SocketAddr>,
    /// Whom it is believed to be: a certificate, where it is asked over TLS.
    pub(crate) authority: Option<&'static str>,
    /// Where the vault is that workers share; `None`: in files of its own.
    pub(crate) database: Option<Database>,
}

/// A place in a database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) schema: String,
}

impl Default for Options {
    /// As the configuration's own defaults.
    fn default() -> Self {
        Self { vault_cache: "16MB", token_cache: "256MB", issuer: None, authority: None, database: None }
    }
}

/// How the organizations of a filled vault stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fleet {
    /// Each has an access token that lives for long.
    Warm,
    /// Each one's access token has lapsed, so that it is refreshed at once.
    Due(Usage),
}

/// A folder with everything that a worker needs. Gone when this is dropped, unless it is kept for the next run.
#[derive(Debug)]
pub(crate) struct Site {
    /// Below the build's folder, which is on a disk: a commit costs what a disk costs.
    folder: PathBuf,
    /// Removes the folder.
    _temporary: Option<TempDir>,
    /// Elsewhere, since the path of a socket must be short.
    socket: TempDir,
    options: Options,
}

impl Site {
    /// An empty vault.
    pub(crate) fn new(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        Self::at(folder.path().to_owned(), Some(folder), options)?.create()
    }

    /// The site of `count` warm organizations that an earlier run has left, or a new one that is left for later ones: a
    /// million take minutes to fill.
    pub(crate) fn kept(count: u64, options: Options) -> Result<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kept-{count}"));
        let filled = folder.join("filled");
        if let Ok(found) = fs::metadata(&filled)
            && found.modified()?.elapsed().is_ok_and(|age| age < KEPT)
        {
            return Self::at(folder, None, options);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir(&folder)?;
        let site = Self::at(folder, None, options)?.create()?;
        site.fill(0, count, Fleet::Warm)?;
        fs::write(filled, [])?;
        Ok(site)
    }

    fn at(folder: PathBuf, temporary: Option<TempDir>, options: Options) -> Result<Self> {
        let socket = tempfile::Builder::new().prefix("bench-").tempdir()?;
        let site = Self { folder, _temporary: temporary, socket, options };
        fs::write(site.config_file(), site.text())?;
        Ok(site)
    }

    /// Makes the identity and the vault.
    fn create(self) -> Result<Self> {
        let config = self.config()?;
        let identity = Identity::create(&config.vault.identity_file)?;
        match &config.vault.postgres {
            Some(postgres) => {
                let runtime = tokio::runtime::Runtime::new()?;
                runtime.block_on(Store::create(&Settings::of(postgres)?, &identity, &[]))?;
            }
            None => Vault::create(&config.vault, &identity)?,
        }
        Ok(self)
    }

    /// A place for another worker on the same vault in a database.
    pub(crate) fn another(&self) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let site = Self::at(folder.path().to_owned(), Some(folder), self.options.clone())?;
        fs::copy(self.config()?.vault.identity_file, site.config()?.vault.identity_file)?;
        Ok(site)
    }

    /// The same place with other settings.
    pub(crate) fn set(&mut self, options: Options) -> Result<()> {
        self.options = options;
        Ok(fs::write(self.config_file(), self.text())?)
    }

    /// Where the configuration is.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.join("consentry.toml")
    }

    /// Where the worker listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.path().join("consentry.sock")
    }

    /// The file of the certificates that are believed there instead of the machine's, if any.
    pub(crate) fn authority(&self) -> Option<&'static str> {
        self.options.authority
    }

    /// Where the worker's log goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The configuration as the worker reads it.
    pub(crate) fn config(&self) -> Result<Config> {
        Ok(Config::parse(&self.text())?)
    }

    /// The vault, while no worker has it.
    pub(crate) fn open(&self) -> Result<Vault> {
        open(&self.config()?)
    }

    /// Adds organizations up to `count`, through the vault's own commits.
    pub(crate) fn fill(&self, from: u64, count: u64, fleet: Fleet) -> Result<()> {
        let runtime = tokio::runtime::Runtime::new()?;
        let _inside = runtime.enter();
        let config = self.config()?;
        let vault = match &config.vault.postgres {
            Some(postgres) => runtime.block_on(open_in_database(&config, postgres))?,
            None => open(&config)?,
        };
        let now = SystemClock::new().now().wall;
        runtime.block_on(async {
            let mut under_way = tokio::task::JoinSet::new();
            let mut next = from;
            while next < count {
                let end = (next + BATCH).min(count);
                let changes: Vec<Change> = (next..end).flat_map(|number| records(&vault, number, fleet, now)).collect();
                let vault = vault.clone();
                under_way.spawn(async move { vault.commit(changes).await });
                if under_way.len() >= AT_ONCE
                    && let Some(committed) = under_way.join_next().await
                {
                    committed??;
                }
                next = end;
            }
            while let Some(committed) = under_way.join_next().await {
                committed??;
            }
            anyhow::Ok(())
        })?;
        Ok(vault.close()?)
    }

    fn text(&self) -> String {
        let Options { vault_cache, token_cache, issuer, authority, database } = &self.options;
        let scheme = if authority.is_some() { "https" } else { "http" };
        let folder = self.folder.display();
        let socket = self.socket();
        let issuer = issuer.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9)));
        let database = database.as_ref().map_or_else(String::new, |Database { url, schema }| {
            format!("engine = \"postgres\"\n\n[vault.postgres]\nurl = \"{url}\"\nschema = \"{schema}\"\n")
        });
        format!(
            r#"
[vault]
path = "{folder}/vault"
identity_file = "{folder}/identity.txt"
cache = "{vault_cache}"
{database}
[socket]
path = "{}"

[http]
listen = ""

[refresh]
token_cache = "{token_cache}"
concurrency = 64

[providers.bench]
kind = "oauth2"
client_id = "{CLIENT_ID}"
token_url = "{scheme}://{issuer}/token"
max_per_minute = 1000000
"#,
            socket.display()
        )
    }
}

/// Opens the vault of a configuration.
pub(crate) fn open(config: &Config) -> Result<Vault> {
    let identity = Identity::read(&config.vault.identity_file)?;
    Ok(Vault::open(&config.vault, &identity, Metrics::new(&[]))?)
}

/// Opens the one of a configuration that is in a database.
async fn open_in_database(config: &Config, postgres: &PostgresConfig) -> Result<Vault> {
    let identity = Identity::read(&config.vault.identity_file)?;
    let clock = Arc::new(SystemClock::new());
    let store = Store::open(&Settings::of(postgres)?, &identity, &[], clock, Metrics::new(&[])).await?;
    Ok(Vault::from(store))
}

/// The id of an organization.
pub(crate) fn organization(number: u64) -> String {
    (FIRST + number).to_string()
}

/// Which one has this id.
pub(crate) fn number(organization: &str) -> Option<u64> {
    organization.parse::<u64>().ok()?.checked_sub(FIRST)
}

/// The refresh token that an organization is filled with; its number comes first, and of a one-time token how often it
/// was exchanged.
pub(crate) fn refresh_token(number: u64, usage: Usage, exchanged: u64) -> String {
    let kind = if usage == Usage::OneTime { 'o' } else { 'r' };
    format!("{kind}-{number:010}-{exchanged:010}-{:0>40}", "")
}

/// A grant and its organization.
pub(crate) fn records(vault: &Vault, number: u64, fleet: Fleet, now: Timestamp) -> [Change; 2] {
    let organization: OrganizationId = organization(number).parse().expect("digits");
    let usage = match fleet {
        Fleet::Warm => Usage::Reuse,
        Fleet::Due(usage) => usage,
    };
    let token = Secret::new(refresh_token(number, usage, 0));
    let fingerprint = vault.fingerprint(&token);
    let subject = format!("{number:036}");
    let (issued_at, expires_at) = match fleet {
        Fleet::Warm => (now, now + WARM),
        Fleet::Due(_) => (now - Duration::from_hours(2), now - Duration::from_hours(1)),
    };
    let access = AccessToken {
        token: Secret::new(access_token(&subject, 0)),
        token_type: "Bearer".to_owned(),
        scope: Some("dineropublicapi:read dineropublicapi:write offline_access".to_owned()),
        issued_at,
        expires_at,
        issued_boot: None,
    };
    let consent = Consent {
        granted_at: now - Duration::from_hours(24),
        expires_at: Some(now + Duration::from_hours(24 * 179)),
        assumed: false,
        expected: usage,
        shown: Some(usage),
        grace: Duration::ZERO,
        warned: Vec::new(),
    };
    let id: GrantId = vault.random_grant_id();
    let grant = Grant {
        id,
        provider: "bench".parse().expect("lower case"),
        credential: Credential::RefreshToken(token),
        fingerprint,
        spent: Vec::new(),
        client: None,
        access: Some(access),
        state: State::Active,
        since: now,
        paused: false,
        subject: Some(subject),
        consent: Some(consent),
        refreshed_at: Some(issued_at),
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: vec![organization.clone()],
        epoch: vault.epoch(),
    };
    let organization = Organization { id: organization, grant: id, labels: Labels::new(), added_at: now };
    [Change::PutGrant(Box::new(grant)), Change::PutOrganization(Box::new(organization))]
}
