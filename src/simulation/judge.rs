use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    fleet::sharing_with,
    machine::Machine,
    network::{Network, life_of},
};
use crate::{
    clock::Clock,
    keeper::Served,
    lifecycle::warns_at,
    model::{
        AccessToken, Credential, DoubtReason, EventId, EventKind, FailingReason, Grant, GrantId, OrganizationId,
        State as GrantState,
    },
    sandbox::{Entry, Issuer, Outcome, Standing},
    tests::AtOnce as _,
    vault::Vault,
};

/// How many findings are kept; one is enough to fail.
const MAX_WRONGS: usize = 20;
/// Exchanges that a provider may be asked for in any minute.
pub(super) const PER_MINUTE: u32 = 120;
/// What may come on top: the burst after a quiet time, and the probes of a frozen provider.
const BEYOND: usize = 10;
/// The stand-in issuer counts in whole seconds, and the worker from the moment at which it asked.
const ROUNDING: Duration = Duration::from_secs(2);
/// How often a dead credential may be presented within so long before that counts as hammering. A refused one that nothing
/// proves dead is tried every quarter of an hour.
const MAX_REFUSALS: usize = 40;
const REFUSALS_WITHIN: Duration = Duration::from_hours(6);
/// When consents are warned of.
pub(super) const WARN_BEFORE: [Duration; 3] =
    [Duration::from_hours(30 * 24), Duration::from_hours(7 * 24), Duration::from_hours(24)];
/// How late a warning may be: the worker is down for a day, wall time is off by two, and the operator's rounds, with which the
/// sweep comes, are a day apart.
const WARNED_WITHIN: Duration = Duration::from_hours(5 * 24);

/// What a run did, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) lives: u32,
    pub(super) deaths: u32,
    pub(super) power_cuts: u32,
    pub(super) steps_back: u32,
    pub(super) exchanges: u64,
    pub(super) fetches: u64,
    pub(super) doubts: u64,
    pub(super) losses: u64,
    pub(super) replays: u64,
    pub(super) enrolments: u64,
    /// People who approved by a link, and how many of their consents took their place at once.
    pub(super) approvals: u64,
    pub(super) renewals: u64,
}

/// Knows what must hold, and notes what does not.
#[derive(Debug)]
pub(super) struct Judge {
    machine: Arc<Machine>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wrongs: Vec<String>,
    counts: Counts,
    digest: u64,
    /// The exchanges of the last minute by provider, on the boot-time clock.
    asked: BTreeMap<&'static str, VecDeque<Duration>>,
    /// When an authorization's credential was refused lately, on the simulation's own clock.
    refusals: BTreeMap<u64, VecDeque<Duration>>,
    /// The organizations that were announced in this life to be in doubt.
    announced: BTreeSet<String>,
    /// Spent tokens that were sent, by authorization and place: what that did, it did the first time.
    replayed: BTreeSet<(Option<u64>, Option<u32>)>,
    /// Organizations whose doubt the operator has resolved at his own risk.
    risked: BTreeSet<OrganizationId>,
    /// Every event that was ever durable, with what it says.
    told: BTreeMap<EventId, String>,
    /// The organizations that there were events of a doubt about.
    doubted: BTreeSet<String>,
    /// When the vault went back in time last, on the simulation's own clock.
    went_back: Option<Duration>,
    /// The vault of the present life.
    vault: Option<Vault>,
}

impl Judge {
    pub(super) fn new(machine: Arc<Machine>) -> Self {
        Self { machine, state: Mutex::default() }
    }

    /// Something must not have happened.
    pub(super) fn wrong(&self, what: &str) {
        let age = self.machine.age();
        let mut state = self.state();
        if state.wrongs.len() < MAX_WRONGS {
            state.wrongs.push(format!("day {:.3}: {what}", age.as_secs_f64() / 86_400.0));
        }
    }

    pub(super) fn wrongs(&self) -> Vec<String> {
        self.state().wrongs.clone()
    }

