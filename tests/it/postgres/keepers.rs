//! Several keepers on one vault, and an issuer of one-time tokens that knows of every exchange.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use consentry::{
    clock::{Clock as _, SharedClock, SystemClock},
    config::{ClientAuth, InDoubtPolicy, KeepWarm, Kind, ProviderConfig, RefreshConfig},
    keeper::{Keeper, KeeperError, Parts, Served},
    metrics::Metrics,
    model::{
        Answer, ClientCredentials, Credential, Event, EventKind, ExchangeOutcome, GrantId, OrganizationId, Secret,
        Timestamp, Usage,
    },
    outbox::{Outbox, TOLD_KEPT},
    provider::{BoxFuture, Exchange, ProviderError, Redemption, TokenEndpoint},
    vault::{
        Change, Identity, Singular, Vault,
        postgres::{Settings, Store},
    },
    wire::Enrolment,
};
use rstest::rstest;
use tokio::{runtime::Runtime, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    cluster::{Cluster, is_installed},
    settings,
};
use crate::harness::eventually;

/// How long an access token lives.
pub(super) const LIFE: Duration = Duration::from_secs(6);
/// No grant is exchanged again before so much of it is over: the keepers' share, less what chance may take from it.
const NOT_BEFORE: f64 = 0.6;
/// How many organizations each of which has a token of its own.
pub(super) const ORGANIZATIONS: usize = 12;
/// How often each is refreshed before a test ends.
const ROUNDS: u32 = 2;

/// How long one lives that does not lapse while a test looks on.
pub(super) const LONG_LIFE: Duration = Duration::from_mins(10);
/// A lease that is over soon after its keeper died.
const SHORT_LEASE: Duration = Duration::from_secs(2);

/// Knows which refresh token of each family lives, and notes what must not be.
pub(super) struct Issuer {
    /// How long the access tokens live that it gives.
    life: Duration,
    families: Mutex<HashMap<String, Family>>,
    wrong: Mutex<Vec<String>>,
    exchanges: AtomicU32,
    /// It does not know its client any more.
    pub(super) refuses: AtomicBool,
    /// While it is there, every answer takes one of its permits.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

#[derive(Default)]
pub(super) struct Family {
    /// Which token of the family lives: the last that was given.
    number: u32,
    given: Option<Instant>,
    under_way: bool,
    pub(super) rounds: u32,
}

impl Issuer {
    fn new(life: Duration) -> Self {
        Self {
            life,
            families: Mutex::default(),
            wrong: Mutex::default(),
            exchanges: AtomicU32::new(0),
            refuses: AtomicBool::new(false),
            gate: Mutex::default(),
        }
    }

    pub(super) fn families(&self) -> MutexGuard<'_, HashMap<String, Family>> {
        self.families.lock().expect("whole")
    }

    fn is_wrong(&self, what: String) {
        self.wrong.lock().expect("whole").push(what);
    }

    /// The family and number of a token.
    fn read(token: &str) -> (String, u32) {
        let (family, number) = token.rsplit_once('.').expect("a token of this issuer");
        (family.to_owned(), number.parse().expect("a number"))
    }

    fn begins(&self, token: &str) {
        self.exchanges.fetch_add(1, Ordering::SeqCst);
        let (name, number) = Self::read(token);
        let mut families = self.families();
        let family = families.entry(name.clone()).or_default();
        if family.under_way {
            self.is_wrong(format!("{name}: two exchanges at once"));
        }
        if family.number != number {
            self.is_wrong(format!("{name}: token {number} was sent, and {} lives", family.number));
        }
        if family.given.is_some_and(|given| given.elapsed() < self.life.mul_f64(NOT_BEFORE)) {
            self.is_wrong(format!(
                "{name}: refreshed again {:?} after the last time",
                family.given.map(|at| at.elapsed())
            ));
        }
        family.under_way = true;
    }

