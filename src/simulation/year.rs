use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, layer::SubscriberExt as _};

use super::{
    fleet::{CONSENTS, Customer, Enrolled, KEYS, NAMES, WITH_GRACE, customers, provider},
    judge::{Counts, Judge, PER_MINUTE, WARN_BEFORE},
    life::{End, Plan, live},
    machine::Machine,
    network::{Network, TIMEOUT, Weather},
};
use crate::{
    config::{ClientAuth, InDoubtPolicy, KeepWarm, Kind, ProviderConfig, RefreshConfig},
    keeper::Parts,
    links::Links,
    metrics::Metrics,
    model::{ClientCredentials, GrantId, OrganizationId, Secret, Usage},
    outbox::Outbox,
    provider::TokenEndpoint,
    sandbox::{Issuer, SandboxConfig},
    tests::AtOnce as _,
    vault::{Disk, Snapshot, Vault},
};

const DAY: Duration = Duration::from_hours(24);
/// How long a consent holds.
const CONSENT: Duration = Duration::from_hours(180 * 24);
/// How long a link holds.
const LINK: Duration = Duration::from_hours(14 * 24);
/// How long nothing goes wrong at the end.
const CALM: Duration = Duration::from_hours(3 * 24);
/// The longest life, in steps.
const MAX_STEPS: u64 = 12_000;
/// The most copies of the disk that are kept to be put back.
const MAX_COPIES: usize = 3;

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) organizations: usize,
    pub(super) days: u32,
}

/// Somebody who gives consent anew.
#[derive(Clone, Debug)]
pub(super) struct Approving {
    pub(super) organization: OrganizationId,
    /// The grant that the organization has until then.
    pub(super) before: GrantId,
}

/// How a run went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) digest: u64,
    pub(super) counts: Counts,
    pub(super) wrongs: Vec<String>,
}

/// All that outlives the process.
pub(super) struct World {
    pub(super) machine: Arc<Machine>,
    pub(super) disk: Disk,
    pub(super) networks: Vec<Arc<Network>>,
    pub(super) judge: Arc<Judge>,
    customers: Mutex<Vec<Customer>>,
    /// Who is giving consent by a link just now, and what served until then; outlives the process that it goes through.
    approving: Mutex<Option<Approving>>,
    /// Copies of the disk, as somebody might put one back.
    copies: Mutex<Vec<Snapshot>>,
    refresh: RefreshConfig,
    providers: Vec<ProviderConfig>,
}

impl World {
    fn new(seed: u64, size: Size, chance: &mut fastrand::Rng) -> Self {
        let machine = Arc::new(Machine::new());
        let judge = Arc::new(Judge::new(Arc::clone(&machine)));
        let lifetime = Duration::from_hours([6, 12, 24, 24][chance.usize(..4)]);
        let terms = |grace: Duration| SandboxConfig {
            access_token_lifetime: lifetime,
            consent_lifetime: Some(CONSENT),
            grace,
            usage: Usage::OneTime,
            ..SandboxConfig::default()
        };
        let one = Issuer::seeded(&terms(Duration::ZERO), machine.clone(), seed);
        let other = Issuer::seeded(&terms(GRACE), machine.clone(), seed ^ 1);
        let client = |pair: (String, Secret)| ClientCredentials { id: pair.0, secret: pair.1 };
        let consents = || client(("isv_sandbox".into(), Secret::new("sandbox-secret")));
        let mut network = |place: usize, issuer: &Issuer, client| {
            let (machine, judge) = (Arc::clone(&machine), Arc::clone(&judge));
            Arc::new(Network::new(NAMES[place], issuer.clone(), client, machine, judge, chance.u64(..)))
        };
        let networks = vec![
            network(CONSENTS, &one, consents()),
            network(WITH_GRACE, &other, consents()),
            network(KEYS, &one, client(SandboxConfig::default().personal_client)),
        ];
        let in_doubt = if chance.u8(..4) == 0 { InDoubtPolicy::Hold } else { InDoubtPolicy::RetryWhenHarmless };
        let keep_warm = if chance.u8(..3) == 0 { KeepWarm::FetchedWithin(DAY) } else { KeepWarm::Always };
        Self {
            disk: Disk::new(seed, machine.clone()),
            machine,
            networks,
            judge,
            customers: Mutex::new(customers(size.organizations)),
            approving: Mutex::default(),
            copies: Mutex::default(),
            refresh: RefreshConfig { at: 0.75, keep_warm, concurrency: 8, timeout: TIMEOUT, token_cache_bytes: 40_000 },
            providers: (0..NAMES.len()).map(|place| provider_config(place, in_doubt)).collect(),
        }
    }

