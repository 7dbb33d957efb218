//! A keeper with a real vault and an issuer in memory, on a clock that is moved by hand.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::{slot::Brief, *},
    HOUR,
};
use crate::{
    clock::ManualClock,
    config::{ClientAuth, InDoubtPolicy, KeepWarm, Kind, VaultConfig},
    lifecycle::{Enrolling, new_grant},
    model::{
        Answer, ClientCredentials, Credential, ExchangeOutcome, Fingerprint, Grant, GrantId, NoAnswer, OrganizationId,
        Secret, Timestamp, Usage,
    },
    provider::{BoxFuture, Exchange, ProviderError, Redemption},
    tests::AtOnce as _,
    vault::Identity,
    wire::{self, Code, Enrolment},
};

/// How often a test looks whether what it waits for is so, five milliseconds apart, before it gives up.
pub(super) const PATIENCE: usize = 12_000;

/// A grant that was just enrolled with an API key, for tests that need no more of it than its names.
pub(in crate::keeper) fn grant_of_key(id: [u8; 16], fingerprint: [u8; 16]) -> Grant {
    let enrolling = Enrolling {
        credential: Credential::ApiKey(Secret::new("k")),
        client: None,
        granted_at: None,
        expires_at: None,
        usage: None,
        grace: None,
    };
    let (id, fingerprint) = (GrantId::from_bytes(id), Fingerprint(fingerprint));
    new_grant(id, fingerprint, enrolling, &provider_config(), Timestamp::default(), 1).expect("fits")
}

/// Its slot, as loading makes it.
pub(in crate::keeper) fn new_slot(id: [u8; 16]) -> Arc<Slot> {
    let (grant, now) = (grant_of_key(id, id), Now { wall: Timestamp::default(), boot: Duration::ZERO });
    Arc::new(Slot::new(grant.id, 0, Brief::of(&grant, 1, None, Duration::ZERO, now, 1), None))
}