    fn ends(&self, token: &str) -> ExchangeOutcome {
        let (name, _) = Self::read(token);
        let mut families = self.families();
        let family = families.get_mut(&name).expect("it began");
        family.under_way = false;
        family.number += 1;
        family.given = Some(Instant::now());
        family.rounds += 1;
        let token = format!("{name}.{}", family.number);
        Self::gives(self.life, name, &token)
    }

    fn gives(life: Duration, subject: String, token: &str) -> ExchangeOutcome {
        ExchangeOutcome::Granted(Box::new(Answer {
            access_token: Secret::new(format!("at-{token}")),
            token_type: "Bearer".into(),
            expires_in: Some(life),
            scope: None,
            refresh_token: Some(Secret::new(token)),
            subject: Some(subject),
            client_id: None,
        }))
    }

    /// Holds every answer back until the gate is given permits.
    pub(super) fn closes(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().expect("whole") = Some(Arc::clone(&gate));
        gate
    }

    pub(super) fn opens(&self) {
        if let Some(gate) = self.gate.lock().expect("whole").take() {
            gate.add_permits(Semaphore::MAX_PERMITS / 2);
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.exchanges.load(Ordering::SeqCst)
    }

    pub(super) fn judge(&self) {
        let wrong = self.wrong.lock().expect("whole");
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

impl TokenEndpoint for Issuer {
    fn exchange<'a>(&'a self, exchange: Exchange<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        Box::pin(async move {
            let Credential::RefreshToken(token) = exchange.credential else { panic!("there are no keys here") };
            let token = token.expose().to_owned();
            if self.refuses.load(Ordering::SeqCst) {
                return ExchangeOutcome::ClientRefused { detail: "invalid_client".into() };
            }
            if !token.contains('.') {
                return ExchangeOutcome::Refused { detail: "made up".into() };
            }
            self.begins(&token);
            let gate = self.gate.lock().expect("whole").clone();
            match gate {
                Some(gate) => gate.acquire().await.expect("open").forget(),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            self.ends(&token)
        })
    }

    /// A code is the name of who gave it; what it is good for begins a family of its own.
    fn redeem<'a>(&'a self, redemption: Redemption<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        let name = redemption.code.expose().to_owned();
        Box::pin(async move { Self::gives(self.life, name.clone(), &format!("{name}-renewed.0")) })
    }

    fn organizations<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Result<Option<Vec<String>>, ProviderError>> {
        Box::pin(async { Ok(None) })
    }

    fn revoke<'a>(
        &'a self,
        _: &'a Secret,
        _: Option<&'a ClientCredentials>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }

    fn reachable(&self) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }
}

pub(super) fn provider() -> ProviderConfig {
    ProviderConfig {
        name: "test".parse().expect("valid"),
        kind: Kind::Oauth2,
        client_id: "client".into(),
        client_secret_file: None,
        scopes: Vec::new(),
        pkce: true,
        usage: Usage::OneTime,
        consent_lifetime: None,
        idle_lifetime: None,
        grace: Duration::ZERO,
        in_doubt: InDoubtPolicy::RetryWhenHarmless,
        max_per_minute: 60_000,
        issuer: None,
        token_url: None,
        authorize_url: None,
        revoke_url: None,
        organizations_url: None,
        client_auth: ClientAuth::Post,
        response_mode: None,
        prompt: None,
    }
}

/// Keepers on one vault, each as a process of its own would have it.
pub(super) struct Fleet {
    pub(super) keepers: Vec<Keeper>,
    metrics: Vec<Metrics>,
    outboxes: Vec<Outbox>,
    pub(super) vaults: Vec<Vault>,
    pub(super) issuer: Arc<Issuer>,
    /// One for each, so that one can die.
    pub(super) runtimes: Vec<Runtime>,
    _folder: tempfile::TempDir,
}

impl Fleet {
    /// `resident`: how many grants each keeps in memory; `None`: all.
    pub(super) fn start(
        url: &str,
        schema: &str,
        keepers: usize,
        keep_warm: KeepWarm,
        life: Duration,
        resident: Option<usize>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Identity::create(&folder.path().join("identity.txt")).expect("made");
        let runtimes: Vec<Runtime> = (0..keepers).map(|_| Runtime::new().expect("a runtime")).collect();
        let issuer = Arc::new(Issuer::new(life));
        let settings = Settings { poll: Duration::from_millis(200), lease: SHORT_LEASE, ..settings(url, schema) };
        let metrics: Vec<Metrics> = (0..keepers).map(|_| Metrics::new(&[])).collect();
        let open = |(runtime, metrics): (&Runtime, &Metrics)| {
            runtime.block_on(keeper(&settings, &identity, &issuer, metrics, keep_warm, resident))
        };
        let started: Vec<(Keeper, Outbox, Vault)> = runtimes.iter().zip(&metrics).map(open).collect();
        let (keepers, (outboxes, vaults)): (Vec<_>, (Vec<_>, Vec<_>)) =
            started.into_iter().map(|(keeper, outbox, vault)| (keeper, (outbox, vault))).unzip();
        for keeper in &keepers {
            eventually("a keeper is ready", || keeper.is_ready().then_some(()));
        }
        Self { keepers, metrics, outboxes, vaults, issuer, runtimes, _folder: folder }
    }

