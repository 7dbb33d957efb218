//! Connections: how they are made, kept in a pool, and listened to for warnings.

use std::{
    fs::File,
    future::poll_fn,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio_postgres::{
    AsyncMessage, Client, Config,
    config::{Host, SslMode, TargetSessionAttrs},
    error::{Severity, SqlState},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use zeroize::Zeroizing;

use super::error::{PostgresError, words};
use crate::{
    config::PostgresConfig,
    model::Secret,
    task::{self, Task},
};

/// The largest file that holds a URL, in bytes.
const MAX_URL_FILE: u64 = 16 * 1024;
/// How long connecting to one server may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a server may leave sent bytes unacknowledged. Together with the keep-alives this is what ends a connection to a machine
/// that is gone, and the only thing that ends the wait for a commit.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVES: u32 = 3;
/// As what the connection that listens is shown by the server.
const LISTENER: &str = "consentry listener";

/// `[vault.postgres]`
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the database is: `postgresql://user:password@host,host/database`. Every server may be named: the one that
    /// takes writes is looked for.
    pub url: Secret,
    /// The file that the URL is from, which is read again when the server refuses the password.
    pub url_file: Option<PathBuf>,
    /// Certificate authorities that sign servers' certificates, in PEM, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How many commits are under way at once, each on a connection of its own. There are three connections more, for claims and for
    /// reading.
    pub pool_size: u16,
    /// How long anything but a commit may take.
    pub statement_timeout: Duration,
    /// The schema in which everything is kept.
    pub schema: String,
    /// Whether a database is taken that may lose what it confirmed.
    pub allow_asynchronous: bool,
    /// How long a claim lasts, at most [`LONGEST_LEASE`](super::LONGEST_LEASE): when its process dies, others wait for so long.
    pub lease: Duration,
    /// How often it is to be asked what other processes have written.
    pub poll: Duration,
    /// Where it is listened for hints that others have written, past any pooler; what it leaves out (user, password, database) is as in
    /// the URL. `None`: nobody listens, and no hints are given.
    pub listen_url: Option<Secret>,
}

impl Settings {
    /// Those that are configured; reads the file that says where the database is.
    pub fn of(config: &PostgresConfig) -> Result<Self, PostgresError> {
        let url = match (&config.url, &config.url_file) {
            (Some(url), _) => Secret::new(url.as_str()),
            (None, Some(file)) => read_url(file)?,
            (None, None) => return Err(PostgresError::Settings("neither url nor url_file is given".to_owned())),
        };
        Ok(Self {
            url,
            url_file: config.url_file.clone(),
            ca_file: config.ca_file.clone(),
            pool_size: config.pool_size,
            statement_timeout: config.statement_timeout,
            schema: config.schema.clone(),
            allow_asynchronous: config.allow_asynchronous,
            lease: config.lease,
            poll: config.poll,
            listen_url: config.listen_url.as_deref().map(Secret::new),
        })
    }
}

/// The first line of a file that is not blank.
fn read_url(file: &Path) -> Result<Secret, PostgresError> {
    let wrong = |why: &str| PostgresError::Settings(format!("url_file {}: {why}", file.display()));
    let mut text = Zeroizing::new(String::new());
    let opened = File::open(file).map_err(|error| wrong(&error.to_string()))?;
    opened.take(MAX_URL_FILE).read_to_string(&mut text).map_err(|error| wrong(&error.to_string()))?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map(Secret::new).ok_or_else(|| wrong("it is empty; write postgresql://USER:PASSWORD@HOST/DATABASE into it"))
}

/// Connections that nobody uses at the moment.
pub(super) type Pool = managed::Pool<Maker>;
/// One of them, given back when it is dropped.
pub(super) type Pooled = Object<Maker>;

/// Makes connections.
pub(super) struct Maker {
    config: Mutex<Config>,
    /// Where the URL is read anew.
    file: Option<PathBuf>,
    tls: MakeRustlsConnect,
}

/// A connection, and how often the server has warned on it.
pub(super) struct Connection {
    pub(super) client: Client,
    warnings: Arc<AtomicU64>,
}

impl Connection {
    /// How often the server has warned. It has counted every warning that was sent before the end of a statement when that statement
    /// is over.
    pub(super) fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Acquire)
    }
}

impl Maker {
    pub(super) fn new(settings: &Settings) -> Result<Self, PostgresError> {
        let (config, file) = (Mutex::new(config(&settings.url)?), settings.url_file.clone());
        Ok(Self { config, file, tls: MakeRustlsConnect::new(tls(settings.ca_file.as_deref())?) })
    }

