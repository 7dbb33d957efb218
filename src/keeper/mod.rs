//! The heart: one handle, [`Keeper`], through which everything acts on grants.
//!
//! A grant lives in the vault; a slot stands for it in memory. Whatever changes a grant takes the slot's record lock, reads the grant
//! from the vault, lets [`crate::lifecycle`] decide, commits, and only then publishes the result to the slot. An
//! exchange holds that lock around its two commits, not while it waits for the issuer; the slot's flight keeps
//! every other exchange of the grant away meanwhile. Where several processes share the vault, whoever changes a grant holds
//! its claim as well (`hold`), an exchange from its first commit to its last; the others join it (`join`), and hear of what was
//! stored (`news`).
//!
//! Lock order: a lane's queue or the timers before a slot; two records in order of their grants' ids; an enrolment's
//! locks before any record. Only these, the loader's `making` and the warnings' `warning`, all of them tokio's, are held across
//! an await.

mod answer;
mod awaiting;
mod backup;
mod blocking;
mod bounded;
mod brief;
mod budget;
mod cache;
mod census;
mod circuit;
mod enrol;
mod error;
mod exchange;
mod fetch;
mod fingerprints;
mod following;
mod forecast;
mod hold;
mod index;
mod join;
mod keys;
mod lane;
mod leavings;
mod load;
mod news;
mod operate;
mod publish;
mod renew;
mod resolve;
mod run;
mod search;
mod slot;
mod store;
mod subjects;
mod swap;
mod telling;
#[cfg(test)]
mod tests;
mod timers;
mod view;
mod warnings;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use answer::{AnswerText, Served};
use arc_swap::ArcSwapOption;
pub use error::KeeperError;
pub use operate::{Enrolled, Filter, Scope};
pub use renew::{ConsentError, ConsentRequest, Consented, NewConsent};
pub use search::{Found, InvalidMark, Mark, Order, Search};
use tokio::sync::Notify;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use self::{
    bounded::{Bounded, Dating},
    cache::TokenCache,
    index::Index,
    lane::Lane,
    news::News,
    slot::Slot,
    timers::Timers,
};
use crate::{
    clock::{Now, SharedClock},
    config::{ProviderConfig, RefreshConfig},
    lifecycle::Policy,
    links::Links,
    metrics::{Census, Metrics},
    model::{Awaiting, GrantId, ProviderName},
    outbox::Outbox,
    provider::TokenEndpoint,
    vault::{Duty, Singular, Vault, VaultError},
};

/// What a keeper is made of.
#[derive(Clone)]
pub struct Parts {
    /// Where grants are stored.
    pub vault: Vault,
    /// Makes and opens consent links; `None` where `consent.public_url` is not set, and then there are none.
    pub links: Option<Links>,
    /// The vault's outbox, where what happens to them is told.
    pub outbox: Outbox,
    /// Every configured provider with its endpoint.
    pub providers: Vec<(ProviderConfig, Arc<dyn TokenEndpoint>)>,
    /// `[refresh]`
    pub refresh: RefreshConfig,
    /// Whether a consent that another has taken the place of is revoked at the issuer, where that can harm no other.
    pub revoke_old: bool,
    /// Times before a consent's end that are counted, and at which it is told.
    pub warn_before: Vec<Duration>,
    /// How many series named by organization may be shown.
    pub organization_series: usize,
    /// The time.
    pub clock: SharedClock,
    /// Where events are counted.
    pub metrics: Metrics,
    /// How many grants are kept in memory at most, where others share the vault; `None`: all of them.
    pub resident: Option<usize>,
    /// Seed of all chance in the keeper: jitter and back-off.
    pub seed: u64,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("vault", &self.vault).finish_non_exhaustive()
    }
}

/// The heart of the worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
}

/// The keeper in force: none while the worker starts or takes another configuration.
#[derive(Clone, Debug, Default)]
pub struct Current(Arc<ArcSwapOption<Keeper>>);

impl Current {
    /// The keeper in force.
    pub fn get(&self) -> Option<Arc<Keeper>> {
        self.0.load_full()
    }

    /// Asks the keeper in force for something that it has at hand.
    pub fn ask<T>(&self, what: impl FnOnce(&Keeper) -> Option<T>) -> Option<T> {
        self.0.load().as_deref().and_then(what)
    }

    /// Puts a keeper in force.
    pub fn set(&self, keeper: Option<Keeper>) {
        self.0.store(keeper.map(Arc::new));
    }
}