    pub(super) fn enrol(&self, keeper: usize, name: &str) {
        let enrolling = self.keepers[keeper].enrol(organization(name), enrolment(name));
        assert!(self.runtimes[keeper].block_on(enrolling).expect("enrolled").created);
    }

    /// The organization's grant, as that keeper's vault has it.
    pub(super) fn grant_of(&self, keeper: usize, name: &str) -> GrantId {
        let stored = self.runtimes[keeper].block_on(self.vaults[keeper].organization(&organization(name)));
        stored.expect("the vault answers").expect("it is there").value.grant
    }

    pub(super) fn has(&self, keeper: usize, grant: GrantId) -> bool {
        self.runtimes[keeper].block_on(self.vaults[keeper].grant(grant)).expect("the vault answers").is_some()
    }

    pub(super) fn fetch(&self, keeper: usize, name: &str) -> Result<Served, KeeperError> {
        self.runtimes[keeper].block_on(self.keepers[keeper].token(&organization(name), Duration::ZERO))
    }

    /// The organization's state, as that keeper knows it.
    fn state(&self, keeper: usize, name: &str) -> String {
        let shown = self.runtimes[keeper].block_on(self.keepers[keeper].show(&organization(name))).expect("shown");
        format!("{}/{}", shown.state, shown.reason.unwrap_or("-".into()))
    }

