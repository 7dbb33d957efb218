use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Refusal, Request, Scopes, Standing, authorization::Authorization};
use crate::{
    model::{Secret, Timestamp, Usage},
    sandbox::{
        config::SandboxConfig,
        fault::Fault,
        mint::{Claims, Kind, Mark, Mint},
        people::PEOPLE,
        record::{Entry, GrantType, Outcome, Record},
        ring_list::RingList,
    },
};

/// How many consents are remembered; a new one beyond that makes the oldest unknown.
const MAX_AUTHORIZATIONS: usize = 4_000_000;
/// How many API keys are remembered; a new one beyond that makes the oldest unknown.
const MAX_API_KEYS: usize = 4_000_000;
/// How many authorization codes are remembered, used ones included.
const MAX_CODES: usize = 10_000;
/// How many faults can wait to strike; a new one beyond that takes the place of the oldest.
const MAX_FAULTS: usize = 32;

/// What a person approved on the consent page.
#[derive(Clone, Debug)]
pub struct Approval {
    /// Who.
    pub user: String,
    /// Where the code goes.
    pub redirect_uri: String,
    /// PKCE's S256 challenge, where the client sent one.
    pub challenge: Option<String>,
    /// The approved scopes.
    pub scopes: Scopes,
}

#[derive(Debug, Default)]
pub(super) struct User {
    pub(super) organizations: Vec<Arc<str>>,
    /// The authorizations that have not been ended; those that have lapsed by time may be among them.
    pub(super) authorizations: Vec<u64>,
    /// Access tokens with a lower serial are dead: the user's access was ended as a whole.
    pub(super) access_from: u64,
}

#[derive(Debug)]
pub(super) struct ApiKey {
    pub(super) organization: Arc<str>,
    pub(super) deleted: bool,
}

#[derive(Debug)]
pub(super) struct Code {
    pub(super) approval: Approval,
    pub(super) issued_at: Timestamp,
    pub(super) used: bool,
}

#[derive(Debug)]
pub(in crate::sandbox) struct Rules {
    pub(super) terms: SandboxConfig,
    pub(super) name: String,
    pub(super) mint: Mint,
    chance: fastrand::Rng,
    pub(super) users: BTreeMap<Arc<str>, User>,
    pub(super) authorizations: RingList<Authorization>,
    pub(super) keys: RingList<ApiKey>,
    pub(super) codes: RingList<Code>,
    access_tokens: u64,
    faults: Vec<Fault>,
    pub(super) record: Record,
    pub(super) exchanges: u64,
    pub(super) replays: u64,
}

impl Rules {
    /// `name` is the issuer's identifier in its tokens; `key` and `chance` are all the randomness there will ever be.
    pub(in crate::sandbox) fn new(terms: SandboxConfig, name: String, key: &[u8; 32], chance: fastrand::Rng) -> Self {
        let users = PEOPLE
            .iter()
            .map(|person| {
                let organizations = person.organizations.iter().map(|(id, _)| Arc::from(*id)).collect();
                (Arc::from(person.user), User { organizations, ..User::default() })
            })
            .collect();
        Self {
            terms,
            name,
            mint: Mint::new(key),
            chance,
            users,
            authorizations: RingList::new(MAX_AUTHORIZATIONS),
            keys: RingList::new(MAX_API_KEYS),
            codes: RingList::new(MAX_CODES),
            access_tokens: 0,
            faults: Vec::new(),
            record: Record::new(),
            exchanges: 0,
            replays: 0,
        }
    }

    pub(in crate::sandbox) const fn terms(&self) -> &SandboxConfig {
        &self.terms
    }

    pub(in crate::sandbox) fn set_client_secrets(&mut self, secrets: Vec<Secret>) {
        self.terms.client_secrets = secrets;
    }

