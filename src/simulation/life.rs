use std::{sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    fleet::{Customer, Enrolled, Gift, network_of, provider},
    network::Weather,
    year::{Approving, World, links},
};
use crate::{
    clock::Clock,
    keeper::{Keeper, KeeperError, NewConsent},
    model::{OrganizationId, Secret},
    sandbox::{Approval, Scopes},
    vault::{DiskFault, Vault},
    wire::{Code, Resolution},
};

/// How many callers there are, and how long each rests between two calls on average.
const CALLERS: u64 = 6;
const REST: Duration = Duration::from_mins(50);
/// How often the operator looks after everybody.
const ROUND: Duration = Duration::from_hours(18);
/// How long a doubt stands before the operator asks for a new consent.
const PATIENCE: Duration = Duration::from_hours(36);
/// How soon an end is for the operator to renew the consent.
const RENEW_WITHIN: Duration = Duration::from_hours(5 * 24);
/// How long a person takes to open a link and approve, at most.
const DELIBERATION: Duration = Duration::from_mins(5);
/// How long a vault may take to be loaded where nothing is wrong.
const LOADING: Duration = Duration::from_mins(10);
const DAY: Duration = Duration::from_hours(24);

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At one of its steps.
    Died,
    /// The vault took nothing any more, and somebody started the worker anew.
    Poisoned,
    /// Softly.
    Stopped,
    /// The time of the run is over.
    Over,
}

/// What is to happen in a life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// After how many steps it dies.
    pub(super) steps: Option<u64>,
    /// At which age of the simulation it ends in any case.
    pub(super) until: Duration,
    /// Whether anything goes wrong meanwhile.
    pub(super) calm: bool,
    pub(super) seed: u64,
}

/// Runs a process from its start to its end. To be called on the simulation's runtime.
pub(super) async fn live(world: &Arc<World>, plan: Plan) -> End {
    let machine = &world.machine;
    machine.begin(plan.steps);
    world.networks.iter().for_each(|network| network.begin());
    let end = match world.disk.open() {
        Ok(vault) => {
            world.judge.begin(Some(vault.clone()));
            tokio::select! {
                biased;
                () = machine.death() => End::Died,
                end = work(world, plan, vault) => end,
            }
        }
        Err(_) if machine.is_dead() => End::Died,
        Err(error) => {
            world.judge.wrong(&format!("the vault does not open: {error}"));
            End::Over
        }
    };
    machine.end();
    world.judge.begin(None);
    end
}

async fn work(world: &Arc<World>, plan: Plan, vault: Vault) -> End {
    let keeper = Keeper::start(world.parts(vault.clone(), plan.seed), CancellationToken::new(), TaskTracker::new());
    let began = world.machine.age();
    while !keeper.is_ready() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if vault.poisoned().is_some() {
            return End::Poisoned;
        }
        if world.machine.age() > began + LOADING {
            world.judge.wrong("the vault was never loaded");
            return End::Over;
        }
    }
    if let Some(Approving { organization, before }) = world.approving(None) {
        world.judge.approved(&vault, &organization, before, false);
    }
    world.judge.audit(&vault, &world.networks);
    let life = Life { world: Arc::clone(world), keeper, vault };
    for number in 0..CALLERS {
        tokio::spawn(life.clone().call(plan.seed ^ number));
    }
    tokio::spawn(life.clone().operate(plan.seed ^ 0x6f70, plan.calm));
    let mut chance = fastrand::Rng::with_seed(plan.seed ^ 0x6d69);
    loop {
        let rest = if plan.calm { Duration::from_hours(1) } else { Duration::from_hours(20).mul_f64(chance.f64()) };
        tokio::time::sleep(rest).await;
        if life.vault.poisoned().is_some() {
            return End::Poisoned;
        }
        if world.machine.age() > plan.until || !world.judge.is_content() {
            break;
        }
        if !plan.calm && life.mishap(&mut chance).await {
            break;
        }
    }
    if plan.calm {
        life.check_recovery().await;
    }
    life.keeper.drain().await;
    world.judge.audit(&life.vault, &world.networks);
    if world.machine.age() > plan.until { End::Over } else { End::Stopped }
}