    pub(super) fn stop(self) {
        for (keeper, runtime) in self.keepers.iter().zip(&self.runtimes) {
            runtime.block_on(keeper.drain());
        }
    }
}

pub(super) fn enrolment(name: &str) -> Enrolment {
    let body = serde_json::json!({ "provider": "test", "refresh_token": format!("{name}.0") });
    serde_json::from_value(body).expect("valid")
}

/// Whether a token was given with the mark that something is wrong.
fn is_degraded(served: &Served) -> bool {
    String::from_utf8_lossy(&served.clone().into_text().into_bytes()).contains("vault_unavailable")
}

async fn keeper(
    settings: &Settings,
    identity: &Identity,
    issuer: &Arc<Issuer>,
    metrics: &Metrics,
    keep_warm: KeepWarm,
    resident: Option<usize>,
) -> (Keeper, Outbox, Vault) {
    let (clock, metrics) = (Arc::new(SystemClock::new()), metrics.clone());
    let store = Store::open(settings, identity, &[], clock.clone(), metrics.clone()).await.expect("the vault opens");
    let vault = Vault::from(store);
    let outbox = Outbox::open(&vault, clock.clone(), metrics.clone()).await;
    let parts = Parts {
        outbox: outbox.clone(),
        vault: vault.clone(),
        links: None,
        providers: vec![(provider(), Arc::clone(issuer) as Arc<dyn TokenEndpoint>)],
        revoke_old: false,
        refresh: RefreshConfig {
            at: 0.75,
            keep_warm,
            concurrency: 16,
            timeout: Duration::from_secs(10),
            token_cache_bytes: 1 << 20,
        },
        warn_before: Vec::new(),
        organization_series: 100,
        clock,
        metrics,
        resident,
        seed: fastrand::u64(..),
    };
    (Keeper::start(parts, CancellationToken::new(), TaskTracker::new()), outbox, vault)
}

pub(super) fn organization(name: &str) -> OrganizationId {
    name.parse().expect("valid")
}

#[rstest]
#[case::all_in_memory("three_keepers", None)]
#[case::some_in_memory("three_bounded_keepers", Some(4))]
fn three_keepers_refresh_every_one_time_token_once_and_in_time(#[case] schema: &str, #[case] resident: Option<usize>) {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), schema, 3, KeepWarm::Always, LIFE, resident);
    let names: Vec<String> = (0..ORGANIZATIONS).map(|number| format!("org-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        fleet.enrol(number % 3, name);
    }
    eventually("everything is refreshed", || {
        let families = fleet.issuer.families();
        families.values().all(|family| family.rounds > ROUNDS).then_some(())
    });
    for name in &names {
        for keeper in 0..3 {
            fleet.fetch(keeper, name).expect("each serves all");
        }
    }
    fleet.issuer.judge();
    fleet.stop();
}

#[rstest]
#[case::all_in_memory("joining_keepers", None)]
#[case::some_in_memory("joining_bounded_keepers", Some(1))]
fn who_asks_another_keeper_while_a_token_is_exchanged_gets_what_that_exchange_gave(
    #[case] schema: &str,
    #[case] resident: Option<usize>,
) {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet =
        Fleet::start(&cluster.url(), schema, 2, KeepWarm::FetchedWithin(Duration::from_millis(1)), LIFE, resident);
    fleet.enrol(0, "org");
    eventually("the other keeper knows it", || fleet.fetch(1, "org").ok());
    eventually("its token has lapsed", || {
        let given = fleet.issuer.families()["org"].given;
        given.is_some_and(|given| given.elapsed() > LIFE).then_some(())
    });
    let (before, _gate) = (fleet.issuer.count(), fleet.issuer.closes());
    let asks = |keeper: usize| {
        let (runtime, keeper) = (&fleet.runtimes[keeper], fleet.keepers[keeper].clone());
        runtime.spawn(async move { keeper.token(&organization("org"), Duration::ZERO).await })
    };
    let first = asks(0);
    eventually("the exchange is under way", || (fleet.issuer.count() == before + 1).then_some(()));
    let second = asks(1);
    eventually("the other keeper has not got the claim", || {
        let metrics = fleet.metrics[1].render();
        metrics
            .lines()
            .any(|line| line.starts_with("consentry_claims_total{result=\"held\"}") && !line.ends_with(" 0"))
            .then_some(())
    });
    fleet.issuer.opens();
    let [first, second] =
        [first, second].map(|asked| fleet.runtimes[0].block_on(asked).expect("it did not panic").expect("a token"));
    assert_eq!(first.etag(), second.etag());
    assert_eq!(fleet.issuer.count(), before + 1, "one exchange for both");
    fleet.issuer.judge();
    fleet.stop();
}

#[rstest]
#[case::all_in_memory("pausing_keepers", None)]
#[case::some_in_memory("pausing_bounded_keepers", Some(1))]
fn what_is_paused_or_removed_at_one_keeper_is_not_served_by_the_other_either(
    #[case] schema: &str,
    #[case] resident: Option<usize>,
) {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), schema, 2, KeepWarm::Always, LONG_LIFE, resident);
    for name in ["paused", "removed", "stays"] {
        fleet.enrol(0, name);
        eventually("the other keeper serves it", || fleet.fetch(1, name).ok());
    }
    fleet.runtimes[0].block_on(fleet.keepers[0].set_paused(&organization("paused"), true)).expect("paused");
    fleet.runtimes[0].block_on(fleet.keepers[0].remove(&organization("removed"), false)).expect("removed");
    eventually("it is paused everywhere", || {
        matches!(fleet.fetch(1, "paused"), Err(KeeperError::Paused)).then_some(())
    });
    eventually("it is gone everywhere", || {
        matches!(fleet.fetch(1, "removed"), Err(KeeperError::UnknownOrganization)).then_some(())
    });
    fleet.fetch(1, "stays").expect("it is neither");
    fleet.runtimes[1].block_on(fleet.keepers[1].set_paused(&organization("paused"), false)).expect("resumed");
    eventually("it is served again", || fleet.fetch(0, "paused").ok());
    fleet.issuer.judge();
    fleet.stop();
}