    pub(super) fn is_content(&self) -> bool {
        self.state().wrongs.is_empty()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.state().counts);
    }

    pub(super) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// A number that two runs have in common only if the issuers saw the same in both.
    pub(super) fn digest(&self) -> u64 {
        self.state().digest
    }

    /// A life begins, with the vault open; `None`: it has ended.
    pub(super) fn begin(&self, vault: Option<Vault>) {
        let mut state = self.state();
        state.vault = vault;
        state.asked.clear();
        state.announced.clear();
        state.risked.clear();
    }

    /// The operator takes the risk of a replay, or does not any more.
    pub(super) fn risk(&self, organization: &OrganizationId, taken: bool) {
        let risked = &mut self.state().risked;
        if taken {
            risked.insert(organization.clone());
        } else {
            risked.remove(organization);
        }
    }

    /// The worker has told of a doubt.
    pub(super) fn announced(&self, organization: &str) {
        let mut state = self.state();
        state.counts.doubts += 1;
        state.announced.insert(organization.to_owned());
    }

    /// A provider is asked for an exchange: never more often than its budget allows.
    pub(super) fn asked(&self, provider: &'static str) {
        const MINUTE: Duration = Duration::from_mins(1);
        if self.machine.is_dead() {
            return;
        }
        let now = self.machine.now().boot;
        let storm = {
            let mut state = self.state();
            let asked = state.asked.entry(provider).or_default();
            asked.push_back(now);
            while asked.front().is_some_and(|first| now.saturating_sub(*first) >= MINUTE) {
                asked.pop_front();
            }
            asked.len() > PER_MINUTE as usize + BEYOND
        };
        if storm {
            self.wrong(&format!("{provider} was asked more often than its budget allows"));
        }
    }

    /// An exchange has reached an issuer.
    pub(super) fn exchanged(&self, network: &Network, credential: &Credential, entry: &Entry) {
        let (truth, age) = (self.machine.truth().as_millis(), self.machine.age());
        let hammered = {
            let mut state = self.state();
            state.counts.exchanges += 1;
            let mut line = String::new();
            let _ =
                write!(line, "{truth} {:?} {:?} {:?} {}", entry.user, entry.authorization, entry.token, entry.result);
            state.digest = line
                .bytes()
                .fold(state.digest, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
            match (entry.authorization, entry.result) {
                (Some(authorization), Outcome::Denied(_)) => {
                    let refusals = state.refusals.entry(authorization).or_default();
                    refusals.push_back(age);
                    while refusals.front().is_some_and(|first| age.saturating_sub(*first) > REFUSALS_WITHIN) {
                        refusals.pop_front();
                    }
                    refusals.len() > MAX_REFUSALS
                }
                _ => false,
            }
        };
        if hammered {
            self.wrong(&format!("a dead credential of {:?} at {} is sent again and again", entry.user, network.name()));
        }
        if entry.replay {
            self.replayed(credential, entry);
        }
    }

    /// A spent one-time token was sent. The rules allow it where it can harm nobody, and where an operator said so.
    fn replayed(&self, credential: &Credential, entry: &Entry) {
        self.count(|counts| counts.replays += 1);
        let (vault, risked) = {
            let state = self.state();
            (state.vault.clone(), state.risked.clone())
        };
        let Some(vault) = vault else { return };
        let grants = all_grants(&vault);
        let whose = format!("of {:?}, token {:?}", entry.user, entry.token);
        let Some(grant) = grants.iter().find(|grant| grant.credential.secret().same_as(credential.secret())) else {
            return self.wrong(&format!("a spent token that no grant holds was sent, {whose}"));
        };
        if grant.organizations.iter().any(|organization| risked.contains(organization)) {
            return;
        }
        // After a refusal it is tried again until its end is proven.
        let refused = grant.refusals.is_some();
        let doubtful = matches!(grant.state, GrantState::InDoubt(DoubtReason::NoAnswer | DoubtReason::Crashed));
        if !refused && !doubtful {
            return self.wrong(&format!("a spent token was sent although its grant is {:?}, {whose}", grant.state));
        }
        let latest = self.machine.truth().max(self.machine.now().wall);
        let first = self.state().replayed.insert((entry.authorization, entry.token));
        // Where the answer did not say how long it lives, the worker knows no better than what it assumed.
        let lives = |access: &AccessToken| {
            let end = life_of(access.token.expose()).map_or(access.expires_at, |(_, end)| end.min(access.expires_at));
            end > latest + ROUNDING
        };
        if first && grant.access.as_ref().is_some_and(lives) {
            let intent = vault.intent(grant.id).at_once().ok().flatten();
            let (state, now) = (grant.state, self.machine.now());
            self.wrong(&format!(
                "a spent token was sent while its access token lived, {whose}: {state:?} since {:?}, now {now:?}, {:?}, {intent:?}",
                grant.since, grant.refusals
            ));
        }
        let shared = |other: &&Grant| {
            other.id != grant.id
                && other.provider == grant.provider
                && other.subject == grant.subject
                && other.state != GrantState::Lost
                && !other.organizations.is_empty()
        };
        if grant.subject.is_none() || grants.iter().any(|other| shared(&other)) {
            self.wrong(&format!("a spent token was sent that may end another grant, {whose}"));
        }
    }

    /// A caller was given a token.
    pub(super) fn served(&self, issuer: &Issuer, organization: &OrganizationId, served: &Served) {
        self.count(|counts| counts.fetches += 1);
        let truth = self.machine.truth();
        let token = &served.read().access_token;
        let Some((given, end)) = life_of(token) else {
            return self.wrong(&format!("{organization} was given something that is no token"));
        };
        if end + ROUNDING < truth && !self.machine.forgot_since(given) {
            let late = truth.since(end).as_secs();
            self.wrong(&format!("{organization} was given an access token {late} s after its end"));
        }
        let reach = issuer.reach(truth, &crate::model::Secret::new(token.clone()));
        if reach.is_some_and(|reach| reach.iter().all(|reached| **reached != *organization.as_str())) {
            self.wrong(&format!("{organization} was given a token that does not reach it"));
        }
    }

    /// The vault goes back in time: what it had noted of warnings may be gone.
    pub(super) fn went_back(&self) {
        self.state().went_back = Some(self.machine.age());
    }

    /// Looks through the vault: nothing in it may be in another state than the issuers say it can be.
    pub(super) fn audit(&self, vault: &Vault, networks: &[Arc<Network>]) {
        let truth = self.machine.truth();
        self.read_events(vault);
        for grant in all_grants(vault) {
            self.audit_events(vault, &grant);
            let Some(network) = networks.iter().find(|network| network.name() == grant.provider.as_str()) else {
                continue;
            };
            let name = grant.organizations.first().map_or("(nobody)", OrganizationId::as_str).to_owned();
            if let GrantState::InDoubt(_) = grant.state {
                let announced = {
                    let announced = &self.state().announced;
                    // It was told by the name of the first of those that used it then.
                    let names = grant.organizations.iter().flat_map(|id| sharing_with(id.as_str()));
                    names.into_iter().any(|name| announced.contains(&name))
                };
                // It is told right after it was stored.
                let is_old = grant.since + ROUNDING < self.machine.now().wall;
                if !grant.organizations.is_empty() && !announced && is_old {
                    self.wrong(&format!("{name} is in doubt since {:?} and nobody was told", grant.since));
                }
                continue;
            }
            if vault.intent(grant.id).at_once().ok().flatten().is_some() {
                continue;
            }
            let secret = grant.credential.secret();
            let lives = match &grant.credential {
                Credential::ApiKey(_) if network.issuer().key_is_alive(secret) => Standing::Live,
                Credential::ApiKey(_) => continue,
                Credential::RefreshToken(_) => network.issuer().standing(truth, secret),
            };
            let proven_dead = matches!(grant.state, GrantState::Lost | GrantState::Failing(FailingReason::Refused));
            match lives {
                Standing::Spent if !proven_dead => {
                    self.wrong(&format!("{name} is {:?} with a token that has been spent", grant.state));
                }
                Standing::Live | Standing::InGrace if grant.state == GrantState::Lost => {
                    self.wrong(&format!("{name} was declared lost and its credential is good"));
                }
                _ => {}
            }
        }
    }

    /// What a person's approval by a link has come to, or the process that was at it: the organization has the consent that it
    /// had, or another that was told in the same commit. `swapped`: the worker said that it is the other.
    pub(super) fn approved(&self, vault: &Vault, organization: &OrganizationId, before: GrantId, swapped: bool) {
        self.count(|counts| {
            counts.approvals += 1;
            counts.renewals += u64::from(swapped);
        });
        let stored = vault.organization(organization).at_once().ok().flatten().map(|stored| stored.value.grant);
        let grant = stored.and_then(|id| vault.grant(id).at_once().ok().flatten()).map(|stored| stored.value);
        let Some(grant) = grant.filter(|grant| grant.organizations.contains(organization)) else {
            return self.wrong(&format!("{organization} has neither its old consent nor the new one"));
        };
        if grant.id == before {
            if swapped {
                self.wrong(&format!("{organization} was said to be renewed, and has its old consent"));
            }
            return;
        }
        self.read_events(vault);
        let given = grant.consent.as_ref().map(|consent| consent.granted_at).unwrap_or_default();
        let kind = EventKind::ConsentRenewed.word().as_bytes();
        let moment = given.as_millis().to_le_bytes();
        let id = vault.event_id(&[kind, organization.as_str().as_bytes(), grant.id.as_bytes(), &moment]);
        if !self.state().told.contains_key(&id) {
            self.wrong(&format!("{organization} has another consent, and there is no such event"));
        }
    }

    /// Takes note of every event in the vault: no two happenings share an id, and no happening has two.
    fn read_events(&self, vault: &Vault) {
        let mut wrong = Vec::new();
        {
            let State { told, doubted, .. } = &mut *self.state();
            let _ = vault
                .for_each_row(&mut |stored| {
                    let event = &stored.value.event;
                    let organization = event.organization.as_ref().map_or("", |id| id.as_str());
                    let says = format!(
                        "{} {organization} {:?} {:?}",
                        event.kind.word(),
                        event.consent_expires_at,
                        event.within
                    );
                    if told.get(&event.id).is_some_and(|before| *before != says) {
                        wrong.push(format!("{} means {says}, and once meant something else", event.id));
                    }
                    told.insert(event.id, says);
                    if event.kind == EventKind::ConsentInDoubt {
                        doubted.insert(organization.to_owned());
                    }
                    Ok(())
                })
                .at_once();
        }
        for wrong in &wrong {
            self.wrong(wrong);
        }
    }

    /// What a grant's record says happened was told in the commit that wrote it; and what is to be told of its end has been.
    fn audit_events(&self, vault: &Vault, grant: &Grant) {
        if grant.organizations.is_empty() {
            return;
        }
        let was_told = |kind: EventKind, moment: &[u8]| {
            let told = &self.state().told;
            // By the names of those that used it then.
            let names = grant.organizations.iter().flat_map(|id| sharing_with(id.as_str()));
            let id =
                |name: String| vault.event_id(&[kind.word().as_bytes(), name.as_bytes(), grant.id.as_bytes(), moment]);
            names.map(id).any(|id| told.contains_key(&id))
        };
        let name = grant.organizations[0].as_str();
        let since = grant.since.as_millis().to_le_bytes();
        let is_known = match grant.state {
            // Its reason may have changed since it was told.
            GrantState::InDoubt(_) => {
                let doubted = &self.state().doubted;
                grant.organizations.iter().flat_map(|id| sharing_with(id.as_str())).any(|name| doubted.contains(&name))
            }
            GrantState::Lost => was_told(EventKind::ConsentLost, &since),
            _ => true,
        };
        if !is_known {
            self.wrong(&format!("{name} is {:?} since {:?}, and there is no such event", grant.state, grant.since));
        }
        let Some(consent) = &grant.consent else { return };
        let Some(end) = consent.expires_at else { return };
        for before in &consent.warned {
            let kind = if before.is_zero() { EventKind::ConsentExpired } else { EventKind::ConsentExpiring };
            let moment = [&end.as_millis().to_le_bytes()[..], &before.as_millis().to_le_bytes()].concat();
            if !was_told(kind, &moment) {
                self.wrong(&format!("{name} is noted as warned {before:?} before its end, and there is no such event"));
            }
        }
        // What went back is told again, under the same ids, by the passes that come.
        let age = self.machine.age();
        if self.state().went_back.is_some_and(|at| age.saturating_sub(at) < WARNED_WITHIN) {
            return;
        }
        let late = self.machine.truth().min(self.machine.now().wall) - WARNED_WITHIN;
        if grant.state != GrantState::Lost && warns_at(grant, &WARN_BEFORE).is_some_and(|at| at < late) {
            self.wrong(&format!("{name} ends {end:?}, and only {:?} were told", consent.warned));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every grant in the vault, in the order of the ids.
fn all_grants(vault: &Vault) -> Vec<Grant> {
    let mut grants = Vec::new();
    let _ = vault
        .for_each_grant(&mut |stored| {
            grants.push(stored.value);
            Ok(())
        })
        .at_once();
    grants
}