#[derive(Clone)]
struct Life {
    world: Arc<World>,
    keeper: Keeper,
    vault: Vault,
}

impl Life {
    /// An application: asks for tokens, and uses what it gets.
    async fn call(self, seed: u64) {
        let mut chance = fastrand::Rng::with_seed(seed);
        loop {
            tokio::time::sleep(REST.mul_f64(2.0 * chance.f64())).await;
            let (number, customer) = self.world.pick(&mut chance);
            let min_ttl = if chance.bool() { Duration::ZERO } else { Duration::from_mins(chance.u64(..120)) };
            let result = if chance.u8(..20) == 0 {
                self.keeper.refresh(&customer.organization, None).await
            } else {
                self.keeper.token(&customer.organization, min_ttl).await
            };
            if self.world.machine.is_dead() {
                return;
            }
            match result {
                Ok(served) => {
                    let network = network_of(&self.world.networks, &customer);
                    self.world.judge.served(network.issuer(), &customer.organization, &served);
                }
                Err(error) => self.never_unknown(number, &error),
            }
        }
    }

    /// An organization that was acknowledged is never unknown again.
    fn never_unknown(&self, number: usize, error: &KeeperError) {
        let customer = self.world.customers()[number].clone();
        if error.code() == Code::UnknownOrganization && customer.enrolled == Enrolled::Yes {
            self.world.judge.wrong(&format!("{} was enrolled, and is unknown: {error}", customer.organization));
        }
    }

    /// An operator: enrols, renews what ends or is lost, resolves doubts.
    async fn operate(self, seed: u64, calm: bool) {
        let mut chance = fastrand::Rng::with_seed(seed);
        loop {
            let count = self.world.customers().len();
            for number in 0..count {
                self.tend(number, calm, &mut chance).await;
                if self.world.machine.is_dead() {
                    return;
                }
            }
            self.keeper.sweep();
            self.world.judge.audit(&self.vault, &self.world.networks);
            tokio::time::sleep(if calm { Duration::from_hours(2) } else { ROUND.mul_f64(0.5 + chance.f64()) }).await;
        }
    }

    async fn tend(&self, number: usize, calm: bool, chance: &mut fastrand::Rng) {
        let organization = self.world.customers()[number].organization.clone();
        let shown = self.keeper.show(&organization).await;
        if self.world.machine.is_dead() {
            return;
        }
        let now = self.world.machine.truth();
        let shown = match shown {
            Ok(shown) => shown,
            Err(error) => {
                self.never_unknown(number, &error);
                if error.code() == Code::UnknownOrganization {
                    self.enrol(number, chance).await;
                }
                return;
            }
        };
        let patience = if calm { Duration::ZERO } else { PATIENCE };
        let renew = {
            let customer = &mut self.world.customers()[number];
            // A removal whose sync failed was refused, and may have reached the disk all the same: until the next start nobody knows.
            if self.vault.poisoned().is_none() {
                customer.enrolled = Enrolled::Yes;
            }
            customer.paused = shown.paused;
            let doubtful = shown.state == "in_doubt";
            customer.doubtful_since = customer.doubtful_since.filter(|_| doubtful).or(doubtful.then_some(now));
            let ends = shown.consent.as_ref().and_then(|consent| consent.expires_at);
            let doubted = customer.doubtful_since.is_some_and(|since| now.since(since) >= patience);
            shown.state == "lost" || doubted || ends.is_some_and(|end| end < now + RENEW_WITHIN)
        };
        if renew && shown.state == "in_doubt" && chance.u8(..4) == 0 {
            return self.retry(&organization).await;
        }
        if renew && chance.bool() && self.world.customers()[number].gift != Gift::ApiKey {
            return self.approve(number, chance).await;
        }
        if renew {
            self.world.customers()[number].secret = None;
            return self.enrol(number, chance).await;
        }
        let result = match chance.u16(..1000) {
            _ if calm && shown.paused => self.keeper.set_paused(&organization, false).await.map(drop),
            _ if calm => Ok(()),
            0..4 => self.keeper.set_paused(&organization, true).await.map(drop),
            4..8 => self.remove(number, &organization, chance.bool()).await,
            8..12 => {
                self.enrol(number, chance).await;
                Ok(())
            }
            _ if shown.paused => self.keeper.set_paused(&organization, false).await.map(drop),
            _ => Ok(()),
        };
        if let (Err(error), false) = (result, self.world.machine.is_dead()) {
            self.never_unknown(number, &error);
        }
    }

