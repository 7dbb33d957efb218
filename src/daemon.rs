//! The composition root: the one function that builds a worker, for production, demo and tests alike.
//!
//! The order of things: configuration, sockets, vault, keeper, listeners. The socket is there before the vault is
//! open, and answers `starting` until then. At the end the same way back: callers first, then exchanges, then the
//! vault.

mod database;
mod parts;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::parts::{Providers, access, figures_of, keep, offer, providers};
use crate::{
    api::{self, Api, ApiServer},
    clock::{SharedClock, SystemClock},
    config::{Config, ConfigError, Located},
    consent::{self, Pages},
    cron::{BackupSchedule, Cron, CronError, DigestSchedule},
    hardening,
    http::{self, Inside, board::Board},
    keeper::Current,
    metrics::Metrics,
    model::ProviderName,
    notice::{self, Notice, ReceiverProblem, Receivers},
    outbox::Outbox,
    provider::SetupError,
    serve::OwnThread,
    shutdown::{Request, Signals},
    task,
    vault::{Identity, Singular, Vault, VaultError, recipients_differ},
};

/// systemd's watchdog is told so often within its time limit: one that is late by a moment must not end the worker.
const WATCHDOG_SHARE: u32 = 3;
/// And at least so often, since a sleep over a minute is late where a machine was suspended.
const WATCHDOG_LONGEST: Duration = Duration::from_secs(30);
/// The name of the thread that answers the socket's callers.
const CALLERS_THREAD: &str = "callers";
/// How long exchanges under way may take to end when the worker stops, beyond their own time limit.
const DRAIN: Duration = Duration::from_secs(20);