/// A provider for tests that need its configuration only.
pub(in crate::keeper) fn provider_config() -> ProviderConfig {
    ProviderConfig {
        name: "test".parse().expect("valid"),
        kind: Kind::Oauth2,
        client_id: "client".into(),
        client_secret_file: None,
        scopes: vec![],
        pkce: true,
        usage: Usage::OneTime,
        consent_lifetime: Some(HOUR * 24 * 180),
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

/// An issuer in memory: knows which tokens live, rotates `one-*`, keeps `reuse-*` and keys, and notes every replay.
#[derive(Default)]
pub(super) struct Issuer {
    pub(super) exchanges: AtomicU32,
    pub(super) at_once: AtomicU32,
    pub(super) most_at_once: AtomicU32,
    pub(super) replays: AtomicU32,
    pub(super) spent: Mutex<Vec<String>>,
    pub(super) sent: Mutex<Vec<String>>,
    pub(super) script: Mutex<VecDeque<ExchangeOutcome>>,
    pub(super) reach: Mutex<Option<Vec<String>>>,
    pub(super) revoked: Mutex<Vec<String>>,
    pub(super) delay: Mutex<Duration>,
    pub(super) subjects: Mutex<BTreeMap<String, String>>,
    /// Authorization codes that were redeemed.
    pub(super) redeemed: Mutex<Vec<String>>,
    /// What the next codes are answered, instead of tokens.
    pub(super) redeems: Mutex<VecDeque<ExchangeOutcome>>,
    /// While it is there, every answer to a code takes one of its permits.
    pub(super) redeem_gate: Mutex<Option<Arc<Semaphore>>>,
    /// While it is there, every list of organizations takes one of its permits.
    pub(super) list_gate: Mutex<Option<Arc<Semaphore>>>,
    /// The list of organizations cannot be had.
    pub(super) listless: AtomicBool,
    /// While it is there, every answer takes one of its permits.
    pub(super) gate: Mutex<Option<Arc<Semaphore>>>,
    /// The next exchange ends in a panic after its request has left.
    pub(super) panics: AtomicBool,
    /// What everybody is answered.
    pub(super) outage: Mutex<Option<ExchangeOutcome>>,
    /// Whether the last request wanted a connection of its own.
    pub(super) fresh: AtomicBool,
    /// When the last request had to leave.
    pub(super) not_after: Mutex<Option<Duration>>,
}

impl Issuer {
    pub(super) fn count(&self) -> u32 {
        self.exchanges.load(Ordering::SeqCst)
    }

    /// Holds every answer back until the gate is given permits.
    pub(super) fn closes(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().expect("whole") = Some(Arc::clone(&gate));
        gate
    }

    pub(super) fn next_is(&self, outcome: ExchangeOutcome) {
        self.script.lock().expect("whole").push_back(outcome);
    }

    pub(super) fn answer(&self, secret: &str) -> ExchangeOutcome {
        if let Some(outcome) = self.script.lock().expect("whole").pop_front() {
            return outcome;
        }
        if let Some(outcome) = self.outage.lock().expect("whole").clone() {
            return outcome;
        }
        if secret == "consentry-probe" || secret.starts_with("dead") {
            return ExchangeOutcome::Refused { detail: "invalid_grant".into() };
        }
        let mut spent = self.spent.lock().expect("whole");
        if spent.contains(&secret.to_owned()) {
            self.replays.fetch_add(1, Ordering::SeqCst);
            return ExchangeOutcome::Refused { detail: "invalid_grant".into() };
        }
        let number = self.count();
        let refresh_token = if secret.starts_with("one-") {
            spent.push(secret.into());
            Some(format!("one-{number}-{secret}").chars().take(64).collect::<String>())
        } else {
            secret.starts_with("reuse-").then(|| secret.to_owned())
        };
        let subject = self.subjects.lock().expect("whole").get(secret).cloned();
        ExchangeOutcome::Granted(Box::new(Answer {
            access_token: Secret::new(format!("at-{number}")),
            token_type: "Bearer".into(),
            expires_in: Some(HOUR),
            scope: None,
            refresh_token: refresh_token.map(Secret::new),
            subject,
            client_id: None,
        }))
    }
}

impl TokenEndpoint for Issuer {
    fn exchange<'a>(&'a self, exchange: Exchange<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        Box::pin(async move {
            self.exchanges.fetch_add(1, Ordering::SeqCst);
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            let secret = exchange.credential.secret().expose().to_owned();
            self.fresh.store(exchange.fresh_connection, Ordering::SeqCst);
            *self.not_after.lock().expect("whole") = exchange.not_after;
            self.sent.lock().expect("whole").push(secret.clone());
            let delay = *self.delay.lock().expect("whole");
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let gate = self.gate.lock().expect("whole").clone();
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            assert!(!self.panics.swap(false, Ordering::SeqCst), "as the test asked for");
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            self.answer(&secret)
        })
    }

    fn redeem<'a>(&'a self, redemption: Redemption<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        // The code is the refresh token that it gives; one that begins with `bare-` gives none.
        Box::pin(async move {
            let code = redemption.code.expose().to_owned();
            let gate = self.redeem_gate.lock().expect("whole").clone();
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            let again = self.redeemed.lock().expect("whole").contains(&code);
            self.redeemed.lock().expect("whole").push(code.clone());
            if let Some(outcome) = self.redeems.lock().expect("whole").pop_front() {
                return outcome;
            }
            if again {
                return ExchangeOutcome::Refused { detail: "invalid_grant".into() };
            }
            ExchangeOutcome::Granted(Box::new(Answer {
                access_token: Secret::new(format!("at-of-{code}")),
                token_type: "Bearer".into(),
                expires_in: Some(HOUR),
                scope: None,
                refresh_token: (!code.starts_with("bare-")).then(|| Secret::new(code.clone())),
                subject: self.subjects.lock().expect("whole").get(&code).cloned(),
                client_id: None,
            }))
        })
    }

    fn organizations<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Result<Option<Vec<String>>, ProviderError>> {
        Box::pin(async {
            let gate = self.list_gate.lock().expect("whole").clone();
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            if self.listless.load(Ordering::SeqCst) {
                return Err(ProviderError::Unavailable { provider: "test".into(), detail: "no list".into() });
            }
            Ok(self.reach.lock().expect("whole").clone())
        })
    }

    fn revoke<'a>(
        &'a self,
        token: &'a Secret,
        _: Option<&'a ClientCredentials>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(async {
            self.revoked.lock().expect("whole").push(token.expose().to_owned());
            Ok(())
        })
    }

    fn reachable(&self) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }
}