    /// The customer is sent a link, and gives consent by it for all organizations that share the one that it has.
    async fn approve(&self, number: usize, chance: &mut fastrand::Rng) {
        let (customer, sharing) = {
            let customers = self.world.customers();
            let customer = customers[number].clone();
            let leader = customer.follows.unwrap_or(number);
            let shares = |(other, follower): &(usize, &Customer)| *other == leader || follower.follows == Some(leader);
            let sharing = customers.iter().enumerate().filter(shares).map(|(_, other)| other.organization.clone());
            (customer.clone(), sharing.collect::<Vec<_>>())
        };
        let organization = &customer.organization;
        let Ok(link) = self.keeper.link(organization, Some(&provider(customer.network)), sharing).await else { return };
        tokio::time::sleep(DELIBERATION.mul_f64(chance.f64())).await;
        let (machine, network) = (&self.world.machine, network_of(&self.world.networks, &customer));
        let token = link.url.rsplit('/').next().unwrap_or_default();
        let (Ok(invitation), Ok(Some(stored))) =
            (links(&self.vault).open(token, machine.now().wall), self.vault.organization(organization).await)
        else {
            return;
        };
        let before = stored.value.grant;
        let redirect_uri = "https://connect.example/callback".to_owned();
        let (user, scopes) = (customer.user.clone(), Scopes::ALL);
        let approval = Approval { user, redirect_uri: redirect_uri.clone(), challenge: None, scopes };
        let code = network.issuer().new_code(machine.truth(), approval);
        self.world.approving(Some(Approving { organization: organization.clone(), before }));
        let consent = NewConsent { invitation, code, verifier: None, redirect_uri };
        let consented = self.keeper.consent(consent).await;
        if machine.is_dead() {
            return;
        }
        self.world.approving(None);
        let connected = consented.map(|consented| consented.connected).unwrap_or_default();
        self.world.judge.approved(&self.vault, organization, before, connected.contains(organization));
        for customer in self.world.customers().iter_mut().filter(|one| connected.contains(&one.organization)) {
            (customer.enrolled, customer.secret) = (Enrolled::Yes, None);
        }
    }

    /// The operator has a doubtful token tried, at the risk of a replay.
    async fn retry(&self, organization: &OrganizationId) {
        self.world.judge.risk(organization, true);
        let _whatever_comes_of_it = self.keeper.resolve(organization, Resolution::Retry).await;
        if !self.world.machine.is_dead() {
            self.world.judge.risk(organization, false);
        }
    }

    async fn remove(&self, number: usize, organization: &OrganizationId, revoke: bool) -> Result<(), KeeperError> {
        // From here on it may be gone at any moment.
        self.world.customers()[number].enrolled = Enrolled::Perhaps;
        self.keeper.remove(organization, revoke).await?;
        if !self.world.machine.is_dead() {
            let customer = &mut self.world.customers()[number];
            (customer.enrolled, customer.secret) = (Enrolled::No, None);
        }
        Ok(())
    }

    /// Enrols a customer, with what was given last or with something new.
    async fn enrol(&self, number: usize, chance: &mut fastrand::Rng) {
        let now = self.world.machine.truth();
        let (customer, secret) = {
            let mut customers = self.world.customers();
            let leader = customers[number].follows.unwrap_or(number);
            let secret = customers[leader].secret.clone().unwrap_or_else(|| {
                let network = network_of(&self.world.networks, &customers[leader]);
                customers[leader].give(network, now)
            });
            customers[leader].secret = Some(secret.clone());
            let customer = &mut customers[number];
            customer.secret = Some(secret.clone());
            if customer.enrolled == Enrolled::No {
                customer.enrolled = Enrolled::Perhaps;
            }
            (customer.clone(), secret)
        };
        let enrolment = customer.enrolment(secret.clone(), now, chance.u8(..10) > 0);
        let result = self.keeper.enrol(customer.organization.clone(), enrolment).await;
        if self.world.machine.is_dead() {
            return;
        }
        self.world.judge.count(|counts| counts.enrolments += 1);
        match result {
            Ok(_) => self.world.customers()[number].enrolled = Enrolled::Yes,
            Err(error) => {
                if matches!(error.code(), Code::AlreadySpent | Code::Refused | Code::InDoubt | Code::ConsentLost) {
                    self.forget(&customer, &secret);
                }
            }
        }
    }