#[test]
fn what_one_worker_forgets_of_the_outbox_the_others_forget_too() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), "forgetting_keepers", 2, KeepWarm::Always, LONG_LIFE, None);
    fleet.enrol(0, "org");
    let told = |keeper: usize| fleet.outboxes[keeper].after(None).iter().map(|event| event.id).collect::<Vec<_>>();
    let event = Event::new(
        fleet.outboxes[0].id(EventKind::ConsentLost, &[b"x"]),
        SystemClock::new().now().wall,
        EventKind::ConsentLost,
    );
    let id = event.id;
    fleet.runtimes[0].block_on(fleet.outboxes[0].post(vec![event])).expect("it is told");
    eventually("the other knows it", || told(1).contains(&id).then_some(()));
    fleet.runtimes[0].block_on(fleet.vaults[0].commit(vec![Change::DeleteRow(id)])).expect("it is forgotten");
    eventually("the other forgets it", || (!told(1).contains(&id)).then_some(()));
    fleet.stop();
}

#[test]
fn nobody_but_who_has_the_lease_of_the_sweep_clears_the_outbox() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), "sweeping_keepers", 2, KeepWarm::Always, LONG_LIFE, None);
    let clock: SharedClock = Arc::new(SystemClock::new());
    let now = clock.now().wall;
    let post = |keeper: usize, at: Timestamp| {
        let id =
            fleet.outboxes[keeper].id(EventKind::ConsentLost, &[&keeper.to_le_bytes(), &at.as_millis().to_le_bytes()]);
        let event = Event::new(id, at, EventKind::ConsentLost);
        fleet.runtimes[keeper].block_on(fleet.outboxes[keeper].post(vec![event])).expect("it is told");
        id
    };
    // Each has an old one, and the newest, which is never forgotten.
    let [here, there] = [0, 1].map(|keeper| post(keeper, now - 2 * TOLD_KEPT));
    for keeper in 0..2 {
        post(keeper, now);
    }
    let knows = |keeper: usize, id| fleet.outboxes[keeper].after(None).iter().any(|event| event.id == id);
    let duty = fleet.vaults[0].duty(Singular::Sweep, &clock);
    let on_duty = eventually("the sweep at the start is over", || fleet.runtimes[0].block_on(duty.begin()));
    fleet.runtimes[1].block_on(async {
        fleet.keepers[1].sweep();
        // Waits for its end.
        fleet.keepers[1].drain().await;
    });
    assert!(knows(1, there), "it is not its turn");
    drop(on_duty);
    eventually("whose turn it is forgets its own", || {
        fleet.runtimes[0].block_on(async { fleet.keepers[0].sweep() });
        (!knows(0, here)).then_some(())
    });
    fleet.stop();
}