pub(super) struct World {
    pub(super) keeper: Keeper,
    pub(super) issuer: Arc<Issuer>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) vault: Vault,
    pub(super) folder: tempfile::TempDir,
    pub(super) keep_warm: KeepWarm,
    pub(super) providers: Vec<ProviderConfig>,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(KeepWarm::Always).await
    }

    pub(super) async fn with(keep_warm: KeepWarm) -> Self {
        Self::of(keep_warm, vec![provider_config()]).await
    }

    /// With these providers, all of them the same issuer.
    pub(super) async fn of(keep_warm: KeepWarm, providers: Vec<ProviderConfig>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Identity::create(&folder.path().join("identity.txt")).expect("made");
        let config = vault_config(&folder);
        Vault::create(&config, &identity).expect("made");
        let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("opens");
        let issuer = Arc::new(Issuer::default());
        let clock = ManualClock::at(Timestamp::from_millis(1_800_000_000_000));
        let keeper = keeper(&vault, &issuer, &clock, keep_warm, &providers);
        let world = Self { keeper, issuer, clock, vault, folder, keep_warm, providers };
        world.until(|world| world.keeper.is_ready()).await;
        world
    }

    /// As after a process that died: nothing is closed, a new keeper reads what is stored.
    pub(super) async fn restarted(mut self) -> Self {
        self.keeper.shared.stopping.cancel();
        self.keeper = keeper(&self.vault, &self.issuer, &self.clock, self.keep_warm, &self.providers);
        self.until(|world| world.keeper.is_ready()).await;
        self
    }

    pub(super) async fn until(&self, what: impl Fn(&Self) -> bool) {
        for _ in 0..PATIENCE {
            if what(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came to that");
    }

    /// How many grants, organizations, intents and strays are stored: not what is remembered of events and of links.
    pub(super) fn kept(&self) -> u64 {
        let mut count = 0;
        let mut one = || {
            count += 1;
            Ok(())
        };
        let read = self.vault.for_each_grant(&mut |_| one()).at_once();
        let read = read.and_then(|()| self.vault.for_each_organization(&mut |_| one()).at_once());
        let read = read.and_then(|()| self.vault.for_each_intent(&mut |_| one()).at_once());
        read.and_then(|()| self.vault.for_each_stray(&mut |_| one()).at_once()).expect("readable");
        count
    }

    pub(super) fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.keeper.shared.timers.wake();
    }

    pub(super) async fn enrol(&self, organization: &str, secret: &str) -> Result<Enrolled, KeeperError> {
        self.keeper.enrol(org(organization), enrolment(secret)).await
    }

    pub(super) async fn fetch(&self, organization: &str) -> Result<Fetched, KeeperError> {
        self.keeper.token(&org(organization), Duration::ZERO).await.map(Fetched::from)
    }

    pub(super) async fn state(&self, organization: &str) -> String {
        let shown = self.keeper.show(&org(organization)).await.expect("enrolled");
        format!("{}/{}", shown.state, shown.reason.unwrap_or("-".into()))
    }

    pub(super) async fn until_state(&self, organization: &str, wanted: &str) {
        for _ in 0..PATIENCE {
            if self.state(organization).await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never became {wanted}");
    }
}

pub(super) fn vault_config(folder: &tempfile::TempDir) -> VaultConfig {
    VaultConfig {
        path: folder.path().join("vault"),
        identity_file: folder.path().join("identity.txt"),
        recipients: vec![],
        cache_bytes: 8 << 20,
        backup_dir: None,
        backup_keep: 14,
        postgres: None,
    }
}

pub(super) fn keeper(
    vault: &Vault,
    issuer: &Arc<Issuer>,
    clock: &Arc<ManualClock>,
    keep_warm: KeepWarm,
    providers: &[ProviderConfig],
) -> Keeper {
    let endpoint = |config: &ProviderConfig| (config.clone(), Arc::clone(issuer) as Arc<dyn TokenEndpoint>);
    let parts = Parts {
        vault: vault.clone(),
        links: Some(links(vault)),
        outbox: Outbox::open(vault, clock.clone(), Metrics::new(&[])).at_once(),
        providers: providers.iter().map(endpoint).collect(),
        revoke_old: providers.iter().any(|provider| provider.scopes.contains(&"revoke".to_owned())),
        refresh: RefreshConfig {
            at: 0.75,
            keep_warm,
            concurrency: 64,
            timeout: Duration::from_secs(10),
            token_cache_bytes: 1 << 20,
        },
        warn_before: vec![HOUR * 24 * 30, HOUR * 24],
        organization_series: 1000,
        clock: clock.clone(),
        metrics: Metrics::new(&[]),
        resident: None,
        seed: 7,
    };
    Keeper::start(parts, CancellationToken::new(), TaskTracker::new())
}

pub(super) fn links(vault: &Vault) -> Links {
    let public_url = "https://connect.example.com".parse().expect("a URL");
    Links::new(&vault.link_key(), &public_url, HOUR * 24 * 14)
}

pub(super) fn org(id: &str) -> OrganizationId {
    id.parse().expect("valid")
}

pub(super) fn enrolment(secret: &str) -> Enrolment {
    let field = if secret.starts_with("key") || secret.starts_with("dead") { "api_key" } else { "refresh_token" };
    let mut body = serde_json::json!({ "provider": "test" });
    body[field] = secret.into();
    serde_json::from_value(body).expect("valid")
}

pub(super) fn unverified(secret: &str) -> Enrolment {
    Enrolment { verify: Some(false), ..enrolment(secret) }
}

pub(super) fn code<T>(result: Result<T, KeeperError>) -> Code {
    result.err().expect("an error").code()
}

pub(super) fn silence() -> ExchangeOutcome {
    ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: "no answer".into() }
}

/// What was fetched, as a client reads it.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) token: wire::Token,
    pub(super) etag: String,
}

impl From<Served> for Fetched {
    fn from(served: Served) -> Self {
        Self { token: served.read(), etag: String::from_utf8_lossy(served.etag()).into_owned() }
    }
}