    fn config(&self) -> Config {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connects to where it can be listened, and listens on that channel until the connection ends, which the task's end tells. It ends when
    /// the client is dropped.
    pub(super) async fn listen(
        &self,
        url: &Secret,
        channel: &str,
        mut heard: impl FnMut(&str) + Send + 'static,
    ) -> Result<(Client, Task<()>), PostgresError> {
        let config = listening(config(url)?, &self.config());
        let connected = config.connect(self.tls.clone()).await;
        let (client, mut connection) = connected.map_err(|error| PostgresError::Away(words(&error)))?;
        let hearing = task::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message {
                    heard(notification.payload());
                }
            }
        });
        let listening = client.batch_execute(&format!("LISTEN \"{channel}\"")).await;
        listening.map_err(|error| PostgresError::of(&error))?;
        Ok((client, hearing))
    }

    /// Reads the URL anew, where it is in a file that can be used.
    fn read_again(&self) -> Option<Config> {
        let read = read_url(self.file.as_deref()?).and_then(|url| config(&url));
        let read = read.inspect_err(|error| tracing::warn!(%error, "the database refuses the password")).ok()?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = read.clone();
        Some(read)
    }
}

impl managed::Manager for Maker {
    type Type = Connection;
    type Error = PostgresError;

    async fn create(&self) -> Result<Connection, PostgresError> {
        let mut connected = self.config().connect(self.tls.clone()).await;
        if connected.as_ref().is_err_and(refuses_the_role)
            && let Some(config) = self.read_again()
        {
            connected = config.connect(self.tls.clone()).await;
        }
        let (client, mut connection) = connected.map_err(|error| PostgresError::Away(words(&error)))?;
        let warnings = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&warnings);
        task::spawn(async move {
            // Ends with the connection, whose error whoever waits for an answer is told.
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message
                    && is_warning(notice.parsed_severity())
                {
                    heard.fetch_add(1, Ordering::Release);
                    tracing::warn!(code = notice.code().code(), warning = notice.message(), "the database warns");
                }
            }
        });
        Ok(Connection { client, warnings })
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<PostgresError> {
        if connection.client.is_closed() { Err(RecycleError::message("it was closed")) } else { Ok(()) }
    }
}

/// The way to where it is listened: what that URL leaves out is as on the way to the database.
fn listening(mut config: Config, main: &Config) -> Config {
    if config.get_user().is_none()
        && let Some(user) = main.get_user()
    {
        config.user(user);
    }
    if config.get_password().is_none()
        && let Some(password) = main.get_password()
    {
        config.password(password);
    }
    if config.get_dbname().is_none()
        && let Some(database) = main.get_dbname()
    {
        config.dbname(database);
    }
    config.application_name(LISTENER);
    config
}

/// Whether the server does not let the role in, which a new password may change.
fn refuses_the_role(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION))
}

/// What may be a warning, where the server does not say what it is.
fn is_warning(severity: Option<Severity>) -> bool {
    !matches!(severity, Some(Severity::Notice | Severity::Debug | Severity::Info | Severity::Log))
}

/// Takes a connection from the pool, or makes one.
pub(super) async fn take(pool: &Pool) -> Result<Pooled, PostgresError> {
    // Connecting is large, and rare: not to be a part of every future that asks for something.
    Box::pin(pool.get()).await.map_err(|error| match error {
        PoolError::Backend(error) => error,
        PoolError::Timeout(_) => PostgresError::Slow,
        other => PostgresError::Away(other.to_string()),
    })
}

/// The URL as it is used: always the primary, always encrypted but on this machine.
fn config(url: &Secret) -> Result<Config, PostgresError> {
    // The parser's own words are left out, since they may quote what it could not read.
    let not_understood = |_| {
        PostgresError::Settings(
            "the URL is not understood; it is \
        postgresql://USER:PASSWORD@HOST,HOST/DATABASE, with special characters percent-encoded"
                .to_owned(),
        )
    };
    let mut config: Config = url.expose().parse().map_err(not_understood)?;
    if config.get_hosts().is_empty() {
        return Err(PostgresError::Settings("the URL names no host".to_owned()));
    }
    if let Some(host) = config.get_hosts().iter().find_map(far) {
        if config.get_ssl_mode() == SslMode::Disable {
            return Err(PostgresError::Settings(format!(
                "the way to {host} must be encrypted; take `sslmode` out of the URL"
            )));
        }
        config.ssl_mode(SslMode::Require);
    }
    config
        .target_session_attrs(TargetSessionAttrs::ReadWrite)
        .application_name("consentry")
        .connect_timeout(CONNECT)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .keepalives(true)
        .keepalives_idle(KEEPALIVE_AFTER)
        .keepalives_interval(KEEPALIVE_EVERY)
        .keepalives_retries(KEEPALIVES);
    Ok(config)
}