#[test]
fn the_first_refresh_that_a_caller_forces_goes_out_at_once() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let fleet = Fleet::start(&cluster.url(), "forcing_keepers", 2, KeepWarm::Always, LONG_LIFE, None);
    fleet.enrol(0, "org");
    let before = fleet.issuer.count();
    fleet.runtimes[0]
        .block_on(fleet.keepers[0].refresh(&organization("org"), None))
        .expect("nobody has forced any yet");
    assert_eq!(fleet.issuer.count(), before + 1);
    fleet.stop();
}

#[rstest]
#[case::all_in_memory("dying_keepers", None)]
#[case::some_in_memory("dying_bounded_keepers", Some(1))]
fn an_exchange_whose_keeper_died_is_taken_over_as_in_doubt_and_not_sent_again(
    #[case] schema: &str,
    #[case] resident: Option<usize>,
) {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let mut fleet = Fleet::start(&cluster.url(), schema, 2, KeepWarm::Always, LONG_LIFE, resident);
    fleet.enrol(0, "org");
    eventually("the other keeper knows it", || fleet.fetch(1, "org").ok());
    let (before, _gate) = (fleet.issuer.count(), fleet.issuer.closes());
    let keeper = fleet.keepers[0].clone();
    let forced = fleet.runtimes[0].spawn(async move { keeper.refresh(&organization("org"), None).await });
    eventually("the exchange is under way", || {
        assert!(!forced.is_finished(), "it waits for its answer");
        (fleet.issuer.count() == before + 1).then_some(())
    });
    fleet.runtimes.remove(0).shutdown_background();
    fleet.keepers.remove(0);
    eventually("the other takes it over", || (fleet.state(0, "org") == "in_doubt/crashed").then_some(()));
    fleet.fetch(0, "org").expect("its access token lives");
    assert_eq!(fleet.issuer.count(), before + 1, "its token is not sent again while that may be a replay");
    fleet.stop();
}

#[test]
fn while_the_database_is_away_living_tokens_are_served_and_all_goes_on_by_itself_afterwards() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start();
    let fleets = [("lonely_keepers", None), ("lonely_bounded_keepers", Some(10))].map(|(schema, resident)| {
        let fleet = Fleet::start(&cluster.url(), schema, 2, KeepWarm::Always, LONG_LIFE, resident);
        for name in ["org", "unasked"] {
            fleet.enrol(0, name);
        }
        eventually("the other keeper knows it", || fleet.fetch(1, "org").ok());
        fleet
    });
    cluster.kill_primary();
    for (fleet, keeper) in fleets.iter().flat_map(|fleet| [(fleet, 0), (fleet, 1)]) {
        eventually("a keeper says that it is not ready", || (!fleet.keepers[keeper].is_ready()).then_some(()));
        assert!(is_degraded(&fleet.fetch(keeper, "org").expect("it lives")));
    }
    // It was enrolled at the one, and would have to be read by the other.
    let some = &fleets[1];
    assert!(is_degraded(&some.fetch(0, "unasked").expect("it lives")));
    let unasked = some.fetch(1, "unasked");
    assert!(matches!(unasked, Err(KeeperError::VaultUnavailable(_))), "{unasked:?}");
    cluster.promote();
    for fleet in fleets {
        for keeper in 0..2 {
            eventually("a keeper is ready again", || fleet.keepers[keeper].is_ready().then_some(()));
            assert!(!is_degraded(&fleet.fetch(keeper, "org").expect("it lives")));
            eventually("what it would have to read is served, too", || {
                fleet.fetch(keeper, "unasked").ok().filter(|served| !is_degraded(served))
            });
        }
        let paused = |paused| fleet.runtimes[0].block_on(fleet.keepers[0].set_paused(&organization("org"), paused));
        eventually("changes are made again", || paused(true).ok());
        eventually("and heard of", || matches!(fleet.fetch(1, "org"), Err(KeeperError::Paused)).then_some(()));
        fleet.issuer.judge();
        fleet.stop();
    }
}