#[derive(Debug)]
struct Shared {
    vault: Vault,
    links: Option<Links>,
    outbox: Outbox,
    lanes: Vec<Lane>,
    /// Which lane serves a provider, by name.
    lane_of: BTreeMap<ProviderName, u16>,
    refresh: RefreshConfig,
    warn_before: Vec<Duration>,
    organization_series: usize,
    clock: SharedClock,
    metrics: Metrics,
    chance: Mutex<fastrand::Rng>,
    index: Index,
    /// Where only some grants are in memory: how the others are found.
    bounded: Option<Bounded>,
    timers: Timers,
    news: News,
    cache: TokenCache,
    loaded: AtomicBool,
    /// Why the vault could not be read whole, if it could not.
    load_failure: OnceLock<String>,
    /// Held while a slot is made whose grant must be written first.
    making: tokio::sync::Mutex<()>,
    enrolling: Vec<tokio::sync::Mutex<()>>,
    /// Consents that have not taken their place, by grant; as stored.
    awaiting: Mutex<BTreeMap<GrantId, Awaiting>>,
    revoke_old: bool,
    /// What one worker's sweep tells and clears away for all.
    sweeping: Duty,
    /// A circuit has changed, and other workers are to hear of it.
    circuits_changed: Notify,
    /// Held by the one pass that looks whom to warn.
    warning: tokio::sync::Mutex<()>,
    started: Now,
    census: Mutex<Option<(Duration, Arc<Census>)>>,
    /// New work is taken until this is cancelled.
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Keeper {
    /// A keeper whose loops run until `stopping` is cancelled; its tasks, exchanges among them, are counted in
    /// `tasks`, so that shutdown can wait for them. Loading the vault goes on in the background.
    pub fn start(parts: Parts, stopping: CancellationToken, tasks: TaskTracker) -> Self {
        let Parts {
            vault,
            outbox,
            links,
            providers,
            refresh,
            revoke_old,
            warn_before,
            organization_series,
            clock,
            metrics,
            resident,
            seed,
        } = parts;
        let policy = |config: &ProviderConfig| Policy {
            refresh_at: refresh.at,
            keep_warm: refresh.keep_warm,
            timeout: refresh.timeout,
            idle_lifetime: config.idle_lifetime,
            in_doubt: config.in_doubt,
        };
        let policies = providers.iter().map(|(config, _)| (config.name.clone(), policy(config)));
        let chance = fastrand::Rng::with_seed(seed);
        let dating = Arc::new(Dating::new(policies.collect(), warn_before.clone(), clock.clone(), chance));
        dating.tell(&vault);
        let bounded = vault.sharing().zip(resident).map(|(store, most)| Bounded::new(store, most, dating));
        let lanes: Vec<Lane> = providers
            .into_iter()
            .map(|(config, endpoint)| {
                let policy = policy(&config);
                let shared = vault.sharing().map(|store| (store.lane(&config.name), store));
                let probing =
                    shared.as_ref().map_or(Duty::always(), |(lane, _)| vault.duty(Singular::Probe(*lane), &clock));
                let budget = budget::Budget::new(config.max_per_minute, shared, clock.clone());
                let order = vault.is_shared().then_some(seed);
                Lane::new(config, policy, endpoint, budget, probing, refresh.concurrency, order)
            })
            .collect();
        let lane_of = (0u16..).zip(&lanes).map(|(number, lane)| (lane.name.clone(), number)).collect();
        let news = News::new(vault.news_interval());
        let shared = Arc::new(Shared {
            sweeping: vault.duty(Singular::Sweep, &clock),
            circuits_changed: Notify::new(),
            vault,
            links,
            outbox,
            lanes,
            lane_of,
            cache: TokenCache::new(refresh.token_cache_bytes),
            refresh,
            warn_before,
            organization_series,
            started: clock.now(),
            clock,
            metrics,
            chance: Mutex::new(fastrand::Rng::with_seed(seed)),
            index: Index::new(),
            bounded,
            timers: Timers::default(),
            news,
            loaded: AtomicBool::new(false),
            load_failure: OnceLock::new(),
            making: tokio::sync::Mutex::new(()),
            awaiting: Mutex::default(),
            revoke_old,
            enrolling: (0..enrol::LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
            warning: tokio::sync::Mutex::new(()),
            census: Mutex::default(),
            stopping,
            tasks,
        });
        shared.remember_failing();
        run::start(&shared);
        Self { shared }
    }

    /// Stops taking work and waits until every exchange and every change under way has ended and is stored.
    pub async fn drain(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.lanes.iter().for_each(Lane::let_go);
    }

    /// Where what happens is told.
    pub fn outbox(&self) -> Outbox {
        self.shared.outbox.clone()
    }

    /// How many grants are in memory.
    pub fn resident(&self) -> usize {
        self.shared.index.slot_count()
    }

    /// Whether links can be made by which people give consent: the world can reach the pages.
    pub fn makes_links(&self) -> bool {
        self.shared.links.is_some()
    }

    /// Whether the index is complete, the vault takes records, and what others write into it is known here.
    pub fn is_ready(&self) -> bool {
        let shared = &self.shared;
        shared.is_loaded() && shared.vault.poisoned().is_none() && shared.news.is_fresh(shared.now())
    }
}

impl Keeper {
    /// Whether nothing but a restart of the worker helps, and would: the vault takes no more writes since one failed, and
    /// its disk takes them again. While the disk still refuses, a worker that serves what lives is better than one that
    /// cannot start. Waits for a write to the disk, but only where an earlier one has failed.
    pub async fn wants_restart(&self) -> bool {
        let vault = self.shared.vault.clone();
        vault.poisoned().is_some() && blocking::blocking(move || vault.wants_reopening()).await.unwrap_or(true)
    }
}

impl Shared {
    fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Admits one change: the keeper is not drained before the token is dropped.
    fn admit(&self) -> Result<TaskTrackerToken, KeeperError> {
        let token = self.tasks.token();
        if self.stopping.is_cancelled() || !self.is_loaded() { Err(KeeperError::Starting) } else { Ok(token) }
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    fn chance(&self) -> f64 {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner).f64()
    }

    fn lane(&self, slot: &Slot) -> &Lane {
        &self.lanes[usize::from(slot.provider)]
    }

    fn vault_failed(&self, error: &VaultError) -> KeeperError {
        match error {
            VaultError::Held | VaultError::Fenced | VaultError::Conflict => {
                tracing::info!(error = %error, "a change has to be tried again");
            }
            // Said once by who follows the news.
            VaultError::Away { .. } => tracing::debug!(error = %error, "the vault is away"),
            _ => tracing::error!(error = %error, "the vault failed"),
        }
        if let Some(reason) = self.vault.poisoned() {
            self.outbox.vault_failing(&reason);
        }
        KeeperError::VaultUnavailable(error.to_string())
    }
}