/// The host's name, unless it is this machine.
fn far(host: &Host) -> Option<&str> {
    match host {
        Host::Tcp(name) if name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) => {
            None
        }
        Host::Tcp(name) => Some(name),
        Host::Unix(_) => None,
    }
}

/// Servers' certificates are verified, with their names, against the authorities of that file, or the machine's.
fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, PostgresError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let wrong = |why: String| PostgresError::Settings(format!("ca_file {}: {why}", path.display()));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(wrong("it holds no certificate".to_owned()));
        }
    } else {
        let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if usable == 0 {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| PostgresError::Settings(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> Result<SslMode, PostgresError> {
        config(&Secret::new(url)).map(|config| config.get_ssl_mode())
    }

    #[test]
    fn what_leaves_this_machine_is_encrypted_whatever_the_url_says() {
        assert_eq!(mode("postgresql://a@db.example.com/v"), Ok(SslMode::Require));
        assert_eq!(mode("postgresql://a@db.example.com/v?sslmode=prefer"), Ok(SslMode::Require));
        assert_eq!(mode("postgresql://a@localhost,10.0.0.1/v"), Ok(SslMode::Require), "one of them is elsewhere");
        assert!(matches!(mode("postgresql://a@db.example.com/v?sslmode=disable"), Err(PostgresError::Settings(_))));
        assert_eq!(mode("postgresql://a@127.0.0.1/v?sslmode=disable"), Ok(SslMode::Disable));
        assert_eq!(mode("postgresql://a@%2Frun%2Fpostgresql/v"), Ok(SslMode::Prefer));
    }

    #[test]
    fn who_listens_has_the_password_of_the_database_unless_it_has_one_of_its_own() {
        let main = config(&Secret::new("postgresql://a:first@pooler/v")).unwrap();
        let listening = |url: &str| listening(config(&Secret::new(url)).unwrap(), &main);
        let given = listening("postgresql://db-1,db-2");
        let parts = (given.get_user(), given.get_password(), given.get_dbname());
        assert_eq!(parts, (Some("a"), Some(&b"first"[..]), Some("v")));
        assert_eq!((given.get_hosts().len(), given.get_ssl_mode()), (2, SslMode::Require));
        let own = listening("postgresql://b@db-1/w");
        assert_eq!((own.get_user(), own.get_dbname()), (Some("b"), Some("w")));
    }

    #[test]
    fn only_a_server_that_takes_writes_is_connected_to() {
        let config = config(&Secret::new("postgresql://a@localhost/v?target_session_attrs=any")).unwrap();
        assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_quoting_it() {
        for url in ["postgresql://a:hush@h:port/v", "hush", "postgresql://a:hush@h/v?sslmode=hush"] {
            let error = config(&Secret::new(url)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn a_url_is_read_from_its_file_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        assert!(read_url(&file).is_err());
        std::fs::write(&file, "\n").unwrap();
        assert!(read_url(&file).unwrap_err().to_string().contains("empty"));
        std::fs::write(&file, "\npostgresql://a:first@localhost/v\n").unwrap();
        let url = read_url(&file).unwrap();
        let settings = Settings {
            url,
            url_file: Some(file.clone()),
            ca_file: None,
            pool_size: 1,
            statement_timeout: Duration::from_secs(1),
            schema: "s".to_owned(),
            allow_asynchronous: false,
            lease: Duration::from_secs(30),
            poll: Duration::from_secs(1),
            listen_url: None,
        };
        let maker = Maker::new(&settings).unwrap();
        std::fs::write(&file, "postgresql://a:second@localhost/v").unwrap();
        assert_eq!(maker.read_again().unwrap().get_password(), Some(&b"second"[..]));
        assert_eq!(maker.config().get_password(), Some(&b"second"[..]));
        std::fs::write(&file, "nonsense").unwrap();
        assert!(maker.read_again().is_none());
        assert_eq!(maker.config().get_password(), Some(&b"second"[..]), "what was good stays");
    }

    #[test]
    fn a_file_that_holds_no_authority_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(tls(Some(file.path())), Err(PostgresError::Settings(_))));
    }
}