    /// Gives a consent and its refresh token. `None`: the scopes are without `offline_access`.
    pub(super) fn authorize(&mut self, granted_at: Timestamp, user: &str, usage: Usage, scopes: Scopes) -> u64 {
        let id = self.authorizations.next();
        let name = match self.users.get_key_value(user) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(user),
        };
        self.users.entry(Arc::clone(&name)).or_default().authorizations.push(id);
        let authorization = Authorization::new(name, usage, scopes, granted_at, &self.terms);
        if let Some((old, gone)) = self.authorizations.push(authorization) {
            self.forget_authorization(old, &gone.user);
        }
        id
    }

    /// Keeps the users as bounded as the authorizations are.
    fn forget_authorization(&mut self, id: u64, user: &str) {
        let Some(owner) = self.users.get_mut(user) else { return };
        owner.authorizations.retain(|known| *known != id);
        if owner.authorizations.is_empty() && PEOPLE.iter().all(|person| person.user != user) {
            self.users.remove(user);
        }
    }

    /// A consent without a browser; the organizations are added to those that the user owns.
    pub(in crate::sandbox) fn new_consent(
        &mut self,
        at: Timestamp,
        user: &str,
        usage: Usage,
        organizations: &[&str],
    ) -> Secret {
        let id = self.authorize(at, user, usage, Scopes::ALL);
        if let Some(owner) = self.users.get_mut(user) {
            for organization in organizations {
                if owner.organizations.iter().all(|owned| **owned != **organization) {
                    owner.organizations.push(Arc::from(*organization));
                }
            }
        }
        self.mint.seal(Kind::Refresh, Mark { id, number: 0 })
    }

    pub(in crate::sandbox) fn new_api_key(&mut self, organization: &str) -> Secret {
        let id = self.keys.next();
        let _oldest = self.keys.push(ApiKey { organization: Arc::from(organization), deleted: false });
        self.mint.seal(Kind::ApiKey, Mark { id, number: 0 })
    }

    pub(in crate::sandbox) fn new_code(&mut self, now: Timestamp, approval: Approval) -> Secret {
        let id = self.codes.next();
        let _oldest = self.codes.push(Code { approval, issued_at: now, used: false });
        self.mint.seal(Kind::Code, Mark { id, number: 0 })
    }

    /// Everybody who can sign in, with the organizations they own, in order.
    pub(in crate::sandbox) fn people(&self, limit: usize) -> Vec<(Arc<str>, Vec<Arc<str>>)> {
        let made_up = PEOPLE.iter().filter_map(|person| self.users.get_key_value(person.user));
        let others = self.users.iter().filter(|(name, _)| PEOPLE.iter().all(|person| *person.user != ***name));
        made_up
            .chain(others.take(limit.saturating_sub(PEOPLE.len())))
            .map(|(name, user)| (Arc::clone(name), user.organizations.clone()))
            .collect()
    }

    pub(in crate::sandbox) fn knows_user(&self, user: &str) -> bool {
        self.users.contains_key(user)
    }

    /// Ends every authorization of a user, and every access token that came from one. Gives back those that were alive.
    pub(super) fn end_user(&mut self, now: Timestamp, user: &str, why: Refusal) -> Vec<u64> {
        let Some(owner) = self.users.get_mut(user) else { return Vec::new() };
        owner.access_from = self.access_tokens;
        let mut killed = Vec::new();
        for id in std::mem::take(&mut owner.authorizations) {
            if let Some(authorization) = self.authorizations.get_mut(id) {
                if authorization.lives(now) {
                    killed.push(id);
                }
                authorization.ended = Some(why);
            }
        }
        killed
    }

    /// A user withdraws every consent: refresh and access tokens die at once. False: nobody of that name.
    pub(in crate::sandbox) fn withdraw(&mut self, now: Timestamp, user: &str) -> bool {
        let known = self.knows_user(user);
        let mut entry = Entry::new(now, GrantType::Withdrawal, "", None);
        entry.user = Some(user.to_owned());
        entry.killed = self.end_user(now, user, Refusal::Withdrawn);
        entry.result = Outcome::Done;
        if known {
            self.record.push(entry);
        }
        known
    }

    /// Deletes every API key of an organization; gives back how many there were.
    pub(in crate::sandbox) fn delete_api_keys(&mut self, now: Timestamp, organization: &str) -> usize {
        let mut deleted = 0;
        for key in self.keys.iter_mut().filter(|key| !key.deleted && *key.organization == *organization) {
            key.deleted = true;
            deleted += 1;
        }
        let mut entry = Entry::new(now, GrantType::Withdrawal, "", None);
        entry.user = Some(organization.to_owned());
        entry.result = Outcome::Done;
        self.record.push(entry);
        deleted
    }

    /// How a refresh token would fare if it were exchanged now.
    pub(in crate::sandbox) fn standing(&self, now: Timestamp, token: &str) -> Standing {
        let mark = self.mint.open(Kind::Refresh, token);
        let found = mark.and_then(|mark| Some((self.authorizations.get(mark.id)?, mark.number)));
        found.map_or(Standing::Dead(Refusal::Unknown), |(authorization, number)| authorization.standing(now, number))
    }

    /// Whether an API key would be accepted.
    pub(in crate::sandbox) fn key_lives(&self, key: &str) -> bool {
        self.mint.open(Kind::ApiKey, key).and_then(|mark| self.keys.get(mark.id)).is_some_and(|key| !key.deleted)
    }

    /// The organizations that an access token reaches; `None`: it is not ours, has lapsed, or was ended.
    pub(in crate::sandbox) fn reach(&self, now: Timestamp, access_token: &str) -> Option<Vec<Arc<str>>> {
        let claims = self.mint.read_access_token(access_token)?;
        if now.as_seconds() >= claims.expires {
            return None;
        }
        if claims.personal {
            let key = self.keys.get(claims.id)?;
            return (!key.deleted).then(|| vec![Arc::clone(&key.organization)]);
        }
        let user = self.users.get(&self.authorizations.get(claims.id)?.user)?;
        (claims.serial >= user.access_from).then(|| user.organizations.clone())
    }

    pub(in crate::sandbox) fn set_fault(&mut self, fault: Fault) {
        if self.faults.len() >= MAX_FAULTS {
            self.faults.remove(0);
        }
        self.faults.push(fault);
    }

    pub(in crate::sandbox) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    pub(in crate::sandbox) fn faults(&self) -> Vec<Fault> {
        self.faults.clone()
    }

    /// The fault that strikes this call: the first that concerns it and has the luck. It counts as struck.
    pub(in crate::sandbox) fn next_fault(&mut self, asked: Option<&Request<'_>>) -> Option<Fault> {
        if self.faults.is_empty() {
            return None;
        }
        let user = asked.and_then(|request| self.whose(request));
        let user = user.as_deref();
        self.strike(|fault| fault.concerns(user))
    }

    /// The fault that strikes a call outside the token endpoints.
    pub(in crate::sandbox) fn next_fault_elsewhere(&mut self) -> Option<Fault> {
        self.strike(|fault| fault.everywhere && fault.concerns(None))
    }

    fn strike(&mut self, concerns: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let chance = &mut self.chance;
        let at = self
            .faults
            .iter()
            .position(|fault| concerns(fault) && (fault.probability >= 1.0 || chance.f64() < fault.probability))?;
        let fault = &mut self.faults[at];
        let struck = fault.clone();
        if let Some(times) = &mut fault.times {
            *times -= 1;
            if *times == 0 {
                self.faults.remove(at);
            }
        }
        Some(struck)
    }

    pub(in crate::sandbox) fn record(&self, limit: usize) -> Vec<Entry> {
        self.record.last(limit)
    }

    pub(in crate::sandbox) const fn record_dropped(&self) -> u64 {
        self.record.dropped()
    }

    pub(in crate::sandbox) const fn exchanges(&self) -> u64 {
        self.exchanges
    }

    pub(in crate::sandbox) const fn replays(&self) -> u64 {
        self.replays
    }

    pub(super) fn access_token(&mut self, now: Timestamp, personal: bool, id: u64) -> (Claims, Duration) {
        let life = Duration::from_secs(self.terms.access_token_lifetime.as_secs().max(1));
        // Rounded up: a token must not end before the `expires_in` that came with it has passed.
        let expires = (now + life + Duration::from_millis(999)).as_seconds();
        let claims = Claims { personal, id, serial: self.access_tokens, expires };
        self.access_tokens += 1;
        (claims, life)
    }
}