    pub(super) fn customers(&self) -> MutexGuard<'_, Vec<Customer>> {
        self.customers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody begins to give consent by a link, or has ended it; gives who was at it before.
    pub(super) fn approving(&self, now: Option<Approving>) -> Option<Approving> {
        std::mem::replace(&mut *self.approving.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    /// One customer, whoever it may be.
    pub(super) fn pick(&self, chance: &mut fastrand::Rng) -> (usize, Customer) {
        let customers = self.customers();
        let number = chance.usize(..customers.len());
        (number, customers[number].clone())
    }

    /// Now and then the vault goes back in time: the database alone, without a word, or all of it when somebody puts a copy
    /// back. The operator accepts it in a new epoch, as he is told to.
    fn step_back(&self, chance: &mut fastrand::Rng) {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let went_back = match chance.u8(..100) {
            0..6 => {
                if copies.len() == MAX_COPIES {
                    copies.remove(0);
                }
                copies.push(self.disk.snapshot());
                false
            }
            6..8 => self.disk.roll_back(),
            8 if !copies.is_empty() => {
                let copy = chance.usize(..copies.len());
                self.disk.put_back(copies.remove(copy));
                true
            }
            _ => false,
        };
        if !went_back {
            return;
        }
        self.judge.count(|counts| counts.steps_back += 1);
        self.judge.went_back();
        self.machine.begin_outside();
        if let Err(error) = self.disk.accept() {
            self.judge.wrong(&format!("a vault that went back in time is not accepted: {error}"));
        }
        self.approving(None);
        // What was enrolled, or removed, since then may be gone or back; and what was given has perhaps been spent.
        for customer in &mut *self.customers() {
            (customer.enrolled, customer.secret) = (Enrolled::Perhaps, None);
        }
    }

    /// What a keeper is made of.
    pub(super) fn parts(&self, vault: Vault, seed: u64) -> Parts {
        let endpoints = self.networks.iter().map(|network| Arc::clone(network) as Arc<dyn TokenEndpoint>);
        Parts {
            revoke_old: false,
            outbox: Outbox::open(&vault, self.machine.clone(), Metrics::new(&[])).at_once(),
            links: Some(links(&vault)),
            vault,
            providers: self.providers.iter().cloned().zip(endpoints).collect(),
            refresh: self.refresh.clone(),
            warn_before: WARN_BEFORE.to_vec(),
            organization_series: 1000,
            clock: self.machine.clone(),
            metrics: Metrics::new(&[]),
            resident: None,
            seed,
        }
    }
}

/// The links that the keeper makes of that vault.
pub(super) fn links(vault: &Vault) -> Links {
    Links::new(&vault.link_key(), &"https://connect.example".parse().expect("a URL"), LINK)
}

/// How long the one issuer takes a spent token once more.
const GRACE: Duration = Duration::from_mins(1);

fn provider_config(place: usize, in_doubt: InDoubtPolicy) -> ProviderConfig {
    let personal = place == KEYS;
    ProviderConfig {
        name: provider(place),
        kind: if personal { Kind::DineroPersonal } else { Kind::VismaConnect },
        client_id: if personal { "personal_sandbox".into() } else { "isv_sandbox".into() },
        client_secret_file: Some("/simulated/secret".into()),
        scopes: vec![],
        pkce: true,
        usage: Usage::OneTime,
        consent_lifetime: (!personal).then_some(CONSENT),
        idle_lifetime: None,
        grace: if place == WITH_GRACE { GRACE } else { Duration::ZERO },
        in_doubt,
        max_per_minute: PER_MINUTE,
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

/// Runs one seed from beginning to end.
pub(super) fn run(seed: u64, size: Size) -> Report {
    let mut chance = fastrand::Rng::with_seed(seed);
    let world = Arc::new(World::new(seed, size, &mut chance));
    let subscriber = tracing_subscriber::registry().with(Listener(Arc::clone(&world.judge)));
    tracing::subscriber::with_default(subscriber, || {
        let end = DAY * size.days;
        while world.machine.age() < end && world.judge.is_content() {
            let steps = Some(chance.u64(1..=MAX_STEPS));
            life(&world, Plan { steps, until: end, calm: false, seed: chance.u64(..) }, &mut chance);
        }
        // From now on nothing goes wrong any more.
        world.networks.iter().for_each(|network| network.set_weather(Weather::Perfect));
        world.disk.mend();
        world.machine.set_skew(0);
        let until = world.machine.age() + CALM;
        while world.judge.is_content()
            && life(&world, Plan { steps: None, until, calm: true, seed: chance.u64(..) }, &mut chance) != End::Over
        {
        }
    });
    Report { seed, digest: world.judge.digest(), counts: world.judge.counts(), wrongs: world.judge.wrongs() }
}

/// One life of the process, and what happens to the machine before the next.
fn life(world: &Arc<World>, plan: Plan, chance: &mut fastrand::Rng) -> End {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime needs nothing that could be missing");
    let end = runtime.block_on(live(world, plan));
    // Whatever was under way ends here, wherever it stood.
    drop(runtime);
    world.judge.count(|counts| counts.lives += 1);
    world.disk.mend();
    if !plan.calm && world.networks.iter().any(|network| network.weather() != Weather::Fair) {
        world.networks.iter().for_each(|network| network.set_weather(Weather::Fair));
    }
    if end == End::Died {
        world.judge.count(|counts| counts.deaths += 1);
        if chance.bool() {
            world.judge.count(|counts| counts.power_cuts += 1);
            world.disk.cut_power(chance);
            world.machine.reboot();
        }
    }
    if !plan.calm {
        world.step_back(chance);
    }
    world.machine.pass(match chance.u8(..10) {
        0..6 => Duration::from_millis(chance.u64(200..8000)),
        6..9 => Duration::from_secs(chance.u64(8..600)),
        _ => Duration::from_mins(chance.u64(10..1800)),
    });
    end
}

/// Hears what the worker tells of doubts.
struct Listener(Arc<Judge>);

#[derive(Default)]
struct Heard {
    event: String,
    organization: String,
}

impl Visit for Heard {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "event" => value.clone_into(&mut self.event),
            "organization" => value.clone_into(&mut self.organization),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl<S: tracing::Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut heard = Heard::default();
        event.record(&mut heard);
        match heard.event.as_str() {
            "consent.in_doubt" => self.0.announced(&heard.organization),
            "consent.lost" => self.0.count(|counts| counts.losses += 1),
            _ => {}
        }
    }
}