    /// That secret is of no use.
    fn forget(&self, customer: &Customer, secret: &Secret) {
        let mut customers = self.world.customers();
        for other in customers.iter_mut().filter(|other| other.user == customer.user) {
            other.secret = other.secret.take().filter(|given| !given.same_as(secret));
        }
    }

    /// Something happens to the world; true: somebody restarts the worker.
    async fn mishap(&self, chance: &mut fastrand::Rng) -> bool {
        let world = &self.world;
        match chance.u8(..100) {
            0..40 => {
                let network = Arc::clone(&world.networks[chance.usize(..world.networks.len())]);
                let weathers = [
                    Weather::Unreachable,
                    Weather::Down,
                    Weather::Broken,
                    Weather::Busy,
                    Weather::Silent,
                    Weather::ClientRefused,
                    Weather::AllRefused,
                ];
                network.set_weather(weathers[chance.usize(..weathers.len())]);
                // Three refusals over an hour are proof, where too few are refused for the circuit to open.
                let longest = if network.weather() == Weather::AllRefused { 50 } else { 600 };
                let lasts =
                    Duration::from_mins(if chance.bool() { chance.u64(1..30) } else { chance.u64(30..longest) });
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    network.set_weather(Weather::Fair);
                });
            }
            40..55 => {
                let most = i64::try_from(DAY.as_millis()).unwrap_or(i64::MAX) * 2;
                let small = chance.bool();
                world.machine.set_skew(if small { chance.i64(-60_000..60_000) } else { chance.i64(-most..most) });
                tokio::time::sleep(Duration::from_hours(10).mul_f64(chance.f64())).await;
                world.machine.set_skew(0);
            }
            55..65 => world.machine.pass(Duration::from_hours(30).mul_f64(chance.f64())),
            65..71 => world.disk.fail(match chance.u8(..3) {
                0 => DiskFault::JournalSync,
                1 => DiskFault::EngineFull,
                _ => DiskFault::EngineSync,
            }),
            71..80 => {
                let (_, customer) = world.pick(chance);
                let issuer = network_of(&world.networks, &customer).issuer();
                if customer.gift == Gift::ApiKey {
                    issuer.delete_api_keys(world.machine.truth(), customer.organization.as_str());
                } else {
                    issuer.withdraw(world.machine.truth(), &customer.user);
                }
            }
            80..90 => return true,
            _ => {
                self.keeper.sweep();
            }
        }
        false
    }

    /// Nothing has gone wrong for days: everybody is served.
    async fn check_recovery(&self) {
        let now = self.world.machine.now().wall;
        let customers = self.world.customers().clone();
        for customer in customers {
            // Who is kept warm only while it is fetched is well again once it is.
            if let Err(error) = self.keeper.token(&customer.organization, Duration::ZERO).await {
                self.world.judge.wrong(&format!("{} is not served at the end: {error}", customer.organization));
            }
            let shown = match self.keeper.show(&customer.organization).await {
                Ok(shown) => shown,
                Err(error) => {
                    self.world.judge.wrong(&format!("{} cannot be shown at the end: {error}", customer.organization));
                    continue;
                }
            };
            if shown.state != "active" {
                let (state, reason) = (&shown.state, &shown.reason);
                self.world.judge.wrong(&format!(
                    "{} ({:?}) is {state}, {reason:?} at the end, due {:?}, now {now:?}",
                    customer.organization, customer.gift, shown.next_refresh_at
                ));
            }
        }
    }
}