/// Why a worker could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A provider cannot be set up.
    #[error(transparent)]
    Provider(#[from] SetupError),
    /// A webhook cannot be delivered to.
    #[error(transparent)]
    Webhook(#[from] ReceiverProblem),
    /// The vault cannot be opened or closed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The Unix socket cannot be made.
    #[error(transparent)]
    Socket(#[from] api::BindError),
    /// The HTTP listener cannot be made.
    #[error(transparent)]
    Http(#[from] http::BindError),
    /// The listener of the consent pages cannot be made.
    #[error(transparent)]
    Consent(#[from] consent::BindError),
    /// There can be no board.
    #[error(transparent)]
    Board(#[from] http::board::NoChance),
    /// The sweep's schedule makes no sense.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// The thread that answers callers cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The process cannot take its signals.
    #[error("cannot take over the process's signals: {0}")]
    Signals(std::io::Error),
    /// An exchange does not end, so that no other configuration can be put in force beside it.
    #[error("an exchange under way did not end; the worker has to be started anew to take another configuration")]
    Undrained,
    /// A task that opened or closed the vault died.
    #[error("opening or closing the vault died; this is a fault of the worker")]
    Died,
}

/// A worker that runs in this process.
#[derive(Debug)]
pub struct Running {
    /// Where metrics and health are served, with the port that was really bound.
    pub http: Option<SocketAddr>,
    /// Where people give consent, with the port that was really bound.
    pub consent: Option<SocketAddr>,
    current: Current,
    behind: Behind,
    api: Api,
    pages: Pages,
    metrics: Metrics,
    clock: SharedClock,
    config: Mutex<Config>,
    serving: TaskTracker,
    stop_serving: CancellationToken,
}

/// What is there once the vault is open.
#[derive(Debug)]
struct Behind {
    vault: Vault,
    outbox: Outbox,
    notice: Notice,
    cron: Cron,
    backups: Option<BackupSchedule>,
    digests: Option<DigestSchedule>,
}

/// Binds the sockets, opens the vault and starts every task; returns when the vault is open. It is loaded in the
/// background.
pub async fn start(config: Config) -> Result<Running, DaemonError> {
    start_with(config, Arc::new(SystemClock::new())).await
}

/// As [`start`], with a clock that somebody else may move.
pub async fn start_with(config: Config, clock: SharedClock) -> Result<Running, DaemonError> {
    let names: Vec<ProviderName> = config.providers.keys().cloned().collect();
    let metrics = Metrics::new(&names);
    metrics.configure(&names, &config.consent.warn_before);
    let providers = providers(&config, &clock)?;
    let receivers = Receivers::open(&config.webhooks, &clock)?;

    // Callers of tokens that live are answered by a thread that does nothing else: they do not wait while exchanges have their turns.
    let callers = OwnThread::new().map_err(DaemonError::Thread)?;
    let socket = {
        let _its_own = callers.enter();
        ApiServer::bind(&config.socket)?
    };
    let listener = match config.http_listen {
        Some(addr) => Some(http::bind(addr).await?),
        None => None,
    };
    let http = listener.as_ref().map(http::Bound::addr);
    let public = match config.consent.listen {
        Some(addr) => Some(consent::bind(addr).await?),
        None => None,
    };
    let consent = public.as_ref().map(consent::Bound::addr);

    let current = Current::default();
    let api = Api::new(current.clone(), access(&config), metrics.clone(), clock.clone());
    let (serving, stop_serving) = (TaskTracker::new(), CancellationToken::new());
    let answering = socket.serve(api.clone(), tokio::runtime::Handle::current(), stop_serving.clone());
    serving.spawn(task::boxed(callers.run(CALLERS_THREAD, answering).map_err(DaemonError::Thread)?));
    let opened: Arc<Mutex<Option<Vault>>> = Arc::default();
    if let Some(listener) = listener {
        let figures = Arc::clone(&opened);
        let board = Board::of(&config.board, current.clone(), clock.clone())?;
        if let Some(board) = &board
            && let Err(error) = board.check().await
        {
            tracing::error!(%error, "nobody can look at the board until that is mended");
        }
        let inside = Inside {
            keeper: current.clone(),
            metrics: metrics.clone(),
            vault: Arc::new(move || figures.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(figures_of)),
            board,
        };
        serving.spawn(task::boxed(listener.serve(inside, stop_serving.clone())));
    }
    let pages = Pages::new(current.clone(), clock.clone(), metrics.clone());
    if let Some(public) = public {
        serving.spawn(task::boxed(public.serve(pages.clone(), stop_serving.clone())));
    }
    serving.close();

    match begin(&config, &providers, receivers, (&current, &pages), &metrics, &clock).await {
        Ok(behind) => {
            *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(behind.vault.clone());
            let config = Mutex::new(config);
            Ok(Running { http, consent, current, behind, api, pages, metrics, clock, config, serving, stop_serving })
        }
        Err(error) => {
            stop_serving.cancel();
            serving.wait().await;
            Err(error)
        }
    }
}

/// What comes after the sockets: vault, cron, webhooks, keeper.
async fn begin(
    config: &Config,
    providers: &Providers,
    receivers: Receivers,
    (current, pages): (&Current, &Pages),
    metrics: &Metrics,
    clock: &SharedClock,
) -> Result<Behind, DaemonError> {
    let (vault_config, vault_metrics, outbox_clock) = (config.vault.clone(), metrics.clone(), clock.clone());
    let here = tokio::runtime::Handle::current();
    let open = task::spawn_blocking(move || {
        let identity = Identity::read(&vault_config.identity_file)?;
        if identity.permissions_too_open() {
            tracing::warn!(file = %vault_config.identity_file.display(), "others than its owner may read the identity; set its mode to 0600");
        }
        let vault = match &vault_config.postgres {
            None => Vault::open(&vault_config, &identity, vault_metrics.clone())?,
            Some(postgres) => {
                let recipients = &vault_config.recipients;
                task::block_on(&here, database::open(postgres, recipients, &identity, &vault_metrics, &outbox_clock))?
            }
        };
        for difference in recipients_differ(&vault_config.recipients, &vault.recipients()?) {
            tracing::warn!(%difference, remedy = difference.remedy(), "vault.recipients and those who can open the vault differ");
        }
        let outbox = task::block_on(&here, Outbox::open(&vault, outbox_clock, vault_metrics));
        Ok::<_, VaultError>((vault, outbox))
    });
    let (vault, outbox) = open.await.map_err(|_| DaemonError::Died)??;
    let backups = BackupSchedule::of(config, &vault, clock, metrics);
    let counted = current.clone();
    let here = tokio::runtime::Handle::current();
    let count = Arc::new(move || task::block_on(&here, counted.get()?.outlook()));
    let digests = DigestSchedule::of(&config.schedule, &outbox, clock, count, vault.duty(Singular::Digest, clock));
    let swept = current.clone();
    let (upkeep, backed_up, digested) = (metrics.clone(), backups.clone(), digests.clone());
    let sweep = move || {
        if let Some(keeper) = swept.get() {
            keeper.sweep();
        }
        if let Some(backups) = &backed_up {
            backups.wake();
        }
        if let Some(digests) = &digested {
            digests.wake();
        }
        upkeep.upkeep();
    };
    let cron = match Cron::start(&config.schedule.sweep, sweep).await {
        Ok(cron) => cron,
        Err(error) => {
            close(vault).await?;
            return Err(error.into());
        }
    };
    // Before the keeper, which may have something to tell at once.
    let duty = vault.duty(Singular::Deliveries, clock);
    let parts = notice::Parts { outbox: outbox.clone(), clock: clock.clone(), metrics: metrics.clone(), duty };
    let notice = Notice::start(receivers, parts);
    // Before the keeper, too: as soon as it can make links they lead somewhere.
    pages.set(offer(config, providers, &vault));
    current.set(Some(keep(config, providers, (&vault, &outbox), metrics, clock)));
    if let Some(backups) = &backups {
        // One may have been missed while nothing ran.
        backups.wake();
    }
    Ok(Behind { vault, outbox, notice, cron, backups, digests })
}

async fn close(vault: Vault) -> Result<(), DaemonError> {
    let closed = task::spawn_blocking(move || vault.close()).await;
    Ok(closed.map_err(|_| DaemonError::Died)??)
}

impl Running {
    /// Stops softly: callers are answered and sent away, exchanges under way finish and are stored, so do webhooks under way,
    /// and the vault is closed. What does not end within its time limit is left: the vault's journal holds what it needs.
    pub async fn stop(self) -> Result<(), DaemonError> {
        self.behind.cron.stop().await;
        if let Some(backups) = &self.behind.backups {
            backups.stop().await;
        }
        if let Some(digests) = &self.behind.digests {
            digests.stop().await;
        }
        self.stop_serving.cancel();
        self.serving.wait().await;
        let draining = async {
            let Some(keeper) = self.current.get() else { return };
            let patience = drain_limit(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
            if tokio::time::timeout(patience, keeper.drain()).await.is_err() {
                tracing::warn!("an exchange did not end in time; its grant is looked at when the worker starts again");
            }
        };
        tokio::join!(draining, self.behind.notice.stop());
        self.current.set(None);
        close(self.behind.vault).await
    }

    /// Puts another configuration in force: access rules at once; webhooks when deliveries under way have ended; providers and refresh settings by a new keeper on
    /// the same vault, after the old one's exchanges have ended. Until then living tokens are served, and whoever wants
    /// more is told `starting`.
    ///
    /// An exchange that does not end in time is [`DaemonError::Undrained`], after which only a restart helps.
    ///
    /// What needs a restart (`[vault]`, `[socket]`, the listeners, `[log]`, `[schedule]`) is named in the log and stays as it was.
    pub async fn reload(&self, config: Config) -> Result<(), DaemonError> {
        let providers = providers(&config, &self.clock)?;
        let receivers = Receivers::open(&config.webhooks, &self.clock)?;
        let before = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for key in needs_restart(&before, &config) {
            tracing::warn!(key, "changed, but only a restart puts it in force");
        }
        self.api.set_access(access(&config));
        // The old keeper serves living tokens until the new one is there, and takes no other work any more.
        let draining = async {
            match self.current.get() {
                Some(keeper) => tokio::time::timeout(drain_limit(&before), keeper.drain()).await,
                None => Ok(()),
            }
        };
        let (drained, ()) = tokio::join!(draining, self.behind.notice.replace(receivers));
        drained.map_err(|_| DaemonError::Undrained)?;
        let names: Vec<ProviderName> = config.providers.keys().cloned().collect();
        self.metrics.configure(&names, &config.consent.warn_before);
        self.current.set(Some(keep(
            &config,
            &providers,
            (&self.behind.vault, &self.behind.outbox),
            &self.metrics,
            &self.clock,
        )));
        self.pages.set(offer(&config, &providers, &self.behind.vault));
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Waits for ever, unless the vault turns out not to hold what it should: it was opened after a crash, and nothing but
    /// access tokens was given out since. Then the worker has to end, as one does that cannot open its vault.
    pub async fn refuted(&self) -> VaultError {
        match self.behind.vault.judged().await {
            Err(error) if error.is_damaged() => error,
            _ => std::future::pending().await,
        }
    }

    /// Whether the vault is open and loaded.
    pub fn is_ready(&self) -> bool {
        self.current.get().is_some_and(|keeper| keeper.is_ready())
    }
}

/// How long the exchanges under way may take to end.
fn drain_limit(config: &Config) -> Duration {
    config.refresh.timeout + DRAIN
}

fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let pairs = [
        ("vault", format!("{:?}", before.vault), format!("{:?}", after.vault)),
        ("socket", format!("{:?}", before.socket), format!("{:?}", after.socket)),
        ("http.listen", format!("{:?}", before.http_listen), format!("{:?}", after.http_listen)),
        ("http.board", format!("{:?}", before.board), format!("{:?}", after.board)),
        ("consent.listen", format!("{:?}", before.consent.listen), format!("{:?}", after.consent.listen)),
        ("log", format!("{:?}", before.log), format!("{:?}", after.log)),
        ("schedule", format!("{:?}", before.schedule), format!("{:?}", after.schedule)),
    ];
    pairs.into_iter().filter(|(_, before, after)| before != after).map(|(key, _, _)| key).collect()
}

/// `consentry run`: a worker in the foreground until SIGTERM or SIGINT; SIGHUP re-reads configuration and secrets.
pub async fn run(located: Located) -> Result<(), DaemonError> {
    let mut signals = Signals::take().map_err(DaemonError::Signals)?;
    hardening::private_files();
    let config = Config::load(&located)?;
    for remark in config.remarks() {
        tracing::warn!("{remark}");
    }
    let socket: PathBuf = config.socket.path.clone();
    let running = start(config).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %socket.display(),
        http = running.http.map(|addr| addr.to_string()).unwrap_or_default(),
        consent = running.consent.map(|addr| addr.to_string()).unwrap_or_default(),
        "consentry is running"
    );
    notify(&[sd_notify::NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        task::spawn(watchdog(running.current.clone(), limit));
    }
    loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Reload => {}
                Request::Stop => break,
            },
            error = running.refuted() => return Err(error.into()),
        }
        let reloaded = match Config::load(&located) {
            Ok(config) => running.reload(config).await,
            Err(error) => Err(error.into()),
        };
        match reloaded {
            Ok(()) => tracing::info!("configuration and secrets were read again"),
            // Two keepers must never be at work on one vault. The journal holds what a start needs.
            Err(error @ DaemonError::Undrained) => {
                tracing::error!(%error, "the worker ends");
                return Err(error);
            }
            Err(error) => tracing::error!(%error, "the new configuration is not used; the old one stays in force"),
        }
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping: exchanges under way are finished first; a second signal stops at once");
    tokio::select! {
        stopped = running.stop() => {
            tracing::info!("stopped");
            stopped
        }
        _ = signals.next() => {
            tracing::warn!("stopped at once; the journal holds what the vault needs");
            Ok(())
        }
    }
}

/// Tells systemd's watchdog that the worker lives, until the process ends: not where only a restart helps, which is what
/// systemd then does. A worker whose threads are all stuck tells nothing either.
async fn watchdog(current: Current, limit: Duration) {
    let mut turns = tokio::time::interval((limit / WATCHDOG_SHARE).clamp(Duration::from_millis(1), WATCHDOG_LONGEST));
    loop {
        turns.tick().await;
        let stuck = match current.get() {
            Some(keeper) => keeper.wants_restart().await,
            None => false,
        };
        if !stuck {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// Tells systemd, where it listens.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
